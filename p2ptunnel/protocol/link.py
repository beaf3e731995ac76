"""One channel of a session: where its bytes stand in the sequence, and whether its path lives.  Rule: `now` comes in.

Signs of life are asked for (PING) the more often the more is at stake, and two witnesses are heard: the peer, and the kernel
of the peer's machine, which acknowledges bytes also while the peer's process stands still.

Source: docs/explanation/reliability.md; docs/protocol/frames.md.
"""

from __future__ import annotations

import enum
import math
from typing import Final

import msgspec

from p2ptunnel.defaults import (
    DEAD_ACTIVE,
    DEAD_DORMANT,
    DEAD_IDLE,
    PING_ACTIVE,
    PING_DORMANT,
    PING_IDLE,
    SUSPECT_AFTER,
)
from p2ptunnel.errors import RemoteProtocolError
from p2ptunnel.wire.frames import FrameReader, Ping, Pong, Resume, encode

__all__ = ["ACTIVE", "DORMANT", "IDLE", "Health", "Link", "Pace"]

_CONTROL_MAX_BYTES: Final = 64 * 1024  # of answers to a peer that asks and does not read
_SUSPECT_ROUND_TRIPS: Final = 4
_DEAD_ROUND_TRIPS: Final = 12  # on a path so slow that the seconds below would be hasty
_FIRST_ROUND_TRIPS: Final = 4  # measured one after the other: the very first waits for what the channel came up with
_MEASURE_AGAIN: Final = 1.0  # seconds, while bytes move
_STALL_PAUSE_MAX: Final = 60.0  # seconds
_LOOK_AGAIN: Final = 0.25  # seconds, at a link that is in doubt
_NEWEST: Final = 1 / 8  # weight of a measured round trip (RFC 6298, 2.3)


class Pace(msgspec.Struct, frozen=True):
    """After how much silence a link is asked for a sign of life, and after how much it is dead; seconds."""

    ping: float
    dead: float


ACTIVE: Final = Pace(PING_ACTIVE, DEAD_ACTIVE)
IDLE: Final = Pace(PING_IDLE, DEAD_IDLE)
DORMANT: Final = Pace(PING_DORMANT, DEAD_DORMANT)


class Health(enum.Enum):
    """What is thought of a link; words for status and events."""

    UP = "up"
    STALLED = "stalled"  # the peer's kernel answers, its process does not: waited for
    SUSPECT = "suspect"  # another channel is looked for
    DEAD = "dead"  # nothing is written to it any more; should it answer after all, it lives again


