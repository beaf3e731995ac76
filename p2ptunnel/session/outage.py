"""Since when nothing flows in a session, and why.  Rule: it knows no channel; who drives it tells what happens to them."""

from __future__ import annotations

from p2ptunnel.defaults import REMIND_EVERY, REMIND_RARELY

__all__ = ["Outage"]


class Outage:
    """The outage of one session, if there is one: no channel carries it, or the peer's program does not answer.

    Attributes:
        cause: Why no channel carries what we send, or did not when that was so last.
    """

    def __init__(self) -> None:
        self.cause = ""
        self._suspended_at: float | None = None  # since when no channel carries what we send
        self._stalled_at: float | None = None  # since when the peer's program has not answered
        self._reminded_at, self._remind_pause = 0.0, REMIND_EVERY

    @property
    def is_suspended(self) -> bool:
        """Whether no channel carries what we send."""
        return self._suspended_at is not None

    @property
    def is_stalled(self) -> bool:
        """Whether a channel does, and the peer's program does not answer."""
        return self._stalled_at is not None

    def suspended_for(self, now: float) -> float | None:
        """Return for how many seconds no channel has carried what we send; None while one does."""
        return None if self._suspended_at is None else now - self._suspended_at

    def suspend(self, cause: str, now: float) -> bool:
        """No channel carries what we send; tell whether that is new."""
        if self._suspended_at is not None:
            return False
        self._suspended_at, self._stalled_at, self.cause = now, None, cause
        self._reminded_at, self._remind_pause = now, REMIND_EVERY
        return True

    def stall(self, now: float) -> bool:
        """The peer's program does not answer; tell whether that is new."""
        if self._stalled_at is not None:
            return False
        self._stalled_at = now
        return True

    def end(self, now: float) -> float | None:
        """Bytes flow; return for how many seconds they did not, or None if they did."""
        since = self._stalled_at or self._suspended_at
        self._stalled_at = self._suspended_at = None
        return None if since is None else now - since

    def is_reminder_due(self, now: float) -> bool:
        """Tell whether a suspension is to be told of again, and count that it is: ever more rarely."""
        if self._suspended_at is None or now - self._reminded_at < self._remind_pause:
            return False
        self._reminded_at, self._remind_pause = now, min(2 * self._remind_pause, REMIND_RARELY)
        return True
