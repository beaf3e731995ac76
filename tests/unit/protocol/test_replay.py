"""What is kept for replay: every byte until it is acknowledged, in pieces of whole frames, and not more than was allowed."""

from __future__ import annotations

import hashlib

import pytest

from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.protocol.replay import PIECE_BYTES, Replay
from p2ptunnel.wire.frames import HEADER, PAYLOAD_MAX_BYTES, Data, Fin, Frame, FrameReader, Open, encode

CAPACITY = 16 * PIECE_BYTES
EMPTY = memoryview(b"")


def block(number: int, size: int) -> bytes:
    """Bytes like no other."""
    return hashlib.shake_128(str(number).encode()).digest(size)


def keep(replay: Replay, *frames: Frame) -> bytes:
    """Keep these frames; return the bytes that they are."""
    sent = b""
    for wire in map(encode, frames):
        room = replay.room(PIECE_BYTES)
        room[: len(wire)] = wire
        replay.commit(len(wire))
        sent += wire
    return sent


def keep_block(replay: Replay, number: int, size: int) -> bytes:
    """Keep a DATA frame of so many bytes, or of as many as fit; return it."""
    return keep(replay, Data(1, memoryview(block(number, min(size, len(replay.room(PIECE_BYTES)) - HEADER.size)))))


def filled(replay: Replay, size: int) -> bytes:
    """Keep at least `size` bytes in frames that do not divide a piece; return them."""
    sent, number = b"", 0
    while len(sent) < size:
        number += 1
        sent += keep_block(replay, number, 9992)
    return sent


def beginnings(sent: bytes) -> list[int]:
    """The offsets at which frames begin, and the end."""
    reader, found = FrameReader(), list[int]()
    for _ in reader.feed(memoryview(sent)):
        found.append(reader.frame_start)
    return [*found, len(sent)]


def replayed(replay: Replay, offset: int) -> bytes:
    """All that is kept from there, piece by piece."""
    found = b""
    while part := bytes(replay.at(offset + len(found))):
        found += part
    return found


# --- keeping ----------------------------------------------------------------------------------------------------------


def test_a_fresh_one_keeps_nothing() -> None:
    replay = Replay(CAPACITY)
    assert (replay.start, replay.end, len(replay), replay.at(0)) == (0, 0, 0, EMPTY)
    assert replay.unacknowledged() == {}


def test_what_is_kept_can_be_read_from_each_frames_beginning() -> None:
    replay, sent = Replay(CAPACITY), b""
    for number in range(100):
        sent += keep_block(replay, number, 7 + number * 331)
    assert (replay.start, replay.end, len(replay)) == (0, len(sent), len(sent))
    assert len(sent) > 4 * PIECE_BYTES
    for offset in beginnings(sent):
        assert replayed(replay, offset) == sent[offset:]


def test_room_that_nothing_was_written_to_is_given_again() -> None:
    replay = Replay(CAPACITY)
    sent = keep(replay, Fin(1))
    for _ in range(3):
        assert len(replay.room(PIECE_BYTES)) == PIECE_BYTES - len(sent)
        replay.commit(0)
    assert replayed(replay, 0) == sent


def test_room_is_at_most_what_was_asked_for() -> None:
    replay = Replay(CAPACITY)
    assert len(replay.room(5000)) == 5000
    assert len(replay.room(10 * PIECE_BYTES)) == PIECE_BYTES


def test_each_piece_is_whole_frames() -> None:
    replay = Replay(CAPACITY)
    sent, at, pieces = filled(replay, 5 * PIECE_BYTES + 1), 0, 0
    while part := replay.at(at):
        reader = FrameReader()
        list(reader.feed(part))
        assert (reader.offset, reader.is_between_frames) == (len(part), True)
        at, pieces = at + len(part), pieces + 1
    assert (at, pieces) == (len(sent), 6)


def test_a_piece_that_is_full_is_followed_by_another() -> None:
    replay = Replay(CAPACITY)
    for _ in range(3):
        keep(replay, Data(1, memoryview(bytes(PAYLOAD_MAX_BYTES))))
    keep(replay, Data(1, memoryview(bytes(PAYLOAD_MAX_BYTES - 1024))))
    assert len(replay.room(PIECE_BYTES)) == 1024  # any frame but DATA fits, and DATA fits everywhere
    keep(replay, Fin(1))
    assert len(replay.room(PIECE_BYTES)) == PIECE_BYTES
    keep(replay, Fin(3))
    assert replay.at(replay.end - 8) == encode(Fin(3))


# --- capacity ---------------------------------------------------------------------------------------------------------


