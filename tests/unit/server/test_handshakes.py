"""Whose handshakes are carried at a time: by source, by site, by lot."""

from __future__ import annotations

import random

from p2ptunnel.defaults import WEB_HANDSHAKES_MAX, WEB_HANDSHAKES_OF_SITE_MAX, WEB_HANDSHAKES_OF_SOURCE_MAX
from p2ptunnel.server.handshakes import Handshakes


def anywhere(number: int) -> str:
    return f"198.{18 + number // 65536}.{number // 256 % 256}.{number % 256}"


def test_a_source_has_so_many_and_no_more_whatever_addresses_it_uses() -> None:
    for network in ("2001:db8:1:2:", "198.51.100.7"):
        handshakes = Handshakes(random.Random(1))
        hosts = [f"{network}:{n + 1:x}" if ":" in network else network for n in range(WEB_HANDSHAKES_OF_SOURCE_MAX)]
        assert [handshakes.enter(n, host) for n, host in enumerate(hosts)] == [None] * WEB_HANDSHAKES_OF_SOURCE_MAX
        assert handshakes.enter(99, hosts[0]) == 99
        handshakes.leave(99)  # is forgotten already
        handshakes.leave(0)
        assert handshakes.enter(100, hosts[0]) is None
        assert handshakes.enter(101, hosts[0]) == 101


def test_a_site_leaves_places_to_others() -> None:
    handshakes = Handshakes(random.Random(1))
    fates = [handshakes.enter(n, f"2001:db8:1:{n:x}::1") for n in range(WEB_HANDSHAKES_OF_SITE_MAX + 1)]
    assert fates == [None] * WEB_HANDSHAKES_OF_SITE_MAX + [WEB_HANDSHAKES_OF_SITE_MAX]
    assert handshakes.enter(1000, "2001:db8:2::1") is None


def test_where_it_is_full_one_goes_for_each_that_comes_and_all_are_in_the_same_danger() -> None:
    handshakes = Handshakes(random.Random(1))
    for n in range(WEB_HANDSHAKES_MAX):
        assert handshakes.enter(n, anywhere(n)) is None
    here = set(range(WEB_HANDSHAKES_MAX))
    newcomers = 0
    for n in range(WEB_HANDSHAKES_MAX, 11 * WEB_HANDSHAKES_MAX):
        victim = handshakes.enter(n, anywhere(n))
        assert victim is not None
        here.add(n)
        here.remove(victim)  # none goes twice
        newcomers += victim == n
    assert len(here) == WEB_HANDSHAKES_MAX
    assert newcomers < 30  # ten, most likely


def test_loopback_is_of_no_source() -> None:
    handshakes = Handshakes(random.Random(1))
    assert [handshakes.enter(n, "127.0.0.1") for n in range(WEB_HANDSHAKES_MAX)] == [None] * WEB_HANDSHAKES_MAX
    assert handshakes.enter(999, "127.0.0.1") is not None
    for n in range(WEB_HANDSHAKES_MAX):
        handshakes.leave(n)
