"""A peer whose process is stopped stands still and is not dead: its kernel answers, and it goes on where it was."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys

import pytest

from p2ptunnel.net.sockets import LINUX
from p2ptunnel.session.session import Session
from tests.helpers import run
from tests.helpers.paces import hasten
from tests.helpers.peers import Peers

DEAD = 0.5
STOPPED = 2.0
SIZE = 20_000_000

PEER = f"""
import asyncio, hashlib, socket
from tests.helpers.peers import Peers

async def digest(request):
    async with request.accept() as stream:
        came = await stream.readexactly({SIZE})
        await stream.write(hashlib.sha256(came).digest())

async def main():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        sock, _ = listener.accept()
    sock.setblocking(False)
    peers = Peers("digest")
    peers.on_open = digest
    session = await peers.accept(sock)
    await session.closed.wait()
    await session.close()

asyncio.run(main())
"""


def states(session: Session) -> tuple[str, Exception | None]:
    return session.state, session.error


@pytest.mark.skipif(not LINUX, reason="only Linux tells what the other kernel has acknowledged")
def test_a_stopped_peer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hasten(monkeypatch, dead=DEAD)

    async def scenario(port: int, pid: int) -> None:
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setblocking(False)
        session = await Peers().connect(sock)
        assert isinstance(session, Session)
        stream = session.open("digest")
        block = os.urandom(SIZE)
        writing = asyncio.ensure_future(stream.write(block))
        while session.bytes_sent < SIZE // 10:
            await asyncio.sleep(0)
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(STOPPED)  # the fault itself
        assert states(session) == ("stalled", None)
        assert not writing.done()
        os.kill(pid, signal.SIGCONT)
        await writing
        assert await stream.readexactly(32) == hashlib.sha256(block).digest()
        assert states(session) == ("open", None)
        await session.close()

    with subprocess.Popen([sys.executable, "-c", PEER], stdout=subprocess.PIPE, text=True) as peer:
        assert peer.stdout is not None
        try:
            run(scenario(int(peer.stdout.readline()), peer.pid))
            assert peer.wait(10) == 0
        finally:
            peer.kill()
