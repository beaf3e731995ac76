"""What happens on the wire under a session: secrecy, damage, loss, silence, and a peer that breaks the rules."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import time

import pytest

from p2ptunnel.errors import (
    ChannelClosedError,
    ChannelError,
    ChannelLostError,
    RemoteProtocolError,
    StreamResetError,
)
from p2ptunnel.identity.acl import AccessList
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.net import tcpinfo
from p2ptunnel.net.sockets import LINUX
from p2ptunnel.session.session import Session
from p2ptunnel.session.stream import SessionStream
from p2ptunnel.wire.frames import Data, Hello, Open, Window, encode
from tests.helpers import run
from tests.helpers.paces import hasten
from tests.helpers.peers import CALLEE, CALLER, Peers, sessions
from tests.unit.session.serving import channel_of, echoing, tapped

# --- secrecy and damage -------------------------------------------------------------------------------------------------


def test_nothing_of_what_is_sent_can_be_read_on_the_wire() -> None:
    async def scenario() -> None:
        marker = b"MARKER-" + os.urandom(16).hex().encode()
        peers = echoing("service-" + marker.decode())
        async with tapped(peers) as (wire, caller, _):
            stream = caller.open("service-" + marker.decode())
            for _ in range(100):
                await stream.write(marker * 300)
                await stream.readexactly(len(marker) * 300)
            for seen in map(bytes, wire.seen):
                assert len(seen) > 100 * 300 * len(marker)
                for spelling in (marker, base64.b64encode(marker)[:-4], CALLER.public.raw, CALLEE.public.raw):
                    assert spelling not in seen
                for key in (CALLER, CALLEE):
                    assert key.public.raw.hex().encode() not in seen
                    assert str(key.public).encode() not in seen

    run(scenario())


def test_a_flipped_bit_is_a_lost_channel_and_no_wrong_byte() -> None:
    async def scenario() -> None:
        dice = random.Random(5)
        for trial in range(10):
            peers = Peers("web")
            async with tapped(peers) as (wire, caller, callee):
                ours, theirs = await peers.stream(caller, "web")
                block = dice.randbytes(100_000)
                place = dice.randrange(90_000)
                wire.flip = (0, len(wire.seen[0]) + place)
                came = bytearray()
                reading = asyncio.ensure_future(read_into(came, theirs))
                await ours.write(block)
                await ours.write_eof()
                with pytest.raises(ChannelLostError) as error:
                    await reading
                assert "tls failed" in str(error.value), trial
                assert block.startswith(came)
                assert len(came) > place - 20_000  # all that came before the damaged record
                await caller.closed.wait()
                assert isinstance(callee.error, ChannelLostError)
                assert isinstance(caller.error, ChannelLostError)

    run(scenario())


async def read_into(came: bytearray, stream: SessionStream) -> None:
    async for part in stream:
        came += part


def test_an_end_of_the_connection_is_never_the_end_of_a_stream() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with tapped(peers) as (wire, caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"some of it")
            assert await theirs.read() == b"some of it"
            wire.cut()
            for stream in (ours, theirs):
                with pytest.raises(ChannelLostError, match="ended without a goodbye"):
                    await stream.read()
                with pytest.raises(ChannelLostError):
                    await stream.write(b"x")
            for session in (caller, callee):
                assert session.closed.is_set()
                with pytest.raises(ChannelLostError):
                    session.open("web")
            caller.abort()  # fine when it is over, and changes nothing
            assert isinstance(caller.error, ChannelLostError)

    run(scenario())


def test_a_process_that_dies_is_a_lost_channel() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            ours, _ = await peers.stream(caller, "web")
            channel_of(callee).abort()
            with pytest.raises(ChannelLostError):
                await ours.read()

    run(scenario())


def test_what_came_before_the_loss_is_read_before_the_error() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with tapped(peers) as (wire, caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"arrived")
            while callee.bytes_received < 7:
                await asyncio.sleep(0)
            wire.cut()
            await callee.closed.wait()
            assert await theirs.read() == b"arrived"
            with pytest.raises(ChannelLostError):
                await theirs.read()

    run(scenario())


def test_a_stream_that_was_whole_when_the_channel_broke_ends_clean() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with tapped(peers) as (wire, caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            await ours.write(b"whole")
            await ours.write_eof()
            while not theirs._is_ended:
                await asyncio.sleep(0)
            wire.cut()
            await callee.closed.wait()
            assert [part async for part in theirs] == [b"whole"]

    run(scenario())


# --- silence ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is dead after a second of silence."""
    hasten(monkeypatch, dead=1.0)


