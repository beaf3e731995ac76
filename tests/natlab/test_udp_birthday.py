"""Where TCP leads to no peer and one side's ports have to be guessed: a birthday over UDP, and QUIC through what it finds."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from p2ptunnel.errors import NoPathError
from p2ptunnel.events import PathChanged
from p2ptunnel.peer import Peer
from p2ptunnel.protocol import birthday
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab import Lab, Site
from p2ptunnel.testing.natlab.kinds import Kind, find_kind
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.types import RelayUse
from tests.helpers.meeting import HOME, LAPTOP, echo

PORT = 7000
DELAY = 0.025
TRIES = 3
"""Rounds miss once in sixty times, and a call has one."""


@pytest.fixture(autouse=True)
def birthdays_without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that has missed may be followed by another one at once."""
    for limit in ("BIRTHDAY_PAUSE", "BIRTHDAY_FLOWS_REMEMBERED"):
        monkeypatch.setattr(birthday, limit, 0.1)
    for limit in ("BIRTHDAYS_OF_PEER_PER_HOUR", "BIRTHDAYS_PER_HOUR"):
        monkeypatch.setattr(birthday, limit, 1000)


def blocked(lab: Lab) -> Kind:
    """Random ports, and TCP that reaches nobody but the server."""
    return find_kind("symR").but(only_host=lab.server.ip)


@contextlib.contextmanager
def homes(
    lab: Lab,
    directory: Path,
    hard: Kind,
    easy: str,
    *,
    is_hard_calling: bool,
) -> Generator[tuple[Site, Site, str]]:
    """A caller's site, a callee's where echo is served, and their server."""
    one, other = lab.server.ips
    kinds = (hard, find_kind(easy)) if is_hard_calling else (find_kind(easy), hard)
    caller, callee = (lab.site(kind, delay=DELAY, name=name) for kind, name in zip(kinds, ("cafe", "home"), strict=True))
    server = f"{one}:{PORT}"

    async def introduce() -> None:
        async with Peer(HOME, profile=directory / HOME) as home, Peer(LAPTOP, profile=directory / LAPTOP) as laptop:
            home.peers.add(LAPTOP, laptop.key)
            laptop.peers.add(HOME, home.key)

    @contextlib.asynccontextmanager
    async def serving() -> AsyncGenerator[None]:
        async with Peer(HOME, rendezvous=server, profile=directory / HOME) as peer, peer.serve({"echo": echo}, allow=LAPTOP):
            yield

    asyncio.run(introduce())
    observers = [(one, PORT + 1), (other, PORT)]
    with living(lab.server, lambda: Rendezvous((one, PORT), alt_listen=observers)), living(callee.host, serving):
        yield caller, callee, server


async def reached(directory: Path, server: str, relay: RelayUse, events: list[TraceEvent]) -> tuple[str, float]:
    """Call once; return over what a stream went, and after how many seconds."""
    tracer = Tracer(events.append)
    async with Peer(LAPTOP, rendezvous=server, profile=directory / LAPTOP, relay=relay, tracer=tracer) as peer:
        began = time.monotonic()
        async with await peer.connect(HOME, "echo", timeout=15) as stream:
            await stream.write(b"hello")
            assert await stream.readexactly(5) == b"hello"
            return stream.path.transport, time.monotonic() - began


def call(site: Site, directory: Path, server: str, events: list[TraceEvent]) -> tuple[str, float]:
    """Call without the relay, from the caller's machine; again where a round has missed."""
    for _ in range(TRIES):
        with contextlib.suppress(NoPathError):
            return site.host.thread(lambda: asyncio.run(reached(directory, server, "never", events))).result(30)
    raise AssertionError(f"{TRIES} calls have found no way")


