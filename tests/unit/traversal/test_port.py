"""The punch port: one number for UDP and TCP, seen from outside; what a server that is half there, or not at all, costs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Generator
from functools import partial

import pytest

from p2ptunnel.defaults import OPENER_TTL_UNKNOWN
from p2ptunnel.errors import RendezvousTimeoutError
from p2ptunnel.net.dial import punch_socket
from p2ptunnel.net.gateway import Gateway
from p2ptunnel.net.hops import Hops
from p2ptunnel.net.portmap import PortMapper
from p2ptunnel.net.sockets import ANY_IPV4
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.server import Rendezvous
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal import port as module
from p2ptunnel.traversal import profile
from p2ptunnel.traversal.port import Opener, OpenerTtl, PunchPort, another_port, take_number
from p2ptunnel.types import Address, Candidate, ServerSpec
from p2ptunnel.wire.messages import Message, ReflexiveProbe
from tests.helpers import run
from tests.helpers.turns import cancel_at_each_turn, descriptors, settle
from tests.unit.net.test_portmap import Router, a_router
from tests.unit.traversal.wires import LOOPBACK, scripted_server, silent_server

AFAR: Address = ("203.0.113.1", 7000)


def observing(message: Message, source: Address) -> Message | None:
    """The script of a server that only observes."""
    return Observer().answer(message, source) if isinstance(message, ReflexiveProbe) else None


async def undo(port: PunchPort) -> None:
    port.close()


def test_udp_and_tcp_have_one_number_and_tcp_is_known_from_outside() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            port = await PunchPort.open(server.address, OpenerTtl())
            try:
                assert port.view.candidates == (
                    Candidate("srflx", "tcp", *port.address),
                    Candidate("srflx", "udp", *port.address),
                )
                assert 0 < port.view.rtt < 1
                assert len(port.cookie) == 22
                assert port.silent_over == "UDP"
                with pytest.raises(OSError, match="in use"), socket.socket() as other:
                    other.bind(port.address)
            finally:
                port.close()
                port.close()

    run(main())


def test_all_observers_of_a_server_are_asked_how_the_port_is_mapped() -> None:
    async def main() -> None:
        observers = [("127.0.0.1", 0), ("127.0.0.2", 0)]
        async with Rendezvous(LOOPBACK, alt_listen=observers) as server:
            port = await PunchPort.open(server.address, OpenerTtl())
            nat = port.view.nat
            assert (nat.tcp.kind, nat.udp.kind) == ("eim", "eim")
            assert nat.tcp.observed == nat.udp.observed == port.address
            assert port.view.ports == (port.address[1],) * 3
            assert (port.view.hints.tcp, port.view.hints.udp) == ("eim", "eim")
            port.udp_lost()  # the server was silent for a while
            assert (port.is_udp_silent, port.view.hints.udp) == (True, "eim")
            port.forget_control()
            assert (port.view.nat.tcp.kind, port.view.ports) == ("unknown", ())
            port.close()

    run(main())


def test_one_observer_cannot_tell() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            port = await PunchPort.open(server.address, OpenerTtl())
            assert (port.view.nat.tcp.kind, port.view.nat.udp.kind) == ("unknown", "unknown")
            assert port.view.ports == (port.address[1],)
            port.close()

    run(main())


def test_udp_that_nobody_has_answered_while_tcp_was_is_told_as_blocked() -> None:
    """Else a callee behind such a router would wait for a datagram of the caller's for ever, before it sends a plain SYN."""

    async def main() -> None:
        async with scripted_server(lambda *_: None, tcp="observes") as server:
            port = await PunchPort.open(server.address, OpenerTtl())
            assert (port.is_udp_silent, port.view.hints.udp) == (True, "none")
            port.udp_lost()  # TCP was the way that went silent
            assert port.view.hints.udp == ""
            port.close()

    run(main())


def test_observers_that_are_out_of_reach_hold_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "PHASE_MIN", 0.05)

    async def main() -> None:
        with silent_server() as silent, socket.socket() as closed:
            closed.bind(("127.0.0.2", 0))
            async with Rendezvous(LOOPBACK) as server:
                others = (silent, closed.getsockname())
                server._services[0]._broker._observer.others = others  # type: ignore[attr-defined]
                port = await PunchPort.open(server.address, OpenerTtl())
                assert (port.view.nat.tcp.kind, port.view.nat.udp.kind) == ("unknown", "unknown")
                port.close()

    run(main(), timeout=2)


