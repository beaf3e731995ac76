"""Asking a router by PCP and NAT-PMP: the order, renewals, refusals, restarts, the end, and who is not believed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from p2ptunnel.defaults import (
    PORTMAP_AGAIN,
    PORTMAP_AGAIN_MIN,
    PORTMAP_AGAIN_SOON,
    PORTMAP_FIRST,
    PORTMAP_LIFETIME_MAX,
    PORTMAP_NEWS_SPREAD,
    PORTMAP_PAUSE,
    PORTMAP_TRIES,
)
from p2ptunnel.errors import ConfigError, LocalProtocolError
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.portmap import MappingsReturned, PortMapClient, PortMapState
from p2ptunnel.protocol.portmapping import NobodyMaps, PortMapped, PortMapping, PortRefused, PortUnmapped
from p2ptunnel.types import Address, Candidate
from p2ptunnel.wire import natpmp, pcp
from tests.helpers.routers import ROUTER, FakeRouter

CLIENT = "192.168.1.2"
PORT = 40123
BOTH = {("tcp", PORT): PORT, ("udp", PORT): PORT}
PCP_ONLY, NATPMP_ONLY, DUMB = frozenset({2}), frozenset({0}), frozenset[int]()
SILENCE = PORTMAP_FIRST * (2**PORTMAP_TRIES - 1)


class Network:
    """A machine and a router on one cable, and a clock."""

    def __init__(self, router: FakeRouter | None = None, client: str = CLIENT) -> None:
        self.router = router or FakeRouter()
        self.now = 1000.0
        self.router.since = 0.0
        address: Address = ("fe80::1%eth0", 5351) if ":" in client else ROUTER
        self.source = (address[0].partition("%")[0], address[1])
        self.client = PortMapClient(address, client, PORT, random.Random(1))
        self.events: list[Event] = []
        self.lost = False
        self.sent = 0

    def settle(self) -> None:
        """Carry datagrams until nobody has one."""
        while datagrams := self.client.datagrams_to_send():
            self.sent += len(datagrams)
            for datagram in datagrams:
                answer = self.router.answer(datagram.data, self.now)
                if answer is not None and not self.lost:
                    self.client.receive_datagram(answer, self.source, self.now)
        self.events += self.client.events()

    def start(self) -> Network:
        self.client.start(self.now)
        self.settle()
        return self

    def until(self, end: float) -> None:
        """Let time pass, timer by timer."""
        while (due := self.client.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.client.handle_timer(self.now)
            self.settle()
        self.now = max(self.now, end)

    def pass_by(self, seconds: float) -> None:
        self.until(self.now + seconds)

    def take(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def mappings(self) -> list[PortMapping]:
        return [event.mapping for event in self.take() if isinstance(event, PortMapped)]


# --- the order ----------------------------------------------------------------------------------------------------------


def test_pcp_is_asked_first_and_both_transports_at_once() -> None:
    network = Network().start()
    tcp, udp = network.mappings()
    assert tcp == PortMapping(
        transport="tcp",
        local=(CLIENT, PORT),
        external=("198.51.101.7", PORT),
        lifetime=7200,
        protocol="PCP",
        gateway="192.168.1.1",
    )
    assert udp.candidate == Candidate("mapped", "udp", "198.51.101.7", PORT)
    assert network.router.mappings == BOTH
    assert network.sent == 2
    assert network.client.state is PortMapState.BY_PCP


def test_a_router_that_says_it_is_older_is_asked_by_nat_pmp_at_once() -> None:
    network = Network(FakeRouter(speaks=NATPMP_ONLY)).start()
    assert {mapping.protocol for mapping in network.mappings()} == {"NAT-PMP"}
    assert network.now == 1000.0
    assert network.router.mappings == BOTH


def test_a_router_that_does_not_know_map_is_asked_by_nat_pmp() -> None:
    network = Network(FakeRouter(code=4)).start()
    assert network.client.state is PortMapState.BY_NATPMP


def test_silence_leads_to_nat_pmp_and_then_to_nobody() -> None:
    network = Network(FakeRouter(speaks=DUMB)).start()
    network.pass_by(SILENCE)
    assert network.client.state is PortMapState.ASKING_NATPMP
    network.pass_by(SILENCE)
    assert network.take() == [NobodyMaps("no answer")]
    assert [data[0] for data in network.router.heard] == [2] * 2 * PORTMAP_TRIES + [0] * 4 * PORTMAP_TRIES


def test_a_lost_answer_is_asked_for_again() -> None:
    network = Network()
    network.lost = True
    network.start()
    network.lost = False
    network.pass_by(PORTMAP_FIRST)
    assert [mapping.protocol for mapping in network.mappings()] == ["PCP", "PCP"]
    assert network.sent == 4


def test_a_closed_port_is_nobody_at_once() -> None:
    network = Network(FakeRouter(speaks=DUMB)).start()
    network.client.find_shut(network.now)
    network.settle()
    assert network.take() == [NobodyMaps("its port is closed")]


def test_nobody_is_asked_again_after_a_while() -> None:
    network = Network(FakeRouter(speaks=DUMB)).start()
    network.pass_by(2 * SILENCE)
    network.take()
    network.router.speaks = PCP_ONLY
    network.pass_by(PORTMAP_AGAIN - 1)
    assert network.take() == []
    network.pass_by(1)
    assert len(network.mappings()) == 2


@pytest.mark.parametrize("speaks", [DUMB, NATPMP_ONLY])
def test_over_ipv6_there_is_pcp_only(speaks: frozenset[int]) -> None:
    network = Network(FakeRouter(speaks=speaks), "2001:db8::2").start()
    network.pass_by(SILENCE)
    assert network.client.state is PortMapState.NOBODY
    assert {data[0] for data in network.router.heard} == {2}


def test_a_firewall_of_ipv6_opens_the_same_port() -> None:
    network = Network(FakeRouter(host="2001:db8::2"), "2001:db8::2").start()
    assert [mapping.external for mapping in network.mappings()] == [("2001:db8::2", PORT)] * 2


def test_a_taken_port_is_another_one_and_is_asked_for_when_renewed() -> None:
    network = Network(FakeRouter(taken=frozenset({PORT, PORT + 1}))).start()
    assert [mapping.external[1] for mapping in network.mappings()] == [PORT + 2] * 2
    network.router.taken = frozenset()
    network.pass_by(3600)
    assert [mapping.external[1] for mapping in network.mappings()] == [PORT + 2] * 2


# --- renewal ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", [PCP_ONLY, NATPMP_ONLY])
def test_a_mapping_is_renewed_at_half_of_what_was_granted(speaks: frozenset[int]) -> None:
    network = Network(FakeRouter(lifetime=100, speaks=speaks)).start()
    network.take()
    network.pass_by(49)
    assert network.mappings() == []
    network.pass_by(1)
    assert [mapping.lifetime for mapping in network.mappings()] == [100, 100]


def test_the_nonce_stays_the_same_for_ever() -> None:
    network = Network().start()
    network.pass_by(10_000)
    network.client.start(network.now)
    network.settle()
    network.client.close(network.now)
    network.settle()
    nonces = {data[24:36] for data in network.router.heard}
    assert len(nonces) == 2  # one for each transport
    assert len(network.router.heard) > 6


def test_a_lifetime_that_is_too_good_is_not_waited_for() -> None:
    class Generous(FakeRouter):
        def _grant(self, transport: object, port: int, external: int, asked: int) -> tuple[int, int]:
            return external, 2**32 - 1 if asked else 0

    network = Network(Generous()).start()
    assert {mapping.lifetime for mapping in network.mappings()} == {PORTMAP_LIFETIME_MAX}


def test_a_router_that_grants_a_second_is_not_asked_every_half_second() -> None:
    network = Network(FakeRouter(lifetime=1)).start()
    before = network.sent
    network.pass_by(100)
    assert network.sent - before <= 2 * 100 / PORTMAP_PAUSE


def test_an_unanswered_renewal_is_tried_again_until_the_mapping_runs_out() -> None:
    network = Network(FakeRouter(lifetime=1000)).start()
    network.take()
    network.lost = True
    network.pass_by(990)
    assert network.take() == []
    network.pass_by(20)
    assert [type(event) for event in network.take()] == [
        PortUnmapped,
        PortUnmapped,
        NobodyMaps,
    ]  # asked as if for the first time


def test_a_renewal_that_is_answered_late_saves_the_mapping() -> None:
    network = Network(FakeRouter(lifetime=1000)).start()
    network.take()
    network.lost = True
    network.pass_by(600)
    network.lost = False
    network.pass_by(390)
    assert {type(event) for event in network.take()} == {PortMapped}


# --- refusals -----------------------------------------------------------------------------------------------------------


def test_a_refusal_keeps_its_code_and_its_words() -> None:
    network = Network(FakeRouter(code=2, lifetime=60)).start()
    tcp, udp = network.take()
    assert tcp == PortRefused(transport="tcp", protocol="PCP", code=2, reason="not authorized")
    assert str(udp) == "udp refused by PCP: not authorized (2)"


@pytest.mark.parametrize(("lasts", "waits"), [(60, 60), (1, PORTMAP_AGAIN_MIN), (2**32 - 1, PORTMAP_AGAIN)])
def test_after_a_refusal_it_is_asked_again_when_that_has_ended(lasts: int, waits: float) -> None:
    network = Network(FakeRouter(code=8, lifetime=lasts)).start()
    network.take()
    network.router.code = 0
    network.router.lifetime = 7200
    network.pass_by(waits - 0.1)
    assert network.take() == []
    network.pass_by(0.2)
    assert len(network.mappings()) == 2


def test_nat_pmp_without_an_outside_address_is_refused_and_nothing_stays_mapped() -> None:
    network = Network(FakeRouter(speaks=NATPMP_ONLY, code=3)).start()
    assert {str(event) for event in network.take()} == {
        f"{transport} refused by NAT-PMP: it has no connection itself (3)" for transport in ("tcp", "udp")
    }
    assert network.router.mappings == {}


def test_a_transport_that_the_router_says_nothing_of_is_no_reason_to_give_up_the_other() -> None:
    class TcpOnly(FakeRouter):
        def answer(self, data: bytes, now: float) -> bytes | None:
            return super().answer(data, now) if data[36] == 6 else None

    network = Network(TcpOnly()).start()
    network.pass_by(SILENCE)
    mapped, refused = network.take()
    assert isinstance(mapped, PortMapped)
    assert str(refused) == "udp refused by PCP: no answer"
    assert network.client.state is PortMapState.BY_PCP


@pytest.mark.parametrize(("code", "waits"), [(3, PORTMAP_AGAIN_SOON), (2, PORTMAP_AGAIN)])
def test_a_router_that_has_lost_its_connection_is_asked_again_soon(code: int, waits: float) -> None:
    network = Network(FakeRouter(speaks=NATPMP_ONLY, code=code)).start()
    network.take()
    network.router.code = 0
    network.pass_by(waits - 1)
    assert network.take() == []
    network.pass_by(2)
    assert len(network.mappings()) == 2


def test_nat_pmp_may_tell_its_address_and_still_refuse_a_port() -> None:
    class Full(FakeRouter):
        def _by_natpmp(self, data: bytes, epoch: int) -> bytes:
            self.code = 0 if data == natpmp.ADDRESS_REQUEST else 4
            return super()._by_natpmp(data, epoch)

    network = Network(Full(speaks=NATPMP_ONLY)).start()
    assert [str(event) for event in network.take()] == [
        f"{transport} refused by NAT-PMP: it has no room for another mapping (4)" for transport in ("tcp", "udp")
    ]


@pytest.mark.parametrize(
    ("external", "reason"),
    [
        (("198.51.101.7", 443), "it gives a privileged port"),
        (("198.51.101.7", 0), "it gives no port"),
        (("0.0.0.0", PORT), "its outside address is unspecified"),
        (("127.0.0.1", PORT), "its outside address is loopback"),
        (("224.0.0.1", PORT), "its outside address is multicast"),
    ],
)
def test_what_is_of_no_use_is_handed_back(external: Address, reason: str) -> None:
    class Odd(FakeRouter):
        def _by_pcp(self, data: bytes, epoch: int) -> bytes:
            answer = pcp.decode(super()._by_pcp(data, epoch))
            assert isinstance(answer, pcp.MapAnswer)
            return pcp.encode_answer(
                pcp.MapAnswer(
                    code=0,
                    lifetime=answer.lifetime,
                    epoch=epoch,
                    nonce=answer.nonce,
                    transport=answer.transport,
                    port=answer.port,
                    external=external,
                )
            )

    network = Network(Odd()).start()
    assert [(event.code, event.reason) for event in network.take() if isinstance(event, PortRefused)] == [(0, reason)] * 2
    assert network.router.mappings == {}


@pytest.mark.parametrize("port", [0, 22, 1023, 65536])
def test_a_privileged_port_is_never_asked_for(port: int) -> None:
    with pytest.raises(ConfigError, match=f"port {port}: "):
        PortMapClient(ROUTER, CLIENT, port, random.Random(1))


# --- restarts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", [PCP_ONLY, NATPMP_ONLY])
def test_a_router_that_has_restarted_is_asked_for_all_again(speaks: frozenset[int]) -> None:
    network = Network(FakeRouter(speaks=speaks, lifetime=1000)).start()
    network.pass_by(100)
    network.client._wishes["udp"].due_at = network.now + 100_000  # so that TCP alone is renewed
    network.router.reboot(network.now)
    network.pass_by(400)
    assert network.router.mappings == BOTH


@pytest.mark.parametrize("version", [0, 2])
def test_news_of_a_restart_bring_the_mappings_back_within_seconds(version: int) -> None:
    network = Network(FakeRouter(speaks=frozenset({version}))).start()
    network.take()
    network.pass_by(100)
    network.router.reboot(network.now)
    news = network.router.announcement(version, network.now)
    network.client.receive_announcement(news, (network.source[0], 5351), network.now)
    network.pass_by(PORTMAP_NEWS_SPREAD)
    assert network.router.mappings == BOTH
    assert len(network.mappings()) == 2


def test_news_of_the_same_life_move_nothing() -> None:
    network = Network().start()
    network.pass_by(100)
    sent = network.sent
    network.client.receive_announcement(network.router.announcement(2, network.now), ROUTER, network.now)
    network.pass_by(60)
    assert network.sent == sent


def test_news_of_another_outside_address_are_looked_into() -> None:
    network = Network(FakeRouter(speaks=NATPMP_ONLY)).start()
    network.take()
    network.pass_by(100)
    network.router.host = "198.51.101.8"
    network.client.receive_announcement(network.router.announcement(0, network.now), ROUTER, network.now)
    network.pass_by(PORTMAP_NEWS_SPREAD)
    assert {mapping.external[0] for mapping in network.mappings()} == {"198.51.101.8"}


def test_news_where_nobody_was_begin_it_all() -> None:
    network = Network(FakeRouter(speaks=DUMB)).start()
    network.pass_by(2 * SILENCE)
    network.take()
    network.router.speaks = PCP_ONLY
    network.client.receive_announcement(network.router.announcement(2, network.now), ROUTER, network.now)
    network.pass_by(PORTMAP_NEWS_SPREAD)
    assert len(network.mappings()) == 2


def test_a_flood_of_news_is_a_few_questions() -> None:
    network = Network().start()
    sent = network.sent
    for number in range(10_000):
        network.pass_by(0.01)
        network.router.since = network.now - number % 2 * 1000
        network.client.receive_announcement(network.router.announcement(2, network.now), ROUTER, network.now)
    assert network.sent - sent <= 2 * (100 / PORTMAP_PAUSE + 1)


def test_a_router_whose_clock_jumps_with_each_answer_is_not_asked_for_ever() -> None:
    network = Network().start()
    sent = network.sent

    class Jumping(FakeRouter):
        def answer(self, data: bytes, now: float) -> bytes | None:
            self.since = now - len(self.heard) % 2 * 1000
            return super().answer(data, now)

    network.router = Jumping()
    network.client.start(network.now)
    network.settle()
    network.pass_by(100)
    assert network.sent - sent <= 2 * (100 / PORTMAP_PAUSE + 2)


# --- the end ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", [PCP_ONLY, NATPMP_ONLY])
def test_closing_takes_back_what_was_mapped(speaks: frozenset[int]) -> None:
    network = Network(FakeRouter(speaks=speaks)).start()
    network.take()
    network.client.close(network.now)
    network.settle()
    assert network.router.mappings == {}
    assert network.take() == [MappingsReturned(0)]
    assert network.client.next_deadline() is None
    network.client.close(network.now)
    assert network.client.events() == []


def test_what_was_asked_for_and_not_answered_yet_is_taken_back_too() -> None:
    network = Network()
    network.client.start(network.now)
    asked = network.client.datagrams_to_send()
    network.client.close(network.now)
    answers = [network.router.answer(datagram.data, network.now) for datagram in asked]
    for answer in answers:
        assert answer
        network.client.receive_datagram(answer, ROUTER, network.now)
    assert network.client.events() == []  # the late answers are no proof
    assert network.router.mappings == BOTH
    network.settle()
    assert network.router.mappings == {}
    assert network.take() == [MappingsReturned(0)]


def test_closed_while_it_is_asked_anew_what_stands_is_taken_back_by_the_protocol_that_gave_it() -> None:
    class DeafToPcp(FakeRouter):
        def answer(self, data: bytes, now: float) -> bytes | None:
            return super().answer(data, now) if data[0] == 0 else None

    network = Network(DeafToPcp()).start()
    network.pass_by(SILENCE)
    assert network.router.mappings == BOTH
    network.client.start(network.now)
    network.settle()
    assert network.client.state is PortMapState.ASKING_PCP
    network.client.close(network.now)
    network.settle()
    assert network.router.mappings == {}


def test_a_silent_router_is_asked_three_times_to_take_it_back() -> None:
    network = Network().start()
    network.take()
    network.lost = True
    network.client.close(network.now)
    network.settle()
    network.pass_by(SILENCE)
    assert network.take() == [MappingsReturned(2)]
    assert network.sent == 2 + 2 * PORTMAP_TRIES


def test_a_port_that_has_closed_ends_the_waiting() -> None:
    network = Network().start()
    network.take()
    network.lost = True
    network.client.close(network.now)
    network.settle()
    network.client.find_shut(network.now)
    network.settle()
    assert network.take() == [MappingsReturned(2)]


@pytest.mark.parametrize("prepare", [lambda n: None, lambda n: (n.start(), n.client.find_shut(n.now))])
def test_with_nothing_asked_for_closing_is_over_at_once(prepare: Callable[[Network], object]) -> None:
    network = Network(FakeRouter(speaks=DUMB))
    prepare(network)
    network.settle()
    network.take()
    network.client.close(network.now)
    assert network.client.events() == [MappingsReturned(0)]
    assert network.client.datagrams_to_send() == []


def test_what_is_closed_does_not_begin_again() -> None:
    network = Network().start()
    network.client.close(network.now)
    with pytest.raises(LocalProtocolError, match="taking back"):
        network.client.start(network.now)


# --- a change of the network -----------------------------------------------------------------------------------------------


def test_asked_again_the_mapping_stays_until_there_is_an_answer() -> None:
    network = Network().start()
    network.take()
    network.client.start(network.now)
    network.settle()
    assert [mapping.external[1] for mapping in network.mappings()] == [PORT, PORT]


def test_another_router_at_the_same_address_that_maps_nothing_ends_the_mapping() -> None:
    network = Network().start()
    network.take()
    network.router.speaks = DUMB
    network.client.start(network.now)
    network.settle()
    network.pass_by(2 * SILENCE)
    assert [type(event) for event in network.take()] == [PortUnmapped, PortUnmapped, NobodyMaps]


def test_another_router_that_is_older_is_asked_by_nat_pmp_when_the_mapping_is_renewed() -> None:
    network = Network().start()
    network.take()
    network.router.speaks = NATPMP_ONLY
    network.pass_by(3600)
    assert {mapping.protocol for mapping in network.mappings()} == {"NAT-PMP"}


# --- who is not believed ---------------------------------------------------------------------------------------------------


def an_answer(network: Network) -> pcp.MapAnswer:
    """What the router would say to the request for TCP that is under way."""
    request = network.client.datagrams_to_send()[0].data
    answer = pcp.decode(network.router.answer(request, network.now) or b"")
    assert isinstance(answer, pcp.MapAnswer)
    return answer


@pytest.mark.parametrize(
    ("source", "dropped"),
    [(("192.168.1.66", 5351), "not from the router"), (("192.168.1.1", 5350), "not from the router")],
)
def test_only_the_router_is_listened_to(source: Address, dropped: str) -> None:
    network = Network()
    network.client.start(network.now)
    answer = an_answer(network)
    network.client.receive_datagram(pcp.encode_answer(answer), source, network.now)
    network.client.receive_announcement(network.router.announcement(2, network.now), ("192.168.1.66", 5351), network.now)
    assert network.client.events() == []
    assert network.client.dropped == {dropped: 2}


def test_an_answer_with_another_nonce_is_dropped() -> None:
    network = Network()
    network.client.start(network.now)
    answer = an_answer(network)
    for forged in (replace_struct(answer, nonce=bytes(12)), replace_struct(answer, port=PORT + 1)):
        network.client.receive_datagram(pcp.encode_answer(forged), ROUTER, network.now)
    assert network.client.events() == []
    assert network.client.dropped == {"not our nonce": 2}
    network.client.receive_datagram(pcp.encode_answer(answer), ROUTER, network.now)
    assert len(network.client.events()) == 1


def replace_struct(answer: pcp.MapAnswer, **changes: object) -> pcp.MapAnswer:
    fields = {name: getattr(answer, name) for name in answer.__struct_fields__}
    return pcp.MapAnswer(**(fields | changes))  # type: ignore[arg-type]


def test_what_nobody_asked_for_is_dropped() -> None:
    network = Network()
    network.client.start(network.now)
    answer = pcp.encode_answer(an_answer(network))
    network.client.receive_datagram(answer, ROUTER, network.now)
    network.client.events()
    for data in (answer, network.router.announcement(2, network.now), network.router.announcement(0, network.now)):
        network.client.receive_datagram(data, ROUTER, network.now)
    assert network.client.events() == []
    assert network.client.dropped == {"unasked": 3}


def test_a_mapping_of_another_port_by_nat_pmp_is_dropped() -> None:
    network = Network(FakeRouter(speaks=NATPMP_ONLY)).start()
    network.take()
    answer = natpmp.MapAnswer(code=0, epoch=1000, transport="tcp", port=22, external_port=2222, lifetime=7200)
    network.client.receive_datagram(natpmp.encode_answer(answer), ROUTER, network.now)
    assert network.client.events() == []
    assert network.client.dropped["not our port"] == 1


def test_a_mapping_by_nat_pmp_without_the_outside_address_is_asked_for_again() -> None:
    class Forgetful(FakeRouter):
        def _by_natpmp(self, data: bytes, epoch: int) -> bytes:
            is_first = len(self.heard) <= 6
            return struct.pack("!B", 9) if is_first and data == natpmp.ADDRESS_REQUEST else super()._by_natpmp(data, epoch)

    network = Network(Forgetful(speaks=NATPMP_ONLY)).start()
    assert network.mappings() == []
    network.pass_by(PORTMAP_FIRST)
    assert len(network.mappings()) == 2


@pytest.mark.parametrize("data", [b"", b"\2", b"\0", b"\x81" * 60, bytes(2000)])
def test_junk_is_counted_and_dropped(data: bytes) -> None:
    network = Network()
    network.client.start(network.now)
    network.client.receive_datagram(data, ROUTER, network.now)
    assert network.client.dropped == {"malformed": 1}
    network.client.receive_announcement(data, ROUTER, network.now)
    assert network.client.dropped == {"malformed": 2, "no announcement": 1}


def test_no_nonce_is_shown() -> None:
    network = Network().start()
    nonce = network.client._wishes["tcp"].nonce
    shown = f"{network.client!r} {network.take()!r} {network.client.datagrams_to_send()!r}"
    assert nonce.hex() not in shown
    assert repr(nonce) not in shown


def test_news_by_a_protocol_that_it_was_not_asked_by_are_news_once() -> None:
    network = Network(FakeRouter(speaks=NATPMP_ONLY)).start()
    network.take()
    network.pass_by(100)
    network.router.reboot(network.now)
    for _ in range(10):
        network.client.receive_announcement(network.router.announcement(2, network.now), ROUTER, network.now)
        network.pass_by(PORTMAP_NEWS_SPREAD + PORTMAP_PAUSE)
    assert network.router.mappings == BOTH
    assert len(network.mappings()) == 2
