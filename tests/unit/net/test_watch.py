"""Being called when a socket is ready, on loops that can watch sockets and on those that cannot."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from p2ptunnel.net.reflexive import TcpControl, observe_udp
from p2ptunnel.net.tcp import Dialer, Listener
from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.net.watch import Watch
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.types import Address

LOOPBACK: Address = ("127.0.0.1", 0)


class Proactor(asyncio.SelectorEventLoop):
    """A loop that cannot watch sockets, as on Windows; its own needs it meets by private methods."""

    def add_reader(self, *_: object) -> None:
        raise NotImplementedError

    def add_writer(self, *_: object) -> None:
        raise NotImplementedError


@pytest.fixture(params=[asyncio.SelectorEventLoop, Proactor])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Coroutine[Any, Any, None]], None]]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


@contextlib.contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def test_readable_socket_calls_until_stopped(run: Callable[..., None]) -> None:
    async def main() -> None:
        read: list[bytes] = []
        with pair() as (ours, theirs):
            done = asyncio.Event()

            def on_readable() -> None:
                with contextlib.suppress(BlockingIOError):
                    read.append(ours.recv(1))
                if len(read) == 2:
                    watch.stop()
                    watch.stop()
                    done.set()

            watch = Watch(ours, on_readable)
            theirs.send(b"123")
            await done.wait()
            again = asyncio.Event()
            third = Watch(ours, again.set)
            await again.wait()
            third.stop()
            assert read == [b"1", b"2"]

    run(main())


def test_writable_socket_calls(run: Callable[..., None]) -> None:
    async def main() -> None:
        with pair() as (ours, _):
            called = asyncio.Event()
            watch = Watch(ours, called.set, for_writing=True)
            await called.wait()
            watch.stop()

    run(main())


def test_datagrams_connections_and_dials_work_on_every_loop(run: Callable[..., None]) -> None:
    async def main() -> None:
        async with UdpDriver(Observer(), UdpSocket(LOOPBACK), lambda _: None) as driver:
            assert (await observe_udp(LOOPBACK, driver.udp.address)).address[0] == "127.0.0.1"
        accepted: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        connected: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        listener = Listener(LOOPBACK, lambda sock, _: accepted.set_result(sock))
        dialer = Dialer(LOOPBACK, lambda sock, *_: connected.set_result(sock), rng=random.Random(1))
        dialer.start([listener.address])
        for sock in (await accepted, await connected):
            sock.close()
        dialer.close()
        listener.close()

    run(main())


def test_closed_control_connection_leaves_nothing_on_every_loop(run: Callable[..., None]) -> None:
    async def main() -> None:
        with socket.socket() as server:
            server.bind(LOOPBACK)
            server.listen()
            with pytest.raises(TimeoutError):
                await TcpControl.open(0, server.getsockname(), 0.05)

    run(main())
