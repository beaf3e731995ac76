"""Strangers, liars and forgers: they change no state, and nothing of what they send comes out larger at somebody else."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from msgspec.structs import replace

from p2ptunnel.defaults import BIRTHDAY_FLOWS_PER_SECOND, BIRTHDAY_HOLES, BIRTHDAY_PROBES, COMPAT_REQUESTS_PER_MINUTE
from p2ptunnel.protocol.nat import Mapping, MappingClass, NatProfile
from p2ptunnel.protocol.punch import LocalView
from p2ptunnel.testing.simnet import CALLEE, CALLER, KINDS, PUNCHABLE, SERVER, TAG, Call, Host, Network, SimCaller
from p2ptunnel.testing.simnet import Habits as _Habits
from p2ptunnel.types import Address, Candidate
from p2ptunnel.wire.messages import (
    ConkeyExtra,
    ConnectRequest,
    ConnectRequestExtra,
    HoleAnswer,
    HoleProbe,
    Message,
    Opener,
    OpenTcp,
    OpenTcpAnswer,
    OpenTcpExtra,
    PunchAnswer,
    PunchAnswerExtra,
    PunchNotice,
    PunchNoticeExtra,
    PunchResult,
    PunchResultExtra,
    Register,
    RegisterExtra,
    Signal,
    SignalAnswer,
    SignalExtra,
    decode,
    encode,
    encode_padded,
)
from tests.simnet.sites import Witness, seeds

STRANGER: Address = ("192.0.2.66", 6666)
VICTIM: Address = ("192.0.2.99", 9999)
INNER_VICTIM: Address = ("192.168.1.1", 22)


def forgeries(token: str, mid: int) -> list[Message]:
    """Return what a stranger may send who guesses `token` and `mid`."""
    lies = (Candidate("srflx", "tcp", VICTIM[0], VICTIM[1]),)
    host, port = VICTIM
    return [
        Opener(),
        HoleProbe(mid=mid, token=token),
        HoleAnswer(mid=mid, token=token),
        OpenTcp(mid=mid, token=token, extra=OpenTcpExtra(op=1)),
        OpenTcpAnswer(mid=mid, token=token, code=200, em="", extra=ConkeyExtra(conkey="f" * 32)),
        OpenTcpAnswer(mid=mid, token=token, code=403, em="no"),
        PunchNotice(mid=mid, extra=PunchNoticeExtra(token=token, host=host, port=port, v=1, cands=lies)),
        PunchAnswer(mid=mid, token=token, code=200, em="", extra=PunchAnswerExtra(port=port, v=1, cands=lies)),
        PunchAnswer(mid=mid, token=token, code=403, em="no"),
        PunchResult(mid=mid, token=token, code=200, em="", extra=PunchResultExtra(host=host, port=port, v=1, cands=lies)),
        PunchResult(mid=mid, token=token, code=403, em="no"),
        Signal(mid=mid, extra=SignalExtra(token=token, sealed="A" * 44)),
        SignalAnswer(mid=mid, code=200, em=""),
    ]


@pytest.mark.parametrize("delay", [0.001, 0.025])
@pytest.mark.parametrize("kind", ["pub", "fc", "prR", "shift"])
def test_a_stranger_who_knows_the_token_but_not_our_addresses_changes_nothing(kind: str, delay: float) -> None:
    for seed in seeds(kind, kind, 3):
        quiet = Call(Network(seed=seed), kind, kind, delay=delay)
        expected = quiet.run()
        call = Call(Network(seed=seed), kind, kind, delay=delay)
        victim = Witness(call.network, VICTIM)
        clock, guess = call.network.clock, random.Random(seed)

        def attack(call: Call = call, guess: random.Random = guess) -> None:
            for message in forgeries(call.caller.agent.token or "guess", guess.getrandbits(53)):
                for target in (SERVER, CALLER, CALLEE):
                    call.network.forge_udp(encode(message), STRANGER, target)

        for n in range(200):
            clock.call_at(n * 0.003, attack)
        outcome = call.run()
        assert (outcome.connected, outcome.agreed) == (True, True)
        assert outcome.seconds == pytest.approx(expected.seconds)
        assert victim.packets == 0
        assert not call.callee.host.sent.keys() - {SERVER[0], CALLER[0]}
        assert not call.caller.host.sent.keys() - {SERVER[0], CALLEE[0]}


@pytest.mark.parametrize("source", [SERVER, CALLER, CALLEE])
def test_a_forger_who_does_not_know_the_token_changes_nothing_in_anybodys_name(source: Address) -> None:
    for seed in seeds("forger", source[0], 3):
        expected = Call(Network(seed=seed), "pub", "pub").run()
        call = Call(Network(seed=seed), "pub", "pub")
        victim = Witness(call.network, VICTIM)
        guess = random.Random(seed)

        def attack(n: int, call: Call = call, guess: random.Random = guess) -> None:
            for m, message in enumerate(forgeries(f"{guess.getrandbits(128):032x}", guess.getrandbits(53))):
                is_within_rate = n == 20 * m  # who is asked more in somebody's name answers that somebody less, too
                for target in (SERVER, CALLER, CALLEE):
                    if target != source and (target != SERVER or is_within_rate):
                        call.network.forge_udp(encode(message), source, target)

        for n in range(200):
            call.network.clock.call_at(n * 0.003, attack, n)
        outcome = call.run()
        assert (outcome.connected, outcome.agreed) == (True, True)
        assert outcome.seconds == pytest.approx(expected.seconds)
        assert victim.packets == 0


# --- liars ------------------------------------------------------------------------------------------------------------------

LIES = (
    Candidate("srflx", "tcp", VICTIM[0], VICTIM[1]),
    Candidate("host", "tcp", INNER_VICTIM[0], INNER_VICTIM[1]),
    Candidate("mapped", "tcp", "127.0.0.1", 22),
    Candidate("srflx", "udp", VICTIM[0], VICTIM[1]),
    Candidate("mapped", "udp", VICTIM[0], VICTIM[1]),
    *(Candidate("mapped", "tcp", f"192.0.2.{n}", 443) for n in range(100, 112)),
)


@pytest.mark.parametrize("liar", ["caller", "callee"])
@pytest.mark.parametrize("kind", ["pub", "prR"])
def test_a_liars_candidates_aim_nobody_at_others(kind: str, liar: str) -> None:
    for seed in seeds(liar, kind, 5):
        call = Call(Network(seed=seed), kind, kind)
        victims = [Witness(call.network, address) for address in (VICTIM, INNER_VICTIM)]
        lying = LocalView(LIES, 0.05, can_open_low=True)
        if liar == "caller":
            call.caller.agent._view = lying
        else:
            call.callee.port.view = lying
        call.run()
        assert sum(victim.packets for victim in victims) == 0
        assert set(call.callee.host.sent) <= {SERVER[0], CALLER[0]}
        assert set(call.caller.host.sent) <= {SERVER[0], CALLEE[0]}


def test_beside_lies_the_truth_is_still_found() -> None:
    call = Call(Network(seed=1), "shift", "shift")
    honest = call.caller.agent._view.candidates
    call.caller.agent._view = LocalView((*LIES[:9], *honest), 0.05, can_open_low=True)
    assert call.run().connected


# --- signals, and what they are worth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [("pr", "symR"), ("symR", "pr"), ("symS", "pr")])
def test_signals_that_are_played_again_or_made_up_change_nothing(kinds: tuple[str, str]) -> None:
    for seed in seeds(*kinds, 3):
        expected = Call(Network(seed=seed), *kinds).run()
        call = Call(Network(seed=seed), *kinds)
        heard = play_signals_again(call)
        outcome = call.run()
        assert heard
        assert (outcome.connected, outcome.agreed) == (expected.connected, expected.agreed)
        assert call.caller.probes + call.callee.probes <= BIRTHDAY_PROBES
        assert outcome.seconds < expected.seconds + 4  # acknowledgements of what is played again draw from the same dice


def play_signals_again(call: Call) -> list[bytes]:
    """Let each signal that the server hands on arrive once more, 0.2 s later, and another one beside it; return them."""
    network, heard, send = call.network, list[bytes](), call.network.send_udp
    receive = {CALLER[0]: call.caller.host.receive_udp, CALLEE[0]: call.callee.host.receive_udp}

    def overhear(sender: Host, data: bytes, destination: Address, *, ttl: int = 64, source_port: int | None = None) -> None:
        send(sender, data, destination, ttl=ttl, source_port=source_port)
        message = decode(data)
        if isinstance(message, Signal) and sender is call.server.host:
            heard.append(data)
            made_up = encode(Signal(mid=1, extra=SignalExtra(token=message.extra.token, sealed="A" * 60)))
            for again in (data, made_up):
                network.clock.call_later(0.2, receive[destination[0]], again, SERVER)

    network.send_udp = overhear  # type: ignore[method-assign]
    return heard


@pytest.mark.parametrize("truth", ["pub", "pr", "symR"])
@pytest.mark.parametrize("lie", ["eim", "adm", "seq", "rnd", "none", "unknown"])
def test_who_lies_of_its_nat_costs_time_and_what_it_grants_itself(lie: MappingClass, truth: str) -> None:
    for seed in seeds(lie, truth, 2):
        call = Call(Network(seed=seed), truth, "prR")
        mapping = Mapping(lie, CALLER, 50_000, 7 if lie == "seq" else 0)
        call.caller.agent._view = replace(call.caller.agent._view, nat=NatProfile(tcp=mapping, udp=mapping))
        outcome = call.run()
        assert outcome.agreed
        assert set(call.callee.host.sent) <= {SERVER[0], CALLER[0]}
        assert call.callee.probes <= BIRTHDAY_PROBES
        assert call.callee.host.sent[CALLER[0]] <= (BIRTHDAY_PROBES + 500 if lie in {"rnd", "adm"} else 250)


def test_hints_that_a_server_makes_up_make_nobody_guess_or_dial() -> None:
    call = Call(Network(seed=1), "pr", "pr")
    call.register()
    call.callee.port.receive_datagram = _lying_of_hints(call.callee.port.receive_datagram)  # type: ignore[method-assign]
    outcome = call.run()
    assert not outcome.connected
    assert call.callee.probes == call.caller.probes == 0
    assert call.callee.port.dropped["an intent for something else"]
    assert CALLER[0] not in call.callee.host.sent


def _lying_of_hints(receive: Callable[[bytes, Address, float], None]) -> Callable[[bytes, Address, float], None]:
    def told(data: bytes, source: Address, now: float) -> None:
        message = decode(data)
        if isinstance(message, PunchNotice) and message.extra.nat is not None:
            nat = replace(message.extra.nat, tcp="rnd", udp="rnd")
            data = encode(replace(message, extra=replace(message.extra, nat=nat)))
        receive(data, source, now)

    return told


@pytest.mark.parametrize("kinds", [("pr", "symR"), ("symR", "prR"), ("symS", "symS"), ("symR", "symR"), ("pr", "prR")])
def test_an_attempt_keeps_to_its_budgets(kinds: tuple[str, str]) -> None:
    for seed in seeds(*kinds, 5):
        call = Call(Network(seed=seed), *kinds)
        call.run()
        for side in (call.caller, call.callee):
            is_in_birthday = "symR" in kinds and kinds != ("symR", "symR")
            assert side.most_open <= (BIRTHDAY_HOLES + 8 if is_in_birthday else 64)
            assert side.probes <= (BIRTHDAY_PROBES if is_in_birthday else 0)


def test_guesses_keep_to_their_rate() -> None:
    call = Call(Network(seed=3), "pr", "symR", callee=_Habits(sockets=1))
    clock, counts = call.network.clock, list[int]()

    def count() -> None:
        counts.append(call.caller.probes)
        clock.call_later(0.1, count)

    clock.call_later(0.1, count)
    call.run()
    assert counts[-1] > 500
    assert max(later - earlier for earlier, later in pairwise(counts)) <= BIRTHDAY_FLOWS_PER_SECOND / 10 + 10


# --- budgets ----------------------------------------------------------------------------------------------------------------


def spoofed(call: Call, body: bytes, count: int = 20) -> tuple[Witness, int, int]:
    """Send `body` to the server `count` times in a victim's name; return the victim, packets and bytes sent."""
    victim = Witness(call.network, VICTIM)
    call.register()
    for n in range(count):
        call.network.clock.call_later(n * 0.1, call.network.forge_udp, body, VICTIM, SERVER)
    call.network.clock.advance(60.0)
    return victim, count, count * len(body)


