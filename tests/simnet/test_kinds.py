"""Each simulated kind behaves as its name says, and as the laboratory's kind of that name is described."""

from __future__ import annotations

import dataclasses

import pytest

from p2ptunnel.errors import ConfigError
from p2ptunnel.testing.natlab import kinds as laboratory
from p2ptunnel.testing.simnet import ACK, KINDS, PUNCHABLE, RST, SYN, SYN_ACK, Kind, Network, Segment, find_kind
from p2ptunnel.types import Address
from tests.simnet.sites import FAR, FAR_HOST, FAR_PORT, INSIDE_PORT, SITE, Witness, site

ROUTERS = tuple(name for name, kind in KINDS.items() if kind.router)
EVERYONE = (FAR, FAR_PORT, FAR_HOST)
INDEPENDENT, HOST, BOTH = "endpoint-independent", "address-dependent", "address-and-port-dependent"


def world(kind: str) -> tuple[Network, Witness, dict[Address, Witness]]:
    """Return a network with one site of `kind` and three observers; two share a host, so they cannot be there at once."""
    network = Network(seed=1)
    return network, site(network, kind), {FAR: Witness(network, FAR), FAR_HOST: Witness(network, FAR_HOST)}


def outside_ports(kind: str, transport: str) -> list[int]:
    """Return the outside ports that the three observers see."""
    network, inside, _ = world(kind)
    nat = inside.host.nat
    if nat is None:
        return [INSIDE_PORT] * 3
    if transport == "udp":
        return [nat.udp_out(INSIDE_PORT, remote, 0.0) for remote in EVERYONE]
    seen = [nat.tcp_out(INSIDE_PORT, remote, Segment(SYN, next(network.numbers)), 0.0) for remote in EVERYONE]
    return [port for port in seen if port is not None]


@pytest.mark.parametrize("transport", ["udp", "tcp"])
@pytest.mark.parametrize("kind", KINDS)
def test_mapping_and_allocation(kind: str, transport: str) -> None:
    ports = outside_ports(kind, transport)
    expected = KINDS[kind]
    assert len(ports) == 3
    if expected.mapping == INDEPENDENT:
        assert len(set(ports)) == 1
        assert (ports[0] == INSIDE_PORT) is (expected.allocation == "preserving" and expected.carrier is None)
    elif expected.allocation == "sequential":
        assert ports == [ports[0], ports[0] + 1, ports[0] + 2]
    else:
        assert len(set(ports)) == 3
        assert all(1024 <= port <= 65535 for port in ports)


