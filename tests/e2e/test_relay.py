"""Peers and the relay of a real server on loopback: when it is used, when it must not be, and what is left of it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from p2ptunnel import calling
from p2ptunnel.abc import Stream
from p2ptunnel.errors import ConfigError, NoPathError
from p2ptunnel.events import PairingFailed, SessionResumed
from p2ptunnel.peer import Peer
from p2ptunnel.protocol import callee, caller
from p2ptunnel.protocol import relay as circuits
from p2ptunnel.server import Rendezvous
from p2ptunnel.traversal import answer
from tests.helpers import run
from tests.helpers.meeting import HELLO, HOME, LAPTOP, Meeting, conversation, echo, meeting
from tests.helpers.turns import descriptors, settle

MIB = 1 << 20


def asked(server: Rendezvous) -> int:
    """How many t=6 have come to the server, whatever became of them; two of one circuit are counted once."""
    stats = server.stats.relay
    assert stats is not None
    return stats.circuits + sum(stats.ended.values()) + sum(stats.refused.values())


def kind_of(peer: Peer, tag: str = HOME) -> str:
    """Of which kind the path to a peer is, as its status has it."""
    [status] = [status for status in peer.snapshot().peers if status.tag == tag]
    assert status.path is not None
    return status.path.kind


async def echoed(stream: Stream, size: int) -> bool:
    """Send random bytes, and tell whether the same came back."""
    sent, came = os.urandom(size), hashlib.sha256()

    async def send() -> None:
        await stream.write(sent)
        await stream.write_eof()

    sending = asyncio.create_task(send())
    async for part in stream:
        came.update(part)
    await sending
    return came.digest() == hashlib.sha256(sent).digest()


# --- always -------------------------------------------------------------------------------------------------------------


def test_where_it_is_always_used_nothing_is_punched(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo", relay="always") as there, there.home.serve({"echo": echo}):
            assert await echoed(await there.laptop.connect(HOME, "echo"), MIB)
            assert (kind_of(there.laptop), kind_of(there.home, LAPTOP)) == ("relay", "relay")
            for events in (there.home_events, there.laptop_events):
                names = {event.name for event in events.all}
                assert not names & {"PunchStarted", "Dial", "HoleOpened", "connection_up", "dial_ended"}, names

    run(main())


def test_a_peer_that_always_uses_it_is_not_reached_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "PUNCH_TIMEOUT", 1.0)

    async def main() -> None:
        async with meeting(tmp_path, "echo", relay="always") as there, there.home.serve({"echo": echo}):
            async with there.peer(LAPTOP, relay="never") as laptop:
                with pytest.raises(NoPathError):
                    await laptop.connect(HOME, "echo")
            assert not there.home_events.named("connection_up")

    run(main())


def test_two_strangers_pair_over_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rendezvous(("127.0.0.1", 0)) as server:
            there = Meeting(tmp_path, server, relay="always")
            async with there.home, there.laptop, there.home.serve({"echo": echo}):
                for kind in ("code", "ticket"):
                    invitation = await there.home.invite(services=["echo"], name=f"by-{kind}")
                    async with invitation, there.peer(None, kind, relay="always") as guest:
                        await asyncio.gather(guest.redeem(str(getattr(invitation, kind))), invitation.paired())
                        assert await conversation(await guest.connect(HOME, "echo")) == HELLO
                        assert kind_of(guest) == "relay"

    run(main())


def test_who_comes_to_pair_by_both_ways_at_once_tries_the_code_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calling, "RELAY_HEAD_START", 0.0)

    async def main() -> None:
        async with Rendezvous(("127.0.0.1", 0)) as server:
            there = Meeting(tmp_path, server)
            async with there.home:
                failures = there.home.events(PairingFailed)
                for number in range(10):
                    invitation = await there.home.invite(name=f"guest-{number}")
                    async with invitation, there.peer(None, f"{number}") as guest:
                        await asyncio.gather(guest.redeem(invitation.code), invitation.paired())
            assert [event async for event in failures] == []

    run(main())


@pytest.mark.parametrize("end", ["the peer", "the session"])
def test_the_direct_attempt_that_goes_on_beside_ends_with(tmp_path: Path, end: str) -> None:
    async def main() -> None:
        meet = meeting(tmp_path, "echo", relay="always")
        async with meet as there, there.home.serve({"echo": echo}), there.peer(LAPTOP) as laptop:
            for peer in (there.home, there.laptop, laptop):
                await peer.ready()
            before, tasks = descriptors(), len(asyncio.all_tasks())
            stream = await laptop.connect(HOME, "echo")
            assert stream.path.kind == "relay"
            [session] = laptop._up._sessions
            [attempt] = session._work._attempts
            await (laptop.close() if end == "the peer" else session.close(grace=0))
            assert attempt.cancelled()
            await settle(before, tasks)

    run(main())


# --- never --------------------------------------------------------------------------------------------------------------


def test_where_it_is_never_used_it_is_never_asked(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo", relay="never") as there, there.home.serve({"echo": echo}):
            assert await conversation(await there.laptop.connect(HOME, "echo")) == HELLO
            assert kind_of(there.laptop) == "lan"
            assert asked(there.server) == 0

    run(main())


def test_each_side_decides_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's counts, with one side's choice taken away, show that it is the side that holds back."""
    for module in (circuits, answer):
        monkeypatch.setattr(module, "RELAY_JOIN_TIMEOUT", 0.5)

    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            async with there.peer(LAPTOP, relay="never") as laptop:
                await conversation(await laptop.connect(HOME, "echo"))
            await there.home_events.told("relay_unused")
            assert asked(there.server) == 1  # home's

    run(main())


