"""A birthday over UDP: when it is planned, what each side sends, and what it makes of what comes."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from p2ptunnel.defaults import BIRTHDAY_CREDIT, BIRTHDAY_HOLES, PUNCH_TIMEOUT, SWAPPED_MAX
from p2ptunnel.protocol.approach import Birthdays
from p2ptunnel.protocol.birthday import BirthdayEnded, BirthdayGate, OpenHoles, SendProbes
from p2ptunnel.protocol.callee import CalleeAgent
from p2ptunnel.protocol.caller import CallerAgent
from p2ptunnel.protocol.detour import OpenQuic
from p2ptunnel.protocol.machine import Datagram, Event, Hole
from p2ptunnel.protocol.nat import Mapping, NatProfile
from p2ptunnel.protocol.punch import Dial, HoleHeard, HoleOpened, LocalView
from p2ptunnel.protocol.rounds import Rounds
from p2ptunnel.protocol.strategy import Part, choose, choose_birthday
from p2ptunnel.types import Address, Candidate, Role, Transport
from p2ptunnel.wire.keyed import KeyedSender
from p2ptunnel.wire.messages import (
    HoleAnswer,
    HoleProbe,
    NatHints,
    Opener,
    PortRow,
    Signal,
    SignalAnswer,
    SignalExtra,
    decode,
    encode,
)
from p2ptunnel.wire.signal import GoAhead, SignalBody, SignalReceiver, SignalSender
from tests.unit.protocol.actors import (
    CALLEE,
    CALLER,
    SERVER,
    STRANGER,
    TOKEN,
    event,
    notice,
    offer,
    result,
    signed_call,
    signer,
)

EIM = NatHints(tcp="eim", udp="eim", low=True, quic=True)
RND = replace(EIM, tcp="rnd", udp="rnd")
SEQ = replace(EIM, tcp="seq", udp="seq", tcp_row=PortRow(40_000, 1), udp_row=PortRow(20_000, 1))
NO_TCP = {"tcp": "none"}
REFUSING = {"crosses": False}


# --- when it is planned -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["caller", "callee"])
@pytest.mark.parametrize(
    ("own", "other", "transport", "part"),
    [
        (RND, EIM, "tcp", "hard"),
        (EIM, RND, "tcp", "easy"),
        (replace(RND, **NO_TCP), EIM, "udp", "hard"),
        (EIM, replace(RND, **NO_TCP), "udp", "easy"),
        (replace(EIM, **NO_TCP), RND, "udp", "easy"),
        (replace(RND, **REFUSING), EIM, "udp", "hard"),
        (replace(EIM, **REFUSING), RND, "tcp", "easy"),  # it is the hard side's NAT that matters
        (replace(RND, tcp="seq", tcp_row=PortRow(40_000, 1)), replace(EIM, tcp="adm"), "udp", "hard"),
        (replace(RND, quic=False, **NO_TCP), EIM, "tcp", None),
        (replace(RND, **NO_TCP), replace(EIM, quic=False), "tcp", None),
        (replace(RND, **NO_TCP), replace(EIM, udp="none"), "tcp", None),
        (replace(RND, **NO_TCP), RND, "tcp", None),
        (replace(RND, **NO_TCP), SEQ, "tcp", None),
        (replace(RND, **NO_TCP), replace(EIM, is_open=True), "tcp", None),
        (replace(EIM, **NO_TCP), EIM, "tcp", None),
        (EIM, EIM, "tcp", None),
    ],
)
def test_udp_has_a_birthday_where_tcp_is_ruled_out(
    role: Role, own: NatHints, other: NatHints, transport: Transport, part: Part | None
) -> None:
    over_tcp = choose("tcp", role, own, other)
    plan = choose_birthday(over_tcp, own, other)
    assert (plan.transport, plan.part) == (transport, part)
    assert (plan is over_tcp) == (transport == "tcp")


# --- both sides -------------------------------------------------------------------------------------------------------------


def view(own: Role, part: Part, *, tcp: bool = False, quic: bool = True) -> LocalView:
    address = CALLER if own == "caller" else CALLEE
    over_udp = Mapping("rnd" if part == "hard" else "eim", address, address[1])
    over_tcp = over_udp if tcp else Mapping("none")
    candidates = (Candidate("srflx", "udp", *address),)
    return LocalView(candidates, 0.05, nat=NatProfile(tcp=over_tcp, udp=over_udp), can_quic=quic)


def hints(part: Part) -> NatHints:
    return replace(RND if part == "hard" else EIM, rtt=50)


class Side:
    """A caller or a callee that knows of the other side, its voice, and a clock."""

    def __init__(
        self,
        role: Role,
        part: Part,
        *,
        tcp: bool = False,
        quic: bool = True,
        other: NatHints | None = None,
        rounds: Rounds | None = None,
    ) -> None:
        self.role: Role = role
        self._rounds = rounds
        self.now = 0.0
        self.gate = BirthdayGate()
        self.happened: list[Event] = []
        self.sent: list[Datagram] = []
        self._mid = 0
        own, other = view(role, part, tcp=tcp, quic=quic), other or hints("easy" if part == "hard" else "hard")
        birthdays = Birthdays(self.gate, lambda: BIRTHDAY_HOLES)
        self.agent = self._caller(own, other, birthdays) if role == "caller" else self._callee(own, other, birthdays)
        self.flush()

    def _caller(self, own: LocalView, other: NatHints, birthdays: Birthdays) -> CallerAgent:
        agent = CallerAgent(
            "alice",
            "bob",
            SERVER,
            own,
            random.Random(1),
            signer=signer(),
            cookie="cookie",
            birthdays=birthdays,
            rounds=self._rounds,
        )
        agent.start(0.0)
        question = decode(agent.datagrams_to_send()[0].data)
        agent.receive_datagram(offer(question), SERVER, 0.0)  # type: ignore[arg-type]
        agent.receive_datagram(result(agent, nat=other), SERVER, 0.0)
        assert agent._keys is not None
        keys = agent._keys
        self.voice = KeyedSender(keys.callee_mac)
        self._signals, self._ear = SignalSender(keys.callee_seal), SignalReceiver(keys.caller_seal)
        return agent

    def _callee(self, own: LocalView, other: NatHints, birthdays: Birthdays) -> CalleeAgent:
        message = notice()
        message = replace(message, extra=replace(message.extra, nat=other))
        signed = signed_call(message)
        assert signed is not None
        agent = CalleeAgent(
            message, CALLER, SERVER, own, random.Random(2), udp_port=CALLEE[1], signed=signed, birthdays=birthdays
        )
        agent.start(0.0)
        self.voice = KeyedSender(signed.keys.caller_mac)
        self._signals, self._ear = SignalSender(signed.keys.caller_seal), SignalReceiver(signed.keys.callee_seal)
        return agent

    @property
    def other(self) -> Address:
        return CALLEE if self.role == "caller" else CALLER

    @property
    def probes(self) -> list[Datagram]:
        """Each t=31 of a birthday, as it was sent."""
        found = [datagram for datagram in self.sent if isinstance(decode(datagram.data), HoleProbe)]
        return [datagram for datagram in found if datagram.hole is not None or datagram.destination != self.other]

    def tell(self, body: SignalBody) -> None:
        """Let the other side say something, by the server."""
        self._mid += 1
        extra = SignalExtra(token=TOKEN, sealed=self._signals.seal(body))
        self.agent.hear(Signal(mid=self._mid, extra=extra), self.now) if isinstance(self.agent, CalleeAgent) else (
            self.agent.receive_datagram(encode(Signal(mid=self._mid, extra=extra)), SERVER, self.now)
        )
        self.flush()

    def come(self, message: HoleProbe | HoleAnswer, source: Address | None = None, *, keyed: bool = True) -> None:
        """Let something come to our port, from the other side."""
        data = self.voice.seal(encode(message)) if keyed else encode(message)
        if isinstance(self.agent, CallerAgent):
            self.agent.receive_datagram(data, source or self.other, self.now)
        elif isinstance(message, HoleProbe):
            self.agent.receive(message, data, source or self.other, self.now)
        self.flush()

    def come_to_hole(
        self,
        number: int,
        message: HoleProbe | HoleAnswer,
        source: Address | None = None,
        *,
        keyed: bool = True,
    ) -> None:
        """Let something come to a hole of ours."""
        data = self.voice.seal(encode(message)) if keyed else encode(message)
        self.agent.receive_at_hole(Hole(TOKEN, number), data, source or self.other, self.now)
        self.flush()

    def flush(self) -> None:
        for datagram in self.agent.datagrams_to_send():
            self.sent.append(datagram)
            message = decode(datagram.data)
            if isinstance(message, Signal):
                answer = SignalAnswer(mid=message.mid, code=200)
                if isinstance(self.agent, CalleeAgent):
                    self.agent.hear(answer, self.now)
                else:
                    self.agent.receive_datagram(encode(answer), SERVER, self.now)
        self.happened += self.agent.events()

    def advance(self, until: float) -> None:
        """Run the clock."""
        while (at := self.agent.next_deadline()) is not None and at <= until:
            self.now = max(self.now, at)
            self.agent.handle_timer(self.now)
            self.flush()
        self.now = until

    def all(self, kind: type[Event]) -> list[Event]:
        return [happened for happened in self.happened if isinstance(happened, kind)]

    def clear(self) -> None:
        self.sent.clear()
        self.happened.clear()


def hard(role: Role) -> Side:
    """A hard side whose holes are open."""
    side = Side(role, "hard")
    side.tell(GoAhead())  # of no use, but it shows that the other side hears
    side.advance(1.5)
    return side


def guessing(role: Role) -> Side:
    """An easy side that has been invited once."""
    side = Side(role, "easy")
    side.tell(GoAhead())
    side.advance(0.5)
    return side


@pytest.mark.parametrize("role", ["caller", "callee"])
def test_the_hard_side_sends_one_probe_from_each_hole_the_first_of_them_plain(role: Role) -> None:
    side = hard(role)
    opened = [happened for happened in side.happened if isinstance(happened, OpenHoles)]
    assert {(each.transport, each.target, each.token) for each in opened} == {("udp", side.other, TOKEN)}
    holes = [number for each in opened for number in each.holes]
    assert [datagram.hole for datagram in side.probes] == [Hole(TOKEN, number) for number in holes]
    assert [datagram.opener for datagram in side.probes] == [False] + [True] * (len(holes) - 1)
    assert {datagram.destination for datagram in side.probes} == {side.other}
    assert len(holes) == BIRTHDAY_HOLES


@pytest.mark.parametrize("role", ["caller", "callee"])
def test_the_easy_side_guesses_from_its_port_as_far_as_it_is_invited(role: Role) -> None:
    side = Side(role, "easy")
    side.advance(1.0)
    assert not side.probes
    side.tell(GoAhead())
    side.advance(3.0)
    assert len(side.probes) == BIRTHDAY_CREDIT
    assert {(datagram.destination[0], datagram.hole, datagram.opener) for datagram in side.probes} == {
        (side.other[0], None, False)
    }
    assert len({datagram.destination[1] for datagram in side.probes}) == BIRTHDAY_CREDIT


@pytest.mark.parametrize("role", ["caller", "callee"])
@pytest.mark.parametrize("part", ["hard", "easy"])
def test_each_probe_is_keyed(role: Role, part: Part) -> None:
    side = hard(role) if part == "hard" else guessing(role)
    assert all(b'"m":"' in datagram.data for datagram in side.probes)
    assert side.probes


@pytest.mark.parametrize("role", ["caller", "callee"])
def test_no_syn_of_the_one_that_may_still_be_answered_is_dropped(role: Role) -> None:
    assert all(dial.targets for dial in hard(role).happened if isinstance(dial, Dial))


@pytest.mark.parametrize("role", ["caller", "callee"])
@pytest.mark.parametrize("part", ["hard", "easy"])
def test_without_quic_there_is_none(role: Role, part: Part) -> None:
    side = Side(role, part, quic=False)
    side.tell(GoAhead())
    side.advance(5.0)
    assert not side.probes
    assert not side.all(OpenHoles)


@pytest.mark.parametrize("role", ["caller", "callee"])
def test_where_udp_passes_already_none_begins(role: Role) -> None:
    side = Side(role, "hard")
    if role == "caller":
        [probe] = [message for message in map(decode, (each.data for each in side.sent)) if isinstance(message, HoleProbe)]
        side.come(HoleAnswer(mid=probe.mid, token=TOKEN))
    else:
        side.come(HoleProbe(mid=7, token=TOKEN))
    side.advance(5.0)
    assert not side.all(OpenHoles)


# --- after one that has missed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["hard", "easy"])
def test_what_has_missed_over_tcp_is_over_udp_next_time_and_over_tcp_again(part: Part) -> None:
    rounds = Rounds()
    for tcp in (True, False, True):
        side = Side("caller", part, tcp=True, rounds=rounds)
        assert isinstance(side.agent, CallerAgent)
        assert (side.agent._view.hints.tcp != "none") == tcp
        for _ in range(20):
            side.tell(GoAhead())
            side.advance(side.now + 0.4)
        side.advance(12.0)
        event(BirthdayEnded, side.happened)
        sent = [each for each in side.happened if isinstance(each, OpenHoles | SendProbes)]
        assert {each.transport for each in sent} == {"tcp" if tcp else "udp"}


@pytest.mark.parametrize("lacks", [True, False])
def test_where_udp_may_not_be_guessed_over_tcp_stays(lacks: bool) -> None:
    rounds = Rounds()
    for _ in range(2):
        side = Side("caller", "hard", tcp=True, quic=not lacks, other=replace(hints("easy"), quic=lacks), rounds=rounds)
        side.advance(12.0)
        assert {each.transport for each in side.happened if isinstance(each, OpenHoles)} == {"tcp"}


def test_what_has_missed_is_forgotten_with_the_network() -> None:
    rounds = Rounds()
    rounds.failed("peer", next_over="udp")
    assert rounds.guesses_over_udp("peer")
    assert not rounds.guesses_over_udp("another")
    rounds.network_changed()
    assert not rounds.guesses_over_udp("peer")


def test_peers_of_whom_that_is_remembered_are_bounded() -> None:
    rounds = Rounds()
    for peer in range(SWAPPED_MAX + 1):
        rounds.failed(peer, next_over="udp")
    assert [rounds.guesses_over_udp(peer) for peer in (0, 1, SWAPPED_MAX)] == [False, True, True]


# --- what comes through -------------------------------------------------------------------------------------------------------

GUESS = HoleProbe(mid=77, token=TOKEN)


def test_a_caller_probes_back_from_the_hole_that_a_guess_has_found_and_begins_quic_there() -> None:
    side = hard("caller")
    side.clear()
    side.come_to_hole(9, GUESS)
    [probe] = side.probes
    assert (probe.hole, probe.destination, probe.opener) == (Hole(TOKEN, 9), CALLEE, False)
    mid = decode(probe.data).mid  # type: ignore[union-attr]
    side.now += 0.1
    side.come_to_hole(9, HoleAnswer(mid=mid, token=TOKEN))
    assert event(HoleOpened, side.happened).remote == CALLEE
    assert event(OpenQuic, side.happened).hole == 9
    side.clear()
    side.advance(side.now + 1.0)
    assert not side.sent  # nobody is invited any more


def test_that_probe_is_repeated_from_there() -> None:
    side = hard("caller")
    side.clear()
    side.come_to_hole(9, GUESS)
    side.advance(side.now + 0.4)
    assert len(side.probes) > 2
    assert {probe.hole for probe in side.probes} == {Hole(TOKEN, 9)}


def test_a_caller_tries_four_ways_and_no_more() -> None:
    side = hard("caller")
    side.clear()
    for number in range(20):
        side.come_to_hole(number, GUESS)
    assert len({probe.hole for probe in side.probes}) == 4


def test_a_caller_whose_guess_is_answered_begins_quic_from_its_port() -> None:
    side = guessing("caller")
    guess = side.probes[3]
    side.clear()
    side.come(HoleAnswer(mid=decode(guess.data).mid, token=TOKEN), guess.destination)  # type: ignore[union-attr]
    opened, quic = event(HoleOpened, side.happened), event(OpenQuic, side.happened)
    assert (opened.remote, quic.remote, quic.hole) == (guess.destination, guess.destination, None)
    assert opened.rtt is not None
    assert 0 < opened.rtt <= 0.5
    side.advance(side.now + 1.0)
    assert not side.probes


def test_a_caller_that_hears_a_hole_of_the_callees_probes_back() -> None:
    side = guessing("caller")
    side.clear()
    there = (CALLEE[0], 50_123)
    side.come(GUESS, there)
    [probe] = [datagram for datagram in side.probes if datagram.destination == there]
    side.come(HoleAnswer(mid=decode(probe.data).mid, token=TOKEN), there)  # type: ignore[union-attr]
    assert event(OpenQuic, side.happened).remote == there


def test_a_callee_answers_a_guess_from_the_hole_it_has_found_and_expects_the_caller_there() -> None:
    side = hard("callee")
    side.clear()
    side.come_to_hole(9, GUESS)
    [answer] = side.sent
    assert (answer.hole, answer.destination, decode(answer.data)) == (Hole(TOKEN, 9), CALLER, _plain(answer))
    assert event(HoleHeard, side.happened).hole == 9
    assert isinstance(side.agent, CalleeAgent)
    assert side.agent.has_heard_from(CALLER)


def _plain(answer: Datagram) -> HoleAnswer:
    message = decode(answer.data)
    assert isinstance(message, HoleAnswer)
    assert message.mid == GUESS.mid
    return message


def test_it_says_so_three_times_and_invites_nobody_any_more() -> None:
    side = hard("callee")
    side.clear()
    side.come_to_hole(9, GUESS)
    side.advance(side.now + 2.0)
    assert [decode(datagram.data) for datagram in side.sent] == [_plain(datagram) for datagram in side.sent]
    assert len(side.sent) == len({datagram.data for datagram in side.sent}) == 3
    assert len(side.all(HoleHeard)) == 1


def test_a_callee_that_hears_a_hole_of_the_callers_guesses_no_more() -> None:
    side = guessing("callee")
    side.clear()
    side.come(GUESS, (CALLER[0], 50_123))
    side.tell(GoAhead())
    side.advance(side.now + 1.0)
    assert not side.probes


@pytest.mark.parametrize("role", ["caller", "callee"])
@pytest.mark.parametrize(
    ("message", "source", "keyed"),
    [
        (GUESS, None, False),
        (GUESS, STRANGER, True),
        (HoleProbe(mid=77, token="f" * 32), None, True),
        (HoleAnswer(mid=77, token=TOKEN), None, True),
        (HoleAnswer(mid=77, token=TOKEN), None, False),
    ],
)
def test_what_is_not_the_other_sides_is_answered_from_no_hole(
    role: Role, message: HoleProbe | HoleAnswer, source: Address | None, keyed: bool
) -> None:
    side = hard(role)
    side.clear()
    side.come_to_hole(9, message, source, keyed=keyed)
    assert not side.sent
    assert not side.happened
    assert sum(side.agent.dropped.values()) > 0


@pytest.mark.parametrize("role", ["caller", "callee"])
@pytest.mark.parametrize("data", [b"", b"{", b"\xff" * 40, encode(Opener()), b'{"t":31}'])
def test_rubbish_at_a_hole_is_counted(role: Role, data: bytes) -> None:
    side = hard(role)
    side.clear()
    side.agent.receive_at_hole(Hole(TOKEN, 9), data, side.other, side.now)
    side.flush()
    assert not side.sent
    assert not side.happened


def test_a_guess_that_comes_twice_counts_once() -> None:
    side = hard("callee")
    data = side.voice.seal(encode(GUESS))
    side.clear()
    for _ in range(2):
        side.agent.receive_at_hole(Hole(TOKEN, 9), data, CALLER, side.now)
        side.flush()
    assert len(side.sent) == 1
    assert side.agent.dropped["replayed"] == 1


@pytest.mark.parametrize("role", ["caller", "callee"])
@pytest.mark.parametrize("part", ["hard", "easy"])
def test_given_up_it_ends_and_leaves_the_gate_to_others(role: Role, part: Part) -> None:
    side = hard(role) if part == "hard" else guessing(role)
    side.agent.abandon()
    side.flush()
    assert len(side.all(BirthdayEnded)) == 1
    side.clear()
    side.advance(PUNCH_TIMEOUT - 1)
    assert not side.probes


def test_a_hole_shows_no_token() -> None:
    hole = Hole(TOKEN, 9)
    assert TOKEN not in repr(hole)
    assert TOKEN not in repr(Datagram(b"", CALLER, hole=hole))
