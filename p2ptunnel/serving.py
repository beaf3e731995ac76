"""What this machine serves, to whom, and what happens when a peer opens it.

Rule: the spec that the access check found is the one that is connected to; nothing the peer sent is parsed a second time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Final, TypeAlias

import msgspec

from p2ptunnel.errors import ConfigError, P2PTunnelError, TargetRefusedError, UnknownPeerError
from p2ptunnel.identity.acl import AccessList
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.identity.store import PeerStore
from p2ptunnel.session.session import OpenRequest
from p2ptunnel.ssh.hostkeys import HostKeys
from p2ptunnel.ssh.knownhosts import host_keys_service
from p2ptunnel.trace import Tracer
from p2ptunnel.tunnels.spec import Handler, ServeSpec, Target, find_service, parse_name, service_for
from p2ptunnel.tunnels.target import open_target, serve_target
from p2ptunnel.types import Tag, clean
from p2ptunnel.wire.frames import ResetCode

__all__ = ["Allow", "ServiceTable", "Serving"]

Allow: TypeAlias = Iterable[Tag]
"""Tags of pinned peers that may open a service, beside those whom the store grants it."""


class _Service(msgspec.Struct, frozen=True):
    """One service: what peers ask for, either a target or a function, and who may open it beside those of the store."""

    spec: ServeSpec
    handler: Handler | None = None
    allowed: frozenset[PublicKey] = frozenset()


class ServiceTable:
    """The services of one peer: an access list for its sessions, and the handler of what they let through.

    Whoever leaves the store is let in no more, whatever was allowed in code.
    """

    def __init__(self, store: PeerStore, tracer: Tracer) -> None:
        self._store: Final = store
        self._access: Final = AccessList(store)
        self._host_keys: Final = HostKeys()
        self._services: dict[str, _Service] = {}
        self._trace = tracer

    @property
    def names(self) -> tuple[str, ...]:
        """What is served, in the order in which it was added."""
        return tuple(self._services)

    def add(self, services: Mapping[str, Target | ServeSpec], allow: Allow) -> None:
        """Serve each target under its name, to the peers whom the store grants the name and to `allow`; all or none.

        Raises:
            ConfigError: A name is taken.
            InvalidSpecError: A name or a target cannot be read.
            UnknownPeerError: A tag in `allow` is not pinned.
        """
        allowed = frozenset(self._key_of(tag) for tag in allow)
        added = {name: _as_service(name, target, allowed) for name, target in services.items()}
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
        stored = self._access.granted(key)
        is_pinned = key in self._access.admitted()
        return tuple(
            name for name, service in self._services.items() if name in stored or (is_pinned and key in service.allowed)
        )

    def may_open(self, key: PublicKey, service: str) -> bool:
        """Tell whether `key` may open `service`: a name, the `host:port` of a service, or the host keys of one."""
        return self._find(key, service) is not None

    def name_of(self, key: PublicKey) -> str:
        """Return the tag under which `key` is pinned."""
        return self._access.name_of(key)

    def _find(self, key: PublicKey, asked: str) -> _Service | None:
        granted = [self._services[name] for name in self.granted(key)]
        for service in granted:
            if service.spec.is_ssh and asked == host_keys_service(service.spec.name):
                tell = partial(self._host_keys.tell, target=service.spec.target)
                return _Service(ServeSpec(asked, service.spec.target), tell)
        spec = find_service((service.spec for service in granted), asked)
        return None if spec is None else self._services[spec.name]

    # --- opening ------------------------------------------------------------------------------------------------------

    async def handle(self, request: OpenRequest) -> None:
        """Serve one stream to its end; a target that refuses is told to the peer, other trouble is traced."""
        service = self._find(request.peer_key, request.service)
        peer = self.name_of(request.peer_key)
        if service is None:  # taken back since the check
            request.refuse(ResetCode.NOT_YOURS)
            return
        self._trace("serving", "stream_opened", peer=peer, service=clean(request.service))
        try:
            await self._serve(request, service)
        except (P2PTunnelError, OSError) as error:
            event, reason = "stream_broke", str(error)
            if isinstance(error, TargetRefusedError) and not request.is_decided:
                event, reason = "target_refused", error.reason
                request.refuse(ResetCode.TARGET_REFUSED, reason)
            self._trace("serving", event, peer=peer, service=service.spec.name, reason=reason)
        else:
            self._trace("serving", "stream_closed", peer=peer, service=service.spec.name)

    async def _serve(self, request: OpenRequest, service: _Service) -> None:
        if service.handler is not None:
            async with request.accept() as stream:
                await service.handler(stream)
            return
        sock = await open_target(service.spec)
        try:
            stream = request.accept()
        except BaseException:
            sock.close()
            raise
        await serve_target(stream, sock)

    def _key_of(self, tag: Tag) -> PublicKey:
        pinned = self._store.get(tag)
        if pinned is None:
            raise UnknownPeerError(clean(tag))
        return pinned.key


def _as_service(name: str, target: Target | ServeSpec, allowed: frozenset[PublicKey]) -> _Service:
    if isinstance(target, ServeSpec):
        return _Service(msgspec.structs.replace(target, name=parse_name(name)), None, allowed)
    if isinstance(target, int | str):
        return _Service(service_for(name, target), None, allowed)
    return _Service(ServeSpec(parse_name(name), "function"), target, allowed)


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
