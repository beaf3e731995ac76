"""`explain` and `ping` over a real server on loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2ptunnel.errors import ConfigError, UnknownPeerError
from p2ptunnel.session.ping import Pong
from p2ptunnel.traversal.explain import Explanation
from tests.helpers import run
from tests.helpers.meeting import HOME, conversation, echo, meeting
from tests.helpers.turns import descriptors, settle


def ways(told: Explanation) -> dict[str, set[str]]:
    """The outcomes of each way that was tried."""
    return {way: {each.outcome for each in told.tries if each.way == way} for way in {each.way for each in told.tries}}


def test_the_call_that_a_stream_runs_over_is_explained_without_another_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo", relay="never") as there, there.home.serve({"echo": echo}):
            async with await there.laptop.connect(HOME, "echo") as stream:
                told = await there.laptop.explain(HOME)
                assert there.dials == 1
                await conversation(stream)
            assert told.path is not None
            assert told.path.remote == stream.path.remote
            assert ways(told)["server"] == {"answered"}
            assert "connected" in ways(told)["tcp"]
            assert ways(told)["channel"] == {"connected"}
            assert all(each.end_ms is not None and each.start_ms <= each.end_ms for each in told.tries)

    run(main())


def test_without_a_call_one_is_made_that_opens_no_stream(tmp_path: Path) -> None:
    opened = asyncio.Event()

    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": lambda _: mark()}):
            told = await there.laptop.explain(HOME)
            again = await there.laptop.explain(HOME, probe=True)
            assert there.dials == 2
            assert told.path is not None
            assert again.path is not None
            assert again.began >= told.began
            assert not opened.is_set()

    async def mark() -> None:
        opened.set()

    run(main())


def test_over_the_relay_alone_it_is_the_relay_that_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo", relay="always") as there, there.home.serve({"echo": echo}):
            told = await there.laptop.explain(HOME)
            assert told.path is not None
            assert told.path.kind == "relay"
            assert ways(told) == {"server": {"answered"}, "relay": {"connected"}}

    run(main())


def test_a_peer_that_is_away_is_an_explanation_and_no_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there:
            told = await there.laptop.explain(HOME)
            assert told.path is None
            assert told.error == f"no peer is registered as {HOME!r}"
            assert told.hint.startswith("Check the tag")
            assert told.verdict == told.error
            assert [each.outcome for each in told.tries] == ["answered", "failed"]

    run(main())


def test_nothing_that_is_told_is_a_secret_of_the_attempt(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo", relay="never") as there, there.home.serve({"echo": echo}):
            told = await there.laptop.explain(HOME)
            session = there.laptop._up.session_with(there.laptop._pinned(HOME))
            assert session is not None
            shown = f"{told}{told!r}{told.svg()}"
            assert session.session_id.hex() not in shown
            assert str(there.laptop.key) not in shown
            assert str(there.home.key) not in shown

    run(main())


def test_who_is_not_known_cannot_be_explained(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            with pytest.raises(UnknownPeerError):
                await there.laptop.explain("nobody")

    run(main())


@pytest.mark.parametrize("event", ["CallOffered", "PunchStarted", "connection_up"])
def test_cancelling_an_explanation_leaves_nothing(tmp_path: Path, event: str) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there:
            before, tasks = descriptors(), len(asyncio.all_tasks())
            async with there.home.serve({"echo": echo}):
                explaining = asyncio.create_task(there.laptop.explain(HOME))
                await there.laptop_events.told(event)
                explaining.cancel()
                await asyncio.wait([explaining])
                assert explaining.cancelled()
            await settle(before, tasks)

    run(main())


def test_each_ping_tells_how_long_and_over_which_path(tmp_path: Path) -> None:
    heard: list[Pong] = []

    async def main() -> None:
        async with meeting(tmp_path, "echo", relay="never") as there, there.home.serve({"echo": echo}):
            report = await there.laptop.ping(HOME, count=2, tell=heard.append)
            assert tuple(heard) == report.pongs
            assert [pong.number for pong in report.pongs] == [1, 2]
            assert all(0 < rtt < 1 for rtt in report.rtts)
            assert len(report.rtts) == 2
            assert report.is_direct
            assert {pong.moved_from for pong in report.pongs} == {None}
            assert there.dials == 1

    run(main())


def test_until_direct_ends_with_the_first_answer_that_needs_no_relay(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            report = await there.laptop.ping(HOME, until_direct=True)
            assert report.is_direct
            assert report.pongs[-1].path is not None
            assert all(pong.path is not None and pong.path.kind == "relay" for pong in report.pongs[:-1])

    run(main())


def test_pings_over_the_relay_are_not_direct(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo", relay="always") as there, there.home.serve({"echo": echo}):
            report = await there.laptop.ping(HOME, count=1)
            assert len(report.rtts) == 1
            assert not report.is_direct
            with pytest.raises(ConfigError):
                await there.laptop.ping(HOME, until_direct=True)

    run(main())


def test_a_peer_that_is_gone_answers_no_ping(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo", resume_timeout=0) as there:
            serving = await there.home.serve({"echo": echo})
            gone = asyncio.Event()

            def leave(pong: Pong) -> None:
                if pong.number == 1:
                    closing.append(asyncio.create_task(there.home.close()))
                else:
                    gone.set()

            closing: list[asyncio.Task[None]] = []
            report = await there.laptop.ping(HOME, count=3, tell=leave)
            await asyncio.gather(*closing)
            await serving.close()
            assert gone.is_set()
            assert report.pongs[0].rtt is not None
            assert report.pongs[-1].rtt is None
            assert report.error

    run(main())


def test_no_pings_are_none(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there:
            with pytest.raises(ConfigError, match="a count of 0 pings"):
                await there.laptop.ping(HOME, count=0)

    run(main())