def test_a_row_is_seen_from_another_port() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            port = await PunchPort.open(server.address, OpenerTtl())
            assert await port.observe_row() not in {None, port.address[1]}
        assert await port.observe_row() is None
        port.close()

    run(main())


def test_a_server_that_refuses_tcp_costs_the_candidate_only() -> None:
    async def main() -> None:
        async with scripted_server(observing) as server:
            port = await PunchPort.open(server.address, OpenerTtl())
            assert port.view.candidates == (Candidate("srflx", "udp", *port.address),)
            assert port.view.rtt == 0
            assert port.cookie == ""
            assert port.silent_over == "UDP or TCP"
            port.close()

    run(main(), timeout=2)


def test_a_server_that_is_silent_over_tcp_costs_little_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONTROL_GRACE", 0.2)

    async def main() -> None:
        async with scripted_server(observing, tcp="is silent") as server:
            port = await PunchPort.open(server.address, OpenerTtl())
            assert port.view.candidates == (Candidate("srflx", "udp", *port.address),)
            port.close()

    run(main(), timeout=2)  # well before the five seconds that a server has


def test_a_server_that_is_silent_altogether_is_given_up_once_and_not_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRANSACTION_TIMEOUT", 0.3)

    async def main() -> None:
        with silent_server() as server:
            began = asyncio.get_running_loop().time()
            with pytest.raises(RendezvousTimeoutError) as caught:
                await PunchPort.open(server, OpenerTtl())
            assert 0.25 < asyncio.get_running_loop().time() - began < 0.55
            assert str(caught.value) == f"127.0.0.1:{server[1]} did not answer over UDP or TCP in 0.3 s"

    run(main())


def test_cancelling_leaves_nothing() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            turns = await cancel_at_each_turn(lambda: PunchPort.open(server.address, OpenerTtl()), undo)
            assert turns > 5

    run(main())


def test_a_standing_connection_that_is_lost_is_told() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            port = await PunchPort.open(server.address, OpenerTtl())
            waiting = asyncio.create_task(port.wait_control_lost())
            await asyncio.sleep(0)
            assert not waiting.done()
        await waiting
        assert port.view.candidates == ()
        assert not await port.observe()
        async with Rendezvous(port.server):
            assert await port.observe()
            assert port.view.candidates != ()
            port.forget_control()
            await port.wait_control_lost()
            assert port.view.candidates == ()
        port.close()

    run(main())


def test_the_hops_are_counted_once_per_server_and_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Address] = []

    async def opener_ttl(server: Address) -> Hops:
        asked.append(server)
        return Hops(2, {1: "192.168.1.1", 2: "198.51.100.1"}, 0.01)

    monkeypatch.setattr(module, "opener_ttl", opener_ttl)

    async def main() -> None:
        ttl = OpenerTtl()
        told = [await ttl.towards(server) for server in (AFAR, AFAR, ("203.0.113.2", 7000))]
        assert told == [Opener(2, 0.01)] * 3
        assert asked == [AFAR, ("203.0.113.2", 7000)]
        monkeypatch.setattr(module, "OPENER_TTL_MEMORY", 0)
        await ttl.towards(AFAR)
        assert asked[2:] == [AFAR]

    run(main())


def test_hops_that_do_not_answer_are_guessed_and_those_of_loopback_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def opener_ttl(server: Address) -> Hops:
        assert server == AFAR
        return Hops(None, {})

    monkeypatch.setattr(module, "opener_ttl", opener_ttl)

    async def main() -> None:
        assert await OpenerTtl().towards(AFAR) == Opener(OPENER_TTL_UNKNOWN, 0.0)
        assert await OpenerTtl().towards(("127.0.0.1", 7000)) == Opener(OPENER_TTL_UNKNOWN, 0.0)

    run(main())


# --- IPv6 beside IPv4 -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def unobserved_port(host: str, server: str = "192.0.2.1") -> Generator[PunchPort]:
    """A port that has asked nobody."""
    port = PunchPort(take_number(host, Tracer()), ServerSpec((server, 7000)), Tracer())
    with contextlib.closing(port):
        yield port


