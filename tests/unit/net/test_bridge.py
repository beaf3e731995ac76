"""Two connections in one: what a far end that sends and does not read may cost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from typing import Final

import pytest
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol as FrameProtocol
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from p2ptunnel.net import bridge
from p2ptunnel.net.bridge import Bridges, End, Frames
from tests.helpers import run

MARK: Final = 64 * 1024  # of asyncio: from here on a transport is full
PONG: Final = 2 + 4 + 125
SIDES: Final = pytest.mark.parametrize("is_server", [True, False])


class Bridged:
    """Two ends that are bridged, and the sockets at both far sides of them."""

    def __init__(self, outer: End, far: socket.socket, near: socket.socket, *, is_server: bool) -> None:
        self.outer = outer
        self.far = far
        self.near = near
        self._is_masked = is_server

    def frame(self, opcode: Opcode, data: bytes) -> bytes:
        return Frame(opcode, data).serialize(mask=self._is_masked)

    @property
    def queued(self) -> int:
        assert self.outer.transport is not None
        return self.outer.transport.get_write_buffer_size()

    async def ping(self, number: int) -> None:
        """Send a ping and a byte behind it, and wait until that has come out at the other side."""
        loop = asyncio.get_running_loop()
        ping = self.frame(Opcode.PING, str(number).rjust(125).encode())
        await loop.sock_sendall(self.far, ping + self.frame(Opcode.BINARY, b"x"))
        assert await loop.sock_recv(self.near, 10) == b"x"

    async def fill(self) -> None:
        """Ping until no more is answered."""
        for _ in range(3000):
            before = self.queued
            await self.ping(0)
            if before and before == self.queued:
                return
        raise AssertionError(f"{self.queued} bytes are queued")


@contextlib.asynccontextmanager
async def bridged(*, is_server: bool) -> AsyncGenerator[Bridged]:
    protocol: FrameProtocol = (
        ServerProtocol(state=State.OPEN) if is_server else ClientProtocol(parse_uri("wss://x/"), state=State.OPEN)
    )
    bridges, loop = Bridges(), asyncio.get_running_loop()
    (far, outside), (inside, near) = socket.socketpair(), socket.socketpair()
    for sock in (far, outside, inside, near):
        sock.setblocking(False)
    _, outer = await loop.create_connection(End, sock=outside)
    _, inner = await loop.create_connection(End, sock=inside)
    bridges.add(outer, inner, Frames(protocol))
    try:
        yield Bridged(outer, far, near, is_server=is_server)
    finally:
        await bridges.close()
        far.close()
        near.close()


@SIDES
def test_who_pings_and_does_not_read_is_answered_no_more_and_what_it_sends_goes_on(is_server: bool) -> None:
    async def main() -> None:
        async with bridged(is_server=is_server) as ends:
            await ends.fill()
            assert MARK < ends.queued < MARK + 2 * PONG
            for number in range(1000):
                await ends.ping(number)
            assert ends.queued < MARK + 2 * PONG
            came, last = bytearray(), b"999".rjust(125)
            while len(came) < PONG or not is_last(bytes(came[-PONG:]), last, is_masked=not is_server):
                came += await asyncio.get_running_loop().sock_recv(ends.far, 65536)
            assert ends.outer._unread is None

    run(main())


def is_last(frame: bytes, data: bytes, *, is_masked: bool) -> bool:
    """Tell whether a frame of 125 bytes, or the end of one, holds them."""
    if not is_masked:
        return frame.endswith(data)
    mask = frame[2:6] * 32
    return bytes(one ^ other for one, other in zip(frame[6:], mask, strict=False)) == data


@SIDES
def test_who_leaves_answers_to_its_pings_unread_is_cut_off(monkeypatch: pytest.MonkeyPatch, is_server: bool) -> None:
    monkeypatch.setattr(bridge, "CONTROL_UNREAD", 0.3)

    async def main() -> None:
        async with bridged(is_server=is_server) as ends:
            await ends.fill()
            assert await asyncio.get_running_loop().sock_recv(ends.near, 10) == b""
            await ends.outer.gone.wait()

    run(main())


@SIDES
def test_of_pings_that_come_together_the_last_one_is_answered(is_server: bool) -> None:
    async def main() -> None:
        async with bridged(is_server=is_server) as ends:
            loop = asyncio.get_running_loop()
            pings = b"".join(ends.frame(Opcode.PING, str(number).rjust(125).encode()) for number in range(100))
            await loop.sock_sendall(ends.far, pings)
            answer = await loop.sock_recv(ends.far, 65536)
            assert len(answer) <= PONG
            assert is_last(answer, b"99".rjust(125), is_masked=not is_server)

    run(main())


@SIDES
def test_what_heaps_up_past_all_of_this_ends_it(monkeypatch: pytest.MonkeyPatch, is_server: bool) -> None:
    """TLS answers to who asks for new keys, for one, and tells nobody."""
    monkeypatch.setattr(bridge, "CONTROL_UNREAD", 0.05)

    async def main() -> None:
        async with bridged(is_server=is_server) as ends:
            assert ends.outer.transport is not None
            ends.outer.transport.write(bytes(2 * MARK))
            assert not ends.outer.is_heaped()
            ends.outer.transport.write(bytes(bridge._QUEUED_MAX_BYTES + 2 * MARK))
            assert await asyncio.get_running_loop().sock_recv(ends.near, 10) == b""
            await ends.outer.gone.wait()

    run(main())
