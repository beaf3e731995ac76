"""The rendezvous servers of a peer: their names become numbers, and the first that helps is used."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from msgspec.structs import replace

from p2ptunnel.defaults import FAMILY_HEAD_START
from p2ptunnel.errors import ConfigError, InvalidAddressError, PeerOfflineError, RendezvousTimeoutError, ResolveError
from p2ptunnel.net.interfaces import has_route, resolve, resolve_both
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.families import first_to_answer
from p2ptunnel.types import Address, ServerSpec, format_address, parse_server

__all__ = ["Servers"]

T = TypeVar("T")


class Servers:
    """The servers in the order in which they are asked.

    Args:
        servers: Each as `types.parse_server` reads it, or read already; a name is looked up each time that it is asked.
        default_port: Where a text has none.
        tracer: Told of servers that did not help.
        check: Raises where a numeric address is not to be spoken to; None: everywhere may be.

    Raises:
        InvalidAddressError: A text is no address of a server.

    Where a name has addresses of both families, the one is used over which the server answers; it stays so until the server is
    silent there.

    Attributes:
        specs: The servers.
    """

    def __init__(
        self,
        servers: Sequence[str | ServerSpec],
        *,
        default_port: int,
        tracer: Tracer | None = None,
        check: Callable[[Address], None] | None = None,
    ) -> None:
        self.specs: Final = tuple(
            parse_server(server, default_port=default_port) if isinstance(server, str) else server for server in servers
        )
        self._trace: Final = tracer or Tracer()
        self._check: Final = check
        self._chosen: dict[Address, tuple[list[Address], Address]] = {}
        for spec in self.specs:
            if not spec.address[1]:
                raise InvalidAddressError(format_address(spec.address))

    @property
    def texts(self) -> tuple[str, ...]:
        """Each as `host:port`."""
        return tuple(format_address(spec.address) for spec in self.specs)

    def has(self, address: Address) -> bool:
        """Tell whether a server at this address, as it was written, is among them."""
        return any(spec.address == address for spec in self.specs)

    def spec_at(self, address: Address) -> ServerSpec:
        """Return what we know of the server at an address, which may be nothing more."""
        return next((spec for spec in self.specs if spec.address == address), ServerSpec(address))

    async def first(self, use: Callable[[ServerSpec], Awaitable[T]]) -> T:
        """Return what `use` makes of the first server, its address numeric, that is there and, for a call, knows the peer.

        Raises:
            ConfigError: There is no server.
            ResolveError: The last server's name has no address.
            P2PTunnelError: What `use` raises: at once, or RendezvousTimeoutError and PeerOfflineError of the last server.
        """
        if not self.specs:
            hint = "Peer(rendezvous='host:7000'), --rendezvous host:7000 or P2PTUNNEL_RENDEZVOUS."
            raise ConfigError("no rendezvous server is given", hint)
        *others, last = self.specs
        for spec in others:
            try:
                return await self._use(spec, use)
            except (RendezvousTimeoutError, PeerOfflineError, ResolveError) as error:
                self._trace("rendezvous", "next_server", server=format_address(spec.address), reason=str(error))
        return await self._use(last, use)

    async def _use(self, spec: ServerSpec, use: Callable[[ServerSpec], Awaitable[T]]) -> T:
        try:
            return await use(await self.numeric(spec))
        except RendezvousTimeoutError:
            self._chosen.pop(spec.address, None)
            raise

    async def other_family(self, address: Address) -> Address | None:
        """Return where else the server at this numeric address is, in the other family; None: no name of ours has both."""
        theirs, ours = (socket.AF_INET, socket.AF_INET6) if ":" in address[0] else (socket.AF_INET6, socket.AF_INET)
        for spec in self.specs:
            host, port = spec.address
            with suppress(ResolveError):
                if port == address[1] and await resolve(host, family=ours) == address[0]:
                    return (await resolve(host, family=theirs), port)
        return None

    async def numeric(self, spec: ServerSpec) -> ServerSpec:
        """Return a server with its name looked up.

        Raises:
            ResolveError: It has no address.
            P2PTunnelError: It is not to be spoken to.
        """
        address = await self._looked_up(spec.address)
        if self._check is not None:
            self._check(address)
        return replace(spec, address=address, name=spec.name or spec.address[0])

    async def _looked_up(self, address: Address) -> Address:
        """Look the name up; of two families that there is a route for, choose."""
        host, port = address
        found = [(numeric, port) for numeric in (await resolve_both(host, grace=FAMILY_HEAD_START)).values()]
        usable = [each for each in found if has_route(each[0])]
        if len(found) == 1 or len(usable) < 2:
            return usable[0] if usable else found[0]
        known, chosen = self._chosen.get(address, ([], found[0]))
        if known != found:
            chosen = await first_to_answer(found)
            self._chosen[address] = found, chosen
        return chosen
