"""Whatever happens in whatever order, at whatever time: a round stays within its budgets, and ends."""

from __future__ import annotations

import random
from typing import Literal, TypeAlias

from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.addresses import port_refusal
from p2ptunnel.protocol.birthday import BirthdayEnded, OpenHoles, SendProbes, Tell
from p2ptunnel.protocol.guessing import EasySide, EasyState
from p2ptunnel.protocol.holes import HardSide, HardState
from p2ptunnel.protocol.machine import Event
from p2ptunnel.wire.signal import GoAhead

Step: TypeAlias = tuple[float, Literal["timer", "go", "stray", "up", "failed"]]

STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.4, 3.0]), st.sampled_from(["timer", "timer", "go", "stray", "up", "failed"])
    ),
    max_size=200,
)
RTT = st.sampled_from([0.0, 0.05, 0.3, 2.0])


@given(STEPS, RTT, st.integers(0, 2**32))
def test_an_easy_side_keeps_to_its_budgets(steps: list[Step], rtt: float, seed: int) -> None:
    side = EasySide("198.51.100.2", rtt, random.Random(seed), round_number=1)
    side.start(0.0)
    now, of_this_go, ports = 0.0, 0, list[int]()
    for wait, step in steps:
        now += wait
        if step == "go":
            of_this_go = 0
            side.receive(GoAhead(round=1, ports=(50_000, 50_001)), now)
        elif step == "stray":
            side.receive(GoAhead(round=2), now)
        elif step == "up" and side.state in {EasyState.WAITING, EasyState.GUESSING, EasyState.HOLDING}:
            side.connection_up()
        elif step == "failed" and side.state is EasyState.HOLDING:
            side.connection_failed(now)
        elif step == "timer":
            side.handle_timer(now)
        sent = [port for event in side.events() if isinstance(event, SendProbes) for port in event.ports]
        assert not (sent and side.state is EasyState.HOLDING)
        of_this_go, ports = of_this_go + len(sent), ports + sent
        assert len(sent) <= 5
        assert of_this_go <= 256
    assert len(ports) == len(set(ports)) <= 672
    assert all(port_refusal(port) is None for port in ports)
    ended = run_out(side, now, 100.0)
    assert side.state in {EasyState.OVER, EasyState.HOLDING}
    assert ended <= 1


@given(STEPS, RTT, st.sampled_from([1, 64, 96, 512]))
def test_a_hard_side_opens_each_hole_once_and_ends(steps: list[Step], rtt: float, holes: int) -> None:
    side = HardSide(("203.0.113.9", 52_114), rtt, holes=holes)
    side.start(0.0)
    now, happened = 0.0, list[Event]()
    for wait, step in steps:
        now += wait
        if step == "up" and side.state in {HardState.INVITING, HardState.HOLDING}:
            side.connection_up()
        elif step == "failed" and side.state is HardState.HOLDING:
            side.connection_failed(now)
        elif step == "timer":
            side.handle_timer(now)
        happened += side.events()
    opened = [hole for event in happened if isinstance(event, OpenHoles) for hole in event.holes]
    assert opened == list(range(len(opened)))
    assert len(opened) <= holes
    assert not any(isinstance(event, Tell) for event in happened) or len(opened) >= min(holes, 96)
    run_out(side, now, 100.0)
    assert side.state in {HardState.OVER, HardState.HOLDING}
    assert sum(isinstance(event, BirthdayEnded) for event in happened) <= 1


def run_out(side: EasySide | HardSide, now: float, seconds: float) -> int:
    """Mind every timer until none is left or so many seconds have passed; return how often it has ended."""
    ended, until = 0, now + seconds
    while (at := side.next_deadline()) is not None and max(at, now) <= until:
        now = max(at, now)
        side.handle_timer(now)
        ended += sum(isinstance(event, BirthdayEnded) for event in side.events())
    return ended
