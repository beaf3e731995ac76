"""Both sides of a call in our own network, on loopback, with real channels; what is announced is put on a board by the test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import time
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import pytest

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import LAN_PATIENCE, PENDING_CONNECTIONS
from p2ptunnel.errors import (
    ChannelClosedError,
    ChannelLostError,
    NoPathError,
    PeerKeyChangedError,
    PeerNotNearError,
    PeerRefusedError,
    StoreError,
)
from p2ptunnel.identity.acl import AccessList
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.net.lan import Lan, OnFound
from p2ptunnel.protocol import lan as protocol
from p2ptunnel.protocol.lan import LanCaller, LanPort, LanReached
from p2ptunnel.session.session import Session, accept_session, connect_session
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.traversal import lan as module
from p2ptunnel.traversal.lan import LanAnswerer, LanCall, beside
from p2ptunnel.traversal.tries import Tries
from p2ptunnel.types import Address
from p2ptunnel.wire.frames import preamble
from tests.helpers import run
from tests.helpers.turns import cancel_at_each_turn, descriptors, settle

HOST = "127.0.0.1"
CALLER, CALLEE, EVE = (Identity.from_seed(bytes([number]) * 32) for number in (31, 32, 33))
SALT, OTHER_SALT = b"s" * 16, b"t" * 16


class Board(Lan):
    """What is announced, without multicast: who finds here is told of it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.services: list[tuple[bytes, tuple[Address, ...]]] = []
        self.finders: list[OnFound] = []

    def announce(self, key: PublicKey, port: int, on_salt: Callable[[bytes], None]) -> None:
        on_salt(SALT)
        self.put(SALT, (HOST, port))

    def withdraw(self) -> None:
        self.services.clear()

    def put(self, salt: bytes, *addresses: Address) -> None:
        self.services.append((salt, addresses))
        for on_found in self.finders:
            on_found(salt, addresses, ())

    @contextlib.contextmanager
    def finding(self, key: PublicKey, on_found: OnFound) -> Generator[None]:
        self.finders.append(on_found)
        try:
            for salt, addresses in self.services:
                on_found(salt, addresses, ())
            yield
        finally:
            self.finders.remove(on_found)


class Home:
    """A callee that admits CALLER, and the sessions that came."""

    def __init__(self, board: Board, identity: Identity = CALLEE) -> None:
        self.identity = identity
        self.keeps = True
        self.access = AccessList()
        self.access.allow(CALLER.public)
        self.sessions: asyncio.Queue[Session] = asyncio.Queue()
        self.events: list[TraceEvent] = []
        self._changed = asyncio.Event()
        self.answerer = LanAnswerer(board, CALLEE.public, self.admit, on_loopback=True, tracer=Tracer(self._note))

    async def admit(self, pipe: Pipe, conkey: str) -> None:
        session = await accept_session(
            pipe, identity=self.identity, access=self.access, selector=bytes.fromhex(conkey), on_open=_nobody
        )
        if self.keeps:
            self.sessions.put_nowait(session)
        else:
            session.abort()

    async def told(self, name: str, times: int = 1) -> TraceEvent:
        while len(matching := [event for event in self.events if event.name == name]) < times:
            self._changed.clear()
            await self._changed.wait()
        return matching[times - 1]

    async def close(self) -> None:
        await self.answerer.close()
        while not self.sessions.empty():
            self.sessions.get_nowait().abort()

    def _note(self, event: TraceEvent) -> None:
        self.events.append(event)
        self._changed.set()


async def _nobody(_: Any) -> None:
    raise AssertionError("nobody opens a stream here")


async def establish(pipe: Pipe, conkey: str, key: PublicKey | None) -> Session:
    assert key == CALLEE.public
    return await connect_session(pipe, identity=CALLER, tag="home", peer_key=CALLEE.public, selector=bytes.fromhex(conkey))


