"""What an attempt tries, as entries: by the events of its agent, by its dials, by whoever tries a way."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from p2ptunnel.errors import ChannelClosedError, ChannelLostError, NoPathError, PeerOfflineError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.net.dial import DialRecord
from p2ptunnel.protocol.birthday import BirthdayEnded, OpenHoles, SendProbes
from p2ptunnel.protocol.punch import AnswerProved, CallFailed, CallOffered, HoleOpened, PunchStarted
from p2ptunnel.traversal.tries import CallTries, Outcome, Tries, Try
from p2ptunnel.types import Address, CandidateKind, Path
from tests.helpers import run

SERVER: Address = ("203.0.113.1", 7000)
LOCAL: Address = ("192.168.1.17", 41000)
PEER: Address = ("198.51.100.7", 40001)
TOKEN = "5b" * 16
SELECTOR = "c4" * 16


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 10.0

    def __call__(self) -> float:
        return self.now


class World:
    """One attempt that began at 10 s."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.tries = Tries(self.clock)
        self.dials: list[DialRecord] = []

    def call(self) -> CallTries:
        return self.tries.call(SERVER, LOCAL, lambda: self.dials)

    def told(self) -> list[tuple[str, float, float | None, Outcome, str]]:
        return [(each.way, each.start_ms, each.end_ms, each.outcome, each.reason) for each in self.tries.all]


@pytest.fixture
def world() -> World:
    return World()


def at(world: World, ms: float) -> None:
    world.clock.now = 10.0 + ms / 1000


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            DialRecord(PEER, None, 10.0, 11.26, "refused", "Connection refused, 7 times"),
            "198.51.100.7:40001 SYN: Connection refused, 7 times after 1.3 s",
        ),
        (
            DialRecord(PEER, 2, 10.0, 10.3, "replaced", "given up"),
            "198.51.100.7:40001 SYN with TTL 2: no answer until then after 0.3 s",
        ),
        (
            DialRecord(("2001:db8::7", 40001), None, 10.0, 20.0, "silent", "no answer in 10 s"),
            "[2001:db8::7]:40001 SYN: no answer in 10 s after 10.0 s",
        ),
        (DialRecord(PEER, None, 10.0, None, None, ""), "198.51.100.7:40001 SYN: no answer yet"),
    ],
)
def test_a_dial_is_one_line(world: World, record: DialRecord, line: str) -> None:
    world.dials.append(record)
    assert world.call().lines == (line,)


def test_a_call_is_told_step_by_step_with_the_time_of_each(world: World) -> None:
    call = world.call()
    call.start()
    at(world, 50)
    call.note(CallOffered(TOKEN))
    at(world, 100)
    call.note(AnswerProved(SELECTOR, Identity.from_seed(bytes(32)).public))
    call.note(PunchStarted(TOKEN, PEER))
    at(world, 200)
    call.note(HoleOpened(TOKEN, PEER, 0.1))
    world.dials.append(DialRecord(PEER, None, 10.1, 10.2, "connected", "SYN 1"))
    call.close()
    assert world.told() == [
        ("server", 0, pytest.approx(50), "answered", "the peer is registered there"),
        ("server", pytest.approx(50), pytest.approx(100), "answered", "the peer has signed its answer"),
        ("udp", pytest.approx(100), pytest.approx(200), "answered", "UDP passes both ways, 100 ms there and back"),
        ("tcp", pytest.approx(100), pytest.approx(200), "connected", ""),
    ]
    assert {each.kind for each in world.tries.all if each.way in {"udp", "tcp"}} == {"srflx"}


def test_a_birthday_over_udp_is_one_line_with_all_its_sockets(world: World) -> None:
    call = world.call()
    call.start()
    call.note(PunchStarted(TOKEN, PEER))
    at(world, 300)
    call.note(OpenHoles(range(1), PEER, "udp", low=False, token=TOKEN))
    call.note(OpenHoles(range(1, 33), PEER, "udp", low=True, token=TOKEN))
    at(world, 900)
    call.note(HoleOpened(TOKEN, PEER, 0.1))
    call.note(BirthdayEnded("chosen", token=TOKEN))
    call.close()
    found = "UDP passes both ways with 198.51.100.7:40001, 100 ms there and back, 33 sockets"
    assert ("udp", pytest.approx(300), pytest.approx(900), "answered", found) in world.told()
    assert ("udp", 0, pytest.approx(900), "silent", "no answer") in world.told()  # the port that was seen was not it
    assert call.lines == ()


def test_one_that_has_missed_says_how_many_guesses_it_had(world: World) -> None:
    call = world.call()
    call.start()
    for _ in range(2):
        call.note(SendProbes(PEER[0], (40_001, 40_002), "udp", 0.3, TOKEN))
    call.note(BirthdayEnded("every guess was wrong", token=TOKEN))
    call.close()
    assert call.lines == ("UDP birthday: every guess was wrong, 4 guesses",)


def test_one_that_was_not_waited_for_was_given_up(world: World) -> None:
    call = world.call()
    call.start()
    call.note(SendProbes(PEER[0], (40_001,), "udp", 0.3, TOKEN))
    call.close()
    assert ("udp", 0, 0, "given up", "given up, 1 guesses") in world.told()