def answered(session: Session) -> int:
    """How many questions the peer has answered."""
    return session._endpoint.link(session._endpoint.active or 0).round_trips


@pytest.mark.usefixtures("hasty")
def test_a_quiet_peer_is_asked_again_and_again_and_answers() -> None:
    async def scenario() -> None:
        async with sessions(Peers("web")) as (caller, callee):
            while min(answered(caller), answered(callee)) < 5:
                await asyncio.sleep(0.01)
            assert (caller.state, callee.state) == ("open", "open")

    run(scenario())


@pytest.mark.skipif(not LINUX, reason="only Linux tells what the other kernel has acknowledged")
@pytest.mark.usefixtures("hasty")
def test_a_silent_peer_whose_kernel_answers_is_stalled_and_waited_for() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with tapped(peers) as (wire, caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            wire.is_open.clear()  # the wire still takes what is sent, as the kernel of a stopped process does
            began = time.monotonic()
            while (caller.state, callee.state) != ("stalled", "stalled") or time.monotonic() - began < 1.5:
                assert (caller.error, callee.error) == (None, None)
                await asyncio.sleep(0.01)
            wire.is_open.set()
            await ours.write(b"patience")
            assert await theirs.read() == b"patience"
            while (caller.state, callee.state) != ("open", "open"):
                await asyncio.sleep(0.01)

    run(scenario())


@pytest.mark.usefixtures("hasty")
def test_a_silent_peer_is_given_up_where_nobody_knows_of_its_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpinfo, "_TCP_INFO", None)

    async def scenario() -> None:
        peers = Peers("web")
        async with tapped(peers) as (wire, caller, callee):
            ours, _ = await peers.stream(caller, "web")
            wire.is_open.clear()
            with pytest.raises(ChannelLostError, match=r"the path has been dead for 1\.\d s"):
                await ours.read()
            await callee.closed.wait()

    run(scenario())


# --- a peer that breaks the rules ---------------------------------------------------------------------------------------


def test_a_violation_ends_the_session_and_says_why_on_both_sides() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            channel_of(caller).write(encode(Hello(bytes(16), bytes(16), bytes(16), bytes(64))))
            with pytest.raises(ChannelLostError, match="the peer broke the protocol: a second greeting"):
                await theirs.read()
            assert isinstance(callee.error, ChannelError)
            assert isinstance(callee.error.__cause__, RemoteProtocolError)
            with pytest.raises(ChannelClosedError, match="the channel was closed by the peer: a second greeting"):
                await ours.read()

    run(scenario())


def test_what_came_before_a_violation_is_delivered() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, callee):
            ours, theirs = await peers.stream(caller, "web")
            channel_of(caller).write(encode(Data(ours.stream_id, memoryview(b"true"))) + encode(Window(1, 0)))
            await callee.closed.wait()
            assert await theirs.read() == b"true"

    run(scenario())


class Hurried(AccessList):
    """Lets a peer ask for two streams, and counts for which services it asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.looked_up: list[str] = []

    def may_ask(self, key: PublicKey) -> bool:
        self.asked += 1
        return self.asked <= 2

    def may_open(self, key: PublicKey, service: str) -> bool:
        self.looked_up.append(service)
        return super().may_open(key, service)


def hurried(*services: str) -> tuple[Peers, Hurried]:
    peers = Peers()
    peers.access = access = Hurried()
    access.allow(CALLER.public, *services)
    return peers, access


def test_who_asks_for_streams_too_fast_is_turned_away_before_anything_is_looked_up() -> None:
    async def scenario() -> None:
        peers, access = hurried("web")
        async with sessions(peers) as (caller, _):
            for service in ("web", "nothing"):
                caller.open(service)
            with pytest.raises(StreamResetError, match="streams are opened too fast"):
                await caller.open("web").read()
            assert access.looked_up == ["web", "nothing"]

    run(scenario())


def test_who_asks_for_one_stream_after_the_other_whatever_it_is_told_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2ptunnel.session.guard.OPENS_BURST", 2)

    async def scenario() -> None:
        peers, access = hurried()
        async with sessions(peers) as (caller, callee):
            channel_of(caller).write(b"".join(encode(Open(number, 0, "web")) for number in range(1, 201, 2)))
            await callee.closed.wait()
            assert "one stream after the other" in str(callee.error)
            assert 2 < access.asked < 40

    run(scenario())
