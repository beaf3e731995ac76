"""The way through where both sides have IPv6: both families beside each other, and each by its own rules."""

from __future__ import annotations

import random

import msgspec
import pytest

from p2ptunnel.defaults import BIRTHDAY_HOLES, PUNCH_TIMEOUT
from p2ptunnel.protocol.approach import Approach, Birthdays
from p2ptunnel.protocol.birthday import BirthdayGate
from p2ptunnel.protocol.punch import Dial, LocalView
from p2ptunnel.types import Address, Candidate, Role
from p2ptunnel.wire.messages import NatHints, Signal, SignalExtra
from p2ptunnel.wire.signal import SignalSender, Sync
from tests.unit.protocol.actors import CALLEE, CALLER, SERVER, TOKEN, answer_intent, signer

RTT = 0.05
KEYS = answer_intent(signer().sign(()), ())[1]
PEERS: dict[Role, Address] = {"caller": CALLEE, "callee": CALLER}
THERE: Address = ("2001:db8:2::2", 40_002)
SEEN: Address = ("2001:db8:2::2", 50_002)
VIEW = LocalView((Candidate("host", "tcp", "2001:db8:1::2", 40_001),), RTT, can_open_low=True)
HARD = NatHints(tcp="rnd", udp="rnd", low=True, rtt=50)


def approach(
    role: Role, *, hints: NatHints | None = None, peer: Address | None = None, is_founding: bool = False, view: LocalView = VIEW
) -> Approach:
    """One side whose peer has named an IPv6 address and is seen at `peer`."""
    peer = peer or PEERS[role]
    cands = (Candidate("srflx", "tcp", peer[0], 50_002), Candidate("host", "tcp", *THERE))
    return Approach(
        role,
        TOKEN,
        SERVER,
        peer,
        cands,
        view,
        hints or NatHints(low=True, rtt=50),
        random.Random(1),
        keys=None if is_founding else KEYS,
        birthdays=Birthdays(BirthdayGate(), lambda: BIRTHDAY_HOLES),
        peer_key="other",
    )


def dials(machine: Approach) -> list[tuple[tuple[Address, ...], bool]]:
    return [(event.targets, event.low) for event in machine.events() if isinstance(event, Dial)]


def later(machine: Approach, until: float) -> list[tuple[tuple[Address, ...], bool]]:
    """Let time pass."""
    wanted = dials(machine)
    while (at := machine.next_deadline()) is not None and at <= until:
        machine.handle_timer(at)
        wanted += dials(machine)
    return wanted


@pytest.mark.parametrize(("role", "low"), [("caller", False), ("callee", True)])
def test_both_families_are_dialled_in_one_tick_and_ipv6_goes_first(role: Role, low: bool) -> None:
    machine = approach(role)
    machine.start(0.0, ends_at=PUNCH_TIMEOUT)
    assert dials(machine) == [((THERE,), low), (((PEERS[role][0], 50_002),), low)]


def test_connections_come_from_where_the_server_sees_the_peer_and_from_what_it_has_signed() -> None:
    assert approach("callee").hosts == {CALLER[0], THERE[0]}
    assert approach("callee", is_founding=True).hosts == {CALLER[0]}


@pytest.mark.parametrize("role", ["caller", "callee"])
def test_what_nobody_signs_or_what_we_have_no_address_for_is_not_dialled(role: Role) -> None:
    for machine in (approach(role, is_founding=True), approach(role, view=LocalView(rtt=RTT, can_open_low=True))):
        machine.start(0.0, ends_at=PUNCH_TIMEOUT)
        assert (THERE,) not in [targets for targets, _ in later(machine, PUNCH_TIMEOUT)]


def test_a_signal_shows_a_callee_who_calls_and_so_it_dials_plainly_over_ipv6_alone() -> None:
    """Where the caller is over IPv4 only its datagrams show."""
    machine = approach("callee")
    machine.start(0.0, ends_at=PUNCH_TIMEOUT)
    machine.hear(Signal(mid=1, extra=SignalExtra(token=TOKEN, sealed=SignalSender(KEYS.caller_seal).seal(Sync()))), 0.1)
    plain = [targets for targets, low in later(machine, PUNCH_TIMEOUT) if not low]
    assert plain == [(THERE,)]


@pytest.mark.parametrize("role", ["caller", "callee"])
def test_a_peer_that_the_server_sees_over_ipv6_is_dialled_by_its_rules_whatever_its_hints_say(role: Role) -> None:
    machine = approach(role, hints=HARD, peer=SEEN)
    machine.start(0.0, ends_at=PUNCH_TIMEOUT)
    machine.prove(0.0)
    wanted = later(machine, PUNCH_TIMEOUT)
    assert {targets for targets, _ in wanted} == {(SEEN, THERE)}
    assert [low for _, low in wanted] == [role == "callee", False]


@pytest.mark.parametrize(("ours", "theirs"), [(True, True), (True, False), (False, True)])
def test_over_udp_nothing_is_sent_there_unless_both_sides_have_quic(ours: bool, theirs: bool) -> None:
    view = msgspec.structs.replace(VIEW, can_quic=ours)
    hints = NatHints(low=True, rtt=50, quic=theirs)
    cands = (Candidate("srflx", "tcp", CALLER[0], 50_002), Candidate("host", "tcp", *THERE), Candidate("host", "udp", *THERE))
    machine = Approach("callee", TOKEN, SERVER, CALLER, cands, view, hints, random.Random(1), keys=KEYS)
    machine.start(0.0, ends_at=PUNCH_TIMEOUT)
    there = [datagram.opener for datagram in machine.datagrams_to_send() if datagram.destination == THERE]
    assert there == ([True] if ours and theirs else [])


def test_a_caller_that_tries_a_connection_begins_nothing_beside_it() -> None:
    machine = approach("caller")
    machine.start(0.0, ends_at=PUNCH_TIMEOUT)
    dials(machine)
    machine.connection_up()
    assert later(machine, PUNCH_TIMEOUT) == []
    machine.connection_failed(3.0)
    machine.handle_timer(3.0)
    assert ((THERE,), False) in dials(machine)


def test_what_is_stopped_is_stopped_over_both() -> None:
    machine = approach("caller")
    machine.start(0.0, ends_at=PUNCH_TIMEOUT)
    dials(machine)
    machine.stop()
    assert later(machine, PUNCH_TIMEOUT) == []
