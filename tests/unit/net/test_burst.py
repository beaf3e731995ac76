"""Many dials at once, on loopback: who connects is handed over, the rest is counted, and nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from p2ptunnel.net.burst import Burst
from p2ptunnel.net.dial import punch_socket
from p2ptunnel.net.tcp import How
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.types import Address
from tests.helpers import run
from tests.helpers.turns import descriptors

LOOPBACK: Address = ("127.0.0.1", 0)


class Side:
    """A burst on a port of its own, and what it has handed over."""

    def __init__(self) -> None:
        self.port = punch_socket(LOOPBACK)
        self.address: Address = self.port.getsockname()
        self.up: list[tuple[socket.socket, Address, How]] = []
        self.events: list[TraceEvent] = []
        self._changed = asyncio.Event()
        self.burst = Burst(self.address, self._connected, tracer=Tracer(self.events.append))

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.burst.close()
        self.burst.close()
        self.port.close()
        for sock, _, _ in self.up:
            sock.close()

    def _connected(self, sock: socket.socket, remote: Address, how: How) -> None:
        self.up.append((sock, remote, how))
        self._changed.set()

    async def connected(self) -> tuple[socket.socket, Address, How]:
        """The first connection."""
        while not self.up:
            self._changed.clear()
            await self._changed.wait()
        return self.up[0]

    async def idle(self) -> None:
        while len(self.burst):
            await asyncio.sleep(0)


def accepted_from(listener: socket.socket) -> Address:
    sock, address = listener.accept()
    sock.close()
    return (address[0], address[1])


def test_holes_have_ports_of_their_own_and_guesses_the_one_that_is_punched() -> None:
    async def main() -> None:
        with Side() as side, socket.create_server(LOOPBACK) as peer:
            side.burst.open_holes(4, peer.getsockname(), low_ttl=None, patience=5.0)
            side.burst.probe("127.0.0.1", [peer.getsockname()[1]], patience=5.0)
            await side.idle()
            ports = [accepted_from(peer)[1] for _ in range(5)]
            assert len(set(ports)) == 5
            assert ports.count(side.address[1]) == 1
            assert len(side.up) == 5
            assert {how for _, _, how in side.up} == {"connect"}

    run(main())


def test_a_hole_that_is_found_is_handed_over() -> None:
    async def main() -> None:
        with Side() as hard, Side() as easy:
            hard.burst.open_holes(1, easy.address, low_ttl=1, patience=5.0)  # loopback has no hop where it could die
            await hard.idle()  # so it is refused: the other side is bound and no more
            assert hard.burst.outcomes == {"refused": 1}
            easy.port.listen()
            hard.burst.open_holes(1, easy.address, low_ttl=1, patience=5.0)
            _, remote, how = await hard.connected()
            assert (remote, how) == (easy.address, "opener")

    run(main())


def test_what_nobody_answers_is_closed_and_each_dial_is_made_once() -> None:
    async def main() -> None:
        before = descriptors()
        with Side() as side, contextlib.closing(socket.socket()) as closed:
            closed.bind(LOOPBACK)
            side.burst.probe("127.0.0.1", [closed.getsockname()[1]] * 3, patience=5.0)
            side.burst.open_holes(20, ("127.0.0.1", closed.getsockname()[1]), low_ttl=None, patience=5.0)
            await side.idle()
            assert not side.up
            assert side.burst.outcomes["refused"] >= 20
            assert descriptors() == before + 2
        assert descriptors() == before
        [told] = [event for event in side.events if event.name == "burst_ended"]
        assert told.facts["refused"] == 23

    run(main())


def test_closed_it_resets_all_that_is_under_way_and_keeps_what_was_handed_over() -> None:
    async def main() -> None:
        with Side() as side, socket.create_server(LOOPBACK) as peer, contextlib.closing(socket.socket()) as silent:
            side.burst.probe("127.0.0.1", [peer.getsockname()[1]], patience=5.0)
            sock, _, _ = await side.connected()
            before = descriptors()
            silent.bind(LOOPBACK)
            silent.listen(0)
            for _ in range(3):
                side.burst.open_holes(1, silent.getsockname(), low_ttl=None, patience=60.0)
            side.burst.close()
            assert len(side.burst) == 0
            assert descriptors() == before
            assert sock.fileno() >= 0
            await asyncio.sleep(0)
            assert len(side.up) == 1

    run(main())
