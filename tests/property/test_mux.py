"""Two muxes over a byte pipe that cuts, holds and interleaves as it likes: every byte arrives, once and in order.

What a stream sends is written, or pulled from a source that has bytes at times and at times has none.
"""

from __future__ import annotations

import contextlib
import hashlib

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2ptunnel.defaults import STREAM_WINDOW_BYTES
from p2ptunnel.errors import RemoteProtocolError
from p2ptunnel.protocol.mux import Drained, Mux, MuxEvent
from p2ptunnel.wire.frames import HEADER, Data, Fin, FrameReader, Open, Opened, Reset

sides = st.sampled_from([0, 1])
sizes = st.sampled_from([1, 100, 20_000, STREAM_WINDOW_BYTES, STREAM_WINDOW_BYTES + 7])


def batch_of(mux: Mux, room: int) -> bytes:
    """What the mux puts into so much memory."""
    memory = memoryview(bytearray(room))
    return bytes(memory[: mux.fill(memory)])


class Bytes:
    """A source of what stands in `waiting`, then of nothing, or of the end."""

    def __init__(self) -> None:
        self.waiting = bytearray()
        self.is_over = False

    def readinto(self, buffer: memoryview, /) -> int | None:
        if not self.waiting:
            return 0 if self.is_over else None
        count = min(len(buffer), len(self.waiting))
        buffer[:count] = self.waiting[:count]
        del self.waiting[:count]
        return count


