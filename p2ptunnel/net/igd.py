"""Ways in through a router that speaks UPnP only: found by SSDP, asked over HTTP, taken back at the end.

Rule: a mapping is never asked for and forgotten: the question runs to its end even when nobody waits for the answer any more.

Source: UPnP Device Architecture 1.1; docs/explanation/nat.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from p2ptunnel.defaults import (
    IGD_SEARCH,
    PORTMAP_AGAIN,
    PORTMAP_AGAIN_MIN,
    PORTMAP_AGAIN_SOON,
    PORTMAP_CLOSE,
    PORTMAP_LIFETIME,
)
from p2ptunnel.net.gateway import Gateway
from p2ptunnel.net.http import ask
from p2ptunnel.net.watch import Watch
from p2ptunnel.protocol.igd import IgdWish, igd_reason
from p2ptunnel.protocol.machine import Entropy
from p2ptunnel.protocol.portmapping import PortMapEvent, PortMapped, PortMapping, PortRefused, PortUnmapped, outside_refusal
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address, Transport
from p2ptunnel.wire.http import MalformedHttpError
from p2ptunnel.wire.igd import (
    SEARCHES,
    SSDP_ADDRESS,
    SSDP_PORT,
    IgdService,
    Location,
    MalformedIgdError,
    SoapFault,
    describe_request,
    parse_description,
    parse_search_answer,
    parse_soap,
    soap_request,
)
from p2ptunnel.wire.xml import Element

__all__ = ["IgdClient", "find_igd"]

T = TypeVar("T")

_HOPS: Final = 2  # of a multicast: UPnP's own figure
_LOCATIONS_MAX: Final = 8  # that one search looks at: a router may also be a media server, and a liar may be many
_ANSWERS_MAX: Final = 64  # read in one go
_ANSWER_BYTES: Final = 2048
_FAILURES: Final = (OSError, MalformedHttpError, MalformedIgdError)


async def find_igd(gateway: Gateway) -> IgdService | None:
    """Return the service of a router that maps ports, None if the router does not speak UPnP, or is silent.

    Raises:
        OSError: No socket can be had.
    """
    with _Search(gateway) as search:
        while (location := await search.next()) is not None:
            with contextlib.suppress(*_FAILURES):  # it may be another device of the same router: the next may be the right one
                return parse_description(await ask(location.address, gateway.local, describe_request(location)), location)
    return None


class _Search:
    """Asks everybody, and the router alone as well, since many networks lose multicasts; only what the router says counts."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._loop = asyncio.get_running_loop()
        self._ends_at = self._loop.time() + IGD_SEARCH
        self._found: list[Location] = []
        self._taken = 0
        self._arrived = asyncio.Event()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._socket = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _HOPS)
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(self._gateway.local))
            self._socket.bind((self._gateway.local, 0))
            stack.callback(Watch(self._socket, self._read).stop)
            stack.callback(self._loop.call_later(IGD_SEARCH / 3, self._send).cancel)
            self._send()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    async def next(self) -> Location | None:
        """Return the next place to look at, None when the time for answers is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._ends_at):
                while self._taken == len(self._found):
                    self._arrived.clear()
                    await self._arrived.wait()
        if self._taken == len(self._found):
            return None
        self._taken += 1
        return self._found[self._taken - 1]

    def _send(self) -> None:
        for destination in (SSDP_ADDRESS, (self._gateway.host, SSDP_PORT)):
            for search in SEARCHES:
                with contextlib.suppress(OSError):  # a local firewall, no route for multicasts: the other way may do
                    self._socket.sendto(search, destination)

    def _read(self) -> None:
        for _ in range(_ANSWERS_MAX):
            try:
                data, source = self._socket.recvfrom(_ANSWER_BYTES)
            except OSError:  # nothing more, or an ICMP error for the unicast
                return
            if source[0] == self._gateway.host:
                self._note(data)

    def _note(self, data: bytes) -> None:
        try:
            location = parse_search_answer(data, self._gateway.host)
        except MalformedIgdError:
            return
        if location not in self._found and len(self._found) < _LOCATIONS_MAX:
            self._found.append(location)
            self._arrived.set()


class IgdClient:
    """Keeps one local port mapped at one UPnP router, as long as `run` runs.

    Args:
        gateway: The router.
        port: The local port, 1024 or above.
        transports: For which to ask.
        on_event: Told what becomes of each.
        entropy: Draws ports where the one that we want is taken.
        tracer: Told of failures.
    """

    def __init__(
        self,
        gateway: Gateway,
        port: int,
        transports: Iterable[Transport],
        on_event: Callable[[PortMapEvent], None],
        entropy: Entropy,
        tracer: Tracer,
    ) -> None:
        self._gateway = gateway
        self._port = port
        self._transports = tuple(transports)
        self._on_event = on_event
        self._entropy = entropy
        self._trace = tracer
        self._service: IgdService | None = None
        self._is_doubtful = False
        self._wishes: dict[Transport, IgdWish] = {}
        self._entries: dict[Transport, int] = {}
        self._refreshed = asyncio.Event()

    def refresh(self) -> None:
        """Ask now instead of when it is due."""
        self._refreshed.set()

    async def run(self) -> None:
        """Find the router, ask it, renew; cancelled, take back what it has granted."""
        try:
            while True:
                self._refreshed.clear()
                wait = await self._ask_once()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._refreshed.wait()
        finally:
            await self._take_back()

    async def _ask_once(self) -> float:
        """Ask for everything; return the seconds until it is to be asked for again."""
        try:
            service = (not self._is_doubtful and self._service) or await find_igd(self._gateway)
            if service is None:
                self._tell_all("nobody answers")
                return PORTMAP_AGAIN
            return await self._ask(service)
        except SoapFault as fault:
            self._refuse_all(fault.code, igd_reason(fault.code))
            return PORTMAP_AGAIN
        except _FAILURES as error:
            self._is_doubtful = True
            self._trace("net", "upnp_failed", gateway=self._gateway.host, reason=str(error) or type(error).__name__)
            self._tell_all("its answers are of no use")
            return PORTMAP_AGAIN_MIN

    async def _ask(self, service: IgdService) -> float:
        self._service, self._is_doubtful = service, False
        answer = await self._call(service, "GetExternalIPAddress", {})
        outside = answer.value("NewExternalIPAddress")
        if refusal := outside_refusal((outside, self._port)):
            self._refuse_all(0, refusal)
            return PORTMAP_AGAIN_SOON
        agreed = [await _to_its_end(self._map(service, transport, outside)) for transport in self._transports]
        return PORTMAP_LIFETIME / 2 if all(agreed) else PORTMAP_AGAIN

    async def _map(self, service: IgdService, transport: Transport, outside: str) -> bool:
        """Have one port mapped; return whether it is."""
        wish = self._wishes.get(transport) or self._new_wish(service, transport)
        while True:
            try:
                answer = await self._call(service, wish.action, wish.arguments())
            except SoapFault as fault:
                if wish.next_try(fault.code):
                    continue
                self._refuse(transport, fault.code, igd_reason(fault.code))
                return False
            break
        wish.granted()
        reserved = answer.value("NewReservedPort")
        port = int(reserved) if reserved.isascii() and reserved.isdigit() and len(reserved) < 6 else wish.external_port
        return await self._keep(service, wish, (outside, port))

    def _new_wish(self, service: IgdService, transport: Transport) -> IgdWish:
        self._wishes[transport] = IgdWish(
            transport, self._gateway.local, self._port, self._entropy, takes_any=service.takes_any_port
        )
        return self._wishes[transport]

    async def _keep(self, service: IgdService, wish: IgdWish, external: Address) -> bool:
        """Note what the router has granted, and let go of what it had granted before."""
        former = self._entries.get(wish.transport, external[1])
        self._entries[wish.transport] = wish.external_port = external[1]
        if former != external[1]:
            await self._call(service, "DeletePortMapping", wish.entry(former))
        if refusal := outside_refusal(external):
            await self._call(service, "DeletePortMapping", wish.entry(external[1]))
            del self._entries[wish.transport]
            self._refuse(wish.transport, 0, refusal)
            return False
        mapping = PortMapping(
            transport=wish.transport,
            local=(self._gateway.local, self._port),
            external=external,
            lifetime=PORTMAP_LIFETIME,
            protocol="UPnP",
            gateway=self._gateway.host,
        )
        self._on_event(PortMapped(transport=wish.transport, mapping=mapping))
        return True

    async def _take_back(self) -> None:
        try:
            async with asyncio.timeout(PORTMAP_CLOSE):
                for transport, port in self._entries.items():
                    if self._service is not None:
                        with contextlib.suppress(SoapFault):  # it is gone already
                            await self._call(self._service, "DeletePortMapping", self._wishes[transport].entry(port))
        except _FAILURES as error:  # it ends by its lease
            self._trace("net", "upnp_failed", gateway=self._gateway.host, reason=str(error) or type(error).__name__)

    async def _call(self, service: IgdService, action: str, arguments: Mapping[str, str | int]) -> Element:
        answer = await ask(service.location.address, self._gateway.local, soap_request(service, action, arguments))
        return parse_soap(answer, action)

    def _refuse(self, transport: Transport, code: int, reason: str) -> None:
        self._on_event(PortRefused(transport=transport, protocol="UPnP", code=code, reason=reason))

    def _refuse_all(self, code: int, reason: str) -> None:
        for transport in self._transports:
            self._refuse(transport, code, reason)

    def _tell_all(self, reason: str) -> None:
        for transport in self._transports:
            self._on_event(PortUnmapped(transport=transport, reason=f"PCP, NAT-PMP, UPnP: {reason}"))


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; cancelled, wait for its end first, unless cancelled again."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
