"""The exact NATs: each word of their settings does what RFC 4787 and RFC 5382 mean by it; time is ours."""

from __future__ import annotations

import random
from typing import Any

import pytest

from p2ptunnel.testing.natlab.engine.nat import Nat
from p2ptunnel.testing.natlab.engine.packet import ACK, ICMP, RST, SYN, TCP, UDP
from p2ptunnel.testing.natlab.engine.table import NatSettings
from tests.unit.testing.natlab_packets import (
    HOST,
    LAN,
    NEIGHBOUR,
    PEER,
    PEER_OTHER_PORT,
    STRANGER,
    WAN,
    Address,
    Seen,
    icmp_error,
    ipv4,
    packed,
    read,
    read_quoted,
    tcp,
    udp,
)

EI, AD, APD = "endpoint-independent", "address-dependent", "address-and-port-dependent"


class Bench:
    """A NAT with two hosts; every call returns what came out, where it went (None for outside), and checks it."""

    def __init__(self, **settings: Any) -> None:
        self.nat = Nat(NatSettings(wan_address=WAN, lan_address=LAN, **settings), random.Random(1))
        for host in (HOST, NEIGHBOUR):
            self.nat.add_host(packed(host[0]))

    def send(self, data: bytes, now: float = 0.0) -> list[tuple[str | None, Seen]]:
        return self._read(self.nat.from_inside(data, now))

    def receive(self, data: bytes, now: float = 0.0) -> list[tuple[str | None, Seen]]:
        return self._read(self.nat.from_outside(data, now))

    def open(self, remote: Address = PEER, source: Address = HOST, *, protocol: int = UDP, now: float = 0.0) -> Address:
        """Send outwards and return the outside address."""
        data = udp(source, remote) if protocol == UDP else tcp(source, remote, SYN)
        [(to, seen)] = self.send(data, now)
        assert (to, seen.destination) == (None, remote)
        return seen.source

    def lets_in(self, remote: Address, outside: Address, *, flags: int | None = None, now: float = 0.0) -> bool:
        data = udp(remote, outside) if flags is None else tcp(remote, outside, flags)
        return [(to, seen.destination) for to, seen in self.receive(data, now)] == [(HOST[0], HOST)]

    @staticmethod
    def _read(deliveries: list[tuple[bytes | None, bytes]]) -> list[tuple[str | None, Seen]]:
        return [(None if to is None else ".".join(map(str, to)), read(data)) for to, data in deliveries]


# --- mapping and allocation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [UDP, TCP])
@pytest.mark.parametrize(("mapping", "ports"), [(EI, 1), (AD, 2), (APD, 3)])
def test_mapping_depends_on_what_it_says(mapping: str, ports: int, protocol: int) -> None:
    bench = Bench(mapping=mapping, allocation="random")
    assert len({bench.open(remote, protocol=protocol) for remote in (PEER, PEER_OTHER_PORT, STRANGER)}) == ports


def test_preserving_keeps_the_port_while_it_is_free() -> None:
    bench = Bench(allocation="preserving")
    assert bench.open() == (WAN, HOST[1])
    assert bench.open(source=(NEIGHBOUR[0], HOST[1]))[1] != HOST[1]


def test_shifted_differs_between_the_transports() -> None:
    bench = Bench(allocation="shifted")
    assert len({HOST[1], bench.open()[1], bench.open(protocol=TCP)[1]}) == 3


def test_sequential_gives_one_port_after_the_other() -> None:
    bench = Bench(mapping=APD, allocation="sequential")
    first, second, third = (bench.open(remote)[1] for remote in (PEER, PEER_OTHER_PORT, STRANGER))
    assert (second - first, third - second) == (1, 1)


def test_sequential_begins_again_at_the_end_and_skips_taken_ports() -> None:
    bench = Bench(mapping=APD, allocation="sequential")
    bench.nat.table._next_port[UDP] = 65535
    bench.nat.table.add_static(UDP, 1024, (packed(NEIGHBOUR[0]), 1))
    assert [bench.open(remote)[1] for remote in (PEER, STRANGER)] == [65535, 1025]