def test_no_more_is_kept_than_allowed_until_it_is_acknowledged() -> None:
    replay = Replay(CAPACITY)
    while replay.room(PIECE_BYTES):
        keep_block(replay, 1, PAYLOAD_MAX_BYTES)
    assert CAPACITY - 1024 < len(replay) <= CAPACITY
    replay.acknowledge(65536)
    assert len(replay.room(PIECE_BYTES)) >= 65536
    assert len(replay) <= CAPACITY - 65536


def test_room_too_small_for_a_frame_is_none() -> None:
    replay = Replay(1023)
    assert replay.room(PIECE_BYTES) == EMPTY
    assert Replay(CAPACITY).room(1023) == EMPTY
    assert len(Replay(1024).room(PIECE_BYTES)) == 1024


# --- acknowledging ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 13, 26, 27, 28, 80])
def test_what_is_acknowledged_in_the_middle_of_a_piece_is_gone_and_the_rest_is_not(frames: int) -> None:
    replay = Replay(CAPACITY)
    sent = filled(replay, 3 * PIECE_BYTES)
    offset = beginnings(sent)[frames]
    replay.acknowledge(offset)
    assert (replay.start, len(replay)) == (offset, len(sent) - offset)
    assert replayed(replay, offset) == sent[offset:]
    with pytest.raises(LocalProtocolError, match="an offset that is not kept"):
        replay.at(offset - 1)


def test_all_may_be_acknowledged_and_keeping_goes_on_at_the_same_offset() -> None:
    replay = Replay(CAPACITY)
    before = filled(replay, PIECE_BYTES // 2)
    replay.acknowledge(replay.end)
    assert (len(replay), replay.at(replay.end)) == (0, EMPTY)
    after = keep(replay, Open(1, 0, "web"), Fin(1))
    assert replay.start == len(before)
    assert replayed(replay, len(before)) == after


def test_an_acknowledgement_that_comes_late_changes_nothing() -> None:
    replay = Replay(CAPACITY)
    sent = filled(replay, PIECE_BYTES)
    for offset in (20_000, 10_000, 0, 20_000):
        replay.acknowledge(offset)
        assert replay.start == 20_000
    assert replayed(replay, 20_000) == sent[20_000:]


def test_what_was_never_sent_cannot_be_acknowledged_or_replayed() -> None:
    replay = Replay(CAPACITY)
    sent = keep(replay, Fin(1))
    with pytest.raises(LocalProtocolError, match="an acknowledgement of what was never sent"):
        replay.acknowledge(len(sent) + 1)
    with pytest.raises(LocalProtocolError, match="an offset that is not kept"):
        replay.at(len(sent) + 1)
    assert replayed(replay, 0) == sent


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_piece_that_is_acknowledged_is_used_again() -> None:
    replay, memories = Replay(CAPACITY), set[int]()
    for _ in range(50):
        memories.add(id(replay.room(PIECE_BYTES).obj))
        filled(replay, PIECE_BYTES // 2)
        replay.acknowledge(replay.end)
    assert len(memories) == 1


def test_only_a_few_pieces_are_kept_for_later_and_none_when_told_so() -> None:
    replay = Replay(CAPACITY)
    filled(replay, 12 * PIECE_BYTES)
    replay.acknowledge(replay.end)
    assert len(replay._spare) == 8
    replay.shrink()
    assert len(replay._spare) == len(replay._pieces) == 0
    keep(replay, Fin(1))
    assert replayed(replay, replay.start) == encode(Fin(1))


# --- counting by stream -----------------------------------------------------------------------------------------------


def test_it_tells_how_many_bytes_of_each_stream_are_not_acknowledged() -> None:
    replay = Replay(CAPACITY)
    opening = keep(replay, Open(1, 0, "web"), Data(1, memoryview(bytes(100))))
    keep(replay, Data(3, memoryview(bytes(40_000))), Data(1, memoryview(bytes(7))), Fin(1))
    assert replay.unacknowledged() == {1: 107, 3: 40_000}
    replay.acknowledge(len(opening))
    assert replay.unacknowledged() == {1: 7, 3: 40_000}
    replay.acknowledge(replay.end)
    assert replay.unacknowledged() == {}


def test_the_count_goes_over_all_pieces() -> None:
    replay = Replay(CAPACITY)
    sent = filled(replay, 3 * PIECE_BYTES)
    assert replay.unacknowledged() == {1: len(sent) - HEADER.size * (len(beginnings(sent)) - 1)}


def test_a_peer_that_acknowledges_half_a_frame_harms_nobody() -> None:
    replay = Replay(CAPACITY)
    keep(replay, Data(1, memoryview(bytes(range(100)))), Fin(1))
    for offset in range(replay.end + 1):
        replay.acknowledge(offset)
        replay.unacknowledged()  # numbers that mean nothing, and no error
    assert len(replay) == 0
