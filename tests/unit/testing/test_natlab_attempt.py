"""What a timed call says of itself: since when it was on a direct path, and why it was not."""

from __future__ import annotations

import asyncio
import time
from typing import Literal

import pytest

from p2ptunnel.events import ChannelOpened, EventHub, PathChanged
from p2ptunnel.testing.natlab.attempt import until_direct, why_relayed
from p2ptunnel.traversal.explain import Explained, Explanation
from p2ptunnel.types import Path
from tests.helpers import run


def path(kind: Literal["direct", "relay"]) -> Path:
    return Path(kind=kind, transport="tcp", local=("192.0.2.1", 1), remote=("192.0.2.2", 2))


RELAY, DIRECT = path("relay"), path("direct")


def opened(on: Path, at: float) -> ChannelOpened:
    return ChannelOpened(tag="home-nas", path=on, at=at)


def changed(to: Path, at: float) -> PathChanged:
    return PathChanged(tag="home-nas", old=RELAY, new=to, at=at)


@pytest.mark.parametrize(
    ("told", "since"),
    [
        ([opened(DIRECT, 1.0)], 1.0),
        ([opened(RELAY, 1.0), opened(DIRECT, 2.0), changed(DIRECT, 3.0)], 3.0),
        ([opened(RELAY, 1.0), opened(DIRECT, 2.0)], None),
        ([opened(RELAY, 1.0), changed(RELAY, 2.0)], None),
        ([], None),
    ],
)
def test_a_direct_path_is_in_use_with_the_first_channel_or_when_the_path_has_changed(
    told: list[ChannelOpened | PathChanged], since: float | None
) -> None:
    async def main() -> None:
        hub = EventHub()
        events = hub.listen(ChannelOpened, PathChanged)
        for event in told:
            hub(event)
        hub.close()
        assert await until_direct(events, time.monotonic() + 10) == since

    run(main())


def test_a_direct_path_that_does_not_come_is_waited_for_until_the_end_and_no_longer() -> None:
    async def main() -> None:
        hub = EventHub()
        hub_events = hub.listen(ChannelOpened, PathChanged)
        hub(opened(RELAY, 1.0))
        assert await until_direct(hub_events, time.monotonic() + 0.01) is None
        waiting = asyncio.create_task(until_direct(hub_events, time.monotonic() + 10))
        await asyncio.sleep(0)
        hub(changed(DIRECT, 5.0))
        assert await waiting == 5.0

    run(main())


def test_why_a_call_was_relayed_names_each_direct_way_and_how_it_ended() -> None:
    tries = (
        Explained(way="server", sent="t=4", start_ms=0.0, outcome="answered"),
        Explained(way="relay", sent="t=6", start_ms=1.0, outcome="connected"),
        Explained(way="udp", sent="t=31", start_ms=2.0),
        *(Explained(way="tcp", sent="SYN", start_ms=3.0, end_ms=9.0, outcome="silent", reason="no answer") for _ in range(2)),
        Explained(way="tcp", sent="birthday", start_ms=4.0, end_ms=9.0, outcome="failed", reason="missed, 1024 guesses"),
    )
    explanation = Explanation(tag="home-nas", began=0.0, path=RELAY, tries=tries)
    assert why_relayed(explanation) == "udp t=31: under way; 2 x tcp SYN: no answer; tcp birthday: missed, 1024 guesses"
    assert why_relayed(Explanation(tag="home-nas", began=0.0, path=RELAY)) == "no direct way was tried"
