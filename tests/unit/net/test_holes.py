"""The UDP sockets of a birthday: one port each, one reader, and nothing left but what a connection stands on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from p2ptunnel.errors import BindError
from p2ptunnel.net import holes as module
from p2ptunnel.net.holes import UdpHoles
from p2ptunnel.net.udp import UdpSocket
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.types import Address
from tests.helpers import run
from tests.helpers.turns import descriptors

LOOPBACK = ("127.0.0.1", 0)


class Beside:
    """Takes what begins with a Q, and notes that it goes on alone."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.is_alone = False

    def take(self, data: bytes, source: Address) -> bool:
        if data.startswith(b"Q"):
            self.taken.append(data)
        return data.startswith(b"Q")

    def outlive(self) -> None:
        self.is_alone = True


class World:
    """Holes, what has come to them, and somebody who sends."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self.came: list[tuple[int, bytes, Address]] = []
        self._arrived = asyncio.Event()
        self.holes = UdpHoles("127.0.0.1", 4, self._on_datagram, tracer=tracer)
        self.other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.other.bind(LOOPBACK)

    def _on_datagram(self, number: int, data: bytes, source: Address) -> None:
        self.came.append((number, data, source))
        self._arrived.set()

    def udp(self, number: int) -> UdpSocket:
        udp = self.holes.socket(number)
        assert udp is not None
        return udp

    def send(self, number: int, data: bytes) -> None:
        self.other.sendto(data, self.udp(number).address)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.came) < count:
                self._arrived.clear()
                await self._arrived.wait()


@contextlib.asynccontextmanager
async def world(tracer: Tracer | None = None) -> AsyncGenerator[World]:
    made = World(tracer)
    try:
        yield made
    finally:
        made.holes.close()
        made.other.close()


def test_each_has_a_port_of_its_own_and_tells_what_comes_there() -> None:
    async def main() -> None:
        async with world() as made:
            made.holes.open(range(1))
            made.holes.open(range(1, 5))
            assert len(made.holes) == len({made.udp(number).address for number in range(5)}) == 5
            assert {made.udp(number).opener_ttl for number in range(5)} == {4}
            for number in (3, 0):
                made.send(number, b"%d" % number)
            await made.until(2)
            there = made.other.getsockname()
            assert sorted(made.came) == [(0, b"0", there), (3, b"3", there)]

    run(main())


def test_what_stands_beside_one_has_its_datagrams_first() -> None:
    async def main() -> None:
        async with world() as made:
            made.holes.open(range(2))
            beside = Beside()
            made.holes.share(1, beside)
            for number in (1, 0):
                made.send(number, b"Q")
                made.send(number, b"J")
            await made.until(3)
            assert sorted(data for _, data, _ in made.came) == [b"J", b"J", b"Q"]
            assert beside.taken == [b"Q"]
            made.holes.close()
            assert beside.is_alone

    run(main())


def test_closed_they_are_gone_and_closing_twice_is_fine() -> None:
    async def main() -> None:
        events: list[TraceEvent] = []
        async with world(Tracer(events.append)) as made:
            before = descriptors()
            made.holes.open(range(40))
            assert descriptors() == before + 40
            for _ in range(2):
                made.holes.close()
                assert descriptors() == before
            assert made.holes.socket(3) is None
            assert len(made.holes) == 0
            assert [event.facts for event in events if event.name == "holes_closed"] == [{"holes": 40}]

    run(main())


def test_those_for_which_there_is_no_descriptor_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    left = [True] * 3

    class Few(UdpSocket):
        def __init__(self, *args: Any, **options: Any) -> None:
            if not left:
                raise BindError("127.0.0.1:0", "Too many open files")
            left.pop()
            super().__init__(*args, **options)

    async def main() -> None:
        async with world() as made:
            monkeypatch.setattr(module, "UdpSocket", Few)
            made.holes.open(range(9))
            assert len(made.holes) == 3
            assert made.holes.socket(3) is None

    run(main())


def test_one_may_close_them_all_while_it_is_read() -> None:
    async def main() -> None:
        holes: list[UdpHoles] = []
        came: list[bytes] = []
        arrived = asyncio.Event()

        def on_datagram(_number: int, data: bytes, _source: Address) -> None:
            came.append(data)
            holes[0].close()
            arrived.set()

        holes.append(UdpHoles("127.0.0.1", 4, on_datagram))
        holes[0].open(range(2))
        first = holes[0].socket(0)
        assert first is not None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            for data in (b"1", b"2"):
                other.sendto(data, first.address)
            async with asyncio.timeout(5):
                await arrived.wait()
        assert came == [b"1"]

    run(main())
