"""What a peer holds: which of its ports have the server asked about our NATs, and who is told what came of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2ptunnel.protocol.nat import Habits
from p2ptunnel.traversal.habits import NatHabits
from p2ptunnel.traversal.port import PunchPort
from p2ptunnel.types import RelayUse
from tests.helpers import run
from tests.helpers.meeting import echo, meeting


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> list[PunchPort]:
    """The ports about whose NATs was asked."""
    ports: list[PunchPort] = []
    monkeypatch.setattr(NatHabits, "learn", lambda _, port: ports.append(port))
    return ports


@pytest.mark.parametrize(("relay", "expected"), [("auto", True), ("never", True), ("always", False)])
def test_who_punches_has_its_nats_looked_at(tmp_path: Path, learning: list[PunchPort], relay: RelayUse, expected: bool) -> None:
    async def main() -> None:
        async with meeting(tmp_path, relay=relay) as there:
            port = await there.laptop._calling.open_spare()
            assert (port in learning) is expected
            port.close()

    run(main())


def test_who_has_been_closed_meanwhile_asks_nothing(tmp_path: Path, learning: list[PunchPort]) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            opening = asyncio.create_task(there.laptop._calling.open_spare())
            await asyncio.sleep(0)
            await there.laptop.close()
            port = await opening
            assert port not in learning
            port.close()

    run(main())


def test_what_was_found_out_is_told_to_whoever_calls_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [Habits()]
    monkeypatch.setattr(NatHabits, "known", lambda *_: known[0])

    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            up = there.home._up
            assert up.answering is not None
            assert up.answering._machine.view.hints.crosses is None
            known[0] = Habits(crosses=False, is_open=False)
            up._habits_learned()
            hints = up.answering._machine.view.hints
            assert (hints.crosses, hints.is_open) == (False, False)
            there.laptop._up._habits_learned()  # who serves nothing tells nobody

    run(main())
