"""A punch port: one local number that a UDP socket and TCP sockets share, with its outside view known for both.

NATs map UDP and TCP apart, so each view is observed over its own transport: UDP's by the server from the messages themselves,
TCP's by a standing connection from that very number.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Final, NamedTuple, Self, TypeAlias

import msgspec

from p2ptunnel.defaults import (
    APART_PATIENCE,
    CONTROL_GRACE,
    OPENER_HOPS_IPV6,
    OPENER_TTL_MEMORY,
    OPENER_TTL_UNKNOWN,
    TRANSACTION_TIMEOUT,
    UDP_GRACE,
)
from p2ptunnel.errors import BindError, P2PTunnelError, RendezvousError, RendezvousTimeoutError
from p2ptunnel.identity.judge import join_proof
from p2ptunnel.net.dial import punch_socket
from p2ptunnel.net.hops import Hops, opener_ttl
from p2ptunnel.net.interfaces import global_ipv6, ipv4_networks, source_address
from p2ptunnel.net.portmap import PortMapper
from p2ptunnel.net.reflexive import Observation, TcpControl, observe_tcp, observe_udp
from p2ptunnel.net.sockets import ANY_IPV4, ANY_IPV6, can_open_low, family_of, is_loopback
from p2ptunnel.net.tcp import Listener
from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.net.web import WebLinks, WebRoute
from p2ptunnel.protocol.inside import is_inside
from p2ptunnel.protocol.ipv6 import ipv6_candidates
from p2ptunnel.protocol.nat import Habits, Mapping, NatProfile
from p2ptunnel.protocol.punch import LocalView, own_candidates
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.quic import can_quic
from p2ptunnel.traversal.profile import observe_over_udp, observe_profile
from p2ptunnel.traversal.ways import Ways
from p2ptunnel.types import Address, Candidate, ServerSpec, format_address
from p2ptunnel.wire.messages import Message, encode

__all__ = ["KnownHabits", "OpenPort", "Opener", "OpenerTtl", "PunchPort", "another_port", "take_number"]

OnAccepted: TypeAlias = Callable[[socket.socket, Address], None]
KnownHabits: TypeAlias = Callable[[Address, str], Habits]
"""Returns what is known of the NATs through which we reach a server that sees us on this host."""
_NUMBER_TRIES: Final = 16


class Opener(NamedTuple):
    """How far a packet may travel to leave our own NATs and die there, and the round trip to there in seconds, 0 if unknown."""

    ttl: int = OPENER_TTL_UNKNOWN
    rtt: float = 0.0


class OpenerTtl:
    """Knows the opener towards each server; asked once per server and a while."""

    def __init__(self) -> None:
        self._known: dict[Address, tuple[float, Opener]] = {}

    async def towards(self, server: Address) -> Opener:
        """Return the opener; where no hop tells, TTL 3, and a hop limit of 2 over IPv6."""
        now = asyncio.get_running_loop().time()
        asked_at, known = self._known.get(server, (0.0, None))
        if known is not None and now - asked_at < OPENER_TTL_MEMORY:
            return known
        hops = Hops(None, {}) if is_loopback(server[0]) else await opener_ttl(server)
        opener = Opener(hops.ttl or (OPENER_HOPS_IPV6 if ":" in server[0] else OPENER_TTL_UNKNOWN), hops.rtt)
        self._known[server] = (now, opener)
        return opener


def _is_way_inside(candidate: Candidate) -> bool:
    """Tell whether a way in leads no further than to the NAT above our router; TCP passes it whatever kind that is."""
    return candidate.proto == "tcp" and is_inside(candidate.host)


def _none_burnt(_: int) -> bool:
    return False


def take_number(host: str, tracer: Tracer, is_burnt: Callable[[int], bool] = _none_burnt) -> tuple[UdpSocket, socket.socket]:
    """Take a local number that is free for UDP and for TCP alike, with a socket of each that keeps it.

    The TCP socket is there for nothing else: it keeps the connections of other programs off the number.

    Args:
        host: Where.
        tracer: Gets what happens.
        is_burnt: Tells of a number whether another had better be taken.

    Raises:
        BindError: None can be had.
    """
    for _ in range(_NUMBER_TRIES - 1):
        with contextlib.suppress(BindError):
            number = _take_once(host, tracer)
            if not is_burnt(number[0].address[1]):
                return number
            for taken in number:
                taken.close()
    return _take_once(host, tracer)


def _take_once(host: str, tracer: Tracer) -> tuple[UdpSocket, socket.socket]:
    udp = UdpSocket((host, 0), tracer=tracer)
    try:
        return udp, punch_socket(udp.address)
    except OSError as error:  # a connection has it, perhaps one that ended a minute ago
        udp.close()
        raise BindError(format_address(udp.address), error.strerror or str(error)) from error


class PunchPort:
    """A port that is ready for an attempt; whoever opens it closes it.

    Attributes:
        web: How the standing connection goes through the web; None: straight from this port to the server's own.
        is_udp_silent: Whether the server does not hear us over UDP, so that its messages go over the standing TCP connection.
    """

    def __init__(
        self,
        number: tuple[UdpSocket, socket.socket],
        spec: ServerSpec,
        tracer: Tracer,
        ways: Ways | None = None,
        habits: KnownHabits | None = None,
    ) -> None:
        self.udp: Final = number[0]
        self.spec: Final = spec
        self.server: Final = spec.address
        self.control: TcpControl | None = None
        self.web: WebRoute | None = None
        self._ways: Final = ways or Ways(WebLinks())
        self._habits_at: Final = habits or _unknown_habits
        self._reserved: Final = number[1]
        self._trace = tracer
        self._beside: Final = self._reserve_ipv6()
        self._udp_beside: Final = self._join_ipv6()
        self._opener = Opener()
        self._control_lost = asyncio.Event()
        self._seen_udp: Address | None = None
        self._heard: Observation | None = None
        self.is_udp_silent = False
        self._driver: UdpDriver | None = None
        self._mapper: PortMapper | None = None
        self._nat = NatProfile()
        self._ports: tuple[int, ...] = ()

    @classmethod
    async def open(
        cls,
        at: ServerSpec | Address,
        ttl: OpenerTtl,
        *,
        ways: Ways | None = None,
        habits: KnownHabits | None = None,
        is_burnt: Callable[[int], bool] = _none_burnt,
        tracer: Tracer | None = None,
    ) -> Self:
        """Take a free number and learn how it looks from outside over TCP, and what the NATs before it do.

        A server that cannot be reached over TCP costs the candidate, not the port.

        Args:
            at: The server; its address is numeric.
            ttl: Knows how far a packet goes to leave our own NATs.
            ways: Knows how the server was reached last.
            habits: Tells, at any time, what is known of our NATs; None: nothing.
            is_burnt: Tells of a local number whether another had better be taken.
            tracer: Gets what happens.

        Raises:
            BindError: No number can be had.
            RendezvousTimeoutError: The server is silent over UDP and TCP alike.
        """
        trace = tracer or Tracer()
        spec = at if isinstance(at, ServerSpec) else ServerSpec(at)
        server = spec.address
        local = source_address(server[0]) if is_loopback(server[0]) else ANY_IPV4 if ":" not in server[0] else ANY_IPV6
        port = cls(take_number(local, trace, is_burnt), spec, trace, ways, habits)
        hops = asyncio.create_task(ttl.towards(server))
        try:
            await port._observe_first()
            port._opener = await hops
            port.udp.opener_ttl = port._opener.ttl
            if port._udp_beside is not None:
                port._udp_beside.opener_ttl = port.opener(ANY_IPV6).ttl
        except BaseException:
            port.close()
            hops.cancel()
            await asyncio.gather(hops, return_exceptions=True)
            raise
        return port

    @property
    def address(self) -> Address:
        """The local address that all sockets of the port share."""
        return self.udp.address

    @property
    def _has_ipv6(self) -> bool:
        return self._beside is not None or self.address[0] == ANY_IPV6

    def listen(self, on_accepted: OnAccepted, *, is_limited: bool) -> tuple[Listener, ...]:
        """Listen for TCP on the port, over IPv6 beside IPv4 where the machine has it; the arguments are those of `Listener`.

        Raises:
            BindError: A foreign socket has the port.
        """
        first = Listener(self.address, on_accepted, is_limited=is_limited, tracer=self._trace)
        if self._beside is None:
            return (first,)
        try:
            return first, Listener((ANY_IPV6, self.address[1]), on_accepted, is_limited=is_limited, tracer=self._trace)
        except BindError:
            first.close()
            raise

    def opener(self, host: str) -> Opener:
        """Return how far SYNs to a numeric host may travel to leave our own network and die there.

        Over a family in which we speak to no server nobody has told.  The way out is then taken to be as long as over the
        other: most often the same routers are on it.
        """
        is_beside = family_of(host) not in (None, family_of(self.server[0]))
        return self._opener._replace(ttl=max(OPENER_HOPS_IPV6, self._opener.ttl)) if is_beside else self._opener

    @property
    def view(self) -> LocalView:
        """What we can tell a peer of this port."""
        control = self.control
        over_tcp = () if control is None else own_candidates("tcp", control.observed, self.server)
        over_udp = () if self._seen_udp is None else own_candidates("udp", self._seen_udp, self.server)
        seen = (*over_tcp, *over_udp)
        hosts = {candidate.host for candidate in seen}
        mapped = tuple(candidate for candidate in self._mapped() if candidate.host in hosts)
        inside = tuple(candidate for candidate in self._mapped() if candidate not in mapped and _is_way_inside(candidate))
        has_udp = self._udp_beside is not None and can_quic()
        over_ipv6 = ipv6_candidates(global_ipv6(), self.address[1], has_udp=has_udp) if self._has_ipv6 else ()
        rtt = 0.0 if control is None else control.rtt
        opens_low = can_open_low() and self._habits.opens_low is not False
        return LocalView(
            (*seen, *mapped, *over_ipv6),
            rtt,
            opens_low,
            self._profile,
            self._ports,
            can_quic(),
            inside,
            ipv4_networks() if seen else (),
        )

    @property
    def _habits(self) -> Habits:
        return Habits() if self.control is None else self._habits_at(self.server, self.control.observed[0])

    @property
    def _profile(self) -> NatProfile:
        """What our NATs do; UDP that the server has not answered while it did over TCP is blocked."""
        is_blocked = self.is_udp_silent and self._nat.udp.observed is None
        udp, habits = Mapping("none") if is_blocked else self._nat.udp, self._habits
        return msgspec.structs.replace(self._nat, udp=udp, crosses=habits.crosses, is_open=habits.is_open)

    def _mapped(self) -> Iterator[Candidate]:
        """Yield the ways in that our router keeps open."""
        mappings = [] if self._mapper is None else [self._mapper.mapped("tcp"), self._mapper.mapped("udp")]
        yield from (mapping.candidate for mapping in mappings if mapping is not None)

    @property
    def heard_over(self) -> tuple[str, ...]:
        """Over what the server has shown us how we look; it may be neither, where it refuses TCP and UDP is lost."""
        return (*(("UDP",) if self._seen_udp else ()), *(("TCP",) if self.control else ()))

    @property
    def silent_over(self) -> str:
        """Over what a server has been silent that does not answer here."""
        return "UDP or TCP" if self.control is None else "UDP"

    @property
    def cookie(self) -> str:
        """The server's cookie for our address, empty if it has given none.

        Nor is there one from a server of another key than was given to us: asked without, it says again who it is, and that is
        the failure then, and not what such a server refuses.
        """
        is_another = self.control is not None and self.spec.key not in {"", self.control.server_key}
        return "" if self.control is None or is_another else self.control.cookie

    @property
    def server_key(self) -> str:
        """The server's key as text: the one that was given to us, else the one that it has told, else empty."""
        return self.spec.key or ("" if self.control is None else self.control.server_key)

    def join(self, cookie: str, call: str) -> str:
        """Return what shows to a private server with a call that we know its join token, empty where none is asked for."""
        return join_proof(self.spec.join_token, self.spec.key, cookie, call.encode())

    def _reserve_ipv6(self) -> socket.socket | None:
        """Keep other programs off our number over IPv6, where the machine has it and we speak IPv4 with the server."""
        if self.address[0] != ANY_IPV4:
            return None
        try:
            return punch_socket((ANY_IPV6, self.address[1]))
        except OSError as error:
            self._trace("traversal", "no_ipv6", reason=error.strerror or str(error))
            return None

    def _join_ipv6(self) -> UdpSocket | None:
        """Have datagrams to IPv6 leave from our number as well, and come there."""
        if self._beside is None:
            return None
        try:
            beside = UdpSocket((ANY_IPV6, self.address[1]), tracer=self._trace)
        except BindError as error:
            self._trace("traversal", "no_ipv6", reason=error.reason)
            return None
        self.udp.join(beside)
        return beside

    async def observe(self, *, timeout: float = TRANSACTION_TIMEOUT) -> bool:
        """Open the standing TCP connection to the server, anew if there is one; return whether there is one now.

        Where the server has other observers they are asked as well, which takes two round trips more.
        """
        self.forget_control()
        try:
            self.control, self.web = await self._ways.first(self.spec, lambda web: self._open_control(web, timeout))
        except (P2PTunnelError, OSError) as error:
            self._trace("traversal", "tcp_unobserved", server=format_address(self.server), reason=str(error))
            return False
        self._control_lost.clear()
        way = "tcp" if self.web is None else self.web.way
        self._trace("traversal", "tcp_observed", address=format_address(self.control.observed), way=way)
        if not self.control.is_open:  # it ended before it was ours
            self.forget_control()
        elif self.web is None:
            self._nat, self._ports = await observe_profile(self.address, self.control)
            self._trace("traversal", "nat_seen", tcp=self._nat.tcp.kind, udp=self._nat.udp.kind)
        else:
            await self._observe_over_udp(self.control.others, self.control.rtt)
        return True

    async def _observe_over_udp(self, others: tuple[Address, ...], rtt: float) -> None:
        self._nat = await observe_over_udp(self.address, self.server, others, rtt)
        self._trace("traversal", "nat_seen", tcp=self._nat.tcp.kind, udp=self._nat.udp.kind)

    async def _open_control(self, web: WebRoute | None, timeout: float) -> TcpControl:
        return await TcpControl.open(
            self.address[1],
            self.server,
            timeout,
            on_message=self._on_message,
            on_lost=lambda _: self.forget_control(),
            connect=None if web is None else partial(self._ways.links.connect, web),
            tracer=self._trace,
        )

    async def observe_row(self) -> int | None:
        """Return the outside port that a new TCP flow has just been given, None if nobody tells.

        Not from this port: a NAT that remembers an earlier flow from here to the server would show that one.
        """
        try:
            return (await observe_tcp(0, self.server)).address[1]
        except (P2PTunnelError, OSError) as error:
            self._trace("traversal", "row_unobserved", reason=str(error))
            return None

    async def _observe_first(self) -> None:
        """Observe over TCP, and ask over UDP meanwhile whether the server is there at all, so that nobody waits for both."""
        heard = asyncio.Event()
        try:
            async with asyncio.timeout(TRANSACTION_TIMEOUT) as patience:
                asking = asyncio.create_task(self._hear(heard, patience))
                try:
                    await self.observe(timeout=2 * TRANSACTION_TIMEOUT)
                    await self._wait_for_udp(asking, heard)
                finally:
                    asking.cancel()
                    await asyncio.gather(asking, return_exceptions=True)
        except TimeoutError:
            if not heard.is_set():
                raise RendezvousTimeoutError(format_address(self.server), TRANSACTION_TIMEOUT) from None
            self._trace("traversal", "tcp_unobserved", server=format_address(self.server), reason="no answer")
        if self.control is None and self._heard is not None:
            await self._observe_over_udp(self._heard.others, self._heard.rtt)

    async def _hear(self, heard: asyncio.Event, patience: asyncio.Timeout) -> None:
        """Ask over UDP; once the server has answered, TCP gets only a little longer."""
        with contextlib.suppress(RendezvousError, OSError):  # then TCP alone must tell
            self._heard = await observe_udp(self.address, self.server)
            self._seen_udp = self._heard.address
            heard.set()
            patience.reschedule(asyncio.get_running_loop().time() + CONTROL_GRACE)

    async def _wait_for_udp(self, asking: asyncio.Task[None], heard: asyncio.Event) -> None:
        """Give UDP, which was asked earlier and has a round trip less to make, the time of two lost datagrams."""
        rtt = 0.0 if self.control is None else self.control.rtt
        if self.web is None:  # else it has had longer already
            await asyncio.wait({asking}, timeout=max(UDP_GRACE, 2 * rtt))
        self.is_udp_silent = not heard.is_set() and self.control is not None
        if self.is_udp_silent:
            self._trace("traversal", "udp_silent", server=format_address(self.server))

    async def keep_udp(self) -> bool:
        """Have the NATs remember the port over UDP; return whether it looks as it did, True where it was never seen there."""
        seen = self._seen_udp
        if seen is None:
            return True
        try:
            return (await observe_udp(self.address, self.server)).address == seen
        except (RendezvousError, OSError):
            return False

    def serve(self, driver: UdpDriver) -> None:
        """Let a machine speak with the server over TCP, wherever that does not answer over UDP."""
        self._driver = driver
        driver.detour = self._over_tcp

    def udp_lost(self) -> None:
        """Take note that the server is silent on the way that was used: whoever has the other one tries that."""
        self.is_udp_silent = not self.is_udp_silent and self.control is not None

    def _over_tcp(self, data: bytes, destination: Address) -> bool:
        if not self.is_udp_silent or destination != self.server or self.control is None:
            return False
        self.control.send_line(data)
        return True

    def _on_message(self, message: Message) -> None:
        if self._driver is not None:
            self._driver.receive(encode(message), self.server)

    def ask_router(self, on_change: Callable[[], None]) -> None:
        """Ask our router for a way in, unless the server is on loopback; nobody waits for what it says.

        Args:
            on_change: Called when `view` has another one; may be at once.
        """
        if self._mapper is None and not is_loopback(self.server[0]):
            self._mapper = PortMapper(self.address, on_change=lambda _: on_change(), tracer=self._trace)
            self._mapper.start()

    def ask_router_anew(self) -> None:
        """Ask whatever router is there now, as if the network had changed."""
        if self._mapper is not None:
            self._mapper.refresh()

    async def leave_router(self) -> None:
        """Take back what the router was asked for; waits for it two seconds at most."""
        if self._mapper is not None:
            await self._mapper.aclose()

    async def wait_control_lost(self) -> None:
        """Wait until there is no standing TCP connection."""
        await self._control_lost.wait()

    def forget_control(self) -> None:
        """Drop the standing TCP connection: what it showed is out of date."""
        if self.control is not None:
            self.control.abort()
            self.control = None
        self._seen_udp = None
        self._nat, self._ports = NatProfile(), ()
        self._control_lost.set()

    def close(self) -> None:
        """Close every socket of the port; closing twice is fine."""
        self.forget_control()
        if self._mapper is not None:
            self._mapper.abort()
        self._reserved.close()
        if self._beside is not None:
            self._beside.close()
        self.udp.close()


def _unknown_habits(_: Address, __: str) -> Habits:
    return Habits()


OpenPort: TypeAlias = Callable[[], Awaitable[PunchPort]]


async def another_port(open_port: OpenPort, host: str, tracer: Tracer) -> PunchPort | None:
    """Return another port, for a peer that knows us at `host`; None if there is none in time, or the server sees it elsewhere.

    Whoever gets it closes it.
    """
    try:
        async with asyncio.timeout(APART_PATIENCE):
            port = await open_port()
    except (P2PTunnelError, OSError) as error:  # TimeoutError is one
        tracer("traversal", "no_other_port", reason=str(error) or "not in time")
        return None
    if any(candidate.kind == "srflx" and candidate.host == host for candidate in port.view.candidates):
        return port
    tracer("traversal", "no_other_port", reason="the server sees it at another address")
    port.close()
    return None
