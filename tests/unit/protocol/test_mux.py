"""The mux: two ends over a pipe that is only a list of bytes, and what a peer that breaks the rules comes to."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence

import pytest

from p2ptunnel.defaults import (
    CAPABILITIES_MAX,
    STREAM_WINDOW_BYTES,
    STREAM_WINDOW_MAX_BYTES,
    STREAMS_MAX,
    WINDOW_GROWTH_MAX_BYTES,
)
from p2ptunnel.errors import ChannelBusyError, LocalProtocolError, RemoteProtocolError
from p2ptunnel.protocol import mux as mux_module
from p2ptunnel.protocol.mux import Counts, Drained, Mux, MuxEvent
from p2ptunnel.wire.frames import (
    HEADER,
    PAYLOAD_MAX_BYTES,
    Accept,
    Capability,
    Data,
    Fin,
    Frame,
    FrameReader,
    GoAway,
    Hello,
    Open,
    Opened,
    Reset,
    ResetCode,
    Waiting,
    Window,
    encode,
)

WINDOW = STREAM_WINDOW_BYTES
TURN = 16 * 1024 - HEADER.size
BATCH = 256 * 1024


def batch_of(mux: Mux, room: int = BATCH) -> bytes:
    """What the mux puts into so much memory."""
    memory = memoryview(bytearray(room))
    return bytes(memory[: mux.fill(memory)])


def frames_of(batch: bytes) -> list[Frame]:
    """The frames that a batch is, whole from the first to the last."""
    reader = FrameReader()
    found = list(reader.feed(memoryview(batch)))
    assert reader.offset == len(batch)
    assert reader.is_between_frames
    return found


def sent(mux: Mux) -> list[Frame]:
    """Everything that waits, as frames."""
    found = list[Frame]()
    while mux.has_output:
        found += frames_of(batch_of(mux))
    return found


def feed(mux: Mux, *frames: Frame, now: float = 0.0) -> list[MuxEvent]:
    for frame in frames:
        mux.receive(frame, now)
    return mux.events()


class Ends:
    """A caller, a callee, and what each has been told; frames go over when `exchange` says so."""

    def __init__(self) -> None:
        self.caller, self.callee = Mux(caller=True), Mux(caller=False)
        self.now = 0.0

    def exchange(self) -> tuple[list[MuxEvent], list[MuxEvent]]:
        """Carry frames both ways until nothing waits; return what each end was told."""
        told: tuple[list[MuxEvent], list[MuxEvent]] = [], []
        while self.caller.has_output or self.callee.has_output:
            told[1].extend(feed(self.callee, *sent(self.caller), now=self.now))
            told[0].extend(feed(self.caller, *sent(self.callee), now=self.now))
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


def written(mux: Mux, stream_id: int, data: bytes) -> None:
    mux.write(stream_id, memoryview(data))


def payload(events: Sequence[MuxEvent | Frame], stream_id: int) -> bytes:
    return b"".join(event.payload for event in events if isinstance(event, Data) and event.stream_id == stream_id)


# --- opening ----------------------------------------------------------------------------------------------------------


def test_the_opening_and_the_first_data_travel_together() -> None:
    caller = Mux(caller=True)
    written(caller, caller.open("web", 0), b"GET /")
    assert sent(caller) == [Open(1, WINDOW, "web"), Data(1, memoryview(b"GET /"))]


def test_the_caller_opens_odd_streams_and_the_callee_even_ones() -> None:
    caller, callee = Mux(caller=True), Mux(caller=False)
    assert [caller.open("a", 0), caller.open("b", 0), callee.open("c", 0), callee.open("d", 0)] == [1, 3, 2, 4]


def test_an_accepted_stream_is_told() -> None:
    ends = Ends()
    ends.caller.open("web", 0)
    assert ends.exchange() == ([], [Open(1, WINDOW, "web")])
    ends.callee.accept(1)
    assert ends.exchange() == ([Opened(1, WINDOW)], [])


def test_a_stream_about_which_somebody_is_asked_may_still_be_accepted_or_reset() -> None:
    ends = Ends()
    for _ in range(2):
        ends.caller.open("web", 0)
    ends.exchange()
    for stream in (1, 3):
        ends.callee.wait(stream, 30)
    assert ends.exchange() == ([Waiting(1, 30), Waiting(3, 30)], [])
    ends.callee.accept(1)
    ends.callee.reset(3, ResetCode.UNANSWERED)
    assert ends.exchange() == ([Opened(1, WINDOW), Reset(3, ResetCode.UNANSWERED)], [])


def test_waiting_of_a_stream_that_is_gone_says_nothing_and_is_no_violation() -> None:
    ends = Ends()
    ends.caller.open("web", 0)
    ends.exchange()
    ends.callee.wait(1, 30)
    ends.caller.reset(1, ResetCode.CANCELLED)  # the two cross
    assert ends.exchange()[0] == []
    ends.callee.wait(1, 30)
    assert ends.exchange() == ([], [])


def test_what_is_shown_comes_before_what_is_opened_after_it() -> None:
    ends = Ends()
    ends.caller.show(b"ticket")
    ends.caller.open("web", 0)
    assert ends.exchange()[1] == [Capability(b"ticket"), Open(1, WINDOW, "web")]


def test_accepting_what_is_gone_says_nothing() -> None:
    ends = Ends()
    ends.caller.open("web", 0)
    ends.caller.reset(1, ResetCode.CANCELLED)
    ends.exchange()
    ends.callee.accept(1)
    assert not ends.callee.has_output


def test_a_window_larger_than_the_first_counts_from_the_start() -> None:
    caller = Mux(caller=True)
    written(caller, caller.open("web", 0), bytes(2 * WINDOW))
    assert sum(len(f.payload) for f in sent(caller) if isinstance(f, Data)) == WINDOW
    feed(caller, Opened(1, WINDOW + 1000))
    assert sum(len(f.payload) for f in sent(caller) if isinstance(f, Data)) == 1000


def test_one_stream_more_than_the_limit_is_our_own_error_until_one_ends() -> None:
    caller = Mux(caller=True)
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
    caller = Mux(caller=True)
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


def half_read(ends: Ends, stream: int, window: int, pause: float) -> int:
    """Read half of a window of this size in `pause` seconds; return by how much it grows."""
    ends.now += pause
    assert ends.callee.consumed(stream, window // 2, ends.now)
    [credit] = sent(ends.callee)
    assert isinstance(credit, Window)
    return credit.credit - window // 2


def test_a_window_half_read_within_two_round_trips_doubles() -> None:
    ends = Ends()
    ends.callee.rtt = 0.125
    stream = ends.stream()
    assert half_read(ends, stream, WINDOW, pause=0.0625) == WINDOW
    assert half_read(ends, stream, 2 * WINDOW, pause=0.25) == 2 * WINDOW
    assert half_read(ends, stream, 4 * WINDOW, pause=0.3125) == 0


def test_a_window_does_not_grow_before_the_round_trip_is_known() -> None:
    ends = Ends()
    assert half_read(ends, ends.stream(), WINDOW, pause=0) == 0


def test_a_peer_may_use_a_grown_window_and_no_more() -> None:
    ends = Ends()
    ends.callee.rtt = 0.08
    stream = ends.stream()
    half_read(ends, stream, WINDOW, pause=0)
    allowed = WINDOW + WINDOW // 2 + WINDOW  # the first window, what was read of it, the growth
    whole = [Data(stream, memoryview(bytes(WINDOW // 8)))] * (allowed * 8 // WINDOW)
    feed(ends.callee, *whole)
    with pytest.raises(RemoteProtocolError, match="1 bytes beyond the window"):
        feed(ends.callee, Data(stream, memoryview(b"x")))


def test_one_window_grows_to_its_limit_and_all_together_to_theirs() -> None:
    ends = Ends()
    ends.callee.rtt = 0.08
    windows = dict.fromkeys([ends.stream() for _ in range(6)], WINDOW)
    for stream in windows:
        while growth := half_read(ends, stream, windows[stream], pause=0):
            windows[stream] += growth
    assert list(windows.values())[:4] == [STREAM_WINDOW_MAX_BYTES] * 4
    spare = WINDOW_GROWTH_MAX_BYTES - sum(windows.values()) + len(windows) * WINDOW
    assert 0 <= spare < STREAM_WINDOW_MAX_BYTES
    ends.callee.reset(min(windows), ResetCode.CANCELLED)  # gives its share back
    sent(ends.callee)
    last = max(windows)
    assert half_read(ends, last, windows[last], pause=0) == windows[last]


# --- turns ------------------------------------------------------------------------------------------------------------


def order(mux: Mux) -> list[tuple[int, int]]:
    """Stream and length of each DATA frame that waits."""
    return [(frame.stream_id, len(frame.payload)) for frame in sent(mux) if isinstance(frame, Data)]


def test_a_stream_alone_sends_whole_frames() -> None:
    caller = Mux(caller=True)
    written(caller, caller.open("web", 0), bytes(2 * PAYLOAD_MAX_BYTES))
    assert order(caller) == [(1, PAYLOAD_MAX_BYTES), (1, PAYLOAD_MAX_BYTES)]


def test_streams_that_wait_take_turns_of_16_kib() -> None:
    caller = Mux(caller=True)
    for stream in [caller.open("web", 0) for _ in range(3)]:
        written(caller, stream, bytes(40_000))
    assert order(caller)[:6] == [(1, TURN), (3, TURN), (5, TURN), (1, TURN), (3, TURN), (5, TURN)]


def test_credit_that_comes_while_a_stream_waits_gives_it_no_second_turn() -> None:
    caller = Mux(caller=True)
    for stream in [caller.open("web", 0) for _ in range(2)]:
        written(caller, stream, bytes(40_000))
    feed(caller, Opened(1, WINDOW), *([Window(1, 1000)] * 5))
    assert [stream for stream, _ in order(caller)][:4] == [1, 3, 1, 3]


def test_a_small_write_is_not_behind_a_big_one() -> None:
    caller = Mux(caller=True)
    big, small = caller.open("bulk", 0), caller.open("keys", 0)
    written(caller, big, bytes(WINDOW))
    batch_of(caller)
    assert not caller.is_drained(big)
    written(caller, small, b"x")
    assert (small, 1) in order(caller)[:2]


def test_interactive_streams_go_before_bulk_which_keeps_every_fourth_turn() -> None:
    caller = Mux(caller=True)
    bulk = caller.open("copy", 0, interactive=False)
    keys = caller.open("shell", 0)
    written(caller, bulk, bytes(WINDOW // 2))
    written(caller, keys, bytes(WINDOW // 2))
    first = [stream for stream, _ in order(caller)][:8]
    assert first.count(bulk) == 2
    assert first[:2] == [keys, keys]


def test_a_stream_without_credit_does_not_hold_up_the_others() -> None:
    ends = Ends()
    stuck, free = ends.stream(), ends.stream()
    written(ends.caller, stuck, bytes(WINDOW + 1))
    ends.exchange()
    written(ends.caller, free, b"hello")
    assert payload(ends.exchange()[1], free) == b"hello"


@pytest.mark.parametrize("room", [1000, 65536, 65536 + 1, BATCH])
def test_whole_frames_fill_the_room_and_nothing_is_lost_between_two(room: int) -> None:
    caller = Mux(caller=True)
    blocks = {caller.open("web", 0): bytes([number]) * WINDOW for number in range(4)}
    for stream, block in blocks.items():
        written(caller, stream, block)
    found = list[Frame]()
    while batch := batch_of(caller, room):
        assert len(batch) <= room
        found += frames_of(batch)
    assert not caller.has_output
    for stream, block in blocks.items():
        assert b"".join(f.payload for f in found if isinstance(f, Data) and f.stream_id == stream) == block
    assert caller.bytes_sent == 4 * WINDOW


@pytest.mark.parametrize("room", range(30))
def test_what_does_not_fit_into_the_room_waits_for_the_next(room: int) -> None:
    caller = Mux(caller=True)
    written(caller, caller.open("web", 0), b"hello")
    caller.write_eof(1)
    opening, found = Open(1, WINDOW, "web"), frames_of(batch_of(caller, room))
    assert found == ([] if room < len(encode(opening)) else [opening, *found[1:]])
    assert caller.has_output
    rest = [*found, *sent(caller)]
    assert (rest[0], rest[-1], payload(rest, 1)) == (opening, Fin(1), b"hello")


def test_more_control_than_a_batch_holds_is_cut_and_goes_on() -> None:
    caller = Mux(caller=True)
    for _ in range(STREAMS_MAX):
        caller.reset(caller.open("s" * 200, 0), ResetCode.CANCELLED, "r" * 200)
    frames = sent(caller)
    assert [type(frame) for frame in frames] == [Open, Reset] * STREAMS_MAX


# --- ending -----------------------------------------------------------------------------------------------------------


def test_each_direction_ends_by_itself() -> None:
    ends = Ends()
    stream = ends.stream()
    ends.caller.write_eof(stream)
    assert ends.exchange()[1] == [Fin(stream)]
    written(ends.callee, stream, b"still here")
    assert payload(ends.exchange()[0], stream) == b"still here"
    ends.callee.write_eof(stream)
    assert ends.exchange()[0] == [Fin(stream)]
    assert (len(ends.caller), len(ends.callee)) == (0, 0)


def test_the_end_comes_behind_what_waits_for_credit() -> None:
    ends = Ends()
    stream = ends.stream()
    written(ends.caller, stream, bytes(WINDOW + 1))
    ends.caller.write_eof(stream)
    assert Fin(stream) not in ends.exchange()[1]
    ends.callee.consumed(stream, WINDOW, now=1)
    assert [type(event) for event in ends.exchange()[1]] == [Data, Fin]


def test_ending_twice_is_one_end_and_nothing_is_written_behind_it() -> None:
    ends = Ends()
    stream = ends.stream()
    ends.caller.write_eof(stream)
    ends.caller.write_eof(stream)
    assert ends.exchange()[1] == [Fin(stream)]
    with pytest.raises(LocalProtocolError):
        written(ends.caller, stream, b"x")


def test_a_reset_ends_both_directions_and_drops_what_waits() -> None:
    ends = Ends()
    stream = ends.stream()
    written(ends.caller, stream, b"never sent")
    ends.caller.reset(stream, ResetCode.CANCELLED, "changed my mind")
    assert ends.exchange()[1] == [Reset(stream, ResetCode.CANCELLED, "changed my mind")]
    assert (len(ends.caller), len(ends.callee)) == (0, 0)
    ends.caller.reset(stream, ResetCode.CANCELLED)
    assert not ends.caller.has_output


def test_frames_under_way_when_a_stream_ends_are_no_violation() -> None:
    ends = Ends()
    stream = ends.stream()
    ends.callee.reset(stream, ResetCode.CLOSED)
    late: list[Frame] = [Data(stream, memoryview(b"late")), Window(stream, 9), Fin(stream), Reset(stream, 1)]
    assert feed(ends.callee, *late) == []
    assert ends.callee.bytes_received == 0


@pytest.mark.bulk
def test_streams_that_have_ended_leave_nothing() -> None:
    ends = Ends()
    for number in range(2000):
        stream = ends.stream()
        ends.caller.write_eof(stream)
        if number % 2:
            ends.callee.write_eof(stream)
        else:
            ends.callee.reset(stream, ResetCode.CLOSED)
        ends.exchange()
    assert (len(ends.caller), len(ends.callee)) == (0, 0)


# --- going away -------------------------------------------------------------------------------------------------------


def test_after_going_away_nobody_opens_a_stream_and_open_ones_go_on() -> None:
    ends = Ends()
    stream = ends.stream()
    ends.callee.go_away(0, "maintenance")
    ends.callee.go_away(0, "said twice")
    assert ends.exchange()[0] == [GoAway(0, "maintenance")]
    for end in (ends.caller, ends.callee):
        with pytest.raises(LocalProtocolError, match="no stream is opened after going away"):
            end.open("web", 0)
    written(ends.caller, stream, b"finishing")
    assert payload(ends.exchange()[1], stream) == b"finishing"


def test_an_opening_that_crosses_a_going_away_is_refused() -> None:
    ends = Ends()
    ends.callee.go_away(0)
    ends.caller.open("web", 0)
    told = ends.exchange()
    assert told == ([GoAway(0), Reset(1, ResetCode.BUSY, "the session ends")], [])
    assert len(ends.callee) == 0


# --- sources ----------------------------------------------------------------------------------------------------------


class Source:
    """A raw file that gives these parts, one a call at most, then None for ever; an empty part is the end."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = deque(parts)
        self.calls = 0
        self.memory: object = None

    def readinto(self, buffer: memoryview, /) -> int | None:
        self.calls += 1
        self.memory = buffer.obj
        if not self.parts:
            return None
        part = self.parts.popleft()
        count = min(len(part), len(buffer))
        buffer[:count] = part[:count]
        if count < len(part):
            self.parts.appendleft(part[count:])
        return count


