"""What is known of our NATs' dealings with SYNs: asked once in a network, in a moment, and told by every port."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from p2ptunnel.defaults import HABITS_AGAIN, HABITS_MEMORY, HABITS_NO_MEMORY, HABITS_PLACES
from p2ptunnel.net.reflexive import TcpControl
from p2ptunnel.net.web import WebRoute
from p2ptunnel.protocol.nat import Habits, Mapping, MappingClass, NatProfile
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.traversal import habits as module
from p2ptunnel.traversal.habits import NatHabits
from p2ptunnel.traversal.port import Opener, PunchPort, take_number
from p2ptunnel.types import Address, ServerSpec
from tests.helpers import run

SERVER: Address = ("192.0.2.1", 7000)
OTHER: Address = ("192.0.2.2", 7000)
HERE, ELSEWHERE = "198.51.100.7", "203.0.113.7"
REFUSING = Habits(crosses=False, is_open=False, opens_low=True)


class Server:
    """Is asked, and answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[tuple[Address, MappingClass, Opener]] = []
        self.answer = REFUSING
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, server: Address, mapping: MappingClass, opener: Opener) -> Habits:
        self.asked.append((server, mapping, opener))
        await self.may_answer.wait()
        return self.answer


class Ports:
    """Makes ports that are seen from where a test says."""

    def __init__(self, nat: NatHabits) -> None:
        self._nat = nat
        self.all: list[PunchPort] = []

    def open(
        self,
        host: str = HERE,
        *,
        server: Address = SERVER,
        kind: MappingClass = "eim",
        others: tuple[Address, ...] = (OTHER,),
        is_heard: bool = True,
    ) -> PunchPort:
        port = PunchPort(take_number("127.0.0.1", Tracer()), ServerSpec(server), Tracer(), habits=self._nat.known)
        self.all.append(port)
        port._opener = Opener(2, 0.01)
        port._nat = NatProfile(tcp=Mapping(kind, (host, 40_000), 40_000, 1))
        if is_heard:
            port.control = TcpControl(server, None, None, random.Random(1), Tracer())
            port.control.observed, port.control.others = (host, 40_000), others
        return port


Test = Callable[[NatHabits, Server, Ports, "asyncio.Queue[None]"], Awaitable[None]]


def with_habits(test: Test, monkeypatch: pytest.MonkeyPatch, *, delay: float = 0.0, tracer: Tracer | None = None) -> None:
    monkeypatch.setattr(module, "HABITS_DELAY", delay)

    async def main() -> None:
        server, learned = Server(), asyncio.Queue[None]()
        nat = NatHabits(lambda: learned.put_nowait(None), ask=server, tracer=tracer)
        ports = Ports(nat)
        try:
            await test(nat, server, ports, learned)
        finally:
            await nat.close()
            await nat.close()
            for port in ports.all:
                port.close()

    run(main())


async def over(nat: NatHabits) -> None:
    """Wait until it asks no more."""
    assert nat._asking is not None
    await asyncio.gather(nat._asking, return_exceptions=True)


def test_what_was_found_out_is_told_by_every_port_there_and_by_none_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[TraceEvent] = []

    async def test(nat: NatHabits, server: Server, ports: Ports, learned: asyncio.Queue[None]) -> None:
        first = ports.open()
        assert (first.view.hints.crosses, first.view.hints.is_open, first.view.hints.low) == (None, None, True)
        nat.learn(first)
        await learned.get()
        assert server.asked == [(SERVER, "eim", Opener(2, 0.01))]
        for port in (first, ports.open()):
            assert (port.view.hints.crosses, port.view.hints.is_open, port.view.hints.low) == (False, False, True)
        for port in (ports.open(ELSEWHERE), ports.open(server=OTHER), ports.open(is_heard=False)):
            assert (port.view.hints.crosses, port.view.hints.is_open) == (None, None)
        [seen] = events
        assert (seen.name, seen.facts) == ("habits_seen", {"crosses": False, "is_open": False, "opens_low": True})

    with_habits(test, monkeypatch, tracer=Tracer(events.append))


