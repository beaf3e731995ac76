"""Keeps a local port reachable through the router, over TCP and UDP: by PCP, NAT-PMP or UPnP, whichever it speaks.

Rule: what was asked for is taken back, by `aclose`, by a change of the network, and when a task is cancelled.  Only what the
router itself says counts.

Source: docs/explanation/nat.md.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Final, Self

from p2ptunnel.defaults import PORTMAP_CLOSE, PORTMAP_FIRST, PORTMAP_PORT
from p2ptunnel.errors import BindError, LocalProtocolError
from p2ptunnel.net.announcements import Announcements
from p2ptunnel.net.gateway import Gateway, find_gateway
from p2ptunnel.net.igd import IgdClient
from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.protocol.machine import Entropy, Event
from p2ptunnel.protocol.portmap import MappingsReturned, PortMapClient
from p2ptunnel.protocol.portmapping import NobodyMaps, PortMapEvent, PortMapped, PortMapping, PortUnmapped, mappable_port
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address, Transport

__all__ = ["PortMapper"]


class PortMapper:
    """Keeps one local port mapped at the router that the default route leads to.

    Nothing waits for it: `mapped` says what stands now, `on_change` when that is another.  Where nobody answers, or the router
    refuses, it asks again every half hour, and after `refresh`.

        async with PortMapper(("0.0.0.0", 40123)) as mapper:
            await mapper.settle()
            print(mapper.mapped("tcp"))
    """

    def __init__(
        self,
        local: Address,
        *,
        transports: Iterable[Transport] = ("tcp", "udp"),
        on_change: Callable[[PortMapEvent], None] | None = None,
        find: Callable[[str], Gateway | None] = find_gateway,
        entropy: Entropy | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            local: The port to map, 1024 or above; the host, which may be `0.0.0.0` or `::`, says which family.
            transports: For which to ask.
            on_change: Told of a mapping that is new or another one, and of why there is none; may call `refresh`.
            find: Returns the router for a local host.
            entropy: Draws nonces and waits.
            tracer: Gets what happens.

        Raises:
            ConfigError: The port is privileged.
        """
        self._local: Final = (local[0], mappable_port(local[1]))
        self._transports: Final = tuple(transports)
        self._on_change = on_change
        self._find = find
        self._entropy = entropy or random.SystemRandom()
        self._trace = tracer or Tracer()
        self._outcomes: dict[Transport, PortMapEvent] = {}
        self._settled = asyncio.Event()
        self._gateway: Gateway | None = None
        self._asking: _Asking | None = None
        self._igd: IgdClient | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_started = self._is_closed = False

    def start(self) -> None:
        """Begin to ask, on the loop that runs.

        Raises:
            LocalProtocolError: It has begun already, or was closed.
        """
        if self._is_started or self._is_closed:
            raise LocalProtocolError("a port mapper is started once")
        self._is_started = True
        self._enter(self._find(self._local[0]))

    def mapped(self, transport: Transport) -> PortMapping | None:
        """Return the way in that stands now, None if there is none."""
        outcome = self._outcomes.get(transport)
        return outcome.mapping if isinstance(outcome, PortMapped) else None

    def outcome(self, transport: Transport) -> PortMapEvent | None:
        """Return what has become of the wish, None if nobody has answered yet; `str` of it says so to people."""
        return self._outcomes.get(transport)

    async def settle(self) -> None:
        """Wait until every transport has an outcome: milliseconds where the router answers, five seconds where nobody does."""
        await self._settled.wait()

    def refresh(self) -> None:
        """Look at the network, which has changed, and ask anew; the mapping of a router that is still there stays meanwhile."""
        if not self._is_started or self._is_closed:
            return
        gateway = self._find(self._local[0])
        if gateway != self._gateway or self._asking is None:
            self._leave()
            self._enter(gateway)
        else:
            self._asking.ask()

    def abort(self) -> None:
        """Take back what was mapped, as far as that can be done without waiting; closing twice is fine."""
        self._is_closed = True
        self._outcomes.clear()
        self._drop_router()

    async def aclose(self) -> None:
        """Take back what was mapped; waits two seconds, a moment if the router never answered; closing twice is fine."""
        self._is_closed = True
        self._outcomes.clear()
        asking, self._asking = self._asking, None
        try:
            self._stop_igd()
            if asking is not None:
                await asking.take_back()
        finally:
            if asking is not None:
                asking.close()
            await _end_of(self._tasks)

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- one router -------------------------------------------------------------------------------------------------------

    def _enter(self, gateway: Gateway | None) -> None:
        self._gateway = gateway
        if gateway is None:
            self._unmap_all("the default route has no router")
            return
        try:
            self._asking = _Asking(gateway, self._local[1], self._transports, self._take, self._entropy, self._trace)
        except BindError as error:
            self._unmap_all(error.reason)
        else:
            self._asking.ask()

    def _leave(self) -> None:
        self._drop_router()
        self._unmap(filter(self.mapped, self._transports), "the network has changed")

    def _drop_router(self) -> None:
        """Take back what can be without waiting, and forget the router."""
        self._stop_igd()
        if self._asking is not None:
            self._asking.take_back_now()
            self._asking.close()
            self._asking = None

    def _start_igd(self, gateway: Gateway) -> None:
        def take(event: PortMapEvent) -> None:
            if client is self._igd:  # else it is the end of a question that nobody waits for any more
                self._note(event)

        client = IgdClient(gateway, self._local[1], self._transports, take, self._entropy, self._trace)
        self._igd = client
        self._igd_task = asyncio.create_task(client.run(), name="p2ptunnel-igd")
        self._tasks.add(self._igd_task)
        self._igd_task.add_done_callback(self._tasks.discard)

    def _stop_igd(self) -> None:
        if self._igd is not None:
            self._igd = None
            self._igd_task.cancel()

    # --- what comes of it -------------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        if isinstance(event, NobodyMaps):
            self._on_nobody(event.reason)
        elif isinstance(event, PortMapEvent):
            if not isinstance(event, PortUnmapped):  # a router that speaks PCP or NAT-PMP is asked by no other means
                self._stop_igd()
            self._note(event)

    def _on_nobody(self, reason: str) -> None:
        if self._gateway is None or ":" in self._gateway.host:
            self._unmap_all(f"PCP: {reason}")
        elif self._igd is None:
            self._start_igd(self._gateway)
        else:
            self._igd.refresh()

    def _unmap_all(self, reason: str) -> None:
        self._unmap(self._transports, reason)

    def _unmap(self, transports: Iterable[Transport], reason: str) -> None:
        for transport in tuple(transports):
            self._note(PortUnmapped(transport=transport, reason=reason))

    def _note(self, event: PortMapEvent) -> None:
        before = self._outcomes.get(event.transport)
        self._outcomes[event.transport] = event
        if len(self._outcomes) == len(self._transports):
            self._settled.set()
        self._trace("net", "port_mapping", transport=event.transport, outcome=str(event))
        if str(event) != str(before) and self._on_change is not None:
            self._on_change(event)