def test_a_shifting_nat_shifts_udp_and_tcp_differently() -> None:
    assert outside_ports("shift", "udp")[0] != outside_ports("shift", "tcp")[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stranger", [FAR, FAR_PORT, FAR_HOST])
def test_who_may_send_a_datagram_in(kind: str, stranger: Address) -> None:
    network, inside, _ = world(kind)
    network.send_udp(inside.host, b"out", FAR)
    outside = INSIDE_PORT if inside.host.nat is None else inside.host.nat.udp_out(INSIDE_PORT, FAR, 0.0)
    network.forge_udp(b"in", stranger, (SITE, outside))
    filtering = KINDS[kind].filtering
    may = filtering == INDEPENDENT or stranger == FAR or (filtering == HOST and stranger[0] == FAR[0])
    assert bool(inside.datagrams) is may


@pytest.mark.parametrize("kind", KINDS)
def test_before_anything_was_sent_only_the_open_hear_strangers(kind: str) -> None:
    network, inside, _ = world(kind)
    network.forge_udp(b"in", FAR, (SITE, INSIDE_PORT))
    assert bool(inside.datagrams) is (kind == "pub")


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_unsolicited_syn_gets(kind: str) -> None:
    network, inside, far = world(kind)
    network.send_tcp(far[FAR].host, Segment(SYN, 1), (SITE, INSIDE_PORT))
    network.clock.advance(1.0)
    answers = [segment.kind for segment, _ in far[FAR].segments]
    refuses = KINDS[kind].unsolicited != "drop"
    assert answers == ([RST] if refuses else [])
    assert [segment.kind for segment, _ in inside.segments] == ([SYN] if kind == "pub" else [])


@pytest.mark.parametrize("kind", KINDS)
def test_a_syn_meets_the_hole_that_a_syn_has_opened(kind: str) -> None:
    network, inside, far = world(kind)
    network.send_tcp(inside.host, Segment(SYN, 1), FAR, ttl=inside.host.routers + 1)  # it never gets there
    nat = inside.host.nat
    outside = INSIDE_PORT if nat is None else nat.tcp_out(INSIDE_PORT, FAR, Segment(SYN, 1), 0.0)
    assert outside is not None
    network.send_tcp(far[FAR].host, Segment(SYN, 2), (SITE, outside))
    network.clock.advance(1.0)
    assert [segment.kind for segment, _ in inside.segments] == ([SYN] if KINDS[kind].simultaneous_open else [])
    assert not far[FAR].segments


@pytest.mark.parametrize("kind", KINDS)
def test_a_refusal_closes_the_hole_except_where_doors_stand_open(kind: str) -> None:
    network, inside, far = world(kind)
    network.send_tcp(inside.host, Segment(SYN, 1), FAR)
    network.clock.advance(1.0)
    [(_, outside)] = far[FAR].segments
    network.send_tcp(far[FAR].host, Segment(RST, 0, 1), outside)
    network.send_tcp(far[FAR].host, Segment(SYN, 2), outside)
    network.clock.advance(1.0)
    stays_open = KINDS[kind].filtering != BOTH
    assert [segment.kind for segment, _ in inside.segments] == ([RST, SYN] if stays_open else [RST])


@pytest.mark.parametrize("kind", KINDS)
def test_a_datagram_that_the_router_itself_refused_moves_the_next_mapping(kind: str) -> None:
    network, inside, far = world(kind)
    nat = inside.host.nat
    wanted = INSIDE_PORT if nat is None else nat.udp_out(INSIDE_PORT, FAR_HOST, 0.0)
    network.forge_udp(b"early", FAR, (SITE, wanted))
    network.send_udp(inside.host, b"out", FAR)
    network.clock.advance(1.0)
    [(_, (_, port))] = far[FAR].datagrams
    if KINDS[kind].mapping == INDEPENDENT:
        assert (port != wanted) is (kind == "prO")


def test_that_memory_ends_after_thirty_seconds() -> None:
    network, inside, far = world("prO")
    network.forge_udp(b"early", FAR, (SITE, INSIDE_PORT))
    network.clock.advance(30.0)
    network.send_udp(inside.host, b"out", FAR)
    network.clock.advance(1.0)
    assert far[FAR].datagrams == [(b"out", (SITE, INSIDE_PORT))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("extra", "opens", "arrives"), [(-1, False, False), (0, True, False), (1, True, True)])
def test_an_opener_dies_outside_its_own_nat_and_nowhere_else(kind: str, extra: int, opens: bool, arrives: bool) -> None:
    network, inside, far = world(kind)
    network.send_udp(inside.host, b"opener", FAR, ttl=inside.host.routers + 1 + extra)
    network.forge_udp(b"in", FAR, (SITE, INSIDE_PORT))
    network.clock.advance(1.0)
    assert bool(far[FAR].datagrams) is arrives
    if KINDS[kind].routers == 1 and KINDS[kind].allocation == "preserving":
        assert bool(inside.datagrams) is opens


@pytest.mark.parametrize("kind", KINDS)
def test_the_laboratory_describes_it_alike(kind: str) -> None:
    ours, theirs = KINDS[kind], laboratory.KINDS[kind]
    assert_alike(ours, theirs)
    assert (ours.carrier is None) is (theirs.carrier == "")
    if ours.carrier is not None:
        assert_alike(ours.carrier, laboratory.KINDS[theirs.carrier])


def assert_alike(ours: Kind, theirs: laboratory.Kind) -> None:
    assert ours.router is (theirs.router != "none")
    fields = ("mapping", "filtering", "allocation", "unsolicited", "simultaneous_open")
    for field in fields:
        assert getattr(ours, field) == getattr(theirs, field), field
    plain = laboratory.Kind(router=theirs.router, filtering=theirs.filtering)
    others = {f.name for f in dataclasses.fields(theirs)} - {"router", "carrier", *fields}
    assert all(getattr(theirs, field) == getattr(plain, field) for field in others)  # nothing that simnet leaves out


def test_of_the_laboratory_s_matrix_one_kind_is_missing() -> None:
    assert set(laboratory.MATRIX_KINDS) - set(KINDS) == {"noU"}
    assert [kind for kind in laboratory.MATRIX_KINDS if kind in KINDS] == list(KINDS)


def test_a_hole_behind_two_routers_needs_both() -> None:
    network, inside, far = world("dbl")
    assert inside.host.routers == 2
    network.send_tcp(inside.host, Segment(SYN, 1), FAR, ttl=2)  # dies at the carrier's, before it takes note
    network.send_tcp(inside.host, Segment(SYN, 1), FAR)
    network.clock.advance(1.0)
    [(_, (address, port))] = far[FAR].segments
    for stranger in (FAR_PORT, FAR_HOST):
        network.forge_udp(b"in", stranger, (address, port))
    network.send_tcp(far[FAR].host, Segment(SYN, 2), (address, port))
    network.clock.advance(1.0)
    assert [segment.kind for segment, _ in inside.segments] == [SYN]
    assert not inside.datagrams


def test_where_syns_may_not_meet_an_answer_comes_in_all_the_same() -> None:
    network, inside, far = world("noSO")
    network.send_tcp(inside.host, Segment(SYN, 1), FAR)
    network.clock.advance(1.0)
    [(_, outside)] = far[FAR].segments
    for segment in (Segment(SYN, 2), Segment(SYN_ACK, 2, 1)):
        network.send_tcp(far[FAR].host, segment, outside)
    network.clock.advance(1.0)
    assert [segment.kind for segment, _ in inside.segments] == [SYN_ACK]


def test_every_punchable_kind_is_one() -> None:
    independent = {name for name, kind in KINDS.items() if kind.mapping == INDEPENDENT}
    assert set(PUNCHABLE) == {name for name in independent if KINDS[name].simultaneous_open and KINDS[name].carrier is None}


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="nat64"):
        find_kind("nat64")


def test_a_connection_that_is_up_passes_both_ways_behind_every_router() -> None:
    for kind in ROUTERS:
        network, inside, far = world(kind)
        network.send_tcp(inside.host, Segment(SYN, 1), FAR)
        network.clock.advance(1.0)
        [(_, outside)] = far[FAR].segments
        for segment in (Segment(SYN_ACK, 2, 1), Segment(ACK, 2, 1, "hello")):
            network.send_tcp(far[FAR].host, segment, outside)
        network.clock.advance(1.0)
        assert [segment.kind for segment, _ in inside.segments] == [SYN_ACK, ACK]
