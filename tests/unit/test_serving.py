"""What is served to whom: the table, and streams that it serves over real sessions."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from p2ptunnel.abc import Stream
from p2ptunnel.errors import (
    AccessDeniedError,
    ConfigError,
    InvalidSpecError,
    StoreError,
    StreamResetError,
    TargetRefusedError,
    UnknownPeerError,
)
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import PeerStore
from p2ptunnel.serving import ServiceTable, Serving
from p2ptunnel.session.session import OnOpen, OpenRequest, Session, accept_session
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.transports.tcp import read_preamble
from p2ptunnel.tunnels.spec import ServeSpec
from tests.helpers import run
from tests.helpers.peers import CALLER, Peers, new_pipe, tcp_pair

STRANGER = Identity.from_seed(bytes([66]) * 32).public
LAPTOP = CALLER.public


async def echo(stream: Stream) -> None:
    async for part in stream:
        await stream.write(part)
    await stream.write_eof()


@pytest.fixture
def store(tmp_path: Path) -> PeerStore:
    """A store in which the laptop is pinned, and may open web."""
    store = PeerStore(tmp_path / "peers.toml")
    store.add("laptop", LAPTOP, ("web",))
    return store


@pytest.fixture
def table(store: PeerStore) -> ServiceTable:
    return ServiceTable(store, Tracer())


# --- who may open what --------------------------------------------------------------------------------------------------


def test_nobody_may_open_what_was_not_granted(table: ServiceTable) -> None:
    table.add({"web": 80, "db": 5432}, ())
    assert table.granted(LAPTOP) == ("web",)
    assert table.may_open(LAPTOP, "web")
    assert not table.may_open(LAPTOP, "db")
    assert not table.may_open(LAPTOP, "nothing")
    assert table.granted(STRANGER) == ()
    assert table.admitted() == (LAPTOP,)
    assert (table.name_of(LAPTOP), table.name_of(STRANGER)) == ("laptop", STRANGER.short)


def test_what_is_granted_is_only_there_while_it_is_served(table: ServiceTable) -> None:
    assert table.granted(LAPTOP) == ()
    table.add({"web": 80}, ())
    assert table.granted(LAPTOP) == ("web",)
    table.remove(["web"])
    assert table.granted(LAPTOP) == ()
    table.remove(["web"])


def test_allowing_holds_for_these_services_alone(table: ServiceTable) -> None:
    table.add({"db": 5432, "log": "unix:/run/log.sock"}, ["laptop"])
    table.add({"secret": 1}, ())
    assert table.granted(LAPTOP) == ("db", "log")
    table.remove(["db"])
    table.add({"db": 5432}, ())
    assert table.granted(LAPTOP) == ("log",)  # it was for the service of before


def test_who_leaves_the_store_may_open_nothing_more(table: ServiceTable, store: PeerStore) -> None:
    table.add({"web": 80, "db": 5432}, ["laptop"])
    assert table.granted(LAPTOP) == ("web", "db")
    store.remove("laptop")
    assert table.granted(LAPTOP) == ()
    assert table.admitted() == ()


def test_an_address_means_the_service_that_stands_for_it(table: ServiceTable) -> None:
    table.add({"web": "127.0.0.1:8080", "db": "10.0.0.5:5432"}, ())
    assert table.may_open(LAPTOP, "localhost:8080")
    assert not table.may_open(LAPTOP, "10.0.0.5:5432")  # db, and not the laptop's


def test_host_keys_are_told_to_whoever_may_open_the_ssh_server(table: ServiceTable) -> None:
    table.add({"ssh": "ssh", "web": 80}, ["laptop"])
    assert table.may_open(LAPTOP, "ssh-host-keys/ssh")
    assert not table.may_open(LAPTOP, "ssh-host-keys/web")
    assert not table.may_open(STRANGER, "ssh-host-keys/ssh")


def test_a_spec_is_served_under_the_name_that_it_is_given(table: ServiceTable) -> None:
    table.add({"web": ServeSpec("other", ("127.0.0.1", 80))}, ())
    assert table.may_open(LAPTOP, "web")
    assert not table.may_open(LAPTOP, "other")


# --- all or none --------------------------------------------------------------------------------------------------------


def test_a_name_is_served_once(table: ServiceTable) -> None:
    table.add({"web": 80}, ())
    with pytest.raises(ConfigError) as caught:
        table.add({"new": 1, "web": 81}, ())
    assert str(caught.value) == "'web' is served already"
    assert caught.value.hint == "Close the other Serving first, or choose another name."
    assert table.names == ("web",)


@pytest.mark.parametrize("bad", [{"web": 80, "Web Server": 81}, {"web": "nowhere"}, {"a b": echo}, {"web": 0}])
def test_what_cannot_be_read_adds_nothing(table: ServiceTable, bad: dict[str, int | str]) -> None:
    with pytest.raises(InvalidSpecError):
        table.add(bad, ())
    assert table.names == ()


def test_what_was_allowed_in_code_is_not_for_who_is_pinned_anew(table: ServiceTable, store: PeerStore) -> None:
    table.add({"files": 80}, ["laptop"])
    assert table.may_open(LAPTOP, "files")
    store.rename("laptop", "work")
    assert table.may_open(LAPTOP, "files")
    store.remove("work")
    store.add("laptop", LAPTOP)
    assert not table.may_open(LAPTOP, "files")


def test_allowing_somebody_unknown_adds_nothing(table: ServiceTable) -> None:
    with pytest.raises(UnknownPeerError) as caught:
        table.add({"web": 80}, ["laptop", "nobody"])
    assert str(caught.value) == "no peer is known here as 'nobody'"
    assert table.names == ()


def test_a_store_that_cannot_be_read_grants_nothing(table: ServiceTable, tmp_path: Path) -> None:
    table.add({"web": 80}, ())
    (tmp_path / "peers.toml").write_text("not TOML [")
    with pytest.raises(StoreError):
        table.may_open(LAPTOP, "web")
    table.remove(["web"])  # which asks nobody


# --- serving ------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def served(table: ServiceTable, on_open: OnOpen | None = None) -> AsyncGenerator[Session]:
    """The caller's session with a peer that serves the table."""
    peers = Peers()
    client, server = tcp_pair()

    async def accept() -> Session:
        selector = await read_preamble(server)
        return await accept_session(
            new_pipe(server), identity=peers.callee, access=table, selector=selector, on_open=on_open or table.handle
        )

    caller, callee = await asyncio.gather(peers.connect(client), accept())
    try:
        yield caller
    finally:
        await asyncio.gather(caller.close(grace=0), callee.close(grace=0))


