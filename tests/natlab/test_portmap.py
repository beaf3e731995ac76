"""Ways in through a real router's daemon: made, used from outside, renewed, lost and found again, taken back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from p2ptunnel.net.announcements import Announcements
from p2ptunnel.net.portmap import PortMapper
from p2ptunnel.protocol import portmap
from p2ptunnel.protocol.portmapping import PortMapEvent, PortMapped, PortMapping, PortRefused, PortUnmapped, double_nat
from p2ptunnel.testing.natlab import Host, Lab, Site
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.types import Address, Transport
from tests.helpers import run
from tests.natlab.miniupnpd import WAN, Miniupnpd, home, require

pytestmark = pytest.mark.daemons

T = TypeVar("T")

PORT = 40123
ANY = ("0.0.0.0", PORT)
BOTH: tuple[Transport, ...] = ("tcp", "udp")
PROTOCOLS = ["PCP", "NAT-PMP", "UPnP"]
NO_PCP = "add table inet deaf; add chain inet deaf i { type filter hook input priority -5; }; "
DEAF = NO_PCP + "add rule inet deaf i udp dport 5351 @th,64,8 2 drop"


@pytest.fixture(autouse=True)
def daemons() -> None:
    require()


@pytest.fixture(autouse=True)
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """This router is near and answers in milliseconds; what is renewed, or asked again, need not wait for its pause."""
    monkeypatch.setattr(portmap, "PORTMAP_FIRST", 0.15)
    monkeypatch.setattr(portmap, "PORTMAP_PAUSE", 0.3)


class Changes:
    """What a mapper tells, to be waited for."""

    def __init__(self) -> None:
        self.events: list[PortMapEvent] = []
        self.renewals: list[str] = []
        self._arrived = asyncio.Event()

    def __call__(self, event: PortMapEvent) -> None:
        self.events.append(event)
        self._arrived.set()

    def trace(self, event: TraceEvent) -> None:
        if event.name == "port_mapping":
            self.renewals.append(str(event.facts["outcome"]))
            self._arrived.set()

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._arrived.clear()
            await self._arrived.wait()


@contextlib.contextmanager
def serving(site: Site, protocol: str, directory: Path, **settings: str) -> Iterator[Miniupnpd]:
    """The daemon, on a router that speaks one protocol only."""
    if protocol == "NAT-PMP":
        site.router.nft(DEAF)
    with Miniupnpd(site, directory, **({"enable_natpmp": "no"} if protocol == "UPnP" else {}) | settings).running() as daemon:
        yield daemon


def at(host: Host, body: Callable[[], Awaitable[T]], timeout: float = 40) -> T:
    """Run a program of asyncio on a machine of the laboratory."""

    async def main() -> T:
        return await body()

    return host.thread(lambda: run(main(), timeout)).result(timeout + 5)


async def mapped(mapper: PortMapper) -> tuple[PortMapping, PortMapping]:
    await mapper.settle()
    tcp, udp = (mapper.mapped(transport) for transport in BOTH)
    assert tcp is not None, str(mapper.outcome("tcp"))
    assert udp is not None, str(mapper.outcome("udp"))
    return tcp, udp


def prove(lab: Lab, host: Host, tcp: PortMapping, udp: PortMapping) -> None:
    """Send through both mappings from outside."""
    with contextlib.ExitStack() as stack:
        listener, caller = (stack.enter_context(machine.socket()) for machine in (host, lab.server))
        inbox, sender = (stack.enter_context(machine.socket(type=socket.SOCK_DGRAM)) for machine in (host, lab.server))
        for each in (listener, caller, inbox, sender):
            each.settimeout(5)
        listener.bind(tcp.local)
        listener.listen()
        caller.connect(tcp.external)
        accepted, source = listener.accept()
        accepted.close()
        assert source[0] == lab.server.ip
        inbox.bind(udp.local)
        sender.sendto(b"knock", udp.external)
        assert inbox.recvfrom(16)[0] == b"knock"


def forwards(daemon: Miniupnpd) -> list[str]:
    """The kernel's rules that let somebody in."""
    return [line.strip() for line in daemon.rules().splitlines() if "dnat" in line and "priority" not in line]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_way_in_is_made_and_used_and_taken_back(natlab: Lab, tmp_path: Path, protocol: str) -> None:
    site = home(natlab)

    async def body() -> None:
        async with PortMapper(ANY) as mapper:
            tcp, udp = await mapped(mapper)
            for mapping in (tcp, udp):
                assert mapping.protocol == protocol
                assert mapping.external == (WAN, PORT)
                assert mapping.local == (site.host.ip, PORT)
                assert mapping.gateway == str(site.lan[1])
                assert double_nat(mapping.external[0], WAN) == ""
            prove(natlab, site.host, tcp, udp)
            assert len(forwards(daemon)) == 2
            listed = daemon.listed()
            assert f"TCP {PORT}->{site.host.ip}:{PORT}" in listed
            assert f"UDP {PORT}->{site.host.ip}:{PORT}" in listed
        assert mapper.mapped("tcp") is None

    with serving(site, protocol, tmp_path) as daemon:
        at(site.host, body)
        assert forwards(daemon) == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_port_that_a_neighbour_has_is_another_one(natlab: Lab, tmp_path: Path, protocol: str) -> None:
    site = home(natlab, hosts=2)

    async def neighbour() -> None:
        async with PortMapper(ANY) as first:
            await mapped(first)
            await asyncio.to_thread(at, site.hosts[1], newcomer)

    async def newcomer() -> None:
        async with PortMapper(ANY) as second:
            tcp, udp = await mapped(second)
            assert {tcp.external[0], udp.external[0]} == {WAN}
            assert PORT not in {tcp.external[1], udp.external[1]}
            assert tcp.local == (site.hosts[1].ip, PORT)
            prove(natlab, site.hosts[1], tcp, udp)

    with serving(site, protocol, tmp_path) as daemon:
        at(site.host, neighbour)
        assert forwards(daemon) == []


