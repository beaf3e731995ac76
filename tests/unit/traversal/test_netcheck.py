"""What netcheck finds out, from what observers say; and a real one on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from p2ptunnel.errors import DialError, RendezvousError, RendezvousTimeoutError, ServerKeyError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.net.hops import Hops
from p2ptunnel.net.reflexive import Observation, observe_udp
from p2ptunnel.server import Rendezvous
from p2ptunnel.traversal import netcheck as module
from p2ptunnel.traversal.netcheck import netcheck
from p2ptunnel.traversal.netreport import NetReport, WebReport
from p2ptunnel.types import Address, ServerSpec
from tests.helpers import run
from tests.helpers.turns import cancel_at_each_turn
from tests.unit.traversal.wires import LOOPBACK, silent_server

SERVER: Address = ("203.0.113.1", 7000)
OTHER_PORT: Address = ("203.0.113.1", 7001)
OTHER_HOST: Address = ("203.0.113.2", 7000)
OUTSIDE = "198.51.100.7"
Seen = dict[Address, Address | None]


class World:
    """What the observers see; an observer that is not here does not answer."""

    def __init__(self, udp: Seen, tcp: Seen, hops: Hops | OSError, failure: RendezvousError) -> None:
        self._udp = udp
        self._tcp = tcp
        self._hops = hops
        self._failure = failure
        self.port = 0

    async def observe_udp(self, local: Address, server: Address, *, timeout: float) -> Observation:
        self.port = local[1]
        return self._observation(self._udp, server)

    async def observe_tcp(self, local_port: int, server: Address, *, timeout: float) -> Observation:
        assert local_port == self.port or not self._udp
        return self._observation(self._tcp, server)

    async def opener_ttl(self, server: Address) -> Hops:
        if isinstance(self._hops, OSError):
            raise self._hops
        return self._hops

    def _observation(self, seen: Seen, server: Address) -> Observation:
        if server not in seen:
            raise self._failure
        address = seen[server] or (OUTSIDE, self.port)  # None: the port is kept
        others = tuple(other for other in (OTHER_PORT, OTHER_HOST) if other in seen or other in self._udp)
        return Observation(address, others, 0.02)


def report(
    monkeypatch: pytest.MonkeyPatch,
    udp: Seen,
    tcp: Seen,
    *,
    hops: Hops | OSError | None = None,
    failure: RendezvousError | None = None,
    web: WebReport | None = None,
) -> NetReport:
    """What netcheck reports of a world."""
    failure = failure or RendezvousTimeoutError("the observer", 5)
    world = World(udp, tcp, hops or Hops(2, {1: "192.168.1.1", 2: "198.51.100.1"}), failure)
    for name in ("observe_udp", "observe_tcp", "opener_ttl"):
        monkeypatch.setattr(module, name, getattr(world, name))
    monkeypatch.setattr(module, "source_address", source_address)
    monkeypatch.setattr(module, "dial", refused)
    monkeypatch.setattr(module, "through_web", through_web(web))
    return run(netcheck(SERVER, brief=True))


def through_web(found: WebReport | None) -> Callable[..., Awaitable[WebReport | None]]:
    """What is found on port 443, where the server's own port is silent."""

    async def asked(server: ServerSpec, own_port: asyncio.Future[bool], timeout: float) -> WebReport | None:
        assert server.address == SERVER
        return None if await own_port else found or WebReport(problem="Connection refused")

    return asked


async def refused(*arguments: object, **options: object) -> socket.socket:
    raise DialError("203.0.113.1:7000", "refused", "Connection refused")


def source_address(destination: str) -> str:
    assert destination == SERVER[0]
    return "192.168.1.17"


def each(first: int, second: int, third: int) -> Seen:
    """Seen by the three observers from these ports."""
    return {SERVER: (OUTSIDE, first), OTHER_PORT: (OUTSIDE, second), OTHER_HOST: (OUTSIDE, third)}


