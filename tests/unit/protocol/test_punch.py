"""The plan of a punch: whose SYNs die on the way in which phase, how long a phase is, where SYNs go."""

from __future__ import annotations

from typing import Literal

import pytest

from p2ptunnel.defaults import PHASE_MIN, SYN_REPEAT
from p2ptunnel.protocol.punch import ConnectionChosen, LocalView, Nominate, phase_length, sends_low, tcp_targets
from p2ptunnel.types import Candidate
from p2ptunnel.wire.messages import NatHints

Role = Literal["caller", "callee"]
PEER = ("198.51.100.2", 40002)


@pytest.mark.parametrize(
    ("caller_can", "callee_can", "plan"),
    [  # who sends low in phases 0, 1, 2
        (True, True, ("callee", "caller", None)),
        (False, True, ("callee", None, None)),
        (True, False, ("caller", None, None)),
        (False, False, (None, None, None)),
    ],
)
def test_who_opens_in_which_phase(caller_can: bool, callee_can: bool, plan: tuple[Role | None, ...]) -> None:
    roles: tuple[Role, ...] = ("caller", "callee")
    for phase, opener in enumerate(plan):
        low = [role for role in roles if sends_low(role, phase, caller_can=caller_can, callee_can=callee_can)]
        assert low == ([opener] if opener else [])


@pytest.mark.parametrize("phase", [2, 3, 10])
@pytest.mark.parametrize("role", ["caller", "callee"])
def test_from_the_third_phase_on_all_is_plain(role: Role, phase: int) -> None:
    assert not sends_low(role, phase, caller_can=True, callee_can=True)


@pytest.mark.parametrize(
    ("own", "other", "length"),
    [
        (0.0, 0.0, PHASE_MIN),
        (0.05, 0.05, PHASE_MIN),
        (0.06, 0.06, 0.3),
        (0.1, 0.1, 0.5),
        (0.17, 0.17, 0.85),
        (0.2, 0.2, 1.5),
        (0.3, 0.3, 1.75),
        (0.8, 0.8, 4.0),
    ],
)
def test_a_phase_outlives_a_handshake(own: float, other: float, length: float) -> None:
    assert phase_length(own, other) == pytest.approx(length)
    assert phase_length(own, other) > 2 * (own + other)  # t=11, SYN, SYN-ACK, ACK: all within the callee's first phase


@pytest.mark.parametrize("round_trip", [n / 100 for n in range(80)])
def test_no_phase_ends_between_a_repeated_syn_and_its_answer(round_trip: float) -> None:
    length = phase_length(round_trip / 2, round_trip / 2)
    assert length < SYN_REPEAT or length > SYN_REPEAT + round_trip


@pytest.mark.parametrize(
    ("candidates", "targets"),
    [
        ((), (PEER,)),
        ((Candidate("srflx", "tcp", PEER[0], 50002),), ((PEER[0], 50002),)),
        ((Candidate("srflx", "udp", PEER[0], 50002),), (PEER,)),
        ((Candidate("srflx", "tcp", PEER[0], 0),), (PEER,)),
        (
            (
                Candidate("mapped", "tcp", PEER[0], 443),
                Candidate("srflx", "tcp", PEER[0], 50002),
                Candidate("mapped", "tcp", PEER[0], 443),
            ),
            ((PEER[0], 443), (PEER[0], 50002)),
        ),
        ((Candidate("host", "tcp", "192.168.1.1", 80),), (PEER,)),
        ((Candidate("srflx", "tcp", "127.0.0.1", 22), Candidate("srflx", "tcp", PEER[0], 5)), ((PEER[0], 5),)),
        (tuple(Candidate("srflx", "tcp", f"192.0.2.{n}", 80) for n in range(16)), (PEER,)),
    ],
)
def test_syns_go_to_the_host_that_the_server_saw(
    candidates: tuple[Candidate, ...], targets: tuple[tuple[str, int], ...]
) -> None:
    assert tcp_targets(candidates, PEER) == targets


def test_hints_are_in_milliseconds_and_bounded() -> None:
    assert LocalView((), 0.0504, can_open_low=True).hints == NatHints(low=True, rtt=50)
    assert LocalView((), 1000.0, can_open_low=False).hints == NatHints(low=False, rtt=60_000)


def test_no_event_shows_a_secret() -> None:
    for event in (Nominate(3, "very secret"), ConnectionChosen("very secret", 3)):
        assert "secret" not in repr(event)
        assert "3" in repr(event)
