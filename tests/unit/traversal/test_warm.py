"""The spare port: there before anybody asks, another one when it is gone, nothing left of it in the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from p2ptunnel.errors import RendezvousTimeoutError
from p2ptunnel.server import Rendezvous
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.traversal import warm as module
from p2ptunnel.traversal.port import OpenerTtl, PunchPort
from p2ptunnel.traversal.warm import WarmPort
from p2ptunnel.types import ServerSpec
from tests.helpers import run
from tests.helpers.turns import cancel_at_each_turn
from tests.unit.traversal.wires import LOOPBACK

Open = Callable[[], Awaitable[PunchPort]]


class Opened:
    """Opens ports at a server, and tells of each."""

    def __init__(self, server: ServerSpec) -> None:
        self.ports: list[PunchPort] = []
        self.failing = False
        self.tries = 0
        self._server = server
        self._changed = asyncio.Event()

    async def __call__(self) -> PunchPort:
        self.tries += 1
        self._changed.set()
        if self.failing:
            raise RendezvousTimeoutError("127.0.0.1:7000", 5.0)
        port = await PunchPort.open(self._server, OpenerTtl())
        self.ports.append(port)
        self._changed.set()
        return port

    async def until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._changed.clear()
            await self._changed.wait()


def with_spare(test: Callable[[WarmPort, Opened, Rendezvous, ServerSpec], Awaitable[None]]) -> None:
    """Run a test with a warm port that has been started."""

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            spec = ServerSpec(server.address)
            opened = Opened(spec)
            warm = WarmPort(opened)
            warm.start()
            warm.start()
            try:
                await test(warm, opened, server, spec)
            finally:
                await warm.close()
                await warm.close()

    run(main())


def is_closed(port: PunchPort) -> bool:
    return port.udp.socket.fileno() < 0


def test_who_takes_it_gets_what_was_opened_before_and_the_next_one_is_opened_at_once() -> None:
    async def test(warm: WarmPort, opened: Opened, _: Rendezvous, spec: ServerSpec) -> None:
        await opened.until(lambda: len(opened.ports) == 1)
        first = await warm.take(spec)
        assert first is opened.ports[0]
        await opened.until(lambda: len(opened.ports) == 2)
        second = await warm.take(spec)
        assert second is opened.ports[1]
        for port in (first, second):
            assert port is not None
            assert not is_closed(port)
            port.close()

    with_spare(test)


def test_who_comes_while_it_is_being_opened_waits_for_it_and_only_one_gets_it() -> None:
    async def test(warm: WarmPort, opened: Opened, _: Rendezvous, spec: ServerSpec) -> None:
        taken = await asyncio.gather(warm.take(spec), warm.take(spec))
        assert [port for port in taken if port is not None] == [opened.ports[0]]
        opened.ports[0].close()

    with_spare(test)


def test_to_give_up_waiting_leaves_it_to_others() -> None:
    async def test(warm: WarmPort, opened: Opened, _: Rendezvous, spec: ServerSpec) -> None:
        waiting = asyncio.create_task(warm.take(spec))
        await opened.until(lambda: opened.tries == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        port = await warm.take(spec)
        assert port is not None
        port.close()

    with_spare(test)


def test_for_another_server_it_is_kept() -> None:
    async def test(warm: WarmPort, opened: Opened, _: Rendezvous, spec: ServerSpec) -> None:
        await opened.until(lambda: len(opened.ports) == 1)
        assert await warm.take(ServerSpec(("127.0.0.1", 9))) is None
        assert not is_closed(opened.ports[0])

    with_spare(test)


def test_who_waits_for_it_leaves_it_and_waits_for_the_next_one_when_it_is_gone() -> None:
    async def test(warm: WarmPort, opened: Opened, _: Rendezvous, spec: ServerSpec) -> None:
        assert await warm.stand() == spec
        port = await warm.take(spec)
        assert port is opened.ports[0]
        port.close()
        waiting = asyncio.create_task(warm.stand())
        await opened.until(lambda: opened.tries == 2)
        assert not waiting.done()
        assert await waiting == spec
        warm.renew()
        assert len(opened.ports) == 2
        assert await warm.stand() == spec
        assert len(opened.ports) == 3

    with_spare(test)


def test_who_waits_for_it_when_it_is_closed_learns_that_there_is_none() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            opened = Opened(ServerSpec(server.address))
            opened.failing = True
            warm = WarmPort(opened)
            warm.start()
            waiting = asyncio.create_task(warm.stand())
            await opened.until(lambda: bool(warm.trouble))
            assert warm.trouble == "127.0.0.1:7000 did not answer over UDP or TCP in 5 s"
            await warm.close()
            assert await waiting is None

    run(main())


def test_out_of_date_it_is_replaced() -> None:
    async def test(warm: WarmPort, opened: Opened, _: Rendezvous, spec: ServerSpec) -> None:
        await opened.until(lambda: len(opened.ports) == 1)
        assert opened.ports[0].control is not None
        warm.renew()
        assert is_closed(opened.ports[0])
        await opened.until(lambda: len(opened.ports) == 2)

    with_spare(test)


def test_renewed_while_it_is_being_opened_it_is_opened_anew() -> None:
    async def test(warm: WarmPort, opened: Opened, _: Rendezvous, spec: ServerSpec) -> None:
        await opened.until(lambda: opened.tries == 1)
        warm.renew()
        await opened.until(lambda: len(opened.ports) == 2)
        assert is_closed(opened.ports[0])

    with_spare(test)


def test_it_is_replaced_when_its_server_has_gone_and_comes_back() -> None:
    async def test(warm: WarmPort, opened: Opened, server: Rendezvous, spec: ServerSpec) -> None:
        await opened.until(lambda: len(opened.ports) == 1)
        opened.failing = True
        await server.close()
        await opened.until(lambda: opened.tries >= 3)
        assert is_closed(opened.ports[0])
        opened.failing = False
        async with Rendezvous(spec.address):
            await opened.until(lambda: len(opened.ports) == 2)

    with_spare(test)


@pytest.fixture
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_MIN", 0.001)
    monkeypatch.setattr(module, "HEARTBEAT_MAX", 0.002)


def test_as_long_as_nobody_takes_it_the_server_is_asked_over_udp(haste: None) -> None:
    async def test(warm: WarmPort, opened: Opened, server: Rendezvous, spec: ServerSpec) -> None:
        await opened.until(lambda: len(opened.ports) == 1)
        asked = server.stats.received
        while server.stats.received < asked + 5:
            await asyncio.sleep(0)
        assert len(opened.ports) == 1
        port = await warm.take(spec)
        assert port is opened.ports[0]
        port.close()

    with_spare(test)


def test_who_has_another_mapping_over_udp_by_now_is_replaced(haste: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(warm: WarmPort, opened: Opened, _: Rendezvous, spec: ServerSpec) -> None:
        await opened.until(lambda: len(opened.ports) == 1)
        opened.ports[0]._seen_udp = ("198.51.100.7", 40_000)
        await opened.until(lambda: len(opened.ports) == 2)
        assert is_closed(opened.ports[0])

    with_spare(test)


def test_who_is_not_seen_over_udp_is_not_asked_for_there(haste: None) -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            port = await PunchPort.open(ServerSpec(server.address), OpenerTtl())
            port._seen_udp = None
            asked = server.stats.received
            assert await port.keep_udp()
            assert server.stats.received == asked
            port.close()

    run(main())


def test_why_it_could_not_be_opened_is_told_to_who_waits_and_to_the_trace() -> None:
    async def main() -> None:
        events: list[TraceEvent] = []
        opened = Opened(ServerSpec(LOOPBACK))
        opened.failing = True
        warm = WarmPort(opened, tracer=Tracer(events.append))
        warm.start()
        with pytest.raises(RendezvousTimeoutError):
            await warm.take(ServerSpec(LOOPBACK))
        assert await warm.take(ServerSpec(LOOPBACK)) is None  # nothing is being opened in the pause
        assert [event.name for event in events] == ["no_spare_port"]
        await warm.close()

    run(main())


def test_a_fault_in_opening_it_is_told_to_who_waits_as_well_and_nobody_waits_after_that() -> None:
    async def main() -> None:
        async def fail() -> PunchPort:
            await asyncio.sleep(0)
            raise ValueError("a fault")

        warm = WarmPort(fail)
        warm.start()
        with pytest.raises(ValueError, match="a fault"):
            await warm.take(ServerSpec(LOOPBACK))
        assert await warm.take(ServerSpec(LOOPBACK)) is None
        await warm.close()

    run(main())


def test_closed_while_somebody_waits_there_is_none() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            opened = Opened(ServerSpec(server.address))
            warm = WarmPort(opened)
            warm.start()
            waiting = asyncio.create_task(warm.take(ServerSpec(server.address)))
            await opened.until(lambda: opened.tries == 1)
            await warm.close()
            assert await waiting is None

    run(main())


def test_cancelling_who_takes_and_closes_leaves_nothing() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            spec = ServerSpec(server.address)

            async def life() -> None:
                warm = WarmPort(Opened(spec))
                warm.start()
                try:
                    port = await warm.take(spec)
                    assert port is not None
                    port.close()
                finally:
                    await warm.close()

            async def undo(_: None) -> None:
                pass

            assert await cancel_at_each_turn(life, undo) > 5

    run(main())