def test_the_dials_of_a_second_round_are_told_with_the_port_that_they_leave_from(world: World) -> None:
    call = world.call()
    call.start()
    world.dials += [
        DialRecord(PEER, None, 10.0, 10.3, "silent", "no answer"),
        DialRecord(PEER, 2, 10.4, 10.5, "connected", "SYN 1", 40_009),
    ]
    call.close()
    first, second = (each for each in world.tries.all if each.way == "tcp")
    assert first.local is not None
    assert second.local == (first.local[0], 40_009)


def test_what_the_server_says_ends_the_question_to_it(world: World) -> None:
    call = world.call()
    call.start()
    at(world, 30)
    call.failed(CallFailed("offline", 404, "no such peer"), PeerOfflineError("nas"))
    call.close()
    assert world.tries.all[0].hint == PeerOfflineError("nas").hint
    assert world.told() == [("server", 0, pytest.approx(30), "failed", "no such peer")]


def test_what_nobody_has_answered_when_the_call_ends_was_silent_or_given_up(world: World) -> None:
    call = world.call()
    call.start()
    call.note(PunchStarted(TOKEN, PEER))
    at(world, 400)
    call.close()
    assert [(way, outcome) for way, _, _, outcome, _ in world.told()] == [("server", "answered"), ("udp", "silent")]


def test_dials_of_a_call_that_is_over_stay_as_they_were(world: World) -> None:
    call = world.call()
    call.start()
    world.dials.append(DialRecord(PEER, None, 10.0, 10.3, "silent", "no answer"))
    call.close()
    world.dials.clear()
    assert [each.outcome for each in world.tries.all if each.way == "tcp"] == ["silent"]


def test_a_call_that_never_began_is_closed_without_a_word(world: World) -> None:
    world.call().close()
    assert world.tries.all == ()


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [
        (ChannelLostError("reset"), "failed"),
        (OSError(101, "Network is unreachable"), "failed"),
        (ChannelClosedError("us: another way was faster"), "given up"),
        (asyncio.CancelledError(), "given up"),
        (None, "connected"),
    ],
)
def test_a_way_ends_as_its_block_does(world: World, raised: BaseException | None, outcome: Outcome) -> None:
    begun = world.tries.begin("relay", "t=6")
    at(world, 25)
    with contextlib.suppress(ChannelLostError, ChannelClosedError, OSError, asyncio.CancelledError), begun:
        if raised is not None:
            raise raised
    [told] = world.tries.all
    assert (told.outcome, told.end_ms) == (outcome, pytest.approx(25))


def test_what_was_said_first_about_an_end_holds(world: World) -> None:
    with world.tries.begin("relay", "t=6") as trying:
        trying.end("refused", "no relay here")
    [told] = world.tries.all
    assert (told.outcome, told.reason) == ("refused", "no relay here")


def test_a_connection_that_proves_nothing_is_a_line_of_the_error(world: World) -> None:
    call = world.call()
    path = Path(kind="direct", transport="tcp", local=LOCAL, remote=PEER)
    with pytest.raises(NoPathError), call.channel(path):
        raise NoPathError("home-nas", ())
    assert [line.partition(":")[2] for line in call.lines] == ["40001 connected: no path to home-nas: 0 tried (no candidate)"]


def test_what_others_say_is_cleaned(world: World) -> None:
    world.tries.begin("server", "t=4").end("failed", "a\x1b[31mred\nline")
    assert world.tries.all[0].reason == "a\\x1b[31mred\\x0aline"


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        (PEER[0], "srflx"),
        ("198.51.100.99", "mapped"),
        ("192.168.77.5", "mapped"),
        ("100.64.0.9", "mapped"),
        ("2001:db8::7", "host"),
        ("127.0.0.1", "host"),
        ("nonsense", "host"),
    ],
)
def test_a_candidate_is_told_by_its_address(world: World, host: str, kind: CandidateKind) -> None:
    call = world.call()
    call.note(PunchStarted(TOKEN, PEER))
    world.dials.append(DialRecord((host, 40001), None, 10.0, None, None, ""))
    assert call.dials[0].kind == kind


def test_no_secret_of_a_call_stands_in_what_is_told(world: World) -> None:
    call = world.call()
    call.start()
    call.note(CallOffered(TOKEN))
    call.note(AnswerProved(SELECTOR, Identity.from_seed(bytes(32)).public))
    call.note(PunchStarted(TOKEN, PEER))
    call.close()
    assert TOKEN not in repr(world.tries.all)
    assert SELECTOR not in repr(world.tries.all)


def test_idle_is_when_nothing_is_tried_any_more() -> None:
    async def main() -> None:
        tries = Tries()
        call = tries.call(SERVER, LOCAL, tuple)
        with tries.working():
            call.start()
            waiting = asyncio.create_task(tries.wait_idle())
        for _ in range(3):
            await asyncio.sleep(0)
        assert not waiting.done()
        call.close()
        await asyncio.wait_for(waiting, 1)

    run(main())


def test_an_entry_under_way_says_so() -> None:
    assert str(Try(way="tcp", remote=PEER, sent="SYN", start_ms=0)) == "198.51.100.7:40001 SYN: no answer yet"
