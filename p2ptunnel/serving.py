"""What this machine serves, to whom, and what happens when a peer opens it.

Rule: the spec that the access check found is the one that is connected to; nothing the peer sent is parsed a second time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Final, TypeAlias

import msgspec

from p2ptunnel.asking import Answer, Approvals, AskCallback
from p2ptunnel.defaults import ASK_GRANT, CLOCK_MIN, STREAMS_OF_SERVICE_MAX
from p2ptunnel.errors import (
    AccessDeniedError,
    ConfigError,
    LookupsBusyError,
    NoSuchPeerError,
    P2PTunnelError,
    StoreError,
    TargetRefusedError,
)
from p2ptunnel.events import PeerEvent
from p2ptunnel.identity.acl import AccessList
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.identity.store import PeerStore, PinnedPeer
from p2ptunnel.net.threads import in_thread
from p2ptunnel.session.quota import StreamQuota
from p2ptunnel.session.session import OpenRequest
from p2ptunnel.ssh.hostkeys import HostKeys
from p2ptunnel.ssh.knownhosts import host_keys_service
from p2ptunnel.trace import Tracer
from p2ptunnel.tunnels.spec import Handler, ServeSpec, Target, find_destination, find_service, parse_name, service_for
from p2ptunnel.tunnels.target import open_destination, open_target, serve_target
from p2ptunnel.types import Address, Tag, clean
from p2ptunnel.wire.frames import ResetCode

__all__ = ["Allow", "ServiceTable", "Serving"]

Allow: TypeAlias = Iterable[Tag]
"""Tags of pinned peers that may open a service, beside those whom the store grants it."""


class _Service(msgspec.Struct, frozen=True):
    """One service: what peers ask for, either a target or a function, and who may open it beside those of the store.

    Attributes:
        spec: Its name, and what it stands for.
        handler: Instead of a target.
        allowed: Who may open it, as long as they are pinned: their keys, and since when each is.
        until: When that ends, in seconds since 1970.
        ask: Asks the owner about every other pinned peer.
        most: Streams of one peer.
    """

    spec: ServeSpec
    handler: Handler | None = None
    allowed: frozenset[tuple[PublicKey, float]] = frozenset()
    until: float | None = None
    ask: AskCallback | None = None
    most: int = STREAMS_OF_SERVICE_MAX

    def allows(self, peer: PinnedPeer, now: float) -> bool:
        """Tell whether it was allowed in code to a peer, who is the same still, and is at a time in seconds since 1970."""
        return (peer.key, peer.since) in self.allowed and (self.until is None or CLOCK_MIN <= now < self.until)


class _Found(msgspec.Struct, frozen=True):
    """What a peer means by what it asks for.

    Attributes:
        service: That it belongs to.
        destination: Which one of those that the service reaches.
        must_ask: Whether the owner is asked first.
        is_host_keys: It is the host keys of the service, which are told to whoever may have the owner asked as well.
    """

    service: _Service
    destination: Address | None = None
    must_ask: bool = False
    is_host_keys: bool = False

    @property
    def name(self) -> str:
        return self.service.spec.name


class ServiceTable:
    """The services of one peer: an access list for its sessions, and the handler of what they let through.

    Whoever leaves the store is let in no more, whatever was allowed in code.

    Args:
        store: The pinned peers, and what they are granted.
        tracer: Told what happens.
        tell: Gets the events of questions to the owner.
        clock: Seconds since 1970, by which grants end.
        issuer: Our own key, whose tickets peers may show.

    Attributes:
        own_listeners: Returns where this peer itself listens: no destination that peers choose may be there.
    """

    def __init__(
        self,
        store: PeerStore,
        tracer: Tracer,
        tell: Callable[[PeerEvent], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
        issuer: PublicKey | None = None,
    ) -> None:
        self.own_listeners: Callable[[], Collection[Address]] = tuple
        self._store: Final = store
        self._clock: Final = clock
        self._access: Final = AccessList(store, clock, issuer)
        self._approvals: Final = Approvals(tell, tracer)
        self._quota: Final = StreamQuota()
        self._host_keys: Final = HostKeys()
        self._services: dict[str, _Service] = {}
        self._trace = tracer

    @property
    def names(self) -> tuple[str, ...]:
        """What is served, in the order in which it was added."""
        return tuple(self._services)

    def add(
        self,
        services: Mapping[str, Target | ServeSpec],
        allow: Allow,
        *,
        until: float | None = None,
        ask: AskCallback | None = None,
        most: int = STREAMS_OF_SERVICE_MAX,
    ) -> None:
        """Serve each target under its name, to the peers whom the store grants the name and to `allow`; all or none.

        Args:
            services: By their names.
            allow: Tags of pinned peers.
            until: When `allow` ends, in seconds since 1970; None: with the service.
            ask: Asks the owner about every other pinned peer; None: they are refused.
            most: Streams of one peer to each service.

        Raises:
            ConfigError: A name is taken.
            InvalidSpecError: A name or a target cannot be read.
            NoSuchPeerError: A tag in `allow` is not pinned; an UnknownPeerError as well.
        """
        about = _Service(ServeSpec("", ""), None, frozenset(self._pin_of(tag) for tag in allow), until, ask, most)
        added = {name: _as_service(name, target, about) for name, target in services.items()}
        for name in added:
            if name in self._services:
                raise ConfigError(f"{name!r} is served already", "Close the other Serving first, or choose another name.")
        self._services.update(added)

    def remove(self, names: Iterable[str]) -> None:
        """Serve these no more; streams under way go on."""
        for name in names:
            self._services.pop(name, None)

    # --- the access list of sessions ----------------------------------------------------------------------------------

    def admitted(self) -> tuple[PublicKey, ...]:
        """Return the keys that may connect."""
        return self._access.admitted()

    def granted(self, key: PublicKey) -> tuple[str, ...]:
        """Return the services that are there and that `key` may open."""
        return tuple(service.spec.name for service in self._granted(key))

    def may_ask(self, key: PublicKey) -> bool:
        """Count that `key` asks for a stream; tell whether it does not ask too often."""
        return self._quota.may_ask(key)

    def may_open(self, key: PublicKey, service: str) -> bool:
        """Tell whether `key` may open `service`, or at least have the owner asked.

        That is a name, the `host:port` of a service or of what one reaches, or the host keys of one.
        """
        return self._find(key, service) is not None

    def name_of(self, key: PublicKey) -> str:
        """Return the tag under which `key` is pinned."""
        return self._access.name_of(key)

    def show(self, key: PublicKey, ticket: bytes) -> None:
        """Take what the holder of `key` shows as a ticket of ours."""
        self._access.show(key, ticket)

    def _granted(self, key: PublicKey) -> list[_Service]:
        return [service for name, service in self._services.items() if self._is_granted(key, name, service)]

    def _is_granted(self, key: PublicKey, name: str, service: _Service) -> bool:
        """Tell whether a service, which need not be served any more, is granted to `key` now."""
        peer = self._store.by_key(key)
        is_allowed = peer is not None and service.allows(peer, self._clock())
        return is_allowed or self._access.may_open(key, name)

    def _find(self, key: PublicKey, asked: str) -> _Found | None:
        """Return what `key` means by `asked`.  What is not there and what is not its own take the same way through here."""
        granted = self._granted(key)
        to_ask = [service for service in self._services.values() if service.ask is not None and service not in granted]
        if to_ask and key not in self._access.admitted():
            to_ask = []
        for service in (*granted, *to_ask):
            if service.spec.is_ssh and asked == host_keys_service(service.spec.name):
                tell = partial(self._host_keys.tell, target=service.spec.target)
                return _Found(msgspec.structs.replace(service, handler=tell), is_host_keys=True)
        return self._among(granted, asked) or self._among(to_ask, asked, must_ask=True)

    def _among(self, services: list[_Service], asked: str, *, must_ask: bool = False) -> _Found | None:
        specs = [service.spec for service in services]
        if spec := find_service(specs, asked):
            return _Found(self._services[spec.name], None, must_ask)
        if found := find_destination(specs, asked):
            return _Found(self._services[found[0].name], found[1], must_ask)
        return None

    # --- opening ------------------------------------------------------------------------------------------------------

    async def handle(self, request: OpenRequest) -> None:
        """Serve one stream to its end; a target that refuses is told to the peer, other trouble is traced."""
        key, found = request.peer_key, self._find(request.peer_key, request.service)
        if found is None:  # taken back since the check
            request.refuse(ResetCode.NOT_YOURS)
            return
        if reason := self._quota.enter(key, found.name, found.service.most):
            self._trace("serving", "over_quota", peer=self.name_of(key), service=found.name, reason=reason)
            request.refuse(ResetCode.BUSY, reason)
            return
        try:
            if not found.is_host_keys:
                request.hold_while(partial(self._is_granted, key, found.name, found.service))
            if not found.must_ask or await self._is_approved(request, found):
                await self._serve_told(request, found)
        finally:
            self._quota.leave(key, found.name)

    async def _is_approved(self, request: OpenRequest, found: _Found) -> bool:
        """Ask the owner; remember what was said for longer than this stream, or refuse it."""
        key = request.peer_key
        request.hold_while(lambda: key in self._access.admitted())
        asked = found.name if found.destination is None else f"{found.name} ({clean(request.service)})"
        assert found.service.ask is not None
        answer = await self._approvals.ask(
            key, self.name_of(key), asked, request.session.path, found.service.ask, request.wait, grants=found.name
        )
        if answer.decision == "no":
            code, reason = _REFUSALS.get(answer.by, (ResetCode.NOT_YOURS, ""))
            request.fail(code, reason)
            return False
        await self._remember(request, found, answer)
        return True

    async def _remember(self, request: OpenRequest, found: _Found, answer: Answer) -> None:
        pinned, key = self._store.by_key(request.peer_key), request.peer_key
        if pinned is None:
            return
        now = self._clock()
        if answer.decision == "once" or (answer.decision == "hour" and now < CLOCK_MIN):  # by such a clock no end would hold
            with contextlib.suppress(StoreError):  # what cannot be noted cannot be denied, and ends with the stream
                await in_thread(self._store.note_once, pinned.tag, found.name, now)
                request.hold_while(partial(self._is_noted, key, found.name))
            return
        until = None if answer.decision == "always" else now + ASK_GRANT
        await in_thread(self._store.allow, pinned.tag, found.name, until=until)
        request.hold_while(partial(self._is_granted, key, found.name, found.service))

    def _is_noted(self, key: PublicKey, name: str) -> bool:
        """Tell whether the store has a grant of `name` to a pinned peer, be it one that has ended."""
        peer = self._store.by_key(key)
        return peer is not None and name in peer.services

    async def _serve_told(self, request: OpenRequest, found: _Found) -> None:
        peer = self.name_of(request.peer_key)
        self._trace("serving", "stream_opened", peer=peer, service=clean(request.service), served=found.name)
        try:
            await self._serve(request, found)
        except (P2PTunnelError, OSError) as error:
            event, reason = "stream_broke", str(error)
            if isinstance(error, TargetRefusedError) and not request.is_decided:
                event, reason = "target_refused", error.reason
                request.refuse(ResetCode.TARGET_REFUSED, reason)
            elif isinstance(error, AccessDeniedError) and not request.is_decided:
                event, reason = "target_denied", clean(request.service)
                request.refuse(ResetCode.NOT_YOURS)
            elif isinstance(error, LookupsBusyError) and not request.is_decided:
                event = "over_quota"
                request.refuse(ResetCode.BUSY, reason)
            self._trace("serving", event, peer=peer, service=found.name, reason=reason)
        else:
            self._trace("serving", "stream_closed", peer=peer, service=found.name)

    async def _serve(self, request: OpenRequest, found: _Found) -> None:
        if found.service.handler is not None:
            async with request.accept() as stream:
                await found.service.handler(stream)
            return
        if found.destination is None:
            sock = await open_target(found.service.spec, asker=request.peer_key)
        else:
            sock = await open_destination(found.service.spec, found.destination, self.own_listeners(), asker=request.peer_key)
        try:
            stream = request.accept()
        except BaseException:
            sock.close()
            raise
        await serve_target(stream, sock)

    def _pin_of(self, tag: Tag) -> tuple[PublicKey, float]:
        pinned = self._store.get(tag)
        if pinned is None:
            raise NoSuchPeerError(clean(tag))
        return pinned.key, pinned.since


def _as_service(name: str, target: Target | ServeSpec, about: _Service) -> _Service:
    """Return the service for a target; all else is as in `about`."""
    if isinstance(target, ServeSpec):
        return msgspec.structs.replace(about, spec=msgspec.structs.replace(target, name=parse_name(name)))
    if isinstance(target, int | str):
        return msgspec.structs.replace(about, spec=service_for(name, target))
    return msgspec.structs.replace(about, spec=ServeSpec(parse_name(name), "function"), handler=target)


_REFUSALS: Final[dict[str, tuple[ResetCode, str]]] = {
    "timeout": (ResetCode.UNANSWERED, ""),
    "busy": (ResetCode.BUSY, "its owner is asked about something else"),
}
"""What a peer is told when it was not the owner who refused it; what else it is told is the same as if nothing were there."""


class Serving:
    """Services that are up until `close`.

    Attributes:
        services: Their names.
    """

    def __init__(self, table: ServiceTable, services: tuple[str, ...], leave: Callable[[], Awaitable[None]]) -> None:
        self.services: Final = services
        self._table = table
        self._leave = leave
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Serving {', '.join(self.services)}>"

    async def close(self) -> None:
        """Serve these no more; streams under way go on.  With the last service the registration ends.  Twice is fine."""
        if not self._is_closed:
            self._is_closed = True
            self._table.remove(self.services)
            await self._leave()
