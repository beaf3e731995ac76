"""The way through, side by side: two approaches that hear each other's signals, on one clock, without a network."""

from __future__ import annotations

import random
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from p2ptunnel.defaults import (
    BIRTHDAY_CREDIT,
    BIRTHDAY_HOLES,
    BIRTHDAY_PAUSE,
    BIRTHDAY_RENEWAL,
    CANDIDATES_MAX,
    PHASES,
    PLAIN_MARGIN,
    PUNCH_TIMEOUT,
)
from p2ptunnel.protocol.approach import Approach, Birthdays
from p2ptunnel.protocol.birthday import BirthdayEnded, BirthdayGate, OpenHoles, SendProbes, birthday_wait
from p2ptunnel.protocol.machine import Datagram, Event
from p2ptunnel.protocol.nat import Mapping, MappingClass, NatProfile
from p2ptunnel.protocol.punch import Dial, LocalView, ObserveRow, TakePort, phase_length
from p2ptunnel.protocol.strategy import Method
from p2ptunnel.types import Address, Candidate, Role
from p2ptunnel.wire.messages import NatHints, PortRow, Signal, SignalAnswer, SignalExtra, decode
from p2ptunnel.wire.signal import (
    Again,
    FreshPort,
    GoAhead,
    MoreCandidates,
    SignalBody,
    SignalFault,
    SignalReceiver,
    SignalSender,
    Swap,
    Sync,
)
from tests.unit.protocol.actors import CALLEE, CALLER, SERVER, TOKEN, answer_intent, signer

E = TypeVar("E", bound=Event)
RTT = 0.05
W = phase_length(RTT, RTT)
WAIT = birthday_wait(2 * RTT)
HALF_WAY = RTT + PLAIN_MARGIN
KEYS = answer_intent(signer().sign(()), ())[1]
OTHER: dict[Role, Address] = {"caller": CALLEE, "callee": CALLER}
OWN_PORTS = (40_000, 40_001, 40_002)


def nat_of(kind: MappingClass) -> NatProfile:
    return NatProfile(tcp=Mapping(kind, ("198.51.100.9", OWN_PORTS[-1]), OWN_PORTS[-1], 1 if kind == "seq" else 0))


def hints_of(kind: MappingClass, *, low: bool = True) -> NatHints:
    return nat_of(kind).hints(can_open_low=low, rtt=RTT)


class Side:
    """One approach, the other side's voice, and a clock."""

    def __init__(
        self,
        role: Role,
        own: MappingClass = "eim",
        other: MappingClass = "eim",
        *,
        sockets: int = BIRTHDAY_HOLES,
        gate: BirthdayGate | None = None,
        low: bool = True,
        is_founding: bool = False,
        udp: MappingClass = "eim",
        is_swapped: bool = False,
    ) -> None:
        self.now = 0.0
        self.role = role
        self.gate = gate or BirthdayGate()
        self.approach = Approach(
            role,
            TOKEN,
            SERVER,
            OTHER[role],
            (Candidate("srflx", "tcp", OTHER[role][0], 50_000),),
            LocalView(rtt=RTT, can_open_low=low, nat=nat_of(own), ports=OWN_PORTS),
            replace(hints_of(other), udp=udp),
            random.Random(1),
            keys=None if is_founding else KEYS,
            birthdays=Birthdays(self.gate, lambda: sockets),
            peer_key="other",
            is_swapped=is_swapped,
        )
        theirs = (KEYS.callee_seal, KEYS.caller_seal) if role == "caller" else (KEYS.caller_seal, KEYS.callee_seal)
        self._voice, self._ear = SignalSender(theirs[0]), SignalReceiver(theirs[1])
        self._mid = 0

    def start(self) -> Side:
        self.approach.start(self.now, ends_at=PUNCH_TIMEOUT)
        return self

    def tell(self, body: SignalBody) -> None:
        """Let the other side say something."""
        self._mid += 1
        self.approach.hear(Signal(mid=self._mid, extra=SignalExtra(token=TOKEN, sealed=self._voice.seal(body))), self.now)

    def told(self) -> list[SignalBody]:
        """What it has said since, each once."""
        found: list[SignalBody] = []
        for datagram in self.approach.datagrams_to_send():
            message = decode(datagram.data)
            if isinstance(message, Signal):
                body = self._ear.open(message.extra.sealed)
                found += [] if isinstance(body, SignalFault) else [body]  # it was here before
                self.approach.hear(SignalAnswer(mid=message.mid, code=200), self.now)
        return found

    def advance(self, until: float) -> list[Event]:
        """Run the clock; return what happened."""
        happened = self.approach.events()
        while (at := self.approach.next_deadline()) is not None and at <= until:
            self.now = max(self.now, at)
            self.approach.handle_timer(self.now)
            happened += self.approach.events()
            self.told()
        self.now = until
        return happened


