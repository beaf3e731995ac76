"""What peers survive, what they leave behind, and how they end: over a real rendezvous server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from p2ptunnel.abc import Stream
from p2ptunnel.errors import (
    AddressInUseError,
    AuthenticationError,
    ChannelClosedError,
    ChannelError,
    ConfigError,
    InvalidSpecError,
    InvalidTagError,
    PeerOfflineError,
    ResumeExpiredError,
)
from p2ptunnel.peer import Peer
from p2ptunnel.protocol import attempts, broker, intent, relay
from p2ptunnel.server import Rendezvous
from p2ptunnel.serving import Serving
from p2ptunnel.transports import relay as joining
from p2ptunnel.traversal import answer
from p2ptunnel.traversal.netcheck import NetReport
from p2ptunnel.tunnels.local import Forward
from p2ptunnel.types import RelayUse
from tests.helpers import run
from tests.helpers.meeting import HELLO, HOME, LAPTOP, Meeting, conversation, echo, meeting
from tests.helpers.turns import cancel_at_each_turn, cancelled_after, descriptors, settle

ROUNDS = 100

CALLEE = """
import asyncio, sys
from p2ptunnel.peer import Peer

async def echo(stream):
    async for part in stream:
        await stream.write(part)
    await stream.write_eof()

async def main():
    peer = Peer("home-nas", rendezvous=sys.argv[1], profile=sys.argv[2], lan=False)
    async with peer, peer.serve({"echo": echo}):
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def callee_program(server: str, profile: Path) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A program of its own that serves echo as home-nas; killed in the end."""
    root = str(Path(__file__).parents[2])
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CALLEE, server, str(profile)),
        env={**os.environ, "PYTHONPATH": root},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert program.stdout is not None
        assert await program.stdout.readline() == b"ready\n"
        yield program
    finally:
        with contextlib.suppress(ProcessLookupError):
            program.kill()
        await program.wait()


# --- deaths -----------------------------------------------------------------------------------------------------------


def test_a_successor_of_a_killed_callee_ends_its_streams_and_answers_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            home = tmp_path / HOME  # the program is the same peer: same key, same tag
            there.home.peers.allow(LAPTOP, "echo")
            async with callee_program(there.address, home) as program:
                stream = await there.laptop.connect(HOME, "echo")
                await stream.write(HELLO)
                assert await stream.readexactly(len(HELLO)) == HELLO
                program.send_signal(signal.SIGKILL)
                await program.wait()
            async with callee_program(there.address, home):
                assert there.server.registered == (HOME,)
                with pytest.raises(ResumeExpiredError, match="home-nas does not know the session any more"):
                    await stream.read()
                began = time.monotonic()
                async with await there.laptop.connect(HOME, "echo") as stream:
                    assert await conversation(stream) == HELLO
                assert time.monotonic() - began < 2

    run(main())


def test_a_caller_that_is_gone_leaves_nothing_at_the_callee(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            before = descriptors()
            async with there.peer(LAPTOP) as second:
                await second.connect(HOME, "echo")
                await there.home_events.told("up", layer="session")
            await there.home_events.told("down", layer="session")
            await settle(before)

    run(main())


def test_a_restarted_server_costs_a_running_stream_nothing_and_is_registered_with_again(tmp_path: Path) -> None:
    async def main() -> None:
        server = Rendezvous(("127.0.0.1", 0))
        async with meeting(tmp_path, "echo", make=lambda: server) as there, there.home.serve({"echo": echo}):
            stream = await there.laptop.connect(HOME, "echo")
            await server.close()
            await there.home_events.told("control_lost")
            await stream.write(HELLO)
            assert await stream.readexactly(len(HELLO)) == HELLO
            async with Rendezvous(("127.0.0.1", int(there.address.rpartition(":")[2]))) as successor:
                began = time.monotonic()
                await there.home_events.told("Registered", 2)
                assert time.monotonic() - began < 3
                assert successor.registered == (HOME,)
                assert await conversation(stream) == HELLO
                await stream.close()
                async with there.peer(LAPTOP) as again, await again.connect(HOME, "echo") as stream:
                    assert await conversation(stream) == HELLO
                await there.home.close()

    run(main())


# --- ends -------------------------------------------------------------------------------------------------------------


def test_closing_leaves_the_server_and_ends_all_that_is_open(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            before = descriptors()
            stream = await there.laptop.connect(HOME, "echo")
            forward = await there.laptop.forward(HOME, "echo")
            with socket.create_connection(forward.local) as client:
                client.setblocking(False)
                await asyncio.get_running_loop().sock_sendall(client, b"x")
                assert await asyncio.get_running_loop().sock_recv(client, 1) == b"x"
                began = time.monotonic()
                await there.laptop.close()
                assert time.monotonic() - began < 3
                assert forward.state == "closed"
                with pytest.raises(ConnectionError):
                    await asyncio.get_running_loop().sock_recv(client, 1)
            with pytest.raises(ChannelClosedError):
                await stream.read()
            await there.laptop.close()
            await settle(before)
            await there.home.close()
            assert there.server.registered == ()

    run(main())


def test_a_peer_that_was_closed_can_be_started_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            key = there.laptop.key
            await there.laptop.close()
            async with there.laptop, await there.laptop.connect(HOME, "echo") as stream:
                assert await conversation(stream) == HELLO
                assert there.laptop.key == key

    run(main())


def test_who_waits_for_a_connection_hears_of_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            connecting = asyncio.create_task(there.laptop.connect(HOME, "echo"))
            serving = asyncio.ensure_future(there.laptop.serve({"echo": echo}))
            await there.laptop_events.told("Dial")
            await there.laptop.close()
            results = await asyncio.gather(connecting, serving, return_exceptions=True)
            assert isinstance(results[0], ChannelError)
            if isinstance(results[1], Serving):  # it was faster
                await results[1].close()

    run(main())


def test_a_session_that_is_about_to_end_is_used_no_more(tmp_path: Path) -> None:
    """The peer has said good-bye, but gives its open streams some time: a new stream needs a new connection."""

    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            stream = await there.laptop.connect(HOME, "echo")
            closing = asyncio.create_task(there.home.close())
            await there.laptop_events.told("peer_goes")
            with pytest.raises(PeerOfflineError):  # it was asked for anew
                await there.laptop.connect(HOME, "echo")
            assert await conversation(stream) == HELLO  # and the old stream had its time
            await closing

    run(main())


def test_it_is_registered_only_while_it_serves(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo", "more") as there:
            registered: list[list[str]] = []

            def note() -> None:
                registered.append(list(there.server.registered))

            async with there.home.serve({"echo": echo}):
                note()
                stream = await there.laptop.connect(HOME, "echo")
                async with there.home.serve({"more": echo}):
                    assert there.home.snapshot().serving == ("echo", "more")
                note()
                assert there.home.snapshot().serving == ("echo",)
            note()
            assert await conversation(stream) == HELLO  # what is under way goes on
            assert there.home.local_address is None
            async with there.home.serve({"echo": echo}):
                note()
            assert registered == [[HOME], [HOME], [], [HOME]]

    run(main())


def test_serving_at_the_same_time_registers_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            services = await asyncio.gather(*(there.home.serve({f"s{number}": echo}) for number in range(5)))
            assert len(there.home_events.named("Registered")) == 1
            await asyncio.gather(*(serving.close() for serving in services))
            assert there.server.registered == ()

    run(main())


# --- forwards ---------------------------------------------------------------------------------------------------------


def test_a_forward_needs_a_tag_a_target_and_an_address(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            with pytest.raises(InvalidTagError):
                await there.laptop.forward("Home NAS", "web")
            with pytest.raises(InvalidSpecError):
                await there.laptop.forward(HOME, "a b")
            with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(AddressInUseError):
                await there.laptop.forward(HOME, "web", listen=taken.getsockname()[1])

    run(main())


# --- cancelling -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def sweeping(directory: Path, relay: RelayUse = "auto") -> AsyncGenerator[Meeting]:
    """A meeting that serves echo, and still works when the block has done its worst."""
    async with meeting(directory, "echo", relay=relay) as there, there.home.serve({"echo": echo}):
        yield there
        async with await there.laptop.connect(HOME, "echo") as stream:
            assert await conversation(stream) == HELLO


@pytest.mark.parametrize("use", ["auto", "always"])
def test_connecting_can_be_cancelled_at_any_turn(tmp_path: Path, use: RelayUse, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (relay, answer, joining):
        monkeypatch.setattr(module, "RELAY_JOIN_TIMEOUT", 0.3)  # who was left alone at the relay goes soon
    for module, limits in (  # a call a turn is more than anybody's
        (attempts, ("ATTEMPTS_OF_SOURCE_MAX", "ATTEMPTS_OF_SOURCE_TO_CALLEE_MAX")),
        (broker, ("CALLS_BURST", "CALLS_BURST_OF_SOURCE", "CALLS_PER_SECOND_OF_CALLEE")),
        (intent, ("INTENTS_OF_SOURCE_PER_SECOND", "INTENTS_PER_SECOND")),
    ):
        for limit in limits:
            monkeypatch.setattr(module, limit, 1000)

    async def main() -> int:
        async with sweeping(tmp_path, use) as there:
            laptop = there.peer(LAPTOP, relay=use)

            async def connect() -> tuple[Peer, Stream]:
                await laptop.start()
                try:
                    return laptop, await laptop.connect(HOME, "echo")
                except BaseException:
                    await laptop.close()
                    raise

            async def undo(ends: tuple[Peer, Stream]) -> None:
                ends[1].abort()
                await ends[0].close()

            return await cancel_at_each_turn(connect, undo)

    assert run(main(), timeout=80) > 30


def test_connecting_once_more_can_be_cancelled_at_any_turn(tmp_path: Path) -> None:
    async def main() -> int:
        async with sweeping(tmp_path) as there, await there.laptop.connect(HOME, "echo"):

            async def undo(stream: Stream) -> None:
                stream.abort()

            return await cancel_at_each_turn(lambda: there.laptop.connect(HOME, "echo"), undo)

    assert run(main(), timeout=60) > 1


def test_serving_can_be_cancelled_at_any_turn(tmp_path: Path) -> None:
    async def main() -> int:
        async with sweeping(tmp_path) as there:

            async def serve() -> Serving:
                return await there.laptop.serve({"echo": echo})

            turns = await cancel_at_each_turn(serve, Serving.close)
            assert there.laptop.snapshot().serving == ()
            return turns

    assert run(main(), timeout=60) > 5


def test_forwarding_can_be_cancelled_at_any_turn(tmp_path: Path) -> None:
    async def main() -> int:
        async with sweeping(tmp_path) as there:

            async def forward() -> Forward:
                return await there.laptop.forward(HOME, "echo")

            return await cancel_at_each_turn(forward, Forward.close)

    assert run(main()) >= 1


def test_looking_at_the_network_can_be_cancelled_at_any_turn(tmp_path: Path) -> None:
    async def main() -> int:
        async with sweeping(tmp_path) as there:

            async def nothing(_: NetReport) -> None:
                """A report needs no undoing."""

            return await cancel_at_each_turn(there.laptop.netcheck, nothing)

    assert run(main()) > 5


def test_starting_can_be_cancelled_at_any_turn(tmp_path: Path) -> None:
    async def main() -> int:
        async with sweeping(tmp_path) as there:
            peer = there.peer("fresh")

            async def undo(_: None) -> None:
                await peer.close()

            return await cancel_at_each_turn(peer.start, undo)

    assert run(main()) > 1


def test_closing_can_be_cancelled_at_any_turn(tmp_path: Path) -> None:
    """Cancelled, it closes everything at once: there may be nobody to call it again."""

    async def main() -> None:
        async with sweeping(tmp_path) as there:
            before, tasks = descriptors(), len(asyncio.all_tasks())
            for turns in range(200):
                laptop = there.peer(LAPTOP)
                await laptop.start()
                await laptop.serve({"echo": echo})
                await laptop.forward(HOME, "echo")
                (await laptop.connect(HOME, "echo")).abort()  # an open stream has two seconds to end by itself
                closing = asyncio.create_task(laptop.close())
                with cancelled_after(turns, closing):
                    await asyncio.wait([closing])
                if turns == 0:
                    await laptop.close()  # cancelled before it began
                await settle(before, tasks)
                if not closing.cancelled():
                    return
            raise AssertionError("never done")

    run(main(), timeout=60)


# --- endurance --------------------------------------------------------------------------------------------------------


def test_a_hundred_rounds_leave_nothing(tmp_path: Path) -> None:
    async def main() -> list[float]:
        times: list[float] = []
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            before, tasks = descriptors(), len(asyncio.all_tasks())
            for _ in range(ROUNDS):
                async with there.peer(LAPTOP) as laptop:
                    began = time.perf_counter()
                    async with await laptop.connect(HOME, "echo") as stream:
                        times.append(time.perf_counter() - began)
                        assert await conversation(stream) == HELLO
            await settle(before, tasks)
        return times

    assert statistics.median(run(main(), timeout=60)) < 0.5


# --- programs without a key -------------------------------------------------------------------------------------------


def test_streams_without_security_are_asked_for_by_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            with pytest.raises(ConfigError) as caught:
                await there.laptop.connect_raw(HOME)
            assert str(caught.value) == "connect_raw needs Peer(allow_unauthenticated=True)"
            with pytest.raises(ConfigError) as caught:
                async with there.home.listen_raw():
                    pass
            assert str(caught.value) == "listen_raw needs Peer(allow_unauthenticated=True)"

    run(main())


def test_a_peer_lets_them_in_only_while_it_listens_for_them(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            meeting(tmp_path) as there,
            there.peer("open", allow_unauthenticated=True) as listening,
            there.peer("caller", allow_unauthenticated=True) as caller,
            listening.serve({"echo": echo}),
        ):
            text = "authentication failed: open lets in nobody without a key"
            with pytest.raises(AuthenticationError) as caught:
                await caller.connect_raw("open")
            assert str(caught.value) == text
            async with listening.listen_raw() as streams:
                async with await caller.connect_raw("open") as ours, await anext(streams) as theirs:
                    await ours.write(HELLO)
                    assert await theirs.readexactly(len(HELLO)) == HELLO
                with pytest.raises(ConfigError) as twice:
                    async with listening.listen_raw():
                        pass
                assert str(twice.value) == "raw streams are listened for already"
                untaken = await caller.connect_raw("open")
            assert await untaken.read() == b""  # nobody took it
            untaken.abort()
            assert [stream async for stream in streams] == []
            with pytest.raises(AuthenticationError):
                await caller.connect_raw("open")

    run(main())