def test_the_way_back_is_the_way_out_reversed() -> None:
    bench = Bench(allocation="random")
    [(to, seen)] = bench.receive(udp(PEER, bench.open(), b"answer"))
    assert (to, seen.source, seen.destination, seen.payload) == (HOST[0], PEER, HOST, b"answer")


def test_a_full_table_takes_no_more_until_a_mapping_expires() -> None:
    bench = Bench(max_mappings=1, udp_timeout=10.0)
    bench.open(now=0.0)
    assert bench.send(udp(NEIGHBOUR, PEER), now=5.0) == []
    assert bench.nat.refused["table full"] == 1
    assert bench.open(source=NEIGHBOUR, now=11.0) == (WAN, NEIGHBOUR[1])
    assert len(bench.nat.table) == 1


@pytest.mark.bulk
@pytest.mark.parametrize("allocation", ["preserving", "sequential", "random"])
def test_a_nat_whose_ports_are_all_taken_takes_no_more(allocation: str) -> None:
    bench = Bench(allocation=allocation)
    for port in range(1024, 65536):
        bench.nat.table.add_static(UDP, port, (packed(NEIGHBOUR[0]), port))
    assert bench.send(udp(HOST, PEER)) == []
    assert bench.nat.refused["table full"] == 1


# --- filtering ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("filtering", "same_address", "stranger"), [(EI, True, True), (AD, True, False), (APD, False, False)])
def test_filtering_lets_in_whom_it_says(filtering: str, same_address: bool, stranger: bool) -> None:
    bench = Bench(filtering=filtering)
    outside = bench.open()
    assert bench.lets_in(PEER, outside)
    assert bench.lets_in(PEER_OTHER_PORT, outside) is same_address
    assert bench.lets_in(STRANGER, outside) is stranger


def test_nobody_gets_in_where_there_is_no_mapping() -> None:
    bench = Bench(filtering=EI)
    assert bench.receive(udp(PEER, (WAN, HOST[1]))) == []
    assert bench.nat.refused["unsolicited"] == 1


def test_a_static_mapping_lets_everybody_in_and_outlives_a_flush() -> None:
    bench = Bench()
    bench.nat.table.add_static(TCP, 443, (packed(HOST[0]), HOST[1]))
    bench.nat.flush()
    assert bench.lets_in(STRANGER, (WAN, 443), flags=SYN, now=1e9)
    [(_, seen)] = bench.send(tcp(HOST, STRANGER, SYN | ACK))
    assert seen.source == (WAN, 443)


def test_a_flush_forgets_the_rest() -> None:
    bench = Bench()
    outside = bench.open()
    bench.nat.flush()
    assert not bench.lets_in(PEER, outside)


def test_a_refused_datagram_does_not_move_the_mapping() -> None:
    bench = Bench()
    outside = bench.open()
    bench.receive(udp(STRANGER, outside))
    assert bench.open(STRANGER) == outside


# --- what strangers hear ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [SYN, ACK, SYN | ACK])
def test_reject_answers_tcp_by_rst(flags: int) -> None:
    [(to, seen)] = Bench(unsolicited="reject").receive(tcp(STRANGER, (WAN, 9), flags))
    assert (to, seen.source, seen.destination, bool(seen.flags & RST)) == (None, (WAN, 9), STRANGER, True)


def test_reject_answers_udp_by_port_unreachable() -> None:
    [(to, seen)] = Bench(unsolicited="reject").receive(udp(STRANGER, (WAN, 9)))
    assert (to, seen.protocol, seen.destination[0], seen.payload[:2]) == (None, ICMP, STRANGER[0], b"\x03\x03")
    assert read_quoted(seen) == (STRANGER, (WAN, 9))


def test_a_rst_is_never_answered() -> None:
    assert Bench(unsolicited="reject").receive(tcp(STRANGER, (WAN, 9), RST)) == []


def test_drop_is_silent() -> None:
    bench = Bench(unsolicited="drop")
    assert bench.receive(tcp(STRANGER, (WAN, 9), SYN)) == []
    assert bench.receive(udp(STRANGER, (WAN, 9))) == []


