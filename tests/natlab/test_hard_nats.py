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
FLOWS_MOST = 256 + 512  # all that a router has to remember of a peer in a birthday
CLOSED = """
table ip closed {{
 chain in {{
  type filter hook prerouting priority -350; policy accept;
  iifname "wan" ip saddr {} ip protocol tcp drop
 }}
}}
"""


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


@pytest.mark.parametrize("pair", [("symR", "pr"), ("pr", "symR"), ("symR", "noSO"), ("symR", "noU"), ("dbl", "symR")])
def test_a_birthday_connects_and_costs_routers_what_it_may(
    natlab: Lab, tmp_path: Path, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with homes(natlab, tmp_path, pair) as (caller, callee, server):
        events: list[TraceEvent] = []
        is_connected = call(caller, tmp_path, server, events)
        assert [event.name for event in events].count("BirthdayEnded") == 1
        for site in (caller, callee):
            if isinstance(site, KernelSite):
                assert flows(site) <= FLOWS_MOST
        if not is_connected:  # one round in 75 misses
            forget(monkeypatch)
            assert call(caller, tmp_path, server, events)


@pytest.mark.parametrize("pair", [("symR", "pr"), ("pr", "symR")])
def test_a_round_in_which_every_guess_is_wrong_costs_routers_no_more_and_is_followed_by_none_at_once(
    natlab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: tuple[str, str]
) -> None:
    give_up_after(5.0, monkeypatch)
    with homes(natlab, tmp_path, pair) as (caller, callee, server):
        hard, easy = (caller, callee) if pair[0] == "symR" else (callee, caller)
        hard.router.nft(CLOSED.format(easy.wan_address))
        events: list[TraceEvent] = []
        monkeypatch.setattr(
            birthday, "BIRTHDAY_PAUSE", 3.0
        )  # so that nothing but what routers remember is in the second one's way
        assert not call(caller, tmp_path, server, events, times=2)
        assert BIRTHDAY_HOLES <= flows(hard) <= FLOWS_MOST
        assert BIRTHDAY_PROBES <= flows(easy) <= FLOWS_MOST
        assert [event.name for event in events].count("BirthdayEnded") == 1


def test_when_routers_have_forgotten_a_round_that_has_missed_the_next_one_connects(
    natlab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    sockets = [1]  # one hole: which misses nearly always
    monkeypatch.setattr(started, "spare_descriptors", lambda: sockets.pop() if sockets else 1000)
    with homes(natlab, tmp_path, ("symR", "pr")) as (caller, _, server):
        events: list[TraceEvent] = []
        assert call(caller, tmp_path, server, events, times=3)
        names = [event.name for event in events]
        assert names.count("BirthdayEnded") > 1
        assert names.count("burst_ended") == 1  # over TCP; the next one is over UDP, should the NAT refuse SYNs that cross


def test_where_both_ports_are_random_nobody_guesses(natlab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_up_after(3.0, monkeypatch)
    with homes(natlab, tmp_path, ("symR", "symR")) as (caller, callee, server):
        events: list[TraceEvent] = []
        assert not call(caller, tmp_path, server, events)
        assert not {event.name for event in events} & {"OpenHoles", "SendProbes"}
        assert max(flows(caller), flows(callee)) <= BESIDE


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a birthday begin as if routers forgot the last one by the time at which a round is over."""
    for name in ("BIRTHDAY_PAUSE", "BIRTHDAY_FLOWS_REMEMBERED"):
        monkeypatch.setattr(birthday, name, 3.0)
    monkeypatch.setattr(birthday, "BIRTHDAYS_OF_PEER_PER_HOUR", 3)


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


def call(site: Site, directory: Path, server: str, events: list[TraceEvent], *, times: int = 1) -> bool:
    """Call up to so many times, without the relay; return whether there was a way."""

    async def once(peer: Peer) -> bool:
        try:
            async with await peer.connect(HOME, "echo") as stream:
                await stream.write(b"hello")
                return await stream.readexactly(5) == b"hello"
        except NoPathError:
            return False

    async def main() -> bool:
        tracer = Tracer(events.append)
        async with Peer(LAPTOP, rendezvous=server, profile=directory / LAPTOP, relay="never", tracer=tracer) as peer:
            for _ in range(times):
                if await once(peer):
                    return True
        return False

    return site.host.thread(lambda: asyncio.run(main())).result(30)


def flows(site: Site) -> int:
    """Count what the site's router remembers."""
    with site.router.inside():
        return count_connections()