def only(kind: type[E], events: list[Event]) -> E:
    [found] = [event for event in events if isinstance(event, kind)]
    return found


def dials(events: list[Event]) -> list[Dial]:
    return [event for event in events if isinstance(event, Dial)]


# --- phases ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "low"), [("caller", [False, True, False]), ("callee", [True, False, False])])
def test_the_phases_follow_the_plan(role: Role, low: list[bool]) -> None:
    side = Side(role).start()
    side.approach.prove(0.0)
    happened = dials(side.advance(PUNCH_TIMEOUT))
    assert [dial.low for dial in happened] == low
    assert {dial.targets for dial in happened} == {((OTHER[role][0], 50_000),)}


def test_a_callee_whose_syns_the_other_must_not_see_first_waits_for_half_a_round_trip() -> None:
    side = Side("callee", low=False).start()
    assert not dials(side.advance(HALF_WAY - 0.001))
    assert not only(Dial, side.advance(HALF_WAY)).low


@pytest.mark.parametrize("method", ["eim", "rnd"])
def test_of_a_program_of_the_seed_nothing_is_believed(method: MappingClass) -> None:
    side = Side("caller", "rnd", method, is_founding=True).start()
    happened = side.advance(PUNCH_TIMEOUT)
    assert [dial.low for dial in dials(happened)] == [False] * PHASES
    assert not side.told()
    assert not any(isinstance(event, OpenHoles | ObserveRow) for event in happened)


def test_where_nothing_leads_through_one_syn_is_sent_all_the_same() -> None:
    assert len(dials(Side("caller", "rnd", "rnd").start().advance(PUNCH_TIMEOUT))) == 1


def test_where_no_datagram_shows_where_the_caller_is_its_signals_lift_what_is_held_back() -> None:
    side = Side("callee", udp="rnd").start()
    assert [dial.low for dial in dials(side.advance(W))] == [True]  # the second phase's is plain
    side.tell(Sync())
    assert [dial.low for dial in dials(side.advance(W))] == [False]


def test_where_datagrams_get_through_they_alone_do() -> None:
    side = Side("callee").start()
    side.advance(W)
    side.tell(Sync())
    assert not dials(side.advance(W))
    side.approach.prove(W)
    assert [dial.low for dial in dials(side.advance(W))] == [False]


def test_a_forged_signal_lifts_nothing() -> None:
    side = Side("callee", udp="rnd").start()
    side.advance(W)
    forged = SignalSender(KEYS.callee_seal).seal(Sync())
    assert side.approach.hear(Signal(mid=1, extra=SignalExtra(token=TOKEN, sealed=forged)), W)
    assert not dials(side.advance(W))


def test_the_caller_tells_that_it_hears() -> None:
    assert Side("caller").start().told() == [Sync()]
    assert Side("callee").start().told() == []


@pytest.mark.parametrize(("role", "pauses"), [("caller", True), ("callee", False)])
def test_only_the_caller_pauses_for_what_it_tries(role: Role, pauses: bool) -> None:
    side = Side(role).start()
    side.approach.prove(0.0)
    side.advance(0.0)
    side.approach.connection_up()
    assert (not dials(side.advance(W))) is pauses
    side.approach.connection_failed(W)
    assert bool(dials(side.advance(W))) is pauses


def test_stopped_it_does_and_believes_nothing_more() -> None:
    side = Side("caller", "eim", "rnd").start()
    side.advance(0.0)
    side.approach.stop()
    side.approach.stop()
    side.tell(GoAhead())
    assert not side.advance(PUNCH_TIMEOUT)
    assert side.approach.next_deadline() is None


# --- swapped roles --------------------------------------------------------------------------------------------------------


