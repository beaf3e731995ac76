"""A relay alone: for calls that a rendezvous server on another machine has introduced, and has signed for.

As a program: `p2ptunnel relay`.  It serves TCP only, and knows nobody beforehand: a grant names the two keys of a call.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

import msgspec

from p2ptunnel.defaults import RELAY_CIRCUITS_OF_KEY, RELAY_QUOTA_BYTES, RENDEZVOUS_PORT
from p2ptunnel.errors import ConfigError, LocalProtocolError
from p2ptunnel.identity.grant import Grants
from p2ptunnel.identity.judge import Judge
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.protocol.relay import Circuit, Relay
from p2ptunnel.server.control import ControlConnections
from p2ptunnel.server.listening import BACKLOG, families_refusal, listen_at
from p2ptunnel.server.relay import RelayDriver
from p2ptunnel.server.rendezvous import RelayStats, relay_stats
from p2ptunnel.server.web import Web, WebFront
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import MalformedMessageError, RelayJoin, decode, encode

__all__ = ["RelayServer", "RelayServerStats"]


class RelayServerStats(msgspec.Struct, frozen=True):
    """How a relay stands; counts are since it was made.

    Attributes:
        connections: TCP connections that are not ends of circuits.
        dropped: What was not taken and who was cut off, by reason.
        relay: Its circuits.
    """

    connections: int
    dropped: dict[str, int]
    relay: RelayStats


class RelayServer:
    """A relay, up between `start` and `close`.

    Args:
        servers: The public keys, as text, of the rendezvous servers that it relays for.
        listen: Where it serves, TCP; the host is numeric, port 0 picks one.
        listen_also: The same over the other family; with the port 0, on the same one.  None: nowhere.
        identity: Its own key, which each end of a circuit signs for.
        quota_bytes: What one key may have carried in a day.
        circuits: Of one key at a time.
        web: Where it serves inside TLS as well; None: nowhere.
        tracer: Told of circuits.

    Raises:
        ConfigError: There is no server, or it could carry nothing, or `listen_also` is of the family of `listen`.
        InvalidKeyError: A server's key is none.
    """

    def __init__(
        self,
        servers: Sequence[str],
        *,
        identity: Identity,
        listen: Address = ("127.0.0.1", RENDEZVOUS_PORT),
        listen_also: Address | None = None,
        quota_bytes: int = RELAY_QUOTA_BYTES,
        circuits: int = RELAY_CIRCUITS_OF_KEY,
        web: Web | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        if not servers:
            raise ConfigError("a relay for no rendezvous server", "--server p2p:KEY: what stands behind the # of its line.")
        if min(quota_bytes, circuits) < 1:
            raise ConfigError("a relay that may carry nothing is none", "Allow at least one circuit and one byte.")
        self._listen: Final = (listen,) if listen_also is None else (listen, listen_also)
        if refusal := families_refusal(self._listen):
            raise ConfigError(refusal, "One of each family.")
        grants = Grants(identity.public, [PublicKey.parse(server) for server in servers], time.time)
        self._relay: Final = Relay(Judge(identity), quota_bytes=quota_bytes, circuits_of_key=circuits, grants=grants)
        self._driver: Final = RelayDriver(self._relay, tracer or Tracer())
        self._observer: Final = Observer()
        self._connections: Final = ControlConnections(self._on_line, lambda _: None)
        self._web: Final = web
        self._web_context: Final = None if web is None else web.context(identity)
        self._front: WebFront | None = None
        self._servers: Final[list[asyncio.Server]] = []

    @property
    def address(self) -> Address:
        """Where it serves.

        Raises:
            LocalProtocolError: It is not up.
        """
        return self.addresses[0]

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it serves: one address of each family.

        Raises:
            LocalProtocolError: It is not up.
        """
        if not self._servers:
            raise LocalProtocolError("the relay is not up: use `async with RelayServer(…)`")
        return tuple((host, port) for host, port, *_ in (server.sockets[0].getsockname() for server in self._servers))

    @property
    def web_address(self) -> Address | None:
        """Where it serves inside TLS, None: nowhere."""
        return None if self._front is None else self._front.address

    @property
    def stats(self) -> RelayServerStats:
        """How it stands."""
        dropped: Counter[str] = self._connections.cut_off + self._observer.dropped
        return RelayServerStats(len(self._connections), dict(dropped), relay_stats(self._relay))

    async def start(self) -> None:
        """Bind and serve; starting twice is fine.

        Raises:
            AddressInUseError: Another program has the port.
            BindError: The address is not ours.
        """
        if self._servers:
            return
        loop, make = asyncio.get_running_loop(), self._connections.make
        try:
            for host, port in self._listen:
                listener = listen_at((host, port or (self.address[1] if self._servers else 0)))
                # Served in a second step: cancelled in the middle of a first one, there would be nobody to stop it.
                server = await loop.create_server(make, sock=listener, backlog=BACKLOG, start_serving=False)
                self._servers.append(server)
            if self._web is not None and self._web_context is not None:
                self._front = self._web.front(self._web_context, self._connections)
                self._front.start()
            for server in self._servers:
                await server.start_serving()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End every circuit, and stop serving; closing twice is fine."""
        if self._servers:
            servers = tuple(self._servers)
            self._servers.clear()
            for server in servers:
                server.close()
            self._connections.close()
            self._driver.close()
            if self._front is not None:
                await self._front.close()
            for server in servers:
                await server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _on_line(self, line: bytes, source: Address, connection: int) -> bool:
        try:
            message = decode(line)
        except MalformedMessageError:
            message = None
        if isinstance(message, RelayJoin):
            self._on_join(message, source, connection)
            return True
        is_message, answer = self._observer.receive_line(line, source)
        if answer is not None:
            self._connections.send(connection, answer)
        return is_message

    def _on_join(self, message: RelayJoin, source: Address, connection: int) -> None:
        answer, circuit = self._relay.join(message, source[0], time.monotonic())
        if circuit is None:
            self._connections.send(connection, encode(answer), is_last=True)
        else:
            self._hand_on(connection, circuit, message.extra.role, encode(answer))

    def _hand_on(self, connection: int, circuit: Circuit, role: str, line: bytes) -> None:
        taken = self._connections.take_over(connection, line)
        if taken is None:
            self._driver.end(circuit.number, "an end was lost")
        else:
            self._driver.join(circuit.number, role, *taken)
