"""A session that outlives its channels: every sequenced byte comes once and in order, over whichever channel carries it.

Rule: no clock, no socket; and a byte counts as received when it has been handed on, as sent when it is kept for replay.

What the streams send is one sequence of frames in each direction, counted by 64-bit offsets.  It is kept until the peer
acknowledges it, and sent again from the peer's own offset when the caller moves the session to another channel (RESUME).  The
old channel is still read meanwhile; what comes twice is known by its offset and left out.

Source: docs/protocol/frames.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeAlias

from p2ptunnel.defaults import (
    ACK_EVERY_BYTES,
    ACTIVE_FOR,
    DEAD_DORMANT,
    DORMANT_AFTER,
    PING_STANDBY,
    RESUME_BUFFER_BYTES,
)
from p2ptunnel.errors import LocalProtocolError, RemoteProtocolError
from p2ptunnel.protocol.link import ACTIVE, DORMANT, IDLE, Health, Link, Pace
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.mux import Mux, MuxEvent
from p2ptunnel.protocol.replay import PIECE_BYTES, Replay
from p2ptunnel.wire.frames import (
    HEADER,
    Accept,
    Ack,
    Data,
    Frame,
    GoAway,
    GoAwayCode,
    Hello,
    Ping,
    Pong,
    Resume,
    encode,
)

__all__ = ["Endpoint", "EndpointEvent", "Forgotten", "HealthChanged", "Resumed", "SecondsWithoutAck"]

_NOTHING: Final = memoryview(b"")
_CONTROL_MAX_BYTES: Final = 64 * 1024  # of acknowledgements that a peer does not read
_STANDBY: Final = tuple(Pace(PING_STANDBY * spread, DEAD_DORMANT) for spread in (1.0, 0.8, 1.2, 0.9, 1.1))  # by link: no beat

SecondsWithoutAck: TypeAlias = Callable[[int], float | None]
"""What the kernel tells of a link, by its number; see `Link.handle_timer`."""


class Resumed(Event, frozen=True):
    """The session goes on over this link; `replayed_bytes` were sent a second time."""

    link: int
    replayed_bytes: int


class HealthChanged(Event, frozen=True):
    """Another thing is thought of a link now."""

    link: int
    health: Health


class Forgotten(Event, frozen=True):
    """Whoever is at the other end of this link has no such session any more: restarted, or too late."""

    link: int
    reason: str


EndpointEvent: TypeAlias = MuxEvent | Resumed | HealthChanged | Forgotten


class Endpoint:
    """One end of a session.

    Args:
        caller: Which end: the one that opens odd stream ids and moves the session between channels.
        now: Monotonic seconds.
        resume_buffer: Bytes that are kept for replay at most.

    Attributes:
        mux: The streams.
        active: Number of the link that carries what we send; None while none does.
        received: Offset behind the last byte of the peer that was handed on.
        watched: Number of a link that is to be measured as often as the active one; None for none.
    """

    def __init__(self, *, caller: bool, now: float, resume_buffer: int = RESUME_BUFFER_BYTES) -> None:
        self.mux: Final = Mux(caller=caller)
        self.active: int | None = None
        self.received: int = 0
        self.watched: int | None = None
        self._is_caller: Final = caller
        self._replay: Final = Replay(resume_buffer)
        self._links: Final[dict[int, Link]] = {}
        self._last_link = 0
        self._batch_limit = PIECE_BYTES
        self._resumable_at = 0  # offset of the frame in which `received` lies: from there the peer must send again
        self._acknowledged = 0  # what we told the peer last
        self._confirmed = 0  # what the peer told us last, over whichever link
        self._ack_wanted = 0  # offset up to which we have asked for an acknowledgement
        self._number = 0  # of the last RESUME
        self._asked: Final[dict[int, list[Resume]]] = {}  # our RESUMEs that have no answer yet, by link, in their order
        self._answered = 0  # number of the newest RESUME that was answered
        self._events: list[EndpointEvent] = []
        self._moved_at = now
        self._streams_at = now

    # --- links --------------------------------------------------------------------------------------------------------

    def begin(self, now: float) -> int:
        """Add the channel with which the session begins, and return its number; it carries everything at once."""
        number = self.attach(now)
        self._links[number].sent = 0
        self._links[number].place(0)
        self.active = number
        return number

    def attach(self, now: float) -> int:
        """Add a channel on which the session may be resumed, and return its number."""
        self._last_link += 1
        self._links[self._last_link] = Link(now)
        return self._last_link

    def detach(self, number: int) -> None:
        """Forget a channel that is gone; nothing happens if it is forgotten already.

        Where the peer may have moved to it unheard, it is asked to come back to the one that still carries what we send.
        """
        was_moving_there = self.heading == number
        self._links.pop(number, None)
        self._asked.pop(number, None)
        if self.active == number:
            self.active = None
        if was_moving_there and self._is_caller and self.carrier is not None:
            self.resume(self.carrier)

    def resume(self, number: int) -> None:
        """Ask the peer to go on over this channel; only the caller does.

        It may be one that carried the session before, or carries it now: behind the question nothing of ours goes over it until
        the answer says from which offset on.

        Raises:
            LocalProtocolError: This is the callee.
        """
        if not self._is_caller:
            raise LocalProtocolError("the caller moves the session, not the callee")
        self._number += 1
        question = Resume(self._number, self._resumable_at)
        self._asked.setdefault(number, []).append(question)
        self._links[number].control.extend(encode(question))
        if self.active == number:
            self.active = None

    @property
    def heading(self) -> int | None:
        """The link that the session is on, or on its way to: the one asked for last, if that has no answer yet."""
        newest, number = max(((asked[-1].number, link) for link, asked in self._asked.items() if asked), default=(0, None))
        return number if newest > self._answered else self.active

    @property
    def carrier(self) -> int | None:
        """The link that carries what we send; while none does, the one that the session is on its way to."""
        return self.heading if self.active is None else self.active

    @property
    def links(self) -> tuple[int, ...]:
        """The numbers of all channels."""
        return tuple(self._links)

    def link(self, number: int) -> Link:
        """Return what is known of a channel."""
        return self._links[number]

    @property
    def sent(self) -> int:
        """Offset behind the last byte that was taken from the streams."""
        return self._replay.end

    @property
    def acknowledged(self) -> int:
        """Offset behind the last byte that the peer says it has."""
        return self._confirmed

    @property
    def unacknowledged(self) -> int:
        """How many bytes the peer has not acknowledged."""
        return len(self._replay)

    def unacknowledged_of(self) -> dict[int, int]:
        """Return how many bytes of each stream the peer has not acknowledged."""
        return self._replay.unacknowledged()

    @property
    def is_settled(self) -> bool:
        """Whether nothing waits to be sent or acknowledged."""
        return not len(self._replay) and not self.mux.has_output

    # --- the bytes of channels ----------------------------------------------------------------------------------------

    def limit_batches(self, limit: int) -> None:
        """Take at most `limit` bytes at a time from the streams: what waits in the channel delays what comes next."""
        self._batch_limit = limit

    def data_to_send(self, number: int, now: float) -> memoryview:
        """Return what to write to a channel next, empty if nothing; good until the next call."""
        link = self._links.get(number)
        if link is None:
            return _NOTHING
        if link.control:
            return self._take_control(link)
        if number != self.active or link.sent is None or link.health is Health.DEAD:
            return _NOTHING
        if link.sent == self._replay.end and self.mux.has_output:
            self._fill()
        data = self._replay.at(link.sent)
        if data:
            link.sent += len(data)
            self._moved_at = now
            self._release()
        return data or self._take_control(link)

    def _fill(self) -> None:
        """Take from the streams what there is room for; where there is none, an acknowledgement is wanted now."""
        room = self._replay.room(self._batch_limit)
        self._replay.commit(self.mux.fill(room))
        if not room:
            self._ask_for_ack()

    @staticmethod
    def _take_control(link: Link) -> memoryview:
        control = memoryview(bytes(link.control))
        link.control.clear()
        return control

    def receive_data(self, number: int, data: memoryview, now: float) -> None:
        """Take what arrived on a channel.

        Raises:
            RemoteProtocolError: The peer broke a rule: the session is of no more use.
        """
        link = self._links.get(number)
        if link is None:
            return
        if link.heard(now):
            self._note(HealthChanged(number, Health.UP))
        for frame in link.reader.feed(data):
            if isinstance(frame, Data):
                self._on_data(link, frame, now)
            elif isinstance(frame, Ack | Ping | Pong | Resume):
                self._on_control(number, link, frame, now)
            else:
                self._on_sequenced(number, link, frame, now)
        if self._resumable_at - self._acknowledged >= ACK_EVERY_BYTES:
            self._acknowledge()

    def events(self) -> list[EndpointEvent]:
        """Return and forget what happened, in order; the payloads in it live until the fed buffer is reused."""
        self._events += self.mux.events()
        happened, self._events = self._events, []
        return happened

    def _note(self, event: EndpointEvent) -> None:
        """Keep an event, behind those of the streams that came before it."""
        self._events += self.mux.events()
        self._events.append(event)

    # --- what came ----------------------------------------------------------------------------------------------------

    def _on_data(self, link: Link, part: Data, now: float) -> None:
        """Hand on what of a Data frame is new."""
        self._check_placed(link)
        end, frame_start = link.reader.offset, link.reader.frame_start
        start = end - len(part.payload)
        if end <= self.received:
            return
        if self.received < (frame_start if start == frame_start + HEADER.size else start):
            raise RemoteProtocolError("a gap in the sequence")
        if self.received > start:
            part = Data(part.stream_id, part.payload[self.received - start :])
        self.mux.receive(part, now)
        self.received = end
        self._resumable_at = end if link.reader.is_between_frames else frame_start
        self._moved_at = now

    def _on_sequenced(self, number: int, link: Link, frame: Frame, now: float) -> None:
        if isinstance(frame, GoAway) and frame.code == GoAwayCode.EXPIRED and self._is_caller:
            self._note(Forgotten(number, frame.reason))
            return
        if isinstance(frame, Hello | Accept):
            raise RemoteProtocolError("a second greeting")
        self._check_placed(link)
        reader = link.reader
        if reader.offset <= self.received:
            return
        if reader.frame_start != self.received:
            raise RemoteProtocolError("a gap in the sequence")
        self.mux.receive(frame, now)
        self.received = self._resumable_at = reader.offset

    @staticmethod
    def _check_placed(link: Link) -> None:
        if not link.is_placed:
            raise RemoteProtocolError("bytes of the session on a channel that it has not moved to")

    def _on_control(self, number: int, link: Link, frame: Ack | Ping | Pong | Resume, now: float) -> None:
        match frame:
            case Ack(received):
                self._on_ack(received)
            case Ping():
                link.on_ping(frame)
                self._acknowledge()
            case Pong():
                link.on_pong(frame, now)
                if number == self.active:
                    self.mux.rtt = link.rtt
            case Resume():
                self._on_resume(number, link, frame)

    def _on_ack(self, received: int) -> None:
        if received > self._replay.end:
            raise RemoteProtocolError("an acknowledgement of what was never sent")
        self._confirmed = max(self._confirmed, received)
        self._release()

    def _release(self) -> None:
        """Forget what the peer has; but a channel leaves nothing out, even where an older one was faster."""
        sent = None if self.active is None else self._links[self.active].sent
        self._replay.acknowledge(self._confirmed if sent is None else min(self._confirmed, sent))

    def _on_resume(self, number: int, link: Link, frame: Resume) -> None:
        if self._is_caller:
            self._on_answer(number, link, frame)
        elif frame.number > self._number:
            self._number = frame.number
            self._on_ack(frame.received)
            self._acknowledged = self._resumable_at
            start = self._confirmed  # it may have acknowledged more since, elsewhere
            link.answer(Resume(frame.number, self._resumable_at, start))
            link.place(self._resumable_at)
            self._go_on(number, link, start)

    def _on_answer(self, number: int, link: Link, answer: Resume) -> None:
        """Go on over this link, unless a newer RESUME was answered before; what comes behind the answer is read in any case."""
        asked = self._asked.get(number) or list[Resume]()
        while asked and asked[0].number < answer.number:  # a later one was there first, over another link
            del asked[0]
        if not asked or asked[0].number != answer.number:
            raise RemoteProtocolError("an answer to a question that was not asked")
        question = asked.pop(0)
        link.place(answer.start)
        if answer.number > self._answered and not asked:  # what we sent behind a later question would stand in the wrong place
            self._answered = answer.number
            if answer.received < self._confirmed:
                raise RemoteProtocolError("it wants again what it has acknowledged")
            self._on_ack(answer.received)
            self._acknowledged = question.received  # what was told elsewhere since may be lost
            self._go_on(number, link, answer.received)

    def _go_on(self, number: int, link: Link, start: int) -> None:
        """Send over this link from now on."""
        link.sent = start
        self.active = number
        self._ack_wanted = 0  # who was asked elsewhere may never answer
        self._release()
        self.mux.rtt = link.rtt or self.mux.rtt
        self._note(Resumed(number, self._replay.end - start))

    # --- time ---------------------------------------------------------------------------------------------------------

    def pace(self, now: float) -> Pace:
        """Return how closely the links are watched."""
        if len(self._replay) or now - self._moved_at < ACTIVE_FOR:
            return ACTIVE
        if len(self.mux):
            self._streams_at = now
        return IDLE if now - self._streams_at < DORMANT_AFTER else DORMANT

    def _pace_of(self, number: int, pace: Pace) -> Pace:
        """Return how closely one link is watched: one that only waits for its turn costs next to nothing."""
        return pace if number in {self.active, self.heading, self.watched} else _STANDBY[number % len(_STANDBY)]

    def next_deadline(self, now: float) -> float:
        """Return the monotonic second at which `handle_timer` wants to be called; infinity for never."""
        pace = self.pace(now)
        return min((link.next_deadline(self._pace_of(number, pace)) for number, link in self._links.items()), default=math.inf)

    def handle_timer(self, now: float, seconds_without_ack: SecondsWithoutAck) -> None:
        """Do what is due at `now`; calling early is harmless."""
        pace = self.pace(now)
        for number, link in self._links.items():
            before = link.health
            after = link.handle_timer(now, self._pace_of(number, pace), seconds_without_ack(number))
            if after is not before:
                self._note(HealthChanged(number, after))
        if pace is not ACTIVE:
            self._replay.shrink()

    def probe(self, now: float) -> None:
        """Ask every link for a sign of life now: the network may have changed."""
        for link in self._links.values():
            link.ping(now)

    def request_ack(self) -> bool:
        """Ask the peer to acknowledge everything; tell whether that has not been asked before."""
        if self.active is None or self._ack_wanted == self._replay.end or self.mux.has_output:
            return False
        self._ask_for_ack()
        return True

    def silence(self, now: float) -> float:
        """Return for how many seconds nothing has come over any link."""
        return now - max((link.heard_at for link in self._links.values()), default=now)

    def close(self) -> None:
        """Let go of what was kept for replay: the session is over."""
        self._replay.clear()

    def forgive(self, seconds: float) -> None:
        """Leave out `seconds` in which we ourselves stood still."""
        for link in self._links.values():
            link.forgive(seconds)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _acknowledge(self) -> None:
        """Tell the peer what has come, if it does not know."""
        if self.active is None or self._resumable_at <= self._acknowledged:
            return
        control = self._links[self.active].control
        if len(control) < _CONTROL_MAX_BYTES:  # else the peer does not read; it is told later
            self._acknowledged = self._resumable_at
            control.extend(encode(Ack(self._resumable_at)))

    def _ask_for_ack(self) -> None:
        """Send a PING that counts for nothing here: the peer acknowledges what it has when it answers."""
        if self.active is not None and self._ack_wanted != self._replay.end:
            self._ack_wanted = self._replay.end
            self._links[self.active].control.extend(encode(Ping(bytes(8))))
