"""What earlier attempts say of the next one: burnt ports for 130 s, and an order that changes with each failure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.defaults import BURNT_PAIRS_MAX, BURNT_SECONDS, SWAPPED_MAX
from p2ptunnel.protocol.rounds import Rounds

HOST, OTHER = "198.51.100.2", "198.51.100.3"


def burnt(port: int = 40_000, host: str = HOST, now: float = 0.0) -> Rounds:
    rounds = Rounds()
    rounds.burn(port, host, now)
    return rounds


def test_a_port_on_which_an_attempt_failed_is_burnt_for_130_seconds_and_that_host() -> None:
    rounds = burnt()
    assert BURNT_SECONDS == 130
    assert rounds.is_burnt(40_000, HOST, 129.9)
    assert not rounds.is_burnt(40_001, HOST, 129.9)
    assert not rounds.is_burnt(40_000, OTHER, 129.9)
    assert not rounds.is_burnt(40_000, HOST, 130.0)


def test_another_failure_burns_it_anew() -> None:
    rounds = burnt()
    rounds.burn(40_001, HOST, 50.0)
    rounds.burn(40_000, HOST, 100.0)
    assert rounds.is_burnt(40_000, HOST, 229.9)
    assert not rounds.is_burnt(40_001, HOST, 180.0)


def test_a_number_is_burnt_if_it_is_for_anybody() -> None:
    rounds = burnt()
    assert rounds.is_number_burnt(40_000, 129.9)
    assert not rounds.is_number_burnt(40_001, 129.9)
    assert not rounds.is_number_burnt(40_000, 130.0)


def test_a_change_of_network_cools_no_port() -> None:
    """The same NATs may stand on the other side of it, and behind us again in a moment."""
    rounds = burnt()
    rounds.network_changed()
    assert rounds.is_burnt(40_000, HOST, 1.0)


def test_what_is_burnt_is_bounded_and_those_that_end_first_go_first() -> None:
    rounds = Rounds()
    for port in range(BURNT_PAIRS_MAX + 10):
        rounds.burn(port, HOST, 0.001 * port)
    assert [port for port in range(BURNT_PAIRS_MAX + 10) if not rounds.is_burnt(port, HOST, 1.0)] == list(range(10))


@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from([HOST, OTHER]), st.floats(0, 100)),
        max_size=20,
    )
)
def test_it_remembers_what_a_list_of_all_failures_would_show(burns: list[tuple[int, str, float]]) -> None:
    rounds, now, all_burns = Rounds(), 0.0, []
    for port, host, pause in burns:
        now += pause
        rounds.burn(port, host, now)
        all_burns.append((port, host, now))
        for asked in range(1, 4):
            for of in (HOST, OTHER):
                expected = any((p, h) == (asked, of) and now < at + BURNT_SECONDS for p, h, at in all_burns)
                assert rounds.is_burnt(asked, of, now) is expected


# --- who opens first ------------------------------------------------------------------------------------------------------


def test_roles_swap_after_each_failure_and_stay_after_what_opened() -> None:
    rounds, orders = Rounds(), []
    for is_open in (False, False, False, True, True, False, True):
        orders.append(rounds.is_swapped("bob"))
        rounds.ended("bob", is_swapped=orders[-1], is_open=is_open)
    assert orders == [False, True, False, True, True, True, False]
    assert not rounds.is_swapped("bob")


def test_each_peer_has_its_own_order() -> None:
    rounds = Rounds()
    rounds.ended("bob", is_swapped=False, is_open=False)
    assert [rounds.is_swapped(peer) for peer in ("bob", "carol")] == [True, False]


def test_in_another_network_the_callee_opens_first_again() -> None:
    rounds = Rounds()
    rounds.ended("bob", is_swapped=False, is_open=False)
    rounds.network_changed()
    assert not rounds.is_swapped("bob")


def test_peers_are_bounded_and_the_oldest_go_first() -> None:
    rounds = Rounds()
    for peer in range(SWAPPED_MAX + 5):
        rounds.ended(peer, is_swapped=False, is_open=False)
    assert [peer for peer in range(SWAPPED_MAX + 5) if not rounds.is_swapped(peer)] == list(range(5))
