"""What this machine serves, to whom, and what happens when a peer opens it.

Rule: the spec that the access check found is the one that is connected to; nothing the peer sent is parsed a second time.
"""

from __future__ import annotations

from collections.abc import Iterable
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
from p2ptunnel.tunnels.spec import Handler, ServeSpec, Target, find_service, service_for
from p2ptunnel.tunnels.target import open_target, serve_target
from p2ptunnel.types import Tag, clean
from p2ptunnel.wire.frames import ResetCode

__all__ = ["Allow", "ServiceTable", "Serving"]

Allow: TypeAlias = Iterable[Tag]
"""Tags of pinned peers that may open a service, beside those whom the store grants it."""


class _Service(msgspec.Struct, frozen=True):
    """One service: what peers ask for, and either a target or a function."""

    spec: ServeSpec
    handler: Handler | None = None


class ServiceTable:
    """The services of one peer: an access list for its sessions, and the handler of what they let through."""

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

    def add(self, name: str, target: Target | ServeSpec, allow: Allow) -> None:
        """Serve `target` as `name`, to the peers whom the store grants `name` and to `allow`.

        Raises:
            ConfigError: The name is taken.
            InvalidSpecError: Name or target cannot be read.
            UnknownPeerError: A tag in `allow` is not pinned; nothing has been added.
        """
        if name in self._services:
            raise ConfigError(f"{name!r} is served already", "Close the other Serving first, or choose another name.")
        keys = [self._key_of(tag) for tag in allow]
        self._services[name] = _as_service(name, target)
        for key in keys:
            self._access.allow(key, name)

    def remove(self, name: str) -> None:
        """Serve `name` no more; streams under way go on."""
        self._services.pop(name, None)
        for key in self._access.admitted():
            self._access.revoke(key, name)

    # --- the access list of sessions ----------------------------------------------------------------------------------

    def admitted(self) -> tuple[PublicKey, ...]:
        """Return the keys that may connect."""
        return self._access.admitted()

    def granted(self, key: PublicKey) -> tuple[str, ...]:
        """Return the services that are there and that `key` may open."""
        return tuple(name for name in self._access.granted(key) if name in self._services)

    def may_open(self, key: PublicKey, service: str) -> bool:
        """Tell whether `key` may open `service`: a name, the `host:port` of a service, or the host keys of one."""
        return self._find(key, service) is not None

    def name_of(self, key: PublicKey) -> str:
        """Return the tag under which `key` is pinned."""
        return self._access.name_of(key)

    def _find(self, key: PublicKey, asked: str) -> _Service | None:
        for name in self.granted(key):
            service = self._services[name]
            if service.spec.is_ssh and asked == host_keys_service(name):
                tell = partial(self._host_keys.tell, target=service.spec.target)
                return _Service(ServeSpec(asked, service.spec.target), tell)
        specs = [self._services[name].spec for name in self.granted(key)]
        spec = find_service(specs, asked)
        return None if spec is None else self._services[spec.name]

    # --- opening ------------------------------------------------------------------------------------------------------

    async def handle(self, request: OpenRequest) -> None:
        """Serve one stream to its end; a target that refuses is told to the peer, other trouble is traced."""
        service = self._find(request.peer_key, request.service)
        peer = self.name_of(request.peer_key)
        if service is None:  # taken back since the check
            request.refuse(ResetCode.NOT_YOURS, "")
            return
        self._trace("serving", "stream_opened", peer=peer, service=clean(request.service))
        try:
            await self._serve(request, service)
        except TargetRefusedError as error:
            request.refuse(ResetCode.TARGET_REFUSED, error.reason)
            self._trace("serving", "target_refused", peer=peer, service=service.spec.name, reason=error.reason)
        except (P2PTunnelError, OSError) as error:
            self._trace("serving", "stream_broke", peer=peer, service=service.spec.name, reason=str(error))
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
            raise UnknownPeerError(tag)
        return pinned.key


def _as_service(name: str, target: Target | ServeSpec) -> _Service:
    if isinstance(target, ServeSpec):
        return _Service(target)
    if isinstance(target, int | str):
        return _Service(service_for(name, target))
    return _Service(ServeSpec(name, "function"), target)


class Serving:
    """Services that are up until `close`."""

    def __init__(self, table: ServiceTable, services: tuple[str, ...]) -> None:
        self.services: Final = services
        self._table = table

    def __repr__(self) -> str:
        return f"<Serving {', '.join(self.services)}>"

    async def close(self) -> None:
        """Serve these no more; streams under way go on.  Closing twice is fine."""
        for name in self.services:
            self._table.remove(name)
