"""How many streams a peer may have, and how fast it may open them."""

from __future__ import annotations

from p2ptunnel.defaults import OPENS_BURST, OPENS_PER_SECOND, STREAMS_MAX, STREAMS_OF_SERVICE_MAX
from p2ptunnel.session.quota import StreamQuota
from tests.helpers.peers import CALLEE, CALLER

LAPTOP, PHONE = CALLER.public, CALLEE.public
MANY = 10**9


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0  # slow enough for the rate, unless a test stops it
        return self.now


def test_a_peer_has_so_many_streams_of_one_service() -> None:
    quota = StreamQuota(Clock())
    assert {quota.enter(LAPTOP, "web", STREAMS_OF_SERVICE_MAX) for _ in range(STREAMS_OF_SERVICE_MAX)} == {""}
    assert quota.enter(LAPTOP, "web", STREAMS_OF_SERVICE_MAX) == "too many streams are open"
    assert quota.enter(LAPTOP, "ssh", STREAMS_OF_SERVICE_MAX) == ""
    assert quota.enter(PHONE, "web", STREAMS_OF_SERVICE_MAX) == ""
    quota.leave(LAPTOP, "web")
    assert quota.enter(LAPTOP, "web", STREAMS_OF_SERVICE_MAX) == ""


def test_a_peer_has_so_many_streams_in_all() -> None:
    quota = StreamQuota(Clock())
    for number in range(STREAMS_MAX):
        assert not quota.enter(LAPTOP, f"s{number % 8}", MANY)
    assert quota.enter(LAPTOP, "other", MANY) == "too many streams are open"
    assert not quota.enter(PHONE, "other", MANY)
    quota.leave(LAPTOP, "s0")
    assert not quota.enter(LAPTOP, "other", MANY)


def test_what_was_refused_is_not_counted() -> None:
    quota = StreamQuota(Clock())
    for _ in range(5):
        assert quota.enter(LAPTOP, "web", 0)
    for number in range(STREAMS_MAX):
        assert not quota.enter(LAPTOP, f"s{number}", 1)


def test_streams_are_opened_so_fast_and_no_faster() -> None:
    now = 100.0
    quota = StreamQuota(lambda: now)

    def asked(times: int) -> int:
        return sum(quota.may_ask(LAPTOP) for _ in range(times))

    assert asked(1000) == OPENS_BURST
    now += 1.0
    assert asked(1000) == OPENS_PER_SECOND
    assert quota.may_ask(PHONE)
