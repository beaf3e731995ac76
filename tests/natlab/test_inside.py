"""Two homes behind one carrier's NAT that sends nothing back inside: the way in that the callee's own router keeps."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncGenerator, Generator, Iterator
from pathlib import Path

import pytest

from p2ptunnel import Peer, Profile
from p2ptunnel.errors import NoPathError
from p2ptunnel.protocol import caller
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab import Lab, Site
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.traversal import port
from p2ptunnel.types import Candidate
from p2ptunnel.types import Path as PathTaken
from tests.helpers.meeting import HOME, LAPTOP, conversation, echo
from tests.natlab.natpmp_router import mapping_router

pytestmark = pytest.mark.natlab
PATIENCE = 20.0


class Homes:
    """A home that serves, and who calls it.

    Attributes:
        told: What the home's router has said.
    """

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.told: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._where = f"{lab.server.ip}:7000"
        self._home, self._laptop = Profile(directory / HOME), Profile(directory / LAPTOP)
        self._home.peers().add(LAPTOP, self._laptop.identity().public, ("echo",))
        self._laptop.peers().add(HOME, self._home.identity().public)

    @contextlib.contextmanager
    def serving(self, home: Site) -> Generator[None]:
        """Serve there, once the router has said what it does about the port."""
        with living(home.host, self._serve):
            while not self.told.get(timeout=PATIENCE).startswith("tcp "):
                pass
            yield

    def call(self, laptop: Site) -> PathTaken:
        return laptop.host.thread(lambda: asyncio.run(self._call())).result(40)

    @contextlib.asynccontextmanager
    async def _serve(self) -> AsyncGenerator[None]:
        tracer = Tracer(self._note)
        peer = Peer(HOME, rendezvous=self._where, profile=self._home, relay="never", lan=False, tracer=tracer)
        async with peer, peer.serve({"echo": echo}):
            yield

    async def _call(self) -> PathTaken:
        async with (
            Peer(LAPTOP, rendezvous=self._where, profile=self._laptop, relay="never", lan=False) as peer,
            await peer.connect(HOME, "echo", timeout=PATIENCE) as stream,
        ):
            await conversation(stream)
            return stream.path

    def _note(self, event: TraceEvent) -> None:
        if event.name == "port_mapping":
            self.told.put(str(event.facts["outcome"]))


@pytest.fixture
def homes(natlab: Lab, tmp_path: Path) -> Iterator[Homes]:
    with living(natlab.server, lambda: Rendezvous((natlab.server.ip, 7000))):
        yield Homes(natlab, tmp_path)


@pytest.mark.parametrize("kind", ["pr", "symR"])
@pytest.mark.parametrize("carrier", ["cgn", "symR"])
def test_the_callees_router_is_the_way_between_two_homes_behind_one_carrier(
    natlab: Lab, homes: Homes, carrier: str, kind: str
) -> None:
    above = natlab.site(carrier, hosts=0, delay=0.01)
    home, laptop = natlab.site(kind, upstream=above), natlab.site(kind, upstream=above)
    with mapping_router(home), homes.serving(home):
        path = homes.call(laptop)
    assert (path.kind, path.transport, path.remote[0]) == ("direct", "tcp", home.wan_address)


@pytest.mark.parametrize("delay", [0.0, 0.01], ids=["0 ms", "10 ms"])
def test_without_a_mapping_they_do_not_meet(natlab: Lab, homes: Homes, monkeypatch: pytest.MonkeyPatch, delay: float) -> None:
    monkeypatch.setattr(caller, "PUNCH_TIMEOUT", 2.0)
    above = natlab.site("cgn", hosts=0, delay=delay)
    home, laptop = natlab.site("pr", upstream=above), natlab.site("pr", upstream=above)
    with homes.serving(home), pytest.raises(NoPathError):
        homes.call(laptop)


def test_who_is_seen_at_another_address_is_told_of_no_way_in_there(
    natlab: Lab, homes: Homes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor would it be used: to whoever is elsewhere such an address is somebody else's."""
    monkeypatch.setattr(caller, "PUNCH_TIMEOUT", 2.0)
    above, elsewhere = natlab.site("cgn", hosts=0), natlab.site("symR", hosts=0)
    home, laptop = natlab.site("symR", upstream=above), natlab.site("symR", upstream=elsewhere)
    with (
        mapping_router(home) as mapped,
        homes.serving(home),
        natlab.capture(laptop, f"dst {home.wan_address}") as seen,
        pytest.raises(NoPathError),
    ):
        homes.call(laptop)
    assert mapped
    assert seen.lines == []


def test_a_callee_that_lies_has_its_caller_send_three_syns(natlab: Lab, homes: Homes, monkeypatch: pytest.MonkeyPatch) -> None:
    """T53: to each of two, if these say nothing; counted at their router, which is a neighbour of both."""
    monkeypatch.setattr(caller, "PUNCH_TIMEOUT", 5.0)
    above = natlab.site("cgn", hosts=0)
    home, laptop, third = (natlab.site("pr", upstream=above) for _ in range(3))
    lies = tuple(Candidate("mapped", "tcp", third.wan_address, number) for number in (40_001, 40_002, 40_003))
    monkeypatch.setattr(port.PunchPort, "_mapped", lambda _: iter(lies))
    with (
        mapping_router(home),
        homes.serving(home),
        natlab.capture(third, f"src {laptop.wan_address}") as seen,
        pytest.raises(NoPathError),
    ):
        homes.call(laptop)
    syns = [line for line in seen.lines if "Flags [S]" in line and " In " in line]
    assert 2 <= len(syns) <= 6
    assert not [line for line in seen.lines if ".40003" in line]
