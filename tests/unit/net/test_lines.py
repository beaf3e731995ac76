"""Messages on a TCP connection: whatever the bytes, and wherever they are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.defaults import DATAGRAM_MAX_BYTES
from p2ptunnel.net.lines import MessageLines
from p2ptunnel.wire.messages import HoleProbe, Message, Opener, encode

MESSAGES: tuple[Message, ...] = (Opener(), HoleProbe(mid=1, token="t"), HoleProbe(mid=2, token="t"))
junk = st.binary(max_size=2000).map(lambda data: data.replace(b"\n", b"").replace(b'"t"', b""))


def test_line_cut_anywhere_is_one_message() -> None:
    data = encode(MESSAGES[1]) + b"\n"
    for cut in range(len(data)):
        lines = MessageLines()
        assert lines.feed(data[:cut]) + lines.feed(data[cut:]) == [MESSAGES[1]]


def test_carriage_return_before_the_line_end_is_no_harm() -> None:
    assert MessageLines().feed(encode(MESSAGES[1]) + b"\r\n") == [MESSAGES[1]]


def test_longest_legal_line_is_taken_and_one_byte_more_is_not() -> None:
    data = encode(MESSAGES[1])
    longest = data[:-1] + b" " * (DATAGRAM_MAX_BYTES - len(data)) + b"}"
    lines = MessageLines()
    assert lines.feed(longest + b"\n") == [MESSAGES[1]]
    assert lines.feed(longest[:-1] + b" }\n") == []
    assert lines.malformed == 1


def test_endless_line_is_counted_once_and_costs_no_memory() -> None:
    lines = MessageLines()
    for _ in range(100):
        assert lines.feed(b"x" * 1000) == []
        assert len(lines._rest) <= DATAGRAM_MAX_BYTES
    assert lines.feed(b"the end of it\n" + encode(MESSAGES[0]) + b"\n") == [MESSAGES[0]]
    assert lines.malformed == 1


@given(st.lists(st.one_of(st.sampled_from(MESSAGES), junk), max_size=8), st.lists(st.integers(1, 3000), max_size=20))
def test_junk_between_costs_no_message(items: list[Message | bytes], cuts: list[int]) -> None:
    stream = b"".join((item if isinstance(item, bytes) else encode(item)) + b"\n" for item in items)
    lines, received = MessageLines(), list[Message]()
    for cut in cuts:
        received += lines.feed(stream[:cut])
        stream = stream[cut:]
    received += lines.feed(stream)
    assert received == [item for item in items if not isinstance(item, bytes)]
    assert lines.malformed == sum(isinstance(item, bytes) for item in items)
