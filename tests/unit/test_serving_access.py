"""Streams whose grant ends, what the owner is asked about, tickets that are shown, and too many streams."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from p2ptunnel import asking, serving
from p2ptunnel.abc import Stream
from p2ptunnel.asking import AccessRequest, Decision
from p2ptunnel.defaults import LOOKUPS_OF_PEER_MAX, SESSION_TICK
from p2ptunnel.errors import (
    AccessDeniedError,
    AccessRevokedError,
    ApprovalTimeoutError,
    P2PTunnelError,
    StoreError,
    StreamResetError,
    TargetRefusedError,
)
from p2ptunnel.events import ApprovalAwaited, PeerEvent
from p2ptunnel.identity.capability import issue
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import PeerStore
from p2ptunnel.protocol.resume import Endpoint
from p2ptunnel.serving import ServiceTable
from p2ptunnel.session.session import Session, SessionOptions, accept_session
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.tcp import read_preamble
from tests.helpers import run
from tests.helpers.peers import CALLEE, CALLER, Peers, new_pipe, tcp_pair

LAPTOP = CALLER.public
HOUR = 3600


async def echo(stream: Stream) -> None:
    async for part in stream:
        await stream.write(part)
    await stream.write_eof()


class Home:
    """A machine that serves, and the laptop's session with it."""

    def __init__(self, path: Path, *granted: str) -> None:
        self.ahead = 0.0  # of its clock
        self.path = path / "peers.toml"
        self.store = PeerStore(self.path)
        self.store.add("laptop", LAPTOP, granted)
        self.events: list[PeerEvent] = []
        self.laptop_events: list[PeerEvent] = []
        self.table = ServiceTable(self.store, Tracer(), self.events.append, self.now, CALLEE.public)

    def now(self) -> float:
        return time.time() + self.ahead

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncGenerator[Session]:
        peers = Peers()
        peers.options = SessionOptions(on_event=self.laptop_events.append)
        client, server = tcp_pair()

        async def accept() -> Session:
            selector = await read_preamble(server)
            return await accept_session(
                new_pipe(server), identity=CALLEE, access=self.table, selector=selector, on_open=self.table.handle
            )

        caller, callee = await asyncio.gather(peers.connect(client), accept())
        try:
            yield caller
        finally:
            await asyncio.gather(caller.close(grace=0), callee.close(grace=0))


async def use(stream: Stream) -> None:
    """See that the stream carries bytes both ways."""
    await stream.write(b"ping")
    assert await stream.readexactly(4) == b"ping"


async def broken(stream: Stream) -> P2PTunnelError:
    """The error with which a stream ends."""
    with pytest.raises(P2PTunnelError) as caught:
        await stream.read()
    return caught.value


# --- grants that end ----------------------------------------------------------------------------------------------------


def deny(home: Home) -> None:
    PeerStore(home.path).deny("laptop", "web")  # another process


def pass_the_end(home: Home) -> None:
    home.ahead = 2 * HOUR


@pytest.mark.parametrize("end", [deny, pass_the_end])
def test_a_grant_that_ends_ends_its_streams_within_a_second_and_no_others(end: Callable[[Home], None], tmp_path: Path) -> None:
    async def main() -> None:
        home = Home(tmp_path, "ssh")
        home.store.allow("laptop", "web", until=time.time() + HOUR)
        home.table.add({"web": echo, "ssh": echo}, ())
        async with home.session() as session:
            web, ssh = await session.open_confirmed("web"), await session.open_confirmed("ssh")
            await use(web)
            began = time.monotonic()
            end(home)
            error = await broken(web)
            assert time.monotonic() - began < 1.0
            assert isinstance(error, AccessRevokedError)
            assert str(error) == "home-nas serves 'web' to this machine no more"
            await use(ssh)
            with pytest.raises(AccessDeniedError):
                await session.open_confirmed("web")

    run(main())


