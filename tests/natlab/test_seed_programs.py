"""Programs written from the founding document alone, and ours: they reach each other where our side has allowed it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path

import pytest

from p2ptunnel import Peer, Rendezvous
from p2ptunnel.testing.natlab import Host, Lab
from p2ptunnel.testing.natlab.living import living

SEED = Path(__file__).parents[1] / "seed"
TEXT = "hello from the founding document"


@pytest.fixture
def server(natlab: Lab) -> Generator[Callable[[bool], str]]:
    """Start the rendezvous server of the laboratory, with or without its exception for such programs."""
    with contextlib.ExitStack() as stack:

        def start(compat_seed: bool) -> str:
            address = (natlab.server.ip, 7000)
            stack.enter_context(living(natlab.server, lambda: Rendezvous(address, compat_seed=compat_seed)))
            return natlab.server.ip

        yield start


def caller(host: Host, server: str, wanted: str) -> subprocess.CompletedProcess[str]:
    """The founding document's caller, run to its end."""
    return host.run(
        [sys.executable, str(SEED / "caller.py"), server, "7000", "seed-caller", wanted, TEXT], check=False, timeout=40
    )


def callee(host: Host, server: str) -> subprocess.Popen[str]:
    """The founding document's callee, once the server knows it."""
    program = host.popen([sys.executable, str(SEED / "callee.py"), server, "7000", "seed-callee"], stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    return program


@contextlib.asynccontextmanager
async def echo_to_raw_callers(server: str, profile: Path) -> AsyncGenerator[None]:
    """A peer of ours that lets such programs in, and sends back what they say."""

    async def echo(peer: Peer) -> None:
        async with peer.listen_raw() as streams:
            async for stream in streams:
                async with stream:
                    while part := await stream.read():
                        await stream.write(part)
                    await stream.write_eof()

    async with Peer("ours", rendezvous=server, profile=profile, allow_unauthenticated=True) as peer:
        serving = asyncio.create_task(echo(peer))
        async with asyncio.timeout(10):
            while peer.local_address is None:
                await asyncio.sleep(0.01)
        try:
            yield
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


@pytest.mark.parametrize("kind", ["pub", "fc", "pr"])
def test_a_seed_caller_reaches_a_seed_callee_through_our_server(natlab: Lab, server: Callable[[bool], str], kind: str) -> None:
    address = server(True)
    program = callee(natlab.site("pub").host, address)
    done = caller(natlab.site(kind).host, address, "seed-callee")
    assert (done.returncode, done.stdout.strip()) == (0, TEXT), done.stderr
    assert program.wait(10) == 0


def test_a_server_without_the_exception_serves_neither(natlab: Lab, server: Callable[[bool], str]) -> None:
    address = server(False)
    host = natlab.site("pub").host
    done = host.run([sys.executable, str(SEED / "callee.py"), address, "7000", "seed-callee"], check=False, timeout=40)
    assert done.returncode != 0
    assert "no server" in done.stderr  # our 401 is longer than its question, so it gets none


@pytest.mark.parametrize("kind", ["pub", "pr"])
def test_a_seed_caller_reaches_a_peer_of_ours_that_allows_it(
    natlab: Lab, server: Callable[[bool], str], tmp_path: Path, kind: str
) -> None:
    address = server(True)
    with living(natlab.site(kind).host, lambda: echo_to_raw_callers(address, tmp_path)):
        done = caller(natlab.site("pr").host, address, "ours")
    assert (done.returncode, done.stdout.strip()) == (0, TEXT), done.stderr


def test_a_seed_caller_is_refused_by_a_peer_that_does_not(natlab: Lab, server: Callable[[bool], str], tmp_path: Path) -> None:
    address = server(True)

    @contextlib.asynccontextmanager
    async def serving() -> AsyncGenerator[None]:
        async with Peer("ours", rendezvous=address, profile=tmp_path) as peer, peer.serve({"web": 80}):
            yield

    with living(natlab.site("pr").host, serving):
        done = caller(natlab.site("pr").host, address, "ours")
    assert done.returncode != 0
    assert "403 authentication needed" in done.stderr


def test_a_peer_of_ours_reaches_a_seed_callee_and_says_so(natlab: Lab, server: Callable[[bool], str], tmp_path: Path) -> None:
    address = server(True)
    program = callee(natlab.site("pub").host, address)

    async def call() -> bytes:
        async with (
            Peer("ours", rendezvous=address, profile=tmp_path, allow_unauthenticated=True) as peer,
            await peer.connect_raw("seed-callee") as stream,
        ):
            await stream.write(TEXT.encode())
            await stream.write_eof()
            return await stream.readexactly(len(TEXT))

    assert natlab.site("pr").host.thread(asyncio.run, call()).result(40) == TEXT.encode()
    assert program.wait(10) == 0
