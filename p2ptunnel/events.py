"""What happens to connections, as values for whoever uses a peer: past tense, frozen, plain.

Rule: nothing here waits for a listener; one that is slow loses the oldest events, and is told how many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from time import monotonic
from time import time as wall_time
from types import TracebackType
from typing import Final, Self
from weakref import WeakSet

import msgspec

from p2ptunnel.types import Path, Tag

__all__ = [
    "AccessDecided",
    "AccessRequested",
    "ApprovalAwaited",
    "ChannelLost",
    "ChannelOpened",
    "EventHub",
    "Events",
    "EventsDropped",
    "Paired",
    "PairingFailed",
    "PathChanged",
    "PathSuspected",
    "PeerEvent",
    "ServerFound",
    "ServerLost",
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
    """The connection takes what is sent, and the peer's program does not answer: it is waited for.

    Who takes it is the peer's machine, or a box on the way that speaks TCP in its place; over the relay nobody can tell, and
    this is not told.
    """


class SessionExpired(PeerEvent, frozen=True, kw_only=True):
    """No new channel came in time, or the peer had forgotten the session: every stream ended with an error."""

    gap: float
    unacknowledged_bytes: int
    cause: str = ""


class AccessRequested(PeerEvent, frozen=True, kw_only=True):
    """The peer asks for a service that it is not granted, and the owner of this machine is asked; `id` names the question."""

    id: int
    key: str
    service: str
    path: Path


class AccessDecided(PeerEvent, frozen=True, kw_only=True):
    """A question was answered: `decision` is once, hour, always or no, and `by` is owner or timeout."""

    id: int
    service: str
    decision: str
    by: str


class ApprovalAwaited(PeerEvent, frozen=True, kw_only=True):
    """We have asked the peer for a service, and its owner is asked; an answer may take `patience` seconds."""

    service: str
    patience: float


class Paired(PeerEvent, frozen=True, kw_only=True):
    """A machine has proved that it was invited, or that it has invited us: its `key` is pinned.

    It may open `services` here, and we what it has `offered` there; a guest is not asked for any.  Until now it was known here
    as `known_as`; empty: it was not.
    """

    key: str
    services: tuple[str, ...] = ()
    offered: tuple[str, ...] = ()
    known_as: Tag = ""


class PairingFailed(PeerEvent, frozen=True, kw_only=True):
    """Somebody at the address `source` wanted to pair, and could not; the tag is empty, since nobody knows who it was."""

    source: str
    reason: str


class ServerLost(PeerEvent, frozen=True, kw_only=True):
    """Nobody finds us under our own tag, `tag`, any more: the rendezvous server `server` is silent or has refused us."""

    server: str
    cause: str


class ServerFound(PeerEvent, frozen=True, kw_only=True):
    """We are found under our own tag, `tag`, again."""

    server: str


class EventsDropped(msgspec.Struct, frozen=True):
    """`count` events were lost here, because they were not read in time."""

    count: int


class EventHub:
    """Hands each event to everybody who listens at that moment."""

    def __init__(self) -> None:
        self._listeners: Final[WeakSet[Events]] = WeakSet()  # a loop that was left by `break` listens no more
        self._awaited: Final[set[Events]] = set()  # in use: the task that waits there may be known to nobody else
        self._is_closed = False

    def __call__(self, event: PeerEvent) -> None:
        """Tell everybody who listens; never raises, since whoever tells has work to do."""
        for listener in tuple(self._listeners):
            listener.put(event)

    def listen(self, *kinds: type[PeerEvent], buffer: int = 1000) -> Events:
        """Return the events from now on, of these kinds or of all; see `Events`.

        Raises:
            TypeError: A kind is no class of events.
            ValueError: `buffer` is below 1.
        """
        listener = Events(kinds or (PeerEvent,), buffer, self._listeners, self._awaited)
        if self._is_closed:
            listener.close()
        return listener

    def close(self) -> None:
        """End every iterator, behind what waits in it."""
        self._is_closed = True
        for listener in tuple(self._listeners):
            listener.close()


class Events(AsyncIterator[PeerEvent | EventsDropped]):
    """What happens from now on: an iterator that ends with the peer, or with `aclose`, which `async with` calls.

    Closing is polite and not needed: whoever keeps no reference listens no more.

    Args:
        kinds: Which events.
        buffer: How many wait to be read, 1 at least, before the oldest are dropped; an EventsDropped then tells.
        listeners: Those who are told; it is one of them until it is closed.
        awaited: Those in which a task waits; it is one of them as long as one does.
    """

    def __init__(
        self, kinds: tuple[type[PeerEvent], ...], buffer: int, listeners: WeakSet[Events], awaited: set[Events]
    ) -> None:
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, PeerEvent)):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"{kind!r} is no kind of event")
        if buffer < 1:
            raise ValueError(f"a buffer of {buffer} events holds none")
        self._kinds: Final = kinds
        self._waiting: Final[deque[PeerEvent]] = deque(maxlen=buffer)
        self._dropped = 0
        self._listeners: Final = listeners
        self._awaited: Final = awaited
        self._arrived: Final = asyncio.Event()
        self._is_closed = False
        listeners.add(self)

    def put(self, event: PeerEvent) -> None:
        """Keep an event, if it is of a kind that was asked for."""
        if isinstance(event, self._kinds):
            self._dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(event)
            self._wake()

    def close(self) -> None:
        """Listen no more; what waits can still be read."""
        self._is_closed = True
        self._listeners.discard(self)
        self._wake()

    async def aclose(self) -> None:
        """Listen no more; what waits can still be read.  Closing twice is fine."""
        self.close()

    async def wait_for(self, is_wanted: Callable[[PeerEvent | EventsDropped], bool]) -> None:
        """Wait for an event that is wanted, or for the end of the peer; those before it are lost."""
        async for event in self:
            if is_wanted(event):
                return

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __anext__(self) -> PeerEvent | EventsDropped:
        while not self._waiting:
            if self._is_closed:
                raise StopAsyncIteration
            await self._wait()
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            return EventsDropped(dropped)
        return self._waiting.popleft()

    async def _wait(self) -> None:
        self._arrived.clear()
        self._awaited.add(self)
        try:
            await self._arrived.wait()
        finally:
            self._awaited.discard(self)

    def _wake(self) -> None:
        try:
            self._arrived.set()
        except RuntimeError:  # the loop in which somebody waited was closed: nobody will read here any more
            self._listeners.discard(self)
            self._awaited.discard(self)
