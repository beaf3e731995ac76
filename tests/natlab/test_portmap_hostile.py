"""Routers that refuse in odd ways, lie, hang, or are somebody else: bounded, told, and never believed too much."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import pytest

from p2ptunnel.defaults import IGD_ANSWER_MAX_BYTES, IGD_TRIES
from p2ptunnel.net import http as net_http
from p2ptunnel.net import igd as net_igd
from p2ptunnel.net import portmap as net_portmap
from p2ptunnel.net.portmap import PortMapper
from p2ptunnel.protocol.portmapping import PortMapEvent, PortMapped, PortRefused, double_nat
from p2ptunnel.testing.natlab import Lab, Site
from tests.natlab.fake_igd import IP_1, IP_2, Answer, FakeIgd, fault, http, returns
from tests.natlab.miniupnpd import WAN, home
from tests.natlab.test_portmap import at, mapped

PORT = 40123
ANY = ("0.0.0.0", PORT)
SEARCH, TIMEOUT = 0.3, 0.6
HANG = b"HTTP/1.1 200 OK\r\nX-Hang: yes\r\n"


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """These routers answer at once, or never."""
    monkeypatch.setattr(net_igd, "IGD_SEARCH", SEARCH)
    monkeypatch.setattr(net_http, "IGD_TIMEOUT", TIMEOUT)
    monkeypatch.setattr(net_igd, "PORTMAP_CLOSE", TIMEOUT)
    monkeypatch.setattr(net_portmap, "PORTMAP_CLOSE", TIMEOUT)


def location(site: Site) -> str:
    return f"http://{site.lan[1]}:5000/desc.xml"


def agrees(action: str, arguments: Mapping[str, str]) -> bytes:
    """A router that grants everything."""
    match action:
        case "":
            return b""
        case "GetExternalIPAddress":
            return returns(action, NewExternalIPAddress=WAN)
        case "AddAnyPortMapping":
            return returns(action, NewReservedPort=arguments["NewExternalPort"])
        case _:
            return returns(action)


def test_a_router_that_maps_for_ever_only_is_not_asked_to(natlab: Lab) -> None:
    site = home(natlab)

    def answer(action: str, arguments: Mapping[str, str]) -> bytes:
        return fault(725) if action == "AddPortMapping" else agrees(action, arguments)

    async def body() -> None:
        async with FakeIgd(site.router, answer, location=location(site)) as igd, PortMapper(ANY) as mapper:
            await mapper.settle()
            outcome = mapper.outcome("tcp")
            assert isinstance(outcome, PortRefused)
            assert outcome.code == 725
            assert igd.actions == ["GetExternalIPAddress", "AddPortMapping", "AddPortMapping"]
            assert all(int(arguments.get("NewLeaseDuration", "1")) > 0 for _, arguments in igd.asked)

    at(site.host, body)


def test_of_taken_ports_a_few_are_tried(natlab: Lab) -> None:
    site = home(natlab)

    def answer(action: str, arguments: Mapping[str, str]) -> bytes:
        return fault(718) if action == "AddPortMapping" else agrees(action, arguments)

    async def body() -> None:
        async with FakeIgd(site.router, answer, location=location(site)) as igd:
            async with PortMapper(ANY, transports=("tcp",)) as mapper:
                await mapper.settle()
                assert str(mapper.outcome("tcp")) == "tcp refused by UPnP: another machine has the port (718)"
            tried = [arguments["NewExternalPort"] for action, arguments in igd.asked if action == "AddPortMapping"]
            assert tried[0] == str(PORT)
            assert len(set(tried)) == IGD_TRIES
            assert "DeletePortMapping" not in igd.actions  # nothing of ours stands there

    at(site.host, body)


def test_a_port_that_the_router_has_given_to_another_is_let_go_when_ours_is_renewed(natlab: Lab) -> None:
    site = home(natlab)
    taken: set[str] = set()

    def answer(action: str, arguments: Mapping[str, str]) -> bytes:
        if action == "AddPortMapping" and arguments["NewExternalPort"] in taken:
            return fault(718)
        return agrees(action, arguments)

    async def body() -> None:
        changed = asyncio.Event()
        async with FakeIgd(site.router, answer, location=location(site)) as igd:
            async with PortMapper(ANY, transports=("udp",), on_change=lambda _: changed.set()) as mapper:
                await mapper.settle()
                taken.add(str(PORT))
                changed.clear()
                mapper.refresh()
                await changed.wait()
                mapping = mapper.mapped("udp")
                assert mapping is not None
                assert mapping.external[1] != PORT
            deleted = [arguments["NewExternalPort"] for action, arguments in igd.asked if action == "DeletePortMapping"]
            assert deleted == [str(PORT), str(mapping.external[1])]

    at(site.host, body)


@pytest.mark.parametrize("kind", [IP_1, IP_2])
def test_each_version_is_asked_in_its_own_way(natlab: Lab, kind: str) -> None:
    site = home(natlab)

    async def body() -> None:
        async with FakeIgd(site.router, agrees, kind=kind, location=location(site)) as igd:
            async with PortMapper(ANY) as mapper:
                await mapped(mapper)
            add = "AddAnyPortMapping" if kind == IP_2 else "AddPortMapping"
            assert igd.actions == ["GetExternalIPAddress", add, add, "DeletePortMapping", "DeletePortMapping"]

    at(site.host, body)


def test_a_newer_router_without_the_newer_action_is_asked_by_the_older_one(natlab: Lab) -> None:
    site = home(natlab)

    def answer(action: str, arguments: Mapping[str, str]) -> bytes:
        return fault(401) if action == "AddAnyPortMapping" else agrees(action, arguments)

    async def body() -> None:
        async with FakeIgd(site.router, answer, kind=IP_2, location=location(site)), PortMapper(ANY) as mapper:
            await mapped(mapper)

    at(site.host, body)


@pytest.mark.parametrize("port", ["80", "0", "99999", "-1", "x" * 1000, ""])
def test_a_privileged_or_absurd_port_is_handed_back(natlab: Lab, port: str) -> None:
    site = home(natlab)

    def answer(action: str, arguments: Mapping[str, str]) -> bytes:
        return returns(action, NewReservedPort=port) if action == "AddAnyPortMapping" else agrees(action, arguments)

    async def body() -> None:
        async with FakeIgd(site.router, answer, kind=IP_2, location=location(site)) as igd:
            async with PortMapper(ANY, transports=("tcp",)) as mapper:
                await mapper.settle()
                mapping = mapper.mapped("tcp")
                assert mapping is None or mapping.external == (WAN, PORT)  # it did not say: what was asked for
                assert mapping is None or not port.isdigit()
            assert igd.actions.count("DeletePortMapping") == 1

    at(site.host, body)


def test_a_router_below_another_nat_maps_what_only_its_neighbours_can_reach(natlab: Lab) -> None:
    site = home(natlab, "pr_cgn", wan_address=None)

    def answer(action: str, arguments: Mapping[str, str]) -> bytes:
        if action == "GetExternalIPAddress":
            return returns(action, NewExternalIPAddress=site.wan_address)
        return agrees(action, arguments)

    async def body() -> None:
        async with FakeIgd(site.router, answer, location=location(site)), PortMapper(ANY) as mapper:
            tcp, _ = await mapped(mapper)
            assert tcp.external == (site.wan_address, PORT)
            assert double_nat(tcp.external[0]) == f"the router's outside address {site.wan_address} is private"

    at(site.host, body)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "127.0.0.1", "router.example", "255.255.255.255"])
def test_a_router_without_an_outside_address_is_asked_for_no_port(natlab: Lab, host: str) -> None:
    site = home(natlab)

    def answer(action: str, arguments: Mapping[str, str]) -> bytes:
        return returns(action, NewExternalIPAddress=host) if action else b""

    async def body() -> None:
        async with FakeIgd(site.router, answer, location=location(site)) as igd:
            async with PortMapper(ANY) as mapper:
                await mapper.settle()
                assert isinstance(mapper.outcome("tcp"), PortRefused)
            assert igd.actions == ["GetExternalIPAddress"]

    at(site.host, body)


def test_a_router_that_cannot_tell_its_address_is_a_refusal_with_its_code(natlab: Lab) -> None:
    site = home(natlab)

    async def body() -> None:
        answer: Answer = lambda action, _: fault(501) if action else b""  # noqa: E731
        async with FakeIgd(site.router, answer, location=location(site)), PortMapper(ANY) as mapper:
            await mapper.settle()
            outcome = mapper.outcome("udp")
            assert isinstance(outcome, PortRefused)
            assert outcome.code == 501

    at(site.host, body)


def test_a_router_that_speaks_nonsense_is_looked_for_again_when_it_is_asked_anew(natlab: Lab) -> None:
    site = home(natlab)
    is_sober = False

    def answer(action: str, arguments: Mapping[str, str]) -> bytes:
        return agrees(action, arguments) if is_sober or not action else http(b"nonsense")

    async def body() -> None:
        nonlocal is_sober
        told = asyncio.Queue[PortMapEvent]()
        async with FakeIgd(site.router, answer, location=location(site)) as igd:
            async with PortMapper(ANY, transports=("tcp",), on_change=told.put_nowait) as mapper:
                assert str(await told.get()) == "tcp not mapped: PCP, NAT-PMP, UPnP: its answers are of no use"
                is_sober = True
                mapper.refresh()
                assert isinstance(await told.get(), PortMapped)
            assert [action for action, _ in igd.asked][:4] == ["", "GetExternalIPAddress", "", "GetExternalIPAddress"]

    at(site.host, body)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_answers_may_come_in_chunks(natlab: Lab) -> None:
    site = home(natlab)

    def answer(action: str, arguments: Mapping[str, str]) -> bytes:
        whole = agrees(action, arguments)
        text = whole.partition(b"\r\n\r\n")[2]
        if not text:
            return whole
        chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(text[at : at + 50]), text[at : at + 50]) for at in range(0, len(text), 50))
        return CHUNKED + chunks + b"0\r\n\r\n"

    async def body() -> None:
        async with FakeIgd(site.router, answer, location=location(site)), PortMapper(ANY) as mapper:
            await mapped(mapper)

    at(site.host, body)


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        http(b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><x>&b;</x>'),
        http(b"<x>" * 10_000),
        http(b"x" * (IGD_ANSWER_MAX_BYTES + 1)),
        http(b"", fields="Content-Length: 9999999\r\n"),
        http(b"", fields="Content-Length: 100\r\n"),
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000,
        CHUNKED + b"ffffff\r\n",
        CHUNKED + b"1\r\nx\r\n" * IGD_ANSWER_MAX_BYTES,
        CHUNKED + b"no\r\n",
        http(b"<root/>"),
    ],
    ids=["SSH", "entities", "deep", "long", "far too long", "short", "head", "chunk", "chunks", "no chunk", "no service"],
)
def test_a_description_that_is_none_is_left_at_once(natlab: Lab, said: bytes) -> None:
    site = home(natlab)

    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with FakeIgd(site.router, lambda *_: said, location=location(site)) as igd:
            began = loop.time()
            async with PortMapper(ANY) as mapper:
                await mapper.settle()
                assert str(mapper.outcome("tcp")) == "tcp not mapped: PCP, NAT-PMP, UPnP: nobody answers"
            assert igd.asked == [("", {})]
            assert loop.time() - began < SEARCH + 2.0

    at(site.host, body)


def test_a_router_that_never_ends_its_answer_is_left_in_time(natlab: Lab) -> None:
    site = home(natlab)

    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with FakeIgd(site.router, lambda *_: HANG, location=location(site)):
            began = loop.time()
            async with PortMapper(ANY) as mapper:
                await mapper.settle()
                assert mapper.mapped("tcp") is None
            assert TIMEOUT <= loop.time() - began < TIMEOUT + SEARCH + 2.0

    at(site.host, body)


@pytest.mark.parametrize("place", ["http://192.168.1.3:5000/desc.xml", "http://203.0.113.1:5000/x", "https://192.168.1.1/"])
def test_a_router_that_sends_us_elsewhere_is_not_followed(natlab: Lab, place: str) -> None:
    site = home(natlab, hosts=2)

    async def body() -> None:
        async with (
            FakeIgd(site.router, agrees, location=place),
            FakeIgd(site.hosts[1], agrees, location=None) as neighbour,
            FakeIgd(natlab.server, agrees, location=None) as stranger,
            PortMapper(ANY) as mapper,
        ):
            await mapper.settle()
            assert mapper.mapped("tcp") is None
            assert neighbour.asked == stranger.asked == []

    at(site.host, body)


@pytest.mark.parametrize("leads_to", ["itself", "the router"])
def test_a_neighbour_who_says_that_it_is_the_router_is_not_asked(natlab: Lab, leads_to: str) -> None:
    site = home(natlab, hosts=2)
    neighbour = site.hosts[1]
    place = f"http://{neighbour.ip}:5000/desc.xml" if leads_to == "itself" else f"http://{site.lan[1]}:5000/reboot"

    async def body() -> None:
        async with FakeIgd(neighbour, agrees, location=place) as liar, FakeIgd(site.router, agrees) as router:
            liar.listen_to_everybody(neighbour.ip)
            heard = asyncio.Event()
            receive = liar.datagram_received
            liar.datagram_received = lambda data, addr: (heard.set(), receive(data, addr))[1]  # type: ignore[method-assign]
            async with PortMapper(ANY) as mapper:
                await mapper.settle()
                assert heard.is_set()
                assert mapper.mapped("tcp") is None
                assert liar.asked == router.asked == []

    at(site.host, body)


def test_cancelled_while_the_router_thinks_what_it_grants_is_taken_back(natlab: Lab) -> None:
    site = home(natlab)

    async def body() -> None:
        asked = asyncio.Event()

        def answer(action: str, arguments: Mapping[str, str]) -> bytes:
            if action == "AddPortMapping":
                asked.set()
            return agrees(action, arguments)

        async def life() -> None:
            async with PortMapper(ANY) as mapper:
                await mapper.settle()

        async with FakeIgd(site.router, answer, location=location(site)) as igd:
            task = asyncio.create_task(life())
            await asked.wait()
            task.cancel()  # the answer is under way
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert igd.actions == ["GetExternalIPAddress", "AddPortMapping", "DeletePortMapping"]
            deleted = igd.asked[-1][1]
            assert deleted == {"NewRemoteHost": "", "NewExternalPort": str(PORT), "NewProtocol": "TCP"}

    at(site.host, body)


def test_a_router_that_is_gone_keeps_nobody_from_closing(natlab: Lab) -> None:
    site = home(natlab)

    async def body() -> None:
        loop = asyncio.get_running_loop()
        async with PortMapper(ANY) as mapper:
            async with FakeIgd(site.router, agrees, location=location(site)):
                await mapped(mapper)
            site.router.nft("add table inet t; add chain inet t i { type filter hook input priority 0; policy drop; }")
            began = loop.time()
        assert loop.time() - began < TIMEOUT + 2.0

    at(site.host, body)
