"""The rendezvous servers of a peer: their names become numbers, and the first that helps is used."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from p2ptunnel.errors import ConfigError, InvalidAddressError, PeerOfflineError, RendezvousTimeoutError, ResolveError
from p2ptunnel.net.interfaces import resolve
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address, format_address, parse_address

__all__ = ["Servers"]

T = TypeVar("T")


class Servers:
    """The servers in the order in which they are asked.

    Args:
        texts: Each `host:port`; a name is looked up each time that it is asked.
        default_port: Where a text has none.
        tracer: Told of servers that did not help.

    Raises:
        InvalidAddressError: A text is no address of a server.
    """

    def __init__(self, texts: Sequence[str], *, default_port: int, tracer: Tracer | None = None) -> None:
        self._addresses: Final = tuple(parse_address(text, default_port=default_port) for text in texts)
        self._trace: Final = tracer or Tracer()
        for text, (_, port) in zip(texts, self._addresses, strict=True):
            if not port:
                raise InvalidAddressError(text)

    @property
    def texts(self) -> tuple[str, ...]:
        """Each as `host:port`."""
        return tuple(map(format_address, self._addresses))

    async def first(self, use: Callable[[Address], Awaitable[T]]) -> T:
        """Return what `use` makes of the first server that is there and, for a call, knows the peer.

        Raises:
            ConfigError: There is no server.
            ResolveError: The last server's name has no address.
            P2PTunnelError: What `use` raises: at once, or RendezvousTimeoutError and PeerOfflineError of the last server.
        """
        if not self._addresses:
            hint = "Peer(rendezvous='host:7000'), --rendezvous host:7000 or P2PTUNNEL_RENDEZVOUS."
            raise ConfigError("no rendezvous server is given", hint)
        *others, last = self._addresses
        for address in others:
            try:
                return await use(await _numeric(address))
            except (RendezvousTimeoutError, PeerOfflineError, ResolveError) as error:
                self._trace("rendezvous", "next_server", server=format_address(address), reason=str(error))
        return await use(await _numeric(last))


async def _numeric(address: Address) -> Address:
    """Look the name up; IPv4 goes first, since two peers can only meet in one family, and every network has that one."""
    host, port = address
    try:
        return (await resolve(host, family=socket.AF_UNSPEC if ":" in host else socket.AF_INET), port)
    except ResolveError:
        if ":" in host:
            raise
        return (await resolve(host, family=socket.AF_INET6), port)