def test_a_side_whose_low_syn_does_not_die_is_no_opener(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(nat: NatHabits, server: Server, ports: Ports, learned: asyncio.Queue[None]) -> None:
        server.answer = Habits(is_open=False, opens_low=False)
        port = ports.open()
        nat.learn(port)
        await learned.get()
        assert port.view.hints.low is False

    with_habits(test, monkeypatch)


def test_it_is_asked_once_however_many_ports_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(nat: NatHabits, server: Server, ports: Ports, learned: asyncio.Queue[None]) -> None:
        server.may_answer.clear()
        for _ in range(10):
            nat.learn(ports.open())  # while it is under way
        server.may_answer.set()
        await learned.get()
        for _ in range(10):
            nat.learn(ports.open())
        assert len(server.asked) == 1

    with_habits(test, monkeypatch)


@pytest.mark.parametrize(
    ("answer", "memory"),
    [
        (Habits(), HABITS_AGAIN),
        (Habits(is_open=False), HABITS_MEMORY),
        (Habits(crosses=True, is_open=False), HABITS_MEMORY),
        (REFUSING, HABITS_NO_MEMORY),
    ],
)
def test_it_is_asked_anew_when_that_is_long_ago_and_sooner_if_nobody_told_or_it_was_a_no(
    monkeypatch: pytest.MonkeyPatch, answer: Habits, memory: float
) -> None:
    async def test(nat: NatHabits, server: Server, ports: Ports, learned: asyncio.Queue[None]) -> None:
        server.answer = answer
        for seconds, asked in ((0.0, 1), (memory - 1, 1), (2.0, 2), (1.0, 2)):
            nat._found = {at: msgspec.structs.replace(found, until=found.until - seconds) for at, found in nat._found.items()}
            nat.learn(ports.open())
            await over(nat)
            assert len(server.asked) == asked
        assert learned.qsize() == (2 if answer.is_known else 0)

    with_habits(test, monkeypatch)


def test_where_we_are_seen_elsewhere_and_in_another_network_it_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(nat: NatHabits, server: Server, ports: Ports, learned: asyncio.Queue[None]) -> None:
        for count, host in enumerate((HERE, ELSEWHERE), 1):
            nat.learn(ports.open(host))
            await learned.get()
            assert len(server.asked) == count
        port = ports.open(ELSEWHERE)
        nat.forget()
        assert port.view.hints.crosses is None
        nat.learn(port)
        await learned.get()
        assert (len(server.asked), port.view.hints.crosses) == (3, False)

    with_habits(test, monkeypatch)


def test_of_each_outside_address_it_is_asked_once_and_a_few_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(nat: NatHabits, server: Server, ports: Ports, _: asyncio.Queue[None]) -> None:
        hosts = [f"203.0.113.{number}" for number in range(HABITS_PLACES + 1)]

        async def learn(host: str) -> bool:
            """Open a port that is seen there; return whether that makes somebody ask."""
            before = len(server.asked)
            nat.learn(ports.open(host))
            await over(nat)
            return len(server.asked) > before

        assert [await learn(host) for host in hosts[:2] * 3] == [True, True, *[False] * 4]
        assert [await learn(host) for host in hosts[2:]] == [True] * (HABITS_PLACES - 1)
        assert not nat.known(SERVER, hosts[0]).is_known  # the oldest is out
        assert all(nat.known(SERVER, host).is_known for host in hosts[1:])
        assert not nat.known(OTHER, hosts[1]).is_known

    with_habits(test, monkeypatch)


def test_what_a_network_that_was_left_would_have_told_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(nat: NatHabits, server: Server, ports: Ports, learned: asyncio.Queue[None]) -> None:
        server.may_answer.clear()
        nat.learn(ports.open())
        while not server.asked:
            await asyncio.sleep(0)
        nat.forget()
        server.may_answer.set()
        await over(nat)
        assert not nat.known(SERVER, HERE).is_known
        assert learned.empty()

    with_habits(test, monkeypatch)


def test_nobody_is_asked_where_nothing_could_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(nat: NatHabits, server: Server, ports: Ports, _: asyncio.Queue[None]) -> None:
        web = ports.open()
        web.web = WebRoute(web.spec, "tls")
        for port in (
            web,
            ports.open(others=()),
            ports.open(kind="seq"),  # each new flow takes a port out of the row that is to be met
            ports.open(is_heard=False),
            ports.open(server=("127.0.0.1", 7000)),
        ):
            nat.learn(port)
            assert nat._asking is None
        assert server.asked == []

    with_habits(test, monkeypatch)


def test_nothing_is_asked_before_its_time_and_nothing_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(nat: NatHabits, server: Server, ports: Ports, _: asyncio.Queue[None]) -> None:
        nat.learn(ports.open())
        await asyncio.sleep(0)
        nat.abort()
        await over(nat)
        assert server.asked == []

    with_habits(test, monkeypatch, delay=3600.0)
