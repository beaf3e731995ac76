"""What an agent asks for, done with sockets: dials, holes, guesses, a look at the NAT; and the end of all of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncGenerator, Generator

import pytest

from p2ptunnel.errors import BindError
from p2ptunnel.net import dial as dial_module
from p2ptunnel.net import interfaces as interfaces_module
from p2ptunnel.net.tcp import How
from p2ptunnel.protocol.birthday import BirthdayEnded, OpenHoles, SendProbes
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.punch import Dial, ObserveRow, StopDialing, TakePort
from p2ptunnel.server import Rendezvous
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.transports.quic import QuicPipe
from p2ptunnel.transports.quicport import quic_name
from p2ptunnel.traversal import attempt as module
from p2ptunnel.traversal.attempt import AttemptSockets, NextRound
from p2ptunnel.traversal.port import OpenerTtl, PunchPort, take_number
from p2ptunnel.types import Address, ServerSpec
from tests.helpers import run
from tests.helpers.quic import CONKEY, Port, new_consents
from tests.helpers.turns import descriptors, settle
from tests.unit.traversal.wires import LOOPBACK


class Attempt:
    """The sockets of one attempt, and what they have told."""

    def __init__(self, port: PunchPort) -> None:
        self.up: list[tuple[socket.socket, Address, How]] = []
        self.rows: list[int | None] = []
        self._changed = asyncio.Event()
        self.holes: list[tuple[int, bytes]] = []
        self.sockets = AttemptSockets(port, self._connected, self._on_row, on_hole=self._on_hole)

    def _connected(self, sock: socket.socket, remote: Address, how: How) -> None:
        self.up.append((sock, remote, how))
        self._changed.set()

    def _on_row(self, port: int | None) -> None:
        self.rows.append(port)
        self._changed.set()

    def _on_hole(self, number: int, data: bytes, _: Address) -> None:
        self.holes.append((number, data))
        self._changed.set()

    async def until(self, count: int) -> None:
        while len(self.up) + len(self.rows) + len(self.holes) < count:
            self._changed.clear()
            await self._changed.wait()


@contextlib.asynccontextmanager
async def attempt() -> AsyncGenerator[tuple[Attempt, PunchPort]]:
    async with Rendezvous(LOOPBACK) as server:
        port = await PunchPort.open(server.address, OpenerTtl())
        made = Attempt(port)
        try:
            yield made, port
        finally:
            made.sockets.close()
            await made.sockets.wait_closed()
            port.close()
            for sock, _, _ in made.up:
                sock.close()


def test_each_wish_makes_its_sockets() -> None:
    async def main() -> None:
        async with attempt() as (made, port):
            with socket.create_server(LOOPBACK) as peer:
                there: Address = peer.getsockname()
                made.sockets.take(Dial("token", (there,), low=False, patience=5.0))
                await made.until(1)
                made.sockets.take(OpenHoles(range(3), there, "tcp", low=False, token="token"))
                await made.until(4)
                assert made.up[0][0].getsockname() == port.address
                assert len({sock.getsockname() for sock, _, _ in made.up}) == 4
            with socket.create_server(LOOPBACK) as other:
                made.sockets.take(SendProbes("127.0.0.1", (other.getsockname()[1],), "tcp", 5.0, "token"))
                await made.until(5)
                assert made.up[4][0].getsockname() == port.address
            assert len(made.sockets.records) == 1  # what a birthday dials is too much to be told one by one

    run(main())


def test_what_is_dialled_beside_stays_when_a_phase_ends() -> None:
    async def main() -> None:
        async with attempt() as (made, port):
            with socket.create_server(LOOPBACK) as peer:
                made.sockets.take(Dial("token", (peer.getsockname(),), low=False, patience=5.0, is_unseen=True, is_beside=True))
                made.sockets.take(Dial("token", (), low=False, patience=5.0))
                await made.until(1)
                assert made.up[0][0].getsockname() == port.address

    run(main())


def test_what_is_dialled_beside_goes_nowhere_but_where_packets_to_the_server_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def source(host: str) -> str:
        if host == "198.51.100.9":
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return "10.8.0.2" if host.startswith("127.0.0.2") else "192.168.1.7"

    monkeypatch.setattr(interfaces_module, "source_address", source)

    async def main() -> None:
        async with attempt() as (made, _):
            with socket.create_server(LOOPBACK) as there, socket.create_server(("127.0.0.2", 0)) as in_vpn:
                targets = (in_vpn.getsockname(), ("198.51.100.9", 40_000), there.getsockname())
                made.sockets.take(Dial("token", targets, low=False, patience=5.0, is_unseen=True, is_beside=True))
                await made.until(1)
                assert [record.target for record in made.sockets.records] == [there.getsockname()]
                made.sockets.take(Dial("token", targets[:2], low=False, patience=5.0, is_unseen=True, is_beside=True))
                assert len(made.sockets.records) == 1

    run(main())


def test_where_the_nat_stands_is_told() -> None:
    async def main() -> None:
        async with attempt() as (made, port):
            made.sockets.take(ObserveRow("token"))
            await made.until(1)
            assert made.rows != [None]
            assert made.rows != [port.address[1]]

    run(main())


def test_the_end_of_a_birthday_closes_its_sockets_and_no_others() -> None:
    async def main() -> None:
        async with attempt() as (made, _):
            with socket.socket() as silent:
                silent.bind(LOOPBACK)
                silent.listen(0)
                with socket.create_connection(silent.getsockname()):  # its queue is full
                    before = descriptors()
                    made.sockets.take(Dial("token", (silent.getsockname(),), low=False, patience=5.0))
                    made.sockets.take(OpenHoles(range(9), silent.getsockname(), "tcp", low=False, token="token"))
                    assert descriptors() >= before + 9
                    made.sockets.take(BirthdayEnded("chosen", token="token"))
                    assert descriptors() <= before + 1
                    made.sockets.take(StopDialing("token"))
                    assert descriptors() == before

    run(main())


@pytest.mark.parametrize("end", [BirthdayEnded("chosen", token="token"), StopDialing("token")])
def test_holes_over_udp_take_what_comes_and_are_closed_with_their_birthday(end: Event) -> None:
    async def main() -> None:
        async with attempt() as (made, port):
            before = descriptors()
            made.sockets.take(OpenHoles(range(1), LOOPBACK, "udp", low=False, token="token"))
            made.sockets.take(OpenHoles(range(1, 9), LOOPBACK, "udp", low=True, token="token"))
            made.sockets.take(SendProbes("127.0.0.1", (9,), "udp", 5.0, "token"))  # leaves with the agent's datagrams
            assert descriptors() == before + 9
            hole = made.sockets.hole(7)
            assert hole is not None
            assert hole.opener_ttl == port.udp.opener_ttl
            port.udp.send(b"hello", hole.address)
            await made.until(1)
            assert made.holes == [(7, b"hello")]
            made.sockets.take(end)
            assert descriptors() == before
            assert made.sockets.hole(7) is None
            assert made.sockets.quic_at(7) is None

    run(main())


def test_a_connection_at_a_hole_outlives_the_others() -> None:
    async def main() -> None:
        async with attempt() as (made, _):
            made.sockets.take(OpenHoles(range(9), LOOPBACK, "udp", low=True, token="token"))
            quic, hole = made.sockets.quic_at(3), made.sockets.hole(3)
            assert quic is not None
            assert hole is not None
            far = Port()
            near, other = new_consents(hole.address, far.address)
            before = descriptors()

            def begin(first: bytes, _: Address) -> bool:
                accepting.append(asyncio.ensure_future(far.quic.accept(quic_name(CONKEY), other, first)))
                return True

            accepting: list[asyncio.Future[QuicPipe]] = []
            far.quic.expect(quic_name(CONKEY), begin)
            pipe = await quic.connect(quic_name(CONKEY), near, None)
            there = await accepting[0]
            made.sockets.take(BirthdayEnded("chosen", token="token"))
            assert descriptors() == before - 8
            assert pipe.path.local == hole.address
            pipe.abort()
            there.abort()
            await settle(before - 9)
            far.driver.close()

    run(main())


def test_stopped_it_looks_no_more() -> None:
    async def main() -> None:
        async with attempt() as (made, _):
            before = descriptors()
            made.sockets.take(ObserveRow("token"))
            await asyncio.sleep(0)
            made.sockets.take(StopDialing("token"))
            await made.sockets.wait_closed()
            await settle(before)  # the server's end as well
            assert made.rows == []

    run(main())


# --- where nobody but the peer says that it is there ------------------------------------------------------------------


@pytest.fixture
def closed() -> Generator[Address]:
    """An address that answers every SYN by RST."""
    with socket.socket() as keeper:
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()


async def reason_of(wanted: Dial) -> str:
    """Return how a dial ended, in words."""
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_event(event: TraceEvent) -> None:
        if event.name == "dial_ended":
            ended.set_result(str(event.facts["reason"]))

    tracer = Tracer(on_event)
    port = PunchPort(take_number("127.0.0.1", tracer), ServerSpec(("127.0.0.1", 7000)), tracer)
    with contextlib.closing(port):
        sockets = AttemptSockets(port, lambda *_: pytest.fail("it connected"), lambda _: None, tracer=tracer)
        sockets.take(wanted)
        try:
            return await ended
        finally:
            sockets.close()


def test_a_syn_that_is_refused_where_nobody_has_seen_the_peer_is_not_sent_again(closed: Address) -> None:
    assert run(reason_of(Dial("token", (closed,), low=False, patience=5.0, is_unseen=True))) == "Connection refused"


def test_where_the_server_has_seen_it_it_is(closed: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REDIALS_PER_PHASE", 2)
    assert run(reason_of(Dial("token", (closed,), low=False, patience=5.0))) == "Connection refused, 3 times"


# --- a second round ---------------------------------------------------------------------------------------------------


class Second:
    """An attempt that may have a second round: what it asks for, and what it is told."""

    def __init__(self, port: PunchPort) -> None:
        self.taken: list[PunchPort] = []
        self.accepted: list[Address] = []
        self.burnt = 0
        self.has_port = True
        self.told = asyncio.Event()
        self.first = port
        later = NextRound(self._open, self._on_accepted, self._on_taken, self._on_burnt)
        self.up: list[socket.socket] = []
        self.sockets = AttemptSockets(port, self._on_connected, lambda _: None, later)

    async def _open(self) -> PunchPort | None:
        if not self.has_port:
            return None
        return await PunchPort.open(self.first.spec, OpenerTtl())

    def _on_connected(self, sock: socket.socket, *_: object) -> None:
        self.up.append(sock)
        self.told.set()

    def _on_accepted(self, sock: socket.socket, remote: Address) -> None:
        sock.close()
        self.accepted.append(remote)
        self.told.set()

    def _on_taken(self, port: PunchPort) -> None:
        self.taken.append(port)
        self.told.set()

    def _on_burnt(self) -> None:
        self.burnt += 1
        self.told.set()

    async def next(self) -> None:
        await self.told.wait()
        self.told.clear()


@contextlib.asynccontextmanager
async def second() -> AsyncGenerator[Second]:
    async with Rendezvous(LOOPBACK) as server:
        port = await PunchPort.open(server.address, OpenerTtl())
        made = Second(port)
        try:
            yield made
        finally:
            made.sockets.close()
            await made.sockets.wait_closed()
            port.close()
            for sock in made.up:
                sock.close()


def test_a_second_round_dials_and_listens_on_a_port_of_its_own_and_leaves_the_first_alone() -> None:
    async def main() -> None:
        async with second() as made:
            with socket.socket() as silent, socket.create_server(LOOPBACK) as there:
                silent.bind(LOOPBACK)
                silent.listen(0)
                with socket.create_connection(silent.getsockname()):  # its queue is full
                    made.sockets.take(Dial("token", (silent.getsockname(),), low=False, patience=5.0))
                    made.sockets.take(TakePort("token"))
                    made.sockets.take(TakePort("token"))
                    await made.next()
                    [port] = made.taken
                    assert port.address != made.first.address
                    made.sockets.take(Dial("token", (there.getsockname(),), low=False, patience=5.0, round=1))
                    await made.next()
                    assert made.up[0].getsockname() == port.address
                    assert [record.outcome for record in made.sockets.records] == [None, "connected"]
                    socket.create_connection(port.address).close()
                    await made.next()
                    assert len(made.accepted) == 1

    run(main())


@pytest.mark.parametrize("is_ready", [True, False])
def test_closed_it_leaves_nothing_of_either_round(is_ready: bool) -> None:
    async def main() -> None:
        async with second() as made:
            before = descriptors()
            assert not made.sockets.has_other
            made.sockets.take(TakePort("token"))
            assert not made.sockets.has_other  # it may get none
            if is_ready:
                await made.next()
            assert made.sockets.has_other is is_ready
            made.sockets.take(StopDialing("token"))
            await made.sockets.wait_closed()
            await settle(before)
            assert all(port.udp.is_closed for port in made.taken)

    run(main())


def test_where_there_is_no_port_no_second_round_dials() -> None:
    async def main() -> None:
        async with second() as made:
            made.has_port = False
            made.sockets.take(TakePort("token"))
            made.sockets.take(Dial("token", (("127.0.0.1", 9),), low=False, patience=5.0, round=1))
            await asyncio.sleep(0)
            assert (made.taken, made.sockets.records) == ([], ())

    run(main())


def test_a_port_that_nobody_can_listen_on_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> tuple[()]:
        raise BindError("127.0.0.1:1", "taken")

    async def main() -> None:
        async with second() as made:
            before = descriptors()
            monkeypatch.setattr(PunchPort, "listen", refused)
            made.sockets.take(TakePort("token"))
            assert made.sockets._taking is not None
            await made.sockets._taking
            await settle(before)
            assert made.taken == []

    run(main())


def test_that_another_program_has_the_port_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(_: Address, __: Address | None = None) -> socket.socket:
        raise OSError(errno.EADDRINUSE, "taken")

    async def main() -> None:
        async with second() as made:
            monkeypatch.setattr(dial_module, "punch_socket", taken)
            made.sockets.take(Dial("token", (("127.0.0.1", 9),), low=False, patience=5.0))
            await made.next()
            assert made.burnt == 1

    run(main())