@pytest.mark.parametrize(("protocol", "code"), [("PCP", 8), ("NAT-PMP", 3), ("UPnP", 0)])
def test_a_router_that_is_behind_another_says_so(natlab: Lab, tmp_path: Path, protocol: str, code: int) -> None:
    site = home(natlab, wan_address="198.51.100.7")  # of a documentation range, as if between two NATs

    async def body() -> None:
        async with PortMapper(ANY) as mapper:
            await mapper.settle()
            outcome = mapper.outcome("tcp")
            assert isinstance(outcome, PortRefused)
            assert (outcome.protocol, outcome.code) == (protocol, code)

    with serving(site, protocol, tmp_path) as daemon:
        at(site.host, body)
        assert forwards(daemon) == []


def test_a_router_that_forbids_the_port_is_a_refusal_with_its_code(natlab: Lab, tmp_path: Path) -> None:
    site = home(natlab)  # by UPnP: asked by PCP for what it forbids, this daemon turns in a circle and answers nobody any more

    async def body() -> None:
        async with PortMapper(("0.0.0.0", 2000)) as mapper:
            await mapper.settle()
            outcome = mapper.outcome("udp")
            assert isinstance(outcome, PortRefused)
            assert (outcome.protocol, outcome.code) == ("UPnP", 728)

    with serving(site, "UPnP", tmp_path, allowed="3000-65535") as daemon:
        at(site.host, body)
        assert forwards(daemon) == []


def test_where_no_router_maps_ports_that_is_known_in_two_seconds(natlab: Lab) -> None:
    site = home(natlab)

    async def body() -> float:
        began = asyncio.get_running_loop().time()
        async with PortMapper(ANY) as mapper:
            await mapper.settle()
            assert [type(mapper.outcome(transport)) for transport in BOTH] == [PortUnmapped, PortUnmapped]
            return asyncio.get_running_loop().time() - began

    assert at(site.host, body) < 3.0


