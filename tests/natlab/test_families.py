"""A server on both families, and peers that have one of them or both: every ordered pair, by the server's name."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Final

import pytest

from p2ptunnel import Identity, Peer, Profile
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab import Host, Lab, Site
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.types import Path as PathTaken
from tests.helpers.meeting import HOME, LAPTOP, conversation, echo

pytestmark = pytest.mark.natlab
DELAY: Final = 0.01
SERVER: Final = Identity.from_seed(b"families".ljust(32))
RELAYED: Final = {("IPv4", "IPv6"), ("IPv6", "IPv4")}
NAME: Final = "rv.example"


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch, natlab: Lab) -> None:
    """The server's name has an address of each family."""
    here = {"AF_INET": natlab.server.ip, "AF_INET6": str(natlab.server.ip6)}

    def getaddrinfo(host: str, _: object, family: int, kind: int) -> object:
        assert host == NAME
        return [(family, kind, 17, "", (here[socket.AddressFamily(family).name], 0))]

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)


class Meeting:
    """Who serves at home, and who calls."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._lab = lab
        self._where = f"{NAME}:7000#{SERVER.public}"
        self._home, self._laptop = Profile(directory / HOME), Profile(directory / LAPTOP)
        self._home.peers().add(LAPTOP, self._laptop.identity().public, ("echo",))
        self._laptop.peers().add(HOME, self._home.identity().public)

    def site(self, kind: str) -> Site:
        """A home with an ordinary router, by what it has."""
        match kind:
            case "both":
                return self._lab.site("pr", delay=DELAY, ipv6="drop")
            case "IPv4":
                return self._lab.site("pr", delay=DELAY)
            case _:
                return self._lab.site("v6_drop", delay=DELAY, ipv4=False)

    @contextlib.contextmanager
    def serving(self, home: Host) -> Iterator[None]:
        with living(home, self._serve):
            yield

    def call(self, laptop: Host, *, relay: str = "auto") -> tuple[float, PathTaken]:
        """Call, and stay on the path that there is half a second later; return when there was a stream, and that path."""
        return laptop.thread(lambda: asyncio.run(self._call(relay))).result(40)

    @contextlib.asynccontextmanager
    async def _serve(self) -> AsyncGenerator[None]:
        async with Peer(HOME, rendezvous=self._where, profile=self._home, lan=False) as peer, peer.serve({"echo": echo}):
            yield

    async def _call(self, relay: str) -> tuple[float, PathTaken]:
        async with Peer(LAPTOP, rendezvous=self._where, profile=self._laptop, lan=False, relay=relay) as peer:
            began = time.monotonic()
            async with await peer.connect(HOME, "echo", timeout=20) as stream:
                seconds = time.monotonic() - began
                await conversation(stream)
                path = stream.path
            return seconds, path


@pytest.fixture
def meeting(natlab: Lab, tmp_path: Path) -> Iterator[Meeting]:
    assert natlab.server.ip6 is not None
    both = (natlab.server.ip, 7000), (natlab.server.ip6, 7000)
    with living(natlab.server, lambda: Rendezvous(both[0], listen_also=both[1], identity=SERVER)):
        yield Meeting(natlab, tmp_path)


@pytest.mark.parametrize(("here", "there"), list(itertools.product(["both", "IPv4", "IPv6"], repeat=2)))
def test_every_pair_meets_directly_where_it_has_a_family_in_common(meeting: Meeting, here: str, there: str) -> None:
    home, laptop = meeting.site(there), meeting.site(here)
    is_relayed = (here, there) in RELAYED
    with meeting.serving(home.host):
        _, path = meeting.call(laptop.host, relay="auto" if is_relayed else "never")
    if is_relayed:
        assert path.kind == "relay"
    else:
        assert (path.kind, path.transport) == ("direct", "tcp")
        only = {here, there} - {"both"}
        assert not only or (":" in path.remote[0]) == (only == {"IPv6"})


@pytest.mark.parametrize("dead", ["ip", "ip6"])
def test_a_family_that_leads_nowhere_delays_nobody(meeting: Meeting, natlab: Lab, dead: str) -> None:
    """Both sides have addresses of it, and routes: only packets get nowhere."""
    home, laptop = meeting.site("both"), meeting.site("both")
    natlab.inet.nft(f"table {dead} gone {{ chain f {{ type filter hook forward priority -300; policy drop; }}\n}}\n")
    with meeting.serving(home.host):
        seconds, path = meeting.call(laptop.host)
    assert (":" in path.remote[0]) == (dead == "ip")
    assert seconds < 2.5