def lows(side: Side, *, until: float = PUNCH_TIMEOUT) -> list[bool]:
    """Whether the SYNs of each dial die on the way."""
    return [dial.low for dial in dials(side.advance(until))]


def test_a_caller_of_a_second_round_opens_first_and_says_so() -> None:
    side = Side("caller", is_swapped=True).start()
    assert side.told() == [Swap(round=0), Sync()]
    assert lows(side) == [True, False, False]


@pytest.mark.parametrize(("own", "low"), [("rnd", True), ("eim", False)])
def test_where_swapping_changes_nothing_nothing_is_said(own: MappingClass, low: bool) -> None:
    side = Side("caller", own, is_swapped=True, low=low).start()
    assert side.told() == [Sync()]


def test_a_callee_that_hears_of_it_sends_a_plain_syn_at_once() -> None:
    side = Side("callee").start()
    side.approach.prove(0.0)
    assert lows(side, until=0.1) == [True]  # before it could know
    side.tell(Swap(round=0))
    assert side.approach.is_swapped
    assert lows(side, until=0.1) == [False]
    assert [(dial.low, dial.patience) for dial in dials(side.advance(0.1 + W))] == [(True, PUNCH_TIMEOUT - 0.1 - W)]
    assert lows(side) == [False]


def test_who_asks_for_it_must_be_where_the_server_says_before_a_syn_gets_there() -> None:
    side = Side("callee").start()
    side.tell(Swap(round=0))
    assert lows(side, until=W - 0.01) == [True]
    side.approach.prove(W - 0.01)
    assert lows(side, until=W - 0.01) == [False]


def test_where_no_datagram_would_show_it_the_signal_does() -> None:
    side = Side("callee", udp="none").start()
    side.tell(Swap(round=0))
    assert lows(side, until=0.1) == [True, False]


@pytest.mark.parametrize("times", [2, 20])
def test_it_counts_once(times: int) -> None:
    side = Side("callee").start()
    side.approach.prove(0.0)
    for _ in range(times):
        side.tell(Swap(round=0))
    assert lows(side, until=0.1) == [True, False]
    assert side.approach.dropped["signal of no use"] == times - 1


@pytest.mark.parametrize("body", [Swap(round=1), Swap(round=1000)])
def test_of_another_round_it_changes_nothing(body: Swap) -> None:
    side = Side("callee").start()
    side.approach.prove(0.0)
    side.tell(body)
    assert lows(side) == [True, False, False]
    assert not side.approach.is_swapped


@pytest.mark.parametrize("phase", [1, 2])
def test_after_the_first_phase_it_changes_nothing(phase: int) -> None:
    side = Side("callee").start()
    side.approach.prove(0.0)
    before = lows(side, until=phase * W)
    side.tell(Swap(round=0))
    assert before + lows(side) == [True, False, False]
    assert side.approach.dropped["swap too late"] == 1


def test_a_callee_does_not_ask_the_caller_to_open_first() -> None:
    side = Side("caller").start()
    side.tell(Swap(round=0))
    assert lows(side) == [False, True, False]
    assert side.approach.dropped["signal of no use"] == 1


@pytest.mark.parametrize("signal", [Sync(), Swap(round=0), None])
def test_whoever_has_said_anything_that_is_sealed_has_been_met(signal: SignalBody | None) -> None:
    side = Side("callee").start()
    if signal is not None:
        side.tell(signal)
    assert side.approach.is_met is (signal is not None)


def test_both_sides_agree_who_opens_whoever_of_them_knows_of_it() -> None:
    """A callee of before that knows no `swap` goes on as it began: both then send plain SYNs in the second phase."""
    caller, callee = Side("caller", is_swapped=True).start(), Side("callee").start()
    callee.approach.prove(0.0)
    assert list(zip(lows(caller), lows(callee), strict=True)) == [(True, True), (False, False), (False, False)]


# --- the next round -------------------------------------------------------------------------------------------------------

OVER = PHASES * W
OURS = (Candidate("srflx", "tcp", "198.51.100.9", 50_009),)


def theirs(side: Side, *, port: int = 50_010, host: str = "") -> Again:
    """What the other side says of its fresh port."""
    return Again(round=1, cands=(Candidate("srflx", "tcp", host or OTHER[side.role][0], port),))


