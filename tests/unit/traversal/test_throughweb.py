"""Whether a server is found on port 443: real ones on loopback, who is asked for it, and when nobody is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from p2ptunnel.identity.keys import Identity
from p2ptunnel.net import web
from p2ptunnel.net.web import WebLinks, WebRoute
from p2ptunnel.server import Rendezvous
from p2ptunnel.server.web import Web
from p2ptunnel.traversal import throughweb as module
from p2ptunnel.traversal.netcheck import netcheck
from p2ptunnel.traversal.netreport import WebReport
from p2ptunnel.traversal.throughweb import through_web
from p2ptunnel.types import Address, ServerSpec
from tests.helpers import run
from tests.helpers.turns import cancel_at_each_turn
from tests.unit.traversal.wires import LOOPBACK, silent_server

SERVER, OTHER = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@contextlib.asynccontextmanager
async def serving(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Rendezvous]:
    """A server whose TLS port is where peers look for it."""
    async with Rendezvous(LOOPBACK, identity=SERVER, web=Web(LOOPBACK)) as server:
        assert server.web_address is not None
        for user in (web, module):
            monkeypatch.setattr(user, "WEB_PORT", server.web_address[1])
        yield server


def spec(server: Identity = SERVER, address: Address = ("127.0.0.1", 7000)) -> ServerSpec:
    return ServerSpec(address, str(server.public))


def told(answers: bool) -> asyncio.Future[bool]:
    """What is known of the server's own port."""
    own_port = asyncio.get_running_loop().create_future()
    own_port.set_result(answers)
    return own_port


async def asked(server: ServerSpec) -> WebReport | None:
    return await through_web(server, told(answers=False), 5.0)


def test_tls_is_told_with_what_the_server_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> WebReport | None:
        async with serving(monkeypatch):
            return await asked(spec())

    found = run(main())
    assert found is not None
    assert (found.way, found.proxy, found.words, found.problem) == ("tls", None, "TLS", "")
    assert found.observed is not None
    assert found.observed[0] == "127.0.0.1"
    assert found.rtt is not None
    assert 0 < found.rtt < 5


def test_where_tls_does_not_get_through_websocket_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = WebLinks.connect

    async def only_websocket(links: WebLinks, route: WebRoute) -> object:
        if route.way == "tls":
            raise ConnectionResetError(104, "Connection reset by peer")
        return await connect(links, route)

    async def main() -> WebReport | None:
        monkeypatch.setattr(WebLinks, "connect", only_websocket)
        async with serving(monkeypatch):
            return await asked(spec())

    found = run(main())
    assert found is not None
    assert (found.way, found.words) == ("websocket", "WebSocket")


def test_another_server_there_is_a_problem_and_no_way(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> WebReport | None:
        async with serving(monkeypatch):
            return await asked(spec(OTHER))

    found = run(main())
    assert found is not None
    assert (found.way, found.words, found.observed) == (None, "", None)
    assert "another server answers there" in found.problem


def test_a_port_that_refuses_is_told_in_the_words_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> WebReport | None:
        async with serving(monkeypatch):
            pass
        return await asked(spec())

    assert run(main()) == WebReport(problem="Connection refused")


def test_a_port_that_is_silent_is_told_so_of_tls_and_in_a_time_that_one_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(links: WebLinks, route: WebRoute) -> object:
        return await asyncio.Event().wait()

    async def main() -> WebReport | None:
        monkeypatch.setattr(WebLinks, "connect", silent)
        return await through_web(spec(), told(answers=False), 0.6)

    assert run(main()) == WebReport(problem="127.0.0.1:443 did not answer over TLS in 0.6 s")


def test_where_the_own_port_answers_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(links: WebLinks, route: WebRoute) -> object:
        raise AssertionError(route)

    async def main() -> WebReport | None:
        monkeypatch.setattr(WebLinks, "connect", never)
        return await through_web(spec(), told(answers=True), 5.0)

    assert run(main()) is None


def test_a_silent_own_port_is_waited_for_as_long_as_its_head_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> WebReport | None:
        monkeypatch.setattr(module, "WEB_HEAD_START", 0.05)
        async with serving(monkeypatch):
            return await through_web(spec(), asyncio.get_running_loop().create_future(), 5.0)

    found = run(main())
    assert found is not None
    assert found.way == "tls"


def test_netcheck_of_a_server_whose_own_port_is_silent_tells_of_the_web(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(monkeypatch):
            with silent_server() as silent:
                report = await netcheck(spec(address=silent), timeout=0.3, brief=True)
        assert (report.through_web, report.udp.works, report.tcp.works) == ("TLS", False, False)
        assert (report.server, report.rtt) == (silent, report.web and report.web.rtt)
        assert report.verdict.startswith("The server is reached on TCP port 443 only (TLS): expect the relay")

    run(main())


def test_cancelling_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(monkeypatch):

            async def nothing(_: WebReport | None) -> None:
                await asyncio.sleep(0)

            assert await cancel_at_each_turn(lambda: asked(spec()), nothing) > 5

    run(main())