def test_it_does_so_where_nothing_else_wakes_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a path that asks its peer for no sign of life, there is the look at the list alone, and at first the session's own."""
    monkeypatch.setattr(Endpoint, "next_deadline", lambda *_: math.inf)

    async def main() -> None:
        home = Home(tmp_path, "web")
        home.table.add({"web": echo}, ())
        async with home.session() as session:
            stream = await session.open_confirmed("web")
            await use(stream)
            ending = asyncio.ensure_future(broken(stream))
            await asyncio.wait([ending], timeout=SESSION_TICK)
            began = time.monotonic()
            deny(home)
            assert isinstance(await ending, AccessRevokedError)
            assert time.monotonic() - began < 1.0

    run(main())


def test_a_target_sees_the_end_of_a_grant_as_a_reset(tmp_path: Path) -> None:
    async def main() -> None:
        home = Home(tmp_path, "web")
        with socket.create_server(("127.0.0.1", 0)) as server:
            home.table.add({"web": server.getsockname()[1]}, ())
            async with home.session() as session:
                stream = await session.open_confirmed("web")
                target, _ = server.accept()
                with target:
                    target.setblocking(False)
                    deny(home)
                    assert isinstance(await broken(stream), AccessRevokedError)
                    with pytest.raises(ConnectionResetError):
                        await asyncio.get_running_loop().sock_recv(target, 1)

    run(main())


def test_what_was_allowed_in_code_ends_when_it_was_said_to(tmp_path: Path) -> None:
    async def main() -> None:
        home = Home(tmp_path)
        home.table.add({"web": echo}, ["laptop"], until=time.time() + HOUR)
        async with home.session() as session:
            stream = await session.open_confirmed("web")
            pass_the_end(home)
            assert isinstance(await broken(stream), AccessRevokedError)
            assert home.table.granted(LAPTOP) == ()

    run(main())


def test_a_service_that_is_served_no_more_keeps_its_streams_as_long_as_they_are_granted(tmp_path: Path) -> None:
    async def main() -> None:
        home = Home(tmp_path, "web")
        home.table.add({"web": echo}, ())
        async with home.session() as session:
            stream = await session.open_confirmed("web")
            home.table.remove(["web"])
            assert home.table._is_granted(LAPTOP, "web", serving._Service(serving.ServeSpec("web", "")))
            await use(stream)
            deny(home)
            assert isinstance(await broken(stream), AccessRevokedError)

    run(main())


def calls_of(question: Callable[[], object]) -> int:
    """How many Python and C functions answering a question takes: its time, without the noise of a clock."""
    count = 0

    def note(*_: object) -> None:
        nonlocal count
        count += 1

    question()
    gc.disable()  # what it finds may have functions to call
    sys.setprofile(note)
    try:
        question()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count


def test_what_is_not_there_and_what_is_not_yours_take_the_same_time(tmp_path: Path) -> None:
    home = Home(tmp_path, "web")
    home.table.add({"web": echo, "secret": echo}, ())
    assert not home.table.may_open(LAPTOP, "secret")
    assert not home.table.may_open(LAPTOP, "absent")
    assert calls_of(lambda: home.table.may_open(LAPTOP, "secret")) == calls_of(lambda: home.table.may_open(LAPTOP, "absent"))


# --- many places behind one service -------------------------------------------------------------------------------------


def test_a_peer_names_the_place_itself_and_reaches_what_is_granted_and_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        home = Home(tmp_path, "any")
        with socket.create_server(("127.0.0.7", 0)) as inside, socket.create_server(("127.0.0.8", 0)) as outside:
            port, other = inside.getsockname()[1], outside.getsockname()[1]
            home.table.add({"any": f"any:127.0.0.7/32:{port} gone.test:{port}"}, ())
            async with home.session() as session:
                stream = await session.open_confirmed(f"127.0.0.7:{port}")
                target, _ = inside.accept()
                with target:
                    target.setblocking(False)
                    await stream.write(b"GET")
                    assert await asyncio.get_running_loop().sock_recv(target, 3) == b"GET"
                    for asked in ("any", f"127.0.0.8:{other}", f"127.0.0.1:{port}", f"[::ffff:127.0.0.8]:{other}"):
                        with pytest.raises(AccessDeniedError):
                            await session.open_confirmed(asked)
                    deny_any = PeerStore(home.path)
                    deny_any.deny("laptop", "any")
                    assert isinstance(await broken(stream), AccessRevokedError)
            outside.setblocking(False)
            with pytest.raises(BlockingIOError):
                outside.accept()

    run(main())