def fed_from(ends: Ends, *parts: bytes) -> tuple[int, Source]:
    """An open stream of the caller's that has a source."""
    stream, source = ends.stream(), Source(*parts)
    ends.caller.feed_from(stream, source)
    return stream, source


def test_a_source_is_read_when_it_is_ready_and_not_before() -> None:
    ends = Ends()
    stream, source = fed_from(ends, b"hello")
    assert not ends.caller.has_output
    assert source.calls == 0
    ends.caller.source_ready(stream)
    assert payload(ends.exchange()[1], stream) == b"hello"
    assert source.calls == 1


def test_a_source_writes_into_the_memory_that_is_filled() -> None:
    ends = Ends()
    stream, source = fed_from(ends, b"hello")
    ends.caller.source_ready(stream)
    memory = bytearray(100)
    assert ends.caller.fill(memoryview(memory)) == HEADER.size + 5
    assert source.memory is memory
    assert frames_of(bytes(memory[:13])) == [Data(stream, memoryview(b"hello"))]


def test_a_source_that_gives_less_than_fits_is_asked_again_only_when_it_is_ready() -> None:
    ends = Ends()
    stream, source = fed_from(ends, b"one", b"two")
    ends.caller.source_ready(stream)
    assert payload(ends.exchange()[1], stream) == b"one"
    assert source.calls == 1
    ends.caller.source_ready(stream)
    assert payload(ends.exchange()[1], stream) == b"two"


