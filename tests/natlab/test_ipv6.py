"""IPv6 beside IPv4: real peers, real firewalls, and a server that has seen the peers over one of the two only."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Generator
from pathlib import Path

import pytest

from p2ptunnel import Peer, Profile
from p2ptunnel.errors import NoPathError
from p2ptunnel.net.interfaces import global_ipv6
from p2ptunnel.protocol import caller
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab import Host, Lab
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.traversal import port
from p2ptunnel.types import Address, format_address
from p2ptunnel.types import Path as PathTaken
from tests.helpers.meeting import HOME, LAPTOP, conversation, echo

pytestmark = pytest.mark.natlab
DELAY = 0.025  # seconds, one way, on every line
FIREWALLS = ("v6_drop", "v6_reject")


class Rendezvoused:
    """Two profiles that know each other, and a server that both use."""

    def __init__(self, directory: Path, server: Address) -> None:
        self.server = server
        self._where = format_address(server)
        self._home, self._laptop = Profile(directory / HOME), Profile(directory / LAPTOP)
        self._home.peers().add(LAPTOP, self._laptop.identity().public, ("echo",))
        self._laptop.peers().add(HOME, self._home.identity().public)

    @contextlib.contextmanager
    def serving(self, server: Host, home: Host) -> Generator[None]:
        with living(server, lambda: Rendezvous(self.server)), living(home, self._serve):
            yield

    def call(self, laptop: Host) -> tuple[float, PathTaken]:
        """Return how many seconds it took until there was a stream, and its path."""
        return laptop.thread(lambda: asyncio.run(self._call())).result(40)

    @contextlib.asynccontextmanager
    async def _serve(self) -> AsyncGenerator[None]:
        async with Peer(HOME, rendezvous=self._where, profile=self._home) as peer, peer.serve({"echo": echo}):
            yield

    async def _call(self) -> tuple[float, PathTaken]:
        async with Peer(LAPTOP, rendezvous=self._where, profile=self._laptop, relay="never") as peer:
            began = time.monotonic()
            async with await peer.connect(HOME, "echo", timeout=20) as stream:
                seconds = time.monotonic() - began
                await conversation(stream)
                return seconds, stream.path


@pytest.mark.parametrize("delay", [0.0, DELAY], ids=["0 ms", "25 ms"])
@pytest.mark.parametrize(("here", "there"), [("v6_drop", "v6_drop"), ("v6_reject", "v6_reject"), ("v6_drop", "v6_reject")])
def test_random_ports_on_both_sides_are_passed_by_over_ipv6(
    natlab: Lab, tmp_path: Path, here: str, there: str, delay: float
) -> None:
    """Nothing direct is to be had over IPv4 here; the server has seen nobody's IPv6 address."""
    home, laptop = natlab.site(there, delay=delay), natlab.site(here, delay=delay)
    peers = Rendezvoused(tmp_path, (natlab.server.ip, 7000))
    with peers.serving(natlab.server, home.host):
        _, path = peers.call(laptop.host)
    assert (path.kind, path.transport, path.remote[0]) == ("direct", "tcp", home.host.ip6)


@pytest.mark.parametrize("delay", [0.0, DELAY], ids=["0 ms", "25 ms"])
@pytest.mark.parametrize("kind", ["v6_open", *FIREWALLS])
def test_a_world_without_ipv4_is_enough(natlab: Lab, tmp_path: Path, kind: str, delay: float) -> None:
    assert natlab.server.ip6 is not None
    home, laptop = natlab.site(kind, delay=delay), natlab.site(kind, delay=delay)
    for site in (home, laptop):
        site.router.nft(only("ip6"))
    peers = Rendezvoused(tmp_path, (natlab.server.ip6, 7000))
    with peers.serving(natlab.server, home.host):
        _, path = peers.call(laptop.host)
    assert (path.kind, path.remote[0]) == ("direct", home.host.ip6)


@pytest.mark.parametrize("delay", [0.0, DELAY], ids=["0 ms", "25 ms"])
def test_ipv6_that_swallows_everything_delays_nobody(natlab: Lab, tmp_path: Path, delay: float) -> None:
    with_ipv6 = [natlab.site("pr", delay=delay, ipv6="drop") for _ in range(2)]
    without = [natlab.site("pr", delay=delay) for _ in range(2)]
    natlab.inet.nft(only("ip"))
    seconds: list[float] = []
    for number, (home, laptop) in enumerate((without, with_ipv6)):
        peers = Rendezvoused(tmp_path / str(number), (natlab.server.ip, 7000))
        with peers.serving(natlab.server, home.host):
            took, path = min(peers.call(laptop.host) for _ in range(3))
        assert path.remote[0] == home.wan_address
        seconds.append(took)
    assert seconds[1] < 1.2 * seconds[0] + 0.05