class Link:
    """The share of one channel.

    Attributes:
        reader: Cuts what comes over it; its offsets are those of the peer's sequence.
        control: Frames of the channel that wait to be sent.
        sent: Offset in our sequence of what goes next over it; None while it carries nothing of ours.
        is_placed: Whether it is known where in the peer's sequence it stands.
        health: What was thought of it last.
        rtt: Smoothed seconds of a round trip, None until measured.
        rtt_deviation: How far single round trips are from it, in seconds.
        round_trips: How many were measured.
        last_round_trip: The last one, in seconds, whatever it says about the path; None until then.
    """

    def __init__(self, now: float) -> None:
        self.reader: Final = FrameReader()
        self.control: Final = bytearray()
        self.sent: int | None = None
        self.is_placed = False
        self.health = Health.UP
        self.rtt: float | None = None
        self.rtt_deviation = 0.0
        self.round_trips = 0
        self.last_round_trip: float | None = None
        self._fastest: float = 0  # of the last few round trips: what the path takes without our own queues
        self._heard_at = now
        self._asked_at = now  # when the oldest PING was sent that nothing has answered
        self._is_asked = False
        self._judged_at = now
        self._stall_pause = 0.0  # seconds between questions to a stalled peer; 0 before the first
        self._tried_at: float | None = None  # when the peer's kernel was given something to acknowledge in this silence
        self._measured_at = now
        self._ping_count = 0
        self._pinged_at = now
        self._ping = b""
        self._is_measuring = False

    def place(self, offset: int) -> None:
        """Note that the peer's sequence goes on here from `offset`."""
        self.reader.offset = self.reader.frame_start = offset
        self.is_placed = True

    @property
    def heard_at(self) -> float:
        """When the last byte came."""
        return self._heard_at

    def heard(self, now: float) -> bool:
        """Note that bytes came; tell whether they were no longer expected."""
        self._heard_at = now
        self._is_asked = False
        self._stall_pause = 0.0
        self._tried_at = None
        was_in_doubt = self.health is not Health.UP
        self.health = Health.UP
        return was_in_doubt

    # --- asking -------------------------------------------------------------------------------------------------------

    def ping(self, now: float) -> None:
        """Ask for a sign of life, and measure the round trip by it; one question is under way at most."""
        if not self._is_asked:
            self._is_asked, self._asked_at = True, now
        if not self._ping:
            self._ping_count += 1
            self._ping = self._ping_count.to_bytes(8, "big")
            self._pinged_at, self._is_measuring = now, True
            self.control.extend(encode(Ping(self._ping)))

    def on_ping(self, frame: Ping) -> None:
        """Answer.

        Raises:
            RemoteProtocolError: The peer asks and does not read the answers.
        """
        self.answer(Pong(frame.payload))

    def answer(self, frame: Pong | Resume) -> None:
        """Answer.

        Raises:
            RemoteProtocolError: The peer asks and does not read the answers.
        """
        if len(self.control) > _CONTROL_MAX_BYTES:
            raise RemoteProtocolError("it asks and does not read the answers")
        self.control.extend(encode(frame))

    def on_pong(self, frame: Pong, now: float) -> None:
        """Measure; an answer to another question than the last is none.

        Where the link was given up meanwhile, or its peer stood still, the time says nothing about the path: counted, it would
        make us wait as long before the next loss is seen.
        """
        if frame.payload != self._ping:
            return
        self._ping = b""
        self.round_trips += 1
        self._measured_at = now
        took = self.last_round_trip = now - self._pinged_at
        if not self._is_measuring:
            return
        self._fastest = took if self.rtt is None else min(took, self._fastest * (1 + _NEWEST))
        if self.rtt is None:
            self.rtt, self.rtt_deviation = took, took / 2
        else:
            self.rtt_deviation += _NEWEST * 2 * (abs(took - self.rtt) - self.rtt_deviation)
            self.rtt += _NEWEST * (took - self.rtt)
        if self.round_trips < _FIRST_ROUND_TRIPS:
            self.ping(now)

    # --- judging ------------------------------------------------------------------------------------------------------

    def next_deadline(self, pace: Pace) -> float:
        """Return when `handle_timer` wants to be called."""
        if not self._is_asked:
            return self._heard_at + self._ping_after(pace)
        if self.health is Health.UP:
            return max(self._asked_at + self._suspect_after(), self._judged_at + _LOOK_AGAIN)
        return math.inf if self.health is Health.DEAD else self._judged_at + _LOOK_AGAIN

    def handle_timer(self, now: float, pace: Pace, seconds_without_ack: float | None) -> Health:
        """Ask or judge, as is due; return what is thought of the link now.

        Args:
            now: Monotonic seconds.
            pace: How closely to watch.
            seconds_without_ack: How long ago the peer's kernel last acknowledged anything; 0 where nothing is under way to
                it, None where nobody can tell.
        """
        if not self._is_asked:
            if now >= min(self._heard_at + self._ping_after(pace), self._measured_at + max(pace.ping, _MEASURE_AGAIN)):
                self.ping(now)
            return self.health
        silence = now - self._asked_at
        self._judged_at = now
        if silence < self._suspect_after():
            return self.health
        if self._is_on_trial(now, seconds_without_ack):
            return self.health
        if seconds_without_ack == 0:
            self.health = Health.STALLED
            self._ask_again(now, pace)
        elif seconds_without_ack is not None and seconds_without_ack < min(silence / 2, self._suspect_after()):
            self.health = Health.UP  # what is under way is being acknowledged: the answer waits in a queue
        elif silence >= self._dead_after(pace):
            self.health = Health.DEAD
        else:
            self.health = Health.SUSPECT
        self._is_measuring &= self.health not in {Health.STALLED, Health.DEAD}
        return self.health

    def _is_on_trial(self, now: float, seconds_without_ack: float | None) -> bool:
        """Tell whether the peer's kernel has yet to show that it answers: what it acknowledged may be older than the silence.

        A cable is pulled behind the acknowledgement of our question, and before the answer.
        """
        if seconds_without_ack == 0 and self._tried_at is None:
            self._tried_at = now
            self.control.extend(encode(Ping(bytes(8))))
            return True
        grace = max(_LOOK_AGAIN, 2 * self._fastest)
        return bool(seconds_without_ack) and self._tried_at is not None and now - self._tried_at < grace

    def _ask_again(self, now: float, pace: Pace) -> None:
        """Give the kernel of a stalled peer something to acknowledge, ever more rarely; it is no witness for nothing."""
        pause = self._stall_pause or pace.dead
        if now - self._asked_at >= pause:
            self._stall_pause = min(2 * pause, _STALL_PAUSE_MAX)
            self._asked_at = now
            self.control.extend(encode(Ping(bytes(8))))  # whose answer is no measure

    def forgive(self, seconds: float) -> None:
        """Leave out `seconds` in which we ourselves stood still: what came meanwhile has not been read yet."""
        self._heard_at += seconds
        self._asked_at += seconds
        self._pinged_at += seconds

    def _ping_after(self, pace: Pace) -> float:
        return max(pace.ping, 2 * self._fastest)

    def _suspect_after(self) -> float:
        """Seconds of an unanswered question."""
        return max(SUSPECT_AFTER - PING_ACTIVE, _SUSPECT_ROUND_TRIPS * self._fastest)

    def _dead_after(self, pace: Pace) -> float:
        return max(pace.dead - pace.ping, _DEAD_ROUND_TRIPS * (self.rtt or 0))
