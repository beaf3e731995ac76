"""A session that is up: who may go on using it, and what it tells of itself.

How streams open and live in it, how it ends and what may happen under it: in the modules beside this one.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from p2ptunnel.defaults import CLOCK_MIN
from p2ptunnel.errors import AccessDeniedError, AccessRevokedError, ChannelClosedError
from p2ptunnel.identity.acl import AccessList
from p2ptunnel.identity.store import PeerStore
from p2ptunnel.session import live
from p2ptunnel.session.session import Session
from tests.helpers import run
from tests.helpers.peers import CALLEE, CALLER, Peers, sessions
from tests.unit.session.serving import echoing

# --- what is taken back -------------------------------------------------------------------------------------------------


def test_a_peer_that_is_removed_loses_its_session_within_a_second(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "peers.toml"
        PeerStore(path).add("laptop", CALLER.public, ("web",))
        peers = Peers()
        peers.access = AccessList(PeerStore(path))
        async with sessions(peers) as (caller, callee):
            ours, _ = await peers.stream(caller, "web")
            PeerStore(path).remove("laptop")
            began = time.monotonic()
            with pytest.raises(ChannelClosedError, match="access was revoked"):
                await ours.read()
            assert time.monotonic() - began < 1.5
            await caller.closed.wait()
            assert str(caller.error) == "the channel was closed by the peer: access was revoked"
            assert str(callee.error) == "the channel was closed by us: access was revoked"
            again, _refusal = await peers.meet()
            assert not isinstance(again, Session)

    run(scenario())


def test_a_list_that_becomes_unreadable_denies_new_streams_and_ends_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SESSION_TICK", 0.01)

    async def scenario() -> None:
        path = tmp_path / "peers.toml"
        PeerStore(path).add("laptop", CALLER.public, ("web",))
        peers = Peers()
        peers.access = AccessList(PeerStore(path))
        async with sessions(peers) as (caller, _):
            ours, theirs = await peers.stream(caller, "web")
            path.write_text("nonsense")
            with pytest.raises(AccessDeniedError):
                await caller.open_confirmed("web")
            while not any(event.name == "access_unreadable" for event in peers.events[4:]):
                await asyncio.sleep(0.01)
            await ours.write(b"goes on")
            assert await theirs.read() == b"goes on"

    run(scenario())


def test_a_grant_ends_in_its_time_also_while_the_list_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SESSION_TICK", 0.01)
    now = CLOCK_MIN

    async def scenario() -> None:
        nonlocal now
        path = tmp_path / "peers.toml"
        store = PeerStore(path)
        store.add("laptop", CALLER.public, ("web",), until=now + 60)
        store.allow("laptop", "ssh")
        peers = Peers()
        peers.access = AccessList(PeerStore(path), lambda: now)
        async with sessions(peers) as (caller, _):
            (ends, _far), (stays, theirs) = await peers.stream(caller, "web"), await peers.stream(caller, "ssh")
            path.write_text("nonsense")
            now += 60
            with pytest.raises(AccessRevokedError):
                await ends.read()
            await stays.write(b"goes on")
            assert await theirs.read() == b"goes on"

    run(scenario())


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_session_and_its_events_show_no_secret() -> None:
    async def scenario() -> None:
        peers = echoing("web")
        async with sessions(peers) as (caller, callee):
            stream = await caller.open_confirmed("web")
            await stream.write(b"payload-payload")
            await stream.readexactly(15)
            shown = f"{caller!r} {callee!r} {stream!r} {peers.events!r} {caller.path!r}"
            assert f"<Session with home-nas ({CALLEE.public.short}): 1 streams, open>" in shown
            for secret in (peers.selector.hex(), "payload", repr(peers.selector), bytes([21] * 32).hex()):
                assert secret not in shown

    run(scenario())


def test_life_events_are_traced() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, _):
            with pytest.raises(AccessDeniedError):
                await caller.open_confirmed("no\u00e9")
        names = [(event.layer, event.name) for event in peers.events]
        assert names.count(("session", "up")) == names.count(("session", "down")) == 2
        assert ("session", "stream_denied") in names

    run(scenario())
