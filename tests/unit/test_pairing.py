"""Pinning is not stopped half-way: who is pinned has used the invitation, and its owner is told so; who is not has not."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from p2ptunnel.errors import P2PTunnelError, PairingError, StoreError
from p2ptunnel.events import Paired, PeerEvent
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.identity.store import PeerStore, PinnedPeer
from p2ptunnel.net.threads import in_thread
from p2ptunnel.pairing import Invitation, Redemption
from p2ptunnel.session.pairing import be_guest, call_host
from p2ptunnel.transports.tcp import read_preamble
from p2ptunnel.types import ServerSpec
from p2ptunnel.wire.ticket import parse_ticket
from tests.helpers import run
from tests.helpers.pairing import GUEST, HOST
from tests.helpers.peers import new_pipe, tcp_pair

SERVER = ServerSpec(("127.0.0.1", 7000))


class SlowStore(PeerStore):
    """A store whose disk takes its time: `pair` has begun, and goes on when the test says so."""

    def __init__(self, path: Path, error: StoreError | None = None) -> None:
        super().__init__(path)
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.error = error

    def pair(self, *arguments: Any, **options: Any) -> PinnedPeer:
        self.begun.set()
        assert self.go_on.wait(10)
        if self.error:
            raise self.error
        return super().pair(*arguments, **options)


class Home:
    """A host with an invitation for one, and what its owner was told."""

    def __init__(self, store: PeerStore) -> None:
        self.store = store
        self.told: list[PeerEvent] = []
        services = MappingProxyType[str, tuple[str, ...]]({"web": ()})
        self.invitation = Invitation(HOST, store, "home", SERVER, services=services, expires=600, uses=1, tell=self.told.append)
        self.ticket = self.invitation.ticket

    @property
    def is_pinned(self) -> bool:
        return self.store.by_key(GUEST.public) is not None

    @property
    def is_used(self) -> bool:
        return self.invitation._desk.uses_left == 0

    @property
    def is_told(self) -> bool:
        return any(isinstance(event, Paired) for event in self.told)

    @asynccontextmanager
    async def visited(self) -> AsyncGenerator[asyncio.Task[None]]:
        """A guest comes with the ticket; the block begins when something is stored, on whichever side that is slow."""
        client, server = tcp_pair()

        async def admit() -> None:
            await self.invitation.admit(new_pipe(server), GUEST.public, await read_preamble(server))

        async def visit() -> None:
            channel = await call_host(new_pipe(client), identity=GUEST, host=HOST.public, selector=os.urandom(16))
            await be_guest(channel, "laptop", parse_ticket(self.ticket).secret, _nothing)

        guest, admitting = asyncio.create_task(visit()), asyncio.create_task(admit())
        try:
            yield admitting
        finally:
            await asyncio.gather(guest, admitting, return_exceptions=True)


async def _nothing(_: object) -> None:
    pass


async def _begun(store: SlowStore) -> None:
    assert await in_thread(store.begun.wait, 10)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("error", [None, StoreError("peers.toml", "No space left on device")], ids=["stored", "not stored"])
def test_a_guest_is_pinned_exactly_where_its_use_is_spent_and_its_owner_told(
    tmp_path: Path, times: int, error: StoreError | None
) -> None:
    async def scenario() -> None:
        store = SlowStore(tmp_path / "peers.toml", error)
        home = Home(store)
        async with home.visited() as admitting:
            await _begun(store)
            for _ in range(times):
                admitting.cancel()
                await asyncio.sleep(0.01)
            store.go_on.set()
            await asyncio.wait([admitting])
            assert admitting.cancelled()
            assert [home.is_pinned, home.is_used, home.is_told] == [error is None] * 3
        assert [home.is_pinned, home.is_used, home.is_told] == [error is None] * 3
        await home.invitation.close()

    run(scenario())


def test_a_deadline_in_the_middle_changes_nothing_of_that(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = SlowStore(tmp_path / "peers.toml")
        home = Home(store)
        async with home.visited() as admitting:
            await _begun(store)
            await asyncio.wait([admitting], timeout=5.1)  # the time that a guest has
            store.go_on.set()
        assert isinstance(admitting.exception(), P2PTunnelError)
        assert (home.is_pinned, home.is_used, home.is_told) == (True, True, True)
        assert len(home.told) == 1
        assert (await home.invitation.paired()).key == GUEST.public

    run(scenario())


def test_an_invitation_that_is_closed_meanwhile_still_hands_over_its_last_guest(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = SlowStore(tmp_path / "peers.toml")
        home = Home(store)
        async with home.visited() as admitting:

            async def leave() -> None:
                admitting.cancel()
                await asyncio.gather(admitting, return_exceptions=True)

            home.invitation.wait_at(leave)
            await _begun(store)
            closing, waiting = asyncio.create_task(home.invitation.close()), asyncio.create_task(home.invitation.paired())
            await asyncio.sleep(0.01)
            assert not closing.done()
            assert not waiting.done()
            store.go_on.set()
            await closing
            assert (await waiting).key == GUEST.public
        assert (home.is_pinned, home.is_used, home.is_told) == (True, True, True)
        with pytest.raises(PairingError, match="it was closed"):
            await home.invitation.paired()

    run(scenario())


def test_who_is_half_through_when_the_invitation_is_closed_does_not_come_in(tmp_path: Path) -> None:
    async def scenario() -> None:
        home = Home(PeerStore(tmp_path / "peers.toml"))
        await home.invitation.close()
        async with home.visited() as admitting:
            pass
        assert isinstance(admitting.exception(), PairingError)
        assert (home.is_pinned, home.is_used, home.is_told) == (False, False, False)
        assert not home.invitation._desk.take()

    run(scenario())


def test_a_host_that_is_pinned_is_known_to_be_even_where_the_guest_is_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        home, store = Home(PeerStore(tmp_path / "host" / "peers.toml")), SlowStore(tmp_path / "guest" / "peers.toml")
        redemption = Redemption(home.ticket, store)
        client, server = tcp_pair()

        async def admit() -> None:
            await home.invitation.admit(new_pipe(server), GUEST.public, await read_preamble(server))

        admitting = asyncio.create_task(admit())
        channel = await redemption.call(new_pipe(client), GUEST, _key(redemption), os.urandom(16))
        settling = asyncio.create_task(redemption.settle(channel, "laptop"))
        await _begun(store)
        settling.cancel()
        await asyncio.sleep(0.01)
        store.go_on.set()
        with suppress(asyncio.CancelledError):
            await settling
        assert settling.cancelled()
        assert redemption.pinned is not None
        assert redemption.pinned == store.get("home")
        assert redemption.offered == ("web",)
        await admitting
        assert (home.is_pinned, home.is_used, home.is_told) == (True, True, True)

    run(scenario())


def _key(redemption: Redemption) -> PublicKey:
    assert redemption.host_key is not None
    return redemption.host_key
