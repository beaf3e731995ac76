"""Real peers behind NATs whose ports have to be guessed: predicted ones, birthdays, and what these cost the routers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from p2ptunnel import started
from p2ptunnel.defaults import BIRTHDAY_HOLES, BIRTHDAY_PROBES
from p2ptunnel.errors import NoPathError
from p2ptunnel.peer import Peer
from p2ptunnel.protocol import birthday
from p2ptunnel.protocol import callee as protocol_callee
from p2ptunnel.protocol import caller as protocol_caller
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab import Lab, Site
from p2ptunnel.testing.natlab.conntrack import count_connections
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.testing.natlab.matrix import Cell, run_matrix
from p2ptunnel.testing.natlab.sites import KernelSite
from p2ptunnel.trace import TraceEvent, Tracer
from tests.helpers.meeting import HOME, LAPTOP, echo

PORT = 7000
DELAY = 0.025
BESIDE = 40  # flows that a call has anyway, with its registration, and those of its observers


def cells(*kinds: str, attempts: int, delay: float = DELAY) -> dict[tuple[str, str], Cell]:
    found = run_matrix(kinds, attempts=attempts, delay=delay, at_once=1)  # two calls at a time would take each other's ports
    return {(cell.caller, cell.callee): cell for cell in found}


@pytest.mark.parametrize("delay", [0.0, DELAY])
def test_ports_that_come_next_are_met(delay: float) -> None:
    for pair, cell in cells("symS", "prR", attempts=1, delay=delay).items():
        assert cell.direct == 1, (pair, cell)
        assert cell.median < 20 * delay + 1.5, (pair, cell)


def test_of_two_nats_one_may_refuse_syns_that_cross(monkeypatch: pytest.MonkeyPatch) -> None:
    give_up_after(4.0, monkeypatch)
    found = cells("noSO", "pr", attempts=1)
    del found["noSO", "noSO"]  # there TCP has no way at all
    assert [pair for pair, cell in found.items() if cell.direct == 0] == []


@pytest.mark.parametrize("pair", [("symR", "pr"), ("pr", "symR"), ("symR", "noSO")])
def test_a_birthday_connects_and_costs_routers_what_it_may(natlab: Lab, tmp_path: Path, pair: tuple[str, str]) -> None:
    with homes(natlab, tmp_path, pair) as (caller, callee, server):
        events: list[TraceEvent] = []
        assert call(caller, tmp_path, server, events)
        rounds = [event.name for event in events].count("BirthdayEnded")  # one misses once in sixty times
        hard, easy = (caller, callee) if pair[0] == "symR" else (callee, caller)
        assert 1 <= rounds <= 2
        assert flows(hard) <= rounds * BIRTHDAY_HOLES + BESIDE
        if isinstance(easy, KernelSite):
            assert flows(easy) <= rounds * BIRTHDAY_PROBES + BESIDE


def test_a_birthday_that_missed_has_another_one_from_a_fresh_port(
    natlab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(birthday, "BIRTHDAY_PAUSE", 0.5)
    for limit in ("BIRTHDAYS_OF_PEER_PER_HOUR", "BIRTHDAYS_PER_HOUR"):  # after so short a pause one call begins several
        monkeypatch.setattr(birthday, limit, 1000)
    first = [1]  # hole: which misses nearly always; the next round does never
    monkeypatch.setattr(started, "hole_count", lambda _: first.pop() if first else 600)
    with homes(natlab, tmp_path, ("symR", "pr")) as (caller, _, server):
        events: list[TraceEvent] = []
        assert call(caller, tmp_path, server, events)
        sources = {event.facts["local"] for event in events if event.name == "burst_ended"}
        assert len(sources) == [event.name for event in events].count("BirthdayEnded")


def test_where_both_ports_are_random_nobody_guesses(natlab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_up_after(3.0, monkeypatch)
    with homes(natlab, tmp_path, ("symR", "symR")) as (caller, callee, server):
        events: list[TraceEvent] = []
        assert not call(caller, tmp_path, server, events)
        assert not {event.name for event in events} & {"OpenHoles", "SendProbes"}
        assert max(flows(caller), flows(callee)) <= BESIDE


def give_up_after(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for agents in (protocol_caller, protocol_callee):
        monkeypatch.setattr(agents, "PUNCH_TIMEOUT", seconds)


@contextlib.contextmanager
def homes(lab: Lab, directory: Path, kinds: tuple[str, str]) -> Generator[tuple[Site, Site, str]]:
    """A caller's site, a callee's where echo is served, and their server, which observes from three places."""
    caller, callee = (lab.site(kind, delay=DELAY, name=name) for kind, name in zip(kinds, ("cafe", "home"), strict=True))
    one, other = lab.server.ips
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


def call(site: Site, directory: Path, server: str, events: list[TraceEvent]) -> bool:
    """Call once, without the relay; return whether there was a way."""

    async def main() -> bool:
        tracer = Tracer(events.append)
        async with Peer(LAPTOP, rendezvous=server, profile=directory / LAPTOP, relay="never", tracer=tracer) as peer:
            try:
                async with await peer.connect(HOME, "echo") as stream:
                    await stream.write(b"hello")
                    assert await stream.readexactly(5) == b"hello"
            except NoPathError:
                return False
        return True

    return site.host.thread(lambda: asyncio.run(main())).result(30)


def flows(site: Site) -> int:
    """Count what the site's router remembers."""
    with site.router.inside():
        return count_connections()
