"""Connection tracking: which segments a router calls invalid, and what that does to a pair of ports."""

from __future__ import annotations

import random

import pytest

from p2ptunnel.testing.simnet import ACK, KINDS, RST, SYN, SYN_ACK, Kind, Nat, Segment
from p2ptunnel.types import Address

PORT = 40_000
REMOTE: Address = ("203.0.113.10", 5000)
OTHER: Address = ("203.0.113.20", 5000)


def nat(kind: Kind | None = None) -> Nat:
    return Nat(kind or KINDS["pr"], random.Random(1))


def test_a_new_syn_may_replace_one_that_nobody_has_answered() -> None:
    router = nat()
    for number in (1, 2, 3):
        assert router.tcp_out(PORT, REMOTE, Segment(SYN, number), 0.0) == PORT
    assert router.tcp_in(PORT, REMOTE, Segment(SYN_ACK, 9, 3))


def test_once_the_peers_syn_is_through_another_syn_is_invalid_for_both() -> None:
    router = nat()
    router.tcp_out(PORT, REMOTE, Segment(SYN, 1), 0.0)
    assert router.tcp_in(PORT, REMOTE, Segment(SYN, 9))
    assert router.tcp_out(PORT, REMOTE, Segment(SYN_ACK, 2, 9), 0.0) is None  # the listener's: it never saw our SYN
    assert router.tcp_out(PORT, REMOTE, Segment(SYN, 3), 0.0) is None
    assert not router.tcp_in(PORT, REMOTE, Segment(SYN, 10))
    assert router.tcp_out(PORT, REMOTE, Segment(SYN_ACK, 1, 9), 0.0) == PORT  # the connecting socket's is good


@pytest.mark.parametrize("segment", [Segment(SYN_ACK, 1, 9), Segment(RST, 0, 9)])
def test_an_answer_to_nothing_does_not_leave(segment: Segment) -> None:
    router = nat()
    assert router.tcp_out(PORT, REMOTE, segment, 0.0) is None
    assert not router.tcp_in(PORT, REMOTE, Segment(SYN, 9))


def test_a_connection_is_picked_up_from_the_middle() -> None:
    router = nat()
    assert router.tcp_out(PORT, REMOTE, Segment(ACK, 1, 9), 0.0) == PORT
    assert router.tcp_in(PORT, REMOTE, Segment(ACK, 9, 1))


@pytest.mark.parametrize(
    ("reset", "closes"), [(Segment(RST, 0, 1), True), (Segment(RST, 9, 0), True), (Segment(RST, 5, 5), False)]
)
def test_only_a_reset_that_answers_closes_a_hole(reset: Segment, closes: bool) -> None:
    router = nat()
    router.tcp_out(PORT, REMOTE, Segment(SYN, 1), 0.0)
    router.tcp_in(PORT, REMOTE, Segment(SYN, 9))
    assert (router.tcp_in(PORT, REMOTE, reset) is not None) is closes
    assert (router.tcp_in(PORT, REMOTE, Segment(SYN, 9)) is None) is closes


@pytest.mark.parametrize(
    ("reset", "closes"), [(Segment(RST, 1, 0), True), (Segment(RST, 0, 9), True), (Segment(RST, 5, 5), False)]
)
def test_so_it_is_with_our_own(reset: Segment, closes: bool) -> None:
    router = nat()
    router.tcp_out(PORT, REMOTE, Segment(SYN, 1), 0.0)
    router.tcp_in(PORT, REMOTE, Segment(SYN, 9))
    assert (router.tcp_out(PORT, REMOTE, reset, 0.0) is not None) is closes
    assert (router.tcp_in(PORT, REMOTE, Segment(SYN, 9)) is None) is closes


def test_a_stranger_may_begin_where_doors_stand_open_and_is_tracked_like_all() -> None:
    router = nat(KINDS["fc"])
    router.tcp_out(PORT, REMOTE, Segment(SYN, 1), 0.0)
    assert router.tcp_in(PORT, OTHER, Segment(SYN, 9))
    assert router.tcp_out(PORT, OTHER, Segment(SYN_ACK, 2, 9), 0.0) == PORT
    assert router.tcp_out(PORT, OTHER, Segment(SYN, 3), 0.0) is None


def test_an_address_dependent_mapping_is_one_for_each_host() -> None:
    router = nat(Kind(mapping="address-dependent", allocation="random"))
    ports = [router.udp_out(PORT, remote, 0.0) for remote in (REMOTE, (REMOTE[0], 1), OTHER)]
    assert ports[0] == ports[1] != ports[2]


def test_a_port_that_is_taken_is_not_preserved_twice() -> None:
    router = nat(Kind(mapping="address-and-port-dependent"))
    assert router.udp_out(PORT, REMOTE, 0.0) == PORT
    assert router.udp_out(PORT, OTHER, 0.0) != PORT


def test_two_inside_ports_have_two_outside_ports() -> None:
    router = nat()
    assert router.udp_out(PORT, REMOTE, 0.0) != router.udp_out(PORT + 1, REMOTE, 0.0)


def test_random_ports_depend_on_the_seed_alone() -> None:
    def draw(seed: int) -> list[int]:
        router = Nat(KINDS["symR"], random.Random(seed))
        return [router.udp_out(PORT, (REMOTE[0], port), 0.0) for port in range(5)]

    assert draw(1) == draw(1) != draw(2)


def test_a_guard_ends_all_between_an_inside_port_and_a_host_whose_syn_crossed() -> None:
    guarded = nat(Kind(simultaneous_open=False, is_guarded=True))
    outside = guarded.tcp_out(PORT, REMOTE, Segment(SYN, 1), 0.0)
    assert outside is not None
    assert guarded.tcp_in(outside, REMOTE, Segment(SYN, 2)) is None
    assert guarded.tcp_in(outside, REMOTE, Segment(SYN_ACK, 2, 1)) is None
    assert guarded.tcp_out(PORT, REMOTE, Segment(SYN, 3), 0.0) is None
    other = guarded.tcp_out(PORT + 1, REMOTE, Segment(SYN, 4), 0.0)
    assert other is not None
    assert guarded.tcp_in(other, REMOTE, Segment(SYN_ACK, 5, 4)) == PORT + 1
