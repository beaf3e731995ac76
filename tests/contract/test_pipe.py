"""What every Pipe promises (abc.Pipe): bytes both ways for whoever attaches, and no descriptor left whoever ends it."""

from __future__ import annotations

import asyncio
import socket

import pytest

from p2ptunnel.errors import LocalProtocolError
from tests.helpers import run
from tests.helpers.peers import new_pipe, tcp_pair


class Recorder(asyncio.Protocol):
    """Keeps what comes, and how it ends."""

    def __init__(self) -> None:
        self.came = bytearray()
        self.gone = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.came += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set_result(exc)


def test_an_attached_pipe_carries_bytes_both_ways() -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        recorder = Recorder()
        transport = await new_pipe(near).attach(lambda: recorder)
        transport.write(b"hello")
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(far, 100) == b"hello"
        await loop.sock_sendall(far, b"world")
        far.close()
        assert await recorder.gone is None
        assert recorder.came == b"world"

    run(scenario())


def test_an_attached_pipe_waits_for_no_ack_and_notices_a_dead_path() -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        transport = await new_pipe(near).attach(Recorder)
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 45_000
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 128 * 1024
        transport.abort()
        far.close()
        await asyncio.sleep(0)

    run(scenario())


def test_an_aborted_pipe_is_a_reset_to_the_other_end() -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        pipe = new_pipe(near)
        pipe.abort()
        pipe.abort()
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(far, 1)
        far.close()

    run(scenario())


def test_a_pipe_is_attached_once_and_its_transport_owns_it_then() -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        pipe = new_pipe(near)
        transport = await pipe.attach(Recorder)
        with pytest.raises(LocalProtocolError, match="a pipe is attached once"):
            await pipe.attach(Recorder)
        pipe.abort()
        transport.write(b"still here")
        assert await asyncio.get_running_loop().sock_recv(far, 100) == b"still here"
        transport.abort()
        far.close()
        await asyncio.sleep(0)

    run(scenario())


def test_an_aborted_pipe_is_not_attached() -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        pipe = new_pipe(near)
        pipe.abort()
        with pytest.raises(LocalProtocolError, match="a pipe is attached once"):
            await pipe.attach(Recorder)
        far.close()

    run(scenario())


@pytest.mark.parametrize("turns", range(4))
def test_a_cancelled_attach_leaves_nothing(turns: int) -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        attaching = asyncio.ensure_future(new_pipe(near).attach(Recorder))
        for _ in range(turns):
            await asyncio.sleep(0)
        attaching.cancel()
        [outcome] = await asyncio.gather(attaching, return_exceptions=True)
        if isinstance(outcome, asyncio.Transport):  # it was done before it could be cancelled
            outcome.abort()
        elif turns == 0:
            near.close()  # it has not begun: the pipe was never asked
        assert await asyncio.get_running_loop().sock_recv(far, 1) == b""
        far.close()

    run(scenario())
