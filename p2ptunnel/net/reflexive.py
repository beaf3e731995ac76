"""How this machine looks from outside: t=5 over UDP, and over the standing TCP connection to the rendezvous server.

Rule: both leave from the local port that will be punched, since the view of another port says nothing about it.

Source: wire document, t=5; docs/explanation/nat.md.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, cast

import msgspec

from p2ptunnel.addresses import canonical, helper_refusal
from p2ptunnel.defaults import CONTROL_KEEPALIVE, PROBE_PAD_BYTES, TRANSACTION_TIMEOUT
from p2ptunnel.errors import DialError, InvalidAddressError, RendezvousError, RendezvousTimeoutError
from p2ptunnel.net.dial import dial
from p2ptunnel.net.lines import MessageLines
from p2ptunnel.net.sockets import ANY_IPV4, family_of, is_sendable, keep_alive, local_address
from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.protocol.machine import Entropy, Event, MachineBase, new_mid
from p2ptunnel.protocol.transaction import Requester
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address, clean, format_address
from p2ptunnel.wire.messages import Message, Observed, ProbeExtra, ReflexiveAnswer, ReflexiveProbe, encode, encode_padded

__all__ = ["Connect", "Observation", "TcpControl", "observe_tcp", "observe_udp"]

Connect: TypeAlias = Callable[[], Awaitable[socket.socket]]
_WRITE_BUFFER_BYTES: Final = 64 * 1024  # a server that reads nothing for so long is lost


class Observation(msgspec.Struct, frozen=True):
    """How we look from there, where else that server observes, the round trip in seconds with all repetitions, and its key.

    That key it only says it has; empty if none.
    """

    address: Address
    others: tuple[Address, ...]
    rtt: float
    server_key: str = ""


class TcpControl:
    """The standing TCP connection from a punched port to the rendezvous server.

    It keeps the NAT's mapping, tells how we look from outside, and carries the wire's messages where UDP does not get through.

    Attributes:
        server: The far end.
        local: Our end, as we see it.
        observed: Our end, as the server sees it.
        others: Where else the server observes.
        cookie: Its proof that we receive at our address; saves a request over UDP the round trip of a 401.
        server_key: The public key that it says it has, as text; empty if none.
        rtt: Seconds, measured by the last t=5.
    """

    def __init__(
        self,
        server: Address,
        on_message: Callable[[Message], None] | None,
        on_lost: Callable[[str], None] | None,
        rng: Entropy,
        tracer: Tracer,
    ) -> None:
        self.server = server
        self.local: Address = ("", 0)
        self.observed: Address = ("", 0)
        self.others: tuple[Address, ...] = ()
        self.cookie = ""
        self.server_key = ""
        self.rtt = 0.0
        self._on_message = on_message
        self._on_lost = on_lost
        self._rng = rng
        self._trace = tracer
        self._loop = asyncio.get_running_loop()
        self._protocol = _LineProtocol(self._loop, self._received, self._lost)
        self._first: asyncio.Future[None] = self._loop.create_future()
        self._probe: tuple[int, float] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    async def open(
        cls,
        local_port: int,
        server: Address,
        timeout: float = TRANSACTION_TIMEOUT,
        *,
        on_message: Callable[[Message], None] | None = None,
        on_lost: Callable[[str], None] | None = None,
        connect: Connect | None = None,
        rng: Entropy | None = None,
        tracer: Tracer | None = None,
    ) -> TcpControl:
        """Connect, and ask how we look.

        Args:
            local_port: The shared port; 0 for a free one.
            server: Numeric address of the rendezvous server.
            timeout: Seconds, > 0, for all of it.
            on_message: Gets every message but the answers to our own t=5.
            on_lost: Told once, with the reason, when the connection ends and nobody here closed it.
            connect: Makes the connection by another way than from the shared port.
            rng: Draws message ids.
            tracer: Told of the end.

        Raises:
            InvalidAddressError: `server` is not numeric.
            RendezvousTimeoutError: Nobody answered in `timeout`.
            RendezvousError: The connection or the question was refused.
        """
        if family_of(server[0]) is None:
            raise InvalidAddressError(format_address(server))
        control = cls(server, on_message, on_lost, rng or random.SystemRandom(), tracer or Tracer())
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                await control._open(connect or (lambda: _dialled(local_port, server, control._rng, timeout)))
        except BaseException as error:
            control.abort()
            if isinstance(error, TimeoutError) and limit.expired():
                raise RendezvousTimeoutError(format_address(server), timeout) from error
            raise
        return control

    @property
    def is_open(self) -> bool:
        """Whether the connection has not ended."""
        return self._protocol.is_open

    def send(self, message: Message) -> bool:
        """Send a message as a line; False if the connection is gone, or its far end has long not read."""
        return self.send_line(encode(message))

    def send_line(self, line: bytes) -> bool:
        """Send a message that is encoded already; False as `send`."""
        return self._protocol.send(line)

    def abort(self) -> None:
        """Close by RST, which leaves no TIME_WAIT on the port; `on_lost` is not called.  Aborting twice is fine."""
        self._on_lost = None
        self._stop()
        self._first.cancel()
        self._protocol.abort()

    async def close(self) -> None:
        """Abort, and wait until the socket is closed; closing twice is fine."""
        self.abort()
        await self._protocol.wait_closed()

    async def _open(self, connect: Connect) -> None:
        sock = await connect()
        self.local = local_address(sock)
        await self._protocol.take(sock)
        self._ask()
        await self._first

    def _ask(self) -> None:
        """Send t=5: it measures, keeps the NAT's mapping alive and finds out whether the server is still there."""
        if self._probe is not None:
            self._protocol.fail("the server stopped answering")
            return
        self._probe = (new_mid(self._rng), self._loop.time())
        self.send(ReflexiveProbe(mid=self._probe[0]))
        self._timer = self._loop.call_later(CONTROL_KEEPALIVE, self._ask)

    def _received(self, message: Message) -> None:
        if isinstance(message, ReflexiveAnswer) and self._probe is not None and message.mid == self._probe[0]:
            self._answered(message, self._probe[1])
        elif self._on_message is not None:
            self._on_message(message)

    def _answered(self, answer: ReflexiveAnswer, asked_at: float) -> None:
        self._probe = None
        try:
            seen = _observation(answer, self.server, self._loop.time() - asked_at)
        except RendezvousError as error:
            self._fail_opening(error)
            return
        self.observed, self.others, self.rtt = seen.address, seen.others, seen.rtt
        extra = answer.extra or Observed()
        self.cookie, self.server_key = extra.cookie, extra.key
        if not self._first.done():
            self._first.set_result(None)

    def _fail_opening(self, error: RendezvousError) -> bool:
        """End the wait of `open` with an error; False if that no longer waits."""
        if self._first.done():
            return False
        self._first.set_exception(error)
        return True

    def _lost(self, reason: str) -> None:
        self._stop()
        self._trace("net", "control_lost", server=format_address(self.server), reason=reason)
        is_opening = self._fail_opening(RendezvousError(format_address(self.server), reason, 503))
        if self._on_lost is not None and not is_opening:
            self._on_lost(reason)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


