"""The binary frames: byte vectors, the preamble, and what hostile bytes come to."""

from __future__ import annotations

import json
import typing
from pathlib import Path

import pytest

from p2ptunnel.errors import LocalProtocolError, RemoteProtocolError
from p2ptunnel.identity.keys import Identity, Purpose, signed_bytes
from p2ptunnel.wire import frames
from p2ptunnel.wire.frames import (
    HEADER,
    PAYLOAD_MAX_BYTES,
    PREAMBLE_BYTES,
    Accept,
    Ack,
    Capability,
    Data,
    Fin,
    Frame,
    FrameReader,
    FrameType,
    GoAway,
    GoAwayCode,
    Hello,
    Open,
    Opened,
    Ping,
    Pong,
    Reset,
    ResetCode,
    Resume,
    Waiting,
    Window,
    conkey_to_selector,
    decode,
    encode,
    parse_preamble,
    payload_length,
    preamble,
    selector_to_conkey,
)

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "frames.json").read_text(encoding="utf-8"))
PAGE = (ROOT / "docs" / "protocol" / "frames.md").read_text(encoding="utf-8")
SELECTOR = bytes(range(16))


def named(vector: dict[str, str]) -> str:
    return vector["name"]


def value_of(vector: dict[str, str]) -> Frame:
    """The frame that a vector spells in Python, made without the decoder."""
    value: Frame = eval(vector["python"], {"__builtins__": {"bytes": bytes, "memoryview": memoryview}}, vars(frames))
    return value


def fed(*parts: bytes) -> list[Frame]:
    """The frames in these parts, one buffer each, with payloads copied out before the buffer dies."""
    reader = FrameReader()
    return [kept(frame) for part in parts for frame in reader.feed(memoryview(part))]


def kept(frame: Frame) -> Frame:
    return Data(frame.stream_id, memoryview(bytes(frame.payload))) if isinstance(frame, Data) else frame


# --- vectors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=named)
def test_a_frame_is_these_bytes(vector: dict[str, str]) -> None:
    assert encode(value_of(vector)).hex() == vector["wire"]


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=named)
def test_these_bytes_are_a_frame(vector: dict[str, str]) -> None:
    assert decode(bytes.fromhex(vector["wire"])) == value_of(vector)


@pytest.mark.parametrize("vector", VECTORS["malformed"], ids=named)
def test_these_bytes_are_none(vector: dict[str, str]) -> None:
    with pytest.raises(RemoteProtocolError, match=vector["problem"]):
        fed(bytes.fromhex(vector["wire"]))


def test_every_kind_of_frame_has_a_vector() -> None:
    assert {type(value_of(vector)) for vector in VECTORS["frames"]} == set(typing.get_args(Frame))


@pytest.mark.parametrize("vector", VECTORS["greeting"], ids=named)
def test_the_greeting_signs_both_keys_both_leaves_the_selector_the_session_and_the_nonce(vector: dict[str, str]) -> None:
    parts = ("caller_key", "callee_key", "caller_leaf", "callee_leaf", "selector", "session", "nonce")
    fields = [bytes.fromhex(vector[name]) for name in parts]
    for purpose, seed, name in ((Purpose.HELLO, "caller_seed", "hello"), (Purpose.ACCEPT, "callee_seed", "accept")):
        assert signed_bytes(purpose, *fields).hex() == vector[f"{name}_signed"]
        signature = Identity.from_seed(bytes.fromhex(vector[seed])).sign(bytes.fromhex(vector[f"{name}_signed"]))
        assert signature.hex() == vector[f"{name}_signature"]


def test_a_new_session_is_named_after_its_first_channel_and_keeps_the_name_on_the_next() -> None:
    first, second = VECTORS["greeting"]
    assert first["session"] == first["selector"] == second["session"] != second["selector"]


def test_the_page_of_frames_shows_every_vector_and_every_code() -> None:
    for vector in VECTORS["frames"] + VECTORS["preamble"]:
        assert f"\n{vector['wire']}\n" in PAGE, vector["name"]
    for vector in VECTORS["greeting"]:
        for name, value in vector.items():
            assert value in PAGE if name == "name" else f"| {name.replace('_', ' ')} | `{value}` |" in PAGE
    for vector in VECTORS["malformed"]:
        assert f"| {vector['name']} | `{vector['wire'][:48]}" in PAGE
    for kind in FrameType:
        assert f"| {kind.value} | {kind.name} |" in PAGE
    resets, goodbyes = PAGE.partition("| code of RESET |")[2].split("| code of GOAWAY |")
    assert [f"| {code.value} | " in resets for code in ResetCode] == [True] * len(ResetCode)
    goodbyes = goodbyes.partition("\n\n")[0]
    assert [f"\n| {code.value} | " in goodbyes for code in GoAwayCode] == [True] * len(GoAwayCode)