def test_a_name_that_resolves_elsewhere_is_not_yours_and_one_that_does_not_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.getaddrinfo

    def resolve(host: str, *rest: Any, **more: Any) -> Any:
        assert host != "unlisted.test"
        if host == "gone.test":
            if more.get("flags"):
                raise socket.gaierror(socket.EAI_NONAME, "not numeric")
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return real("127.0.0.1" if host == "inner.test" and not more.get("flags") else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)

    async def main() -> None:
        home = Home(tmp_path, "any")
        home.table.add({"any": "any:10.0.0.0/8:80 inner.test:80 gone.test:80"}, ())
        async with home.session() as session:
            for asked in ("inner.test:80", "unlisted.test:80"):
                with pytest.raises(AccessDeniedError):
                    await session.open_confirmed(asked)
            with pytest.raises(TargetRefusedError, match="no such host"):
                await session.open_confirmed("gone.test:80")

    run(main())


def test_a_slow_resolver_holds_so_many_threads_of_a_peer_and_the_next_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, released = socket.getaddrinfo, threading.Event()

    def hang(host: str, *rest: Any, **more: Any) -> Any:
        if host.endswith(".test"):
            if not more.get("flags"):
                released.wait()
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return real(host, *rest, **more)

    def hanging() -> int:
        return sum(thread.name == "p2ptunnel-look-up" for thread in threading.enumerate())

    monkeypatch.setattr(socket, "getaddrinfo", hang)

    async def main() -> None:
        home, most = Home(tmp_path, "any"), LOOKUPS_OF_PEER_MAX
        home.table.add({"any": "any:" + " ".join(f"n{number}.test:80" for number in range(most + 1))}, ())
        async with home.session() as session:
            opening = [asyncio.create_task(session.open_confirmed(f"n{number}.test:80")) for number in range(most)]
            while hanging() < most:
                await asyncio.sleep(0)
            with pytest.raises(StreamResetError, match="too many names are being looked up"):
                await session.open_confirmed(f"n{most}.test:80")
            assert hanging() == most
            released.set()
            for refused in await asyncio.gather(*opening, return_exceptions=True):
                assert isinstance(refused, TargetRefusedError)

    try:
        run(main())
    finally:
        released.set()


def test_our_own_listeners_are_not_reached(tmp_path: Path) -> None:
    async def main() -> None:
        home = Home(tmp_path, "any")
        with socket.create_server(("127.0.0.7", 0)) as forward:
            address = forward.getsockname()
            home.table.own_listeners = lambda: (address,)
            home.table.add({"any": "any:127.0.0.7/32:*"}, ())
            async with home.session() as session:
                with pytest.raises(AccessDeniedError):
                    await session.open_confirmed(f"127.0.0.7:{address[1]}")

    run(main())


# --- asking -------------------------------------------------------------------------------------------------------------


class Owner:
    """Answers as the test says, and remembers what was asked."""

    def __init__(self, *answers: Decision) -> None:
        self.answers = list(answers)
        self.requests: list[AccessRequest] = []

    async def __call__(self, request: AccessRequest) -> Decision:
        self.requests.append(request)
        if not self.answers:
            await asyncio.Event().wait()
        return self.answers.pop(0)