def second(role: Role, *, is_swapped: bool = False) -> Side:
    """A side whose first round is over, and which has been asked for a port."""
    side = Side(role, is_swapped=is_swapped).start()
    side.approach.prove(0.0)
    happened = side.advance(OVER)
    if role == "callee":
        side.tell(theirs(side))
        happened = side.approach.events()
    assert only(TakePort, happened) == TakePort(TOKEN)
    return side


def test_a_caller_whose_phases_are_over_takes_a_fresh_port_and_says_where_it_is() -> None:
    side = second("caller")
    side.approach.port_taken(OURS, side.now)
    assert side.told() == [Swap(round=1), Again(round=1, cands=OURS)]
    assert not side.advance(PUNCH_TIMEOUT)  # until it hears where the other is
    side.tell(theirs(side))
    assert [(dial.round, dial.targets, dial.low) for dial in dials(side.advance(PUNCH_TIMEOUT + OVER))] == [
        (1, ((CALLEE[0], 50_010),), low) for low in (True, False, False)
    ]


def test_a_callee_that_hears_of_it_does_alike_and_waits_for_the_caller_to_have_opened() -> None:
    side = second("callee")
    side.tell(Swap(round=1))
    side.approach.port_taken(OURS, side.now)
    assert side.told() == [Again(round=1, cands=OURS)]
    began = side.now
    assert not dials(side.advance(began + HALF_WAY - 0.001))
    assert [(dial.round, dial.low) for dial in dials(side.advance(PUNCH_TIMEOUT))] == [(1, False), (1, True), (1, False)]


def test_after_a_swapped_round_comes_one_in_the_usual_order() -> None:
    side = second("caller", is_swapped=True)
    side.approach.port_taken(OURS, side.now)
    assert side.told() == [Again(round=1, cands=OURS)]
    side.tell(theirs(side))
    assert [dial.low for dial in dials(side.advance(PUNCH_TIMEOUT))] == [False, True, False]
    assert not side.approach.is_swapped


def test_who_notices_that_its_port_is_burnt_asks_at_once() -> None:
    side = Side("callee").start()
    side.approach.port_lost(0.0)
    only(TakePort, side.approach.events())
    side.approach.port_taken(OURS, 0.0)
    assert side.told() == [Again(round=1, cands=OURS)]
    side.tell(theirs(side))
    assert [dial.round for dial in dials(side.advance(0.0))] == [1]


@pytest.mark.parametrize("times", [2, 10])
def test_there_is_one_more_round_and_no_third(times: int) -> None:
    side = second("caller")
    side.approach.port_taken(OURS, side.now)
    for port in range(times):
        side.tell(theirs(side, port=50_000 + port))
        side.approach.port_lost(side.now)
        side.approach.port_taken(OURS, side.now)
    happened = side.advance(PUNCH_TIMEOUT + OVER)
    assert {dial.targets for dial in dials(happened)} == {((CALLEE[0], 50_000),)}
    assert not [event for event in happened if isinstance(event, TakePort)]


def test_where_no_port_is_to_be_had_nothing_is_said() -> None:
    side = second("caller")
    side.approach.port_taken((), side.now)
    assert side.told() == []
    side.tell(theirs(side))
    assert not dials(side.advance(PUNCH_TIMEOUT))


@pytest.mark.parametrize("host", ["192.0.2.66", "127.0.0.1", "10.0.0.1"])
def test_nobody_is_aimed_at_others_by_it(host: str) -> None:
    side = second("caller")
    side.approach.port_taken(OURS, side.now)
    side.tell(theirs(side, host=host))
    assert not dials(side.advance(PUNCH_TIMEOUT))


def test_a_callee_sends_no_datagram_more_for_it_and_no_plain_syn_to_whom_it_has_not_heard() -> None:
    side = Side("callee").start()
    side.advance(OVER)
    side.approach.datagrams_to_send()
    for body in (Swap(round=1), theirs(side)):
        side.tell(body)
    side.approach.port_taken(OURS, side.now)
    datagrams: list[Datagram] = []
    while (at := side.approach.next_deadline()) is not None and at < PUNCH_TIMEOUT:
        side.approach.handle_timer(at)
        datagrams += side.approach.datagrams_to_send()
    assert {datagram.destination for datagram in datagrams} == {SERVER}
    assert [dial.low for dial in dials(side.approach.events())] == [True]


