"""Several channels that come up beside each other to one peer: one session, whichever is first, and the others join it."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from p2ptunnel.errors import (
    AccessDeniedError,
    ChannelClosedError,
    ChannelLostError,
    LocalProtocolError,
    PeerRefusedError,
    StreamResetError,
)
from p2ptunnel.identity.acl import AccessList
from p2ptunnel.identity.capability import issue
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.protocol import resume
from p2ptunnel.protocol.mux import Mux
from p2ptunnel.session import live
from p2ptunnel.session import session as session_module
from p2ptunnel.session.session import Beginning, FirstStream, Session, SessionOptions, accept_session, connect_session
from tests.helpers import run
from tests.helpers.lasting import until
from tests.helpers.peers import Peers, Wire, sessions, tcp_pair
from tests.helpers.turns import descriptors, settle
from tests.unit.session.test_standby import Kind, kinds, labelled


class Starting(Peers):
    """Peers of which the caller comes by several ways at once."""

    def __init__(self) -> None:
        super().__init__("web")
        self.options = SessionOptions(resume_timeout=60)
        self.beginning = Beginning()

    async def come(self, kind: Kind, ends: tuple[socket.socket, socket.socket] | None = None) -> Session:
        """The caller's session, over a channel of a kind."""
        client, server = ends or tcp_pair()
        selector = os.urandom(16)
        accepting = asyncio.create_task(self._accept(server, kind, selector))
        try:
            return await connect_session(
                labelled(client, kind),
                identity=self.caller,
                tag="home-nas",
                peer_key=self.expected,
                selector=selector,
                beginning=self.beginning,
                options=self.options,
            )
        finally:
            await asyncio.gather(accepting, return_exceptions=True)

    async def _accept(self, sock: socket.socket, kind: Kind, selector: bytes) -> None:
        if kind != "relay":
            await self.accept(sock)
            return
        session = await accept_session(
            labelled(sock, kind),
            identity=self.callee,
            access=self.access,
            selector=selector,
            on_open=self.on_open,
            find=self.find,
            options=self.options,
        )
        if session not in self.accepted:
            self.accepted.append(session)

    async def close(self) -> None:
        sessions = [*self.accepted, *([self.beginning.session] if self.beginning.session else [])]
        await asyncio.gather(*(session.close(grace=0) for session in sessions))


@asynccontextmanager
async def starting() -> AsyncGenerator[Starting]:
    peers = Starting()
    try:
        yield peers
    finally:
        await peers.close()


async def silenced(near: socket.socket, far: socket.socket, most: int) -> None:
    """Carry bytes both ways between two sockets, and back none any more once the near one has sent `most`."""
    loop, is_silent = asyncio.get_running_loop(), asyncio.Event()

    async def there() -> None:
        count = 0
        while data := await loop.sock_recv(near, 65536):
            count += len(data)
            if count > most:
                is_silent.set()
            await loop.sock_sendall(far, data)

    async def back() -> None:
        while data := await loop.sock_recv(far, 65536):
            if not is_silent.is_set():
                await loop.sock_sendall(near, data)

    await asyncio.gather(there(), back())


async def carries(peers: Starting, session: Session) -> None:
    ours, theirs = await peers.stream(session, "web")
    await ours.write(b"both ways")
    assert await theirs.read() == b"both ways"


def test_a_direct_channel_joins_the_session_that_the_relay_began_and_takes_over() -> None:
    async def main() -> None:
        async with starting() as peers:
            first = await peers.come("relay")
            assert first.relayed.is_set()
            second = await peers.come("direct")
            assert first is second
            assert len(peers.accepted) == 1
            await until(lambda: first.path.kind == "direct")
            assert not first.relayed.is_set()
            assert kinds(first) == ["direct", "relay"]
            await carries(peers, first)

    run(main())


def test_the_stream_that_a_session_is_begun_for_is_open_with_it() -> None:
    async def main() -> None:
        async with starting() as peers:
            first = FirstStream("web")
            peers.beginning = Beginning(first)
            session = await peers.come("relay")
            assert first.stream is not None
            assert first.stream.stream_id == 1
            request = await peers.requests.get()
            theirs = request.accept()
            await first.stream.confirmed()
            await first.stream.write(b"asked for with HELLO")
            assert await theirs.read() == b"asked for with HELLO"
            await carries(peers, session)  # and the next one is another

    run(main())


def test_a_refusal_of_that_stream_is_its_own_and_the_session_lives() -> None:
    async def main() -> None:
        async with starting() as peers:
            first = FirstStream("none of ours")
            peers.beginning = Beginning(first)
            session = await peers.come("direct")
            assert first.stream is not None
            with pytest.raises(AccessDeniedError):
                await first.stream.confirmed()
            await carries(peers, session)

    run(main())


def test_a_stream_that_nobody_wants_any_more_when_it_comes_is_reset() -> None:
    async def main() -> None:
        async with starting() as peers:
            first = FirstStream("web")
            peers.beginning = Beginning(first)
            first.abandon()
            session = await peers.come("direct")
            assert session.streams == 0
            theirs = (await peers.requests.get()).accept()
            with pytest.raises(StreamResetError):
                await theirs.read()

    run(main())


def test_what_is_no_service_is_refused_before_anybody_is_called() -> None:
    with pytest.raises(LocalProtocolError):
        FirstStream("no\x07")


def test_tickets_are_shown_before_the_stream_is_asked_for_that_goes_by_them() -> None:
    async def main() -> None:
        async with starting() as peers:
            ticket = issue(peers.callee, ("db",), time.time() + 3600, peers.caller.public)
            peers.access = AccessList(issuer=peers.callee.public)
            peers.access.allow(peers.caller.public, "web")
            first = FirstStream("db")
            peers.beginning = Beginning(first, (ticket.raw,))
            await peers.come("direct")
            assert (await peers.requests.get()).service == "db"

    run(main())


