"""What peers find out about their NATs' dealings with SYNs, what that costs the server, and what calls make of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Final

import pytest

from p2ptunnel.defaults import RENDEZVOUS_PORT
from p2ptunnel.peer import Peer
from p2ptunnel.protocol.nat import Habits
from p2ptunnel.protocol.probing import ProbesBack
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.kinds import KINDS, Kind
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.testing.natlab.matrix import run_matrix
from p2ptunnel.testing.natlab.peers import SERVICE, Acquaintances, echo, rendezvous
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.traversal import habits as module
from p2ptunnel.traversal.explain import Explanation
from p2ptunnel.traversal.habits import NatHabits
from p2ptunnel.traversal.port import OpenerTtl, PunchPort
from p2ptunnel.traversal.probing import ask_habits
from p2ptunnel.traversal.tries import Try
from p2ptunnel.types import Address, parse_server
from tests.helpers.meeting import HOME, LAPTOP

pytestmark = pytest.mark.natlab
DELAY: Final = 0.025
ASKED: Final = ("pub", "pubfw", "fc", "ar", "pr", "prR", "prO", "shift", "symR", "noU", "noSO", "no_simopen_rst", "dbl")
PATIENCE: Final = 20.0


# --- what is found out ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found() -> dict[str, tuple[Habits, tuple[bool, bool | None, bool | None]]]:
    """What a port of each kind learns, and its hints: low, simultaneous open, open; all sites ask at one time."""
    with Lab(server_delay=0.01) as lab, rendezvous(lab) as server:
        spec = parse_server(server, default_port=RENDEZVOUS_PORT)

        async def look() -> tuple[Habits, tuple[bool, bool | None, bool | None]]:
            learned = asyncio.Event()
            nat = NatHabits(learned.set)
            port = await PunchPort.open(spec, OpenerTtl(), habits=nat.known)
            assert port.view.hints.crosses is None
            assert port.control is not None
            try:
                nat.learn(port)
                await learned.wait()
                told = port.view.hints
                return nat.known(port.server, port.control.observed[0]), (told.low, told.crosses, told.is_open)
            finally:
                await nat.close()
                port.close()

        sites = {kind: lab.site(kind, delay=0.01) for kind in ASKED}
        asking = {kind: site.host.thread(asyncio.run, look()) for kind, site in sites.items()}
        return {kind: asked.result(PATIENCE) for kind, asked in asking.items()}


def crosses(kind: Kind, name: str) -> bool | None:
    """What is to be found out: of a NAT with other ports for others, or with an unknown number of hops, nothing."""
    if kind.filtering == "endpoint-independent":
        return True
    return kind.simultaneous_open if kind.mapping == "endpoint-independent" and name != "noU" else None


@pytest.mark.parametrize("name", ASKED)
def test_what_a_nat_does_with_syns_is_found_out_and_told_in_the_hints(
    found: dict[str, tuple[Habits, tuple[bool, bool | None, bool | None]]], name: str
) -> None:
    kind, (habits, hints) = KINDS[name], found[name]
    is_open = kind.filtering == "endpoint-independent"
    assert (habits.crosses, habits.is_open) == (crosses(kind, name), is_open)
    assert habits.opens_low is (None if is_open or name in {"symR", "noU"} else True)
    assert hints == (True, habits.crosses, habits.is_open)


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_an_idle_peer_asks_once_in_a_network_whatever_becomes_of_its_ports(
    natlab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two probes, however many ports come after each other, and two more in another network: of the 360 of an hour."""
    monkeypatch.setattr(module, "HABITS_DELAY", 0.0)
    asked: list[str] = []
    on_probe = ProbesBack.on_probe

    def counted(probes: ProbesBack, probe: object, extra: object, *rest: object) -> None:
        asked.append(extra.op)  # type: ignore[attr-defined]
        on_probe(probes, probe, extra, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ProbesBack, "on_probe", counted)
    site = natlab.site("pr", delay=0.005)
    events: asyncio.Queue[TraceEvent] = asyncio.Queue()

    async def until(name: str) -> None:
        while (await events.get()).name != name:
            pass

    async def idle(server: str) -> None:
        async with Peer(LAPTOP, rendezvous=server, profile=tmp_path, lan=False, tracer=Tracer(events.put_nowait)) as peer:
            await until("habits_seen")
            assert peer._up.spare is not None
            for _ in range(5):
                peer._up.spare.renew()
                await until("nat_seen")
            assert len(asked) == 2
            peer._up.network_changed()
            await until("habits_seen")

    with rendezvous(natlab) as server:
        site.host.thread(asyncio.run, idle(server)).result(PATIENCE)
    assert len(asked) == 4


@pytest.mark.parametrize(("kind", "most"), [("pr", 16), ("noSO", 24), ("pub", 10)])
def test_asking_costs_the_server_so_many_packets(natlab: Lab, kind: str, most: int) -> None:
    """Two short connections, one where strangers get in, three to be sure that SYNs do not cross; here as packets."""
    site = natlab.site(kind, delay=0.005)

    async def ask(server: Address) -> Habits:
        return await ask_habits(server, "eim", await OpenerTtl().towards(server))

    with rendezvous(natlab) as text:
        server = parse_server(text, default_port=RENDEZVOUS_PORT).address
        to_server = " or ".join(f"dst host {host}" for host in natlab.server.ips)
        with natlab.capture(filter=f"tcp and ({to_server})") as seen:
            assert site.host.thread(asyncio.run, ask(server)).result(PATIENCE).is_known
    came = [line for line in seen.lines if " In " in line]
    assert 5 <= len(came) <= most, came


# --- what calls make of it --------------------------------------------------------------------------------------------


