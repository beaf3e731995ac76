"""A router that lets others in when it is asked: the way in is made, kept, used by who could not punch, and taken back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest

from p2ptunnel.errors import NoPathError
from p2ptunnel.identity.store import Profile
from p2ptunnel.peer import Peer
from p2ptunnel.protocol import caller, portmap
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab import Lab, Site
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.types import Path as NetworkPath
from tests.helpers.meeting import HOME, LAPTOP, echo
from tests.natlab.miniupnpd import WAN, Miniupnpd, home, require
from tests.natlab.test_portmap import forwards, serving

pytestmark = pytest.mark.daemons

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def daemons() -> None:
    require()


class Homes:
    """A home whose router gives each destination a random port, and the server that its peer registers at.

    Attributes:
        site: The home.
        told: What the router has said, each time that it was asked.
    """

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.site = home(lab, "symR")
        self.server = f"{lab.server.ip}:7000"
        self.told: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._directory = directory
        known = {tag: Profile(directory / tag).identity().public for tag in (HOME, LAPTOP)}
        Profile(directory / HOME).peers().add(LAPTOP, known[LAPTOP], ("echo",))
        Profile(directory / LAPTOP).peers().add(HOME, known[HOME])

    def until_told(self, *words: str, times: int = 2) -> None:
        """Wait until the router has said something of a kind, by default for both transports."""
        while times:
            times -= all(word in self.told.get(timeout=PATIENCE) for word in words)

    @contextlib.contextmanager
    def serving(self, **options: Any) -> Generator[None]:
        """Serve at home."""
        tracer = Tracer(self._note)

        @contextlib.asynccontextmanager
        async def alive() -> AsyncGenerator[None]:
            async with self._peer(HOME, tracer=tracer, **options) as peer, peer.serve({"echo": echo}):
                yield

        with living(self.site.host, alive):
            yield

    def call(self, cafe: Site) -> NetworkPath:
        """Call from somewhere else, and talk; return the path."""

        async def main() -> NetworkPath:
            async with self._peer(LAPTOP) as peer, await peer.connect(HOME, "echo") as stream:
                await stream.write(b"hello")
                await stream.write_eof()
                assert b"".join([part async for part in stream]) == b"hello"
                return stream.path

        return cafe.host.thread(lambda: asyncio.run(main())).result(PATIENCE)

    def _peer(self, tag: str, **options: Any) -> Peer:
        return Peer(tag, rendezvous=self.server, profile=self._directory / tag, relay="never", lan=False, **options)

    def _note(self, event: TraceEvent) -> None:
        if event.name == "port_mapping":
            self.told.put(str(event.facts["outcome"]))


@pytest.fixture
def homes(natlab: Lab, tmp_path: Path) -> Generator[Homes]:
    with living(natlab.server, lambda: Rendezvous((natlab.server.ip, 7000))):
        yield Homes(natlab, tmp_path)


@pytest.mark.parametrize("protocol", ["PCP", "UPnP"])
def test_who_cannot_punch_comes_in_by_the_router_and_the_way_in_goes_with_the_peer(
    protocol: str, natlab: Lab, homes: Homes, tmp_path: Path
) -> None:
    cafe = natlab.site("symR", name="cafe")
    with serving(homes.site, protocol, tmp_path) as daemon:
        with homes.serving():
            homes.until_told(f"by {protocol}")
            path = homes.call(cafe)
            assert len(forwards(daemon)) == 2
        assert forwards(daemon) == []
    assert (path.kind, path.transport, path.remote[0]) == ("direct", "tcp", WAN)


def test_without_a_way_in_two_such_homes_do_not_meet(
    natlab: Lab, homes: Homes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "PUNCH_TIMEOUT", 2.0)
    cafe = natlab.site("symR", name="cafe")
    with serving(homes.site, "PCP", tmp_path) as daemon, homes.serving(port_mapping=False):
        with pytest.raises(NoPathError):
            homes.call(cafe)
        assert forwards(daemon) == []
        assert homes.told.empty()


def test_a_way_in_is_renewed_while_the_peer_serves(homes: Homes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portmap, "PORTMAP_PAUSE", 0.5)
    with serving(homes.site, "PCP", tmp_path, min_lifetime="3", max_lifetime="4") as daemon, homes.serving():
        homes.until_told("by PCP", times=6)  # three times each: longer than it was granted for
        assert len(forwards(daemon)) == 2


def test_in_another_network_the_router_is_asked_anew(homes: Homes, tmp_path: Path) -> None:
    with serving(homes.site, "PCP", tmp_path) as daemon, homes.serving():
        homes.until_told("by PCP")
        homes.site.host.run(["ip", "address", "add", "10.99.0.1/24", "dev", "eth0"])
        homes.until_told("by PCP")
        assert len(forwards(daemon)) == 2


def test_netcheck_shows_what_the_router_says_and_leaves_nothing_there(homes: Homes, tmp_path: Path) -> None:
    words = ["--profile", str(tmp_path / HOME), "--rendezvous", homes.server, "netcheck"]
    with Miniupnpd(homes.site, tmp_path).running() as daemon:
        said = homes.site.host.run([sys.executable, "-m", "p2ptunnel", *words]).stdout
        assert forwards(daemon) == []
    assert re.search("^router: +tcp .* by PCP", said, re.MULTILINE)
    assert "Behind a NAT that lets others in when it is asked by PCP: expect direct TCP with every kind of NAT" in said


def test_a_program_that_is_told_to_end_takes_its_way_in_back(homes: Homes, tmp_path: Path) -> None:
    words = ["--profile", str(tmp_path / HOME), "--tag", HOME, "--rendezvous", homes.server, "-vv", "serve", "echo=8080"]
    with Miniupnpd(homes.site, tmp_path).running() as daemon:
        program = homes.site.host.popen([sys.executable, "-m", "p2ptunnel", *words], stderr=subprocess.PIPE)
        with contextlib.closing(program.stderr or open(os.devnull)) as said:
            for _ in range(2):
                assert any("port_mapping" in line and "by PCP" in line for line in said)
            assert len(forwards(daemon)) == 2
            program.send_signal(signal.SIGTERM)
            program.wait(PATIENCE)
        assert forwards(daemon) == []