def test_a_source_that_gives_as_much_as_fits_is_asked_again_at_once() -> None:
    ends = Ends()
    stream, source = fed_from(ends, bytes(2 * PAYLOAD_MAX_BYTES))
    ends.caller.source_ready(stream)
    assert len(payload(ends.exchange()[1], stream)) == 2 * PAYLOAD_MAX_BYTES
    assert source.calls == 3  # the last one told that there is no more


def test_a_source_that_has_nothing_after_all_sends_nothing() -> None:
    ends = Ends()
    stream, source = fed_from(ends)
    ends.caller.source_ready(stream)
    assert batch_of(ends.caller) == b""
    assert not ends.caller.has_output
    assert source.calls == 1
    assert stream in ends.caller


def test_a_source_that_has_nothing_does_not_hold_up_the_others() -> None:
    ends = Ends()
    dry, _ = fed_from(ends)
    ends.caller.source_ready(dry)
    other = ends.caller.open("web", 0)
    written(ends.caller, other, b"hello")
    assert Data(other, memoryview(b"hello")) in frames_of(batch_of(ends.caller))


def test_the_end_of_a_source_is_a_fin_behind_its_bytes() -> None:
    ends = Ends()
    stream, source = fed_from(ends, b"last", b"")
    for _ in range(2):
        ends.caller.source_ready(stream)
    assert sent(ends.caller) == [Data(stream, memoryview(b"last"))]
    ends.caller.source_ready(stream)
    assert sent(ends.caller) == [Fin(stream)]
    ends.caller.source_ready(stream)
    assert not ends.caller.has_output
    assert source.calls == 2
    with pytest.raises(LocalProtocolError):
        written(ends.caller, stream, b"x")