async def _dialled(local_port: int, server: Address, rng: Entropy, timeout: float) -> socket.socket:
    local = (ANY_IPV4 if family_of(server[0]) == socket.AF_INET else "::", local_port)
    try:
        return await dial(local, server, rng=rng, patience=timeout, redials=0)
    except DialError as error:
        if error.outcome == "silent":
            raise RendezvousTimeoutError(format_address(server), timeout) from error
        raise RendezvousError(format_address(server), error.reason, 503) from error


class _LineProtocol(asyncio.Protocol):
    """The connection: bytes to messages, and the end of it to one reason in words."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[Message], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._on_message = on_message
        self._on_lost = on_lost
        self._lines = MessageLines()
        self._transport: asyncio.Transport | None = None
        self._closed: asyncio.Future[None] | None = None
        self._reason = ""

    async def take(self, sock: socket.socket) -> None:
        """Take over a connected socket, to close it by RST in every case."""
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            keep_alive(sock)
        except OSError:
            sock.close()
            raise
        await self._loop.create_connection(lambda: self, sock=sock)  # cancelled, it closes the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._closed = self._loop.create_future()

    def data_received(self, data: bytes) -> None:
        for message in self._lines.feed(data):
            self._on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._closed is not None
        if not self._closed.done():
            self._closed.set_result(None)
        self._on_lost(self._reason or (str(exc) if exc else "the server closed the connection"))

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, line: bytes) -> bool:
        if self._transport is None or self._transport.is_closing():
            return False
        if self._transport.get_write_buffer_size() > _WRITE_BUFFER_BYTES:
            self.fail("the server does not read")
            return False
        self._transport.write(line + b"\n")
        return True

    def fail(self, reason: str) -> None:
        self._reason = self._reason or reason
        self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        if self._closed is not None:
            await asyncio.shield(self._closed)


class _Ended(Event, frozen=True):
    """How the question ended; None: no answer in time."""

    answer: ReflexiveAnswer | None


class _Question(MachineBase):
    """The machine of one t=5 over UDP."""

    def __init__(self, server: Address, timeout: float, rng: Entropy, now: float) -> None:
        super().__init__()
        self._server = server
        self._requester = Requester(rng)
        mid = new_mid(rng)
        data = encode_padded(ReflexiveProbe(mid=mid, extra=ProbeExtra()), PROBE_PAD_BYTES)
        self._datagrams.append(self._requester.send(5, mid, data, server, now, timeout=timeout))

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take the answer; anything else is counted."""
        message = self._decode(data)
        if isinstance(message, ReflexiveAnswer) and self._requester.answered(5, message.mid, source):
            self._events.append(_Ended(message))
        else:
            self._drop("no answer of ours")

    def handle_timer(self, now: float) -> None:
        """Ask again, or give up."""
        repeat, expired = self._requester.due(now)
        self._datagrams += repeat
        self._events += [_Ended(None) for _ in expired]

    def next_deadline(self) -> float | None:
        """When to ask again."""
        return self._requester.next_deadline()