# --- TCP ----------------------------------------------------------------------------------------------------------------


def test_tcp_that_does_not_begin_with_a_syn_gets_no_mapping() -> None:
    bench = Bench()
    assert bench.send(tcp(HOST, PEER, ACK)) == []
    assert bench.nat.refused["no connection"] == 1


@pytest.mark.parametrize(("simultaneous_open", "gets_in"), [(True, True), (False, False)])
def test_a_syn_may_cross_ours_only_with_simultaneous_open(simultaneous_open: bool, gets_in: bool) -> None:
    bench = Bench(simultaneous_open=simultaneous_open)
    outside = bench.open(protocol=TCP)
    assert bench.lets_in(PEER, outside, flags=SYN) is gets_in
    assert bench.lets_in(PEER, outside, flags=SYN | ACK)


def test_a_guard_ends_all_between_an_inside_port_and_a_host_whose_syn_crossed() -> None:
    bench = Bench(simultaneous_open=False, is_guarded=True)
    outside = bench.open(protocol=TCP)
    assert not bench.lets_in(PEER, outside, flags=SYN)
    assert not bench.lets_in(PEER, outside, flags=SYN | ACK)
    assert bench.send(tcp(HOST, PEER, SYN)) == []
    assert bench.nat.refused["barred"] == 1
    bench.open(STRANGER, protocol=TCP)
    assert bench.lets_in(STRANGER, outside, flags=SYN | ACK)


@pytest.mark.parametrize(("filtering", "gets_in"), [(APD, False), (AD, True), (EI, True)])
def test_a_rst_closes_the_hole_of_its_own_session(filtering: str, gets_in: bool) -> None:
    bench = Bench(filtering=filtering)
    outside = bench.open(protocol=TCP)
    bench.open(STRANGER, protocol=TCP)
    assert bench.lets_in(PEER, outside, flags=RST | ACK)
    assert bench.lets_in(PEER, outside, flags=SYN) is gets_in
    assert bench.lets_in(STRANGER, outside, flags=SYN)


def test_a_rst_of_ours_closes_the_hole_too() -> None:
    bench = Bench()
    outside = bench.open(protocol=TCP)
    bench.send(tcp(HOST, PEER, RST))
    assert not bench.lets_in(PEER, outside, flags=SYN)


def test_a_new_syn_of_ours_opens_the_hole_again() -> None:
    bench = Bench()
    outside = bench.open(protocol=TCP)
    bench.lets_in(PEER, outside, flags=RST)
    assert bench.open(protocol=TCP) == outside
    assert bench.lets_in(PEER, outside, flags=SYN)


def test_a_rst_may_end_the_whole_mapping() -> None:
    bench = Bench(inbound_reset="mapping")
    outside = bench.open(protocol=TCP)
    bench.open(STRANGER, protocol=TCP)
    assert bench.lets_in(PEER, outside, flags=RST)
    assert not bench.lets_in(STRANGER, outside, flags=SYN)


def test_a_rst_may_end_nothing() -> None:
    bench = Bench(inbound_reset="nothing")
    outside = bench.open(protocol=TCP)
    bench.lets_in(PEER, outside, flags=RST)
    assert bench.lets_in(PEER, outside, flags=SYN)


# --- time ---------------------------------------------------------------------------------------------------------------


def test_an_idle_udp_mapping_is_forgotten_and_a_used_one_is_not() -> None:
    bench = Bench(udp_timeout=30.0)
    outside = bench.open(now=0.0)
    assert bench.lets_in(PEER, outside, now=29.0)
    assert bench.lets_in(PEER, outside, now=58.0)
    assert not bench.lets_in(PEER, outside, now=89.0)


@pytest.mark.parametrize(
    ("events", "lifetime"),
    [
        ([], 75.0),
        ([("in", SYN | ACK)], 7440.0),
        ([("in", SYN)], 7440.0),
        ([("in", SYN | ACK), ("in", RST)], 75.0),
    ],
    ids=["SYN sent", "answered", "crossed", "reset"],
)
def test_tcp_lives_longer_once_it_is_established(events: list[tuple[str, int]], lifetime: float) -> None:
    for age, lives in ((lifetime - 1, True), (lifetime + 1, False)):
        bench = Bench(filtering=EI)
        outside = bench.open(protocol=TCP)
        for _, flags in events:
            assert bench.lets_in(PEER, outside, flags=flags)
        assert bench.lets_in(PEER, outside, flags=ACK, now=age) is lives