def test_the_end_of_a_source_ends_a_stream_that_the_peer_has_ended() -> None:
    ends = Ends()
    stream, _ = fed_from(ends, b"")
    ends.callee.write_eof(stream)
    ends.exchange()
    ends.caller.source_ready(stream)
    assert ends.exchange()[1] == [Fin(stream)]
    assert (len(ends.caller), len(ends.callee)) == (0, 0)


def test_a_source_gives_no_more_than_there_is_credit_for_and_goes_on_with_new() -> None:
    ends = Ends()
    stream, source = fed_from(ends, bytes(WINDOW + 10))
    ends.caller.source_ready(stream)
    assert len(payload(ends.exchange()[1], stream)) == WINDOW
    calls = source.calls
    ends.caller.source_ready(stream)
    assert not ends.caller.has_output
    assert ends.callee.consumed(stream, WINDOW // 2, now=1)
    assert len(payload(ends.exchange()[1], stream)) == 10  # without another word that it is ready
    assert source.calls == calls + 1


def test_a_source_is_asked_when_credit_comes_although_it_has_not_said_that_it_is_ready() -> None:
    ends = Ends()
    stream, source = fed_from(ends)
    feed(ends.caller, Window(stream, 1))
    assert sent(ends.caller) == []
    assert source.calls == 1


def test_sources_and_writes_take_turns() -> None:
    ends = Ends()
    fed, _ = fed_from(ends, bytes(100_000))
    other = ends.stream()
    written(ends.caller, other, bytes(100_000))
    ends.caller.source_ready(fed)
    assert order(ends.caller)[:6] == [(other, TURN), (fed, TURN)] * 3


def test_a_source_that_is_ready_twice_has_one_turn() -> None:
    ends = Ends()
    fed, _ = fed_from(ends, bytes(100_000))
    other = ends.stream()
    for _ in range(3):
        ends.caller.source_ready(fed)
    written(ends.caller, other, bytes(100_000))
    assert [stream for stream, _ in order(ends.caller)][:4] == [fed, other, fed, other]


@pytest.mark.parametrize("by_us", [True, False])
def test_a_stream_that_is_reset_while_it_waits_asks_its_source_no_more_and_lets_go_of_it(by_us: bool) -> None:
    ends = Ends()
    stream, source = fed_from(ends, bytes(100_000))
    ends.caller.source_ready(stream)
    if by_us:
        ends.caller.reset(stream, ResetCode.CANCELLED)
        assert sent(ends.caller) == [Reset(stream, ResetCode.CANCELLED)]
    else:
        feed(ends.caller, Reset(stream, ResetCode.CANCELLED))
        assert sent(ends.caller) == []
    ends.caller.source_ready(stream)
    assert not ends.caller.has_output
    assert source.calls == 0
    alive = weakref.ref(source)
    del source
    assert alive() is None


def test_ending_a_stream_lets_go_of_its_source() -> None:
    ends = Ends()
    stream, source = fed_from(ends, b"never read")
    ends.caller.source_ready(stream)
    ends.caller.write_eof(stream)
    assert sent(ends.caller) == [Fin(stream)]
    assert source.calls == 0


def test_a_stream_has_one_source_or_writes() -> None:
    ends = Ends()
    stream, source = fed_from(ends, b"x")
    with pytest.raises(LocalProtocolError):
        written(ends.caller, stream, b"x")
    with pytest.raises(LocalProtocolError):
        ends.caller.feed_from(stream, source)
    other = ends.stream()
    written(ends.caller, other, bytes(2 * WINDOW))
    with pytest.raises(LocalProtocolError):
        ends.caller.feed_from(other, source)


def test_a_stream_without_a_source_or_gone_is_never_ready() -> None:
    ends = Ends()
    for stream in (ends.stream(), 99):
        ends.caller.source_ready(stream)
    assert not ends.caller.has_output


# --- counting ---------------------------------------------------------------------------------------------------------


def test_the_counts_of_a_stream_are_kept_up_to_date_and_stay_when_it_ends() -> None:
    ends = Ends()
    stream, _ = fed_from(ends, b"from a source")
    other = ends.stream()
    ours, theirs, others = ends.caller.counts(stream), ends.callee.counts(stream), ends.caller.counts(other)
    ends.caller.source_ready(stream)
    written(ends.caller, other, b"written")
    ends.exchange()
    written(ends.callee, stream, b"back")
    ends.exchange()
    ends.caller.reset(stream, ResetCode.CANCELLED)
    ends.exchange()
    assert (ours.sent, ours.received, theirs.sent, theirs.received) == (13, 4, 4, 13)
    assert (others.sent, ends.caller.bytes_sent, ends.callee.bytes_received) == (7, 20, 20)
    assert ends.caller.counts(stream) == Counts()  # nobody kept these


# --- a peer that breaks the rules ---------------------------------------------------------------------------------------


OPENED_BY_US = (Opened(1, WINDOW),)


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        ([Hello(bytes(16), bytes(16), bytes(16), bytes(64))], "a second greeting"),
        ([Accept(bytes(64))], "a second greeting"),
        ([Open(1, WINDOW, "x")], "a stream id that is not its to open"),
        ([Open(3, WINDOW, "x")], "a stream id that is not its to open"),
        ([Open(4, WINDOW, "x"), Open(2, WINDOW, "y")], "a stream id that is not its to open"),
        ([Open(2, WINDOW, "x"), Open(2, WINDOW, "x")], "a stream id that is not its to open"),
        ([Data(2, memoryview(b"x"))], "a frame of a stream that was never opened"),
        ([Data(3, memoryview(b"x"))], "a frame of a stream that was never opened"),
        ([Fin(2)], "a frame of a stream that was never opened"),
        ([Reset(2, 1)], "a frame of a stream that was never opened"),
        ([Window(2, 1)], "a frame of a stream that was never opened"),
        ([Opened(3, WINDOW)], "a frame of a stream that was never opened"),
        ([Open(2, WINDOW, "x"), Opened(2, WINDOW)], "an answer to its own opening"),
        ([Open(2, WINDOW, "x"), Waiting(2, 30)], "an answer to its own opening"),
        ([Waiting(3, 30)], "a frame of a stream that was never opened"),
        ([*OPENED_BY_US, Waiting(1, 30)], "a stream that waits although it is open"),
        ([Capability(b"x")] * (CAPABILITIES_MAX + 1), f"more than {CAPABILITIES_MAX} capabilities"),
        ([Data(1, memoryview(b"x"))], "bytes of a stream that it has not accepted"),
        ([Fin(1)], "bytes of a stream that it has not accepted"),
        ([Opened(1, WINDOW - 1)], "a second answer to an opening, or a window below the first"),
        ([*OPENED_BY_US, Opened(1, WINDOW)], "a second answer to an opening, or a window below the first"),
        ([*OPENED_BY_US, Fin(1), Data(1, memoryview(b"x"))], "bytes behind the end of a stream"),
        ([*OPENED_BY_US, Fin(1), Fin(1)], "bytes behind the end of a stream"),
        ([*OPENED_BY_US, Window(1, 0)], "a credit that no stream can have"),
        ([*OPENED_BY_US, Window(1, 2**31)], "a credit that no stream can have"),
        ([Open(2 * n, WINDOW, "x") for n in range(1, STREAMS_MAX + 2)], f"more than {STREAMS_MAX} streams"),
    ],
)
def test_a_violation_is_a_typed_error(frames: list[Frame], problem: str) -> None:
    caller = Mux(caller=True)
    caller.open("web", 0)
    with pytest.raises(RemoteProtocolError, match=problem):
        feed(caller, *frames)


