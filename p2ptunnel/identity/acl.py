"""Who may open what.  Rule: what is not granted is denied; a grant names a key and a service, never a tag or an address."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from p2ptunnel.defaults import CAPABILITIES_MAX
from p2ptunnel.errors import InvalidCodeError, StoreError
from p2ptunnel.identity.capability import Capability
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.identity.store import PeerStore, PinnedPeer

__all__ = ["Access", "AccessList"]


class Access(Protocol):
    """What a session asks before it lets anybody do anything."""

    def admitted(self) -> tuple[PublicKey, ...]:
        """Return the keys that may connect."""
        ...

    def granted(self, key: PublicKey) -> tuple[str, ...]:
        """Return the services that `key` may open."""
        ...

    def may_ask(self, key: PublicKey) -> bool:
        """Count that `key` asks for a stream; tell whether it does not ask too often."""
        ...

    def may_open(self, key: PublicKey, service: str) -> bool:
        """Tell whether `key` may open `service`."""
        ...

    def name_of(self, key: PublicKey) -> str:
        """Return what to call the holder of `key`."""
        ...

    def show(self, key: PublicKey, ticket: bytes) -> None:
        """Take what the holder of `key` shows as a ticket of ours; what is none changes nothing."""
        ...


_Pin: TypeAlias = tuple[PublicKey, float]
"""A key, and since when it is pinned: who was forgotten and is pinned anew has shown nothing yet."""


def _pin(key: PublicKey, peer: PinnedPeer | None) -> _Pin:
    return (key, peer.since if peer else 0.0)


class AccessList:
    """The grants of a peer store, as they are on disk now, and those given in code.

    Args:
        store: None: only what code grants.
        clock: Seconds since 1970, by which grants end.
        issuer: Our own key: what it has signed counts when it is shown; None: nothing does.

    All methods but `allow`, `revoke` and `show` raise StoreError when the store cannot be read: nobody is let in by a guess.
    """

    def __init__(
        self,
        store: PeerStore | None = None,
        clock: Callable[[], float] = time.time,
        issuer: PublicKey | None = None,
    ) -> None:
        self._store: Final = store
        self._issuer: Final = issuer
        self._shown: Final[dict[_Pin, tuple[Capability, ...]]] = {}  # of admitted peers, who are few
        self._clock: Final = clock
        self._grants: Final[dict[PublicKey, dict[str, None]]] = {}  # a dict keeps the order in which services were granted

    def allow(self, key: PublicKey, *services: str) -> None:
        """Admit `key`, and let it open these services; without services it may connect and open nothing."""
        self._grants.setdefault(key, {}).update(dict.fromkeys(services))

    def revoke(self, key: PublicKey, *services: str) -> None:
        """Take back what `allow` gave: these services, or without services everything; the store's grants stay."""
        if not services:
            self._grants.pop(key, None)
        for service in services:
            self._grants.get(key, {}).pop(service, None)

    def granted(self, key: PublicKey) -> tuple[str, ...]:
        """Return the services that `key` may open, each once."""
        now, peer = self._clock(), self._peer(key)
        pinned = peer.granted(now) if peer else ()
        tickets = self._shown.get(_pin(key, peer), ()) if peer or key in self._grants else ()
        from_tickets = (service for ticket in tickets if self._counts(ticket, now) for service in ticket.services)
        return tuple(dict.fromkeys((*pinned, *self._grants.get(key, ()), *from_tickets)))

    def may_ask(self, key: PublicKey) -> bool:
        """Allow it: a list counts nothing."""
        return True

    def may_open(self, key: PublicKey, service: str) -> bool:
        """Tell whether `key` may open `service`."""
        return service in self.granted(key)

    def admitted(self) -> tuple[PublicKey, ...]:
        """Return the keys that may connect, sorted: every pinned peer, and those admitted in code."""
        return tuple(sorted({*(peer.key for peer in self._pinned()), *self._grants}))

    def name_of(self, key: PublicKey) -> str:
        """Return the tag under which `key` is pinned, or the first characters of the key."""
        peer = self._peer(key)
        return peer.tag if peer else key.short

    def show(self, key: PublicKey, ticket: bytes) -> None:
        """Take what the holder of `key` shows as a ticket of ours; what is none, or another's, changes nothing."""
        try:
            shown = Capability.from_bytes(ticket)
        except InvalidCodeError:
            return
        if shown.issuer == self._issuer and shown.holder in {None, key} and shown.is_genuine:
            try:
                pin = _pin(key, self._peer(key))
            except StoreError:  # while the list cannot be read nothing is opened anyway
                return
            others = (known for known in self._shown.get(pin, ()) if known.id != shown.id)
            self._shown[pin] = (*others, shown)[-CAPABILITIES_MAX:]

    def _counts(self, ticket: Capability, now: float) -> bool:
        return ticket.holds(now) and not (self._store and self._store.is_revoked(ticket.name))

    def _peer(self, key: PublicKey) -> PinnedPeer | None:
        return self._store.by_key(key) if self._store else None

    def _pinned(self) -> tuple[PinnedPeer, ...]:
        return self._store.all() if self._store else ()