def test_a_host_without_a_router_asks_nobody(natlab: Lab) -> None:
    async def body() -> str:
        async with PortMapper(ANY) as mapper:
            await mapper.settle()
            return str(mapper.outcome("tcp"))

    with natlab.capture(natlab.server, "udp port 5351 or udp port 1900") as packets:
        at(natlab.server, body)
    assert [line for line in packets.lines if "192.168" in line] == []


def test_a_mapping_is_renewed_before_it_ends(natlab: Lab, tmp_path: Path) -> None:
    site = home(natlab)

    async def body() -> None:
        changes = Changes()
        async with PortMapper(ANY, on_change=changes, tracer=Tracer(changes.trace)) as mapper:
            tcp, udp = await mapped(mapper)
            assert tcp.lifetime == 4
            await changes.until(lambda: len(changes.renewals) == 6)  # both were renewed twice: four seconds
            assert len(set(changes.renewals)) == 2
            assert len(changes.events) == 2  # nothing to tell
            prove(natlab, site.host, tcp, udp)

    with serving(site, "PCP", tmp_path, min_lifetime="3", max_lifetime="4"):  # its limits hold for PCP only
        at(site.host, body)


@pytest.mark.parametrize("protocol", ["PCP", "NAT-PMP"])
def test_a_router_that_has_restarted_is_asked_again_within_seconds(natlab: Lab, tmp_path: Path, protocol: str) -> None:
    site = home(natlab)

    async def body() -> None:
        changes = Changes()
        async with PortMapper(ANY, on_change=changes, entropy=AtOnce(), tracer=Tracer(changes.trace)) as mapper:
            await mapped(mapper)
            await grow_older(changes, mapper)
            daemon.stop()
            daemon.forget()
            assert forwards(daemon) == []
            before = len(changes.renewals)
            daemon.start()
            await changes.until(lambda: len(changes.renewals) >= before + 2)
            assert len(forwards(daemon)) == 2
            prove(natlab, site.host, *await mapped(mapper))

    with serving(site, protocol, tmp_path) as daemon:
        at(site.host, body)


class AtOnce(random.SystemRandom):
    """Waits no longer than it must."""

    def random(self) -> float:
        return 0.0


async def grow_older(changes: Changes, mapper: PortMapper) -> None:
    """Wait until the router's clock, which counts seconds, has told us so much that a restart turns it back."""
    loop = asyncio.get_running_loop()
    grown = loop.create_future()
    loop.call_later(3, grown.set_result, None)
    await grown
    before = len(changes.renewals)
    mapper.refresh()
    await changes.until(lambda: len(changes.renewals) >= before + 2)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_asked_anew_on_a_change_of_network_the_mapping_stays(natlab: Lab, tmp_path: Path, protocol: str) -> None:
    site = home(natlab)

    async def body() -> None:
        changes = Changes()
        async with PortMapper(ANY, on_change=changes, tracer=Tracer(changes.trace)) as mapper:
            former = await mapped(mapper)
            before = len(changes.renewals)
            mapper.refresh()
            assert mapper.mapped("tcp") == former[0]
            await changes.until(lambda: len(changes.renewals) >= before + 2)
            assert await mapped(mapper) == former
            assert [type(event) for event in changes.events] == [PortMapped, PortMapped]

    with serving(site, protocol, tmp_path):
        at(site.host, body)


def test_a_router_that_is_gone_is_told_and_another_is_asked(natlab: Lab, tmp_path: Path) -> None:
    site = home(natlab)

    async def body() -> None:
        changes = Changes()
        async with PortMapper(ANY, on_change=changes) as mapper:
            await mapped(mapper)
            site.host.run(["ip", "route", "del", "default"])
            mapper.refresh()
            assert mapper.mapped("tcp") is None
            assert str(mapper.outcome("tcp")) == "tcp not mapped: the default route has no router"
            site.host.run(["ip", "route", "add", "default", "via", str(site.lan[1])])
            mapper.refresh()
            await changes.until(lambda: mapper.mapped("tcp") is not None and mapper.mapped("udp") is not None)

    with serving(site, "PCP", tmp_path) as daemon:
        at(site.host, body)
        assert forwards(daemon) == []


