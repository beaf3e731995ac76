"""What keeps the matrix green, each taken away once: the cells named here turn red, all others stay as they are.

| taken away | where | cells that turn red |
| --- | --- | --- |
| openers die on the way | anywhere | none; UDP of prO with the filtered: the early t=30 moves its mapping |
| the same | no delay at all | prR-prR and prR-prO, mostly: the early SYN's RST kills the hole it should have met |
| roles swap in later phases | the callee's openers die before its own NAT | each whose callee is filtered, ar included |
| the TCP port is seen over TCP | anywhere | shift with pubfw, pr, prR, prO, shift, both orders |
| pauses after an RST differ | nobody can open, 1 ms links, server 50 ms away | {prR, prO} x {prR, prO} |
| a refused dial is repeated | nobody's openers open | {prR, prO}-prR |
| a new phase keeps what is answered | one packet in five lost, 100 ms links | none for certain; one call in ten fails |
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from msgspec.structs import replace

from p2ptunnel.testing.simnet import PUNCHABLE, Habits, run_punch
from tests.simnet.sites import pairs, seeds

FILTERED = ("pubfw", "pr", "prR", "prO", "shift")
REFUSING = ("prR", "prO")
RUNS = 2
TTL_PLAIN = 62
"""Hops too far: an opener goes all the way."""


def share(
    caller: str, callee: str, /, *, count: int = RUNS, both: Habits | None = None, udp: bool = False, **conditions: Any
) -> float:
    """Return the share of calls that connect in the first round; with `udp`, of those in which datagrams pass."""
    if both is not None:
        conditions |= {"caller": both, "callee": both}
    for role in ("caller", "callee"):
        conditions[role] = replace(conditions.get(role, Habits()), has_ports=False)
    runs = [run_punch(caller, callee, seed=seed, **conditions) for seed in seeds(caller, callee, count)]
    return sum(run.datagrams if udp else run.connected for run in runs) / count


def red(**conditions: Any) -> set[tuple[str, str]]:
    """Return the cells of the matrix in which not one call connects; the others connect every time."""
    shares = {pair: share(*pair, **conditions) for pair in pairs(PUNCHABLE)}
    assert set(shares.values()) <= {0.0, 1.0}, {pair: value for pair, value in shares.items() if 0.0 < value < 1.0}
    return {pair for pair, value in shares.items() if value == 0.0}


def cells(callers: Collection[str], callees: Collection[str]) -> set[tuple[str, str]]:
    return {(caller, callee) for caller in callers for callee in callees}


def test_with_everything_in_place_none_is_red() -> None:
    assert red(delay=0.025, server_delay=0.05) == set()


def test_openers_that_do_not_die_on_the_way() -> None:
    where = {"both": Habits(ttl_error=TTL_PLAIN), "delay": 0.025, "server_delay": 0.05}
    assert red(**where) == set()
    assert red(**where, udp=True) == cells(["prO"], FILTERED)


def test_openers_that_reach_the_other_sides_router() -> None:
    assert red(both=Habits(ttl_error=1), delay=0.025, server_delay=0.05, udp=True) == cells(["prO"], FILTERED)


def test_openers_that_do_not_die_on_the_way_where_nothing_takes_time() -> None:
    damaged = {"delay": 0.0, "jitter": 0.0002, "count": 30}
    for pair in cells(["prR"], REFUSING):
        assert share(*pair, both=Habits(ttl_error=TTL_PLAIN), **damaged) < 0.5
        assert share(*pair, **damaged) == 1.0


def test_roles_that_do_not_swap() -> None:
    short = Habits(ttl_error=-1)
    assert red(callee=short) == cells(FILTERED, ["prO"])  # it hears no datagram there, so it may not send its plain SYN
    assert red(callee=Habits(ttl_error=-1, phases=1), caller=Habits(phases=1)) == cells(PUNCHABLE, [*FILTERED, "ar"])


def test_a_tcp_port_that_was_seen_over_udp() -> None:
    expected = cells(["shift"], FILTERED) | cells(FILTERED, ["shift"])
    assert red(both=Habits(tells_tcp_port=False)) == expected


def test_redials_that_keep_step() -> None:
    where = {"delay": 0.001, "server_delay": 0.05, "jitter": 0.0002, "count": 20}
    for pair in cells(REFUSING, REFUSING):
        assert share(*pair, both=Habits(can_open_low=False), **where) > 0.2
        assert share(*pair, both=Habits(can_open_low=False, random_redials=False), **where) == 0.0


def test_refusals_that_are_taken_at_their_word() -> None:
    where = {"delay": 0.025, "server_delay": 0.05, "count": 20}
    for pair in cells(REFUSING, ["prR"]):
        assert share(*pair, both=Habits(ttl_error=-1), **where) > 0.6
        assert share(*pair, both=Habits(ttl_error=-1, redials=0), **where) == 0.0


def test_phases_that_replace_what_is_answered() -> None:
    where = {"delay": 0.1, "loss": 0.2, "count": 8}
    keeping = [share(*pair, **where) for pair in pairs(PUNCHABLE)]
    replacing = [share(*pair, both=Habits(keeps_answered=False), **where) for pair in pairs(PUNCHABLE)]
    assert sum(keeping) / len(keeping) > 0.99 > 0.96 > sum(replacing) / len(replacing)


def test_sides_that_cannot_open_connect_all_the_same() -> None:
    for delay, server_delay in ((0.025, 0.0), (0.025, 0.05), (0.1, 0.0)):
        where = {"delay": delay, "server_delay": server_delay, "jitter": 0.0002}
        cannot = Habits(can_open_low=False)
        assert red(both=cannot, **where) == red(callee=cannot, **where) == red(caller=cannot, **where) == set()
