"""IPv6 beside IPv4: whose word counts, what is sent when, and how little goes to an address that nobody has seen."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import IPV6_CANDIDATES_MAX, PLAIN_MARGIN, SYN_REPEAT
from p2ptunnel.protocol.ipv6 import Ipv6Approach, ProbeBeside, ipv6_candidates, ipv6_targets, ipv6_udp_target
from p2ptunnel.protocol.punch import Dial
from p2ptunnel.types import Candidate, Role
from p2ptunnel.wire.messages import NatHints, Opener, encode

SERVER = ("203.0.113.1", 7000)
PEER = ("198.51.100.2", 40002)
PEER_6 = ("2001:db8:2::2", 40002)
OURS = (Candidate("host", "tcp", "2001:db8:1::2", 40001),)
TOKEN = "0123456789abcdef0123456789abcdef"
ROUND_TRIP = 0.1
ENDS = 10.0
ABLE, UNABLE = NatHints(low=True), NatHints(low=False)


def named(host: str, port: int = 40002) -> Candidate:
    return Candidate("host", "tcp", host, port)


# --- whose word counts ------------------------------------------------------------------------------------------------


def test_our_own_addresses_are_told_as_those_of_a_host() -> None:
    assert ipv6_candidates(("2001:db8:1::2",), 40001) == OURS


def test_over_udp_the_first_is_told_as_well_and_all_in_all_three_are() -> None:
    hosts = tuple(f"2001:db8:1::{number}" for number in range(1, 5))
    assert ipv6_candidates(hosts, 40001, has_udp=True) == (
        Candidate("host", "tcp", hosts[0], 40001),
        Candidate("host", "tcp", hosts[1], 40001),
        Candidate("host", "udp", hosts[0], 40001),
    )
    assert len(ipv6_candidates(hosts, 40001)) == IPV6_CANDIDATES_MAX
    assert ipv6_candidates((), 40001, has_udp=True) == ()


def test_datagrams_go_to_one_address_and_to_no_host_that_gets_no_syn() -> None:
    theirs = tuple(Candidate("host", "udp", host, 40003) for host in ("2001:db8:3::3", PEER_6[0], "2001:db8:2::9"))
    assert ipv6_udp_target(theirs, (PEER_6, ("2001:db8:2::9", 40002)), PEER) == (PEER_6[0], 40003)
    assert ipv6_udp_target(theirs, (), PEER) is None
    assert ipv6_udp_target((named(*PEER_6),), (PEER_6,), PEER) is None


def test_no_datagram_goes_to_a_port_of_services() -> None:
    for port in (53, 1900, 5353):
        assert ipv6_udp_target((Candidate("host", "udp", PEER_6[0], port),), (PEER_6,), PEER) is None


def test_who_is_seen_over_ipv6_is_probed_where_it_is_seen() -> None:
    assert ipv6_udp_target((Candidate("host", "udp", *PEER_6),), (PEER_6,), PEER_6) is None


@pytest.mark.parametrize(
    "host",
    [
        "fd00::2",
        "fe80::2",
        "::1",
        "::",
        "ff02::1",
        "3ffe::2",
        "::ffff:198.51.100.9",
        "64:ff9b::198.51.100.9",
        "2002:c633:6409::1",
        "2001:0:1:2:3:4:5:6",
        "fd00:ec2::254",
        "198.51.100.9",
        "192.168.1.7",
        "example",
        "",
    ],
)
def test_nothing_is_sent_but_to_global_addresses(host: str) -> None:
    assert ipv6_targets((named(host),), OURS, PEER, SERVER) == ()


@pytest.mark.parametrize("port", [0, 22, 443, 1023, 1900, 5353, 11211])
def test_nothing_is_sent_to_ports_of_services(port: int) -> None:
    assert ipv6_targets((named(PEER_6[0], port),), OURS, PEER, SERVER) == ()


@pytest.mark.parametrize("candidate", [Candidate("srflx", "tcp", *PEER_6), Candidate("host", "udp", *PEER_6)])
def test_only_what_is_a_hosts_own_is_taken_for_it(candidate: Candidate) -> None:
    assert ipv6_targets((candidate,), OURS, PEER, SERVER) == ()


@pytest.mark.parametrize("host", ["2001:db8:1::2", "2001:DB8:1:0::2", "2001:db8:1::1", "2001:db8:1:0:ffff::9", "2001:db8:9::7"])
def test_nothing_is_sent_to_ourselves_or_to_neighbours_on_the_word_of_a_peer(host: str) -> None:
    ours = (*OURS, Candidate("host", "tcp", "2001:db8:9::2", 40001))
    assert ipv6_targets((named(host, 5432), named(*PEER_6)), ours, PEER, SERVER) == (PEER_6,)


def test_a_neighbour_whom_the_server_has_seen_is_one() -> None:
    neighbour = ("2001:db8:1::9", 40002)
    assert ipv6_targets((Candidate("srflx", "tcp", *neighbour),), OURS, neighbour, SERVER) == (neighbour,)


def test_three_addresses_count_and_each_of_them_once() -> None:
    names = ("2001:db8:2::1", "2001:DB8:2:0::1", *(f"2001:db8:2::{number}" for number in range(2, 9)))
    targets = ipv6_targets(tuple(map(named, names)), OURS, PEER, SERVER)
    assert targets == tuple((f"2001:db8:2::{number}", 40002) for number in (1, 2, 3))
    assert len(targets) == IPV6_CANDIDATES_MAX


@pytest.mark.parametrize("ours", [(), (Candidate("srflx", "tcp", "198.51.100.1", 40001),)])
def test_who_has_no_address_there_sends_nothing(ours: tuple[Candidate, ...]) -> None:
    assert ipv6_targets((named(PEER_6[0]),), ours, PEER, SERVER) == ()


def test_where_the_server_has_seen_the_peer_goes_before_what_the_peer_says() -> None:
    seen = Candidate("srflx", "tcp", PEER_6[0], 50002)
    targets = ipv6_targets((named("2001:db8:2::9"), seen), OURS, PEER_6, SERVER)
    assert targets == ((PEER_6[0], 50002), ("2001:db8:2::9", 40002))


# --- what is sent when ------------------------------------------------------------------------------------------------


class Side:
    """One side, and what it has wanted dialled: `(at, is_low, seconds)`."""

    def __init__(self, role: Role, ours: NatHints = ABLE, theirs: NatHints = ABLE, *, round_trip: float = ROUND_TRIP) -> None:
        self.machine = Ipv6Approach(role, TOKEN, (PEER_6,), ours=ours, theirs=theirs, round_trip=round_trip)
        self.dials: list[tuple[float, bool, float]] = []

    def start(self) -> None:
        self.machine.start(0.0, ends_at=ENDS)
        self._note(0.0)

    def prove(self, now: float) -> None:
        self.machine.prove(now)
        self._note(now)

    def run(self) -> list[tuple[float, bool, float]]:
        """Let time pass until nothing is due any more."""
        while (due := self.machine.next_deadline()) is not None:
            self.machine.handle_timer(due - 0.001)
            assert self.machine.events() == []
            self.machine.handle_timer(due)
            self._note(due)
        return self.dials

    @property
    def syns(self) -> int:
        """How many plain SYNs a silent target gets; kernels repeat them after 1 s, 2 s, …"""
        return sum(1 + int(seconds / SYN_REPEAT) for _, is_low, seconds in self.dials if not is_low)

    def _note(self, now: float) -> None:
        for event in self.machine.events():
            assert isinstance(event, Dial)
            assert (event.token, event.targets, event.is_unseen) == (TOKEN, (PEER_6,), True)
            self.dials.append((now, event.low, event.patience))


def test_the_callee_opens_at_once_and_for_as_long_as_nobody_has_shown_who_it_is() -> None:
    side = Side("callee")
    side.start()
    assert side.run() == [(0.0, True, ENDS)]
    side.prove(5.0)
    assert side.dials[1:] == [(5.0, False, pytest.approx(0.95))]


def test_a_callee_that_knows_who_calls_sends_one_syn_when_its_opening_has_led_to_nothing() -> None:
    side = Side("callee")
    side.start()
    side.prove(0.2)
    assert side.run() == [(0.0, True, ENDS), (pytest.approx(1.325), False, pytest.approx(0.95))]
    assert side.syns == 1


def test_the_caller_sends_its_syn_at_once_and_keeps_the_socket_until_the_kernel_has_repeated_it() -> None:
    side = Side("caller")
    side.start()
    assert side.run() == [(0.0, False, pytest.approx(1.425)), (pytest.approx(1.425), False, pytest.approx(0.95))]
    assert side.syns == 3


def test_where_only_the_caller_can_open_the_callee_waits_until_it_has_and_needs_to_know_who_it_is() -> None:
    caller, callee = Side("caller", ABLE, UNABLE), Side("callee", UNABLE, ABLE)
    caller.start()
    assert caller.run() == [(0.0, True, ENDS), (pytest.approx(1.425), False, pytest.approx(0.95))]
    callee.start()
    assert callee.run() == []
    callee.prove(1.0)
    assert callee.dials == [(1.0, False, pytest.approx(0.95))]
    known = Side("callee", UNABLE, ABLE)
    known.start()
    known.prove(0.01)
    assert known.run() == [(pytest.approx(ROUND_TRIP / 2 + PLAIN_MARGIN), False, pytest.approx(0.95))]


# --- UDP --------------------------------------------------------------------------------------------------------------


def over_udp(role: Role, *, proved_at: float | None = 0.0) -> tuple[list[tuple[float, bool]], list[float]]:
    """Let all its time pass; return when it sent a t=30 and whether that was to die on the way, and when it wanted a probe."""
    machine = Ipv6Approach(role, TOKEN, (PEER_6,), ours=ABLE, theirs=ABLE, round_trip=ROUND_TRIP, udp=PEER_6)
    openers: list[tuple[float, bool]] = []
    probes: list[float] = []

    def note(now: float) -> None:
        for datagram in machine.datagrams_to_send():
            assert (datagram.data, datagram.destination) == (encode(Opener()), PEER_6)
            openers.append((now, datagram.opener))
        probes.extend(now for event in machine.events() if isinstance(event, ProbeBeside) and event.target == PEER_6)

    machine.start(0.0, ends_at=ENDS)
    note(0.0)
    if proved_at is not None:
        machine.prove(proved_at)
    while (due := machine.next_deadline()) is not None:
        machine.handle_timer(due)
        note(due)
    return openers, probes


def test_the_callee_opens_over_udp_with_its_first_syn_and_once_more_with_its_last() -> None:
    assert over_udp("callee") == ([(0.0, True), (pytest.approx(1.325), False)], [])


def test_a_callee_that_nobody_has_called_with_the_key_sends_one_datagram_that_dies_on_the_way() -> None:
    assert over_udp("callee", proved_at=None) == ([(0.0, True)], [])


def test_the_caller_probes_when_its_first_syns_have_led_to_nothing() -> None:
    assert over_udp("caller") == ([], [pytest.approx(1.425)])


@pytest.mark.parametrize("abilities", [(ABLE, ABLE), (ABLE, UNABLE), (UNABLE, ABLE), (UNABLE, UNABLE)])
@pytest.mark.parametrize("role", ["caller", "callee"])
def test_nobody_sends_more_than_three_syns_to_who_does_not_answer(role: Role, abilities: tuple[NatHints, NatHints]) -> None:
    for hundredths in range(200):
        side = Side(role, *abilities, round_trip=hundredths / 100)
        side.start()
        side.prove(0.0)
        side.run()
        assert 1 <= side.syns <= 3


def test_the_opener_outlasts_the_handshake_of_the_second_syn() -> None:
    """The caller begins half a round trip later, and its repeated SYN takes as long again."""
    for hundredths in range(70):
        round_trip = hundredths / 100
        callee = Side("callee", round_trip=round_trip)
        callee.start()
        due = callee.machine.next_deadline()
        assert due is not None
        assert due > SYN_REPEAT + round_trip


def test_the_callees_last_syn_arrives_before_the_caller_takes_a_new_socket() -> None:
    """It leaves half a round trip before, counted from its own start, and is half a round trip on the way."""
    for hundredths in range(200):
        sides = Side("caller", round_trip=hundredths / 100), Side("callee", round_trip=hundredths / 100)
        for side in sides:
            side.start()
        caller, callee = (side.machine.next_deadline() or 0.0 for side in sides)
        assert caller >= callee + 0.09


def test_without_a_target_nothing_is_sent_and_nothing_is_due() -> None:
    machine = Ipv6Approach("caller", TOKEN, (), ours=ABLE, theirs=ABLE, round_trip=ROUND_TRIP)
    machine.start(0.0, ends_at=ENDS)
    machine.prove(0.0)
    assert machine.next_deadline() is None
    assert machine.events() == []


def test_what_is_over_sends_nothing_more() -> None:
    side = Side("callee")
    side.start()
    side.machine.stop()
    side.machine.stop()
    side.prove(3.0)
    assert side.run() == [(0.0, True, ENDS)]


def test_nothing_is_dialled_beyond_the_attempt() -> None:
    machine = Ipv6Approach("caller", TOKEN, (PEER_6,), ours=ABLE, theirs=ABLE, round_trip=ROUND_TRIP)
    machine.start(0.0, ends_at=0.4)
    [event] = machine.events()
    assert isinstance(event, Dial)
    assert event.patience == 0.4