# --- the preamble -----------------------------------------------------------------------------------------------------


def test_the_preamble_is_these_bytes() -> None:
    [vector] = VECTORS["preamble"]
    selector = bytes.fromhex(vector["selector"])
    assert preamble(selector).hex() == vector["wire"]
    assert selector_to_conkey(selector) == vector["conkey"]
    assert conkey_to_selector(vector["conkey"]) == selector


def test_a_preamble_is_read_in_any_pieces() -> None:
    whole = preamble(SELECTOR)
    assert [parse_preamble(whole[:length]) for length in range(PREAMBLE_BYTES)] == [None] * PREAMBLE_BYTES
    assert parse_preamble(whole) == SELECTOR


@pytest.mark.parametrize("junk", [b"G", b"GET / HTTP/1.1\r\n", b"P2PT/2\r\n", b"\x16\x03\x01", preamble(SELECTOR) + b"x"])
def test_junk_is_refused_at_its_first_wrong_byte(junk: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="does not begin with a preamble"):
        parse_preamble(junk)


def test_a_selector_has_sixteen_bytes() -> None:
    with pytest.raises(LocalProtocolError, match="15 bytes, not 16"):
        preamble(SELECTOR[:-1])


@pytest.mark.parametrize(
    "conkey", ["", "00" * 15, "00" * 17, "0" * 31, "FF" * 16, " " + "00" * 16, "00" * 15 + " 00", "zz" * 16]
)
def test_a_conkey_has_one_spelling(conkey: str) -> None:
    with pytest.raises(RemoteProtocolError, match="home-nas broke the protocol: a conkey that is not 32 hex characters"):
        conkey_to_selector(conkey, "home-nas")


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_payload_is_a_part_of_the_buffer_and_no_copy() -> None:
    buffer = bytearray(encode(Data(1, memoryview(b"hello"))))
    [frame] = FrameReader().feed(memoryview(buffer))
    assert isinstance(frame, Data)
    assert frame.payload.obj is buffer
    buffer[-5:] = b"HELLO"
    assert bytes(frame.payload) == b"HELLO"


def test_a_data_frame_cut_by_the_buffers_end_comes_in_parts_at_once() -> None:
    wire = encode(Data(7, memoryview(b"abcdef")))
    assert fed(wire[:10], wire[10:13], wire[13:]) == [Data(7, memoryview(part)) for part in (b"ab", b"cde", b"f")]


def test_nothing_is_kept_behind_whole_frames() -> None:
    reader = FrameReader()
    for _ in range(3):
        wire = encode(Ping(b"12345678")) + encode(Data(1, memoryview(b"x"))) + encode(Fin(1))
        assert [type(frame) for frame in reader.feed(memoryview(wire))] == [Ping, Data, Fin]


def test_a_header_alone_is_judged_before_its_payload_comes() -> None:
    with pytest.raises(RemoteProtocolError, match="no frame has type 7, flags 0, length 65535"):
        fed(HEADER.pack(7, 0, 65535, 1))


def test_frames_before_a_malformed_one_are_read() -> None:
    reader, found = FrameReader(), list[Frame]()
    with pytest.raises(RemoteProtocolError):
        found.extend(reader.feed(memoryview(encode(Ping(b"12345678")) + bytes(8))))  # extends as it goes
    assert found == [Ping(b"12345678")]


def test_text_of_a_reason_is_made_fit_to_show() -> None:
    wire = HEADER.pack(7, 0, 2 + 4, 1) + b"\x00\x01" + b"a\n\x1b\xff"
    assert decode(wire) == Reset(1, 1, "a\\x0a\\x1b\ufffd")


def test_one_frame_is_neither_less_nor_more() -> None:
    wire = encode(Fin(1))
    for wrong in (b"", wire[:-1], wire + wire, encode(Window(1, 5))[:-1]):
        with pytest.raises(RemoteProtocolError):
            decode(wrong)
    assert payload_length(encode(Window(1, 5))[: HEADER.size]) == 4


# --- counting ---------------------------------------------------------------------------------------------------------


SEQUENCED = (
    Open(1, 262144, "web"),
    Opened(1, 262144),
    Data(1, memoryview(b"hello")),
    Window(1, 9),
    Reset(1, 1),
    Fin(3),
    GoAway(0),
    Waiting(1, 30),
    Capability(b"ticket"),
)
OF_THE_CHANNEL = (
    Hello(SELECTOR, SELECTOR, SELECTOR, bytes(64)),
    Accept(bytes(64)),
    Ping(bytes(8)),
    Pong(bytes(8)),
    Ack(7),
    Resume(1, 7, 7),
)