def test_a_port_is_listened_on_over_both_families() -> None:
    async def main() -> None:
        accepted: asyncio.Queue[Address] = asyncio.Queue()

        def on_accepted(sock: socket.socket, remote: Address) -> None:
            sock.close()
            accepted.put_nowait(remote)

        with unobserved_port(ANY_IPV4) as port, contextlib.ExitStack() as stack:
            for listener in port.listen(on_accepted, is_limited=True):
                stack.callback(listener.close)
            for host in ("127.0.0.1", "::1"):
                with socket.create_connection((host, port.address[1])):
                    assert (await accepted.get())[0] == host

    run(main())


def test_a_port_tells_its_global_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "global_ipv6", lambda: ("2001:db8::2", "2001:db8::aaaa"))
    monkeypatch.setattr(module, "can_quic", lambda: False)

    async def main() -> None:
        for host, server in ((ANY_IPV4, "192.0.2.1"), ("::", "2001:db8:ffff::1")):
            with unobserved_port(host, server) as port:
                number = port.address[1]
                assert port.view.candidates == (
                    Candidate("host", "tcp", "2001:db8::2", number),
                    Candidate("host", "tcp", "2001:db8::aaaa", number),
                )
        with unobserved_port("127.0.0.1", "127.0.0.1") as port:  # nobody is to come from outside
            assert port.view.candidates == ()
            [listener] = port.listen(lambda *_: None, is_limited=True)
            listener.close()

    run(main())


@pytest.mark.parametrize("can_quic", [True, False])
def test_datagrams_leave_over_both_families_and_that_is_told_where_they_are_of_use(
    can_quic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "global_ipv6", lambda: ("2001:db8::2", "2001:db8::aaaa"))
    monkeypatch.setattr(module, "can_quic", lambda: can_quic)

    async def main() -> None:
        with unobserved_port(ANY_IPV4) as port, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as there:
            number = port.address[1]
            assert (Candidate("host", "udp", "2001:db8::2", number) in port.view.candidates) is can_quic
            there.bind(("::1", 0))
            port.udp.send(b"hello", there.getsockname()[:2])
            data, source = there.recvfrom(100)
            assert (data, source[1]) == (b"hello", number)

    run(main())


def test_a_machine_without_ipv6_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "global_ipv6", lambda: pytest.fail("nobody would listen there"))

    def without_ipv6(local: Address) -> socket.socket:
        if ":" in local[0]:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return punch_socket(local)

    monkeypatch.setattr(module, "punch_socket", without_ipv6)

    async def main() -> None:
        with unobserved_port(ANY_IPV4) as port:
            assert port.view.candidates == ()
            [listener] = port.listen(lambda *_: None, is_limited=True)
            listener.close()

    run(main())


@pytest.mark.parametrize(
    ("server", "host", "opener"),
    [
        ("192.0.2.1", "198.51.100.7", Opener(1, 0.01)),
        ("192.0.2.1", "2001:db8::7", Opener(2, 0.01)),
        ("2001:db8:ffff::1", "2001:db8::7", Opener(1, 0.01)),
        ("192.0.2.1", "", Opener(1, 0.01)),
    ],
)
def test_over_the_family_without_a_server_the_way_out_is_as_long_and_two_hops_at_least(
    server: str, host: str, opener: Opener
) -> None:
    async def main() -> None:
        with unobserved_port("::" if ":" in server else ANY_IPV4, server) as port:
            port._opener = Opener(1, 0.01)
            assert port.opener(host) == opener
            port._opener = Opener(4, 0.01)
            assert port.opener(host) == Opener(4, 0.01)

    run(main())


# --- the router -------------------------------------------------------------------------------------------------------


async def afar(monkeypatch: pytest.MonkeyPatch) -> tuple[PunchPort, Router]:
    """A port whose server is out in the internet, and the router on the way there."""
    router = await a_router(monkeypatch)
    monkeypatch.setattr(module, "PortMapper", partial(PortMapper, find=lambda _: Gateway("127.0.0.1", "127.0.0.1")))
    return PunchPort(take_number("127.0.0.1", Tracer()), ServerSpec(AFAR), Tracer()), router


