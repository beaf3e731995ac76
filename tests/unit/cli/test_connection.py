"""What is said about connections: one line an event, in words, and the same as an object."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import msgspec
import pytest

from p2ptunnel.cli import connection
from p2ptunnel.cli.connection import Narrator, facts, tell_connections, telling_beside
from p2ptunnel.cli.output import Output
from p2ptunnel.events import (
    AccessDecided,
    ApprovalAwaited,
    ChannelLost,
    ChannelOpened,
    EventHub,
    EventsDropped,
    PathChanged,
    PathSuspected,
    PeerEvent,
    ServerFound,
    ServerLost,
    SessionExpired,
    SessionResumed,
    SessionStalled,
)
from p2ptunnel.types import Path
from tests.helpers import run

NAS = "home-nas"


def path(port: int) -> Path:
    return Path(kind="direct", transport="tcp", local=("192.0.2.2", 40000), remote=("198.51.100.1", port))


def opened(port: int = 5122, session: int = 1) -> ChannelOpened:
    return ChannelOpened(tag=NAS, session=session, path=path(port))


def lost(cause: str = "the path has been dead for 3.0 s", patience: float = 600, session: int = 1) -> ChannelLost:
    return ChannelLost(tag=NAS, session=session, cause=cause, patience=patience)


def changed(port: int = 5123, session: int = 1) -> PathChanged:
    return PathChanged(tag=NAS, session=session, old=path(5122), new=path(port))


def resumed(gap: float = 1.84, replayed: int = 0, session: int = 1) -> SessionResumed:
    return SessionResumed(tag=NAS, session=session, gap=gap, replayed_bytes=replayed)


def expired(gap: float = 600.2, count: int = 0) -> SessionExpired:
    return SessionExpired(tag=NAS, session=1, gap=gap, unacknowledged_bytes=count, cause="no path")


STALLED = SessionStalled(tag=NAS, session=1)
SUSPECTED = PathSuspected(tag=NAS, session=1)
RELAYED = msgspec.structs.replace(path(7000), kind="relay")
BEGAN = ChannelOpened(tag=NAS, session=1, path=RELAYED)


def told(*events: PeerEvent | EventsDropped | float, at_once: bool = False) -> list[str]:
    """What is said about events that follow each other, a number being a pause; what only -v asks for begins with a star."""
    narrator, now, lines = Narrator(begins_at_once=at_once), 100.0, list[str]()

    def say(text: str, detail: str) -> None:
        lines.extend([*([text] if text else []), *([f"*{detail}"] if detail else [])])

    for event in events:
        if isinstance(event, float):
            over = now + event
            while (due := narrator.next_deadline()) is not None and due <= over:
                for words in narrator.settled(due):
                    say(*words)
            now = over
        else:
            dated = event if isinstance(event, EventsDropped) else msgspec.structs.replace(event, at=now)
            say(narrator.text(dated), narrator.detail(dated))
    return lines


def test_a_loss_and_what_follows_are_told_in_words() -> None:
    assert told(opened(), SUSPECTED, lost(), opened(5123), changed(), resumed(replayed=49_152)) == [
        "*home-nas: connected over 198.51.100.1:5122",
        "*home-nas: no sign of life; looking for another path",
        "home-nas: connection lost (the path has been dead for 3.0 s); waiting up to 10 min",
        "home-nas: connected again after 1.8 s over 198.51.100.1:5123; 48 KiB sent again",
    ]


def test_a_path_that_came_back_by_itself_is_named_as_it_was() -> None:
    assert told(opened(), lost(), resumed())[-1] == "home-nas: connected again after 1.8 s over 198.51.100.1:5122"


def test_a_path_that_changes_without_a_loss_is_told_as_no_loss() -> None:
    assert told(opened(), SUSPECTED, opened(5123), changed(), 3.0)[2:] == [MOVED]


MOVED = "home-nas: moved to a new connection over 198.51.100.1:5123"


def test_the_relay_is_called_so_and_it_is_said_when_it_is_left() -> None:
    left = PathChanged(tag=NAS, session=1, old=RELAYED, new=path(5123))
    assert told(BEGAN, 2.0, left, 2.0) == ["*home-nas: connected over the relay 198.51.100.1:7000", MOVED]


def test_from_the_relay_to_a_direct_path_just_after_the_start_is_one_line() -> None:
    left = PathChanged(tag=NAS, session=1, old=RELAYED, new=path(5123))
    assert told(BEGAN, 1.9, left, 1.9) == []
    assert told(BEGAN, 1.9, left, 2.0) == ["*home-nas: connected over 198.51.100.1:5123"]
    assert told(BEGAN, left, 2.0, at_once=True) == ["*home-nas: connected over the relay 198.51.100.1:7000", MOVED]


def test_a_change_that_does_not_last_is_not_told() -> None:
    back = PathChanged(tag=NAS, session=1, old=path(5123), new=path(5122))
    assert told(opened(), 5.0, changed(), 1.9, back, 60.0)[1:] == []
    assert told(opened(), 5.0, changed(), 2.1, back, 2.1)[1:] == [MOVED, MOVED.replace("5123", "5122")]


def test_changes_in_a_row_are_told_once_they_have_settled() -> None:
    steps = [step for port in (6000, 6001, 6002, 5123) for step in (changed(port), 1.0)]
    assert told(opened(), 5.0, *steps)[1:] == []
    assert told(opened(), 5.0, *steps, 1.0)[1:] == [MOVED]


def test_a_loss_takes_a_change_with_it_that_was_not_told() -> None:
    assert told(opened(), changed(), lost(), 60.0, resumed(), 60.0)[1:] == [
        "home-nas: connection lost (the path has been dead for 3.0 s); waiting up to 10 min",
        "home-nas: connected again after 1.8 s over 198.51.100.1:5123",
    ]
    assert told(opened(), changed(), expired(), 60.0)[1:] == ["home-nas: gave up after 10 min (no path)"]


def test_a_session_of_which_only_the_change_was_seen_has_moved() -> None:
    assert told(changed(), 2.0) == [MOVED]
    assert told(changed(5122), 2.0) == []


def test_two_sessions_settle_apart() -> None:
    both = (opened(), opened(6000, session=2), 5.0, changed(), 1.0, changed(6001, session=2))
    other = MOVED.replace("5123", "6001")
    assert told(*both, 1.0)[2:] == [MOVED]
    assert told(*both, 2.0)[2:] == [MOVED, other]


def test_what_has_settled_is_said_while_nothing_happens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_SETTLED", 0.05)

    async def main() -> str:
        hub = EventHub()
        telling = asyncio.ensure_future(tell_connections(hub.listen(), Output()))
        hub(changed(6000))
        hub(changed(5123))
        said = ""
        while not said:
            await asyncio.sleep(0)
            said = capsys.readouterr().err
        hub.close()
        await telling
        return said + capsys.readouterr().err

    assert run(main()) == f"{MOVED}\n"


def test_who_stops_telling_leaves_nothing() -> None:
    async def main() -> None:
        hub, before = EventHub(), asyncio.all_tasks()
        telling = asyncio.ensure_future(tell_connections(hub.listen(), Output()))
        hub(BEGAN)
        for _ in range(10):
            await asyncio.sleep(0)
        telling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await telling
        assert asyncio.all_tasks() == before

    run(main())


def test_two_sessions_with_one_peer_are_told_apart() -> None:
    both = (opened(), opened(6000, session=2), lost(), lost(session=2), changed(), resumed(), changed(6001, session=2))
    assert told(*both, resumed(session=2))[-2:] == [
        "home-nas: connected again after 1.8 s over 198.51.100.1:5123",
        "home-nas: connected again after 1.8 s over 198.51.100.1:6001",
    ]


def test_while_a_connection_is_waited_for_nobody_is_reminded_of_it() -> None:
    assert len(told(opened(), lost(), SUSPECTED, SUSPECTED)) == 2


def test_a_program_that_stands_still_is_no_lost_connection() -> None:
    assert told(opened(), STALLED, resumed(gap=12))[1:] == [
        "home-nas: its program does not answer, though the connection stands; waiting",
        "home-nas: its program answers again, after 12 s",
    ]
    assert told(opened(), STALLED, lost(), resumed())[-1].startswith("home-nas: connected again after 1.8 s")


def test_the_end_of_patience_is_told_with_what_may_be_lost() -> None:
    assert told(expired(count=49_152)) == ["home-nas: gave up after 10 min (no path); 48 KiB unconfirmed"]
    assert told(expired()) == ["home-nas: gave up after 10 min (no path)"]
    again = told(opened(), lost(), expired(), opened(7000), lost(), resumed())
    assert again[-1] == "home-nas: connected again after 1.8 s over 198.51.100.1:7000"  # nothing of the old session is left


def test_numbers_of_the_kernels_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert "lost (Connection reset by peer);" in told(lost("[Errno 104] Connection reset by peer"))[0]
    output = Output()
    output.say("said: [Errno 2] No such file")
    output.problem("failed: [Errno -3] No name", kind="", layer="", code=0)
    assert capsys.readouterr().err == "said: No such file\np2ptunnel: failed: No name\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.05, "0.05 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59, "59 s"),
        (60, "1 min"),
        (90, "1.5 min"),
        (5400, "1.5 h"),
        (172_800, "2 d"),
    ],
)
def test_times_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert told(expired(gap=seconds)) == [f"home-nas: gave up after {text} (no path)"]


def test_what_takes_no_time_to_speak_of_is_at_once() -> None:
    assert told(opened(), lost(), resumed(gap=0.04))[-1] == "home-nas: connected again at once over 198.51.100.1:5122"


def test_a_connection_that_carried_nothing_is_missed_only_with_v() -> None:
    idle = (lost(patience=30), changed(), resumed(replayed=8))
    assert all(line.startswith("*") for line in told(opened(), *idle, lost(patience=30), expired()))
    assert told(opened(), *idle)[2] == "*home-nas: connected again after 1.8 s over 198.51.100.1:5123; 8 B sent again"
    assert not told(opened(), lost(patience=30), lost(), resumed())[-1].startswith("*")
    assert told(opened(), *idle, STALLED, resumed())[-1] == "home-nas: its program answers again, after 1.8 s"
    assert told(lost(patience=30), expired(count=1))[1] == "home-nas: gave up after 10 min (no path); 1 B unconfirmed"


def test_who_is_patient_for_less_has_all_losses_told() -> None:
    narrator = Narrator(patience=20)
    assert narrator.text(lost(patience=20))
    assert narrator.text(resumed())


@pytest.mark.parametrize(("count", "text"), [(1023, "1023 B"), (1024, "1 KiB"), (1 << 20, "1.0 MiB"), (3_400_000, "3.2 MiB")])
def test_sizes_are_said_as_people_say_them(count: int, text: str) -> None:
    assert told(resumed(replayed=count))[0].endswith(f"; {text} sent again")


def test_what_was_missed_is_counted() -> None:
    assert told(EventsDropped(7)) == ["7 events came too fast to be told"]
    assert facts(EventsDropped(7)) == {"event": "events_dropped", "count": 7}


def test_a_server_that_is_lost_and_found_is_said() -> None:
    lost = ServerLost(tag="nas", server="192.0.2.1:7000", cause="no answer")
    assert told(lost, ServerFound(tag="nas", server="192.0.2.1:7000")) == [
        "192.0.2.1:7000: no answer; nobody new finds nas, open connections go on",
        "192.0.2.1:7000: nas is found again",
    ]


def test_questions_to_an_owner_are_said_on_both_sides() -> None:
    assert told(ApprovalAwaited(tag="nas", service="ssh", patience=30)) == [
        "nas: waiting for approval of ssh there, up to 30 s"
    ]
    decided = AccessDecided(tag="laptop", id=7, service="ssh", decision="hour", by="owner")
    unanswered = AccessDecided(tag="laptop", id=8, service="ssh", decision="no", by="timeout")
    assert told(decided, unanswered) == ["laptop: ssh: hour", "laptop: ssh: nobody answered"]


def test_an_object_has_the_events_name_the_peer_and_its_facts() -> None:
    event = ChannelLost(tag=NAS, session=3, cause="x", patience=600.0, time=1.5, at=7.0)
    assert facts(event) == {
        "event": "channel_lost",
        "peer": "home-nas",
        "session": 3,
        "time": 1.5,
        "cause": "x",
        "patience": 600.0,
    }
    assert facts(changed())["new"]["remote"] == ("198.51.100.1", 5123)


def ended(*events: PeerEvent) -> AsyncIterator[PeerEvent | EventsDropped]:
    """Return an iterator of events that ends behind them."""
    hub = EventHub()
    listener = hub.listen()
    for event in events:
        hub(event)
    hub.close()
    return listener


EVENTS = (opened(), lost(), changed(), resumed())


@pytest.mark.parametrize(("verbose", "lines"), [(0, 2), (1, 3)])
def test_words_go_to_stderr(verbose: int, lines: int, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(tell_connections(ended(*EVENTS), Output(verbose=verbose)))
    captured = capsys.readouterr()
    assert (captured.out, len(captured.err.splitlines())) == ("", lines)


def test_json_has_one_object_an_event_and_quiet_takes_the_words_only(capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(tell_connections(ended(*EVENTS), Output(as_json=True, quiet=True)))
    captured = capsys.readouterr()
    assert captured.err == ""
    objects = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["event"] for line in objects] == ["channel_opened", "channel_lost", "path_changed", "session_resumed"]
    assert {line["schema"] for line in objects} == {1}


@pytest.mark.parametrize(("verbose", "lines"), [(0, 0), (1, 3)])
def test_beside_another_program_only_v_says_it_and_stdout_stays_untouched(
    verbose: int, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async def all_of_it() -> None:
        hub = EventHub()
        told = asyncio.Event()
        async with telling_beside(_then(hub.listen(), told), Output(as_json=True, verbose=verbose)):
            for event in EVENTS:
                hub(event)
            hub.close()
            await told.wait()

    asyncio.run(all_of_it())
    captured = capsys.readouterr()
    assert (captured.out, len(captured.err.splitlines())) == ("", lines)


async def _then(
    events: AsyncIterator[PeerEvent | EventsDropped], ended: asyncio.Event
) -> AsyncIterator[PeerEvent | EventsDropped]:
    async for event in events:
        yield event
    ended.set()
