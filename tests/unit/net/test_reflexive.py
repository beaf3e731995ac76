"""How we look from outside, asked of an observer on loopback; and the standing TCP connection to a server."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from p2ptunnel.errors import BindError, InvalidAddressError, RendezvousError, RendezvousTimeoutError
from p2ptunnel.net import reflexive
from p2ptunnel.net.reflexive import TcpControl, _Question, observe_tcp, observe_udp
from p2ptunnel.net.tcp import Listener
from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.protocol.machine import Datagram, MachineBase
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import (
    HoleProbe,
    Message,
    Observed,
    Opener,
    ReflexiveAnswer,
    ReflexiveProbe,
    Signal,
    SignalExtra,
    decode,
    encode,
)
from tests.helpers import run

LOOPBACK: Address = ("127.0.0.1", 0)
Answer = Callable[[ReflexiveProbe, Address], ReflexiveAnswer | None]


def honest(probe: ReflexiveProbe, source: Address) -> ReflexiveAnswer:
    return Observer().answer(probe, source)


class Server(asyncio.Protocol):
    """The far end of a control connection: answers t=5, and shows what it got."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._buffer = b""
        self.received: list[Message] = []
        self.made: asyncio.Future[asyncio.Transport] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.source: Address = transport.get_extra_info("peername")
        self.made.set_result(transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            message = decode(line)
            self.received.append(message)
            if isinstance(message, ReflexiveProbe) and (answer := self._answer(message, self.source)):
                self.send(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)

    def send(self, message: Message) -> None:
        self.made.result().write(encode(message) + b"\n")


@asynccontextmanager
async def serving(answer: Answer = honest) -> AsyncIterator[tuple[Address, Server]]:
    server = Server(answer)
    listening = await asyncio.get_running_loop().create_server(lambda: server, *LOOPBACK)
    try:
        yield listening.sockets[0].getsockname(), server
    finally:
        listening.close()
        if server.made.done():
            server.made.result().abort()
            await server.lost
        await listening.wait_closed()


@asynccontextmanager
async def observing(machine: MachineBase | None = None) -> AsyncIterator[Address]:
    udp = UdpSocket(LOOPBACK)
    async with UdpDriver(machine or Observer(), udp, lambda _: None):  # type: ignore[arg-type]
        yield udp.address


class Reluctant(Observer):
    """Answers the third time, and sends other things before."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bytes] = []

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        self.asked.append(data)
        if len(self.asked) == 3:
            super().receive_datagram(data, source, now)
        else:
            stranger = ReflexiveAnswer(mid=1, code=200, extra=Observed(host="192.0.2.1", port=1))
            self._datagrams += [Datagram(b"{", source), Datagram(encode(stranger), source)]


def test_udp_tells_our_own_address_on_loopback() -> None:
    async def main() -> None:
        async with observing() as server:
            udp = UdpSocket(LOOPBACK)
            seen = await observe_udp(udp.address, server)
            udp.close()
            assert seen.address == udp.address
            assert 0 < seen.rtt < 1

    run(main())


def test_udp_asks_again_until_it_is_answered() -> None:
    async def main() -> None:
        reluctant = Reluctant()
        async with observing(reluctant) as server:
            seen = await observe_udp(LOOPBACK, server)
            assert seen.address[0] == "127.0.0.1"
        assert len(set(reluctant.asked)) == 1  # the same question, three times
        assert len(reluctant.asked) == 3

    run(main())


def test_udp_gives_up_with_the_server_and_the_time() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(LOOPBACK)
            host, port = silent.getsockname()
            with pytest.raises(RendezvousTimeoutError) as caught:
                await observe_udp(LOOPBACK, (host, port), timeout=0.05)
            assert str(caught.value) == f"{host}:{port} did not answer over UDP or TCP in 0.05 s"

    run(main())


def test_answer_from_elsewhere_is_none() -> None:
    server, stranger = ("192.0.2.1", 7000), ("192.0.2.2", 7000)
    question = _Question(server, 5.0, random.Random(1), now=0.0)
    [asked] = question.datagrams_to_send()
    probe = decode(asked.data)
    assert isinstance(probe, ReflexiveProbe)
    answer = encode(honest(probe, ("192.0.2.9", 9)))
    question.receive_datagram(answer, stranger, now=0.1)
    assert question.events() == []
    question.receive_datagram(answer, server, now=0.1)
    assert len(question.events()) == 1


def test_udp_leaves_the_port_to_its_other_users() -> None:
    async def main() -> None:
        async with observing() as first, observing() as second:
            udp = UdpSocket(LOOPBACK)
            seen = await asyncio.gather(observe_udp(udp.address, first), observe_udp(udp.address, second))
            assert [each.address for each in seen] == [udp.address, udp.address]
            assert list(udp.receive()) == []
            udp.close()

    run(main())


def test_udp_port_of_a_foreign_socket_cannot_be_asked_for() -> None:
    async def main() -> None:
        foreign = UdpSocket(LOOPBACK, shared=False)
        with pytest.raises(BindError):
            await observe_udp(foreign.address, ("127.0.0.1", 9))
        foreign.close()

    run(main())


def test_udp_server_must_be_numeric() -> None:
    with pytest.raises(InvalidAddressError):
        run(observe_udp(LOOPBACK, ("localhost", 9)))


def test_control_connection_learns_our_address_and_the_round_trip() -> None:
    async def main() -> None:
        async with serving() as (address, server):
            control = await TcpControl.open(0, address)
            assert control.observed == control.local == server.source
            assert control.server == address
            assert 0 < control.rtt < 1
            await control.close()

    run(main())


def test_control_connection_shares_its_port_with_listener_udp_and_dials() -> None:
    async def main() -> None:
        async with serving() as (address, server):
            udp = UdpSocket(("0.0.0.0", 0))
            port = udp.address[1]
            listener = Listener(("0.0.0.0", port), lambda *_: None)
            control = await TcpControl.open(port, address)
            assert server.source == ("127.0.0.1", port)
            async with serving() as (elsewhere, _):
                assert (await observe_tcp(port, elsewhere)).address == ("127.0.0.1", port)
            await control.close()
            listener.close()
            udp.close()

    run(main())


def test_messages_travel_both_ways_as_lines() -> None:
    async def main() -> None:
        arrived: asyncio.Queue[Message] = asyncio.Queue()
        async with serving() as (address, server):
            control = await TcpControl.open(0, address, on_message=arrived.put_nowait)
            server.send(Opener())
            server.made.result().write(b"no message\n" + b"x" * 5000 + b"\n")
            server.send(HoleProbe(mid=7, token="t"))
            assert [await arrived.get(), await arrived.get()] == [Opener(), HoleProbe(mid=7, token="t")]
            assert control.send(HoleProbe(mid=8, token="t"))
            await control.close()
            await server.lost
            assert server.received[1:] == [HoleProbe(mid=8, token="t")]

    run(main())


def test_answer_to_somebody_elses_question_is_a_message() -> None:
    async def main() -> None:
        arrived: asyncio.Queue[Message] = asyncio.Queue()
        async with serving() as (address, _):
            control = await TcpControl.open(0, address, on_message=arrived.put_nowait)
            assert control.send(ReflexiveProbe(mid=1))
            answer = await arrived.get()
            assert isinstance(answer, ReflexiveAnswer)
            assert answer.mid == 1
            await control.close()

    run(main())


def test_close_is_by_rst_tells_nobody_and_may_come_twice() -> None:
    async def main() -> None:
        lost: list[str] = []
        async with serving() as (address, server):
            control = await TcpControl.open(0, address, on_lost=lost.append)
            await control.close()
            await control.close()
            assert isinstance(await server.lost, ConnectionResetError)
            assert control.send(Opener()) is False
        assert lost == []

    run(main())


def test_end_of_the_connection_is_told_once_with_the_reason() -> None:
    async def main() -> None:
        traced: list[TraceEvent] = []
        lost: asyncio.Queue[str] = asyncio.Queue()
        async with serving() as (address, server):
            control = await TcpControl.open(0, address, on_lost=lost.put_nowait, tracer=Tracer(traced.append))
            server.made.result().close()
            assert await lost.get() == "the server closed the connection"
            assert control.send(Opener()) is False
            await control.close()
        assert lost.empty()
        assert [event.name for event in traced] == ["control_lost"]

    run(main())


def test_question_is_repeated_to_keep_the_mapping_and_silence_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflexive, "CONTROL_KEEPALIVE", 0.02)
    answers = 3

    def answer(probe: ReflexiveProbe, source: Address) -> ReflexiveAnswer | None:
        nonlocal answers
        answers -= 1
        return honest(probe, source) if answers >= 0 else None

    async def main() -> None:
        lost: asyncio.Queue[str] = asyncio.Queue()
        async with serving(answer) as (address, server):
            control = await TcpControl.open(0, address, on_lost=lost.put_nowait)
            assert await lost.get() == "the server stopped answering"
            assert len(server.received) == 4
            assert len({message.mid for message in server.received if isinstance(message, ReflexiveProbe)}) == 4
            await control.close()

    run(main())


def test_server_that_does_not_read_is_given_up() -> None:
    async def main() -> None:
        lost: asyncio.Queue[str] = asyncio.Queue()
        async with serving() as (address, server):
            control = await TcpControl.open(0, address, on_lost=lost.put_nowait)
            server.made.result().pause_reading()
            sent = 0
            while control.send(Signal(mid=1, extra=SignalExtra(token="t" * 64, sealed="s" * 1024))):
                sent += 1
                assert sent < 1_000_000
            assert await lost.get() == "the server does not read"
            await control.close()

    run(main(), timeout=60)


def test_refused_connection_is_a_typed_error() -> None:
    async def main() -> None:
        with socket.socket() as nobody:
            nobody.bind(LOOPBACK)
            host, port = nobody.getsockname()
            with pytest.raises(RendezvousError) as caught:
                await TcpControl.open(0, (host, port))
            assert str(caught.value) == f"{host}:{port} refused: Connection refused (503)"

    run(main())


def test_server_that_never_answers_is_a_timeout() -> None:
    async def main() -> None:
        async with serving(lambda *_: None) as (address, server):
            with pytest.raises(RendezvousTimeoutError):
                await TcpControl.open(0, address, 0.05)
            assert isinstance(await server.lost, ConnectionResetError)

    run(main())


def test_server_that_ends_before_it_answers_is_a_typed_error() -> None:
    async def main() -> None:
        def hang_up(*_: object) -> None:
            server.made.result().close()

        async with serving(hang_up) as (address, server):
            with pytest.raises(RendezvousError, match="the server closed the connection"):
                await TcpControl.open(0, address)

    run(main())


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (ReflexiveAnswer(mid=0, code=429, em="slow\ndown"), "slow\\x0adown (429)"),
        (ReflexiveAnswer(mid=0, code=200), "an answer without an address"),
        (ReflexiveAnswer(mid=0, code=200, extra=Observed(host="192.0.2.1", port=0)), "an answer without an address"),
    ],
)
def test_refusal_and_nonsense_are_typed_errors(answer: ReflexiveAnswer, text: str) -> None:
    def refuse(probe: ReflexiveProbe, _: Address) -> ReflexiveAnswer:
        return ReflexiveAnswer(mid=probe.mid, code=answer.code, em=answer.em, extra=answer.extra)

    class Refusing(Observer):
        def answer(self, probe: ReflexiveProbe, source: Address, cookie: str = "") -> ReflexiveAnswer:
            return refuse(probe, source)

    async def main() -> None:
        async with serving(refuse) as (address, _):
            with pytest.raises(RendezvousError) as over_tcp:
                await TcpControl.open(0, address)
        async with observing(Refusing()) as address:
            with pytest.raises(RendezvousError) as over_udp:
                await observe_udp(LOOPBACK, address)
        assert text in str(over_tcp.value)
        assert text in str(over_udp.value)

    run(main())


def test_server_must_be_numeric() -> None:
    with pytest.raises(InvalidAddressError):
        run(TcpControl.open(0, ("localhost", 9)))


@pytest.mark.parametrize("turns", range(12))
def test_open_cancelled_in_any_turn_leaves_no_socket_and_no_word(turns: int, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with socket.socket() as server:
            server.bind(LOOPBACK)
            server.listen()
            before = set(os.listdir("/proc/self/fd"))
            opening = asyncio.create_task(TcpControl.open(0, server.getsockname()))
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            await asyncio.sleep(0)  # the transport closes in the next turn
            assert set(os.listdir("/proc/self/fd")) == before

    run(main())
    gc.collect()
    assert caplog.messages == []  # such as "exception was never retrieved"


@pytest.mark.parametrize("junk", [("192.0.2.2", 0), ("192.0.2.3", 25), ("169.254.169.254", 7001), ("224.0.0.251", 7001)])
def test_other_observers_of_the_server_are_told_unless_no_observer_can_be_there(junk: Address) -> None:
    def answer(probe: ReflexiveProbe, _: Address) -> ReflexiveAnswer:
        others = (("192.0.2.1", 7001), junk, ("2001:db8::1", 7000))
        return ReflexiveAnswer(mid=probe.mid, code=200, extra=Observed(host="192.0.2.9", port=9, other=others))

    async def main() -> None:
        async with serving(answer) as (address, _):
            seen = await observe_tcp(0, address)
            assert seen.address == ("192.0.2.9", 9)
            assert seen.others == (("192.0.2.1", 7001), ("2001:db8::1", 7000))

    run(main())


def test_port_that_nobody_shares_is_a_typed_error() -> None:
    async def main() -> None:
        with socket.socket() as foreign:
            foreign.bind(("0.0.0.0", 0))
            with pytest.raises(RendezvousError, match="Address already in use"):
                await TcpControl.open(foreign.getsockname()[1], ("127.0.0.1", 9))

    run(main())
