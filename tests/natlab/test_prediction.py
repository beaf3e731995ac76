"""Classification, plan and predicted ports on real sockets, through a router that really gives one port after the other."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from p2ptunnel.net.dial import Dial, punch_socket
from p2ptunnel.net.sockets import ANY_IPV4, reset_close
from p2ptunnel.protocol.nat import Mapping, NatProfile, classify
from p2ptunnel.protocol.strategy import Method, Plan, choose
from p2ptunnel.testing.natlab import Lab, Site
from p2ptunnel.types import Address, Role
from p2ptunnel.wire.messages import NatHints

TTL = 2  # dies at the internet's router
DELAY = 0.025
WINDOW = 0.5  # seconds of the only phase that is tried
OBSERVER_PORTS = (7000, 7001)
PORT = 42_000


class Side:
    """One host and its punching port."""

    def __init__(self, site: Site, role: Role, port: int) -> None:
        self.role = role
        self.connected = asyncio.Event()
        self.mapping = Mapping("unknown")
        self._site, self._port = site, port
        self._dials: list[Dial] = []

    async def look_around(self, observers: list[Address]) -> NatHints:
        """Ask one observer after the other how our port looks."""
        self.mapping = classify(*[await self._ask(observer) for observer in observers])
        return NatProfile(tcp=self.mapping).hints(can_open_low=True, rtt=2 * DELAY)

    async def _ask(self, observer: Address) -> Address:
        with self._site.host.inside():
            sock = punch_socket((ANY_IPV4, self._port))
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, observer)
            host, port = (await loop.sock_recv(sock, 64)).decode().split()
            return host, int(port)
        finally:
            reset_close(sock)

    def begin(self, plan: Plan, peer: Side) -> None:
        """Dial what the plan says in phase 0."""
        assert peer.mapping.observed is not None
        ttl = TTL if plan.sends_low(0) else None
        with self._site.host.inside():
            for target in plan.targets((peer.mapping.observed,), 0):
                dial = Dial((ANY_IPV4, self._port), target, self._ended, rng=random.Random(1), low_ttl=ttl, redials=0)
                self._dials.append(dial)
                dial.connect()

    def close(self) -> None:
        for dial in self._dials:
            dial.close()

    def _ended(self, dial: Dial) -> None:
        if dial.record.outcome == "connected":
            self.connected.set()


@contextlib.asynccontextmanager
async def observing(lab: Lab) -> AsyncIterator[list[Address]]:
    """Tell whoever connects how it looks, at two ports and two addresses."""

    async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = writer.get_extra_info("peername")
        writer.write(f"{host} {port}".encode())
        writer.close()

    one, other = lab.server.ips
    addresses = [(one, OBSERVER_PORTS[0]), (one, OBSERVER_PORTS[1]), (other, OBSERVER_PORTS[0])]
    async with contextlib.AsyncExitStack() as stack:
        for address in addresses:
            sock = lab.server.socket()
            sock.bind(address)
            await stack.enter_async_context(await asyncio.start_server(tell, sock=sock))
        yield addresses


async def meet(lab: Lab, caller: Site, callee: Site, port: int) -> tuple[Plan, bool]:
    """Return the caller's plan, and whether phase 0 connects the two."""
    calling, called = Side(caller, "caller", port), Side(callee, "callee", port)
    async with observing(lab) as observers:
        own, other = await asyncio.gather(calling.look_around(observers), called.look_around(observers))
        plan = choose("tcp", "caller", own, other)
        try:
            called.begin(choose("tcp", "callee", other, own), calling)
            asyncio.get_running_loop().call_later(2 * DELAY, calling.begin, plan, called)
            async with asyncio.timeout(WINDOW):
                await asyncio.gather(calling.connected.wait(), called.connected.wait())
        except TimeoutError:
            return plan, False
        else:
            return plan, True
        finally:
            calling.close()
            called.close()


@pytest.mark.parametrize(("caller", "callee"), [("symS", "pr"), ("prR", "symS"), ("symS", "shift"), ("symS", "symS")])
def test_the_port_that_comes_next_is_met(natlab: Lab, caller: str, callee: str) -> None:
    sites = natlab.site(caller, delay=DELAY), natlab.site(callee, delay=DELAY)
    plan, connected = asyncio.run(meet(natlab, *sites, PORT))
    assert plan.method is Method.PREDICT
    assert connected


def test_for_what_nobody_can_predict_there_is_no_plan(natlab: Lab) -> None:
    sites = natlab.site("symR", delay=DELAY), natlab.site("symS", delay=DELAY)
    plan, connected = asyncio.run(meet(natlab, *sites, PORT))
    assert plan.method is Method.NONE
    assert not connected
