"""The rendezvous service: UDP and TCP on one port around the broker, and an observer on every other address.

As a program: `p2ptunnel rendezvous`.  Inside a program: `async with Rendezvous(("127.0.0.1", 0)) as server: server.address`.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from p2ptunnel.defaults import RENDEZVOUS_PORT
from p2ptunnel.errors import BindError
from p2ptunnel.identity.registration import verify_registration
from p2ptunnel.net.filter import attach_filter
from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.protocol.broker import Broker, Endpoint, LineToSend
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.server.control import ControlConnections
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address, format_address

__all__ = ["Rendezvous"]

_PORT_TRIES: Final = 16
_BACKLOG: Final = 1024


class Rendezvous:
    """A rendezvous server, up between `start` and `close`.

    Args:
        listen: Where the broker serves, UDP and TCP on one port; port 0 picks one that is free for both.
        alt_listen: Where else to observe.  A second port and a second address let peers learn how their NAT maps.
        compat_seed: Also serve programs written from the founding document alone (see docs/how-to/rendezvous.md for what
            that gives up).
        tracer: Gets every event of the broker.
    """

    def __init__(
        self,
        listen: Address = ("127.0.0.1", RENDEZVOUS_PORT),
        *,
        alt_listen: Sequence[Address] = (),
        compat_seed: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        self._listen = listen
        self._alt_listen = tuple(alt_listen)
        self._trace = tracer or Tracer()
        self._observer = Observer()
        self._broker = Broker(
            secrets.token_bytes(32),
            random.SystemRandom(),
            verify_registration,
            compat_seed=compat_seed,
            observer=self._observer,
        )
        self._services: list[_BrokerService | _ObserverService] = []
        self._servers: list[asyncio.Server] = []
        self._address: Address | None = None

    @property
    def address(self) -> Address:
        """Where the broker serves.

        Raises:
            RuntimeError: The server is not up.
        """
        if self._address is None:
            raise RuntimeError("the rendezvous server is not up")
        return self._address

    @property
    def registered(self) -> tuple[str, ...]:
        """The tags that are online."""
        return self._broker.registered

    async def start(self) -> None:
        """Bind and serve.

        Raises:
            BindError: An address is not ours, or its port is taken for UDP or TCP; nothing stays open.
        """
        try:
            self._address = await self._open(self._listen, self._broker)
            observed = [await self._open(address, Observer()) for address in self._alt_listen]
        except BaseException:
            await self.close()
            raise
        self._observer.others = tuple(observed)

    async def close(self) -> None:
        """Stop serving; closing twice is fine."""
        services, self._services = self._services, []
        servers, self._servers = self._servers, []
        self._address = None
        for server in servers:
            server.close()
        for service in services:
            service.driver.close()
            service.connections.close()
        for server in servers:
            await server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _open(self, listen: Address, machine: Broker | Observer) -> Address:
        udp, tcp = _bind_both(listen, self._trace)
        service = _BrokerService(machine, udp, self._trace) if isinstance(machine, Broker) else _ObserverService(machine, udp)
        self._services.append(service)
        attach_filter(udp.socket)
        try:
            server = await asyncio.get_running_loop().create_server(service.connections.make, sock=tcp, backlog=_BACKLOG)
        except BaseException:
            tcp.close()
            raise
        self._servers.append(server)
        service.driver.start()
        return udp.address


class _BrokerService:
    """The broker on one UDP socket and the TCP connections of one listener."""

    def __init__(self, broker: Broker, udp: UdpSocket, trace: Tracer) -> None:
        self.connections = ControlConnections(self._on_line, self._on_closed)
        self.driver = UdpDriver(broker, udp, self._on_event)
        self._broker = broker
        self._trace = trace

    def _on_event(self, event: Event) -> None:
        if isinstance(event, LineToSend):
            self.connections.send(event.connection, event.line)
        else:
            self._trace("server", type(event).__name__, **event.facts())

    def _on_line(self, line: bytes, source: Address, connection: int) -> None:
        self._broker.receive(line, Endpoint(source, connection), time.monotonic())
        self.driver.wake()

    def _on_closed(self, connection: int) -> None:
        self._broker.connection_closed(connection)
        self.driver.wake()


class _ObserverService:
    """An observer on one UDP socket and the TCP connections of one listener."""

    def __init__(self, observer: Observer, udp: UdpSocket) -> None:
        self.connections = ControlConnections(self._on_line, self._on_closed)
        self.driver = UdpDriver(observer, udp, self._on_event)
        self._observer = observer

    def _on_event(self, event: Event) -> None:
        """An observer has nothing to report."""

    def _on_line(self, line: bytes, source: Address, connection: int) -> None:
        answer = self._observer.answer_line(line, source)
        if answer is not None:
            self.connections.send(connection, answer)

    def _on_closed(self, connection: int) -> None:
        """Nothing is kept of a connection."""


def _bind_both(listen: Address, trace: Tracer) -> tuple[UdpSocket, socket.socket]:
    """Bind UDP and TCP to one port; with port 0, try until one is free for both."""
    for attempt in range(_PORT_TRIES):
        udp = UdpSocket(listen, shared=False, tracer=trace)
        try:
            return udp, _bound_tcp(udp.address)
        except BindError:
            udp.close()
            if listen[1] or attempt == _PORT_TRIES - 1:
                raise
        except BaseException:
            udp.close()
            raise
    raise AssertionError("unreachable")


def _bound_tcp(address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for TIME_WAIT
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        sock.bind(address)
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise BindError(format_address(address), error.strerror or str(error)) from error
    return sock