def test_a_connection_from_outside_counts_as_established_when_it_is_answered() -> None:
    bench = Bench(filtering=EI)
    outside = bench.open(STRANGER, protocol=TCP)
    assert bench.lets_in(PEER, outside, flags=SYN)
    bench.send(tcp(HOST, PEER, SYN | ACK))
    assert bench.lets_in(PEER, outside, flags=ACK, now=7000.0)


# --- hairpin, neighbours, multicast -------------------------------------------------------------------------------------


def test_neighbours_meet_by_their_outside_addresses_only_with_hairpinning() -> None:
    bench = Bench(filtering=EI, hairpinning=True)
    outside = bench.open()
    [(to, seen)] = bench.send(udp(NEIGHBOUR, outside, b"hi"))
    assert (to, seen.source, seen.destination) == (HOST[0], (WAN, NEIGHBOUR[1]), HOST)


def test_without_hairpinning_they_do_not() -> None:
    bench = Bench(filtering=EI)
    assert bench.send(udp(NEIGHBOUR, bench.open())) == []
    assert bench.nat.refused["hairpin"] == 1


def test_a_refused_hairpin_is_answered_to_the_neighbour() -> None:
    bench = Bench(hairpinning=True, unsolicited="reject")
    [(to, seen)] = bench.send(tcp(NEIGHBOUR, (WAN, 9), SYN))
    assert (to, seen.source, seen.destination, bool(seen.flags & RST)) == (NEIGHBOUR[0], (WAN, 9), NEIGHBOUR, True)


def test_neighbours_reach_each_other_directly_without_a_hop() -> None:
    data = udp(HOST, NEIGHBOUR, ttl=1)
    assert Bench().send(data) == [(NEIGHBOUR[0], read(data))]


def test_multicast_reaches_the_neighbours_and_nobody_else() -> None:
    data = udp(HOST, ("224.0.0.251", 5353), ttl=1)
    assert Bench().send(data) == [(NEIGHBOUR[0], read(data))]


# --- hops and errors ----------------------------------------------------------------------------------------------------


def test_a_low_ttl_ends_here_and_its_sender_hears_of_it() -> None:
    [(to, seen)] = Bench().send(udp(HOST, PEER, ttl=1))
    assert (to, seen.source[0], seen.payload[:2]) == (HOST[0], LAN, b"\x0b\x00")
    assert read_quoted(seen) == (HOST, PEER)


def test_a_low_ttl_from_outside_ends_here_too() -> None:
    bench = Bench()
    [(to, seen)] = bench.receive(udp(PEER, bench.open(), ttl=1))
    assert (to, seen.source[0], seen.destination[0], seen.payload[:2]) == (None, WAN, PEER[0], b"\x0b\x00")


def test_a_hop_is_counted_each_way() -> None:
    bench = Bench()
    [(_, out)] = bench.send(udp(HOST, PEER, ttl=9))
    [(_, back)] = bench.receive(udp(PEER, out.source, ttl=9))
    assert (out.ttl, back.ttl) == (8, 8)


@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_an_error_about_our_packet_comes_in_with_the_inside_view(protocol: int) -> None:
    bench = Bench(allocation="random")
    outside = bench.open(protocol=protocol)
    about = udp(outside, PEER) if protocol == UDP else tcp(outside, PEER, SYN)
    [(to, seen)] = bench.receive(icmp_error("192.0.2.1", WAN, about, 11, 0))
    assert (to, seen.source[0], seen.destination[0], seen.payload[:2]) == (HOST[0], "192.0.2.1", HOST[0], b"\x0b\x00")
    assert read_quoted(seen) == (HOST, PEER)