# --- a direct path is required ------------------------------------------------------------------------------------------


def test_a_stream_that_must_be_direct_has_a_session_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            one = await there.laptop.connect(HOME, "echo")
            direct = await there.laptop.connect(HOME, "echo", require_direct=True)
            again = await there.laptop.connect(HOME, "echo", require_direct=True)
            assert direct.path.kind == "lan"
            assert [await conversation(stream) for stream in (one, direct, again)] == [HELLO] * 3
            assert len(there.laptop_events.named("up", "session")) == 2

    run(main())


def test_where_there_is_no_direct_path_none_is_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "PUNCH_TIMEOUT", 1.0)

    async def main() -> None:
        async with meeting(tmp_path, "echo", relay="always") as there, there.home.serve({"echo": echo}):
            async with there.peer(LAPTOP) as laptop:
                assert await conversation(await laptop.connect(HOME, "echo")) == HELLO
                assert kind_of(laptop) == "relay"
                with pytest.raises(NoPathError) as caught:
                    await laptop.connect(HOME, "echo", require_direct=True)
            assert caught.value.attempts
            assert not any(attempt.startswith("relay") for attempt in caught.value.attempts)
            with pytest.raises(ConfigError):
                await there.laptop.connect(HOME, "echo", require_direct=True)

    run(main())


# --- where there is none ------------------------------------------------------------------------------------------------


def test_without_a_relay_a_direct_path_is_found_as_ever(tmp_path: Path) -> None:
    async def main() -> None:
        make = lambda: Rendezvous(("127.0.0.1", 0), relay=False)  # noqa: E731
        async with meeting(tmp_path, "echo", make=make) as there, there.home.serve({"echo": echo}):
            assert await conversation(await there.laptop.connect(HOME, "echo")) == HELLO
            assert kind_of(there.laptop) == "lan"

    run(main())


def test_without_any_path_the_relays_refusal_is_told_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for agents in (caller, callee):
        monkeypatch.setattr(agents, "PUNCH_TIMEOUT", 1.0)

    async def main() -> None:
        make = lambda: Rendezvous(("127.0.0.1", 0), relay=False)  # noqa: E731
        async with meeting(tmp_path, "echo", make=make, relay="always") as there, there.home.serve({"echo": echo}):
            refusal = f"relay: {there.address} refused: no relay here (503)"
            with pytest.raises(NoPathError) as only:
                await there.laptop.connect(HOME, "echo")
            assert only.value.attempts == (refusal,)
            async with there.peer(LAPTOP) as laptop:
                with pytest.raises(NoPathError) as beside:
                    await laptop.connect(HOME, "echo")
            assert beside.value.attempts[-1] == refusal
            assert len(beside.value.attempts) > 1

    run(main())


# --- when it breaks -----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_a_transfer_survives_the_restart_of_the_server_that_relays_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rendezvous(("127.0.0.1", 0)) as server:
            there = Meeting(tmp_path, server, relay="always")
            async with there.home, there.laptop, there.home.serve({"echo": echo}):
                there.home.peers.add(LAPTOP, there.laptop.key, ("echo",))
                there.laptop.peers.add(HOME, there.home.key)
                resumed = there.laptop.events(SessionResumed)
                stream = await there.laptop.connect(HOME, "echo")
                carrying = asyncio.create_task(echoed(stream, 64 * MIB))
                await asyncio.sleep(0)
                while there.laptop.snapshot().peers[0].path is None or server.stats.relay.carried_bytes < 4 * MIB:  # type: ignore[union-attr]
                    await asyncio.sleep(0.01)
                address = server.address
                await server.close()
                async with Rendezvous(address) as again:
                    event = await anext(resumed)
                    assert isinstance(event, SessionResumed)
                    assert await carrying
                    assert asked(again) >= 1
                    assert kind_of(there.laptop) == "relay"

    run(main(), timeout=60)