QUESTIONS = {
    "t=4": ConnectRequest(mid=1, ltag="eve", extra=ConnectRequestExtra(rtag=TAG, v=1)),
    "t=4 of the seed": ConnectRequest(mid=1, ltag="eve", extra=ConnectRequestExtra(rtag=TAG)),
    "t=4 with a guessed cookie": ConnectRequest(mid=1, ltag="eve", extra=ConnectRequestExtra(rtag=TAG, v=1, cookie="x" * 22)),
    "t=4 with lies": ConnectRequest(mid=1, ltag="eve", extra=ConnectRequestExtra(rtag=TAG, v=1, cands=LIES)),
    "t=1": Register(mid=1, ltag="eve", extra=RegisterExtra(v=1, key="eve's", ts=1, sig="by eve's")),
    "t=1 of the seed": Register(mid=1, ltag="eve"),
}


@pytest.mark.parametrize("size", [0, 100, 140, 176, 400])
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_forged_question_is_never_answered_with_more_than_itself(question: str, size: int) -> None:
    call = Call(Network(seed=1), "pr", "prR")
    victim, packets, size_bytes = spoofed(call, encode_padded(QUESTIONS[question], size))
    assert victim.packets <= packets
    assert sum(len(data) for data, _ in victim.datagrams) <= size_bytes
    assert not victim.segments
    assert {source for _, source in victim.datagrams} <= {SERVER}
    assert VICTIM[0] not in call.callee.host.sent
    assert call.server.broker.attempts == 0


