"""A session with several channels: it runs over the best one, leaves one in doubt at once, and loses no byte by any of it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Literal

import pytest

from p2ptunnel.defaults import CHANNELS_MAX
from p2ptunnel.errors import ChannelClosedError, LocalProtocolError
from p2ptunnel.events import ChannelLost, ChannelOpened, PathChanged, PathSuspected, PeerEvent, SessionResumed, SessionStalled
from p2ptunnel.net import tcpinfo
from p2ptunnel.net.sockets import LINUX
from p2ptunnel.protocol import link, paths
from p2ptunnel.protocol.link import Health
from p2ptunnel.session import live, standby
from p2ptunnel.session.session import Session, SessionOptions, add_channel, connect_session
from p2ptunnel.transports.tcp import TcpPipe
from p2ptunnel.types import Path
from p2ptunnel.wire.frames import GoAwayCode
from tests.helpers import run
from tests.helpers.lasting import cut, digest, until
from tests.helpers.paces import hasten
from tests.helpers.peers import Peers, Wire, tcp_pair
from tests.helpers.turns import cancelled_after, descriptors, settle

Kind = Literal["lan", "direct", "relay"]
SIZE = 12_000_000


def labelled(sock: socket.socket, kind: Kind) -> TcpPipe:
    """A connected socket as a pipe of this kind."""
    local, remote = sock.getsockname()[:2], sock.getpeername()[:2]
    return TcpPipe(sock, Path(kind=kind, transport="tcp", local=local, remote=remote, why="a test"))


class Several(Peers):
    """Peers whose session may have several channels; nobody dials by himself."""

    def __init__(self, *services: str) -> None:
        super().__init__(*services)
        self.told: list[PeerEvent] = []
        self.options = SessionOptions(resume_timeout=60, on_event=self.told.append)

    async def begin(self, kind: Kind, ends: tuple[socket.socket, socket.socket] | None = None) -> tuple[Session, Session]:
        """The session's two ends, over a channel of this kind."""
        client, server = ends or tcp_pair()
        calling = connect_session(
            labelled(client, kind),
            identity=self.caller,
            tag="home-nas",
            peer_key=self.expected,
            selector=self.selector,
            options=self.options,
            tracer=self.tracer,
        )
        caller, callee = await asyncio.gather(calling, self.accept(server, over_relay=kind == "relay"))
        return caller, callee

    async def add(self, caller: Session, kind: Kind, ends: tuple[socket.socket, socket.socket] | None = None) -> None:
        """Bring up another channel beside."""
        client, server = ends or tcp_pair()
        self.selector = os.urandom(16)
        accepting = asyncio.ensure_future(self.accept(server, over_relay=kind == "relay"))
        try:
            await add_channel(caller, labelled(client, kind), identity=self.caller, selector=self.selector)
        finally:
            await asyncio.gather(accepting, return_exceptions=True)

    def kinds_told(self, tag: str = "home-nas") -> list[type[PeerEvent]]:
        """What one session has told, but of channels that came up."""
        return [type(event) for event in self.told if event.tag == tag and not isinstance(event, ChannelOpened)]


@asynccontextmanager
async def begun(peers: Several, kind: Kind, wire: Wire | None = None) -> AsyncGenerator[tuple[Session, Session]]:
    caller, callee = await peers.begin(kind, (wire.client, wire.server) if wire else None)
    try:
        yield caller, callee
    finally:
        await asyncio.gather(caller.close(grace=0), callee.close(grace=0))
        if wire:
            await wire.close()


async def resumed(session: Session, times: int) -> None:
    await until(lambda: session.resumes == times)


