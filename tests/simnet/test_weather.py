"""Bad networks: whatever is lost, doubled or overtaken, both sides come to the same end and leave nothing behind."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import TOKEN_TTL
from p2ptunnel.protocol.caller import CallerState
from p2ptunnel.testing.simnet import PUNCHABLE, Call, Network
from tests.simnet.sites import pairs, seeds

WEATHER = {
    "loss": ({"loss": 0.2}, 0.96),
    "little loss": ({"loss": 0.05}, 0.98),
    "everything twice": ({"duplicate": 1.0}, 1.0),
    "overtaking": ({"reorder": 0.5}, 1.0),
    "jitter": ({"jitter": 0.05}, 1.0),
    "all at once": ({"loss": 0.2, "duplicate": 0.5, "reorder": 0.3, "jitter": 0.02}, 0.96),
}
"""Conditions, and the share of calls that must come up under them at moderate delays."""


def play(call: Call) -> bool:
    """Run a call and all its consequences; return whether it connected."""
    outcome = call.run()
    agent, port, broker, clock = call.caller.agent, call.callee.port, call.server.broker, call.network.clock
    assert agent.state in {CallerState.CONNECTED, CallerState.FAILED}
    assert outcome.connected is (outcome.failure is None)
    assert outcome.agreed
    assert agent.next_deadline() is None
    assert not port.agents
    assert port.next_deadline() == port.registration.next_deadline()
    clock.advance(TOKEN_TTL + 10)  # late duplicates, repetitions, sweeps
    assert agent.next_deadline() is None
    assert not port.agents
    assert broker.attempts == 0
    assert len(broker._replies.requester) == 0
    assert broker.registered == ("callee",)
    assert set(call.caller.stack.sockets) <= set(call.caller.chosen.values())
    assert not call.caller.stack.listening
    assert not call.callee.stack.listening
    return outcome.connected


@pytest.mark.parametrize("delay", [0.0, 0.025, 0.1])
@pytest.mark.parametrize("weather", WEATHER)
def test_in_bad_weather_nearly_all_connect_and_all_come_to_an_end(weather: str, delay: float) -> None:
    conditions, share = WEATHER[weather]
    results = [
        play(Call(Network(seed=seed, **conditions), caller, callee, delay=delay))
        for caller, callee in pairs(PUNCHABLE)
        for seed in seeds(caller, callee, 2)
    ]
    assert sum(results) >= share * len(results), f"{sum(results)} of {len(results)}"


@pytest.mark.parametrize("loss", [0.2, 0.5, 0.8, 1.0])
def test_however_bad_it_gets_there_is_an_end(loss: float) -> None:
    for caller, callee in pairs(("pub", "prR", "prO", "symR")):
        for seed in seeds(caller, callee, 2):
            call = Call(Network(seed=seed), caller, callee, delay=0.4)
            call.register()
            call.network._loss, call.network._is_even = loss, False
            play(call)


def test_a_caller_whose_server_is_silent_says_so() -> None:
    call = Call(Network(seed=1, loss=1.0), "pr", "pr")
    outcome = call.run()
    assert outcome.failure is not None
    assert outcome.failure.kind == "rendezvous-silent"


def test_a_callee_that_is_not_there_is_offline() -> None:
    call = Call(Network(seed=1), "pr", "pr")
    call.caller.start()
    call.network.clock.advance(20.0)
    assert call.caller.failure is not None
    assert call.caller.failure.kind == "offline"


def test_a_callee_that_falls_silent_is_a_timeout() -> None:
    call = Call(Network(seed=1), "pr", "pr")
    call.register()
    call.callee.host.receive_udp = lambda *_: None
    call.caller.start()
    call.network.clock.advance(20.0)
    assert call.caller.failure is not None
    assert (call.caller.failure.kind, call.caller.failure.code) == ("timeout", 408)


def test_many_call_one_at_once() -> None:
    network = Network(seed=1)
    call = Call(network, "pr", "prR")
    call.register()
    for _ in range(5):
        call.caller.start()
        call.network.clock.run_until(network.clock.now + 5, lambda: call.caller.ended_at is not None)
        break
    assert call.caller.agent.state is CallerState.CONNECTED