async def until_mapped(port: PunchPort) -> None:
    """Ask the router, and wait until it has answered for both transports."""
    told = asyncio.Queue[None]()
    port.ask_router(lambda: told.put_nowait(None))
    await told.get()
    await told.get()


@pytest.mark.parametrize(("observed", "is_told"), [("198.51.101.7", True), ("198.51.101.8", False)])
def test_peers_are_told_what_the_router_keeps_open_unless_another_nat_stands_above_it(
    observed: str, is_told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        port, router = await afar(monkeypatch)
        port._seen_udp = (observed, 40_000)
        await until_mapped(port)
        kept = [Candidate("mapped", transport, "198.51.101.7", port.address[1]) for transport in ("tcp", "udp")]
        assert port.view.candidates == (Candidate("srflx", "udp", observed, 40_000), *(kept if is_told else []))
        assert port.view.inside == ()  # a public address of a router is nobody's but its own
        await port.leave_router()
        assert router.fake.mappings == {}
        assert port.view.candidates == (Candidate("srflx", "udp", observed, 40_000),)
        port.close()
        router.transport.close()

    run(main())


def test_what_a_router_behind_another_keeps_open_over_tcp_is_for_those_behind_that_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ipv4_networks", lambda: ("192.168.1.0/24",))
    kept = [Candidate("mapped", transport, "100.64.0.7", 40_000) for transport in ("udp", "tcp")]
    monkeypatch.setattr(PunchPort, "_mapped", lambda _: iter(kept))

    async def main() -> None:
        with unobserved_port(ANY_IPV4) as port:
            port._seen_udp = ("198.51.101.8", 40_000)
            assert Candidate("srflx", "udp", "198.51.101.8", 40_000) in port.view.candidates
            assert not set(kept) & set(port.view.candidates)
            assert port.view.inside == (kept[1],)
            assert port.view.networks == ("192.168.1.0/24",)
            assert not port.view.hints.is_open

    run(main())


def test_the_router_is_asked_once_and_told_when_the_port_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        port, router = await afar(monkeypatch)
        port.ask_router_anew()  # nothing was asked for
        await until_mapped(port)
        port.ask_router(lambda: pytest.fail("asked twice"))
        assert len(router.fake.heard) == 2
        port.close()  # at once: there is nobody to wait
        await router.forgets()
        port.close()
        router.transport.close()

    run(main())


def test_for_a_server_on_loopback_no_router_is_asked() -> None:
    async def main() -> None:
        port = PunchPort(take_number("127.0.0.1", Tracer()), ServerSpec(("127.0.0.1", 7000)), Tracer())
        port.ask_router(lambda: pytest.fail("asked"))
        await port.leave_router()
        port.close()

    run(main())


# --- fresh ones -------------------------------------------------------------------------------------------------------


def test_a_number_that_is_burnt_is_not_taken() -> None:
    asked: list[int] = []

    def is_burnt(number: int) -> bool:
        asked.append(number)
        return len(asked) < 4

    udp, tcp = take_number("127.0.0.1", Tracer(), is_burnt)
    with tcp, contextlib.closing(udp):
        assert len(asked) == 4
        assert udp.address[1] == tcp.getsockname()[1] == asked[-1]


def test_where_all_are_burnt_one_is_taken_all_the_same() -> None:
    before = descriptors()
    udp, tcp = take_number("127.0.0.1", Tracer(), lambda _: True)
    tcp.close()
    udp.close()
    assert descriptors() == before


@pytest.mark.parametrize(("host", "is_seen"), [("127.0.0.1", True), ("198.51.100.7", False)])
def test_another_port_is_of_use_where_the_peer_knows_us(host: str, is_seen: bool) -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            before = descriptors()
            port = await another_port(lambda: PunchPort.open(server.address, OpenerTtl()), host, Tracer())
            assert (port is not None) is is_seen
            if port is not None:
                port.close()
            await settle(before)

    run(main())


def test_opening_another_port_can_be_cancelled_anywhere() -> None:
    async def close(port: PunchPort | None) -> None:
        if port is not None:
            port.close()

    async def main() -> None:
        async with scripted_server(observing) as server:
            open_port = partial(PunchPort.open, server.address, OpenerTtl())
            assert await cancel_at_each_turn(lambda: another_port(open_port, "127.0.0.1", Tracer()), close) > 2

    run(main())