def kinds(session: Session) -> list[str]:
    return sorted(leg.path.kind for leg in session._legs.values())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lasts seconds lasts fractions of one."""
    monkeypatch.setattr(live, "SESSION_TICK", 0.02)
    monkeypatch.setattr(paths, "SWITCH_PROOF", 0.15)
    monkeypatch.setattr(paths, "SWITCH_PAUSE", 0.4)
    monkeypatch.setattr(link, "_MEASURE_AGAIN", 0.03)
    hasten(monkeypatch, dead=10)


# --- up ---------------------------------------------------------------------------------------------------------------


def test_a_direct_channel_takes_over_from_the_relay_while_bytes_flow() -> None:
    async def scenario() -> None:
        peers = Several("digest")
        peers.on_open = digest
        async with begun(peers, "relay") as (caller, callee):
            stream, block = await caller.open_confirmed("digest"), os.urandom(SIZE)
            await stream.write(block[: SIZE // 2])
            began = time.monotonic()
            await peers.add(caller, "direct")
            for start in range(SIZE // 2, SIZE, SIZE // 8):
                await stream.write(block[start : start + SIZE // 8])
                await until(lambda: caller.path.kind == "direct")
            assert time.monotonic() - began < 2
            await stream.write_eof()
            assert await stream.read() == hashlib.sha256(block).digest()
            assert peers.kinds_told() == [PathChanged]
            [moved] = [event for event in peers.told if isinstance(event, PathChanged) and event.tag == "home-nas"]
            assert (moved.old.kind, moved.new.kind) == ("relay", "direct")
            assert kinds(caller) == ["direct", "relay"]  # which stays warm
            assert len(callee._legs) == 2
            assert caller.resumes == callee.resumes == 1

    run(scenario())


def test_a_relay_beside_a_direct_channel_waits() -> None:
    async def scenario() -> None:
        peers = Several("web")
        async with begun(peers, "direct") as (caller, callee):
            await peers.add(caller, "relay")
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"hello")
            assert await theirs.read() == b"hello"
            await until(lambda: all(known.round_trips >= 4 for known in map(caller._endpoint.link, caller._legs)))
            assert (caller.path.kind, kinds(caller), len(callee._legs)) == ("direct", ["direct", "relay"], 2)
            assert peers.kinds_told() == []

    run(scenario())


# --- down -------------------------------------------------------------------------------------------------------------


def test_where_the_channel_in_use_is_cut_the_session_goes_on_over_the_standby_with_every_byte() -> None:
    async def scenario() -> None:
        peers = Several("digest")
        peers.on_open = digest
        async with begun(peers, "direct") as (caller, callee):
            stream, block = await caller.open_confirmed("digest"), os.urandom(SIZE)
            await peers.add(caller, "relay")
            await stream.write(block[: SIZE // 2])
            cut(caller)
            await stream.write(block[SIZE // 2 :])
            await stream.write_eof()
            assert await stream.read() == hashlib.sha256(block).digest()
            assert peers.kinds_told() == [ChannelLost, PathChanged, SessionResumed]
            assert (caller.path.kind, kinds(caller), len(callee._legs)) == ("relay", ["relay"], 1)
            assert not caller.in_doubt.is_set()

    run(scenario())


def test_a_session_goes_to_and_fro_between_two_kinds_and_loses_nothing() -> None:
    async def scenario() -> None:
        peers = Several("digest")
        peers.on_open = digest
        async with begun(peers, "relay") as (caller, _):
            stream, block = await caller.open_confirmed("digest"), os.urandom(SIZE)
            for number in range(6):
                part = slice(number * SIZE // 6, (number + 1) * SIZE // 6)
                await peers.add(caller, "relay" if caller.path.kind == "direct" else "direct")
                await resumed(caller, number + 1)  # the first direct one takes over by itself
                await stream.write(block[part])
                cut(caller)
                await resumed(caller, number + 2)
            await stream.write_eof()
            assert await stream.read() == hashlib.sha256(block).digest()

    run(scenario())


def test_a_caller_without_streams_goes_on_over_its_standby() -> None:
    async def scenario() -> None:
        peers = Several("web")
        async with begun(peers, "direct") as (caller, _):
            await peers.add(caller, "relay")
            await until(lambda: caller._endpoint.unacknowledged == 0)
            cut(caller)
            await until(lambda: caller.path.kind == "relay")
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"hello")
            assert await theirs.read() == b"hello"

    run(scenario())


@pytest.mark.parametrize("knows_kernel", [False, pytest.param(True, marks=pytest.mark.skipif(not LINUX, reason="Linux tells"))])
def test_after_a_silent_cut_bytes_flow_again_in_one_and_a_half_seconds(
    knows_kernel: bool, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """Where the kernel knows, the wire's own acknowledges everything: as over a relay, whose far leg is not seen."""
    if not knows_kernel:
        monkeypatch.setattr(tcpinfo, "_TCP_INFO", None)

    async def scenario() -> None:
        peers, wire = Several("web"), Wire()
        async with begun(peers, "direct", wire) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            await peers.add(caller, "relay")
            await ours.write(b"before")
            assert await theirs.read() == b"before"
            wire.is_open.clear()
            began = time.monotonic()
            await ours.write(b"there")
            assert await theirs.read() == b"there"
            await theirs.write(b"and back")
            assert await ours.read() == b"and back"
            took = time.monotonic() - began
            record_property("seconds", took)
            assert took <= 1.5
            assert (caller.path.kind, callee.resumes) == ("relay", 1)
            doubts = [SessionStalled, PathChanged, SessionResumed] if knows_kernel else [PathSuspected, PathChanged]
            assert peers.kinds_told() == doubts
            assert kinds(caller) == ["direct", "relay"]  # it may come back

    run(scenario())


# --- to and fro -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_a_path_that_comes_back_is_won_back_once_it_has_proved_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpinfo, "_TCP_INFO", None)

    async def scenario() -> None:
        peers, wire = Several("web"), Wire()
        async with begun(peers, "direct", wire) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            await peers.add(caller, "relay")
            wire.is_open.clear()
            await ours.write(b"over the relay")
            assert await theirs.read() == b"over the relay"
            wire.is_open.set()
            await until(lambda: caller.path.kind == "direct" and callee.resumes == 2)
            await ours.write(b"direct")
            assert await theirs.read() == b"direct"
            assert peers.kinds_told() == [PathSuspected, PathChanged, PathChanged]
            assert kinds(caller) == ["direct", "relay"]

    run(scenario())