@contextlib.asynccontextmanager
async def home_on(board: Board, identity: Identity = CALLEE) -> AsyncGenerator[Home]:
    home = Home(board, identity)
    home.answerer.start()
    try:
        yield home
    finally:
        await home.close()


def call(board: Board, make: Any = establish, **options: Any) -> LanCall[Any]:
    return LanCall(board, CALLEE.public, "home", make, **options)


@contextlib.contextmanager
def udp_socket() -> Generator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((HOST, 0))
        yield sock


# --- a call -----------------------------------------------------------------------------------------------------------


def test_a_peer_that_is_announced_is_connected_to() -> None:
    async def main() -> None:
        board = Board()
        async with home_on(board) as home:
            session = await call(board).run()
            theirs = await home.sessions.get()
            assert (session.peer_key, theirs.peer_key) == (CALLEE.public, CALLER.public)
            assert session.path.kind == "lan"
            session.abort()

    run(main())


def test_a_peer_that_is_announced_later_is_connected_to_then() -> None:
    async def main() -> None:
        board = Board()
        calling = asyncio.ensure_future(call(board).run())
        await asyncio.sleep(0)
        async with home_on(board):
            (await calling).abort()

    run(main())


def test_a_peer_that_knows_us_not_refuses_and_that_ends_the_call() -> None:
    async def main() -> None:
        board = Board()
        async with home_on(board) as home:
            home.access.revoke(CALLER.public)
            with pytest.raises(PeerRefusedError):
                await call(board).run()
            refused = await home.told("connection_refused")
            assert refused.facts["reason"] == "authentication failed: the caller proved no key that is admitted here"

    run(main())


def test_with_nobody_announced_it_is_said_that_nobody_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LAN_PATIENCE", 0.05)

    async def main() -> None:
        board = Board()
        board.trouble = "no network"
        with pytest.raises(PeerNotNearError) as caught:
            await call(board).run()
        assert str(caught.value) == "'home' is not to be found in this network: no network"

    run(main())


def test_thirty_two_dead_addresses_are_named_in_less_than_five_seconds() -> None:
    async def main() -> None:
        board = Board()
        for service in range(2):
            board.put(bytes([service]) * 16, *((f"127.1.{service}.{number}", 40000) for number in range(16)))
        began = time.monotonic()
        with pytest.raises(NoPathError) as caught:
            await call(board).run()
        assert LAN_PATIENCE <= time.monotonic() - began < 5
        assert len(caught.value.attempts) == 32
        assert caught.value.attempts[0] == "127.1.0.0:40000 announced, but does not answer"

    run(main())


def test_dead_addresses_before_the_living_one_cost_less_than_a_second() -> None:
    async def main() -> None:
        board = Board()
        board.put(OTHER_SALT, *((f"127.1.0.{number}", 40000) for number in range(16)))
        async with home_on(board):
            began = time.monotonic()
            (await call(board).run()).abort()
            assert time.monotonic() - began < 1.5

    run(main())


def test_a_liar_that_knows_the_key_and_not_its_secret_costs_only_time() -> None:
    """It has the peer's public key and its record, answers first, and holds no identity: TLS fails, the next one is tried."""

    async def main() -> None:
        board = Board()
        async with home_on(board, EVE), home_on(board):
            session = await call(board).run()
            assert session.peer_key == CALLEE.public
            session.abort()

    run(main())


def test_liars_alone_are_no_path_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LAN_PATIENCE", 0.2)

    async def main() -> None:
        board = Board()
        async with home_on(board, EVE):
            with pytest.raises(NoPathError) as caught:
                await call(board).run()
            [attempt] = caught.value.attempts
            assert " answered: " in attempt
            assert "another key" in attempt or "key" in attempt

    run(main())


