"""The preamble as it comes over a real socket: exactly it is read, and junk is refused."""

from __future__ import annotations

import asyncio
import errno
import os
import socket

import pytest

from p2ptunnel.errors import RemoteProtocolError
from p2ptunnel.transports.tcp import read_preamble
from p2ptunnel.wire.frames import PREAMBLE_BYTES, preamble
from tests.helpers import run
from tests.helpers.peers import tcp_pair

SELECTOR = bytes(range(16))


def test_exactly_the_preamble_is_read() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        near, far = tcp_pair()
        with near, far:
            await loop.sock_sendall(far, preamble(SELECTOR) + b"what comes behind")
            assert await read_preamble(near) == SELECTOR
            assert await loop.sock_recv(near, 100) == b"what comes behind"

    run(scenario())


def test_a_preamble_in_single_bytes_is_read() -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        with near, far:
            reading = asyncio.ensure_future(read_preamble(near))
            for byte in preamble(SELECTOR):
                far.send(bytes([byte]))
                await asyncio.sleep(0)
            assert await reading == SELECTOR

    run(scenario())


@pytest.mark.parametrize(
    "sent",
    [b"G", b"\x16\x03\x01", os.urandom(100), preamble(SELECTOR)[:8].lower()],
    ids=["http", "tls", "noise", "another case"],
)
def test_junk_is_refused_without_waiting_for_more(sent: bytes) -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        with near, far:
            far.send(sent)
            with pytest.raises(RemoteProtocolError, match="does not begin with a preamble"):
                await read_preamble(near)

    run(scenario())


@pytest.mark.parametrize("length", [0, 1, PREAMBLE_BYTES - 1])
def test_an_end_or_silence_before_the_preamble_is_whole_is_refused(length: int) -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        with near:
            far.send(preamble(SELECTOR)[:length])
            with pytest.raises(RemoteProtocolError, match=r"no preamble in 0.01 s"):
                await read_preamble(near, timeout=0.01)
            far.close()
            with pytest.raises(RemoteProtocolError):
                await read_preamble(near)

    run(scenario())


def test_a_dead_path_is_the_systems_timeout_and_not_our_own() -> None:
    class DeadPath(asyncio.SelectorEventLoop):
        """Its sockets find, as those of a black-holed connection do, that the kernel has given up."""

        async def sock_recv(self, sock: socket.socket, nbytes: int) -> bytes:
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    near, far = tcp_pair()
    with near, far, asyncio.Runner(loop_factory=DeadPath) as runner, pytest.raises(TimeoutError) as error:
        runner.run(read_preamble(near))
    assert error.value.errno == errno.ETIMEDOUT


def test_a_broken_connection_is_the_systems_error() -> None:
    async def scenario() -> None:
        near, far = tcp_pair()
        with near:
            near.send(b"unread")
            far.close()
            with pytest.raises(ConnectionResetError):
                await read_preamble(near)

    run(scenario())
