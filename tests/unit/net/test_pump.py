"""The pump between a real socket and a real stream: half-close, back-pressure, and what an error on either side comes to."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncGenerator

import pytest

from p2ptunnel.errors import AccessDeniedError, ChannelClosedError, ChannelLostError, StreamResetError
from p2ptunnel.net.pump import pump
from p2ptunnel.session.stream import SessionStream
from tests.helpers import run
from tests.helpers.peers import Peers, sessions, tcp_pair

MEGABYTE = 1024 * 1024


class Tunnel:
    """A local client, a pump, and the peer's end of the stream that it carries."""

    def __init__(self, client: socket.socket, pumping: asyncio.Future[None], ours: SessionStream, far: SessionStream) -> None:
        self.client, self.pumping, self.ours, self.far = client, pumping, ours, far
        self.loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.client, data)

    async def receive(self) -> bytes:
        return await self.loop.sock_recv(self.client, 65536)

    async def receive_all(self) -> bytes:
        parts = []
        while part := await self.receive():
            parts.append(part)
        return b"".join(parts)


@contextlib.asynccontextmanager
async def tunnel(buffer_bytes: int | None = None) -> AsyncGenerator[Tunnel]:
    peers = Peers("web")
    async with sessions(peers) as (caller, _):
        ours, far = await peers.stream(caller, "web")
        client, local = tcp_pair(buffer_bytes)
        pumping = asyncio.ensure_future(pump(ours, local))
        try:
            yield Tunnel(client, pumping, ours, far)
        finally:
            client.close()
            pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)
            assert local.fileno() == -1


def test_bytes_go_both_ways_and_an_end_in_each_direction_ends_the_pump() -> None:
    async def scenario() -> None:
        async with tunnel() as t:
            block = random.Random(1).randbytes(2 * MEGABYTE)
            sending = asyncio.ensure_future(t.send(block))
            assert await t.far.readexactly(len(block)) == block
            await sending
            t.client.shutdown(socket.SHUT_WR)
            assert await t.far.read() == b""
            assert not t.pumping.done()
            receiving = asyncio.ensure_future(t.receive_all())
            await t.far.write(block)
            await t.far.write_eof()
            assert await receiving == block
            await t.pumping

    run(scenario())


def test_the_far_end_may_end_first() -> None:
    async def scenario() -> None:
        async with tunnel() as t:
            await t.far.write(b"bye")
            await t.far.write_eof()
            assert await t.receive_all() == b"bye"
            await t.send(b"a moment")
            assert await t.far.read() == b"a moment"
            t.client.shutdown(socket.SHUT_WR)
            assert await t.far.read() == b""
            await t.pumping

    run(scenario())


def test_a_far_end_that_does_not_read_stops_the_client() -> None:
    async def scenario() -> None:
        async with tunnel() as t:
            sending = asyncio.ensure_future(t.send(bytes(64 * MEGABYTE)))
            before, still = -1, 0
            while still < 300:
                await asyncio.sleep(0)
                still = still + 1 if t.ours._mux.bytes_sent == before else 0
                before = t.ours._mux.bytes_sent
            assert not sending.done()
            assert before <= 256 * 1024
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    run(scenario())


def test_a_client_that_does_not_read_stops_the_far_end() -> None:
    async def scenario() -> None:
        async with tunnel() as t:
            sending = asyncio.ensure_future(t.far.write(bytes(64 * MEGABYTE)))
            for _ in range(2000):
                await asyncio.sleep(0)
            assert not sending.done()
            got = 0
            while got < 64 * MEGABYTE:
                got += len(await t.receive())
            await sending

    run(scenario())


def test_a_client_that_breaks_resets_the_stream() -> None:
    async def scenario() -> None:
        async with tunnel() as t:
            await t.far.write(b"unread")
            await readable(t.client)
            t.client.close()  # with bytes unread: the kernel sends a reset
            with pytest.raises(OSError, match=r"reset|Broken"):
                await t.pumping
            with pytest.raises(StreamResetError, match="the local connection was reset"):
                await t.far.read()

    run(scenario())


async def readable(sock: socket.socket) -> None:
    """Wait until there is something to read."""
    loop, waiting = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
    loop.add_reader(sock, lambda: waiting.done() or waiting.set_result(None))
    try:
        await waiting
    finally:
        loop.remove_reader(sock)


@pytest.mark.parametrize("fault", ["reset", "lost"])
def test_a_stream_that_breaks_resets_the_client(fault: str) -> None:
    async def scenario() -> None:
        async with tunnel() as t:
            await t.far.write(b"partial")
            assert await t.receive() == b"partial"
            if fault == "reset":
                t.far.abort("target died")
            else:
                t.far._carrier.abort()
            with pytest.raises((StreamResetError, ChannelLostError)):
                await t.pumping
            with pytest.raises(ConnectionResetError):  # never a clean end
                await t.receive()

    run(scenario())


def test_a_refusal_is_raised_as_it_is() -> None:
    async def scenario() -> None:
        async with sessions(Peers()) as (caller, _):
            client, local = tcp_pair()
            with pytest.raises(AccessDeniedError):
                await pump(caller.open("web"), local)
            client.setblocking(True)
            with client, pytest.raises(ConnectionResetError):
                client.recv(1)

    run(scenario())


def test_an_answer_is_delivered_although_the_far_end_takes_no_more() -> None:
    async def scenario() -> None:
        async with tunnel(buffer_bytes=16384) as t:
            uploading = asyncio.ensure_future(t.send(bytes(8 * MEGABYTE)))
            await t.far.readexactly(1000)
            answer = random.Random(2).randbytes(200_000)
            await t.far.write(answer)
            await t.far.close()  # as a web server does that refuses a large upload
            came = bytearray()
            with contextlib.suppress(ConnectionResetError):
                while part := await t.receive():
                    came += part
            assert came == answer
            uploading.cancel()
            await asyncio.gather(uploading, t.pumping, return_exceptions=True)

    run(scenario())


def test_a_cancelled_pump_resets_both_sides() -> None:
    async def scenario() -> None:
        async with tunnel() as t:
            await t.send(b"x")
            assert await t.far.read() == b"x"
            t.pumping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await t.pumping
            with pytest.raises(StreamResetError):
                await t.far.read()
            with pytest.raises(ConnectionResetError):
                await t.receive()
            with pytest.raises((StreamResetError, ChannelClosedError)):
                await t.ours.write(b"x")

    run(scenario())


@pytest.mark.parametrize("turns", range(1, 12))
def test_cancelling_at_any_turn_closes_the_socket(turns: int) -> None:
    async def scenario() -> None:
        async with tunnel() as t:
            sending = asyncio.ensure_future(t.send(bytes(500_000)))
            for _ in range(turns):
                await asyncio.sleep(0)
            t.pumping.cancel()
            await asyncio.gather(t.pumping, return_exceptions=True)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    run(scenario())