@pytest.mark.parametrize(("own", "other"), [("rnd", "eim"), ("eim", "seq"), ("rnd", "rnd"), ("eim", "none")])
def test_where_ports_are_guessed_or_nothing_leads_through_there_is_one_round(own: MappingClass, other: MappingClass) -> None:
    side = Side("caller", own, other).start()
    side.approach.port_lost(0.0)
    side.tell(theirs(side))
    assert not [event for event in side.advance(PUNCH_TIMEOUT) if isinstance(event, TakePort)]


def test_with_a_program_of_the_seed_there_is_one_round() -> None:
    side = Side("caller", is_founding=True).start()
    assert not [event for event in side.advance(PUNCH_TIMEOUT) if isinstance(event, TakePort)]


def test_while_a_connection_is_tried_the_caller_asks_for_no_port() -> None:
    side = Side("caller").start()
    side.approach.connection_up()
    assert not [event for event in side.advance(PUNCH_TIMEOUT) if isinstance(event, TakePort)]
    side.approach.connection_failed(side.now)
    side.advance(side.now + OVER)


BODIES = st.one_of(
    st.builds(Swap, round=st.integers(0, 3)),
    st.builds(
        Again,
        round=st.integers(0, 3),
        cands=st.lists(
            st.builds(
                Candidate,
                st.sampled_from(["srflx", "mapped", "host"]),
                st.sampled_from(["tcp", "udp"]),
                st.sampled_from([CALLEE[0], CALLER[0], "192.0.2.66", "127.0.0.1", "2001:db8::1"]),
                st.integers(0, 65_535),
            ),
            max_size=8,
        ).map(tuple),
    ),
    st.builds(Sync),
)
STEPS = st.one_of(BODIES, st.sampled_from(["lost", "taken", "proved", "up", "failed"]), st.floats(0, 1))


@given(role=st.sampled_from(["caller", "callee"]), steps=st.lists(STEPS, max_size=25))
def test_whatever_is_said_and_whenever_packets_go_to_the_peer_and_are_few(
    role: Role, steps: list[SignalBody | str | float]
) -> None:
    side, happened, ups = Side(role).start(), [], 0
    for step in steps:
        match step:
            case float():
                happened += side.advance(side.now + step)
            case "lost":
                side.approach.port_lost(side.now)
            case "taken":
                side.approach.port_taken(OURS, side.now)
            case "proved":
                side.approach.prove(side.now)
            case "up":
                side.approach.connection_up()
                ups += 1
            case "failed" if ups:
                side.approach.connection_failed(side.now)
                ups -= 1
            case str():
                pass
            case body:
                side.tell(body)
        happened += side.approach.events()
    happened += side.advance(side.now + PUNCH_TIMEOUT)
    assert {host for dial in dials(happened) for host, _ in dial.targets} <= {OTHER[role][0]}
    assert len(dials(happened)) <= 2 * PHASES + 2
    assert len([event for event in happened if isinstance(event, TakePort)]) <= 1
    if role == "callee" and "proved" not in steps:
        assert all(dial.low for dial in dials(happened))


# --- more candidates ------------------------------------------------------------------------------------------------------


def mapped(side: Side, *ports: int, host: str = "") -> MoreCandidates:
    return MoreCandidates(cands=tuple(Candidate("mapped", "tcp", host or OTHER[side.role][0], port) for port in ports))


@pytest.mark.parametrize("role", ["caller", "callee"])
def test_what_turns_up_on_the_other_side_is_dialled_at_once_and_in_each_later_phase(role: Role) -> None:
    side = Side(role).start()
    side.approach.prove(0.0)
    side.advance(0.1)
    side.tell(mapped(side, 51_000))
    added = only(Dial, side.approach.events())
    assert (added.targets, added.low, added.is_added) == (((OTHER[role][0], 51_000),), False, True)
    later = dials(side.advance(OVER))
    assert [len(dial.targets) for dial in later] == [2, 2]


def test_before_the_caller_has_shown_where_it_is_it_gets_no_plain_syn_there() -> None:
    side = Side("callee").start()
    side.tell(mapped(side, 51_000))
    assert [dial.low for dial in dials(side.advance(PUNCH_TIMEOUT))] == [True]


