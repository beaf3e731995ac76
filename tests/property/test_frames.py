"""Frames: any frame survives the wire, any cut of the bytes gives the same frames, any bytes give frames or one error."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.errors import RemoteProtocolError
from p2ptunnel.wire.frames import (
    Accept,
    Ack,
    Capability,
    Data,
    Fin,
    Frame,
    FrameReader,
    GoAway,
    Hello,
    Open,
    Opened,
    Ping,
    Pong,
    Reset,
    Resume,
    Waiting,
    Window,
    decode,
    encode,
)

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
stream_ids = st.integers(1, 2**32 - 1)
printable = st.characters(codec="utf-8", exclude_categories=("C", "Z"))
services = st.text(printable, min_size=1, max_size=50)
reasons = st.text(printable, max_size=50)
eight = st.binary(min_size=8, max_size=8)

frames: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Hello, *(st.binary(min_size=n, max_size=n) for n in (16, 16, 16, 64)), st.integers(0, 255)),
    st.builds(Accept, st.binary(min_size=64, max_size=64), st.lists(services, max_size=4).map(tuple), st.integers(0, 255)),
    st.builds(Open, stream_ids, u32, services, st.booleans()),
    st.builds(Opened, stream_ids, u32),
    st.builds(Data, stream_ids, st.binary(min_size=1, max_size=300).map(memoryview)),
    st.builds(Fin, stream_ids),
    st.builds(Reset, stream_ids, u16, reasons),
    st.builds(Window, stream_ids, u32),
    st.builds(Ping, eight),
    st.builds(Pong, eight),
    st.builds(GoAway, u16, reasons),
    st.builds(Waiting, stream_ids, u16),
    st.builds(Capability, st.binary(min_size=1, max_size=1024)),
    st.builds(Ack, u64),
    st.builds(Resume, u32, u64, u64),
)


def read(parts: list[bytes]) -> tuple[list[Frame | tuple[int, bytes]], bool]:
    """What a reader makes of these buffers, neighbouring parts of one stream's bytes put together; and whether it failed."""
    reader, found = FrameReader(), list[Frame | tuple[int, bytes]]()
    try:
        for part in parts:
            for frame in reader.feed(memoryview(part)):
                add(found, frame)
    except RemoteProtocolError:
        return found, True
    return found, False


def add(found: list[Frame | tuple[int, bytes]], frame: Frame) -> None:
    if not isinstance(frame, Data):
        found.append(frame)
    elif found and isinstance(found[-1], tuple) and found[-1][0] == frame.stream_id:
        found[-1] = (frame.stream_id, found[-1][1] + bytes(frame.payload))
    else:
        found.append((frame.stream_id, bytes(frame.payload)))


def cut(wire: bytes, places: list[int]) -> list[bytes]:
    """The bytes, cut at these places."""
    at = sorted({0, len(wire), *(place % (len(wire) + 1) for place in places)})
    return [wire[begin:end] for begin, end in itertools.pairwise(at)]


def sequenced(frames: list[Frame]) -> int:
    """How many bytes of these frames are counted."""
    return sum(len(encode(frame)) for frame in frames if not isinstance(frame, Hello | Accept | Ping | Pong | Ack | Resume))


@given(frames)
def test_a_frame_comes_back_as_it_was(frame: Frame) -> None:
    assert decode(encode(frame)) == frame


@given(st.lists(frames, max_size=12), st.lists(u16, max_size=12))
def test_frames_are_the_same_however_the_bytes_are_cut(sent: list[Frame], places: list[int]) -> None:
    wire = b"".join(map(encode, sent))
    assert read(cut(wire, places)) == read([wire])
    expected = list[Frame | tuple[int, bytes]]()
    for frame in sent:
        add(expected, frame)
    assert read([wire]) == (expected, False)


@given(st.lists(frames, max_size=8), st.lists(frames, min_size=1, max_size=2), u16, st.lists(u16, max_size=8))
def test_offsets_are_the_same_however_the_bytes_are_cut(
    before: list[Frame], last: list[Frame], end: int, places: list[int]
) -> None:
    """A frame counts from when its header came if it is DATA, and when it is whole if not."""
    reader = FrameReader()
    for part in cut(b"".join(map(encode, before)), places):
        list(reader.feed(memoryview(part)))
    assert (reader.offset, reader.is_between_frames) == (sequenced(before), True)
    wire = b"".join(map(encode, last))
    wire = wire[: end % (len(wire) + 1)]
    whole, pieces = FrameReader(), FrameReader()
    list(whole.feed(memoryview(wire)))
    for part in cut(wire, places):
        list(pieces.feed(memoryview(part)))
    for reader in (whole, pieces):
        assert reader.frame_start <= reader.offset <= len(wire)
    assert (whole.offset, whole.frame_start) == (pieces.offset, pieces.frame_start)
    assert whole.is_between_frames == pieces.is_between_frames


@given(st.lists(frames, min_size=1, max_size=6), u16, st.integers(1, 255), st.lists(u16, max_size=6))
def test_a_damaged_byte_gives_frames_or_the_one_error(sent: list[Frame], place: int, flip: int, places: list[int]) -> None:
    wire = bytearray(b"".join(map(encode, sent)))
    wire[place % len(wire)] ^= flip
    assert read(cut(bytes(wire), places)) == read([bytes(wire)])


@given(st.binary(max_size=400), st.lists(u16, max_size=8))
def test_any_bytes_give_frames_or_the_one_error(junk: bytes, places: list[int]) -> None:
    assert read(cut(junk, places)) == read([junk])
