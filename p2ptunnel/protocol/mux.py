"""Many streams over one ordered byte pipe: windows, fairness, half-close.  Rule: no clock and no socket; `now` comes in.

The driver hands in what arrived (`receive_data`), writes out what waits (`data_to_send`) and acts on `events()`, which are the
frames that passed every check here, and what happened to our own.  The caller opens odd stream ids, the callee even ones.
"""

from __future__ import annotations

from collections import deque
from typing import Final, TypeAlias

from p2ptunnel.defaults import (
    KEEPALIVE_DEAD,
    KEEPALIVE_IDLE,
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
    Accept,
    Data,
    Fin,
    Frame,
    FrameReader,
    FrameType,
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

__all__ = ["BATCH_BYTES", "Drained", "Mux", "MuxEvent", "PeerSilent"]

BATCH_BYTES: Final = 256 * 1024  # sealed and written at a time; more costs latency, less costs calls
_FAIR_PAYLOAD_BYTES: Final = 16 * 1024 - HEADER.size  # of one turn while other streams wait
_BULK_TURN: Final = 4  # every fourth turn is a bulk stream's, however many interactive ones wait
_NOTHING: Final = memoryview(b"")
_CREDIT_MAX: Final = 2**31
_STREAM_ID_MAX: Final = 2**32 - 1
_CONTROL_MAX_BYTES: Final = 512 * 1024  # of answers to a peer that asks and does not read; 1024 openings take at most half


class Drained(Event, frozen=True):
    """What was written to the stream has left `data_to_send` whole: its buffer is free again."""

    stream_id: int


class PeerSilent(Event, frozen=True):
    """Nothing came for `KEEPALIVE_DEAD`: the channel is dead."""


MuxEvent: TypeAlias = Open | Opened | Data | Fin | Reset | GoAway | Drained | PeerSilent


class _Stream:
    """Both directions of one stream, as far as bytes and credit go."""

    __slots__ = (
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
        "stream_id",
        "window",
    )

    def __init__(self, stream_id: int, *, interactive: bool, credit: int, now: float) -> None:
        self.stream_id = stream_id
        self.interactive = interactive
        self.is_opened = False  # OPENED went over the pipe, either way
        # sending
        self.pending = _NOTHING  # written and not yet taken
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
    """One end of a multiplexed pipe.

    Args:
        caller: Which end: the one that opens odd stream ids.
        now: Monotonic seconds.
    """

    def __init__(self, *, caller: bool, now: float) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.rtt: float | None = None
        self._streams: Final[dict[int, _Stream]] = {}
        self._own_parity: Final = 1 if caller else 0
        self._next_id = 1 if caller else 2
        self._last_theirs = 0
        self._own_count = 0
        self._reader: Final = FrameReader()
        self._control = bytearray()
        self._batch: Final = bytearray(BATCH_BYTES)
        self._interactive: Final[deque[_Stream]] = deque()
        self._bulk: Final[deque[_Stream]] = deque()
        self._turn = 0
        self._events: list[MuxEvent] = []
        self._growth = 0  # by how much windows together exceed the constant
        self._leaving = False
        self._received_at = now
        self._pinged_at = now
        self._ping: bytes | None = None
        self._ping_count = 0
        self._silent = False

    # --- streams ------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Return how many streams are open in at least one direction."""
        return len(self._streams)

    def __contains__(self, stream_id: int) -> bool:
        return stream_id in self._streams

    @property
    def has_output(self) -> bool:
        """Whether `data_to_send` has something to give."""
        return bool(self._control or self._interactive or self._bulk)

    def open(self, service: str, now: float, *, interactive: bool = True) -> int:
        """Open a stream and return its id; data may be written at once.

        Raises:
            ChannelBusyError: As many of our streams are open as the peer allows.
            LocalProtocolError: `go_away` was called, or the service name is none.
        """
        if self._leaving:
            raise LocalProtocolError("no stream is opened after going away")
        if self._own_count >= STREAMS_MAX or self._next_id > _STREAM_ID_MAX:
            raise ChannelBusyError(STREAMS_MAX)
        stream_id = self._next_id
        self._control += encode(Open(stream_id, STREAM_WINDOW_BYTES, service, interactive))
        self._streams[stream_id] = _Stream(stream_id, interactive=interactive, credit=STREAM_WINDOW_BYTES, now=now)
        self._next_id += 2
        self._own_count += 1
        return stream_id

    def accept(self, stream_id: int) -> None:
        """Accept a stream that the peer opened; nothing happens if it is gone by now."""
        if stream := self._streams.get(stream_id):
            stream.is_opened = True
            self._control += encode(Opened(stream_id, stream.window))

    def write(self, stream_id: int, data: memoryview) -> None:
        """Queue bytes; they are not copied, so the buffer must stay as it is until `Drained`.

        Args:
            stream_id: Of a stream that is open.
            data: Contiguous bytes, not empty.

        Raises:
            LocalProtocolError: What was written before has not drained, or the stream is over, or `write_eof` was called.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.pending or stream.fin_wanted:
            raise LocalProtocolError("a stream takes one write at a time, and none after its end")
        stream.pending = data
        self._queue(stream)

    def is_drained(self, stream_id: int) -> bool:
        """Tell whether the stream holds no buffer of ours."""
        stream = self._streams.get(stream_id)
        return stream is None or not stream.pending

    def take_back(self, stream_id: int) -> None:
        """Forget what of the last write has not been taken yet; a FIN that waits behind it becomes a reset."""
        stream = self._streams.get(stream_id)
        if stream and stream.pending:
            stream.pending = _NOTHING
            if stream.fin_wanted:  # a clean end would hide what is missing
                self.reset(stream_id, ResetCode.CANCELLED, "a write was cancelled")

    def write_eof(self, stream_id: int) -> None:
        """Send FIN behind what is written; doing so twice is fine."""
        stream = self._streams.get(stream_id)
        if stream and not stream.fin_wanted:
            stream.fin_wanted = True
            if not stream.pending:
                self._send_fin(stream)

    def reset(self, stream_id: int, code: int, reason: str = "") -> None:
        """End the stream in both directions at once; nothing happens if it is gone."""
        if stream := self._streams.get(stream_id):
            self._forget(stream)
            self._control += encode(Reset(stream_id, code, reason))

    def consumed(self, stream_id: int, count: int, now: float) -> bool:
        """Note that `count` received bytes have left for the application; tell whether credit for them waits to be sent."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.fin_received:
            return False
        stream.owed += count
        if stream.owed * 2 < stream.window:
            return False
        self._grow(stream, now)
        self._control += encode(Window(stream_id, stream.owed))
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
            self._control += encode(GoAway(code, reason))

    def ping(self, now: float) -> None:
        """Ask for a sign of life, and measure the round trip by it."""
        self._ping_count += 1
        self._ping = self._ping_count.to_bytes(8, "big")
        self._pinged_at = now
        self._control += encode(Ping(self._ping))

    def next_deadline(self) -> float | None:
        """Return the monotonic second at which `handle_timer` wants to be called, None for never."""
        if self._silent:
            return None
        return min(self._received_at + KEEPALIVE_DEAD, max(self._received_at, self._pinged_at) + KEEPALIVE_IDLE)

    def handle_timer(self, now: float) -> None:
        """Do what is due at `now`; calling early is harmless."""
        if self._silent:
            return
        if now >= self._received_at + KEEPALIVE_DEAD:
            self._silent = True
            self._events.append(PeerSilent())
        elif now >= max(self._received_at, self._pinged_at) + KEEPALIVE_IDLE:
            self.ping(now)

    # --- the pipe -----------------------------------------------------------------------------------------------------

    def events(self) -> list[MuxEvent]:
        """Return and forget what happened, in order; the payloads in it live until the fed buffer is reused."""
        happened, self._events = self._events, []
        return happened

    def receive_data(self, data: memoryview, now: float) -> None:
        """Take what arrived.

        Raises:
            RemoteProtocolError: The peer broke a rule: the channel is of no more use.
        """
        self._received_at = now
        for frame in self._reader.feed(data):
            if isinstance(frame, Data):  # nearly all bytes come this way
                self._on_data(frame)
            else:
                self._on_control(frame, now)

    def data_to_send(self) -> memoryview:
        """Return the next at most 256 KiB to write, empty if nothing waits; good until the next call.

        Ready streams take turns: 16 KiB each while several wait, a whole frame for one alone.
        """
        batch, control = self._batch, self._control
        used = min(len(control), BATCH_BYTES)
        batch[:used] = control[:used]
        del control[:used]
        while used + HEADER.size < BATCH_BYTES and (stream := self._take_turn()):
            used += self._fill(stream, used)
        return memoryview(batch)[:used]

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

    def _fill(self, stream: _Stream, at: int) -> int:
        """Put one frame of the stream into the batch; return its length."""
        alone = not self._interactive and not self._bulk
        limit = PAYLOAD_MAX_BYTES if alone else _FAIR_PAYLOAD_BYTES
        count = min(len(stream.pending), stream.credit, limit, BATCH_BYTES - at - HEADER.size)
        if count == 0:  # taken back, reset or out of credit since it was queued
            return 0
        HEADER.pack_into(self._batch, at, FrameType.DATA, 0, count, stream.stream_id)
        at += HEADER.size
        self._batch[at : at + count] = stream.pending[:count]
        stream.credit -= count
        self.bytes_sent += count
        if count < len(stream.pending):
            stream.pending = stream.pending[count:]
            self._queue(stream)
        else:
            stream.pending = _NOTHING  # an empty part would still hold the buffer
            self._events.append(Drained(stream.stream_id))
            if stream.fin_wanted:
                self._send_fin(stream)
        return HEADER.size + count

    def _queue(self, stream: _Stream) -> None:
        if not stream.queued and stream.pending and stream.credit:
            stream.queued = True
            (self._interactive if stream.interactive else self._bulk).append(stream)

    def _send_fin(self, stream: _Stream) -> None:
        stream.fin_sent = True
        self._control += encode(Fin(stream.stream_id))
        if stream.fin_received:
            self._forget(stream)

    def _forget(self, stream: _Stream) -> None:
        del self._streams[stream.stream_id]
        stream.pending = _NOTHING
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
            case Ping(payload):
                self._check_answers()
                self._control += encode(Pong(payload))
            case Pong(payload):
                self._on_pong(payload, now)
            case GoAway():
                self._leaving = True
                self._events.append(frame)
            case Hello() | Accept() | Data():
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
            self._control += encode(Reset(frame.stream_id, ResetCode.BUSY, "the session ends"))
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

    def _on_pong(self, payload: bytes, now: float) -> None:
        if payload == self._ping:
            self._ping = None
            self.rtt = now - self._pinged_at

    def _check_answers(self) -> None:
        if len(self._control) > _CONTROL_MAX_BYTES:
            raise RemoteProtocolError("it asks and does not read the answers")
