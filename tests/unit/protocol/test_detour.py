"""When a caller turns to QUIC: at once where TCP is ruled out, after its phases else, once, and never in vain."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from p2ptunnel.defaults import PHASE_MIN, PHASES
from p2ptunnel.protocol.detour import Detour, OpenQuic, QuicRuledOut
from p2ptunnel.wire.messages import NatHints

REMOTE = ("198.51.100.2", 40002)
CONKEY = "5e" * 16
CAN = NatHints(quic=True)
REFUSES = NatHints(quic=True, crosses=False)
AFTER_PHASES = PHASES * PHASE_MIN


def detour(own: NatHints = CAN, other: NatHints = CAN) -> Detour:
    made = Detour()
    made.start(own, other, 10.0)
    return made


def ready(own: NatHints = CAN, other: NatHints = CAN) -> Detour:
    made = detour(own, other)
    made.opened(REMOTE)
    made.told(CONKEY)
    return made


def test_where_both_refuse_simultaneous_open_it_begins_at_once() -> None:
    assert ready(REFUSES, REFUSES).due("a-token", 10.0) == [OpenQuic("a-token", REMOTE, CONKEY)]


def test_where_tcp_is_blocked_it_begins_at_once() -> None:
    assert ready(CAN, replace(CAN, tcp="none")).due("a-token", 10.0) == [OpenQuic("a-token", REMOTE, CONKEY)]


def test_else_tcp_has_its_phases_first() -> None:
    made = ready()
    assert made.next_deadline() == pytest.approx(10.0 + AFTER_PHASES)
    assert made.due("a-token", 10.0 + AFTER_PHASES - 0.001) == []
    assert made.due("a-token", 10.0 + AFTER_PHASES) == [OpenQuic("a-token", REMOTE, CONKEY)]


def test_phases_are_as_long_as_the_agents_make_them() -> None:
    slow = replace(CAN, rtt=200)
    assert ready(slow, slow).next_deadline() == pytest.approx(10.0 + PHASES * 1.5)


def test_it_is_asked_for_once() -> None:
    made = ready(REFUSES, REFUSES)
    assert len(made.due("a-token", 10.0)) == 1
    assert made.due("a-token", 99.0) == []
    assert made.next_deadline() is None


@pytest.mark.parametrize("missing", ["hole", "conkey"])
def test_it_waits_for_the_hole_and_for_the_conkey(missing: str) -> None:
    made = detour(REFUSES, REFUSES)
    if missing == "hole":
        made.told(CONKEY)
    else:
        made.opened(REMOTE)
    assert made.due("a-token", 99.0) == []
    assert made.next_deadline() is None  # or a timer would go off again and again


@pytest.mark.parametrize(
    ("own", "other", "who"),
    [(NatHints(), CAN, "this side"), (CAN, NatHints(), "the other side"), (NatHints(),) * 2 + ("this side",)],
)
def test_without_the_library_on_either_side_it_is_said_and_not_tried(own: NatHints, other: NatHints, who: str) -> None:
    made = ready(own, other)
    assert made.due("a-token", 10.0) == []
    assert made.due("a-token", 10.0 + AFTER_PHASES) == [QuicRuledOut("a-token", f"not tried: {who} lacks the extra `quic`")]


def test_a_call_that_is_over_asks_for_nothing() -> None:
    made = ready(REFUSES, REFUSES)
    made.stop()
    assert made.due("a-token", 99.0) == []
    assert made.next_deadline() is None


def test_the_request_shows_no_secret() -> None:
    assert CONKEY not in repr(OpenQuic("a-token", REMOTE, CONKEY))
