"""Asking the kernel for room, instead of writing until it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from asyncio.trsock import TransportSocket
from collections.abc import Generator

import pytest

from p2ptunnel.net.room import Room
from p2ptunnel.net.sockets import TELLS_UNSENT
from tests.helpers import run
from tests.helpers.peers import tcp_pair

pytestmark = pytest.mark.skipif(not TELLS_UNSENT, reason="nobody tells what is unsent here")


@contextlib.contextmanager
def watched() -> Generator[tuple[socket.socket, socket.socket, Room, asyncio.Event]]:
    """Two ends of a connection, and the room of the first one."""
    near, far = tcp_pair()
    found = asyncio.Event()
    room = Room(TransportSocket(near), found.set)
    try:
        with near, far:
            yield near, far, room, found
    finally:
        room.close()


def fill(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536))


def empty(sock: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.recv(1 << 20)


def test_room_that_is_there_is_told_once() -> None:
    async def scenario() -> None:
        with watched() as (_, _, room, found):
            assert room.wait()
            assert room.is_awaited
            await found.wait()
            assert not room.is_awaited

    run(scenario())


def test_room_is_told_when_the_other_side_has_read() -> None:
    async def scenario() -> None:
        with watched() as (near, far, room, found):
            room.limit(8192)
            fill(near)
            room.wait()
            for _ in range(10):
                await asyncio.sleep(0)
            assert not found.is_set()
            while not found.is_set():
                empty(far)
                await asyncio.sleep(0)

    run(scenario())


def test_the_limit_is_the_kernels() -> None:
    async def scenario() -> None:
        with watched() as (near, _, room, _):
            room.limit(12345)
            assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 12345

    run(scenario())


def test_closing_lets_go_of_the_connection_and_tells_nothing_more() -> None:
    async def scenario() -> None:
        with watched() as (near, far, room, found):
            room.wait()
            room.close()
            room.close()
            near.close()
            await asyncio.sleep(0)
            assert await asyncio.get_running_loop().sock_recv(far, 1) == b""
            assert not found.is_set()
            assert not room.wait()
            room.limit(8192)

    run(scenario())


def test_without_a_socket_nobody_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(24, os.strerror(24))

    async def scenario() -> None:
        assert not Room(None, lambda: None).wait()
        near, far = tcp_pair()
        with near, far:
            monkeypatch.setattr(TransportSocket, "dup", refuse)
            assert not Room(TransportSocket(near), lambda: None).wait()

    run(scenario())
