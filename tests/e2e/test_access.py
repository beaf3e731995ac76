"""Who may reach what, between real peers over a real server: grants that come and go, questions, tickets, inner targets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from p2ptunnel import started
from p2ptunnel.abc import Stream
from p2ptunnel.asking import AccessRequest, Decision
from p2ptunnel.defaults import SESSIONS_OF_PEER_MAX
from p2ptunnel.errors import (
    AccessDeniedError,
    AccessRevokedError,
    ChannelClosedError,
    ChannelError,
    ConfigError,
    InvalidCodeError,
    NoSuchPeerError,
    PeerRefusedError,
    UnknownPeerError,
)
from p2ptunnel.events import AccessDecided, AccessRequested, ApprovalAwaited
from p2ptunnel.identity.store import Profile
from tests.helpers import run
from tests.helpers.meeting import HELLO, HOME, LAPTOP, conversation, echo, meeting
from tests.unit.cli.running import environment, program


def soon(**more: float) -> datetime:
    return datetime.now(UTC) + timedelta(**more)


def test_a_service_is_allowed_and_taken_back_from_python(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.home.serve({"echo": echo}):
            with pytest.raises(AccessDeniedError):
                await there.laptop.connect(HOME, "echo")
            await there.home.allow(LAPTOP, "echo", until=soon(hours=1))
            stream = await there.laptop.connect(HOME, "echo")
            began = time.monotonic()
            await there.home.revoke(LAPTOP, "echo")
            with pytest.raises(AccessRevokedError):
                await stream.read()
            assert time.monotonic() - began < 1.5
            await there.home.allow(LAPTOP, "echo")
            async with await there.laptop.connect(HOME, "echo") as stream:
                assert await conversation(stream) == HELLO
                await there.home.revoke(LAPTOP)
            with pytest.raises(
                (AccessDeniedError, ChannelClosedError, PeerRefusedError)
            ):  # as the session is, or is not yet, over
                await there.laptop.connect(HOME, "echo")
            with pytest.raises(UnknownPeerError):
                await there.home.allow("nobody", "echo")

    run(main())


def test_what_is_over_already_is_not_granted(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            over = datetime(2024, 1, 31, 18, tzinfo=UTC)
            for granting in (
                there.home.allow(LAPTOP, "echo", until=over),
                there.home.ticket(["echo"], until=over),
            ):
                with pytest.raises(ConfigError) as error:
                    await granting
                assert str(error.value) == "2024-01-31 18:00 is over already"
                assert error.value.hint == "Without a time zone it is local time."
            with pytest.raises(ConfigError, match="is over already"):
                there.home.serve({"echo": echo}, allow=[LAPTOP], until=over)
            assert there.home.peers.all()[0].services == ()
            assert there.home.peers.issued() == ()

    run(main())


def test_a_ticket_that_was_made_is_noted_and_one_that_is_ours_is_not_used(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            ticket = await there.home.ticket(["echo"], until=soon(hours=1))
            assert [noted.name for noted in there.home.peers.issued()] == [ticket.name]
            with pytest.raises(InvalidCodeError, match="this machine has made that ticket itself"):
                await there.home.use_ticket(str(ticket))
            with pytest.raises(NoSuchPeerError, match="no peer is known here as 'nobody'"):
                await there.home.ticket(["echo"], until=soon(hours=1), holder="nobody")

    run(main())


def test_a_grant_in_code_may_end(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            await there.home.serve({"echo": echo}, allow=[LAPTOP], until=soon(seconds=1.5))
            stream = await there.laptop.connect(HOME, "echo")
            with pytest.raises(AccessRevokedError):
                await stream.read()
            with pytest.raises(AccessDeniedError):
                await there.laptop.connect(HOME, "echo")

    run(main())


def test_a_question_may_take_longer_than_connecting(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            asked = asyncio.Event()

            async def decide(request: AccessRequest) -> Decision:
                asked.set()
                await told
                return "once"

            awaited = there.laptop.events(ApprovalAwaited)
            decided = there.home.events(AccessRequested, AccessDecided)
            async with there.home.serve({"echo": echo}, ask=decide):
                with contextlib.suppress(AccessDeniedError):
                    await there.laptop.connect(HOME, "nothing")  # the connection stands: what follows is the question alone
                told = asyncio.get_running_loop().create_future()
                connecting = asyncio.ensure_future(there.laptop.connect(HOME, "echo", timeout=0.3))
                event = await anext(awaited)
                assert isinstance(event, ApprovalAwaited)
                assert (event.tag, event.service) == (HOME, "echo")
                await asyncio.wait([connecting], timeout=0.6)  # its own patience is over
                told.set_result(None)
                async with await connecting as stream:
                    assert await conversation(stream) == HELLO
                kinds = [type(await anext(decided)) for _ in range(2)]
                assert kinds == [AccessRequested, AccessDecided]

    run(main())


def test_a_ticket_is_handed_over_kept_and_shown(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.home.serve({"echo": echo, "other": echo}):
            ticket = await there.home.ticket(["echo"], until=soon(hours=1), holder=LAPTOP)
            with pytest.raises(AccessDeniedError):
                await there.laptop.connect(HOME, "echo")
            kept = await there.laptop.use_ticket(str(ticket))
            assert kept.tag == HOME
            stream = await there.laptop.connect(HOME, "echo")  # by the session of before
            with pytest.raises(AccessDeniedError):
                await there.laptop.connect(HOME, "other")
            async with there.peer(LAPTOP) as again, await again.connect(HOME, "echo") as second:  # a program of this profile
                assert await conversation(second) == HELLO
            await there.home.revoke_ticket(ticket)
            with pytest.raises(AccessRevokedError):
                await stream.read()

    run(main())


def test_a_forward_reaches_an_inner_target_by_its_address(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.7", 0)) as inner:
            port = inner.getsockname()[1]
            async with meeting(tmp_path, "any") as there, there.home.serve({"any": f"any:127.0.0.7/32:{port}"}):
                async with there.laptop.forward(HOME, f"127.0.0.7:{port}") as forward:
                    client = socket.create_connection(forward.local)
                    with client:
                        client.setblocking(False)
                        inner.setblocking(False)
                        loop = asyncio.get_running_loop()
                        target, _ = await loop.sock_accept(inner)
                        with target:
                            await loop.sock_sendall(client, b"GET")
                            assert await loop.sock_recv(target, 3) == b"GET"
                with pytest.raises(AccessDeniedError):
                    await there.laptop.connect(HOME, f"127.0.0.1:{port}")

    run(main())


def test_own_forwards_are_no_inner_targets(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "any") as there, there.home.forward(LAPTOP, "echo", listen=("127.0.0.7", 0)) as forward:
            host, port = forward.local
            async with there.home.serve({"any": f"any:{host}/32:*"}):
                with pytest.raises(AccessDeniedError):
                    await there.laptop.connect(HOME, f"{host}:{port}")

    run(main())


def test_of_too_many_sessions_of_one_key_the_oldest_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SESSIONS_OF_PEER_MAX == 8
    monkeypatch.setattr(started, "SESSIONS_OF_PEER_MAX", 2)

    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, contextlib.AsyncExitStack() as programs:
            await there.home.serve({"echo": echo})
            streams: list[Stream] = []
            for _ in range(3):
                laptop = await programs.enter_async_context(there.peer(LAPTOP))
                streams.append(await laptop.connect(HOME, "echo"))
            with pytest.raises(ChannelClosedError, match="the peer: too many sessions of this peer"):
                await streams[0].read()
            for stream in streams[1:]:
                assert await conversation(stream) == HELLO

    run(main())


@pytest.mark.e2e
def test_serve_asks_on_its_terminal(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            await there.home.close()
            master, slave = pty.openpty()
            words = ("--profile", tmp_path / HOME, "--rendezvous", there.address, "--tag", HOME, "serve", "9", "--ask")
            with subprocess.Popen(program(*words), env=environment(), stdin=slave, stdout=slave, stderr=slave) as serving:
                os.close(slave)
                try:
                    await read_until(master, b"serving 9 as home-nas")
                    connecting = asyncio.ensure_future(there.laptop.connect(HOME, "9"))
                    asked = await read_until(master, b"[n] no")
                    assert re.search(rb"laptop \(p2p:\w{8}\xe2\x80\xa6\) wants 9 via \w+ tcp 127.0.0.1\. \[y\] once", asked)
                    os.write(master, b"perhaps\n")
                    await read_until(master, b"[n] no")
                    await asyncio.sleep(1)  # what is typed sooner cannot be meant for this question
                    os.write(master, b"n\n")
                    with pytest.raises(AccessDeniedError):
                        await connecting
                    await read_until(master, b"laptop: 9: no")
                finally:
                    serving.terminate()
                    serving.wait(10)
                    os.close(master)
            assert Profile(tmp_path / HOME).peers().all()[0].services == ()

    run(main(), timeout=20)


async def read_until(descriptor: int, wanted: bytes) -> bytes:
    """Read what a terminal shows until `wanted` is in it."""
    shown = b""
    os.set_blocking(descriptor, False)
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, readable.set)
    try:
        while wanted not in shown:
            readable.clear()
            try:
                shown += os.read(descriptor, 4096)
            except BlockingIOError:
                await readable.wait()
    finally:
        loop.remove_reader(descriptor)
    return shown


@pytest.mark.e2e
def test_without_a_terminal_nobody_can_be_asked(tmp_path: Path) -> None:
    words = ("--profile", tmp_path, "--rendezvous", "127.0.0.1:9", "--tag", HOME, "serve", "9", "--ask")
    result = subprocess.run(
        program(*words), env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.startswith("p2ptunnel: --ask needs a terminal to ask on\n")


@pytest.mark.parametrize("is_cut", [False, True], ids=["connected", "cut"])
def test_a_peer_that_the_caller_removes_is_left_and_is_not_gone_back_to(tmp_path: Path, is_cut: bool) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            stream = await there.laptop.connect(HOME, "echo")
            if is_cut:
                await there.home.close()
            await there.laptop.revoke(HOME)
            began = time.monotonic()
            with pytest.raises(ChannelError):
                await stream.read()
            assert time.monotonic() - began < 2
            with pytest.raises(UnknownPeerError):
                await there.laptop.connect(HOME, "echo")

    run(main())
