"""A path that dies under a session, and one that is only slow: seen through a NAT whose line can be cut."""

from __future__ import annotations

import asyncio
import time

import pytest

from p2ptunnel.errors import ChannelLostError
from p2ptunnel.testing.natlab import Lab, Site
from tests.helpers import run
from tests.helpers.lasting import through
from tests.helpers.paces import hasten
from tests.helpers.peers import Peers


@pytest.fixture
def site(natlab: Lab) -> Site:
    return natlab.site("pr", link=True)


def test_a_path_on_which_bytes_vanish_is_dead(natlab: Lab, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch, dead=1.0)

    async def scenario() -> None:
        peers = Peers("web")
        async with through(natlab, site, peers) as (caller, _callee):
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"before")
            assert await theirs.read() == b"before"
            site.link(down=True)
            began = time.monotonic()
            await ours.write(b"into the hole")
            with pytest.raises(ChannelLostError, match=r"the path has been dead for 1\.\d s"):
                await ours.read()
            assert 0.9 < time.monotonic() - began < 3

    run(scenario(), timeout=60)


def test_a_short_outage_is_survived(natlab: Lab, site: Site) -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with through(natlab, site, peers) as (caller, _):
            ours, theirs = await peers.stream(caller, "web")
            site.link(down=True)
            await ours.write(b"delayed")
            await asyncio.sleep(1)
            site.link(down=False)
            assert await theirs.read() == b"delayed"
            assert caller.error is None

    run(scenario(), timeout=60)


def test_windows_grow_with_a_long_path(natlab: Lab) -> None:
    """A window of 256 KiB gives 2.5 MB/s over 100 ms; the path here can carry more."""

    async def scenario() -> None:
        peers = Peers("web")
        far = natlab.site("pr", delay=0.05)
        async with through(natlab, far, peers) as (caller, callee):
            while callee.rtt is None or caller.rtt is None:
                await asyncio.sleep(0.01)
            assert caller.rtt == pytest.approx(0.1, abs=0.05)
            ours, theirs = await peers.stream(caller, "web")
            size = 12_000_000
            began = time.monotonic()
            writing = asyncio.ensure_future(ours.write(bytes(size)))
            await theirs.readexactly(size)
            await writing
            assert time.monotonic() - began < size / 2_500_000 * 0.75

    run(scenario(), timeout=60)
