"""What explain and ping tell of calls through real NATs: one that gets through, one that cannot, one by the relay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from p2ptunnel.peer import Peer
from p2ptunnel.protocol import callee, caller
from p2ptunnel.session.ping import PingReport
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.traversal.explain import Explanation
from tests.helpers.homes import Homes
from tests.helpers.meeting import HOME, LAPTOP
from tests.natlab.test_relay import homes

pytestmark = pytest.mark.natlab
PUNCH = 2.0
"""Seconds after which an attempt is over, instead of ten."""


def told(there: Homes, explain: Callable[[Peer], Awaitable[Explanation]]) -> Explanation:
    """What a peer at the caller's site is told."""
    found: list[Explanation] = []

    async def work(peer: Peer) -> None:
        found.append(await explain(peer))

    there.call(work)
    return found[0]


@pytest.fixture
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    for agents in (caller, callee):
        monkeypatch.setattr(agents, "PUNCH_TIMEOUT", PUNCH)


def test_a_call_that_gets_through_tells_each_step_and_the_way_it_took(natlab: Lab, tmp_path: Path) -> None:
    with homes(natlab, tmp_path, delay=0.025) as there:
        found = told(there, lambda peer: peer.explain(HOME))
        assert found.path is not None
        assert (found.path.kind, found.path.transport, found.path.remote[0]) == ("direct", "tcp", there.home.wan_address)
        won = [each for each in found.tries if each.way == "channel" and each.outcome == "connected"]
        assert len(won) == 1
        assert won[0].remote == found.path.remote
        assert {"server", "lan", "udp", "tcp", "relay", "channel"} == {each.way for each in found.tries}
        assert {each.kind for each in found.tries if each.way in {"tcp", "udp"}} == {"srflx"}
        assert all(each.end_ms is not None for each in found.tries)
        asked = [each for each in found.tries if each.way == "server"]
        assert all(each.end_ms is not None and each.end_ms - each.start_ms >= 45 for each in asked)  # 50 there and back
        assert found.verdict.startswith(f"home-nas: connected, direct tcp {there.home.wan_address}:")


@pytest.mark.usefixtures("in_haste")
def test_a_call_that_nothing_opens_tells_every_pair_and_what_to_do(natlab: Lab, tmp_path: Path) -> None:
    with homes(natlab, tmp_path, kind="symR") as there:

        async def explain(peer: Peer) -> Explanation:
            async with Peer(LAPTOP, rendezvous=there.server, profile=peer.profile.directory, relay="never") as direct:
                return await direct.explain(HOME)

        found = told(there, explain)
        assert found.path is None
        assert found.error.startswith("no path to home-nas: ")
        assert found.hint.startswith("`p2ptunnel explain home-nas`")
        dials = [each for each in found.tries if each.way == "tcp"]
        assert dials
        assert {each.outcome for each in dials} <= {"silent", "replaced", "refused"}
        assert [each.outcome for each in found.tries if each.way == "udp"] == ["silent"]
        assert found.tries[-1].end_ms is not None
        assert 1000 * PUNCH <= found.duration_ms < 3000 * PUNCH
        assert "next: No datagram got through" in str(found)


@pytest.mark.usefixtures("in_haste")
def test_a_call_by_the_relay_tells_why_not_directly(natlab: Lab, tmp_path: Path) -> None:
    with homes(natlab, tmp_path, kind="symR") as there:
        found = told(there, lambda peer: peer.explain(HOME))
        assert found.path is not None
        assert found.path.kind == "relay"
        assert [each.outcome for each in found.tries if each.way == "relay"] == ["connected"]
        assert not [each for each in found.tries if each.way == "channel"]
        assert all(each.end_ms is not None for each in found.tries)  # the direct call was waited for
        assert "next: " in str(found)


def test_ping_until_direct_ends_when_the_direct_path_carries(natlab: Lab, tmp_path: Path) -> None:
    with homes(natlab, tmp_path, delay=0.025) as there:
        found: list[PingReport] = []

        async def work(peer: Peer) -> None:
            found.append(await peer.ping(HOME, until_direct=True))

        there.call(work)
        [report] = found
        assert report.is_direct
        *before, last = report.pongs
        assert all(pong.path is not None and pong.path.kind == "relay" for pong in before)
        assert last.path is not None
        assert last.path.remote[0] == there.home.wan_address
        assert (last.moved_from is not None) is bool(before)
        assert all(rtt >= 0.09 for rtt in report.rtts)


def test_ping_until_direct_is_over_in_time_where_nothing_becomes_direct(natlab: Lab, tmp_path: Path) -> None:
    with homes(natlab, tmp_path, kind="symR") as there:
        found: list[PingReport] = []

        async def work(peer: Peer) -> None:
            found.append(await peer.ping(HOME, until_direct=True, timeout=2))

        there.call(work)
        [report] = found
        assert not report.is_direct
        assert len(report.rtts) == len(report.pongs) >= 2
