"""Behind one NAT with somebody else: whose word counts about its router, who is told of ours, and how little is sent there."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from p2ptunnel.defaults import INSIDE_CANDIDATES_MAX, PUNCH_TIMEOUT, SYN_REPEAT
from p2ptunnel.protocol.approach import Approach
from p2ptunnel.protocol.callee import CalleeAgent
from p2ptunnel.protocol.inside import inside_targets, is_inside, is_same_outside
from p2ptunnel.protocol.punch import Dial, LocalView
from p2ptunnel.types import Address, Candidate, Role
from p2ptunnel.wire.messages import NatHints, PunchAnswer, encode
from tests.unit.protocol.actors import (
    CALLEE,
    CALLER,
    SERVER,
    TOKEN,
    VIEW,
    answer_intent,
    callee_port,
    notice,
    only,
    signer,
)

SHARED = "198.51.100.2"
OURS = (Candidate("srflx", "tcp", SHARED, 50_001), Candidate("srflx", "udp", SHARED, 50_002))
PEER: Address = (SHARED, 50_003)
ROUTER: Address = ("100.64.0.7", 40_002)
NETWORKS = ("192.168.1.0/24", "172.17.0.0/16")


def named(host: str, port: int = 40_002) -> Candidate:
    return Candidate("mapped", "tcp", host, port)


# --- whose word counts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["10.1.2.3", "100.64.0.7", "100.127.255.254", "172.16.0.1", "192.168.7.1"])
def test_a_router_behind_the_same_nat_is_dialled_in_private_and_shared_ranges(host: str) -> None:
    assert is_inside(host)
    assert inside_targets((named(host),), OURS, PEER, NETWORKS) == ((host, 40_002),)


@pytest.mark.parametrize("peer", ["198.51.100.3", "203.0.113.2", "100.64.0.7", "2001:db8::2", "example", ""])
def test_nothing_is_sent_there_unless_the_server_sees_both_at_one_address(peer: str) -> None:
    assert not is_same_outside(peer, OURS)
    assert inside_targets((named(ROUTER[0]),), OURS, (peer, 50_003), NETWORKS) == ()


def test_the_same_address_over_ipv6_is_one_machine_and_no_nat() -> None:
    ours = (Candidate("srflx", "tcp", "2001:db8::2", 50_001),)
    assert inside_targets((named(ROUTER[0]),), ours, ("2001:db8::2", 50_003), NETWORKS) == ()


def test_what_we_say_of_ourselves_is_not_what_the_server_sees() -> None:
    ours = (Candidate("host", "tcp", SHARED, 50_001), Candidate("mapped", "tcp", SHARED, 50_001))
    assert inside_targets((named(ROUTER[0]),), ours, PEER, NETWORKS) == ()


@pytest.mark.parametrize(
    "host",
    [
        "198.51.100.9",
        "127.0.0.1",
        "169.254.169.254",
        "100.100.100.200",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "fd00::2",
        "fe80::2",
        "2001:db8:2::2",
        "example",
        "",
    ],
)
def test_nothing_is_sent_but_to_private_and_shared_addresses(host: str) -> None:
    assert inside_targets((named(host),), OURS, PEER, NETWORKS) == ()


@pytest.mark.parametrize("port", [0, 22, 443, 1023, 1900, 5353, 11211])
def test_nothing_is_sent_to_ports_of_services(port: int) -> None:
    assert inside_targets((named(ROUTER[0], port),), OURS, PEER, NETWORKS) == ()


@pytest.mark.parametrize("host", ["192.168.1.1", "192.168.1.254", "::ffff:192.168.1.1", "172.17.0.2"])
def test_nothing_is_sent_to_neighbours_on_the_word_of_a_peer(host: str) -> None:
    assert inside_targets((named(host), named(*ROUTER)), OURS, PEER, NETWORKS) == (ROUTER,)


@pytest.mark.parametrize("candidate", [Candidate("host", "tcp", *ROUTER), Candidate("srflx", "tcp", *ROUTER)])
def test_only_what_a_router_keeps_open_is_taken_for_it(candidate: Candidate) -> None:
    assert inside_targets((candidate,), OURS, PEER, NETWORKS) == ()


def test_datagrams_go_there_on_nobodys_word() -> None:
    assert inside_targets((Candidate("mapped", "udp", *ROUTER),), OURS, PEER, NETWORKS) == ()


def test_two_addresses_count_and_each_of_them_once() -> None:
    names = ("10.0.0.1", "::ffff:10.0.0.1", *(f"10.0.0.{number}" for number in range(2, 9)))
    targets = inside_targets(tuple(map(named, names)), OURS, PEER, NETWORKS)
    assert targets == (("10.0.0.1", 40_002), ("10.0.0.2", 40_002))
    assert len(targets) == INSIDE_CANDIDATES_MAX


def test_where_the_server_itself_is_inside_what_it_sees_is_dialled_as_ever() -> None:
    ours = (Candidate("srflx", "tcp", "10.0.0.9", 50_001),)
    assert inside_targets((named("10.0.0.9"),), ours, ("10.0.0.9", 50_003), NETWORKS) == ()


# --- what a caller sends ----------------------------------------------------------------------------------------------


def approach(role: Role, *, is_founding: bool = False) -> Approach:
    """One side of two that are seen at one address, whose peer names a way in of its router."""
    view = LocalView(OURS, 0.05, can_open_low=True, networks=NETWORKS)
    keys = None if is_founding else answer_intent(signer().sign(()), ())[1]
    cands = (Candidate("srflx", "tcp", *PEER), named(*ROUTER))
    return Approach(role, TOKEN, SERVER, PEER, cands, view, NatHints(low=True), random.Random(1), keys=keys)


def inside_dials(machine: Approach) -> list[Dial]:
    """Let all its time pass; return what it wants dialled there."""
    machine.start(0.0, ends_at=PUNCH_TIMEOUT)
    wanted = machine.events()
    while (at := machine.next_deadline()) is not None and at < PUNCH_TIMEOUT:
        machine.handle_timer(at)
        wanted += machine.events()
    dials = [event for event in wanted if isinstance(event, Dial)]
    assert all(ROUTER not in dial.targets for dial in dials if not dial.is_beside)
    return [dial for dial in dials if dial.is_beside]


def test_a_caller_dials_it_at_once_and_no_kernel_repeats_its_syn_more_than_twice() -> None:
    machine = approach("caller")
    [dial] = inside_dials(machine)
    assert (dial.targets, dial.low, dial.is_unseen) == ((ROUTER,), False, True)
    assert 2 * SYN_REPEAT < dial.patience < 3 * SYN_REPEAT
    assert machine.hosts == {SHARED, ROUTER[0]}


@pytest.mark.parametrize(("role", "is_founding"), [("callee", False), ("caller", True)])
def test_a_callee_dials_no_such_address_nor_does_anybody_whom_nobody_signs_for(role: Role, is_founding: bool) -> None:
    machine = approach(role, is_founding=is_founding)
    assert inside_dials(machine) == []
    assert machine.hosts == {SHARED}


# --- what a callee tells and lets in ----------------------------------------------------------------------------------

KEPT = replace(VIEW, inside=(named(*ROUTER),))


def answered(caller: Address, *, v: int = 1) -> tuple[tuple[Candidate, ...], CalleeAgent]:
    """Return what a callee tells that caller of itself, and its agent."""
    port = callee_port(view=KEPT)
    port.receive_datagram(encode(notice(caller=caller, v=v)), SERVER, 0.0)
    [agent] = port.agents
    extra = only(PunchAnswer, port.datagrams_to_send()).extra
    assert extra is not None
    return extra.cands, agent


def test_who_is_seen_at_our_address_is_told_of_our_routers_way_in_and_may_come_through_it() -> None:
    cands, agent = answered((CALLEE[0], 40_001))
    assert cands == (*VIEW.candidates, *KEPT.inside)
    assert agent.expects(CALLEE[0])
    assert agent.expects("100.64.0.9")  # its own router's outside address, which nobody knows beforehand
    assert not any(agent.expects(host) for host in ("198.51.100.77", "127.0.0.1", "2001:db8::1", "fd00::1"))


def test_nobody_else_is_and_may() -> None:
    for cands, agent in (answered(CALLER), answered((CALLEE[0], 40_001), v=0)):
        assert not set(KEPT.inside) & set(cands)
        assert not agent.expects("100.64.0.9")


def test_where_our_router_keeps_none_nobody_comes_from_there() -> None:
    port = callee_port()
    port.receive_datagram(encode(notice(caller=(CALLEE[0], 40_001))), SERVER, 0.0)
    [agent] = port.agents
    assert not agent.expects("100.64.0.9")