def test_who_answers_and_never_connects_holds_nobody_up() -> None:
    """A liar that answers t=31 and t=32 and has no listener: after a second the next one is tried beside it."""

    async def main() -> None:
        board = Board()
        with udp_socket() as liar:
            asyncio.get_running_loop().add_reader(
                liar, answer_as_peer, liar, LanPort(CALLEE.public, OTHER_SALT, _dice, on_loopback=True)
            )
            try:
                board.put(OTHER_SALT, liar.getsockname())
                async with home_on(board):
                    began = time.monotonic()
                    (await call(board).run()).abort()
                    assert time.monotonic() - began < 3
            finally:
                asyncio.get_running_loop().remove_reader(liar)

    run(main())


_dice = random.SystemRandom()


def answer_as_peer(sock: socket.socket, port: LanPort) -> None:
    data, source = sock.recvfrom(2048)
    port.receive_datagram(data, source, time.monotonic())
    for datagram in port.datagrams_to_send():
        sock.sendto(datagram.data, datagram.destination)


@pytest.mark.parametrize("error", [ChannelLostError("cut"), ConnectionResetError("reset"), PeerKeyChangedError("home", "x")])
def test_a_channel_that_breaks_lets_the_next_address_try(error: Exception) -> None:
    async def main() -> None:
        board = Board()
        tries: list[Address] = []

        async def once_broken(pipe: Pipe, conkey: str, key: PublicKey | None) -> Session:
            tries.append(pipe.path.remote)
            if len(tries) == 1:
                raise error
            return await establish(pipe, conkey, key)

        async with home_on(board), home_on(board):
            (await call(board, once_broken).run()).abort()
            assert len(set(tries)) == 2

    run(main())


@pytest.mark.parametrize("error", [StoreError("peers.toml", "gone"), ValueError("a mistake of ours")])
def test_what_is_no_trouble_of_the_path_ends_the_call(error: Exception) -> None:
    async def main() -> None:
        board = Board()

        async def broken(pipe: Pipe, conkey: str, key: PublicKey | None) -> Session:
            raise error

        async with home_on(board):
            with pytest.raises(type(error)):
                await call(board, broken).run()

    run(main())


def test_cancelled_at_any_turn_a_call_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LAN_DATAGRAMS_BURST", 100_000)

    async def main() -> None:
        board = Board()
        async with home_on(board) as home:
            home.keeps = False

            async def work() -> Session:
                session: Session = await call(board).run()
                return session

            async def undo(session: Session) -> None:
                session.abort()

            assert await cancel_at_each_turn(work, undo) > 3

    run(main())


# --- the answering side -----------------------------------------------------------------------------------------------


async def selector_for(address: Address) -> bytes:
    """Ask as one who knows the key; return with what to begin."""
    caller = LanCaller(CALLEE.public, _dice)
    caller.start(0.0)
    caller.found(SALT, (address,), (), 0.0)
    loop = asyncio.get_running_loop()
    with udp_socket() as sock:
        while True:
            for datagram in caller.datagrams_to_send():
                sock.sendto(datagram.data, datagram.destination)
            data, source = await loop.sock_recvfrom(sock, 2048)
            caller.receive_datagram(data, source, 0.0)
            for event in caller.events():
                assert isinstance(event, LanReached)
                return bytes.fromhex(event.selector)