@pytest.mark.parametrize("host", ["192.0.2.66", "127.0.0.1", "10.0.0.1", "2001:db8::1"])
def test_they_count_at_the_host_where_the_server_has_seen_it(host: str) -> None:
    side = Side("caller").start()
    side.approach.events()
    side.tell(mapped(side, 51_000, host=host))
    assert not side.approach.events()


def test_they_are_few_however_many_are_told() -> None:
    side = Side("caller").start()
    for first in range(51_000, 51_080, 8):
        side.tell(mapped(side, *range(first, first + 8)))
    assert len({target for dial in dials(side.approach.events()) for target in dial.targets}) == CANDIDATES_MAX


def test_what_is_known_is_told_once_and_what_is_new_in_one_signal() -> None:
    side = Side("callee").start()
    side.told()
    new = tuple(Candidate("mapped", "tcp", CALLEE[0], port) for port in range(51_000, 51_010))
    side.approach.tell_more(new, 0.0)
    assert side.told() == [MoreCandidates(cands=new[:8])]
    side.approach.tell_more(new[:8], 0.0)
    assert side.told() == []


def test_stopped_it_tells_nothing() -> None:
    side = Side("callee").start()
    side.told()
    side.approach.stop()
    side.approach.events()
    side.approach.tell_more(OURS, 0.0)
    side.approach.port_lost(0.0)
    side.approach.port_taken(OURS, 0.0)
    assert side.told() == []
    assert not side.approach.events()


# --- prediction -----------------------------------------------------------------------------------------------------------


def ports(dial: Dial) -> list[int]:
    return [port for _, port in dial.targets]


@pytest.mark.parametrize("role", ["caller", "callee"])
def test_ports_are_predicted_from_where_the_other_sides_nat_stands_now(role: Role) -> None:
    side = Side(role, "eim", "seq").start()
    assert side.approach.plan.method is Method.PREDICT
    assert not dials(side.advance(0.1))
    side.tell(FreshPort(proto="tcp", row=PortRow(45_000, 2)))
    dial = only(Dial, side.advance(0.1))
    assert ports(dial) == [45_002, 45_004, 45_006, 45_008, 45_010]
    assert dial.low is (role == "callee")


def test_what_the_hints_say_must_do_where_nobody_tells_more() -> None:
    side = Side("caller", "eim", "seq").start()
    assert ports(dials(side.advance(W))[0]) == [OWN_PORTS[-1] + step for step in range(1, 6)]
    side.tell(FreshPort(proto="tcp", row=PortRow(45_000, 1)))  # late: the next phase has it
    assert ports(dials(side.advance(2 * W))[0])[0] == 45_001


def test_only_the_first_row_counts() -> None:
    side = Side("caller", "eim", "seq").start()
    for last in (45_000, 46_000):
        side.tell(FreshPort(proto="tcp", row=PortRow(last, 1)))
    assert all(ports(dial)[0] == 45_001 for dial in dials(side.advance(PUNCH_TIMEOUT)))
    assert side.approach.dropped == {"signal of no use": 1}


def test_who_opens_looks_where_its_own_nat_stands_tells_that_and_dials() -> None:
    side = Side("callee", "seq", "eim").start()
    assert [type(event) for event in side.advance(0.1)] == [ObserveRow]
    side.approach.observed(41_000, 0.1)
    assert side.told() == [FreshPort(proto="tcp", row=PortRow(41_000, 1))]
    assert only(Dial, side.advance(0.1)).low


def test_who_does_not_open_waits_until_the_other_side_has() -> None:
    side = Side("caller", "seq", "eim").start()
    side.advance(0.1)
    side.approach.observed(41_000, 0.1)
    assert not dials(side.advance(0.1 + HALF_WAY - 0.001))
    assert len(dials(side.advance(0.1 + HALF_WAY))) == 1


def test_between_two_sequential_nats_both_rows_are_waited_for() -> None:
    side = Side("callee", "seq", "seq").start()
    side.approach.observed(41_000, 0.1)
    assert not dials(side.advance(0.1))
    side.tell(FreshPort(proto="tcp", row=PortRow(45_000, 1)))
    assert ports(only(Dial, side.advance(0.1))) == [45_001, 45_002, 45_003, 45_004, 45_005]