@pytest.mark.skipif(not LINUX, reason="only Linux tells what the other kernel has acknowledged")
@pytest.mark.usefixtures("quick")
def test_a_peer_that_stands_still_is_waited_for_where_it_is() -> None:
    """Over the relay it is the relay's kernel that acknowledges, and tells nothing of the peer: such a channel is in doubt."""

    async def scenario() -> None:
        peers, wire, other = Several("web"), Wire(), Wire()
        async with begun(peers, "direct", wire) as (caller, _):
            ours, theirs = await peers.stream(caller, "web")
            await peers.add(caller, "relay", (other.client, other.server))
            await until(lambda: all(known.round_trips >= 4 for known in map(caller._endpoint.link, caller._legs)))
            for each in (wire, other):
                each.is_open.clear()
            await ours.write(b"patience")
            expected = {"direct": Health.STALLED, "relay": Health.SUSPECT}
            legs = caller._legs.values()
            await until(lambda: {leg.path.kind: caller._endpoint.link(leg.number).health for leg in legs} == expected)
            for each in (other, wire):
                each.is_open.set()
            assert await theirs.read() == b"patience"
            await until(lambda: caller.state == "open")
            assert (caller.path.kind, caller.resumes) == ("direct", 0)
        await other.close()

    run(scenario())


# --- how many ---------------------------------------------------------------------------------------------------------


def test_a_newer_standby_of_the_same_kind_replaces_the_older_one_on_both_sides() -> None:
    async def scenario() -> None:
        peers = Several("web")
        async with begun(peers, "direct") as (caller, callee):
            for _ in range(3):
                await peers.add(caller, "relay")
                assert kinds(caller) == ["direct", "relay"]
            await until(lambda: len(callee._legs) == 2)

    run(scenario())


def test_after_a_move_the_channel_of_the_same_kind_is_closed() -> None:
    async def scenario() -> None:
        peers = Several("web")
        async with begun(peers, "relay") as (caller, callee):
            await peers.add(caller, "direct")
            await until(lambda: caller.path.kind == "direct")
            await peers.rejoin(caller)  # as a redial does: direct again
            await until(lambda: caller.resumes == 2)
            assert kinds(caller) == ["direct", "relay"]
            await until(lambda: len(callee._legs) == 2)

    run(scenario())


def none(_: standby.Standbys, __: int, ___: str) -> list[int]:
    return []


def test_a_callee_does_not_hold_more_channels_than_a_caller_can_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby.Standbys, "replaced_by", none)  # a caller that closes none

    async def scenario() -> None:
        peers = Several("web")
        async with begun(peers, "direct") as (caller, callee):
            for _ in range(CHANNELS_MAX + 5):
                await peers.add(caller, "relay")
                assert len(callee._legs) <= CHANNELS_MAX
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"hello")
            assert await theirs.read() == b"hello"

    run(scenario())


def test_only_the_caller_adds_channels() -> None:
    async def scenario() -> None:
        peers = Several("web")
        async with begun(peers, "direct") as (_, callee):
            before = descriptors()
            channel = next(iter(callee._legs.values())).channel
            with pytest.raises(LocalProtocolError, match="the caller moves the session"):
                callee.stand_by(channel, callee.path)
            await settle(before)

    run(scenario())


def test_adding_a_channel_may_be_cancelled_anywhere_and_leaves_nothing() -> None:
    async def scenario() -> None:
        peers = Several("web")
        async with begun(peers, "direct") as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            before, turns, is_done = descriptors(), 0, False
            while not is_done:
                task = asyncio.create_task(peers.add(caller, "relay"))
                with cancelled_after(turns, task):
                    await asyncio.wait([task])
                await until(lambda: len(caller._legs) == len(callee._legs))
                is_done = len(caller._legs) == 2
                if not is_done:
                    await settle(before)
                turns += 1
            assert turns > 3
            await ours.write(b"hello")
            assert await theirs.read() == b"hello"

    run(scenario(), timeout=20)


@pytest.mark.parametrize("is_cut_first", [True, False])
def test_a_peer_that_has_said_goodbye_is_not_waited_for_whatever_becomes_of_its_other_channels(is_cut_first: bool) -> None:
    """It may have been about to move: its goodbye comes by one channel, and another one just breaks."""

    async def scenario() -> None:
        peers = Several("web")
        async with begun(peers, "relay") as (caller, callee):
            _ours, theirs = await peers.stream(caller, "web")
            await peers.add(caller, "direct")
            await resumed(callee, 1)
            legs = {leg.path.kind: leg.channel for leg in caller._legs.values()}
            caller._go_away(GoAwayCode.CLOSED)
            await until(lambda: callee._leaving is not None)
            if is_cut_first:
                cut(callee)  # which it notices a turn later, and the goodbye after that
            legs["relay"].close()
            if not is_cut_first:
                await until(lambda: len(callee._legs) == 1)
                assert callee.error is None  # streams may still end over the other one
                cut(callee)
            await until(lambda: isinstance(callee.error, ChannelClosedError))
            with pytest.raises(ChannelClosedError):
                await theirs.read()

    run(scenario())