@contextlib.contextmanager
def connections(address: Address, count: int) -> Generator[None]:
    """So many connections that say nothing; those that are reset at once count as well."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(address)
        yield


async def ended(address: Address, data: bytes) -> None:
    """Connect, say something, and wait for the other side to end it without a word."""
    with contextlib.suppress(ConnectionError):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(data)
        assert await reader.read() == b""
    with contextlib.suppress(UnboundLocalError):
        writer.transport.abort()


def test_a_stranger_that_connects_is_cut_off_before_a_byte_is_read() -> None:
    async def main() -> None:
        board = Board()
        async with home_on(board) as home:
            [(_, [address])] = board.services
            await ended(address, preamble(os.urandom(16)))
            await home.told("stranger_cut_off")

    run(main())


def test_a_selector_that_is_none_of_ours_is_refused_and_burns_nothing() -> None:
    async def main() -> None:
        board = Board()
        async with home_on(board) as home:
            [(_, [address])] = board.services
            selector = await selector_for(address)
            await ended(address, preamble(os.urandom(16)))
            assert (await home.told("connection_refused")).facts[
                "reason"
            ] == "the channel was closed by us: a preamble with no conkey of ours"
            await ended(address, preamble(selector) + b"no TLS at all")
            await home.told("connection_refused", 2)
            assert home.answerer._port.matches(selector, HOST, time.monotonic())

    run(main())


def test_a_conkey_that_has_led_to_a_channel_is_spent() -> None:
    async def main() -> None:
        board = Board()
        async with home_on(board) as home:
            (await call(board).run()).abort()
            await home.sessions.get()
            [(_, [address])] = board.services
            await ended(address, preamble(os.urandom(16)))
            await home.told("stranger_cut_off")

    run(main())


def test_silent_connections_are_few_and_go_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PREAMBLE_TIMEOUT", 0.2)

    async def main() -> None:
        board = Board()
        async with home_on(board) as home:
            [(_, [address])] = board.services
            await selector_for(address)
            with connections(address, 5):
                await home.told("stranger_cut_off", 4)
                refused = await home.told("connection_refused")
            assert refused.facts["reason"] in {"no preamble in 0.2 s", "not admitted in 0.2 s"}  # two clocks, one time

    run(main())


def test_of_one_host_no_more_connections_wait_than_it_has_conkeys() -> None:
    async def main() -> None:
        board = Board()
        async with home_on(board) as home:
            [(_, [address])] = board.services
            for _ in range(PENDING_CONNECTIONS + 4):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(selector_for(address), 0.1)
            with connections(address, PENDING_CONNECTIONS + 2):
                await home.told("stranger_cut_off", 2)
                assert len(home.answerer._greetings) == PENDING_CONNECTIONS

    run(main())


def test_a_closed_answerer_answers_nobody_and_leaves_nothing_open() -> None:
    async def main() -> None:
        before = descriptors()
        board = Board()
        home = Home(board)
        address = home.answerer.start()
        (await call(board).run()).abort()
        await home.close()
        assert board.services == []
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(HOST, address[1])
        await home.close()
        await settle(before, 1)

    run(main())


def test_what_was_never_started_closes() -> None:
    async def main() -> None:
        await Home(Board()).close()

    run(main())


# --- beside a call with a server's help -------------------------------------------------------------------------------


class Made:
    """What a call makes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ended = ""

    def abort(self, reason: str) -> None:
        self.ended = reason


class Way:
    """A call that ends when the test says so."""

    def __init__(self, name: str) -> None:
        self.made = Made(name)
        self.is_cancelled = False
        self._outcome: asyncio.Future[Made] = asyncio.get_running_loop().create_future()

    async def run(self) -> Made:
        try:
            return await self._outcome
        except asyncio.CancelledError:
            self.is_cancelled = True
            raise

    def succeed(self) -> None:
        self._outcome.set_result(self.made)

    def fail(self, error: Exception) -> None:
        self._outcome.set_exception(error)


FAILED, NOT_NEAR = ChannelClosedError("the server's way failed"), PeerNotNearError("home")


def race(*steps: Callable[[Way, Way], None]) -> tuple[Made | BaseException, Way, Way]:
    """Let both ways go, do the steps, one in a turn; return what came of it."""

    async def main() -> tuple[Made | BaseException, Way, Way]:
        call, near = Way("call"), Way("near")
        racing = asyncio.ensure_future(beside(call.run(), near.run()))
        for step in steps:
            for _ in range(5):
                await asyncio.sleep(0)
            step(call, near)
        [outcome] = await asyncio.gather(racing, return_exceptions=True)
        return outcome, call, near

    return run(main())


def test_the_first_that_comes_up_counts_and_the_other_is_ended() -> None:
    outcome, call, near = race(lambda _, near: near.succeed())
    assert outcome is near.made
    assert call.is_cancelled
    outcome, call, near = race(lambda call, _: call.succeed())
    assert outcome is call.made
    assert near.is_cancelled