class Homes:
    """A caller's site and a callee's, where echo is served; both have found out what there is before anybody calls."""

    def __init__(self, lab: Lab, directory: Path, kinds: tuple[str, str]) -> None:
        self.cafe, self.home = (
            lab.site(kind, delay=DELAY, name=name) for kind, name in zip(kinds, ("cafe", "home"), strict=True)
        )
        self._known = Acquaintances(directory, [LAPTOP], [HOME])
        self._learned = threading.Event()
        self.server = ""

    @contextlib.contextmanager
    def serving(self, server: str) -> Generator[None]:
        self.server = server

        @contextlib.asynccontextmanager
        async def registered() -> AsyncGenerator[None]:
            tracer = Tracer(lambda event: self._learned.set() if event.name == "habits_seen" else None)
            profile = self._known.profile(HOME)
            async with (
                Peer(HOME, rendezvous=server, profile=profile, lan=False, tracer=tracer) as peer,
                peer.serve({SERVICE: echo}),
            ):
                yield

        with living(self.home.host, registered):
            yield

    def explained(self, *, is_learning: bool) -> Explanation:
        """Call once, with a port that was ready, and return what was tried; there is no relay."""

        async def main() -> Explanation:
            learned = asyncio.Event()
            tracer = Tracer(lambda event: learned.set() if event.name == "habits_seen" else None)
            profile = self._known.profile(LAPTOP)
            async with Peer(LAPTOP, rendezvous=self.server, profile=profile, lan=False, relay="never", tracer=tracer) as peer:
                if is_learning:
                    await learned.wait()
                    assert await asyncio.to_thread(self._learned.wait, PATIENCE)
                async with await peer.connect(HOME, SERVICE) as stream:
                    await stream.write(b"hello")
                    assert await stream.readexactly(5) == b"hello"
                return await peer.explain(HOME)

        return self.cafe.host.thread(asyncio.run, main()).result(2 * PATIENCE)


def call(lab: Lab, directory: Path, kinds: tuple[str, str]) -> Explanation:
    homes = Homes(lab, directory, kinds)
    with rendezvous(lab) as server, homes.serving(server):
        return homes.explained(is_learning=True)


def tried(found: Explanation, way: str) -> list[Try]:
    return [each for each in found.tries if each.way == way]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HABITS_DELAY", 0.0)


@pytest.mark.usefixtures("soon")
def test_where_both_refuse_crossing_syns_quic_begins_with_the_hole(natlab: Lab, tmp_path: Path) -> None:
    found = call(natlab, tmp_path, ("noSO", "noSO"))
    assert found.path is not None
    assert (found.path.kind, found.path.transport) == ("direct", "quic")
    [hole], [quic], dials = tried(found, "udp"), tried(found, "quic"), tried(found, "tcp")
    assert hole.outcome == "answered"
    assert hole.end_ms is not None
    assert quic.start_ms - hole.end_ms < 1000 * DELAY
    assert [dial.sent for dial in dials] == ["SYN"]  # once all the same, since hints may be wrong


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("pair", "sent"),
    [
        (("pr", "noSO"), "SYN with TTL 2"),
        (("prR", "noSO"), "SYN with TTL 2"),
        (("dbl", "noSO"), "SYN with TTL 3"),
        (("noU", "noSO"), "SYN with TTL 3"),  # no hop tells how far it should go
        (("noSO", "pr"), "SYN"),
        (("noSO", "noU"), "SYN"),
    ],
)
def test_where_one_refuses_them_the_other_opens_at_once(natlab: Lab, tmp_path: Path, pair: tuple[str, str], sent: str) -> None:
    found = call(natlab, tmp_path, pair)
    assert found.path is not None
    assert (found.path.kind, found.path.transport) == ("direct", "tcp")
    assert tried(found, "tcp")[0].sent == sent


@pytest.mark.parametrize(
    ("kinds", "cafe", "home"),
    [
        (("pr", "pr"), Habits(crosses=False), Habits(crosses=False)),
        (("prR", "prO"), Habits(crosses=False), Habits(crosses=False)),
        (("noU", "prR"), Habits(crosses=False), Habits(crosses=False)),
        (("noSO", "noSO"), Habits(crosses=True), Habits(crosses=True)),
        (("noSO", "pr"), Habits(crosses=True), Habits(crosses=False)),
        (("pr", "noSO"), Habits(crosses=False), Habits(crosses=True)),
        (("pr", "pr"), Habits(is_open=True), Habits(is_open=True)),
        (("pr", "pr"), Habits(is_open=True), Habits()),
        (("pr", "pr"), Habits(), Habits(is_open=True)),
        (("pub", "symR"), Habits(is_open=False, crosses=False), Habits(crosses=False)),
        (("pr", "pr"), Habits(opens_low=False), Habits(opens_low=False)),
    ],
)
def test_wrong_facts_cost_time_only(
    natlab: Lab,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kinds: tuple[str, str],
    cafe: Habits,
    home: Habits,
) -> None:
    homes = Homes(natlab, tmp_path, kinds)
    forced = {homes.cafe.wan_address: cafe, homes.home.wan_address: home}
    monkeypatch.setattr(NatHabits, "known", lambda _, __, host: forced[host])
    with rendezvous(natlab) as server, homes.serving(server):
        found = homes.explained(is_learning=False)
    assert found.path is not None
    assert found.path.kind == "direct"


def test_a_router_without_udp_and_one_that_refuses_crossing_syns_meet_over_tcp_though_neither_is_known() -> None:
    for cell in run_matrix(("noU", "noSO"), attempts=1, delay=DELAY):
        [attempt] = cell.attempts
        assert attempt.is_direct, (cell.caller, cell.callee, attempt.error)
        assert (attempt.path == "direct quic") is (cell.caller == cell.callee == "noSO")