@pytest.mark.parametrize("kind", ["pr", "v6_open"])
def test_a_peer_that_has_no_ipv6_is_met_over_ipv4(natlab: Lab, tmp_path: Path, kind: str) -> None:
    """Two addresses on one side and one on the other, either way round."""
    one, two = natlab.site("pr"), natlab.site("pr", ipv6="open")
    home, laptop = (one, two) if kind == "pr" else (two, one)
    peers = Rendezvoused(tmp_path, (natlab.server.ip, 7000))
    with peers.serving(natlab.server, home.host):
        _, path = peers.call(laptop.host)
    assert path.remote[0] == home.wan_address


@pytest.mark.parametrize("is_known", [True, False], ids=["two routers to pass", "one router to pass"])
def test_two_firewalls_one_behind_the_other_are_passed(
    natlab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """Over IPv4 they are two NATs, which tells how far an opener must go; else it dies too early, and the last phase opens."""
    if not is_known:
        monkeypatch.setattr(port.PunchPort, "opener", lambda *_: port.Opener(2, 0.0))
    homes: list[Host] = []
    for _ in range(2):
        provider = natlab.site("v6_drop", hosts=0)
        home = natlab.site("v6_drop", upstream=provider).host
        assert provider.upper_end is not None
        natlab.inet.namespace.netlink.add_route(f"{prefix_of(home)}::/64", provider.upper_end[1], via="fe80::2")
        homes.append(home)
    peers = Rendezvoused(tmp_path, (natlab.server.ip, 7000))
    with peers.serving(natlab.server, homes[0]):
        seconds, path = peers.call(homes[1])
    assert path.remote[0] == homes[0].ip6
    assert (seconds < 1) is is_known


def test_the_lasting_address_is_spoken_from_though_the_system_prefers_a_temporary_one(natlab: Lab, tmp_path: Path) -> None:
    home, laptop = natlab.site("v6_drop"), natlab.site("v6_drop")
    for host in (home.host, laptop.host):
        for setting, value in (("use_tempaddr", 2), ("accept_dad", 0)):
            host.namespace.configure(f"ipv6/conf/eth0/{setting}", value)
        host.run(["ip", "-6", "address", "change", f"{host.ip6}/64", "dev", "eth0", "mngtmpaddr"])
        chosen = host.run(["ip", "-6", "route", "get", "2001:db8:ffff::1"]).stdout
        assert f"src {host.ip6} " not in chosen
    peers = Rendezvoused(tmp_path, (natlab.server.ip, 7000))
    with peers.serving(natlab.server, home.host):
        _, path = peers.call(laptop.host)
    assert (path.local[0], path.remote[0]) == (laptop.host.ip6, home.host.ip6)


def prefix_of(host: Host) -> str:
    """Return what all addresses of its site begin with."""
    return str(host.ip6).rpartition("::")[0]


# --- what a peer that lies can do with it -----------------------------------------------------------------------------


@pytest.mark.parametrize("victim", FIREWALLS)
def test_a_callee_that_names_somebody_else_has_its_caller_send_three_syns(
    natlab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """T50: whether the victim is silent or answers by RST; each is counted that comes to its router."""
    home, laptop, third = natlab.site("v6_drop"), natlab.site("v6_drop"), natlab.site(victim)
    monkeypatch.setattr(port, "global_ipv6", lying(home.host, third.host))
    monkeypatch.setattr(caller, "PUNCH_TIMEOUT", 3.0)
    peers = Rendezvoused(tmp_path, (natlab.server.ip, 7000))
    with (
        peers.serving(natlab.server, home.host),
        natlab.capture(third, f"ip6 dst {third.host.ip6}") as seen,
        pytest.raises(NoPathError),
    ):
        peers.call(laptop.host)
    syns = [line for line in seen.lines if "Flags [S]" in line and " In " in line]
    assert 1 <= len(syns) <= 3
    assert [line for line in seen.lines if " In " in line and line not in syns and "Flags" in line] == []


def test_a_caller_that_names_somebody_else_has_its_callee_send_one_syn(
    natlab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T50: and that one only because it has shown over the server that it is who it says."""
    home, laptop, third = natlab.site("v6_drop"), natlab.site("v6_drop"), natlab.site("v6_drop")
    monkeypatch.setattr(port, "global_ipv6", lying(laptop.host, third.host))
    monkeypatch.setattr(caller, "PUNCH_TIMEOUT", 3.0)
    peers = Rendezvoused(tmp_path, (natlab.server.ip, 7000))
    with (
        peers.serving(natlab.server, home.host),
        natlab.capture(third, f"ip6 dst {third.host.ip6} and tcp") as seen,
        pytest.raises(NoPathError),
    ):
        peers.call(laptop.host)
    assert len([line for line in seen.lines if " In " in line]) == 1


def lying(liar: Host, victim: Host) -> Callable[[], tuple[str, ...]]:
    """Return what tells a machine its addresses, except that one names another's."""

    def told() -> tuple[str, ...]:
        own = global_ipv6()
        return (str(victim.ip6),) if liar.ip6 in own else own

    return told


def only(family: str) -> str:
    """Return the rules of a router that forwards no other family."""
    rule = (
        f"type filter hook forward priority -200; policy accept; meta nfproto != {'ipv6' if family == 'ip6' else 'ipv4'} drop"
    )
    return f"table inet only {{ chain forward {{ {rule}; }}\n}}\n"