def test_every_kind_of_frame_is_sequenced_or_of_the_channel() -> None:
    assert {*map(type, SEQUENCED)} ^ {*map(type, OF_THE_CHANNEL)} == set(typing.get_args(Frame))


def test_a_sequenced_frame_counts_with_its_header() -> None:
    reader, begin = FrameReader(), 0
    for frame in SEQUENCED:
        wire = encode(frame)
        assert list(reader.feed(memoryview(wire))) == [frame]
        assert (reader.frame_start, reader.offset, reader.is_between_frames) == (begin, begin + len(wire), True)
        begin += len(wire)


@pytest.mark.parametrize("frame", OF_THE_CHANNEL, ids=lambda frame: type(frame).__name__)
def test_a_frame_of_the_channel_counts_for_nothing(frame: Frame) -> None:
    reader, wire = FrameReader(), encode(frame)
    before = encode(Fin(1))
    for part in (before, wire, wire[:5], wire[5:]):
        list(reader.feed(memoryview(part)))
    assert (reader.frame_start, reader.offset, reader.is_between_frames) == (0, len(before), True)


def test_a_data_frame_in_parts_counts_as_they_come_from_one_beginning() -> None:
    reader = FrameReader()
    list(reader.feed(memoryview(encode(Fin(1)))))
    wire, counted = encode(Data(1, memoryview(b"abcd"))), list[tuple[int, int, bool]]()
    for at in range(len(wire)):
        list(reader.feed(memoryview(wire[at : at + 1])))
        counted.append((reader.frame_start, reader.offset, reader.is_between_frames))
    assert counted == [(0, 8, True)] * 7 + [(8, end, end == 20) for end in range(16, 21)]


def test_counting_goes_on_from_where_it_is_set() -> None:
    reader = FrameReader()
    reader.offset = reader.frame_start = 2**40
    list(reader.feed(memoryview(encode(Fin(1)) + encode(Data(1, memoryview(b"abc"))))))
    assert (reader.frame_start, reader.offset) == (2**40 + 8, 2**40 + 19)


# --- writing ----------------------------------------------------------------------------------------------------------


def test_no_frame_exceeds_64_kib() -> None:
    assert len(encode(Data(1, memoryview(bytes(PAYLOAD_MAX_BYTES))))) == 65536
    with pytest.raises(RemoteProtocolError):
        fed(HEADER.pack(5, 0, PAYLOAD_MAX_BYTES + 1, 1))


def test_a_reason_is_cut_at_200_bytes_and_between_characters() -> None:
    sent = decode(encode(Reset(1, 1, "é" * 150)))
    assert sent == Reset(1, 1, "é" * 100)
    assert decode(encode(GoAway(0, "x" + "é" * 150))) == GoAway(0, "x" + "é" * 99)


def test_more_services_than_a_frame_holds_are_left_out_behind() -> None:
    services = tuple(f"{number:0200}" for number in range(400))
    sent = decode(encode(Accept(bytes(64), services)))
    assert isinstance(sent, Accept)
    assert sent.services == services[: (PAYLOAD_MAX_BYTES - 65) // 201]


@pytest.mark.parametrize("service", ["", "x" * 201, "é" * 101, "line\nbreak", "\udc80", "\u202egnp"])
def test_what_is_no_service_name_is_not_sent(service: str) -> None:
    with pytest.raises(LocalProtocolError, match="a service name is 1 to 200 printable bytes"):
        encode(Open(1, 0, service))


NOT_FITTING = (
    Window(1, 2**32),
    Window(-1, 1),
    Open(2**32, 0, "x"),
    Reset(1, 65536),
    Ack(2**64),
    Ack(-1),
    Resume(2**32, 0),
    Resume(0, 2**64),
    Resume(0, 0, 2**64),
)


@pytest.mark.parametrize("frame", NOT_FITTING)
def test_a_number_that_does_not_fit_is_our_own_error(frame: Frame) -> None:
    with pytest.raises(LocalProtocolError, match=f"a {type(frame).__name__} frame that does not fit"):
        encode(frame)


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_a_frame_shows_no_signature_selector_or_payload() -> None:
    shown = f"{Hello(b'S' * 16, b'S' * 16, b'N' * 16, b'G' * 64)} {Accept(b'G' * 64, ('ssh',))} {Data(1, memoryview(b'hello'))}"
    assert shown == "Hello(v=1) Accept(v=1, services=('ssh',)) Data(stream_id=1, 5 bytes)"
