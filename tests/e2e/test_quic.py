"""Peers on loopback where no SYN gets through: QUIC carries what TCP would have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from p2ptunnel.net.tcp import Dialer
from p2ptunnel.protocol import detour
from p2ptunnel.types import Address
from tests.helpers import run
from tests.helpers.meeting import HELLO, HOME, conversation, echo, meeting


@pytest.fixture(autouse=True)
def no_syn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send no SYN to any peer, and wait for TCP's phases a tenth as long."""

    def nothing(self: Dialer, targets: Iterable[Address], **options: Any) -> None:
        """As if a firewall dropped them."""

    monkeypatch.setattr(Dialer, "start", nothing)
    monkeypatch.setattr(detour, "phase_length", lambda *_: 0.03)


def test_a_stream_comes_up_by_quic_and_carries_its_bytes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with meeting(tmp_path, "echo", relay="never") as there, there.home.serve({"echo": echo}):
            async with await there.laptop.connect(HOME, "echo") as stream:
                assert stream.path.transport == "quic"
                assert await conversation(stream) == HELLO
            [up] = there.laptop_events.named("connection_up")
            assert up.facts["how"] == "quic"

    run(scenario())


def test_quic_takes_over_from_the_relay(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            events = there.laptop.events()
            async with await there.laptop.connect(HOME, "echo") as stream:
                while stream.path.transport != "quic":
                    await anext(aiter(events))
                assert await conversation(stream) == HELLO

    run(scenario())


@pytest.mark.parametrize("moment", ["PunchStarted", "HoleOpened", "OpenQuic", "connection_up", "Nominate"])
def test_a_connect_that_is_cancelled_leaves_nothing(tmp_path: Path, moment: str) -> None:
    async def scenario() -> None:
        async with meeting(tmp_path, "echo", relay="never") as there, there.home.serve({"echo": echo}):
            connecting = asyncio.ensure_future(there.laptop.connect(HOME, "echo"))
            await there.laptop_events.told(moment)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting

    run(scenario())
