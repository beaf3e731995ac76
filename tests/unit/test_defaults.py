"""The tunables: each has a reason and a use, and those that lean on one another fit together."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from p2ptunnel import defaults

PACKAGE = Path(defaults.__file__).parent
SOURCE = Path(defaults.__file__).read_text(encoding="utf-8")
NAMES = re.findall(r"^([A-Z_0-9]+): Final", SOURCE, re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_a_tunable_is_used(name: str) -> None:
    users = [path for path in PACKAGE.rglob("*.py") if path.name != "defaults.py" and name in path.read_text(encoding="utf-8")]
    assert users


@pytest.mark.parametrize("name", NAMES)
def test_a_tunable_is_a_number_above_zero(name: str) -> None:
    assert getattr(defaults, name) > 0


def test_no_tunable_is_set_twice() -> None:
    assert len(NAMES) == len(set(NAMES))


def test_a_registration_outlives_three_lost_heartbeats() -> None:
    assert defaults.REGISTRATION_TTL > 3 * defaults.HEARTBEAT_MAX


def test_a_heartbeat_comes_before_a_nat_forgets() -> None:
    assert defaults.HEARTBEAT_MIN < defaults.HEARTBEAT_MAX < 30  # seconds a UDP binding lives on common routers


def test_a_registered_peer_always_has_a_good_cookie() -> None:
    assert defaults.HEARTBEAT_MAX < defaults.COOKIE_EPOCH  # each heartbeat brings one that is good for one epoch at least


def test_an_answer_is_remembered_as_long_as_its_request_may_be_repeated() -> None:
    assert defaults.ANSWER_MEMORY > defaults.TRANSACTION_TIMEOUT


def test_a_transaction_is_tried_often_enough_to_survive_loss() -> None:
    waits = (
        min(defaults.RETRANSMIT_FIRST * defaults.RETRANSMIT_FACTOR**n, defaults.RETRANSMIT_CAP)
        * (1 + defaults.RETRANSMIT_JITTER)
        for n in itertools.count()
    )
    repeats = itertools.takewhile(lambda at: at < defaults.TRANSACTION_TIMEOUT, itertools.accumulate(waits))
    assert 1 + len(list(repeats)) >= 9  # with one datagram in five lost, one transaction in ten thousand fails


def test_an_attempt_ends_before_whoever_waits_for_it_gives_up() -> None:
    assert defaults.PHASES * defaults.PHASE_MIN < defaults.PUNCH_TIMEOUT < defaults.CONNECT_TIMEOUT < defaults.TOKEN_TTL


def test_a_window_grows_from_its_first_size() -> None:
    assert defaults.STREAM_WINDOW_BYTES < defaults.STREAM_WINDOW_MAX_BYTES <= defaults.WINDOW_GROWTH_MAX_BYTES


def test_redials_are_random() -> None:
    assert defaults.REDIAL_MIN < defaults.REDIAL_MAX
