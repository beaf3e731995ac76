"""The easy side of a birthday: nothing without a go-ahead, and then within every budget."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from p2ptunnel.addresses import port_refusal
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.protocol.birthday import BirthdayEnded, SendProbes
from p2ptunnel.protocol.guessing import EasySide, EasyState, Guesses
from p2ptunnel.wire.signal import GoAhead

HOST = "198.51.100.2"
NOW = 100.0
Probe = tuple[float, int]


class Easy:
    """An easy side whose timers are minded, `late` seconds late; go-aheads come when they are told to."""

    def __init__(self, *, rtt: float = 0.1, late: float = 0.0, seed: int = 1, **options: int) -> None:
        self.side = EasySide(HOST, rtt, random.Random(seed), **options)  # type: ignore[arg-type]
        self.probes: list[Probe] = []
        self.patience: set[float] = set()
        self.ended: tuple[float, BirthdayEnded] | None = None
        self._late = late
        self.side.start(NOW)

    def go(self, at: float, *ports: int, number: int = 0) -> None:
        self.run(at)
        self.side.receive(GoAhead(round=number, ports=ports), at)
        self._take(at)

    def run(self, until: float) -> None:
        while (at := self.side.next_deadline()) is not None and at + self._late <= until:
            self.side.handle_timer(at + self._late)
            self._take(at + self._late)

    def _take(self, now: float) -> None:
        for event in self.side.events():
            match event:
                case SendProbes():
                    assert (event.host, event.transport) == (HOST, "tcp")
                    self.probes += [(now, port) for port in event.ports]
                    self.patience.add(event.patience)
                case BirthdayEnded():
                    self.ended = now, event
                case _:
                    raise AssertionError(event)


def within(probes: list[Probe], seconds: float) -> int:
    """The most that leave in any stretch of so many seconds."""
    times = [at for at, _ in probes]
    return max(sum(start <= at < start + seconds for at in times) for start in times)


def test_without_a_go_ahead_nothing_is_sent() -> None:
    easy = Easy()
    easy.run(NOW + 60)
    assert easy.probes == []
    assert easy.ended == (NOW + 2.0, BirthdayEnded("no go-ahead"))


def test_one_go_ahead_is_good_for_256_and_no_more() -> None:
    easy = Easy()
    easy.go(NOW + 1)
    easy.run(NOW + 60)
    assert len(easy.probes) == 256
    assert easy.ended == (NOW + 3.0, BirthdayEnded("no go-ahead", probes=256))


def test_go_aheads_fill_the_credit_up_and_do_not_add_to_it() -> None:
    easy = Easy()
    for _ in range(50):
        easy.go(NOW + 1)
    easy.run(NOW + 60)
    assert len(easy.probes) == 5 + 256  # what had left before the last of them, and what that one is good for


def test_a_round_has_672_however_long_it_is_told_to_go_on() -> None:
    easy = Easy()
    for n in range(20):
        easy.go(NOW + 0.4 * n)
    assert len(easy.probes) == 672
    assert easy.probes[-1][0] < NOW + 672 / 500 + 0.05
    assert easy.ended is not None
    assert easy.ended[1] == BirthdayEnded("every guess was wrong", probes=672)
    assert easy.ended[0] == pytest.approx(easy.probes[-1][0] + 0.3)  # the last one may still be answered
    assert easy.side.dropped["go-ahead of another round"] == 20 - 5


@pytest.mark.parametrize("late", [0.0, 0.0011, 0.004, 0.03, 0.5])
def test_however_late_timers_come_the_rate_is_kept(late: float) -> None:
    easy = Easy(late=late)
    for n in range(8):
        easy.go(NOW + 0.4 * n)
    assert within(easy.probes, 0.0049) == 5
    assert within(easy.probes, 0.999) <= 500 + 5
    if late > 0.01:
        assert len(easy.probes) < 672


@pytest.mark.parametrize(
    ("rtt", "patience", "probes"),
    [
        (0.0, 0.1, 672),
        (0.1, 0.3, 672),
        (0.44, 0.98, 672),
        (0.45, 0.9, 672),
        (0.7, 0.9, 672),
        (0.95, 1.05, 336),
        (1.6, 1.7, 336),
    ],
)
def test_probes_wait_for_an_answer_and_count_as_often_as_kernels_repeat_them(rtt: float, patience: float, probes: int) -> None:
    easy = Easy(rtt=rtt)
    for n in range(60):
        easy.go(NOW + 0.4 * n)
    assert list(easy.patience) == pytest.approx([patience])
    assert patience > rtt
    assert len(easy.probes) == probes
    assert len(easy.probes) * (1 + int(patience)) == 672
    assert within(easy.probes, patience - 1e-6) <= 256


@pytest.mark.parametrize("probes", [1, 256, 300])
def test_it_sends_no_more_than_it_may(probes: int) -> None:
    easy = Easy(probes=probes)
    for n in range(8):
        easy.go(NOW + 0.4 * n)
    assert len(easy.probes) == probes
    assert easy.ended is not None


def test_no_more_wait_for_an_answer_than_there_are_sockets() -> None:
    easy = Easy(open_most=64)
    for n in range(8):
        easy.go(NOW + 0.4 * n)
    assert within(easy.probes, 0.3 - 1e-6) == 64


def test_what_is_repeated_counts_towards_the_credit_too() -> None:
    easy = Easy(rtt=1.6)
    easy.go(NOW)
    easy.run(NOW + 60)
    assert len(easy.probes) == 128


def test_credit_gets_out_of_date_if_no_renewal_comes() -> None:
    easy = Easy(rtt=0.44)
    easy.go(NOW)  # 256 leave in 0.51 s and wait for 0.98 s each
    easy.go(NOW + 0.1)  # so that of this one only what it had left is used, before it is out of date
    easy.run(NOW + 60)
    assert len(easy.probes) == 256
    assert easy.side.state is EasyState.OVER


def test_a_timer_that_comes_when_the_credit_is_out_of_date_sends_nothing() -> None:
    easy = Easy(late=1.0)
    easy.go(NOW)
    easy.run(NOW + 60)
    assert len(easy.probes) == 5  # those that left with the go-ahead


@pytest.mark.parametrize("number", [0, 2, 999])
def test_a_go_ahead_of_another_round_does_not_count(number: int) -> None:
    easy = Easy(round_number=1)
    easy.go(NOW + 0.5, number=number)
    easy.run(NOW + 60)
    assert easy.probes == []
    assert easy.side.dropped == {"go-ahead of another round": 1}


def test_while_a_connection_is_tried_nothing_is_sent_whoever_invites() -> None:
    easy = Easy()
    easy.go(NOW)
    easy.run(NOW + 0.1)
    before = len(easy.probes)
    easy.side.connection_up()
    easy.side.connection_up()
    for n in range(1, 9):
        easy.go(NOW + 0.4 * n)
    assert len(easy.probes) == before
    assert easy.side.next_deadline() is None
    assert easy.ended is None


def test_when_it_came_to_nothing_the_next_go_ahead_counts() -> None:
    easy = Easy()
    easy.go(NOW)
    easy.side.connection_up()
    easy.side.connection_failed(NOW + 5)
    easy.run(NOW + 6)
    assert len(easy.probes) == 5
    easy.go(NOW + 6)
    easy.run(NOW + 60)
    assert len(easy.probes) == 5 + 256


def test_when_none_comes_after_that_it_ends() -> None:
    easy = Easy()
    easy.side.connection_up()
    easy.side.connection_failed(NOW + 5)
    easy.run(NOW + 60)
    assert easy.ended == (NOW + 7, BirthdayEnded("no go-ahead"))


def test_chosen_ends_it_at_once_and_twice_is_fine() -> None:
    easy = Easy()
    easy.go(NOW)
    easy.side.stop()
    easy.side.stop()
    assert easy.side.events() == [BirthdayEnded("chosen", probes=5)]
    assert easy.side.next_deadline() is None
    easy.go(NOW + 1)
    assert easy.side.events() == []


def test_it_begins_once() -> None:
    easy = Easy()
    with pytest.raises(LocalProtocolError, match="an easy side that is waiting takes no start"):
        easy.side.start(NOW)


# --- ports ------------------------------------------------------------------------------------------------------------------


def test_ports_are_distinct_and_allowed_and_drawn_from_everywhere() -> None:
    ports = Guesses(random.Random(1)).draw(20_000)
    assert len(set(ports)) == 20_000
    assert all(port_refusal(port) is None for port in ports)
    share = [sum(low <= port < low + 6451 for port in ports) / 20_000 for low in range(1024, 65_536, 6451)]
    assert all(0.09 < part < 0.11 for part in share[:10])


def test_two_rounds_draw_different_ports() -> None:
    source = random.Random(1)
    assert set(Guesses(source).draw(100)) != set(Guesses(source).draw(100))


@pytest.mark.parametrize("ports", [(50_000, 50_900, 51_000), (1024, 2000), (65_535, 65_000), (3, 900), (65_535, 61_440)])
def test_a_block_goes_first_for_one_credit(ports: tuple[int, ...]) -> None:
    guesses = Guesses(random.Random(1))
    guesses.narrow(ports)
    first, rest = guesses.draw(256), guesses.draw(256)
    assert all(max(ports) - 4096 < port < min(ports) + 4096 for port in first)
    assert not all(max(ports) - 4096 < port < min(ports) + 4096 for port in rest)
    assert len({*first, *rest}) == 512


@pytest.mark.parametrize("ports", [(), (50_000,), (50_000, 50_000), (50_000, 54_096), (2000, 30_000, 60_000)])
def test_ports_that_show_no_block_narrow_nothing(ports: tuple[int, ...]) -> None:
    guesses = Guesses(random.Random(1))
    guesses.narrow(ports)
    drawn = sorted(guesses.draw(256))
    assert drawn[-1] - drawn[0] > 50_000


def test_a_block_that_is_named_later_changes_nothing() -> None:
    one, other = Guesses(random.Random(1)), Guesses(random.Random(1))
    assert one.draw(5) == other.draw(5)
    other.narrow((50_000, 50_001))
    assert one.draw(50) == other.draw(50)


def test_the_first_go_ahead_says_where_to_begin() -> None:
    easy = Easy()
    easy.go(NOW, 50_000, 50_700)
    easy.run(NOW + 0.4)
    assert all(46_000 < port < 54_096 for _, port in easy.probes)


def test_probes_leave_in_even_steps() -> None:
    easy = Easy()
    easy.go(NOW)
    easy.run(NOW + 0.4)
    times = sorted({at for at, _ in easy.probes})
    assert [later - earlier for earlier, later in pairwise(times)] == pytest.approx([0.01] * (len(times) - 1))