def test_nobody_who_knows_the_row_is_no_obstacle() -> None:
    side = Side("callee", "seq", "eim").start()
    side.approach.observed(None, 0.1)
    side.approach.observed(41_000, 0.2)  # too late
    assert side.told() == []
    assert len(dials(side.advance(0.2))) == 1


# --- the birthday ---------------------------------------------------------------------------------------------------------


def hard(role: Role = "caller", *, gate: BirthdayGate | None = None, sockets: int = BIRTHDAY_HOLES) -> Side:
    side = Side(role, "rnd", "eim", gate=gate, sockets=sockets).start()
    side.approach.prove(0.0)
    return side


@pytest.mark.parametrize("role", ["caller", "callee"])
def test_the_hard_side_opens_holes_when_who_is_open_would_have_answered(role: Role) -> None:
    side = hard(role)
    assert not any(isinstance(event, OpenHoles) for event in side.advance(WAIT - 0.001))
    happened = side.advance(WAIT + 1.1)
    assert dials(happened)[-1].targets == ()  # what waits of the first phase is closed
    opened = [event for event in happened if isinstance(event, OpenHoles)]
    assert sum(len(event.holes) for event in opened) == BIRTHDAY_HOLES
    assert {(event.target, event.token) for event in opened} == {((OTHER[role][0], 50_000), TOKEN)}


def test_it_invites_with_the_ports_that_were_seen() -> None:
    side = hard()
    side.told()
    side.advance(WAIT)
    side.approach.datagrams_to_send()
    while not (told := side.told()):
        at = side.approach.next_deadline()
        assert at is not None
        side.now = at
        side.approach.handle_timer(at)
    assert told == [GoAhead(ports=OWN_PORTS)]


def test_a_callee_opens_no_holes_for_whom_it_has_not_heard() -> None:
    side = Side("callee", "rnd", "eim").start()
    assert not any(isinstance(event, OpenHoles) for event in side.advance(WAIT + 0.1))


@pytest.mark.parametrize("role", ["caller", "callee"])
@pytest.mark.parametrize("at", [0.0, WAIT / 2, 1.0])
def test_the_easy_side_guesses_when_it_is_invited(role: Role, at: float) -> None:
    side = Side(role, "eim", "rnd").start()
    assert not any(isinstance(event, SendProbes) for event in side.advance(at))
    side.tell(GoAhead())
    sent = [event for event in side.advance(at + 2.0) if isinstance(event, SendProbes)]
    assert sum(len(event.ports) for event in sent) == BIRTHDAY_CREDIT
    assert {(event.host, event.token) for event in sent} == {(OTHER[role][0], TOKEN)}


@pytest.mark.parametrize(("own", "other"), [("eim", "eim"), ("rnd", "eim"), ("eim", "seq"), ("rnd", "rnd")])
def test_who_is_not_the_easy_side_is_not_made_to_guess(own: MappingClass, other: MappingClass) -> None:
    side = Side("callee", own, other).start()
    side.tell(GoAhead())
    assert not any(isinstance(event, SendProbes | OpenHoles) for event in side.advance(WAIT / 2))  # its own turn is at WAIT
    assert not any(isinstance(event, SendProbes) for event in side.advance(PUNCH_TIMEOUT))


def test_a_go_ahead_of_another_round_begins_nothing() -> None:
    side = Side("caller", "eim", "rnd").start()
    side.tell(GoAhead(round=1))
    assert not any(isinstance(event, SendProbes) for event in side.advance(1.0))
    assert side.gate.enter("others", 1, 1.0) == 1


@pytest.mark.parametrize("sockets", [0, 64, 300])
def test_so_many_holes_as_there_are_descriptors_for(sockets: int) -> None:
    happened = hard(sockets=sockets).advance(WAIT + 1.1)
    assert sum(len(event.holes) for event in happened if isinstance(event, OpenHoles)) == sockets


@pytest.mark.parametrize("sockets", [0, 64])
def test_no_more_guesses_at_a_time_than_there_are_descriptors_for(sockets: int) -> None:
    side = Side("caller", "eim", "rnd", sockets=sockets).start()
    side.tell(GoAhead())
    sent = [event for event in side.advance(0.1 + RTT) if isinstance(event, SendProbes)]  # less than each waits
    assert sum(len(event.ports) for event in sent) == sockets