def test_a_function_is_given_each_stream(table: ServiceTable) -> None:
    table.add({"web": echo}, ())

    async def main() -> None:
        async with served(table) as session, await session.open_confirmed("web") as stream:
            await stream.write(b"hello")
            await stream.write_eof()
            assert await stream.readexactly(5) == b"hello"
            assert await stream.read() == b""

    run(main())


def test_what_not_exists_and_what_is_not_ours_look_the_same(table: ServiceTable) -> None:
    table.add({"web": echo, "secret": echo}, ())

    async def main() -> None:
        async with served(table) as session:
            refusals: list[AccessDeniedError] = []
            for asked in ("secret", "nothing"):
                with pytest.raises(AccessDeniedError) as caught:
                    await session.open_confirmed(asked)
                refusals.append(caught.value)
            texts = [str(refusal).replace(refusal.service, "…") for refusal in refusals]
            assert texts == ["home-nas does not serve '…' to this machine"] * 2
            assert {refusal.hint for refusal in refusals} == {"Served to you: web."}

    run(main())


def test_a_target_is_connected_to(table: ServiceTable) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            table.add({"web": server.getsockname()[1]}, ())
            async with served(table) as session, await session.open_confirmed("web") as stream:
                target, _ = server.accept()
                with target:
                    target.setblocking(False)
                    await stream.write(b"GET")
                    assert await asyncio.get_running_loop().sock_recv(target, 3) == b"GET"
                    target.send(b"200")
                    assert await stream.readexactly(3) == b"200"

    run(main())


def test_a_target_that_refuses_is_told(store: PeerStore) -> None:
    events: list[TraceEvent] = []
    table = ServiceTable(store, Tracer(events.append))

    async def main() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            table.add({"web": closed.getsockname()[1]}, ())
            async with served(table) as session:
                with pytest.raises(TargetRefusedError) as caught:
                    await session.open_confirmed("web")
        assert str(caught.value) == "'web' on home-nas cannot be reached: connection refused"

    run(main())
    assert events[-1].name == "target_refused"
    assert events[-1].facts == {"peer": "laptop", "service": "web", "reason": "connection refused"}


def test_a_function_whose_own_target_refuses_breaks_its_stream_only(store: PeerStore) -> None:
    """By then the stream is open: it cannot be refused any more."""
    events: list[TraceEvent] = []
    table = ServiceTable(store, Tracer(events.append))

    async def proxy(stream: Stream) -> None:
        raise TargetRefusedError("backend", "db", "connection refused")

    table.add({"web": proxy}, ())

    async def main() -> None:
        async with served(table) as session:
            stream = await session.open_confirmed("web")
            with pytest.raises(StreamResetError):
                await stream.read()
            assert not session.closed.is_set()

    run(main())
    assert (events[-1].name, events[-1].facts["reason"]) == (
        "stream_broke",
        "'db' on backend cannot be reached: connection refused",
    )


def test_a_function_that_raises_resets_its_stream_only(table: ServiceTable, caplog: pytest.LogCaptureFixture) -> None:
    async def buggy(stream: Stream) -> None:
        raise ZeroDivisionError

    table.add({"web": buggy}, ())

    async def main() -> None:
        async with served(table) as session:
            stream = await session.open_confirmed("web")
            with pytest.raises(StreamResetError):
                await stream.read()
            assert not session.closed.is_set()

    run(main())
    assert "ZeroDivisionError" in caplog.text


def test_closing_ends_the_service_and_not_its_streams(table: ServiceTable) -> None:
    left: list[str] = []

    async def leave() -> None:
        left.append("left")

    async def main() -> None:
        table.add({"web": echo}, ())
        serving = Serving(table, ("web",), leave)
        assert repr(serving) == "<Serving web>"
        async with served(table) as session, await session.open_confirmed("web") as stream:
            await serving.close()
            await serving.close()
            with pytest.raises(AccessDeniedError):
                await session.open_confirmed("web")
            await stream.write(b"hello")
            assert await stream.readexactly(5) == b"hello"

    run(main())
    assert left == ["left"]


def test_what_was_taken_back_since_the_check_is_refused(table: ServiceTable) -> None:
    """Between the session's check and the handler's turn there is a moment."""

    async def too_late(request: OpenRequest) -> None:
        table.remove(["web"])
        await table.handle(request)

    async def main() -> None:
        table.add({"web": echo}, ())
        async with served(table, too_late) as session:
            with pytest.raises(AccessDeniedError):
                await session.open_confirmed("web")

    run(main())