async def observe_udp(
    local: Address, server: Address, *, timeout: float = TRANSACTION_TIMEOUT, rng: Entropy | None = None
) -> Observation:
    """Ask `server` over UDP how datagrams from `local` look there.

    The socket is connected to `server`, so another one of ours may serve the same local port meanwhile: this one takes
    nothing but the answers.

    Args:
        local: Numeric host and port; port 0 for a free one.
        server: Numeric address of an observer.
        timeout: Seconds, > 0; the question is repeated until then.
        rng: Draws the message id and the intervals.

    Raises:
        BindError: `local` cannot be had.
        InvalidAddressError: `local` or `server` is not numeric.
        RendezvousTimeoutError: No answer in `timeout`.
        RendezvousError: The server refused, or its answer has no address.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[ReflexiveAnswer | None] = loop.create_future()

    def on_event(event: Event) -> None:
        if isinstance(event, _Ended) and not ended.done():
            ended.set_result(event.answer)

    udp = UdpSocket(local, remote=server)
    asked_at = loop.time()
    question = _Question(server, timeout, rng or random.SystemRandom(), asked_at)
    async with UdpDriver(question, udp, on_event, clock=loop.time):
        answer = await ended
    if answer is None:
        raise RendezvousTimeoutError(format_address(server), timeout)
    return _observation(answer, server, loop.time() - asked_at)


async def observe_tcp(local_port: int, server: Address, *, timeout: float = TRANSACTION_TIMEOUT) -> Observation:
    """Ask `server` over a short TCP connection how `local_port` looks there; raises what `TcpControl.open` does."""
    control = await TcpControl.open(local_port, server, timeout)
    try:
        return Observation(control.observed, control.others, control.rtt, control.server_key)
    finally:
        await control.close()


def _observation(answer: ReflexiveAnswer, server: Address, rtt: float) -> Observation:
    """Return what a -5 says.

    Raises:
        RendezvousError: It is a refusal, or has no address.
    """
    if answer.code != 200:
        raise RendezvousError(format_address(server), clean(answer.em or "no reason given"), answer.code)
    if answer.extra is None or not _is_numeric((answer.extra.host, answer.extra.port)):
        raise RendezvousError(format_address(server), "an answer without an address", answer.code)
    others = tuple(address for address in answer.extra.other if _is_observer(address, server))
    return Observation((answer.extra.host, answer.extra.port), others, rtt, answer.extra.key)


def _is_observer(address: Address, server: Address) -> bool:
    """Tell whether the server can have another observer there: nobody has signed what it says."""
    return _is_numeric(address) and helper_refusal(canonical(address[0]), address[1], canonical(server[0])) is None


def _is_numeric(address: Address) -> bool:
    family = family_of(address[0])
    return family is not None and is_sendable(address, family)