def invited(side: Side, *times: float) -> int:
    """Return how many guesses it sends when it is invited at these times."""
    sent = 0
    for at in times:
        sent += sum(len(event.ports) for event in side.advance(at) if isinstance(event, SendProbes))
        side.tell(GoAhead())
    return sent + sum(len(event.ports) for event in side.advance(PUNCH_TIMEOUT) if isinstance(event, SendProbes))


@pytest.mark.parametrize(("before", "left"), [(88, 616), (448, 256), (449, 0), (672, 0)])
def test_what_the_last_birthdays_have_left_in_routers_is_what_the_next_may_take(before: int, left: int) -> None:
    gate = BirthdayGate()
    assert gate.enter("others", before, 0.0) == before
    gate.leave(before)
    side = Side("caller", "eim", "rnd", gate=gate).start()
    assert invited(side, 0.0, 0.4, 0.8, 1.2) == left


def test_what_it_has_opened_counts_for_the_next() -> None:
    side = hard(sockets=96)
    side.advance(PUNCH_TIMEOUT)
    assert side.gate.enter("others", 672, PUNCH_TIMEOUT) == 704 - 96
    side = Side("caller", "eim", "rnd").start()
    assert invited(side, 0.0) == BIRTHDAY_CREDIT
    assert side.gate.enter("others", 672, PUNCH_TIMEOUT) == 704 - BIRTHDAY_CREDIT


def test_one_birthday_at_a_time_and_the_next_when_that_is_over() -> None:
    gate = BirthdayGate()
    assert gate.enter("others", 1, 0.0) == 1
    side = hard(gate=gate)
    assert not any(isinstance(event, OpenHoles) for event in side.advance(4 * WAIT))
    gate.leave(1)
    assert any(isinstance(event, OpenHoles) for event in side.advance(4 * WAIT + BIRTHDAY_RENEWAL + 1e-6))


@pytest.mark.parametrize("how", ["stopped", "spent"])
def test_its_end_is_told_and_lets_others_have_theirs(how: str) -> None:
    side = hard()
    happened = side.advance(WAIT)
    if how == "stopped":
        side.approach.stop()
        happened += side.approach.events()
    else:
        happened += side.advance(PUNCH_TIMEOUT)
    assert only(BirthdayEnded, happened).token == TOKEN
    assert side.gate.enter("others", 1, PUNCH_TIMEOUT) == 1


def test_an_attempt_has_one_birthday() -> None:
    side = Side("callee", "eim", "rnd").start()
    side.tell(GoAhead())
    assert only(BirthdayEnded, side.advance(BIRTHDAY_PAUSE - 0.1)).why == "no go-ahead"
    side.tell(GoAhead())
    assert not any(isinstance(event, SendProbes) for event in side.advance(PUNCH_TIMEOUT))
    assert any("no birthday" in reason for reason in side.approach.dropped)


@pytest.mark.parametrize("part", ["hard", "easy"])
def test_while_a_connection_is_tried_nobody_guesses_and_nobody_is_invited(part: str) -> None:
    side = hard() if part == "hard" else Side("caller", "eim", "rnd").start()
    if part == "easy":
        side.tell(GoAhead())
    side.advance(WAIT + 0.2)
    for _ in range(2):
        side.approach.connection_up()
    side.told()
    assert not any(isinstance(event, SendProbes | OpenHoles) for event in side.advance(WAIT + 0.3))
    assert side.told() == []
    side.approach.connection_failed(side.now)
    assert not side.advance(WAIT + 0.4)  # the other one is tried still
    side.approach.connection_failed(side.now)
    side.tell(GoAhead())
    happened = side.advance(WAIT + 1.0)
    assert part == "hard" or any(isinstance(event, SendProbes) for event in happened)


def test_a_connection_from_before_the_birthday_ends_no_birthday() -> None:
    side = hard("callee")
    side.approach.connection_up()
    side.advance(WAIT + 0.1)
    side.approach.connection_failed(side.now)
    assert only(BirthdayEnded, side.advance(PUNCH_TIMEOUT)).why == "nothing came through"
