"""Second rounds: fresh ports on both sides and swapped roles lead through where the first round has done damage."""

from __future__ import annotations

from typing import Final

import pytest

from p2ptunnel.defaults import BURNT_SECONDS
from p2ptunnel.protocol.approach import Approach
from p2ptunnel.protocol.caller import CallerState
from p2ptunnel.protocol.registration import RegistrationState
from p2ptunnel.protocol.rounds import Rounds
from p2ptunnel.testing.simnet import (
    CALLEE,
    CALLER,
    KINDS,
    PUNCHABLE,
    SERVER,
    TAG,
    Habits,
    Kind,
    Network,
    SimCallee,
    SimCaller,
    SimServer,
)
from p2ptunnel.testing.simnet.side import look_around
from p2ptunnel.wire.signal import Again, SignalBody, Swap

GUARDED: Final = Kind(simultaneous_open=False, is_guarded=True)
"""It refuses SYNs that cross, and then all else between the two: only a SYN to somebody who has opened before gets through."""
MEETS: Final = Kind()
OTHERS: Final = (41_002, 41_003, 41_004)
ONE_ROUND: Final = Habits(has_ports=False)


class Pair:
    """Two peers that try, one round after the other, each from a port of its own."""

    def __init__(
        self,
        caller: Kind,
        callee: Kind,
        *,
        others: tuple[int, ...] = OTHERS,
        delay: float = 0.025,
        remembers: bool = True,
        habits: Habits = ONE_ROUND,
        callee_habits: Habits | None = None,
    ) -> None:
        self.network, self._habits = Network(seed=1), habits
        SimServer(self.network, self.network.add(*SERVER))
        self._calling = self.network.add(*CALLER, delay=delay, kind=caller)
        called = self.network.add(*CALLEE, delay=delay, kind=callee)
        self.rounds = Rounds() if remembers else None
        self.callee = SimCallee(self.network, called, SERVER, TAG, callee_habits or habits, rounds=Rounds(), others=others)
        self.callee.start()
        registration = self.callee.port.registration
        self.network.clock.run_until(60.0, lambda: registration.state is RegistrationState.REGISTERED)
        self._ports = iter(range(CALLER[1] + 1, CALLER[1] + 100))

    def attempt(self) -> SimCaller:
        """Let one side call the other; return it when both have come to an end."""
        clock = self.network.clock
        caller = SimCaller(self.network, self._calling, SERVER, TAG, self._habits, rounds=self.rounds, port=next(self._ports))
        caller.start()
        clock.run_until(clock.now + 30.0, lambda: caller.ended_at is not None)
        clock.run_until(clock.now + 30.0, lambda: all(agent.is_over for agent in self.callee.port.agents))
        return caller


def is_up(caller: SimCaller) -> bool:
    return caller.agent.state is CallerState.CONNECTED


def test_what_the_callees_opening_has_spoilt_is_open_in_the_second_round() -> None:
    pair = Pair(MEETS, GUARDED)
    assert not is_up(pair.attempt())
    second = pair.attempt()
    assert is_up(second)
    [apart] = pair.callee.apart
    [ours], [theirs] = second.chosen.values(), apart.chosen.values()
    assert (ours.peer, ours.number) == (theirs.number, theirs.peer)
    assert not pair.callee.chosen


def test_what_led_through_is_what_the_next_attempt_begins_with() -> None:
    pair = Pair(MEETS, GUARDED)
    assert [is_up(pair.attempt()) for _ in range(4)] == [False, True, True, True]


def test_without_another_port_the_callees_damage_stays() -> None:
    pair = Pair(MEETS, GUARDED, others=())
    assert not any(is_up(pair.attempt()) for _ in range(3))


def test_without_swapped_roles_it_is_done_anew() -> None:
    pair = Pair(MEETS, GUARDED, remembers=False)
    assert not any(is_up(pair.attempt()) for _ in range(3))
    assert len(pair.callee.apart) == 2


def test_a_port_is_good_again_when_routers_have_forgotten() -> None:
    pair = Pair(MEETS, GUARDED)
    pair.attempt()
    pair.network.clock.advance(BURNT_SECONDS)
    pair.attempt()
    assert not pair.callee.apart


def test_where_nothing_was_spoilt_the_registered_port_serves_all_rounds() -> None:
    pair = Pair(MEETS, MEETS)
    assert all(is_up(pair.attempt()) for _ in range(3))
    assert not pair.callee.apart


# --- two rounds in one attempt --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 0.025, 0.2])
@pytest.mark.parametrize("kinds", [(MEETS, GUARDED), (KINDS["prR"], GUARDED)], ids=["drops", "refuses"])
def test_who_has_fresh_ports_needs_no_second_attempt(kinds: tuple[Kind, Kind], delay: float) -> None:
    pair = Pair(*kinds, delay=delay, habits=Habits())
    assert is_up(pair.attempt())
    assert not pair.callee.apart


def test_the_roles_that_led_through_are_remembered() -> None:
    pair = Pair(MEETS, GUARDED, habits=Habits())
    first = pair.attempt()
    assert pair.rounds is not None
    assert pair.rounds.is_swapped(first.agent.peer_key)


@pytest.mark.parametrize("habits", [(Habits(), ONE_ROUND), (ONE_ROUND, Habits())], ids=["callee has none", "caller has none"])
def test_where_one_side_has_no_fresh_port_there_is_one_round(habits: tuple[Habits, Habits]) -> None:
    pair = Pair(MEETS, GUARDED, habits=habits[0], callee_habits=habits[1])
    assert not is_up(pair.attempt())


# --- both orders, and peers of before -------------------------------------------------------------------------------------


def swapped(caller: str, callee: str, delay: float) -> bool:
    """Whether the first attempt gets through if the caller takes it for a second one."""
    pair = Pair(KINDS[caller], KINDS[callee], delay=delay)
    assert pair.rounds is not None
    first = pair.attempt()
    pair.rounds.ended(first.agent.peer_key, is_swapped=False, is_open=False)
    return is_up(pair.attempt())


@pytest.mark.parametrize("caller", PUNCHABLE)
@pytest.mark.parametrize("delay", [0.0, 0.025, 0.1])
def test_with_swapped_roles_all_that_need_no_guess_connect_too(caller: str, delay: float) -> None:
    assert [callee for callee in PUNCHABLE if not swapped(caller, callee, delay)] == []


@pytest.mark.parametrize("caller", PUNCHABLE)
def test_with_a_callee_that_knows_nothing_of_it_they_connect_too(caller: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take = Approach._take

    def unknowing(approach: Approach, body: SignalBody, now: float) -> None:
        if not isinstance(body, Swap | Again):
            take(approach, body, now)

    monkeypatch.setattr(Approach, "_take", unknowing)
    assert [callee for callee in PUNCHABLE if not swapped(caller, callee, 0.025)] == []


# --- more candidates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0.2, 0.5, 1.5])
def test_a_way_in_that_turns_up_during_the_attempt_is_used(at: float) -> None:
    """The callee has told the port that its NAT shows over UDP, and learns in the middle of it which one leads in."""
    pair = Pair(MEETS, KINDS["shift"], callee_habits=Habits(tells_tcp_port=False, has_ports=False))
    assert not is_up(pair.attempt())
    right = look_around(pair.network, pair.callee.host, SERVER, Habits())

    def tell() -> None:
        pair.callee.port.view_changed(right, pair.network.clock.now)
        pair.callee.flush()

    pair = Pair(MEETS, KINDS["shift"], callee_habits=Habits(tells_tcp_port=False, has_ports=False))
    pair.network.clock.call_later(at, tell)
    assert is_up(pair.attempt())
