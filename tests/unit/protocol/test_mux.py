"""The mux: two ends over a pipe that is only a list of bytes, and what a peer that breaks the rules comes to."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import (
    KEEPALIVE_DEAD,
    KEEPALIVE_IDLE,
    STREAM_WINDOW_BYTES,
    STREAM_WINDOW_MAX_BYTES,
    STREAMS_MAX,
    WINDOW_GROWTH_MAX_BYTES,
)
from p2ptunnel.errors import ChannelBusyError, LocalProtocolError, RemoteProtocolError
from p2ptunnel.protocol.mux import BATCH_BYTES, Drained, Mux, MuxEvent, PeerSilent
from p2ptunnel.wire.frames import (
    PAYLOAD_MAX_BYTES,
    Accept,
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
    ResetCode,
    Window,
    encode,
)

WINDOW = STREAM_WINDOW_BYTES


class Ends:
    """A caller, a callee, and what each has been told; bytes go over when `exchange` says so."""

    def __init__(self) -> None:
        self.caller, self.callee = Mux(caller=True, now=0), Mux(caller=False, now=0)
        self.now = 0.0

    def exchange(self) -> tuple[list[MuxEvent], list[MuxEvent]]:
        """Carry bytes both ways until nothing waits; return what each end was told, payloads copied."""
        told: tuple[list[MuxEvent], list[MuxEvent]] = [], []
        while self.caller.has_output or self.callee.has_output:
            for sender, receiver, events in ((self.caller, self.callee, told[1]), (self.callee, self.caller, told[0])):
                while batch := sender.data_to_send():
                    receiver.receive_data(memoryview(bytes(batch)), self.now)
                    events.extend(receiver.events())
        told[0].extend(self.caller.events())
        told[1].extend(self.callee.events())
        return told

    def stream(self, service: str = "web") -> int:
        """An open stream of the caller's."""
        stream_id = self.caller.open(service, self.now)
        self.callee_accepts()
        return stream_id

    def callee_accepts(self) -> None:
        for event in self.exchange()[1]:
            if isinstance(event, Open):
                self.callee.accept(event.stream_id)
        self.exchange()


def feed(mux: Mux, *frames: Frame, now: float = 0.0) -> list[MuxEvent]:
    mux.receive_data(memoryview(b"".join(map(encode, frames))), now)
    return mux.events()


def sent(mux: Mux) -> list[Frame]:
    """Everything that waits, as frames."""
    reader, found = FrameReader(), list[Frame]()
    while batch := mux.data_to_send():
        found.extend(reader.feed(memoryview(bytes(batch))))
    return found


def written(mux: Mux, stream_id: int, data: bytes) -> None:
    mux.write(stream_id, memoryview(data))


def payload(events: list[MuxEvent], stream_id: int) -> bytes:
    return b"".join(event.payload for event in events if isinstance(event, Data) and event.stream_id == stream_id)


# --- opening ----------------------------------------------------------------------------------------------------------


def test_the_opening_and_the_first_data_travel_together() -> None:
    caller = Mux(caller=True, now=0)
    written(caller, caller.open("web", 0), b"GET /")
    assert sent(caller) == [Open(1, WINDOW, "web"), Data(1, memoryview(b"GET /"))]


def test_the_caller_opens_odd_streams_and_the_callee_even_ones() -> None:
    caller, callee = Mux(caller=True, now=0), Mux(caller=False, now=0)
    assert [caller.open("a", 0), caller.open("b", 0), callee.open("c", 0), callee.open("d", 0)] == [1, 3, 2, 4]


def test_an_accepted_stream_is_told() -> None:
    ends = Ends()
    ends.caller.open("web", 0)
    assert ends.exchange() == ([], [Open(1, WINDOW, "web")])
    ends.callee.accept(1)
    assert ends.exchange() == ([Opened(1, WINDOW)], [])


def test_accepting_what_is_gone_says_nothing() -> None:
    ends = Ends()
    ends.caller.open("web", 0)
    ends.caller.reset(1, ResetCode.CANCELLED)
    ends.exchange()
    ends.callee.accept(1)
    assert not ends.callee.has_output


def test_a_window_larger_than_the_first_counts_from_the_start() -> None:
    caller = Mux(caller=True, now=0)
    written(caller, caller.open("web", 0), bytes(2 * WINDOW))
    assert sum(len(f.payload) for f in sent(caller) if isinstance(f, Data)) == WINDOW
    feed(caller, Opened(1, WINDOW + 1000))
    assert sum(len(f.payload) for f in sent(caller) if isinstance(f, Data)) == 1000


def test_one_stream_more_than_the_limit_is_our_own_error_until_one_ends() -> None:
    caller = Mux(caller=True, now=0)
    ids = [caller.open("web", 0) for _ in range(STREAMS_MAX)]
    with pytest.raises(ChannelBusyError, match=f"{STREAMS_MAX} streams are open"):
        caller.open("web", 0)
    caller.reset(ids[7], ResetCode.CANCELLED)
    assert caller.open("web", 0) == ids[-1] + 2


# --- bytes and credit -------------------------------------------------------------------------------------------------