def test_a_yes_opens_one_stream_and_the_next_one_is_asked_about_again(tmp_path: Path) -> None:
    async def main() -> None:
        home, owner = Home(tmp_path), Owner("once", "no")
        home.table.add({"web": echo}, (), ask=owner)
        async with home.session() as session:
            assert session.granted == ()
            stream = await session.open_confirmed("web")
            await use(stream)
            [request] = owner.requests
            assert (request.tag, request.key, request.service) == ("laptop", LAPTOP, "web")
            [awaited] = [event for event in home.laptop_events if isinstance(event, ApprovalAwaited)]
            assert (awaited.tag, awaited.service, awaited.patience) == ("home-nas", "web", 60)
            with pytest.raises(AccessDeniedError):
                await session.open_confirmed("web")
            await use(stream)
        assert home.store.all()[0].granted(time.time()) == ()

    run(main())


def test_a_stream_that_was_let_in_once_ends_when_the_service_is_denied(tmp_path: Path) -> None:
    async def main() -> None:
        home = Home(tmp_path)
        home.table.add({"web": echo}, (), ask=Owner("once", "once"))
        async with home.session() as session:
            first = await session.open_confirmed("web")
            second = await session.open_confirmed("web")
            deny(home)
            for stream in (first, second):
                assert isinstance(await broken(stream), AccessRevokedError)
            assert not session.closed.is_set()

    run(main())


def test_a_yes_for_once_that_cannot_be_noted_holds_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreError("peers.toml", "No space left on device")

    async def main() -> None:
        home = Home(tmp_path)
        monkeypatch.setattr(home.store, "note_once", full)
        home.table.add({"web": echo}, (), ask=Owner("once"))
        async with home.session() as session:
            await use(await session.open_confirmed("web"))

    run(main())


@pytest.mark.parametrize(("decision", "ends"), [("hour", True), ("always", False)])
def test_a_yes_for_longer_is_a_grant_that_can_be_taken_back(decision: Decision, ends: bool, tmp_path: Path) -> None:
    async def main() -> None:
        home, owner = Home(tmp_path), Owner(decision)
        home.table.add({"web": echo}, (), ask=owner)
        async with home.session() as session:
            first, second = await session.open_confirmed("web"), await session.open_confirmed("web")
            assert len(owner.requests) == 1
            [pinned] = PeerStore(home.path).all()
            assert pinned.services == ("web",)
            assert bool(pinned.until) is ends
            if ends:
                assert pinned.until["web"] == pytest.approx(time.time() + HOUR, abs=60)
            deny(home)
            for stream in (first, second):
                assert isinstance(await broken(stream), AccessRevokedError)

    run(main())


def test_a_stream_that_was_let_in_once_ends_with_its_peer(tmp_path: Path) -> None:
    async def main() -> None:
        home = Home(tmp_path)
        home.table.add({"web": echo}, (), ask=Owner("once"))
        async with home.session() as session:
            stream = await session.open_confirmed("web")
            home.store.remove("laptop")
            assert "access was revoked" in str(await broken(stream))
            assert session.closed.is_set()

    run(main())


def test_nobody_answers_and_the_caller_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ASK_TIMEOUT", 0.05)

    async def main() -> None:
        home = Home(tmp_path)
        home.table.add({"web": echo}, (), ask=Owner())
        async with home.session() as session:
            with pytest.raises(ApprovalTimeoutError) as caught:
                await session.open_confirmed("web")
            assert str(caught.value) == "nobody at home-nas has answered whether this machine may open 'web'"

    run(main())


def test_a_second_question_of_a_peer_is_not_put(tmp_path: Path) -> None:
    async def main() -> None:
        home, owner = Home(tmp_path), Owner()
        home.table.add({"web": echo, "db": echo}, (), ask=owner)
        async with home.session() as session:
            first = session.open("web")
            with pytest.raises(StreamResetError, match="its owner is asked about something else"):
                await session.open_confirmed("db")
            assert [request.service for request in owner.requests] == ["web"]
            first.abort()

    run(main())