def test_a_peer_that_sends_beyond_the_window_is_caught_at_the_first_byte() -> None:
    caller = Mux(caller=True)
    caller.open("web", 0)
    whole = [Data(1, memoryview(bytes(WINDOW // 8)))] * 8
    feed(caller, *OPENED_BY_US, *whole)
    with pytest.raises(RemoteProtocolError, match="1 bytes beyond the window"):
        feed(caller, Data(1, memoryview(b"x")))


@pytest.fixture
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are kept for a peer that does not read up to 10 kB, not half a megabyte: the test is faster."""
    monkeypatch.setattr(mux_module, "_CONTROL_MAX_BYTES", 10_000)


@pytest.mark.usefixtures("little_patience")
def test_a_peer_that_opens_what_is_refused_and_never_reads_is_cut_off() -> None:
    caller = Mux(caller=True)

    def refuse(stream_id: int) -> None:
        feed(caller, Open(stream_id, WINDOW, "x"))
        caller.reset(stream_id, ResetCode.NOT_YOURS)

    with pytest.raises(RemoteProtocolError, match="it asks and does not read the answers"):
        list(map(refuse, range(2, 5000, 2)))


@pytest.mark.usefixtures("little_patience")
def test_a_peer_that_reads_may_ask_for_ever() -> None:
    caller = Mux(caller=True)
    for stream_id in range(2, 5000, 2):
        feed(caller, Open(stream_id, WINDOW, "x"))
        caller.reset(stream_id, ResetCode.NOT_YOURS)
        assert sent(caller) == [Reset(stream_id, ResetCode.NOT_YOURS)]