def test_no_ticket_and_nothing_that_goes_by_one_is_sent_before_the_peer_has_proved_itself() -> None:
    first, mux = FirstStream("db"), Mux(caller=True)
    assert Beginning(first, (b"a ticket",)).ask(mux, 0.0) is None
    assert not mux.has_output
    assert Beginning(first).ask(mux, 0.0) is first  # without one, the name of the service is all
    assert mux.has_output


def test_a_path_that_goes_silent_when_it_takes_over_costs_little_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The callee has moved by then: it is asked back.  The next path is measured before it is moved to."""
    monkeypatch.setattr(session_module, "TAKE_OVER_PATIENCE", 0.2)

    async def main() -> None:
        async with starting() as peers:
            session = await peers.come("relay")
            ours, theirs = await peers.stream(session, "web")
            for number in range(2):
                client, near = tcp_pair()
                far, server = tcp_pair()
                tube = asyncio.create_task(silenced(near, far, 600))
                coming = asyncio.create_task(peers.come("direct", (client, server)))
                if number == 0:
                    with pytest.raises(ChannelLostError, match="not answered"):
                        await coming
                began = time.monotonic()
                await theirs.write(b"still here")
                assert await ours.readexactly(10) == b"still here"
                assert time.monotonic() - began < 1.0
                assert session.path.kind == "relay"
                for task in (coming, tube):
                    task.cancel()
                await asyncio.gather(coming, tube, return_exceptions=True)
                near.close()
                far.close()

    run(main())


def test_a_way_that_is_not_wanted_any_more_does_not_end_the_session_that_another_began() -> None:
    async def main() -> None:
        async with starting() as peers:
            session = await peers.come("direct")
            peers.beginning.abort("too late")
            await carries(peers, session)

    run(main())


def test_a_channel_that_comes_up_for_a_session_that_has_ended_is_closed() -> None:
    async def main() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, _):
            before = descriptors()
            caller.abort()
            with pytest.raises(ChannelClosedError):
                await peers.rejoin(caller)
            await settle(before)

    run(main())


def test_it_takes_over_as_soon_as_its_round_trip_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "_look_around", lambda _: None)  # what the clock is for

    async def main() -> None:
        async with starting() as peers:
            session = await peers.come("relay")
            await peers.come("direct")
            await until(lambda: session.path.kind == "direct")

    run(main())


def test_the_relay_joins_no_session_that_a_direct_channel_has_begun() -> None:
    async def main() -> None:
        async with starting() as peers:
            session = await peers.come("direct")
            with pytest.raises(ChannelClosedError, match="another way was faster"):
                await peers.come("relay")
            assert len(peers.accepted) == 1
            assert kinds(session) == ["direct"]
            await carries(peers, session)

    run(main())


@pytest.mark.parametrize("ways", [("direct", "direct"), ("relay", "direct"), ("direct", "lan", "direct")])
def test_channels_that_come_up_at_the_same_time_make_one_session(ways: tuple[Kind, ...]) -> None:
    async def main() -> None:
        async with starting() as peers:
            came: list[Any] = await asyncio.gather(*(peers.come(way) for way in ways), return_exceptions=True)
            assert len({id(session) for session in came if isinstance(session, Session)}) == 1
            assert len(peers.accepted) == 1
            assert peers.beginning.session is not None
            await carries(peers, peers.beginning.session)

    run(main())


def test_a_channel_that_breaks_in_its_greeting_leaves_the_turn_to_the_next() -> None:
    async def main() -> None:
        wire = Wire()
        async with starting() as peers:
            async with peers.beginning.turn:  # both are up, and wait to say HELLO
                broken = asyncio.create_task(peers.come("relay", (wire.client, wire.server)))
                await until(lambda: len(wire.seen[0]) > 600)
                whole = asyncio.create_task(peers.come("direct"))
                wire.is_open.clear()
                wire.cut()
            with pytest.raises(PeerRefusedError):
                await broken
            await carries(peers, await whole)
        await wire.close()

    run(main())


def test_a_way_that_goes_silent_behind_tls_keeps_no_other_from_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "_TURN", 0.2)
    welcoming, is_stalled = session_module.welcome, asyncio.Event()

    async def welcome(*arguments: Any) -> tuple[PublicKey, bytes]:
        if not is_stalled.is_set():
            is_stalled.set()
            await asyncio.Event().wait()
        return await welcoming(*arguments)

    monkeypatch.setattr(session_module, "welcome", welcome)

    async def main() -> None:
        async with starting() as peers:
            first = FirstStream("web")
            peers.beginning = Beginning(first)
            client, server = tcp_pair()
            silent = asyncio.create_task(peers.come("direct", (client, server)))
            await is_stalled.wait()
            session = await peers.come("relay")
            (await peers.requests.get()).accept()
            assert first.stream is not None
            await first.stream.confirmed()  # what the silent one was asked for is asked for again
            await carries(peers, session)
            silent.cancel()  # its callee still waits
            with pytest.raises((ChannelLostError, asyncio.CancelledError)):
                await silent

    run(main(), timeout=4)


def test_the_relay_is_left_when_there_is_no_stream_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A standby there keeps a place of those that are rationed."""
    monkeypatch.setattr(live, "SESSION_TICK", 0.02)

    async def main() -> None:
        async with starting() as peers:
            session = await peers.come("relay")
            await peers.come("direct")
            await until(lambda: session.path.kind == "direct")
            assert kinds(session) == ["direct", "relay"]
            monkeypatch.setattr(resume, "DORMANT_AFTER", 0.0)
            await until(lambda: kinds(session) == ["direct"])
            await carries(peers, session)

    run(main())
