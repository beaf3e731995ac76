"""A server that is started again: it knows its tags, and its peers come back within three seconds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

import pytest

from p2ptunnel.defaults import RECALL_MAX
from p2ptunnel.errors import StoreError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.registration import KeyCredentials
from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.protocol.machine import Event, MachineBase
from p2ptunnel.protocol.registration import Registered, Registration
from p2ptunnel.protocol.tags import TagRecord
from p2ptunnel.server import Rendezvous, keeper
from p2ptunnel.server.registry import SqliteTags, TagStore
from p2ptunnel.types import Address, Tag
from tests.helpers import run
from tests.unit.server.wires import register, udp

ALICE, BOB, SERVER = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
ANYWHERE: Address = ("127.0.0.1", 0)


class Broken:
    """A store that fails when it is told to, and otherwise keeps what it is given in memory."""

    def __init__(self) -> None:
        self.is_broken = False
        self.saved: dict[Tag, TagRecord | None] = {}
        self.freed: frozenset[Tag] = frozenset()
        self.hangs: threading.Event | None = None

    def load(self) -> tuple[Sequence[TagRecord], float]:
        if self.is_broken:
            raise StoreError("tags", "broken")
        return [record for record in self.saved.values() if record is not None], time.time()

    def save(self, changes: Mapping[Tag, TagRecord | None]) -> frozenset[Tag]:
        if self.hangs is not None:
            self.hangs.wait(20)
        if self.is_broken:
            raise StoreError("tags", "broken")
        self.saved.update(changes)
        return self.freed

    def close(self) -> None:
        """Nothing is open."""


class Peer(MachineBase):
    """One registration on a socket of its own."""

    def __init__(self, server: Address, identity: Identity, tag: Tag) -> None:
        super().__init__()
        self.registration = Registration(tag, server, KeyCredentials(identity, tag), random.SystemRandom())
        self.registered: asyncio.Queue[Registered] = asyncio.Queue()

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        message = self._decode(data)
        if message is not None:
            self.registration.receive(message, source, now)

    def handle_timer(self, now: float) -> None:
        self.registration.handle_timer(now)

    def next_deadline(self) -> float | None:
        return self.registration.next_deadline()

    def datagrams_to_send(self) -> list:  # type: ignore[type-arg]
        return self.registration.datagrams_to_send()

    def events(self) -> list[Event]:
        return self.registration.events()

    def on_event(self, event: Event) -> None:
        if isinstance(event, Registered):
            self.registered.put_nowait(event)


@contextlib.asynccontextmanager
async def peer(server: Address, identity: Identity, tag: Tag) -> AsyncGenerator[Peer]:
    there = Peer(server, identity, tag)
    async with UdpDriver(there, UdpSocket(ANYWHERE), there.on_event) as driver:
        there.registration.start(time.monotonic())
        driver.wake()
        await there.registered.get()
        yield there


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


def test_peers_come_back_within_three_seconds_of_a_restart(tmp_path: Path) -> None:
    """reliability: the next heartbeat would be up to 26 s away."""

    async def main() -> float:
        async with Rendezvous(ANYWHERE, identity=SERVER, store=SqliteTags(tmp_path / "s" / "tags")) as server:
            address = server.address
            async with contextlib.AsyncExitStack() as stack:
                peers = [await stack.enter_async_context(peer(address, Identity.generate(), f"p{n}")) for n in range(30)]
                await server.close()
                began = time.monotonic()
                again = Rendezvous(address, identity=SERVER, store=SqliteTags(tmp_path / "s" / "tags"))
                async with again:
                    await asyncio.gather(*(one.registered.get() for one in peers))
                    assert len(again.registered) == 30
                    return time.monotonic() - began

    took = run(main())
    assert took < RECALL_MAX + 1


def test_a_tag_outlives_the_server_and_its_peer(tmp_path: Path) -> None:
    async def main() -> None:
        for identity, code in ((ALICE, 200), (BOB, 409)):
            async with Rendezvous(ANYWHERE, store=SqliteTags(tmp_path / "s" / "tags")) as server, udp(server.address) as wire:
                assert (await register(wire, "nas", identity)).code == code

    run(main())


def test_a_tag_that_was_freed_while_the_server_was_down_is_its_new_owners(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """M5: somebody else could take it from them five seconds after the start."""
    monkeypatch.setattr(keeper, "SNAPSHOT_EVERY", 0.02)
    path = tmp_path / "s" / "tags"

    async def main() -> None:
        async with Rendezvous(ANYWHERE, store=SqliteTags(path)) as server, udp(server.address) as wire:
            assert (await register(wire, "nas", ALICE)).code == 200
        operator = SqliteTags(path)
        assert operator.free("nas")
        operator.close()
        async with Rendezvous(ANYWHERE, store=SqliteTags(path)) as server, udp(server.address) as wire:
            assert (await register(wire, "nas", BOB)).code == 200
            beside = SqliteTags(path)
            await until(lambda: [record.key for record in beside.records()] == [str(BOB.public)])
            beside.close()
            assert server.registered == ("nas",)
            assert (await register(wire, "nas", ALICE)).code == 409

    run(main())


def test_a_clock_that_jumps_while_the_server_is_down_frees_no_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    store: TagStore = Broken()

    async def main() -> None:
        async with Rendezvous(ANYWHERE, store=store) as server, udp(server.address) as wire:
            assert (await register(wire, "nas", ALICE)).code == 200
        left_at = time.time()
        monkeypatch.setattr(Broken, "load", lambda self: (list(self.saved.values()), left_at))
        monkeypatch.setattr("time.time", lambda: left_at + 400 * 86_400)
        async with Rendezvous(ANYWHERE, store=store) as server, udp(server.address) as wire:
            assert (await register(wire, "nas", BOB)).code == 409
            assert (await register(wire, "nas", ALICE)).code == 200

    run(main())


def test_without_a_store_tags_are_forgotten() -> None:
    async def main() -> None:
        for identity in (ALICE, BOB):
            async with Rendezvous(ANYWHERE) as server, udp(server.address) as wire:
                assert (await register(wire, "nas", identity)).code == 200

    run(main())


def test_a_disk_that_fails_stops_nothing_and_nothing_is_lost_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "SNAPSHOT_EVERY", 0.02)
    store: TagStore = Broken()
    assert isinstance(store, Broken)

    async def main() -> None:
        async with Rendezvous(ANYWHERE, store=store) as server, udp(server.address) as wire:
            store.is_broken = True
            assert (await register(wire, "nas", ALICE)).code == 200
            await until(lambda: server.stats.unwritten > 1)
            assert (await register(wire, "laptop", BOB)).code == 200
            assert store.saved == {}
            store.is_broken = False
            await until(lambda: len(store.saved) == 2)

    with caplog.at_level(logging.WARNING):
        run(main())
    assert "tags are not written: tags: broken" in caplog.text


def test_a_store_that_cannot_be_read_lets_no_server_start() -> None:
    store = Broken()
    store.is_broken = True

    async def main() -> None:
        server = Rendezvous(ANYWHERE, store=store)
        with pytest.raises(StoreError):
            await server.start()
        await server.close()

    run(main())


def test_what_the_operator_frees_is_free_for_another_key_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "SNAPSHOT_EVERY", 0.02)
    store = Broken()

    async def main() -> None:
        async with Rendezvous(ANYWHERE, store=store) as server, udp(server.address) as wire:
            assert (await register(wire, "nas", ALICE)).code == 200
            assert (await register(wire, "nas", BOB)).code == 409
            store.freed = frozenset({"nas"})
            await until(lambda: server.registered == ())
            store.freed = frozenset()
            assert (await register(wire, "nas", BOB)).code == 200

    run(main())


def test_a_disk_that_hangs_keeps_no_server_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_LAST_WRITE", 0.05)
    store = Broken()
    store.hangs = threading.Event()

    async def main() -> float:
        async with Rendezvous(ANYWHERE, store=store) as server, udp(server.address) as wire:
            assert (await register(wire, "nas", ALICE)).code == 200
            began = time.monotonic()
        return time.monotonic() - began

    try:
        assert run(main()) < 2
    finally:
        store.hangs.set()