def test_a_server_that_serves_the_seed_lets_a_victim_get_twelve_packets_a_minute_at_most() -> None:
    call = Call(Network(seed=1), "pr", "pr", compat_seed=True)
    victim, _, _ = spoofed(call, encode(QUESTIONS["t=4 of the seed"]), count=500)
    assert 0 < victim.packets <= 4 * COMPAT_REQUESTS_PER_MINUTE
    assert call.callee.host.sent[VICTIM[0]] <= 2 * COMPAT_REQUESTS_PER_MINUTE * 12  # SYN and t=30 that die on the way
    assert not victim.segments


@pytest.mark.parametrize("kind", PUNCHABLE)
def test_a_callee_sends_only_to_its_server_and_the_address_of_the_notice(kind: str) -> None:
    for other in PUNCHABLE:
        call = Call(Network(seed=1, loss=0.2), other, kind)
        call.run()
        assert set(call.callee.host.sent) <= {SERVER[0], CALLER[0]}


@pytest.mark.parametrize("kind", ["pub", "prR"])
def test_an_unanswered_call_costs_the_callee_a_bounded_number_of_packets(kind: str) -> None:
    call = Call(Network(seed=1), "pr", kind)
    call.register()
    call.caller.start()
    call.network.clock.run_until(1.0, lambda: bool(call.callee.port.agents))
    call.caller.host.receive_udp = lambda *_: None
    call.caller.host.receive_tcp = lambda *_: None
    call.network.clock.advance(60.0)
    assert not call.callee.port.agents
    assert call.callee.host.sent[CALLER[0]] <= 3 + 3 * 7 + 10  # t=30 and SYNs a phase, and the kernel's repetitions


