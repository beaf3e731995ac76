"""Two ends of a session and a network that hates them: cut, stalled, half-lost and overlapping channels, in virtual time.

Everything here is pure and decided by a seed.  What is written on a stream is a slice of one block of random bytes, so that
each byte that comes out anywhere can be compared on the spot; `AssertionError` says which promise was broken.
"""

from __future__ import annotations

import random
from typing import Final

from p2ptunnel.defaults import STREAM_WINDOW_BYTES
from p2ptunnel.protocol.mux import Drained
from p2ptunnel.protocol.resume import Endpoint, HealthChanged, Resumed
from p2ptunnel.wire.frames import Data, Fin, Open, Opened, Reset

__all__ = ["CALLEE", "CALLER", "Channel", "Flow", "Hostile", "operate", "play"]

CALLER, CALLEE = 0, 1
_BLOCK: Final = memoryview(random.Random(1).randbytes(1 << 20) * 2)
_HALF: Final = 1 << 20
_DRAIN_ROUNDS: Final = 40


class Channel:
    """One connection: what is under way in each direction, and which ends still hold it."""

    def __init__(self, caller: int) -> None:
        self.numbers: list[int | None] = [caller, None]  # at the caller, at the callee
        self.wires = (bytearray(), bytearray())  # by sender
        self.is_cut = [False, False]  # by sender: what it writes is lost
        self.is_ended = [False, False]  # by sender: behind what is under way comes the end
        self.is_stalled = [False, False]
        self.has_come_up = False  # at the callee

    def held_by(self, side: int) -> bool:
        """Whether that end has neither closed it nor noticed its end."""
        return self.numbers[side] is not None


class Flow:
    """One direction of one stream; a source for the mux where bytes are not written but fed."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.allowed = 0  # what the source may give by now
        self.given = 0
        self.pending = 0  # behind `given`: a write that has not drained
        self.is_fed = False
        self.wants_end = False
        self.came = 0
        self.unread = 0
        self.end_seen = False

    def at(self, offset: int, count: int) -> memoryview:
        """The right bytes; at most 1 MiB."""
        start = (self.start + offset) % _HALF
        return _BLOCK[start : start + count]

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Be a Source."""
        count = min(len(buffer), self.allowed - self.given, _HALF)
        if count == 0:
            return 0 if self.wants_end and self.given == self.allowed else None
        buffer[:count] = self.at(self.given, count)
        self.given += count
        return count