def test_an_error_about_what_we_never_sent_stays_outside() -> None:
    bench = Bench()
    outside = bench.open()
    assert bench.receive(icmp_error("192.0.2.1", WAN, udp(outside, STRANGER))) == []
    assert bench.receive(icmp_error("192.0.2.1", WAN, udp((WAN, 9), PEER))) == []
    assert bench.nat.refused["no mapping"] == 2


def test_an_error_of_a_host_goes_out_with_the_outside_view() -> None:
    bench = Bench(allocation="random")
    outside = bench.open()
    [(to, seen)] = bench.send(icmp_error(HOST[0], PEER[0], udp(PEER, HOST)))
    assert (to, seen.source[0], seen.destination[0]) == (None, WAN, PEER[0])
    assert read_quoted(seen) == (PEER, outside)


def test_an_error_of_a_host_about_nothing_goes_nowhere() -> None:
    assert Bench().send(icmp_error(HOST[0], PEER[0], udp(PEER, HOST))) == []


@pytest.mark.parametrize(
    "data",
    [
        icmp_error(PEER[0], WAN, udp((WAN, 1), PEER), kind=8),
        icmp_error(PEER[0], WAN, ipv4(WAN, PEER[0], 47, bytes(20))),
        icmp_error(PEER[0], WAN, bytes(28)),
        ipv4(PEER[0], WAN, 47, bytes(20)),
        udp(PEER, ("198.51.100.200", 1)),
    ],
    ids=["echo", "error about GRE", "error about nothing", "GRE", "not for us"],
)
def test_what_cannot_be_translated_is_counted_and_dropped(data: bytes) -> None:
    bench = Bench()
    assert bench.receive(data) == []
    assert bench.nat.refused.total() == 1


@pytest.mark.parametrize("data", [ipv4(HOST[0], PEER[0], 47, bytes(20)), icmp_error(HOST[0], PEER[0], udp(HOST, PEER), 8)])
def test_what_cannot_be_translated_does_not_leave(data: bytes) -> None:
    bench = Bench()
    assert bench.send(data) == []
    assert bench.nat.refused.total() == 1


def test_ipv6_is_none_of_its_business() -> None:
    bench = Bench()
    assert bench.send(b"\x60" + bytes(60)) == []
    assert bench.receive(b"\x60" + bytes(60)) == []
    assert bench.nat.refused.total() == 0


@pytest.mark.parametrize(("protocol", "settings"), [(UDP, {"udp": False}), (TCP, {"tcp": False})])
def test_a_blocked_transport_goes_neither_way(protocol: int, settings: dict[str, bool]) -> None:
    bench = Bench(filtering=EI, **settings)
    bench.nat.table.add_static(protocol, 9, (packed(HOST[0]), HOST[1]))
    outwards = udp(HOST, PEER) if protocol == UDP else tcp(HOST, PEER, SYN)
    inwards = udp(PEER, (WAN, 9)) if protocol == UDP else tcp(PEER, (WAN, 9), SYN)
    assert (bench.send(outwards), bench.receive(inwards)) == ([], [])
    assert bench.nat.refused["blocked"] == 2


@pytest.mark.parametrize("flush", [False, True])
def test_answers_leave_by_the_mapping_through_which_the_question_came(flush: bool) -> None:
    bench = Bench(mapping=APD, filtering=EI, allocation="random")
    outside = bench.open()
    other = bench.open(PEER_OTHER_PORT)
    assert bench.lets_in(STRANGER, outside)
    assert bench.open(STRANGER) == outside
    assert bench.open(PEER_OTHER_PORT) == other
    if flush:
        bench.nat.flush()
        assert bench.open(STRANGER) != outside
        assert len(bench.nat.table) == 1


def test_a_flow_that_changes_its_mapping_takes_the_old_one_s_key_along() -> None:
    bench = Bench(mapping=APD, filtering=EI, allocation="random", udp_timeout=10.0)
    old, new = bench.open(PEER, now=0.0), bench.open(STRANGER, now=5.0)
    assert bench.lets_in(PEER, new, now=5.0)
    assert bench.open(PEER, now=5.0) == new
    assert not bench.lets_in(PEER, old, now=12.0)
    assert bench.open(PEER, now=12.0) == new