def test_who_is_granted_is_not_asked_about_and_who_is_muted_hears_what_a_stranger_would(tmp_path: Path) -> None:
    async def main() -> None:
        home, owner = Home(tmp_path, "web"), Owner("no", "no", "no", "always")
        home.table.add({"web": echo, "db": echo}, (), ask=owner)
        async with home.session() as session:
            await use(await session.open_confirmed("web"))
            for _ in range(5):
                with pytest.raises(AccessDeniedError) as caught:
                    await session.open_confirmed("db")
                assert type(caught.value) is AccessDeniedError
            assert len(owner.requests) == 3

    run(main())


def test_a_question_about_one_of_many_places_says_which(tmp_path: Path) -> None:
    async def main() -> None:
        home, owner = Home(tmp_path), Owner("no")
        home.table.add({"any": "any:10.0.0.0/8:80"}, (), ask=owner)
        async with home.session() as session:
            with pytest.raises(AccessDeniedError):
                await session.open_confirmed("10.1.2.3:80")
            assert [request.service for request in owner.requests] == ["any (10.1.2.3:80)"]

    run(main())


def test_an_hour_by_a_clock_that_was_never_set_is_once(tmp_path: Path) -> None:
    async def main() -> None:
        home = Home(tmp_path)
        home.ahead = -time.time()
        home.table.add({"web": echo}, (), ask=Owner("hour"))
        async with home.session() as session:
            await use(await session.open_confirmed("web"))
        assert home.store.all()[0].granted(time.time()) == ()

    run(main())


def test_host_keys_of_what_may_be_asked_for_are_told_unasked(tmp_path: Path) -> None:
    home, owner = Home(tmp_path), Owner()
    home.table.add({"ssh": "ssh"}, (), ask=owner)
    found = home.table._find(LAPTOP, "ssh-host-keys/ssh")
    assert found is not None
    assert not found.must_ask
    assert home.table._find(Identity.generate().public, "ssh-host-keys/ssh") is None


# --- tickets ------------------------------------------------------------------------------------------------------------


def test_a_ticket_that_is_shown_opens_its_services_and_revoked_ends_their_streams(tmp_path: Path) -> None:
    async def main() -> None:
        home = Home(tmp_path)
        home.table.add({"web": echo, "db": echo}, ())
        ticket = issue(CALLEE, ("web",), time.time() + HOUR, LAPTOP)
        async with home.session() as session:
            with pytest.raises(AccessDeniedError):
                await session.open_confirmed("web")
            session.show(ticket.raw)
            stream = await session.open_confirmed("web")
            await use(stream)
            with pytest.raises(AccessDeniedError):
                await session.open_confirmed("db")
            began = time.monotonic()
            PeerStore(home.path).revoke_ticket(ticket.name, ticket.until)
            assert isinstance(await broken(stream), AccessRevokedError)
            assert time.monotonic() - began < 1.0

    run(main())


def test_what_is_no_ticket_changes_nothing_and_breaks_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        home = Home(tmp_path)
        home.table.add({"web": echo}, ())
        async with home.session() as session:
            for shown in (b"x", bytes(200), issue(CALLER, ("web",), time.time() + HOUR).raw):
                session.show(shown)
            with pytest.raises(AccessDeniedError):
                await session.open_confirmed("web")

    run(main())


# --- too many -----------------------------------------------------------------------------------------------------------


def test_a_peer_has_no_more_streams_of_a_service_than_it_may(tmp_path: Path) -> None:
    async def main() -> None:
        home = Home(tmp_path, "web", "db")
        home.table.add({"web": echo, "db": echo}, (), most=2)
        async with home.session() as one, home.session() as other:
            first = await one.open_confirmed("web")
            second = await other.open_confirmed("web")
            with pytest.raises(StreamResetError, match="too many streams are open"):
                await other.open_confirmed("web")
            await use(await other.open_confirmed("db"))
            await use(first)
            await second.write_eof()
            assert await second.read() == b""
            await use(await one.open_confirmed("web"))

    run(main())