class Hostile:
    """Two endpoints, their streams and their channels.

    Args:
        seed: Decides what is left to chance.
        resume_buffer: Of both ends.
        closes_old: Whether an end closes its older channels once the session has moved, as sessions do.
        wire_bytes: What a channel takes before its writer must wait.
    """

    def __init__(self, seed: int, *, resume_buffer: int = 1 << 20, closes_old: bool = True, wire_bytes: int = 65536) -> None:
        self.dice = random.Random(seed)
        self.now = 1000.0
        self.resume_buffer = resume_buffer
        self.closes_old = closes_old
        self.wire_bytes = wire_bytes
        self.ends = tuple(Endpoint(caller=side == CALLER, now=self.now, resume_buffer=resume_buffer) for side in (0, 1))
        self.flows: dict[tuple[int, int], Flow] = {}  # by writing side and stream
        self.accepted: set[int] = set()
        self.reset: set[int] = set()
        self.moves = [0, 0]
        self.carried = 0
        first = Channel(self.ends[CALLER].begin(self.now))
        first.numbers[CALLEE], first.has_come_up = self.ends[CALLEE].begin(self.now), True
        self.channels = [first]

    # --- what applications do -----------------------------------------------------------------------------------------

    def open(self, side: int, *, interactive: bool = True) -> int:
        """Open a stream."""
        stream = self.ends[side].mux.open("web", self.now, interactive=interactive)
        for writer in (0, 1):
            self.flows[writer, stream] = Flow(self.dice.randrange(_HALF))
        return stream

    def writers(self) -> list[tuple[int, int]]:
        """Who may write now."""
        return [
            (side, stream)
            for (side, stream), flow in self.flows.items()
            if stream in self.ends[side].mux
            and not flow.wants_end
            and not flow.pending
            and (stream % 2 != side or stream in self.accepted)
        ]

    def write(self, side: int, stream: int, size: int) -> None:
        """Write bytes, or let the source have as many more."""
        flow, mux = self.flows[side, stream], self.ends[side].mux
        if flow.is_fed:
            flow.allowed += size
            mux.source_ready(stream)
        else:
            flow.pending = size
            mux.write(stream, flow.at(flow.given, size))

    def feed(self, side: int, stream: int) -> None:
        """Feed the stream from a source from now on."""
        flow = self.flows[side, stream]
        if not flow.is_fed:
            flow.is_fed, flow.allowed = True, flow.given
            self.ends[side].mux.feed_from(stream, flow)

    def write_eof(self, side: int, stream: int) -> None:
        """End the direction behind what was written."""
        flow = self.flows[side, stream]
        flow.wants_end = True
        if flow.is_fed:
            self.ends[side].mux.source_ready(stream)
        else:
            self.ends[side].mux.write_eof(stream)

    def reset_stream(self, side: int, stream: int) -> None:
        """Reset a stream: nothing is promised of it any more but that what came is right."""
        self.reset.add(stream)
        self.ends[side].mux.reset(stream, 1)

    def read(self, side: int) -> None:
        """Let the application of one side read all that it has."""
        for (writer, stream), flow in self.flows.items():
            if writer != side and flow.unread:
                self.ends[side].mux.consumed(stream, flow.unread, self.now)
                flow.unread = 0

    # --- what the network does ----------------------------------------------------------------------------------------

    def dial(self) -> Channel:
        """Bring up another channel, with RESUME as its first bytes."""
        end = self.ends[CALLER]
        number = end.attach(self.now)
        end.resume(number)
        self.channels.append(Channel(number))
        return self.channels[-1]

    def pump(self, side: int) -> None:
        """Let one side write to all its channels what they take."""
        end = self.ends[side]
        for (writer, stream), flow in self.flows.items():
            if writer == side and flow.is_fed and (flow.given < flow.allowed or flow.wants_end):
                end.mux.source_ready(stream)  # as a loop does that watches a socket
        for channel in self.channels:
            number, wire = channel.numbers[side], channel.wires[side]
            while number is not None and len(wire) < self.wire_bytes and (data := end.data_to_send(number, self.now)):
                if not channel.is_cut[side]:
                    wire += data
        self.look(side)

    def carry(self, channel: Channel, sender: int, count: int) -> None:
        """Deliver so many bytes, and the end if it follows them at once."""
        if channel.is_stalled[sender]:
            return
        receiver, wire = 1 - sender, channel.wires[sender]
        data = bytes(wire[:count])
        del wire[:count]
        self.carried += len(data)
        if receiver == CALLEE and data and not channel.has_come_up:
            channel.has_come_up = True
            channel.numbers[CALLEE] = self.ends[CALLEE].attach(self.now)
        number = channel.numbers[receiver]
        if number is not None and data:
            self.ends[receiver].receive_data(number, memoryview(data), self.now)
            self.look(receiver)
        if not wire and channel.is_ended[sender]:
            self.drop(channel, receiver)

    def drop(self, channel: Channel, side: int) -> None:
        """Let one side close a channel, or notice that it is gone; the other one sees the end behind what is under way."""
        number = channel.numbers[side]
        if number is not None:
            self.ends[side].detach(number)
            channel.numbers[side] = None
            channel.is_ended[side] = True

    def cut(self, channel: Channel, sender: int, left: int) -> None:
        """Break one direction: of what is under way only the first `left` bytes come, and nothing that is written later."""
        del channel.wires[sender][left:]
        channel.is_cut[sender] = True

    def wait(self, seconds: float, seconds_without_ack: float | None = None) -> None:
        """Let time pass, and both sides look at their channels."""
        self.now += seconds
        for side in (0, 1):
            self.ends[side].handle_timer(self.now, lambda _: seconds_without_ack)
            self.look(side)

    # --- what comes out -----------------------------------------------------------------------------------------------

    def look(self, side: int) -> None:
        """Take the events of one side, and compare what came with what was written."""
        end = self.ends[side]
        for event in end.events():
            match event:
                case Data(stream, payload):
                    self._came(1 - side, stream, payload)
                case Fin(stream):
                    self._ended(1 - side, stream)
                case Open(stream):
                    end.mux.accept(stream)
                    self.accepted.add(stream)
                case Drained(stream):
                    self._drained(side, stream)
                case Resumed(number):
                    self._moved(side, number)
                case Opened() | Reset() | HealthChanged():
                    pass
                case _:
                    raise AssertionError(f"nobody did that: {event}")
        assert end.unacknowledged <= self.resume_buffer, "the replay buffer is not bounded"

    def _came(self, writer: int, stream: int, payload: memoryview) -> None:
        flow = self.flows[writer, stream]
        assert not flow.end_seen, "bytes behind the end"
        assert flow.came + len(payload) <= flow.given + flow.pending, "bytes that nobody has written"
        assert payload == flow.at(flow.came, len(payload)), f"wrong bytes at {flow.came} of stream {stream}"
        flow.came += len(payload)
        flow.unread += len(payload)
        known = self.ends[1 - writer].mux._streams.get(stream)
        assert known is None or flow.unread <= known.window, "the window was not respected"

    def _ended(self, writer: int, stream: int) -> None:
        flow = self.flows[writer, stream]
        assert flow.wants_end, "an end that nobody has written"
        assert not flow.end_seen, "two ends"
        assert flow.came == flow.given + flow.pending, "an end before the last byte"
        flow.end_seen = True

    def _drained(self, side: int, stream: int) -> None:
        flow = self.flows[side, stream]
        flow.given += flow.pending
        flow.pending = 0

    def _moved(self, side: int, number: int) -> None:
        self.moves[side] += 1
        if self.closes_old:
            for channel in self.channels:
                other = channel.numbers[side]
                if other is not None and other < number:
                    self.drop(channel, side)

    # --- the end ------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Bring up one channel that works; then everything must come, in bounded time.  Older ones stay as they are."""
        channel = self.dial()
        for _ in range(_DRAIN_ROUNDS + 3 * self._outstanding() // min(self.resume_buffer, STREAM_WINDOW_BYTES)):
            self._exchange()
            if self._is_done():
                break
            if not channel.held_by(CALLER):  # another one, dialled before, was faster, and is broken
                channel = self.dial()
            self.wait(0.45)
        self._check_everything_came()

    def _outstanding(self) -> int:
        return sum(max(flow.allowed, flow.given + flow.pending) - flow.came for flow in self.flows.values())

    def _exchange(self) -> None:
        """Deliver until nothing moves any more."""
        before = -1
        while before != (before := self.carried):
            for side in (0, 1):
                self.pump(side)
                for each in self.channels:
                    self.carry(each, side, 1 << 30)
                self.read(side)

    def _is_done(self) -> bool:
        return all(end.is_settled for end in self.ends) and all(
            flow.came == flow.given + flow.pending and flow.end_seen == flow.wants_end
            for (_, stream), flow in self.flows.items()
            if stream not in self.reset
        )

    def _check_everything_came(self) -> None:
        for (side, stream), flow in self.flows.items():
            if stream in self.reset:
                continue
            if flow.is_fed:
                assert flow.given == flow.allowed, f"stream {stream}: {flow.allowed - flow.given} bytes stay in the source"
            assert not flow.pending, f"stream {stream} of side {side}: {flow.pending} bytes were never taken"
            assert flow.came == flow.given, f"stream {stream} of side {side}: {flow.given - flow.came} bytes are missing"
            assert flow.end_seen == flow.wants_end, f"stream {stream} of side {side}: the end is missing"
        for side, end in enumerate(self.ends):
            assert end.is_settled, f"side {side}: {end.unacknowledged} bytes stay unacknowledged"


_SIZES: Final = (1, 7, 8, 9, 100, 1500, 20_000, 70_000)
_WEIGHTS: Final = {
    "open": 3,
    "write": 10,
    "feed": 2,
    "end": 2,
    "reset": 1,
    "read": 6,
    "pump": 12,
    "carry": 26,
    "dial": 5,
    "cut": 5,
    "drop": 3,
    "stall": 3,
    "wait": 5,
}
_OPERATIONS: Final = tuple(operation for operation, weight in _WEIGHTS.items() for _ in range(weight))


def play(seed: int, steps: int) -> Hostile:
    """Play one random schedule and see it through to the end."""
    dice = random.Random(seed)
    world = Hostile(
        seed,
        resume_buffer=dice.choice((1500, 5000, 40_000, 1 << 20)),
        closes_old=dice.random() < 0.7,
        wire_bytes=dice.choice((1, 3000, 65536)),
    )
    world.open(CALLER)
    for _ in range(steps):
        operate(world, dice)
    world.heal()
    return world


def operate(world: Hostile, dice: random.Random) -> None:
    """Do one thing that an application, a clock or the network may do."""
    _operate(world, dice, dice.choice(_OPERATIONS))


def _operate(world: Hostile, dice: random.Random, operation: str) -> None:
    side = dice.randrange(2)
    match operation:
        case "open":
            if len(world.flows) < 8:
                world.open(side, interactive=dice.random() < 0.5)
        case "write" | "feed" | "end":
            if writers := world.writers():
                _apply(world, dice, operation, *dice.choice(writers))
        case "reset":
            if (streams := [stream for _, stream in world.flows if stream in world.ends[side].mux]) and dice.random() < 0.3:
                world.reset_stream(side, dice.choice(streams))
        case "read":
            world.read(side)
        case "pump":
            world.pump(side)
        case "dial":
            if len(world.channels) < 12:
                world.dial()
                world.pump(CALLER)
        case "wait":
            world.wait(dice.choice((0.1, 0.45, 0.45, 1.2, 4.0)), dice.choice((None, None, 0.0, 100.0)))
        case _:
            _disturb(world, dice, operation, dice.choice(world.channels[-4:]), side)


def _apply(world: Hostile, dice: random.Random, operation: str, side: int, stream: int) -> None:
    if operation == "write":
        world.write(side, stream, dice.choice(_SIZES))
    elif operation == "feed":
        world.feed(side, stream)
    else:
        world.write_eof(side, stream)


def _disturb(world: Hostile, dice: random.Random, operation: str, channel: Channel, side: int) -> None:
    under_way = len(channel.wires[side])
    if operation == "carry":
        world.carry(
            channel, side, dice.choice((1 << 30, 1 << 30, dice.randrange(under_way + 1), min(under_way, dice.randrange(40))))
        )
    elif operation == "cut":
        world.cut(channel, side, dice.randrange(under_way + 1))
        if dice.random() < 0.5:
            world.cut(channel, 1 - side, dice.randrange(len(channel.wires[1 - side]) + 1))
    elif operation == "drop":
        world.drop(channel, side)
    else:
        channel.is_stalled[side] = not channel.is_stalled[side]
