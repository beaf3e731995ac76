"""Many streams in one ordered sequence of frames: windows, fairness, half-close.  Rule: no clock and no socket; `now` comes in.

What the peer sent comes in as frames (`receive`), what waits is written as whole frames into memory of the caller's (`fill`),
and `events()` are the frames that passed every check here, and what happened to our own.  How the frames travel, and how often,
is not known here (protocol/resume.py).  The caller opens odd stream ids, the callee even ones.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol, TypeAlias

import msgspec

from p2ptunnel.defaults import (
    CAPABILITIES_MAX,
    STREAM_WINDOW_BYTES,
    STREAM_WINDOW_MAX_BYTES,
    STREAMS_MAX,
    WINDOW_GROWTH_MAX_BYTES,
)
from p2ptunnel.errors import ChannelBusyError, LocalProtocolError, RemoteProtocolError
from p2ptunnel.protocol.machine import Event
from p2ptunnel.wire.frames import (
    HEADER,
    PAYLOAD_MAX_BYTES,
    Capability,
    Data,
    Fin,
    Frame,
    FrameType,
    GoAway,
    Open,
    Opened,
    Reset,
    ResetCode,
    Waiting,
    Window,
    encode,
)

__all__ = ["Counts", "Drained", "Mux", "MuxEvent", "Source"]

_FAIR_PAYLOAD_BYTES: Final = 16 * 1024 - HEADER.size  # of one turn while other streams wait
_BULK_TURN: Final = 4  # every fourth turn is a bulk stream's, however many interactive ones wait
_NOTHING: Final = memoryview(b"")
_CREDIT_MAX: Final = 2**31
_STREAM_ID_MAX: Final = 2**32 - 1
_CONTROL_MAX_BYTES: Final = 512 * 1024  # of answers to a peer that asks and does not read; 1024 openings take at most half


class Source(Protocol):
    """Where a stream takes its bytes from when its turn comes: a raw file, as `io.RawIOBase` has it."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Put bytes into `buffer` and return how many; 0 at the end, None while there are none.

        Fewer than fit mean that there are no more for now.  It may not call the mux.
        """
        ...


class Drained(Event, frozen=True):
    """What was written to the stream has been taken whole: its buffer is free again."""

    stream_id: int


MuxEvent: TypeAlias = Open | Opened | Waiting | Data | Fin | Reset | GoAway | Capability | Drained


class Counts(msgspec.Struct):
    """Bytes of one stream, so far."""

    sent: int = 0
    received: int = 0


class _Stream:
    """Both directions of one stream, as far as bytes and credit go."""

    __slots__ = (
        "counts",
        "credit",
        "fin_received",
        "fin_sent",
        "fin_wanted",
        "granted_at",
        "interactive",
        "is_opened",
        "owed",
        "pending",
        "queued",
        "room",
        "source",
        "stream_id",
        "window",
    )

    def __init__(self, stream_id: int, *, interactive: bool, credit: int, now: float) -> None:
        self.stream_id = stream_id
        self.interactive = interactive
        self.counts = Counts()
        self.is_opened = False  # OPENED went over the pipe, either way
        # sending
        self.pending = _NOTHING  # written and not yet taken
        self.source: Source | None = None  # instead of writes
        self.credit = credit  # bytes that the peer will take
        self.queued = False  # waits for its turn
        self.fin_wanted = False
        self.fin_sent = False
        # receiving
        self.window = STREAM_WINDOW_BYTES
        self.room = STREAM_WINDOW_BYTES  # bytes that the peer may still send
        self.owed = 0  # bytes read here for which no credit went out yet
        self.granted_at = now
        self.fin_received = False


class Mux:
    """One end of the streams of a session.

    Args:
        caller: Which end: the one that opens odd stream ids.

    Attributes:
        bytes_sent: Of all streams.
        bytes_received: Of all streams.
        rtt: Seconds of a round trip, None while unknown; set from outside, windows grow by it.
    """

    def __init__(self, *, caller: bool) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.rtt: float | None = None
        self._streams: Final[dict[int, _Stream]] = {}
        self._own_parity: Final = 1 if caller else 0
        self._next_id = 1 if caller else 2
        self._last_theirs = 0
        self._own_count = 0
        self._control: Final[deque[bytes]] = deque()
        self._control_bytes = 0
        self._interactive: Final[deque[_Stream]] = deque()
        self._bulk: Final[deque[_Stream]] = deque()
        self._turn = 0
        self._events: list[MuxEvent] = []
        self._growth = 0  # by how much windows together exceed the constant
        self._leaving = False
        self._shown = 0  # capabilities, by the peer
        self._tickets: Final[set[bytes]] = set()  # that we have shown

    # --- streams ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return how many streams are open in at least one direction."""
        return len(self._streams)

    def __contains__(self, stream_id: int) -> bool:
        return stream_id in self._streams

    @property
    def has_output(self) -> bool:
        """Whether `fill` has something to give."""
        return bool(self._control or self._interactive or self._bulk)

    def open(self, service: str, now: float, *, interactive: bool = True) -> int:
        """Open a stream and return its id; data may be written at once.

        Raises:
            ChannelBusyError: As many of our streams are open as the peer allows.
            LocalProtocolError: `go_away` was called, or the service name is none.
        """
        if self._leaving:
            raise LocalProtocolError("no stream is opened after going away")
        if self._own_count >= STREAMS_MAX or self._next_id > _STREAM_ID_MAX or self._control_bytes > _CONTROL_MAX_BYTES:
            raise ChannelBusyError(STREAMS_MAX)
        stream_id = self._next_id
        self._say(Open(stream_id, STREAM_WINDOW_BYTES, service, interactive))
        self._streams[stream_id] = _Stream(stream_id, interactive=interactive, credit=STREAM_WINDOW_BYTES, now=now)
        self._next_id += 2
        self._own_count += 1
        return stream_id

    def accept(self, stream_id: int) -> None:
        """Accept a stream that the peer opened; nothing happens if it is gone by now."""
        if stream := self._streams.get(stream_id):
            stream.is_opened = True
            self._say(Opened(stream_id, stream.window))

    def wait(self, stream_id: int, patience: int) -> None:
        """Tell the peer that somebody is asked about its stream, for so many seconds; nothing happens if it is gone by now."""
        if stream_id in self._streams:
            self._say(Waiting(stream_id, patience))

    def show(self, ticket: bytes) -> None:
        """Show the peer what it has signed, once each, and no more than it takes; streams opened from now on go by it."""
        if ticket not in self._tickets and len(self._tickets) < CAPABILITIES_MAX:
            self._tickets.add(ticket)
            self._say(Capability(ticket))

    def write(self, stream_id: int, data: memoryview) -> None:
        """Queue bytes; they are not copied, so the buffer must stay as it is until `Drained`.

        Args:
            stream_id: Of a stream that is open.
            data: Contiguous bytes, not empty.

        Raises:
            LocalProtocolError: What was written before has not drained, or the stream is over, or `write_eof` was called.
        """
        self._writable(stream_id).pending = data
        self._queue(self._streams[stream_id])

    def feed_from(self, stream_id: int, source: Source) -> None:
        """Take the stream's bytes from `source` from now on, as credit and turns allow, and FIN from its end.

        It is asked after `source_ready`, and when new credit comes.

        Raises:
            LocalProtocolError: As `write`.
        """
        self._writable(stream_id).source = source

    def source_ready(self, stream_id: int) -> None:
        """Queue a stream whose source may have bytes again; without credit it is queued when credit comes."""
        stream = self._streams.get(stream_id)
        if stream is not None and stream.source is not None:
            self._queue(stream)

    def counts(self, stream_id: int) -> Counts:
        """Return the counts of a stream; they are kept up to date, and stay when it ends."""
        stream = self._streams.get(stream_id)
        return Counts() if stream is None else stream.counts

    def _writable(self, stream_id: int) -> _Stream:
        stream = self._streams.get(stream_id)
        if stream is None or stream.pending or stream.source or stream.fin_wanted:
            raise LocalProtocolError("a stream takes one write at a time, and none after its end")
        return stream

    def is_drained(self, stream_id: int) -> bool:
        """Tell whether the stream holds no buffer of ours."""
        stream = self._streams.get(stream_id)
        return stream is None or not stream.pending

    def take_back(self, stream_id: int) -> bool:
        """Forget what of the last write is not taken yet; tell whether a FIN that waited behind it became a reset."""
        stream = self._streams.get(stream_id)
        if stream is None or not stream.pending:
            return False
        stream.pending = _NOTHING
        if stream.fin_wanted:  # a clean end would hide what is missing
            self.reset(stream_id, ResetCode.CANCELLED, "a write was cancelled")
            return True
        return False

    def write_eof(self, stream_id: int) -> None:
        """Send FIN behind what is written; doing so twice is fine."""
        stream = self._streams.get(stream_id)
        if stream and not stream.fin_wanted:
            stream.fin_wanted = True
            stream.source = None
            if not stream.pending:
                self._send_fin(stream)

    def reset(self, stream_id: int, code: int, reason: str = "") -> None:
        """End the stream in both directions at once; nothing happens if it is gone."""
        if stream := self._streams.get(stream_id):
            self._forget(stream)
            self._say(Reset(stream_id, code, reason))

    def consumed(self, stream_id: int, count: int, now: float) -> bool:
        """Note that `count` received bytes have left for the application; tell whether credit for them waits to be sent."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.fin_received:
            return False
        stream.owed += count
        if stream.owed * 2 < stream.window:
            return False
        self._grow(stream, now)
        self._say(Window(stream_id, stream.owed))
        stream.room += stream.owed
        stream.owed = 0
        stream.granted_at = now
        return True

    def _grow(self, stream: _Stream, now: float) -> None:
        """Double a window that was half read within two round trips: it, not the path, limits the stream."""
        if self.rtt is None or now - stream.granted_at > 2 * self.rtt or stream.window >= STREAM_WINDOW_MAX_BYTES:
            return
        if self._growth + stream.window <= WINDOW_GROWTH_MAX_BYTES:
            self._growth += stream.window
            stream.owed += stream.window
            stream.window *= 2

    # --- the session --------------------------------------------------------------------------------------------------

    def go_away(self, code: int, reason: str = "") -> None:
        """Tell the peer that the session ends: neither side opens a stream any more."""
        if not self._leaving:
            self._leaving = True
            self._say(GoAway(code, reason))

    # --- the sequence of frames ---------------------------------------------------------------------------------------

    def events(self) -> list[MuxEvent]:
        """Return and forget what happened, in order; the payloads in it live until the fed buffer is reused."""
        happened, self._events = self._events, []
        return happened

    def receive(self, frame: Frame, now: float) -> None:
        """Take one frame, or part of a Data frame.

        Raises:
            RemoteProtocolError: The peer broke a rule: the session is of no more use.
        """
        if isinstance(frame, Data):  # nearly all bytes come this way
            self._on_data(frame)
        else:
            self._on_control(frame, now)

    def fill(self, room: memoryview) -> int:
        """Write what waits, as whole frames, into `room`; return how many bytes of it were used.

        Ready streams take turns: 16 KiB each while several wait, a whole frame for one alone.
        """
        used = self._fill_control(room)
        while not self._control and used + HEADER.size < len(room) and (stream := self._take_turn()):
            used += self._fill_one(stream, room[used:])
            used += self._fill_control(room[used:])  # a FIN goes behind its bytes
        return used

    def _fill_control(self, room: memoryview) -> int:
        used = 0
        while self._control and used + len(self._control[0]) <= len(room):
            frame = self._control.popleft()
            room[used : used + len(frame)] = frame
            used += len(frame)
        self._control_bytes -= used
        return used

    def _say(self, frame: Frame) -> None:
        data = encode(frame)
        self._control.append(data)
        self._control_bytes += len(data)

    def _take_turn(self) -> _Stream | None:
        self._turn += 1
        first, second = self._interactive, self._bulk
        if self._turn % _BULK_TURN == 0:
            first, second = second, first
        queue = first or second
        if not queue:
            return None
        stream = queue.popleft()
        stream.queued = False
        return stream

    def _fill_one(self, stream: _Stream, room: memoryview) -> int:
        """Put one frame of the stream into `room`; return its length."""
        alone = not self._interactive and not self._bulk
        limit = min(stream.credit, PAYLOAD_MAX_BYTES if alone else _FAIR_PAYLOAD_BYTES, len(room) - HEADER.size)
        payload = room[HEADER.size : HEADER.size + limit]
        count = self._pull(stream, stream.source, payload) if stream.source else self._take(stream, payload)
        if count == 0:  # taken back, reset or out of credit since it was queued
            return 0
        HEADER.pack_into(room, 0, FrameType.DATA, 0, count, stream.stream_id)
        stream.credit -= count
        stream.counts.sent += count
        self.bytes_sent += count
        if not stream.source or count == limit:
            self._queue(stream)
        return HEADER.size + count

    def _take(self, stream: _Stream, payload: memoryview) -> int:
        """Copy what fits of a write."""
        count = min(len(stream.pending), len(payload))
        payload[:count] = stream.pending[:count]
        if count < len(stream.pending):
            stream.pending = stream.pending[count:]
        elif count:
            stream.pending = _NOTHING  # an empty part would still hold the buffer
            self._events.append(Drained(stream.stream_id))
            if stream.fin_wanted:
                self._send_fin(stream)
        return count

    def _pull(self, stream: _Stream, source: Source, payload: memoryview) -> int:
        """Let the source fill `payload`."""
        if not payload:
            return 0
        count = source.readinto(payload)
        if count == 0:
            stream.source = None
            stream.fin_wanted = True
            self._send_fin(stream)
        return count or 0

    def _queue(self, stream: _Stream) -> None:
        if not stream.queued and (stream.pending or stream.source) and stream.credit:
            stream.queued = True
            (self._interactive if stream.interactive else self._bulk).append(stream)

    def _send_fin(self, stream: _Stream) -> None:
        stream.fin_sent = True
        self._say(Fin(stream.stream_id))
        if stream.fin_received:
            self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        del self._streams[stream.stream_id]
        stream.pending = _NOTHING
        stream.source = None
        self._growth -= stream.window - STREAM_WINDOW_BYTES
        if stream.stream_id % 2 == self._own_parity:
            self._own_count -= 1

    # --- what the peer sent -------------------------------------------------------------------------------------------

    def _on_data(self, frame: Data) -> None:
        stream = self._known(frame.stream_id)
        if stream is None:
            return
        self._check_open(stream)
        count = len(frame.payload)
        if count > stream.room:
            raise RemoteProtocolError(f"{count - stream.room} bytes beyond the window of a stream")
        stream.room -= count
        stream.counts.received += count
        self.bytes_received += count
        self._events.append(frame)

    def _on_control(self, frame: Frame, now: float) -> None:
        match frame:
            case Window():
                self._on_window(frame)
            case Open():
                self._on_open(frame, now)
            case Opened():
                self._on_opened(frame)
            case Fin():
                self._on_fin(frame)
            case Reset():
                self._on_reset(frame)
            case Waiting():
                self._on_waiting(frame)
            case Capability():
                self._shown += 1
                if self._shown > CAPABILITIES_MAX:
                    raise RemoteProtocolError(f"more than {CAPABILITIES_MAX} capabilities")
                self._events.append(frame)
            case GoAway():
                self._leaving = True
                self._events.append(frame)
            case _:
                raise RemoteProtocolError("a second greeting")

    def _known(self, stream_id: int) -> _Stream | None:
        """Return the stream; None if it is over, since frames sent before its end was known still come in.

        Raises:
            RemoteProtocolError: It was never opened.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            newest = self._next_id - 2 if stream_id % 2 == self._own_parity else self._last_theirs
            if stream_id > newest:
                raise RemoteProtocolError("a frame of a stream that was never opened")
        return stream

    def _check_open(self, stream: _Stream) -> None:
        if stream.fin_received:
            raise RemoteProtocolError("bytes behind the end of a stream")
        if not stream.is_opened and stream.stream_id % 2 == self._own_parity:
            raise RemoteProtocolError("bytes of a stream that it has not accepted")

    def _on_open(self, frame: Open, now: float) -> None:
        if frame.stream_id % 2 == self._own_parity or frame.stream_id <= self._last_theirs:
            raise RemoteProtocolError("a stream id that is not its to open")
        if len(self._streams) - self._own_count >= STREAMS_MAX:
            raise RemoteProtocolError(f"more than {STREAMS_MAX} streams")
        self._check_answers()
        self._last_theirs = frame.stream_id
        if self._leaving:  # it was on its way when we said that we go
            self._say(Reset(frame.stream_id, ResetCode.BUSY, "the session ends"))
            return
        credit = min(frame.window, _CREDIT_MAX)
        self._streams[frame.stream_id] = _Stream(frame.stream_id, interactive=frame.interactive, credit=credit, now=now)
        self._events.append(frame)

    def _on_opened(self, frame: Opened) -> None:
        if frame.stream_id % 2 != self._own_parity:
            raise RemoteProtocolError("an answer to its own opening")
        stream = self._known(frame.stream_id)
        if stream is None:
            return
        if stream.is_opened or not STREAM_WINDOW_BYTES <= frame.window <= _CREDIT_MAX:
            raise RemoteProtocolError("a second answer to an opening, or a window below the first")
        stream.is_opened = True
        stream.credit += frame.window - STREAM_WINDOW_BYTES
        self._queue(stream)
        self._events.append(frame)

    def _on_waiting(self, frame: Waiting) -> None:
        if frame.stream_id % 2 != self._own_parity:
            raise RemoteProtocolError("an answer to its own opening")
        stream = self._known(frame.stream_id)
        if stream is None:
            return
        if stream.is_opened:
            raise RemoteProtocolError("a stream that waits although it is open")
        self._events.append(frame)

    def _on_window(self, frame: Window) -> None:
        stream = self._known(frame.stream_id)
        if stream is None:
            return
        if stream.credit + frame.credit > _CREDIT_MAX or not frame.credit:
            raise RemoteProtocolError("a credit that no stream can have")
        stream.credit += frame.credit
        self._queue(stream)

    def _on_fin(self, frame: Fin) -> None:
        stream = self._known(frame.stream_id)
        if stream is None:
            return
        self._check_open(stream)
        stream.fin_received = True
        if stream.fin_sent:
            self._forget(stream)
        self._events.append(frame)

    def _on_reset(self, frame: Reset) -> None:
        if stream := self._known(frame.stream_id):
            self._forget(stream)
            self._events.append(frame)

    def _check_answers(self) -> None:
        if self._control_bytes > _CONTROL_MAX_BYTES:
            raise RemoteProtocolError("it asks and does not read the answers")
