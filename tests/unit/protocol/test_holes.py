"""The hard side of a birthday: its holes, its go-aheads, its end."""

from __future__ import annotations

import pytest

from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.protocol.birthday import BirthdayEnded, OpenHoles, Tell, round_length
from p2ptunnel.protocol.holes import HardSide, HardState
from p2ptunnel.protocol.machine import Event
from p2ptunnel.wire.signal import GoAhead

TARGET = ("203.0.113.9", 52_114)
RTT = 0.1
NOW = 100.0


def run(side: HardSide, until: float) -> list[tuple[float, Event]]:
    """What happens, and when, if every timer is minded at once."""
    happened = [(NOW, event) for event in side.events()]
    while (at := side.next_deadline()) is not None and at <= until:
        side.handle_timer(at)
        happened += [(at, event) for event in side.events()]
    return happened


def started(**options: object) -> HardSide:
    side = HardSide(TARGET, RTT, **options)  # type: ignore[arg-type]
    side.start(NOW)
    return side


def test_it_opens_512_holes_to_the_one_port_low_five_in_10_ms() -> None:
    happened = run(started(), NOW + 1.5)
    opened = [(at, event) for at, event in happened if isinstance(event, OpenHoles)]
    assert [hole for _, event in opened for hole in event.holes] == list(range(512))
    assert {(event.target, event.transport, event.low) for _, event in opened} == {(TARGET, "tcp", True)}
    assert {len(event.holes) for _, event in opened[:-1]} == {5}
    assert [at for at, _ in opened] == pytest.approx([NOW + 0.01 * n for n in range(103)])


@pytest.mark.parametrize("late", [0.0011, 0.004, 0.03, 0.5])
def test_however_late_timers_come_no_more_than_500_holes_are_opened_in_a_second(late: float) -> None:
    side, now, times = started(), NOW, list[float]()
    while (deadline := side.next_deadline()) is not None:
        times += [now for event in side.events() if isinstance(event, OpenHoles) for _ in event.holes]
        now = deadline + late
        side.handle_timer(now)
    assert max(sum(begun <= at < begun + 0.999 for at in times) for begun in times) <= 500 + 5


def test_it_invites_once_96_are_open_and_every_400_ms_until_all_probes_could_have_come() -> None:
    happened = run(started(ports=(1, 2, 3), round_number=4), NOW + 60)
    times = [at - NOW for at, event in happened if isinstance(event, Tell)]
    assert times == pytest.approx([0.19 + 0.4 * n for n in range(len(times))])  # five of them leave at once
    assert len(times) * 256 >= 672
    assert {event.body for _, event in happened if isinstance(event, Tell)} == {GoAhead(round=4, ports=(1, 2, 3))}
    assert happened[-1] == (NOW + round_length(RTT), BirthdayEnded("nothing came through", holes=512))
    assert 96 / 500 + 672 / 500 < round_length(RTT) < 96 / 500 + 672 / 500 + 1


def test_who_may_have_fewer_holes_invites_when_they_are_open() -> None:
    happened = run(started(holes=64), NOW + 0.5)
    assert sum(len(event.holes) for _, event in happened if isinstance(event, OpenHoles)) == 64
    assert next(at for at, event in happened if isinstance(event, Tell)) == pytest.approx(NOW + 0.12)


def test_a_longer_way_makes_a_longer_round() -> None:
    first = 96 / 500
    assert round_length(0.1) == pytest.approx(first + 672 / 500 + 0.3 + 0.1 + 0.4)
    assert round_length(0.4) == pytest.approx(first + 672 / (256 / 0.9) + 0.9 + 0.4 + 0.4)  # 256 at any instant wait for 0.9 s


def test_the_latest_eight_ports_are_shown() -> None:
    happened = run(started(ports=range(20)), NOW + 1)
    assert next(event.body for _, event in happened if isinstance(event, Tell)) == GoAhead(ports=tuple(range(12, 20)))


def test_over_udp_the_first_hole_is_plain() -> None:
    happened = run(started(transport="udp", holes=9), NOW + 60)
    assert [(event.holes, event.low) for _, event in happened if isinstance(event, OpenHoles)] == [
        (range(1), False),
        (range(1, 6), True),
        (range(6, 9), True),
    ]


def test_while_a_connection_is_tried_nobody_is_invited_and_no_hole_opened() -> None:
    side = started()
    side.events()
    side.connection_up()
    side.connection_up()  # another one: it waits for its turn
    assert not [event for _, event in run(side, NOW + 60) if isinstance(event, Tell | OpenHoles | BirthdayEnded)]
    assert side.state is HardState.HOLDING


def test_when_it_came_to_nothing_the_round_goes_on() -> None:
    side = started(holes=5)
    side.connection_up()
    side.events()
    side.connection_failed(NOW + 1.0)
    assert [type(event) for event in side.events()] == [Tell]


def test_when_the_round_is_over_by_then_it_ends() -> None:
    side = started(holes=32)
    side.connection_up()
    side.connection_failed(NOW + 10.0)
    assert side.events()[-1] == BirthdayEnded("nothing came through", holes=5)
    assert side.next_deadline() is None


def test_a_connection_that_comes_while_holes_are_opened_does_not_cost_the_others() -> None:
    side = started(holes=10)
    side.connection_up()
    side.connection_failed(NOW + 0.5)
    opened = [event.holes for _, event in run(side, NOW + 1) if isinstance(event, OpenHoles)]
    assert opened == [range(5), range(5, 10)]


def test_chosen_ends_it_at_once_and_twice_is_fine() -> None:
    side = started()
    side.events()
    side.connection_up()
    side.stop()
    side.stop()
    assert side.events() == [BirthdayEnded("chosen", holes=5)]
    assert side.next_deadline() is None
    side.handle_timer(NOW + 100)
    assert side.events() == []


def test_it_begins_once() -> None:
    side = started()
    with pytest.raises(LocalProtocolError, match="a hard side that is inviting takes no start"):
        side.start(NOW)