KEPT: Seen = {SERVER: None, OTHER_PORT: None, OTHER_HOST: None}


def test_a_nat_that_keeps_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(monkeypatch, KEPT, KEPT)
    assert found.server == SERVER
    assert found.local[0] == "192.168.1.17"
    assert (found.behind_nat, found.observers, found.rtt, found.opener_ttl) == (True, 3, 0.02, 2)
    assert found.udp.mapping == found.tcp.mapping == "endpoint-independent"
    assert found.udp.port_preserved is True
    assert found.tcp_port_equals_udp is True
    assert found.verdict == "Behind a NAT that keeps one port for all destinations."


def test_a_nat_that_shows_another_port_over_tcp(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(monkeypatch, each(1024, 1024, 1024), each(2048, 2048, 2048))
    assert (found.udp.mapping, found.tcp.mapping) == ("endpoint-independent", "endpoint-independent")
    assert found.tcp_port_equals_udp is False
    assert found.tcp.port_preserved is False


def test_a_nat_that_takes_another_port_for_each_destination(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(monkeypatch, each(1024, 1025, 1026), each(2048, 2049, 2050))
    assert found.tcp.delta == 1
    assert found.tcp.mapping != "endpoint-independent"
    assert found.verdict == "Behind a NAT that takes another port for each destination."


def test_with_one_observer_the_mapping_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(monkeypatch, {SERVER: None}, {SERVER: None})
    assert found.observers == 1
    assert found.verdict == (
        "Behind a NAT, and the server has one address only (give it --alt-listen), so how it maps is not known."
    )


def test_without_udp_tcp_tells_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(monkeypatch, {}, {SERVER: (OUTSIDE, 1024)})
    assert (found.udp.works, found.udp.observed, found.udp.port_preserved) == (False, None, None)
    assert found.tcp_port_equals_udp is None
    assert found.verdict == (
        "Behind a NAT, and the server has one address only (give it --alt-listen), so how it maps is not known,"
        " with UDP blocked."
    )


def test_without_tcp_few_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(monkeypatch, KEPT, {})
    assert (found.tcp.problem, found.udp.problem) == ("Connection refused", "")
    assert found.improve[0] == "let TCP to the server through the firewalls on the way"
    assert found.verdict == (
        "The server cannot be reached over TCP: only peers that can open a TCP connection to you can be reached."
    )


def test_without_either_the_server_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RendezvousTimeoutError) as caught:
        report(monkeypatch, {}, {})
    assert str(caught.value) == "203.0.113.1:7000 did not answer over UDP or TCP in 5 s"
    assert caught.value.hint == (
        "TCP: Connection refused. TLS on port 443: Connection refused. Is `p2ptunnel rendezvous` running there,"
        " and do its firewalls let in UDP and TCP to port 7000?"
    )


TLS = WebReport("tls", None, (OUTSIDE, 50000), 0.03)
WEB_ONLY = "The server is reached on TCP port 443 only ({}): expect the relay with every peer outside this network."


def test_where_only_the_web_is_let_through_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(monkeypatch, {}, {}, web=TLS)
    assert (found.web, found.rtt, found.observers, found.behind_nat) == (TLS, 0.03, 0, True)
    assert (found.udp.works, found.tcp.works, found.tcp.problem) == (False, False, "Connection refused")
    assert found.verdict == WEB_ONLY.format("TLS")
    assert found.improve[0] == "let UDP and TCP to the server's own port through the firewalls on the way"


def test_behind_a_proxy_it_is_the_proxy_that_the_server_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(monkeypatch, {}, {}, web=replace(TLS, way="websocket", proxy=("192.168.1.3", 3128)))
    assert found.behind_nat is None
    assert found.verdict == WEB_ONLY.format("WebSocket by the proxy 192.168.1.3:3128")


def test_with_udp_the_web_is_for_tcp_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(monkeypatch, KEPT, {}, web=TLS)
    assert (found.rtt, found.udp.works, found.web) == (0.02, True, TLS)
    assert found.verdict == (
        "Over TCP the server is reached on port 443 only (TLS): expect QUIC over UDP or the relay, seldom direct TCP."
    )


def test_where_the_own_port_answers_nobody_asks_the_web(monkeypatch: pytest.MonkeyPatch) -> None:
    assert report(monkeypatch, {}, KEPT, web=TLS).web is None


def test_an_observer_that_refuses_is_one_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(monkeypatch, {}, KEPT, failure=RendezvousError("203.0.113.1:7000", "no", 403))
    assert (found.udp.works, found.tcp.works) == (False, True)


def test_hops_that_cannot_be_asked_are_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    found = report(monkeypatch, KEPT, KEPT, hops=OSError(24, "Too many open files"))
    assert (found.opener_ttl, found.hops) == (None, {})
    assert found.tcp.works


def test_on_loopback_there_is_no_nat() -> None:
    async def main() -> NetReport:
        async with Rendezvous(LOOPBACK, alt_listen=[LOOPBACK, ("127.0.0.2", 0)]) as server:
            return await netcheck(server.address)

    found = run(main())
    assert (found.behind_nat, found.observers, found.tcp_port_equals_udp) == (False, 3, True)
    assert found.udp.port_preserved
    assert (found.udp.filtering, found.tcp.filtering) == ("endpoint-independent", "endpoint-independent")
    assert (found.strangers, found.simultaneous_open) == ("accept", True)
    assert (found.udp.hairpin, found.tcp.hairpin, found.double_nat, found.port_mapping) == (None, None, False, None)
    assert found.ipv4 == found.rtt
    assert found.mtu
    assert {each.carrier for each in found.expectations} == {"tcp"}
    assert found.verdict == "No NAT: expect direct TCP with every kind of NAT at the other end."


def test_a_brief_look_asks_nobody_to_try_us() -> None:
    async def main() -> NetReport:
        async with Rendezvous(LOOPBACK, alt_listen=[LOOPBACK, ("127.0.0.2", 0)]) as server:
            return await netcheck(server.address, brief=True)

    found = run(main())
    assert (found.udp.filtering, found.strangers, found.expectations) == ("unknown", "unknown", ())
    assert found.verdict == "No NAT."


@pytest.mark.parametrize("brief", [True, False])
def test_a_server_of_another_key_than_was_given_for_it_is_no_good_one(brief: bool) -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK, identity=Identity.from_seed(bytes(32))) as server:
            other = str(Identity.from_seed(b"x" * 32).public)
            with pytest.raises(ServerKeyError):
                await netcheck(ServerSpec(server.address, other), timeout=1, brief=brief)

    run(main())


def test_who_takes_the_connection_and_speaks_something_else_is_a_captive_portal(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> NetReport:
        async with Rendezvous(LOOPBACK) as server:
            with socket.create_server(("127.0.0.1", 0)) as portal:
                address: Address = portal.getsockname()
                monkeypatch.setattr(module, "_ask_udp", lambda _, observer, timeout: observe_udp(LOOPBACK, server.address))
                return await netcheck(address, timeout=0.2, brief=True)

    found = run(main())
    assert found.tcp.problem.startswith("somebody takes the connection who does not speak our protocol")


def test_a_silent_server_is_given_up_after_one_question_each() -> None:
    async def main() -> None:
        with silent_server() as server, pytest.raises(RendezvousTimeoutError):
            await netcheck(server, timeout=0.2)

    run(main(), timeout=1)


def test_cancelling_leaves_nothing() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK, alt_listen=[LOOPBACK]) as server:

            async def nothing(_: NetReport) -> None:
                await asyncio.sleep(0)

            assert await cancel_at_each_turn(lambda: netcheck(server.address, brief=True), nothing) > 5

    run(main())