def test_bytes_come_in_order_and_the_buffer_is_free_when_they_have_left() -> None:
    ends = Ends()
    stream = ends.stream()
    data = bytes(range(256)) * 500
    written(ends.caller, stream, data)
    assert not ends.caller.is_drained(stream)
    told = ends.exchange()
    assert payload(told[1], stream) == data
    assert told[0] == [Drained(stream)]
    assert ends.caller.is_drained(stream)
    assert (ends.caller.bytes_sent, ends.callee.bytes_received) == (len(data), len(data))


def test_a_writer_waits_at_the_end_of_the_window_and_goes_on_with_credit() -> None:
    ends = Ends()
    stream = ends.stream()
    written(ends.caller, stream, bytes(WINDOW + 10))
    assert len(payload(ends.exchange()[1], stream)) == WINDOW
    assert not ends.caller.is_drained(stream)
    assert ends.callee.consumed(stream, WINDOW // 2, now=1)
    assert len(payload(ends.exchange()[1], stream)) == 10
    assert ends.caller.is_drained(stream)


def test_credit_goes_out_when_half_a_window_has_been_read() -> None:
    ends = Ends()
    stream = ends.stream()
    written(ends.caller, stream, bytes(WINDOW))
    ends.exchange()
    assert not ends.callee.consumed(stream, WINDOW // 2 - 1, now=1)
    assert not ends.callee.has_output
    assert ends.callee.consumed(stream, 1, now=1)
    assert sent(ends.callee) == [Window(stream, WINDOW // 2)]


def test_no_credit_goes_out_behind_the_peers_fin() -> None:
    ends = Ends()
    stream = ends.stream()
    written(ends.caller, stream, bytes(WINDOW))
    ends.caller.write_eof(stream)
    ends.exchange()
    assert not ends.callee.consumed(stream, WINDOW, now=1)


def test_a_stream_takes_one_write_at_a_time() -> None:
    caller = Mux(caller=True, now=0)
    stream = caller.open("web", 0)
    written(caller, stream, b"a")
    with pytest.raises(LocalProtocolError, match="one write at a time"):
        written(caller, stream, b"b")


def test_what_is_taken_back_is_not_sent() -> None:
    ends = Ends()
    stream = ends.stream()
    written(ends.caller, stream, bytes(WINDOW) + b"never")
    ends.exchange()
    ends.caller.take_back(stream)
    assert ends.caller.is_drained(stream)
    ends.callee.consumed(stream, WINDOW, now=1)
    written(ends.caller, stream, b"later")
    assert payload(ends.exchange()[1], stream) == b"later"


def test_a_fin_behind_what_is_taken_back_becomes_a_reset() -> None:
    ends = Ends()
    stream = ends.stream()
    written(ends.caller, stream, bytes(WINDOW + 1))
    ends.caller.write_eof(stream)
    ends.exchange()
    ends.caller.take_back(stream)
    assert ends.exchange()[1] == [Reset(stream, ResetCode.CANCELLED, "a write was cancelled")]


# --- windows that grow ------------------------------------------------------------------------------------------------


def measured(ends: Ends, rtt: float) -> None:
    """Let the callee know the round trip."""
    ends.callee.ping(ends.now)
    for frame in sent(ends.callee):
        ends.caller.receive_data(memoryview(encode(frame)), ends.now)
    ends.now += rtt
    ends.exchange()


def test_the_round_trip_is_measured_by_a_ping() -> None:
    ends = Ends()
    assert ends.callee.rtt is None
    measured(ends, 0.08)
    assert ends.callee.rtt == pytest.approx(0.08)


def grow(ends: Ends, stream: int, pause: float) -> int:
    """Fill the window, read all of it after `pause`; return the credit that goes out."""
    room = ends.callee._streams[stream].room
    ends.callee.receive_data(memoryview(encode(Data(stream, memoryview(bytes(1))))), ends.now)
    ends.callee.events()
    del room
    ends.now += pause
    window = ends.callee._streams[stream].window
    ends.callee._streams[stream].room -= window // 2
    ends.callee.consumed(stream, window // 2, ends.now)
    [credit] = sent(ends.callee)
    assert isinstance(credit, Window)
    return credit.credit


def test_a_window_half_read_within_a_round_trip_doubles() -> None:
    ends = Ends()
    stream = ends.stream()
    measured(ends, 0.08)
    ends.callee._streams[stream].granted_at = ends.now
    assert grow(ends, stream, pause=0.04) == WINDOW // 2 + WINDOW
    assert grow(ends, stream, pause=0.08) == WINDOW + 2 * WINDOW
    assert grow(ends, stream, pause=0.09) == 2 * WINDOW


def test_a_window_grows_to_its_limit_and_all_of_them_to_theirs() -> None:
    ends = Ends()
    streams = [ends.stream() for _ in range(6)]
    measured(ends, 0.08)
    for stream in streams:
        for _ in range(10):
            ends.callee._streams[stream].granted_at = ends.now
            grow(ends, stream, pause=0)
    windows = [ends.callee._streams[stream].window for stream in streams]
    assert windows[:4] == [STREAM_WINDOW_MAX_BYTES] * 4
    assert sum(windows) - len(windows) * WINDOW <= WINDOW_GROWTH_MAX_BYTES
    ends.callee.reset(streams[0], ResetCode.CANCELLED)
    assert ends.callee._growth == sum(windows[1:]) - 5 * WINDOW