class TwoEnds(RuleBasedStateMachine):
    """Opens, writes, reads, ends and resets streams from both sides while bytes trickle; compares with what was sent.

    What the model knows of a stream is the bytes written on it, what was read of it, and whether each writer has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends = (Mux(caller=True), Mux(caller=False))
        self.readers = (FrameReader(), FrameReader())
        self.wires = (bytearray(), bytearray())  # from each side to the other
        self.written: dict[tuple[int, int], bytearray] = {}  # (writing side, stream)
        self.received: dict[tuple[int, int], bytearray] = {}
        self.unread: dict[tuple[int, int], int] = {}  # (reading side, stream)
        self.sources: dict[tuple[int, int], Bytes] = {}
        self.ended: set[tuple[int, int]] = set()
        self.end_seen: set[tuple[int, int]] = set()
        self.accepted: set[int] = set()
        self.reset: set[int] = set()
        self.count = 0

    def writers(self) -> list[tuple[int, int]]:
        """Who may write now: not ended, drained, and on the accepting side only after acceptance."""
        return [
            (side, stream)
            for side, stream in self.written
            if (side, stream) not in self.ended
            and stream not in self.reset
            and (side, stream) not in self.sources
            and self.ends[side].is_drained(stream)
            and (stream % 2 == 1 - side or stream in self.accepted)
        ]

    @rule(side=sides, interactive=st.booleans())
    def open(self, side: int, interactive: bool) -> None:
        if len(self.ends[side]) < 6:
            stream = self.ends[side].open("web", 0, interactive=interactive)
            for writer in (0, 1):
                self.written[writer, stream] = bytearray()
                self.received[writer, stream] = bytearray()
                self.unread[writer, stream] = 0

    def block(self, key: tuple[int, int], size: int) -> bytes:
        """Other bytes each time, noted as written."""
        self.count += 1
        block = hashlib.shake_128(str(self.count).encode()).digest(size)
        self.written[key] += block
        return block

    @rule(data=st.data(), size=sizes)
    def write(self, data: st.DataObject, size: int) -> None:
        if writers := self.writers():
            side, stream = data.draw(st.sampled_from(writers))
            self.ends[side].write(stream, memoryview(self.block((side, stream), size)))

    @rule(data=st.data())
    def feed_from(self, data: st.DataObject) -> None:
        """From now on the stream pulls."""
        if writers := self.writers():
            side, stream = data.draw(st.sampled_from(writers))
            self.sources[side, stream] = Bytes()
            self.ends[side].feed_from(stream, self.sources[side, stream])

    @rule(data=st.data(), size=sizes, is_over=st.booleans())
    def fill_source(self, data: st.DataObject, size: int, is_over: bool) -> None:
        """A source has bytes again, and with them its end perhaps."""
        if keys := sorted(key for key in self.sources if key not in self.ended and key[1] not in self.reset):
            key = data.draw(st.sampled_from(keys))
            self.sources[key].waiting += self.block(key, size)
            if is_over:
                self.sources[key].is_over = True
                self.ended.add(key)
            self.ends[key[0]].source_ready(key[1])

    @rule(data=st.data())
    def write_eof(self, data: st.DataObject) -> None:
        if writers := self.writers():
            side, stream = data.draw(st.sampled_from(writers))
            self.ended.add((side, stream))
            self.ends[side].write_eof(stream)

    @rule(data=st.data(), side=sides)
    def reset_one(self, data: st.DataObject, side: int) -> None:
        if len(self.ends[side]) > 4:
            stream = data.draw(st.sampled_from(sorted(s for w, s in self.written if w == side and s in self.ends[side])))
            self.reset.add(stream)
            self.ends[side].reset(stream, 1)

    @rule(side=sides, size=st.integers(1, 300_000), room=st.integers(HEADER.size + 1, 300_000))
    def carry(self, side: int, size: int, room: int) -> None:
        """Let the sender put a batch on its wire, and the other end take some bytes of it."""
        self.wires[side].extend(batch_of(self.ends[side], room))
        self.note(side, self.ends[side].events())
        piece = bytes(self.wires[side][:size])
        del self.wires[side][:size]
        for frame in self.readers[side].feed(memoryview(piece)):
            self.ends[1 - side].receive(frame, 0)
        self.note(1 - side, self.ends[1 - side].events())

    def ask_sources(self) -> None:
        """A source that gave less than fitted says again that it is ready; all do here."""
        for side, stream in self.sources:
            self.ends[side].source_ready(stream)

    @rule(side=sides)
    def read(self, side: int) -> None:
        """Let the application read everything that one side has."""
        for (reader, stream), count in self.unread.items():
            if reader == side and count:
                self.ends[side].consumed(stream, count, 0)
                self.unread[side, stream] = 0

    def note(self, side: int, events: list[MuxEvent]) -> None:
        for event in events:
            match event:
                case Data(stream, payload):
                    self.received[1 - side, stream] += payload
                    self.unread[side, stream] += len(payload)
                case Fin(stream):
                    self.end_seen.add((1 - side, stream))
                case Open(stream):
                    self.accepted.add(stream)
                    self.ends[side].accept(stream)
                case Reset() | Opened() | Drained():
                    pass
                case _:
                    raise AssertionError(event)

    @invariant()
    def what_came_is_a_beginning_of_what_was_written(self) -> None:
        for key, came in self.received.items():
            assert self.written[key].startswith(came), key

    @invariant()
    def an_end_is_seen_behind_the_last_byte(self) -> None:
        for key in self.end_seen:
            assert key in self.ended
            assert self.received[key] == self.written[key]

    def teardown(self) -> None:
        """Let everything arrive: then every byte has, and every end, on streams that nobody has reset."""
        for _ in range(200):
            self.ask_sources()
            for side in (0, 1):
                self.carry(side, 10**9, 256 * 1024)
                self.read(side)
        for key, was in self.written.items():
            if key[1] not in self.reset:
                assert self.received[key] == was
                assert (key in self.end_seen) == (key in self.ended)


TestTwoEnds = TwoEnds.TestCase


@given(st.binary(max_size=200), st.integers(0, 3))
def test_any_bytes_are_taken_or_are_the_one_error(junk: bytes, streams: int) -> None:
    mux = Mux(caller=True)
    for _ in range(streams):
        mux.open("web", 0)
    with contextlib.suppress(RemoteProtocolError):
        for frame in FrameReader().feed(memoryview(junk)):
            mux.receive(frame, 1)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.sampled_from([1, 7, 8, 9, 100, 1000]))
def test_bytes_that_are_written_in_any_sizes_and_carried_in_any_are_the_same_bytes(sizes: list[int], piece: int) -> None:
    caller, callee, reader = Mux(caller=True), Mux(caller=False), FrameReader()
    stream = caller.open("web", 0)
    came, sent = bytearray(), bytearray()
    for number, size in enumerate(sizes):
        block = hashlib.shake_128(bytes([number])).digest(size * piece)
        sent += block
        caller.write(stream, memoryview(block))
        while caller.has_output:
            batch = batch_of(caller, 300 + piece)
            for at in range(0, len(batch), piece):
                for frame in reader.feed(memoryview(batch[at : at + piece])):
                    callee.receive(frame, 0)
                came += taken(callee)
            for frame in FrameReader().feed(memoryview(batch_of(callee, 1000))):
                caller.receive(frame, 0)
        assert caller.is_drained(stream)
    assert came == sent


def taken(mux: Mux) -> bytes:
    """Accept what is opened, read what has come."""
    came = bytearray()
    for event in mux.events():
        if isinstance(event, Open):
            mux.accept(event.stream_id)
        elif isinstance(event, Data):
            came += event.payload
            mux.consumed(event.stream_id, len(event.payload), 0)
    return bytes(came)
