"""The driver of the pure machines: one UDP socket, one timer, events to a callback.

Rule: nothing that arrives, and no refusal of the system's to send, raises out of here; it is counted and traced.

Source: docs/explanation/architecture.md.
"""

from __future__ import annotations

import asyncio
import copy
import errno
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Final, Protocol, Self

from p2ptunnel.defaults import OPENER_TTL_UNKNOWN
from p2ptunnel.errors import BindError, InvalidAddressError
from p2ptunnel.net.filter import attach_filter
from p2ptunnel.net.segments import bursts, send_segments
from p2ptunnel.net.sockets import (
    family_of,
    forbid_fragments,
    get_ttl,
    is_sendable,
    prefer_lasting,
    set_ttl,
    share_port,
    socket_address,
)
from p2ptunnel.net.watch import Watch
from p2ptunnel.protocol.machine import Datagram, Event, Hole, Machine
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address, format_address
from p2ptunnel.wire.messages import message_number

__all__ = ["Aside", "UdpDriver", "UdpSocket", "attach_filter"]

_BATCH: Final = 64  # datagrams a wake-up; asyncio's own transport takes one, and drowns at 30 000/s
_RECEIVE_BYTES: Final = 2048  # more than a legal datagram, so that a longer one still shows that it is too long


class UdpSocket:
    """One non-blocking UDP socket on a port that TCP and later UDP sockets of ours may share.

    Attributes:
        opener_ttl: TTL of datagrams sent as openers, 1 to 255; may be set at any time.
        sent: Datagrams given to the system.
        send_failures: Datagrams that it refused, or that had no usable destination.
        received: Datagrams taken from it.
    """

    def __init__(
        self,
        local: Address,
        *,
        remote: Address | None = None,
        shared: bool = True,
        opener_ttl: int = OPENER_TTL_UNKNOWN,
        on_refused: Callable[[], None] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Bind `local`: a numeric host, and port 0 for a free one.

        Args:
            local: Our end.
            remote: The only one to exchange datagrams with; other sockets on the port no longer get what it sends.
            shared: False where nobody else may have the port: a server's.
            opener_ttl: TTL of openers.
            on_refused: Called by `send` and `receive` when ICMP has said that nobody listens at `remote`.
            tracer: Told of what the system refuses.

        Raises:
            BindError: The address is not ours, or a foreign socket has the port.
            InvalidAddressError: A host is not numeric, or a port no port.
        """
        self.opener_ttl = opener_ttl
        self.sent = self.send_failures = self.received = 0
        self._on_refused: Final = on_refused
        self._trace: Final = tracer or Tracer()
        self._socket = _bound_socket(local, remote, shared=shared)
        self._ttl: Final = get_ttl(self._socket)
        self._beside: UdpSocket | None = None
        self.address: Final[Address] = self._socket.getsockname()[:2]

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """Every socket that a loop has to watch: this one's, and that of the other family."""
        return (self._socket,) if self._beside is None else (self._socket, self._beside.socket)

    @property
    def socket(self) -> socket.socket:
        """The socket itself, for a loop to watch; nobody else sends or receives on it."""
        return self._socket

    def join(self, beside: UdpSocket) -> None:
        """Send to the other family by `beside` from now on, and receive what comes there; it is closed with this one."""
        self._beside = beside

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._socket.fileno() < 0

    def duplicate(self) -> Self:
        """Return the same socket once more: it is open until both are closed, and only one of the two is read.

        Raises:
            OSError: There is no descriptor left.
        """
        twin = copy.copy(self)
        twin._socket = self._socket.dup()  # noqa: SLF001 - of our own class
        twin._socket.setblocking(False)  # noqa: SLF001
        if self._beside is not None:
            try:
                twin._beside = self._beside.duplicate()  # noqa: SLF001
            except OSError:
                twin._socket.close()  # noqa: SLF001
                raise
        return twin

    def send(self, data: bytes, destination: Address, *, opener: bool = False) -> bool:
        """Send one datagram, with `opener` so that it dies on the way; return whether the system took it."""
        if (other := self._other(destination)) is not None:
            return other.send(data, destination, opener=opener)
        try:
            self._send(data, destination, self.opener_ttl if opener else self._ttl)
        except OSError as error:  # EPERM of a local firewall, ENETUNREACH, a full buffer: the machine will repeat itself
            self.send_failures += 1
            self._trace("net", "send_failed", destination=format_address(destination), reason=str(error))
            self._note_refusal(error)  # of the datagram before
            return False
        self.sent += 1
        if self._trace.is_active:
            self._trace(
                "wire", "sent", t=message_number(data), peer=format_address(destination), bytes=len(data), opener=opener
            )
        return True

    def send_all(self, datagrams: Sequence[bytes], destination: Address) -> None:
        """Send datagrams to one address, in as few calls as the system allows; what it does not take is lost."""
        if (other := self._other(destination)) is not None:
            other.send_all(datagrams, destination)
            return
        for burst in bursts(datagrams):
            if len(burst) == 1 or self._trace.is_active or not self._send_burst(burst, destination):
                for datagram in burst:
                    self.send(datagram, destination)

    def _other(self, destination: Address) -> UdpSocket | None:
        """Return the socket of the other family, where the destination is there."""
        is_other = self._beside is not None and (":" in destination[0]) != (":" in self.address[0])
        return self._beside if is_other else None

    def _send_burst(self, burst: Sequence[bytes], destination: Address) -> bool:
        """Send a burst in one call; return False if its datagrams are to be sent one by one."""
        try:
            is_sent = is_sendable(destination, self._socket.family) and send_segments(self._socket, burst, destination)
        except BlockingIOError:
            self.send_failures += len(burst)
            return True
        except OSError:  # whatever it is: the datagrams find out, one by one
            return False
        self.sent += len(burst) if is_sent else 0
        return is_sent

    def _send(self, data: bytes, destination: Address, ttl: int) -> None:
        if not is_sendable(destination, self._socket.family):
            raise OSError(errno.EDESTADDRREQ, os.strerror(errno.EDESTADDRREQ))
        if ttl == self._ttl:
            self._socket.sendto(data, socket_address(destination))
            return
        set_ttl(self._socket, ttl)
        try:
            self._socket.sendto(data, socket_address(destination))
        finally:
            set_ttl(self._socket, self._ttl)

    def receive(self) -> Iterator[tuple[bytes, Address]]:
        """Yield what waits, at most 64 datagrams of a family, each with its source; ends when it is closed meanwhile."""
        yield from self._receive()
        if self._beside is not None:
            yield from self._beside.receive()

    def _receive(self) -> Iterator[tuple[bytes, Address]]:
        for _ in range(_BATCH):
            if self.is_closed:
                return
            try:
                data, source = self._socket.recvfrom(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error, on systems that report it here: it took one place in the queue
                self._trace("net", "receive_failed", reason=str(error))
                self._note_refusal(error)
                continue
            self.received += 1
            if self._trace.is_active:
                peer = format_address((source[0], source[1]))
                self._trace("wire", "received", t=message_number(data), peer=peer, bytes=len(data))
            yield data, (source[0], source[1])

    def _note_refusal(self, error: OSError) -> None:
        if isinstance(error, ConnectionRefusedError) and self._on_refused is not None:
            self._on_refused()

    def close(self) -> None:
        """Close the socket; whoever watches it has stopped before.  Closing twice is fine."""
        self._socket.close()
        if self._beside is not None:
            self._beside.close()


def _bound_socket(local: Address, remote: Address | None, *, shared: bool) -> socket.socket:
    host, port = local
    family = family_of(host)
    if family is None or not 0 <= port <= 65535:
        raise InvalidAddressError(format_address(local))
    if remote is not None and not is_sendable(remote, family):
        raise InvalidAddressError(format_address(remote))
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own on the port
            prefer_lasting(sock)
        if port and shared:
            share_port(sock)
        sock.bind(local)
        if shared:
            share_port(sock)  # port 0 before it was bound: the kernel may give a port that is shared already (163 of 3000)
        forbid_fragments(sock)
        if remote is not None:
            sock.connect(socket_address(remote))
    except OSError as error:
        sock.close()
        raise BindError(format_address(local), error.strerror or str(error)) from error
    return sock


def _no_detour(_data: bytes, _destination: Address) -> bool:
    return False


def _no_hole(_hole: Hole) -> UdpSocket | None:
    return None


class Aside(Protocol):
    """Whatever else lives on the port of a machine."""

    def take(self, data: bytes, source: Address) -> bool:
        """Take a datagram; False leaves it to the machine."""
        ...

    def outlive(self) -> None:
        """Read the socket on its own from now on, if it still needs it: who has read it so far closes it now."""
        ...


class UdpDriver:
    """Runs one machine over one socket, on the loop that runs when `start` is called.

    After calling a method of the machine directly, call `wake` so that what it wants done is done.
    """

    def __init__(
        self,
        machine: Machine,
        udp: UdpSocket,
        on_event: Callable[[Event], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        aside: Aside | None = None,
    ) -> None:
        """Take over `udp`, which `close` closes.

        Args:
            machine: Its `now` is what `clock` returns.
            udp: Nobody else reads from it.
            on_event: Called with every event, in order; it may call the machine, `wake` and `close`.
            clock: Monotonic seconds.
            aside: Gets each datagram first.
        """
        self._aside = aside
        self._machine = machine
        self._udp = udp
        self._on_event = on_event
        self._clock = clock
        self.detour: Callable[[bytes, Address], bool] = _no_detour
        """Given each datagram and its destination; whether it has taken it, over something else than UDP."""
        self.hole_of: Callable[[Hole], UdpSocket | None] = _no_hole
        """Returns the socket of a hole; None: it is not open."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watches: tuple[Watch, ...] = ()
        self._timer: asyncio.TimerHandle | None = None
        self._armed_for: float | None = None
        self._events: deque[Event] = deque()
        self._is_running = False
        self._is_closed = False

    @property
    def udp(self) -> UdpSocket:
        """The socket, for its address, counters and `opener_ttl`."""
        return self._udp

    def start(self) -> None:
        """Watch the socket and do what the machine wants done now."""
        self._loop = asyncio.get_running_loop()
        self._watches = tuple(Watch(sock, self._read) for sock in self._udp.sockets)
        self.wake()

    def wake(self) -> None:
        """Send, report and set the timer anew, after somebody called a method of the machine."""
        self.run(self._clock())

    def run(self, now: float) -> None:
        """Do what `wake` does, at `now`; from within `on_event` it leaves the work to the call under way."""
        if self._is_running or self._is_closed:
            return
        self._is_running = True
        try:
            self._report()  # first: a SYN must leave before the datagram that announces it
        finally:
            self._flush()
            self._is_running = False
            self._arm(now)

    def _report(self) -> None:
        self._events.extend(self._machine.events())
        while self._events and not self._is_closed:
            self._on_event(self._events.popleft())
            self._events.extend(self._machine.events())

    def _flush(self) -> None:
        for datagram in () if self._is_closed else self._machine.datagrams_to_send():
            if not self.detour(datagram.data, datagram.destination):
                self._send(datagram)

    def _send(self, datagram: Datagram) -> None:
        udp = self._udp if datagram.hole is None else self.hole_of(datagram.hole)
        if udp is not None:
            udp.send(datagram.data, datagram.destination, opener=datagram.opener)

    def receive(self, data: bytes, source: Address) -> None:
        """Take what has come from `source` over something else than UDP."""
        if not self._is_closed:
            self._machine.receive_datagram(data, source, self._clock())
            self.wake()

    def _arm(self, now: float) -> None:
        """Keep exactly one timer, at the machine's next deadline."""
        if self._loop is None:
            return
        deadline = None if self._is_closed else self._machine.next_deadline()
        if self._events:  # a callback raised: what is left is told in the next turn
            deadline = now
        if deadline == self._armed_for:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._armed_for = None, deadline
        if deadline is not None:
            self._timer = self._loop.call_later(max(0.0, deadline - now), self._expire)

    def _expire(self) -> None:
        self._timer = self._armed_for = None
        now = self._clock()
        self._machine.handle_timer(now)
        self.run(now)

    def _read(self) -> None:
        for data, source in self._udp.receive():
            if self._aside is None or not self._aside.take(data, source):
                self._machine.receive_datagram(data, source, self._clock())
        self.run(self._clock())

    def close(self) -> None:
        """Stop and close the socket; what the machine still wants sent is not.  Closing twice is fine."""
        self._is_closed = True
        self._events.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._armed_for = None
        for watch in self._watches:
            watch.stop()
        if self._aside is not None and not self._udp.is_closed:
            self._aside.outlive()
        self._udp.close()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
