"""The driver of port mapping without a router: what it refuses, what it says, what it leaves behind.  Routers: tests/natlab."""

from __future__ import annotations

import asyncio

import pytest

from p2ptunnel.errors import ConfigError, LocalProtocolError
from p2ptunnel.net import portmap
from p2ptunnel.net.gateway import Gateway
from p2ptunnel.net.portmap import PortMapper
from p2ptunnel.protocol.portmapping import PortMapEvent, PortMapped, PortUnmapped
from p2ptunnel.trace import TraceEvent, Tracer
from tests.helpers import run
from tests.helpers.routers import FakeRouter

LOOPBACK = Gateway("127.0.0.1", "127.0.0.1")
PORT = 40123


def no_router(_: str) -> Gateway | None:
    return None


class Router(asyncio.DatagramProtocol):
    """The router of a few lines on a real socket."""

    def __init__(self) -> None:
        self.fake = FakeRouter()
        self.is_silent = False
        self._heard = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self.fake.answer(data, asyncio.get_running_loop().time())
        if answer is not None and not self.is_silent:
            self.transport.sendto(answer, addr)  # type: ignore[attr-defined]
        self._heard.set()

    async def hears(self) -> None:
        """Wait until something is mapped."""
        while not self.fake.mappings:
            self._heard.clear()
            await self._heard.wait()

    async def forgets(self) -> None:
        """Wait until nothing is mapped."""
        while self.fake.mappings:
            self._heard.clear()
            await self._heard.wait()


async def a_router(monkeypatch: pytest.MonkeyPatch) -> Router:
    """A router on a free port of loopback, which the mapper then takes for the port of PCP."""
    _, router = await asyncio.get_running_loop().create_datagram_endpoint(Router, local_addr=("127.0.0.1", 0))
    monkeypatch.setattr(portmap, "PORTMAP_PORT", router.transport.get_extra_info("sockname")[1])
    return router


@pytest.mark.parametrize("port", [0, 22, 1023, 65536])
def test_a_privileged_port_is_refused_before_anything_is_opened(port: int) -> None:
    with pytest.raises(ConfigError, match=f"port {port}: "):
        PortMapper(("0.0.0.0", port))


def test_without_a_router_it_says_so_and_asks_nobody() -> None:
    async def main() -> list[PortMapEvent]:
        told: list[PortMapEvent] = []
        async with PortMapper(("0.0.0.0", PORT), on_change=told.append, find=no_router) as mapper:
            await mapper.settle()
            assert mapper.mapped("tcp") is None
            assert mapper.outcome("udp") == told[1]
            mapper.refresh()
            assert len(told) == 2  # nothing that is new
        return told

    told = run(main())
    assert [str(event) for event in told] == [f"{t} not mapped: the default route has no router" for t in ("tcp", "udp")]


def test_of_loopback_nothing_is_mapped() -> None:
    async def main() -> None:
        async with PortMapper(("127.0.0.1", PORT)) as mapper:
            await mapper.settle()
            assert isinstance(mapper.outcome("tcp"), PortUnmapped)

    run(main())


def test_it_is_started_once() -> None:
    async def main() -> None:
        async with PortMapper(("0.0.0.0", PORT), find=no_router) as mapper:
            with pytest.raises(LocalProtocolError, match="started once"):
                mapper.start()
        with pytest.raises(LocalProtocolError, match="started once"):
            mapper.start()
        await mapper.aclose()
        mapper.refresh()

    run(main())


def test_one_that_was_never_started_closes() -> None:
    run(PortMapper(("0.0.0.0", PORT)).aclose())


def test_what_is_mapped_is_told_and_traced_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        traced: list[TraceEvent] = []
        told: list[PortMapEvent] = []
        router = await a_router(monkeypatch)
        tracer = Tracer(traced.append)
        async with PortMapper(("0.0.0.0", PORT), on_change=told.append, find=lambda _: LOOPBACK, tracer=tracer) as mapper:
            await mapper.settle()
            assert [type(event) for event in told] == [PortMapped, PortMapped]
            assert router.fake.mappings == {("tcp", PORT): PORT, ("udp", PORT): PORT}
        assert router.fake.mappings == {}
        shown = [event.facts["outcome"] for event in traced if event.name == "port_mapping"]
        assert shown == [f"{t} 198.51.101.7:{PORT} by PCP" for t in ("tcp", "udp")]
        router.transport.close()

    run(main())


def test_a_router_that_has_gone_silent_keeps_nobody_from_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portmap, "PORTMAP_CLOSE", 0.05)

    async def main() -> None:
        router = await a_router(monkeypatch)
        async with PortMapper(("0.0.0.0", PORT), find=lambda _: LOOPBACK) as mapper:
            await mapper.settle()
            router.is_silent = True
        assert router.fake.mappings == {}  # it was told, once at least
        router.transport.close()

    run(main())


def test_a_router_that_has_never_answered_is_hardly_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portmap, "PORTMAP_CLOSE", 60.0)
    monkeypatch.setattr("p2ptunnel.protocol.portmap.PORTMAP_FIRST", 60.0)

    async def main() -> None:
        router = await a_router(monkeypatch)
        router.is_silent = True
        mapper = PortMapper(("0.0.0.0", PORT), find=lambda _: LOOPBACK)
        mapper.start()
        await router.hears()
        async with asyncio.timeout(5):
            await mapper.aclose()
        await router.forgets()  # it was told all the same
        router.transport.close()

    run(main())


def test_closing_that_is_cancelled_has_asked_the_router_already(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        router = await a_router(monkeypatch)
        mapper = PortMapper(("0.0.0.0", PORT), find=lambda _: LOOPBACK)
        mapper.start()
        await mapper.settle()
        router.is_silent = True
        closing = asyncio.create_task(mapper.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await router.forgets()
        router.transport.close()

    run(main())


def test_another_router_is_asked_and_the_first_one_told(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [LOOPBACK, Gateway("127.0.0.1", "127.0.0.2")]

    async def main() -> None:
        told = asyncio.Queue[PortMapEvent]()
        router = await a_router(monkeypatch)
        async with PortMapper(
            ("0.0.0.0", PORT), transports=("tcp",), on_change=told.put_nowait, find=lambda _: places[0]
        ) as mapper:
            assert isinstance(await told.get(), PortMapped)
            nonce = router.fake.heard[-1][24:36]
            del places[0]
            mapper.refresh()
            assert str(await told.get()) == "tcp not mapped: the network has changed"
            mapped = await told.get()
            assert isinstance(mapped, PortMapped)
            assert mapped.mapping.local == ("127.0.0.2", PORT)
            assert [int.from_bytes(data[4:8], "big") for data in router.fake.heard if data[24:36] == nonce] == [7200, 0]
        router.transport.close()

    run(main())


def test_a_host_without_a_socket_to_spare_is_told_why() -> None:
    async def main() -> str:
        nowhere = Gateway("127.0.0.1", "203.0.113.200")  # not ours
        async with PortMapper(("0.0.0.0", PORT), find=lambda _: nowhere) as mapper:
            await mapper.settle()
            return str(mapper.outcome("tcp"))

    assert run(main()) == "tcp not mapped: Cannot assign requested address"