@pytest.mark.parametrize("is_hard_calling", [True, False])
@pytest.mark.parametrize("easy", ["pr", "prR"])
def test_a_birthday_over_udp_ends_in_quic(natlab: Lab, tmp_path: Path, easy: str, is_hard_calling: bool) -> None:
    with homes(natlab, tmp_path, blocked(natlab), easy, is_hard_calling=is_hard_calling) as (caller, _, server):
        events: list[TraceEvent] = []
        over, seconds = call(caller, tmp_path, server, events)
        print(f"symR x {easy}, hard side {'calls' if is_hard_calling else 'is called'}: {seconds:.2f} s")
        assert over == "quic"
        assert {event.facts["transport"] for event in events if event.name in {"OpenHoles", "SendProbes"}} == {"udp"}
        assert udp_sockets(caller) == 0  # the caller has gone


def udp_sockets(site: Site) -> int:
    """Count the UDP sockets of a site's machine."""
    return site.host.thread(count_udp).result(5)


def count_udp() -> int:
    """Count those of the machine that this thread is on."""
    tables = (Path(f"/proc/thread-self/net/{name}").read_text() for name in ("udp", "udp6"))
    return sum(len(table.splitlines()) - 1 for table in tables)


@pytest.mark.parametrize("is_hard_calling", [True, False])
def test_given_up_in_the_middle_it_leaves_no_socket(natlab: Lab, tmp_path: Path, is_hard_calling: bool) -> None:
    async def main(server: str) -> int:
        begun, most = asyncio.Event(), 0

        def watch(event: TraceEvent) -> None:
            if event.name in {"OpenHoles", "SendProbes"}:
                begun.set()

        async with Peer(LAPTOP, rendezvous=server, profile=tmp_path / LAPTOP, relay="never", tracer=Tracer(watch)) as peer:
            connecting = asyncio.create_task(peer.connect(HOME, "echo", timeout=15))
            await begun.wait()
            most = count_udp()
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
        return most

    with homes(natlab, tmp_path, blocked(natlab), "pr", is_hard_calling=is_hard_calling) as (caller, _, server):
        assert caller.host.thread(lambda: asyncio.run(main(server))).result(30) > 0
        assert udp_sockets(caller) == 0


def test_the_relay_carries_until_a_way_is_found(natlab: Lab, tmp_path: Path) -> None:
    async def main(server: str) -> tuple[str, str]:
        async with Peer(LAPTOP, rendezvous=server, profile=tmp_path / LAPTOP) as peer:
            events = peer.events(PathChanged)
            stream = await peer.connect(HOME, "echo", timeout=15)
            before = stream.path.kind
            await stream.write(b"hello")
            async with asyncio.timeout(20):  # two rounds, if the first one misses
                await anext(event async for event in events if event.new.kind == "direct")
            assert await stream.readexactly(5) == b"hello"
            return before, stream.path.transport

    with homes(natlab, tmp_path, blocked(natlab), "pr", is_hard_calling=True) as (caller, _, server):
        assert caller.host.thread(lambda: asyncio.run(main(server))).result(40) == ("relay", "quic")


@pytest.mark.parametrize("is_hard_calling", [True, False])
def test_a_side_that_has_no_tcp_at_all_is_reached_as_well(natlab: Lab, tmp_path: Path, is_hard_calling: bool) -> None:
    kind = find_kind("symR").but(only_host="203.0.113.99")  # which is nobody
    with homes(natlab, tmp_path, kind, "pr", is_hard_calling=is_hard_calling) as (caller, _, server):
        over, _ = call(caller, tmp_path, server, [])
        assert over == "quic"


def test_a_nat_that_refuses_syns_that_cross_is_reached_by_the_second_birthday(natlab: Lab, tmp_path: Path) -> None:
    kind = find_kind("user_sym_random").but(simultaneous_open=False)

    async def main(server: str) -> str:
        async with Peer(LAPTOP, rendezvous=server, profile=tmp_path / LAPTOP, relay="never") as peer:
            with pytest.raises(NoPathError):
                await peer.connect(HOME, "echo", timeout=15)
            for _ in range(TRIES):
                with contextlib.suppress(NoPathError):
                    async with await peer.connect(HOME, "echo", timeout=15) as stream:
                        return stream.path.transport
        raise AssertionError(f"{TRIES} calls have found no way")

    with homes(natlab, tmp_path, kind, "pr", is_hard_calling=False) as (caller, _, server):
        assert caller.host.thread(lambda: asyncio.run(main(server))).result(60) == "quic"