@pytest.mark.parametrize(
    ("protocol", "after"),
    [*itertools.product(["PCP", "UPnP"], [0.0, 0.003, 0.03, 0.3]), ("NAT-PMP", 1.2)],  # which is asked after a second
)
def test_cancelled_at_any_time_nothing_stays_mapped(natlab: Lab, tmp_path: Path, protocol: str, after: float) -> None:
    site = home(natlab)

    async def life() -> None:
        async with PortMapper(ANY) as mapper:
            await mapper.settle()
            await asyncio.get_running_loop().create_future()

    async def body() -> None:
        task = asyncio.create_task(life())
        loop = asyncio.get_running_loop()
        until = loop.create_future()
        loop.call_later(after, until.set_result, None)
        await until
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with serving(site, protocol, tmp_path) as daemon:
        at(site.host, body)
        assert forwards(daemon) == []


def test_another_client_of_the_router_sees_what_we_see(natlab: Lab, tmp_path: Path) -> None:
    site = home(natlab)
    gateway = str(site.lan[1])

    def natpmpc(*arguments: str) -> str:
        return site.host.run(["natpmpc", "-g", gateway, *arguments]).stdout

    async def body() -> None:
        async with PortMapper(ANY) as mapper:
            tcp, _ = await mapped(mapper)
            assert f"Public IP address : {tcp.external[0]}" in await asyncio.to_thread(natpmpc)
            theirs = await asyncio.to_thread(natpmpc, "-a", str(PORT + 1), str(PORT + 1), "udp", "60")
            assert f"Mapped public port {PORT + 1} protocol UDP" in theirs
            assert len(forwards(daemon)) == 3

    with serving(site, "PCP", tmp_path) as daemon:
        at(site.host, body)
        assert len(forwards(daemon)) == 1  # theirs


@pytest.mark.parametrize("gateway", ["2001:db8:1::1", "fe80::9"])
def test_the_firewall_of_ipv6_is_opened_and_closed(natlab: Lab, tmp_path: Path, gateway: str) -> None:
    site = home(natlab, "v6_open")
    site.router.namespace.netlink.add_address("lan", "fe80::9/64")
    site.router.nft(
        'add rule inet miniupnpd forward iifname "wan" meta nfproto ipv6 meta l4proto { tcp, udp } ct state new drop'
    )
    site.host.run(["ip", "-6", "route", "replace", "default", "via", gateway, "dev", "eth0"])

    def knock() -> str:
        with site.host.socket(socket.AF_INET6) as listener, natlab.server.socket(socket.AF_INET6) as caller:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("::", PORT))
            listener.listen()
            listener.settimeout(2)
            caller.settimeout(0.2)
            assert site.host.ip6 is not None
            caller.connect((site.host.ip6, PORT))
            accepted, source = listener.accept()
            accepted.close()
            return str(source[0])

    async def body() -> None:
        with pytest.raises(TimeoutError):
            knock()
        async with PortMapper(("::", PORT)) as mapper:
            tcp, udp = await mapped(mapper)
            assert tcp.external == udp.external == (site.host.ip6, PORT)
            assert tcp.protocol == "PCP"
            assert knock() == natlab.server.ip6
        with pytest.raises(TimeoutError):
            knock()

    with serving(site, "PCP", tmp_path):
        at(site.host, body)


def test_every_program_of_a_machine_hears_them(natlab: Lab) -> None:
    site = natlab.site("pr")

    async def main() -> list[tuple[bytes, str]]:
        heard: list[tuple[bytes, str]] = []
        both = asyncio.Event()

        def hear(data: bytes, source: Address) -> None:
            heard.append((data, source[0]))
            if len(heard) == 2:
                both.set()

        listeners = [Announcements(site.host.ip, hear, Tracer()) for _ in range(2)]
        with site.router.socket(type=socket.SOCK_DGRAM) as router:
            router.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(str(site.lan[1])))
            router.sendto(b"news", ("224.0.0.1", 5350))
            await both.wait()
        for listener in (*listeners, *listeners):
            listener.close()
        return heard

    assert site.host.thread(lambda: run(main())).result(20) == [(b"news", str(site.lan[1]))] * 2
