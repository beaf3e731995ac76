"""Local forwards: a listener here whose connections become streams to a service of a peer.

Rule: the listener is ours and stays bound whatever happens to the path; a connection that cannot be served is reset, so
that no client takes a refusal for an empty answer.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import time
from collections import deque
from typing import Final, Literal, TypeAlias

import msgspec

from p2ptunnel.abc import Connector
from p2ptunnel.defaults import ACCEPT_PAUSE, CONNECT_TIMEOUT, FORWARD_CONNECTIONS_MAX
from p2ptunnel.errors import AddressInUseError, P2PTunnelError
from p2ptunnel.net.pump import pump
from p2ptunnel.net.sockets import reset_close
from p2ptunnel.trace import Tracer
from p2ptunnel.tunnels.listener import listen_on
from p2ptunnel.tunnels.spec import LOOPBACK, ForwardSpec, parse_target
from p2ptunnel.types import Address, Tag, format_address

__all__ = ["Connection", "Forward", "ForwardState", "ForwardStats", "open_forward"]

ForwardState: TypeAlias = Literal["listening", "failing", "closed"]
"""`failing`: the last client could not be served; the next one is tried afresh."""

_ERRORS_KEPT: Final = 8
_GONE_BEFORE_ACCEPT: Final = (BlockingIOError, InterruptedError, ConnectionAbortedError)


class Connection(msgspec.Struct, frozen=True):
    """One client of a forward: where it comes from, and when it came (monotonic seconds)."""

    client: Address
    since: float


class ForwardStats(msgspec.Struct, frozen=True):
    """What became of a forward's clients: open now, accepted in all, and those of them that could not be served."""

    open: int
    accepted: int
    failed: int


class Forward:
    """A local address whose connections come out at a service of a peer; `open_forward` makes it.

    Attributes:
        tag: The peer.
        target: The service that each connection asks for: a name, a port, or `host:port`.
        local: Where it listens, with the port that 0 became.
    """

    def __init__(
        self, connector: Connector, tag: Tag, target: str, listener: socket.socket, timeout: float, tracer: Tracer
    ) -> None:
        self.tag = tag
        self.target = target
        self.local: Address = listener.getsockname()[:2]
        self._connector = connector
        self._listener = listener
        self._timeout = timeout
        self._trace = tracer
        self._loop = asyncio.get_running_loop()
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._errors: deque[Exception] = deque(maxlen=_ERRORS_KEPT)
        self._accepted = self._failed = 0
        self._is_failing = False
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(listener, self._accept)

    def __repr__(self) -> str:
        return f"<Forward {format_address(self.local)} -> {self.tag} {self.target} {self.state}>"

    @property
    def port(self) -> int:
        """The local port."""
        return self.local[1]

    @property
    def url(self) -> str:
        """`http://host:port`, for services that speak HTTP."""
        host = ipaddress.ip_address(self.local[0])
        reachable = LOOPBACK if host.is_unspecified else str(host)
        return f"http://{format_address((reachable, self.port))}"

    @property
    def is_public(self) -> bool:
        """Whether other machines can connect to it."""
        return not ipaddress.ip_address(self.local[0]).is_loopback

    @property
    def state(self) -> ForwardState:
        """How it is now."""
        if self._listener.fileno() < 0:
            return "closed"
        return "failing" if self._is_failing else "listening"

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The clients that are connected now."""
        return tuple(self._connections.values())

    @property
    def stats(self) -> ForwardStats:
        """Counts of clients."""
        return ForwardStats(len(self._connections), self._accepted, self._failed)

    @property
    def errors(self) -> tuple[Exception, ...]:
        """The last few reasons why clients could not be served, the newest at the end."""
        return tuple(self._errors)

    async def close(self) -> None:
        """Give up the address, reset the connections; closing twice is fine."""
        if self.state != "closed":
            self._loop.remove_reader(self._listener)
            self._listener.close()
        if self._pause is not None:
            self._pause.cancel()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self) -> None:
        """Take one client; the loop calls again while there are more."""
        try:
            sock, client = self._listener.accept()
        except _GONE_BEFORE_ACCEPT:
            return
        except OSError as error:  # no descriptor left; leaving the listener readable would spin
            self._failure(error)
            self._loop.remove_reader(self._listener)
            self._pause = self._loop.call_later(ACCEPT_PAUSE, self._loop.add_reader, self._listener, self._accept)
            return
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._accepted += 1
        connection = self._loop.create_task(self._carry(sock, format_address(client[:2])))
        self._connections[connection] = Connection(client[:2], time.monotonic())
        connection.add_done_callback(functools.partial(self._ended, sock))
        if len(self._connections) >= FORWARD_CONNECTIONS_MAX:
            self._loop.remove_reader(self._listener)

    async def _carry(self, sock: socket.socket, client: str) -> None:
        """Serve one client to its end."""
        self._trace("tunnel", "client_connected", tag=self.tag, target=self.target, client=client)
        try:
            stream = await self._connector.connect(self.tag, self.target, timeout=self._timeout, confirm=False)
            self._is_failing = False
            await pump(stream, sock)
        except P2PTunnelError as error:
            self._failure(error)
        except OSError as error:  # the client's end broke, which is no fault of the forward
            self._trace("tunnel", "client_lost", tag=self.tag, target=self.target, client=client, reason=str(error))
        else:
            self._trace("tunnel", "client_done", tag=self.tag, target=self.target, client=client)

    def _failure(self, error: Exception) -> None:
        self._failed += 1
        self._is_failing = True
        self._errors.append(error)
        hint = error.hint if isinstance(error, P2PTunnelError) else ""
        self._trace("tunnel", "client_failed", tag=self.tag, target=self.target, reason=str(error), hint=hint)

    def _ended(self, sock: socket.socket, connection: asyncio.Task[None]) -> None:
        """Forget a client; here and not in its task, which may have been cancelled before its first step."""
        reset_close(sock)  # one that was never served; what `pump` carried, it has closed
        was_full = len(self._connections) >= FORWARD_CONNECTIONS_MAX
        del self._connections[connection]
        if was_full and self.state != "closed":
            self._loop.add_reader(self._listener, self._accept)


async def open_forward(
    connector: Connector,
    tag: Tag,
    target: int | str,
    *,
    listen: Address = (LOOPBACK, 0),
    timeout: float = CONNECT_TIMEOUT,
    tracer: Tracer | None = None,
) -> Forward:
    """Listen on a local address and carry each connection to a service of a peer.

    The peer is not called before the first client comes.

    Args:
        connector: What opens the streams.
        tag: The peer.
        target: The service: its name, a port, or `host:port`.
        listen: A numeric address of this machine, `localhost`, or `*` for every interface; port 0 picks a free one.
        timeout: Seconds that a client waits for its stream.
        tracer: Told about each client.

    Raises:
        InvalidSpecError: The target cannot be read.
        ConfigError: The address to listen on is not numeric.
        BindError: The address cannot be had.
    """
    service = parse_target(target)
    try:
        listener = listen_on(listen)
    except AddressInUseError as error:
        elsewhere = ForwardSpec((listen[0], 0), service)
        raise AddressInUseError(error.address, f"`p2ptunnel forward {tag} {elsewhere}` picks a free port.") from error
    return Forward(connector, tag, service, listener, timeout, tracer or Tracer())
