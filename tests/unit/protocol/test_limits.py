"""Token buckets: what a source may ask, who counts as one source, and that memory is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.addresses import canonical, source_of
from p2ptunnel.defaults import LIMITED_SOURCES_MAX, SITE_FACTOR
from p2ptunnel.protocol.limits import Buckets, Rate, SourceLimit, limited_source

RATE = Rate(2.0, 4.0)


def taken(limit: SourceLimit, hosts: list[str], now: float = 0.0) -> int:
    return sum(limit.take(host, now) for host in hosts)


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    buckets = Buckets(RATE)
    assert [buckets.take("a", 0.0) for _ in range(5)] == [True] * 4 + [False]
    assert buckets.wait("a", 0.0) == pytest.approx(0.5)
    assert [buckets.take("a", 0.6) for _ in range(2)] == [True, False]
    assert sum(buckets.take("a", 100.0) for _ in range(9)) == 4


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60))
def test_never_more_than_burst_and_rate_allow(times: list[float]) -> None:
    buckets = Buckets(RATE)
    given_out = sum(buckets.take("a", now) for now in sorted(times))
    assert given_out <= RATE.burst + RATE.per_second * (max(times) - min(times)) + 1e-6


def test_a_clock_that_steps_back_gives_nothing_and_breaks_nothing() -> None:
    buckets = Buckets(Rate(1.0, 1.0))
    assert buckets.take("a", 100.0)
    assert not buckets.take("a", 50.0)
    assert buckets.wait("a", 40.0) >= 0


def test_what_is_given_back_can_be_taken_again_but_never_more_than_the_burst() -> None:
    buckets = Buckets(RATE)
    buckets.give_back("nobody")
    assert len(buckets) == 0
    buckets.take("a", 0.0)
    for _ in range(9):
        buckets.give_back("a")
    assert sum(buckets.take("a", 0.0) for _ in range(9)) == 4


def test_of_many_keys_those_used_last_are_remembered() -> None:
    buckets = Buckets(Rate(0.001, 1.0), most=3)
    for key in "abc":
        buckets.take(key, 0.0)
    buckets.take("a", 0.0)
    buckets.take("d", 0.0)
    assert len(buckets) == 3
    assert [buckets.take(key, 0.0) for key in "ad"] == [False, False]
    assert buckets.take("b", 0.0)  # the oldest has been forgotten


def test_a_million_sources_take_bounded_memory() -> None:
    limit = SourceLimit(RATE)
    for n in range(3 * LIMITED_SOURCES_MAX):
        limit.take(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 0.0)
    assert len(limit._blocks) == LIMITED_SOURCES_MAX
    assert len(limit._sites) <= LIMITED_SOURCES_MAX


def test_v6_64_is_one_source() -> None:
    """T16: who has a /64 has 2^64 addresses, and one bucket."""
    assert taken(SourceLimit(RATE), [f"2001:db8:1:2::{n:x}" for n in range(100)]) == RATE.burst


def test_a_48_has_sixteen_times_as_much_and_no_more() -> None:
    """T16: hopping from /64 to /64."""
    assert taken(SourceLimit(RATE), [f"2001:db8:1:{n:x}::1" for n in range(200)]) == SITE_FACTOR * RATE.burst


def test_a_v4_mapped_address_shares_the_bucket_of_its_v4_address() -> None:
    """T16."""
    assert limited_source("198.51.100.7") == limited_source("::ffff:198.51.100.7") == source_of(canonical("198.51.100.7"))
    assert taken(SourceLimit(RATE), ["198.51.100.7", "::ffff:198.51.100.7"] * 10) == RATE.burst


@given(st.ip_addresses(v=4), st.sampled_from(["{}", "::ffff:{}"]))
def test_a_source_is_limited_however_it_is_spelt(address: object, spelling: str) -> None:
    limit, host = SourceLimit(RATE), str(address)
    has_limit = limited_source(host) is not None
    assert taken(limit, [host, spelling.format(host)] * 10) == (RATE.burst if has_limit else 20)
    assert has_limit is not host.startswith("127.")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "not an address", ""])
def test_loopback_and_what_is_no_address_are_not_rationed(host: str) -> None:
    limit = SourceLimit(RATE)
    assert taken(limit, [host] * 100) == 100
    assert limit.wait(host, 0.0) == 0
    limit.give_back(host)


def test_neighbours_have_buckets_of_their_own() -> None:
    limit = SourceLimit(RATE)
    assert taken(limit, [f"198.51.100.{n}" for n in range(50)] * 4) == 200
    assert not limit.take("198.51.100.1", 0.0)
    assert limit.wait("198.51.100.1", 0.0) == pytest.approx(0.5)
    limit.give_back("198.51.100.1")
    assert limit.take("198.51.100.1", 0.0)