def test_of_two_that_come_up_in_one_turn_one_is_ended() -> None:
    outcome, call, near = race(lambda call, near: (call.succeed(), near.succeed())[0])
    assert isinstance(outcome, Made)
    other = call.made if outcome is near.made else near.made
    assert (outcome.ended, other.ended) == ("", "too late")


def test_what_both_have_made_is_not_ended() -> None:
    def both(call: Way, near: Way) -> None:
        near.made = call.made
        call.succeed()
        near.succeed()

    outcome, call, _ = race(both)
    assert outcome is call.made
    assert call.made.ended == ""


def test_where_the_network_has_nobody_the_server_decides() -> None:
    outcome, call, _ = race(lambda _, near: near.fail(NOT_NEAR), lambda call, _: call.succeed())
    assert outcome is call.made
    outcome, _, _ = race(lambda _, near: near.fail(NOT_NEAR), lambda call, _: call.fail(FAILED))
    assert outcome is FAILED


def test_where_the_server_does_not_help_the_network_gets_a_little_longer() -> None:
    outcome, _, near = race(lambda call, _: call.fail(FAILED), lambda _, near: near.succeed())
    assert outcome is near.made


def test_where_the_server_does_not_help_the_network_does_not_get_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAN_GRACE", 0.01)
    outcome, _, near = race(lambda call, _: call.fail(FAILED))
    assert outcome is FAILED
    assert near.is_cancelled


@pytest.mark.parametrize("turns", range(6))
def test_a_race_that_is_cancelled_ends_both(turns: int) -> None:
    async def main() -> None:
        call, near = Way("call"), Way("near")
        racing = asyncio.ensure_future(beside(call.run(), near.run()))
        for _ in range(3):
            await asyncio.sleep(0)
        call.succeed()
        for _ in range(turns):
            await asyncio.sleep(0)
        racing.cancel()
        [outcome] = await asyncio.gather(racing, return_exceptions=True)
        assert near.is_cancelled
        if outcome is not call.made:
            assert isinstance(outcome, asyncio.CancelledError)
            assert call.is_cancelled or call.made.ended == "too late"

    run(main())


# --- what was tried ---------------------------------------------------------------------------------------------------


def told(tries: Tries) -> list[tuple[str, str, str]]:
    return [(each.sent, each.outcome, each.reason) for each in tries.all]


def test_what_was_tried_is_noted_until_the_peer_was_connected_to() -> None:
    async def main() -> None:
        board, tries = Board(), Tries()
        async with home_on(board):
            (await call(board, tries=tries).run()).abort()
        assert told(tries) == [
            ("question to all by multicast", "answered", "its mark is announced"),
            ("t=31", "answered", "somebody who knows the peer's key"),
            ("SYN", "connected", ""),
        ]
        assert {each.way for each in tries.all} == {"lan"}
        await tries.wait_idle()

    run(main())


def test_it_is_noted_that_nobody_was_announced_or_that_who_was_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LAN_PATIENCE", 0.05)

    async def main() -> None:
        absent, silent = Tries(), Tries()
        board = Board()
        with pytest.raises(PeerNotNearError):
            await call(board, tries=absent).run()
        board.put(SALT, (HOST, 9))
        with pytest.raises(NoPathError):
            await call(board, tries=silent).run()
        assert told(absent) == [("question to all by multicast", "silent", "nobody announces its mark")]
        assert told(silent)[1:] == [("t=31", "silent", "announced, but does not answer")]

    run(main())


def test_a_call_that_is_cancelled_leaves_no_entry_under_way() -> None:
    async def main() -> None:
        tries = Tries()
        calling = asyncio.ensure_future(call(Board(), tries=tries).run())
        await asyncio.sleep(0)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert told(tries) == [("question to all by multicast", "given up", "given up")]
        await tries.wait_idle()

    run(main())