class _Asking:
    """The machine that asks one router by PCP and NAT-PMP, its socket, and the news that the router tells everybody."""

    def __init__(
        self,
        gateway: Gateway,
        port: int,
        transports: Iterable[Transport],
        on_event: Callable[[Event], None],
        entropy: Entropy,
        tracer: Tracer,
    ) -> None:
        router = (gateway.host, PORTMAP_PORT)
        self._machine = PortMapClient(router, gateway.local, port, entropy, transports=transports)
        self._on_event = on_event
        self._returned = asyncio.Event()
        self._udp = UdpSocket((gateway.local, 0), remote=router, shared=False, on_refused=self._find_shut, tracer=tracer)
        self._driver = UdpDriver(self._machine, self._udp, self._take)
        self._driver.start()
        self._news = Announcements(gateway.local, self._hear, tracer)

    def ask(self) -> None:
        self._machine.start(time.monotonic())
        self._driver.wake()

    def take_back_now(self) -> None:
        self._machine.close(time.monotonic())
        for datagram in self._machine.datagrams_to_send():  # now: the driver may be at work, and closed before it comes to it
            self._udp.send(datagram.data, datagram.destination)
        self._driver.wake()

    async def take_back(self) -> None:
        patience = PORTMAP_CLOSE if self._machine.has_answered else PORTMAP_FIRST  # it may be about to answer
        self.take_back_now()
        try:
            async with asyncio.timeout(patience):
                await self._returned.wait()
        except TimeoutError:  # the lifetime ends it
            return

    def close(self) -> None:
        self._news.close()
        self._driver.close()

    def _take(self, event: Event) -> None:
        if isinstance(event, MappingsReturned):
            self._returned.set()
        else:
            self._on_event(event)

    def _find_shut(self) -> None:
        self._machine.find_shut(time.monotonic())
        asyncio.get_running_loop().call_soon(self._driver.wake)  # the driver is at work now

    def _hear(self, data: bytes, source: Address) -> None:
        self._machine.receive_announcement(data, source, time.monotonic())
        self._driver.wake()


async def _end_of(tasks: set[asyncio.Task[None]]) -> None:
    """Wait for tasks that were cancelled and have something to end; cancelled, go on waiting: each is bounded."""
    while tasks:
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
