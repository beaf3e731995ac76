"""Who may stay at a TCP port: by source, by lot, by what it said first."""

from __future__ import annotations

import random

from p2ptunnel.defaults import (
    CONTROL_DROP_FROM,
    CONTROL_DROP_FULL,
    CONTROL_JUNK_BURST,
    CONTROL_OF_SOURCE_MAX,
    CONTROL_PENALTY,
    CONTROL_SILENT_OF_SOURCE_MAX,
    SITE_FACTOR,
)
from p2ptunnel.server.doorman import Doorman

HOST, OTHER = "198.51.100.1", "198.51.100.2"


class Drawn:
    """Dice that show what they are told to."""

    def __init__(self, *values: float) -> None:
        self._values = list(values)

    def random(self) -> float:
        return self._values.pop(0) if self._values else 0.999999

    def getrandbits(self, k: int, /) -> int:
        raise AssertionError


def test_a_source_has_so_many_connections_and_no_more() -> None:
    doorman = Doorman(random.Random(1))
    refusals = [doorman.enter(n, HOST, 0.0) for n in range(CONTROL_OF_SOURCE_MAX + 1)]
    assert refusals == [""] * CONTROL_OF_SOURCE_MAX + ["too many connections of a source"]
    assert doorman.enter(-1, OTHER, 0.0) == ""
    doorman.leave(CONTROL_OF_SOURCE_MAX)
    doorman.leave(0)
    assert doorman.enter(-2, HOST, 0.0) == ""


def test_loopback_may_have_as_many_as_there_can_be() -> None:
    doorman = Doorman(Drawn())
    for n in range(CONTROL_OF_SOURCE_MAX + 1):
        assert doorman.enter(n, "127.0.0.1", 0.0) == ""
        assert doorman.fell_silent(n) is None or n >= CONTROL_DROP_FULL - 1
        doorman.punish(n, 0.0)


def test_a_sixteenth_silent_connection_of_a_source_may_stay_and_a_seventeenth_not() -> None:
    doorman = Doorman(Drawn())
    for n in range(CONTROL_SILENT_OF_SOURCE_MAX + 1):
        doorman.enter(n, HOST, 0.0)
    fates = [doorman.fell_silent(n) for n in range(CONTROL_SILENT_OF_SOURCE_MAX + 1)]
    assert fates == [None] * CONTROL_SILENT_OF_SOURCE_MAX + [
        (CONTROL_SILENT_OF_SOURCE_MAX, "too many silent connections of a source")
    ]


def test_who_speaks_counts_as_silent_no_more() -> None:
    doorman = Doorman(Drawn())
    for n in range(5 * CONTROL_SILENT_OF_SOURCE_MAX):
        doorman.enter(n, HOST, 0.0)
        assert doorman.fell_silent(n) is None
        doorman.spoke(n)
        doorman.spoke(n)


def test_up_to_ten_silent_ones_nobody_is_drawn() -> None:
    doorman = Doorman(Drawn(*[0.0] * 99))
    for n in range(CONTROL_DROP_FROM):
        doorman.enter(n, f"198.51.100.{n}", 0.0)
        assert doorman.fell_silent(n) is None


def test_from_a_hundred_on_one_goes_for_each_that_comes() -> None:
    doorman = Doorman(random.Random(3))
    silent, drawn = 0, 0
    for n in range(1000):
        doorman.enter(n, f"198.51.{n // 250}.{n % 250}", 0.0)
        fate = doorman.fell_silent(n)
        silent += 1
        if fate is not None:
            drawn += 1
            doorman.leave(fate[0])
            silent -= 1
        assert silent < CONTROL_DROP_FULL
    assert drawn > 900


def test_the_lot_falls_on_the_old_and_the_new_alike() -> None:
    """Who has come last is no more in danger than who came first: else silence at the door would keep all others out."""
    ages = []
    for seed in range(300):
        doorman = Doorman(random.Random(seed))
        for n in range(CONTROL_DROP_FULL):
            doorman.enter(n, f"198.51.100.{n}", 0.0)
            fate = doorman.fell_silent(n)
            if fate is not None:
                ages.append(fate[0] / n)
                doorman.leave(fate[0])
    assert sum(age < 0.5 for age in ages) > len(ages) / 4


def test_the_networks_of_one_site_have_a_limit_together() -> None:
    doorman = Doorman(random.Random(1))
    networks = [f"2001:db8:1:{n:x}::1" for n in range(SITE_FACTOR + 1)]
    refusals = [doorman.enter(n, networks[n % len(networks)], 0.0) for n in range(SITE_FACTOR * CONTROL_OF_SOURCE_MAX + 1)]
    assert not any(refusals[:-1])
    assert refusals[-1] == "too many connections of a source"
    assert doorman.enter(-1, "2001:db8:2::1", 0.0) == ""


def test_a_source_that_begins_with_junk_again_and_again_stays_out_for_a_while() -> None:
    """M8: one request of a web page shut the port for everybody behind its NAT."""
    doorman = Doorman(random.Random(1))
    for _ in range(int(CONTROL_JUNK_BURST) + 1):
        assert doorman.enter(1, HOST, 100.0) == ""
        doorman.punish(1, 100.0)
        doorman.leave(1)
    assert doorman.enter(2, HOST, 100.0 + CONTROL_PENALTY - 1) == "penalty"
    assert doorman.enter(3, OTHER, 101.0) == ""
    assert doorman.enter(4, HOST, 100.0 + CONTROL_PENALTY) == ""


def test_nothing_is_kept_of_who_has_left() -> None:
    doorman = Doorman(Drawn())
    for n in range(50):
        doorman.enter(n, HOST, 0.0)
        doorman.fell_silent(n)
    for n in range(50):
        doorman.leave(n)
    assert len(doorman) == 0
    assert not doorman._of_block
    assert not doorman._of_site
    assert not doorman._silent
    assert not doorman._silent_of_block