# --- channels ---------------------------------------------------------------------------------------------------------------


def test_a_wrong_conkey_makes_no_channel() -> None:
    call = Call(Network(seed=1), "pr", "pr")
    call.register()
    call.caller.start()
    clock = call.network.clock
    clock.run_until(clock.now + 5, lambda: call.caller.agent._conkey is not None)
    [agent] = call.callee.port.agents
    agent.conkey = "0" * 32
    clock.run_until(clock.now + 60, lambda: call.caller.ended_at is not None)
    assert call.caller.failure is not None
    assert call.caller.failure.kind == "timeout"
    assert not call.callee.chosen


def test_a_connection_that_breaks_before_its_turn_gives_the_next_one_its_chance() -> None:
    call = Call(Network(seed=1), "pub", "pub")
    call.register()
    call.caller.start()
    clock, agent = call.network.clock, call.caller.agent
    clock.run_until(clock.now + 5, lambda: agent._peer is not None)
    agent.connection_up(999_999, clock.now)  # a socket that is not there any more
    clock.run_until(clock.now + 60, lambda: call.caller.ended_at is not None)
    assert call.caller.chosen


def test_two_callers_are_told_apart() -> None:
    network = Network(seed=1)
    call = Call(network, "pr", "prR")
    second = SimCaller(network, network.add("198.51.100.3", 40_003, delay=0.025, kind=KINDS["shift"]), SERVER, TAG, _Habits())
    call.register()
    call.caller.start()
    second.start()
    network.clock.advance(5.0)
    assert call.caller.chosen
    assert second.chosen
    assert len(call.callee.chosen) == 2
    ours = {socket.peer for peer in (call.caller, second) for socket in peer.chosen.values()}
    assert ours == {socket.number for socket in call.callee.chosen.values()}
