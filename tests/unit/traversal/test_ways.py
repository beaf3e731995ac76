"""The ways to a server, raced: who begins, who is first, what is remembered, and what is left of the others."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from p2ptunnel.errors import P2PTunnelError, RendezvousError, RendezvousTimeoutError
from p2ptunnel.net.reflexive import TcpControl
from p2ptunnel.net.web import WebLinks, WebRoute
from p2ptunnel.traversal import ways as module
from p2ptunnel.traversal.ways import Ways
from p2ptunnel.types import ServerSpec
from tests.helpers import run

SERVER = ServerSpec(("198.51.100.1", 7000))
SILENT = RendezvousTimeoutError("198.51.100.1:7000", 5.0)
REFUSED = RendezvousError("198.51.100.1:443", "Connection refused", 503)


class Control(TcpControl):
    """A connection that came up."""

    def __init__(self) -> None:
        self.is_aborted = False

    def abort(self) -> None:
        self.is_aborted = True


class Network:
    """What becomes of each way: how long it takes, and how it ends; those that are not here are silent.

    Attributes:
        begun: The ways that were tried, in their order.
        up: The connections that came up.
    """

    def __init__(self, **ways: tuple[float, Exception | None]) -> None:
        self.begun: list[str] = []
        self.up: list[Control] = []
        self._ways = ways

    async def open(self, web: WebRoute | None) -> TcpControl:
        way = "tcp" if web is None else web.way
        self.begun.append(way)
        seconds, error = self._ways.get(way, (60.0, None))
        await asyncio.sleep(seconds)
        if error is not None:
            raise error
        self.up.append(Control())
        return self.up[-1]


def way_of(route: WebRoute | None) -> str:
    return "tcp" if route is None else route.way


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WEB_HEAD_START", 0.1)
    monkeypatch.setattr(module, "WEB_STAGGER", 0.05)


@pytest.mark.parametrize(
    ("network", "winner", "begun"),
    [
        ({"tcp": (0.0, None)}, "tcp", ["tcp"]),
        ({"tcp": (0.12, None), "tls": (1.0, None)}, "tcp", ["tcp", "tls"]),
        ({"tls": (0.0, None)}, "tls", ["tcp", "tls"]),
        ({"tcp": (0.0, SILENT), "tls": (0.0, None)}, "tls", ["tcp", "tls"]),
        ({"tls": (0.0, REFUSED), "websocket": (0.0, None)}, "websocket", ["tcp", "tls", "websocket"]),
        ({"tls": (0.0, ConnectionResetError()), "websocket": (0.0, None)}, "websocket", ["tcp", "tls", "websocket"]),
        ({"websocket": (0.0, None)}, "websocket", ["tcp", "tls", "websocket"]),
    ],
)
def test_the_first_that_is_up_is_used_and_each_has_a_head_start(network: dict[str, Any], winner: str, begun: list[str]) -> None:
    async def main() -> None:
        net, tasks = Network(**network), len(asyncio.all_tasks())
        control, route = await Ways(WebLinks()).first(SERVER, net.open)
        assert (way_of(route), net.begun) == (winner, begun)
        assert cast("object", control) is net.up[0]
        assert not net.up[0].is_aborted
        assert len(asyncio.all_tasks()) == tasks

    run(main())


def test_what_fails_is_not_waited_for() -> None:
    async def main() -> None:
        began = asyncio.get_running_loop().time()
        net = Network(tcp=(0.0, SILENT), tls=(0.0, REFUSED), websocket=(0.0, None))
        await Ways(WebLinks()).first(SERVER, net.open)
        assert asyncio.get_running_loop().time() - began < 0.09

    run(main())


def test_where_none_is_up_the_servers_own_port_has_the_word() -> None:
    async def main() -> None:
        for tcp, tls in ((0.0, 0.05), (0.2, 0.0)):
            net = Network(tcp=(tcp, SILENT), tls=(tls, REFUSED), websocket=(0.0, REFUSED))
            with pytest.raises(P2PTunnelError) as caught:
                await Ways(WebLinks()).first(SERVER, net.open)
            assert caught.value is SILENT

    run(main())


def test_what_has_worked_goes_first_for_a_while_and_no_longer_than_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        ways = Ways(WebLinks())
        await ways.first(SERVER, Network(tcp=(0.0, SILENT), tls=(0.0, None)).open)
        assert way_of(ways.known(SERVER.address)) == "tls"
        again = Network(tls=(0.0, None))
        await ways.first(SERVER, again.open)
        assert again.begun == ["tls"]
        back = Network(tcp=(0.0, None), tls=(0.0, REFUSED))
        _, route = await ways.first(SERVER, back.open)
        assert (way_of(route), back.begun[:2], ways.known(SERVER.address)) == ("tcp", ["tls", "tcp"], None)
        await ways.first(SERVER, Network(tcp=(0.0, SILENT), tls=(0.0, None)).open)
        [(known_at, _)] = ways._web.values()
        await ways.first(SERVER, Network(tls=(0.0, None)).open)
        assert ways._web[SERVER.address][0] == known_at  # the server's own port has its turn, however well another works
        monkeypatch.setattr(module, "WEB_MEMORY", 0.0)
        assert ways.known(SERVER.address) is None
        monkeypatch.undo()
        ways.forget()
        assert ways.known(SERVER.address) is None

    run(main())


def test_two_that_are_up_in_one_turn_leave_one() -> None:
    async def main() -> None:
        net = Network(tcp=(0.15, None), tls=(0.05, None))
        control, _ = await Ways(WebLinks()).first(SERVER, net.open)
        assert [one.is_aborted for one in net.up] == [cast("object", one) is not control for one in net.up]

    run(main())


def test_cancelled_it_leaves_no_attempt() -> None:
    async def main() -> None:
        net, tasks = Network(), len(asyncio.all_tasks())
        racing = asyncio.create_task(Ways(WebLinks()).first(SERVER, net.open))
        while len(net.begun) < 3:
            await asyncio.sleep(0.01)
        racing.cancel()
        await asyncio.gather(racing, return_exceptions=True)
        assert len(asyncio.all_tasks()) == tasks

    run(main())


def test_a_fault_of_ours_is_raised() -> None:
    async def main() -> None:
        with pytest.raises(ZeroDivisionError):
            await Ways(WebLinks()).first(SERVER, Network(tcp=(0.0, ZeroDivisionError())).open)

    run(main())
