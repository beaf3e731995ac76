"""What happens to connections, as values for whoever uses a peer: past tense, frozen, plain.

Rule: nothing here waits for a listener; one that is slow loses the oldest events, and is told how many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from time import monotonic
from time import time as wall_time
from typing import Any, Final

import msgspec

from p2ptunnel.types import Path, Tag

__all__ = [
    "ChannelLost",
    "ChannelOpened",
    "EventHub",
    "EventsDropped",
    "PathChanged",
    "PathSuspected",
    "PeerEvent",
    "SessionExpired",
    "SessionResumed",
    "SessionStalled",
]


class PeerEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Root of all events.

    Attributes:
        tag: The peer's name here.
        session: Which session with it, by a number of this process: a peer that runs two programs has two.
        time: Seconds since 1970, for people.
        at: Monotonic seconds, for arithmetic.
    """

    tag: Tag
    session: int = 0
    time: float = msgspec.field(default_factory=wall_time)
    at: float = msgspec.field(default_factory=monotonic)


class ChannelOpened(PeerEvent, frozen=True, kw_only=True):
    """A channel to the peer came up."""

    path: Path


class PathSuspected(PeerEvent, frozen=True, kw_only=True):
    """The path has been silent for longer than it should: another one is looked for."""


class ChannelLost(PeerEvent, frozen=True, kw_only=True):
    """The channel that carried the session is gone or dead; streams wait for the next one, `patience` seconds at most."""

    cause: str
    patience: float = 0.0


class PathChanged(PeerEvent, frozen=True, kw_only=True):
    """The session moved to another path."""

    old: Path
    new: Path


class SessionResumed(PeerEvent, frozen=True, kw_only=True):
    """Bytes flow again after `gap` seconds in which they did not; `replayed_bytes` had to be sent again."""

    gap: float
    replayed_bytes: int


class SessionStalled(PeerEvent, frozen=True, kw_only=True):
    """The peer's machine answers and its program does not: it is waited for."""


class SessionExpired(PeerEvent, frozen=True, kw_only=True):
    """No new channel came in time, or the peer had forgotten the session: every stream ended with an error."""

    gap: float
    unacknowledged_bytes: int
    cause: str = ""


class EventsDropped(msgspec.Struct, frozen=True):
    """`count` events were lost here, because they were not read in time."""

    count: int


class EventHub:
    """Hands each event to everybody who listens at that moment."""

    def __init__(self) -> None:
        self._listeners: Final[set[_Listener]] = set()
        self._is_closed = False

    def __call__(self, event: PeerEvent) -> None:
        """Tell everybody who listens."""
        for listener in self._listeners:
            listener.put(event)

    def listen(self, *kinds: type[PeerEvent], buffer: int = 1000) -> AsyncIterator[Any]:
        """Return the events from now on, of these kinds or of all; the iterator ends with the peer.

        Args:
            kinds: None for all.
            buffer: How many wait to be read before the oldest are dropped; EventsDropped then tells.
        """
        listener = _Listener(kinds or (PeerEvent,), buffer, self._listeners)
        if self._is_closed:
            listener.close()
        return listener

    def close(self) -> None:
        """End every iterator, behind what waits in it."""
        self._is_closed = True
        for listener in tuple(self._listeners):
            listener.close()


class _Listener(AsyncIterator[Any]):
    def __init__(self, kinds: tuple[type[PeerEvent], ...], buffer: int, among: set[_Listener]) -> None:
        self._kinds = kinds
        self._waiting: deque[PeerEvent] = deque(maxlen=buffer)
        self._dropped = 0
        self._among = among
        self._arrived = asyncio.Event()
        self._is_closed = False
        among.add(self)

    def put(self, event: PeerEvent) -> None:
        if isinstance(event, self._kinds):
            self._dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(event)
            self._arrived.set()

    def close(self) -> None:
        self._is_closed = True
        self._among.discard(self)
        self._arrived.set()

    async def __anext__(self) -> PeerEvent | EventsDropped:
        while not self._waiting:
            if self._is_closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            return EventsDropped(dropped)
        return self._waiting.popleft()

    async def aclose(self) -> None:
        """Listen no more."""
        self.close()
