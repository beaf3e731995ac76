"""T11, T34: nothing of ours is ever fragmented, whatever a forged ICMP message says of the path."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from p2ptunnel import Peer, Profile, Rendezvous
from p2ptunnel.defaults import DATAGRAM_MAX_BYTES
from p2ptunnel.net.udp import UdpSocket
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.living import living
from tests.helpers.meeting import HELLO, conversation, echo

pytestmark = pytest.mark.natlab
FRAGMENTED = "ip[6:2] & 0x3fff != 0"
MAY_BE_FRAGMENTED = "udp and ip[6:2] & 0x4000 = 0 and not dst net 224.0.0.0/4"
FORGED_MTU = 576


@contextlib.asynccontextmanager
async def serving(server: str, profile: Profile) -> AsyncGenerator[None]:
    async with Peer("home-nas", rendezvous=server, profile=profile) as peer, peer.serve({"web": echo}):
        yield


def test_a_connection_is_made_without_a_fragment_or_a_datagram_that_could_become_some(natlab: Lab, tmp_path: Path) -> None:
    home, laptop = Profile(tmp_path / "home"), Profile(tmp_path / "laptop")
    home.peers().add("laptop", laptop.identity().public, ("web",))
    laptop.peers().add("home-nas", home.identity().public)
    server = natlab.server.ip

    async def call() -> bytes:
        async with Peer("laptop", rendezvous=server, profile=laptop) as peer, await peer.connect("home-nas", "web") as stream:
            return await conversation(stream)

    here, there = natlab.site("pr").host, natlab.site("pr").host
    with (
        living(natlab.server, lambda: Rendezvous((server, 7000))),
        natlab.capture(here, filter=f"({FRAGMENTED}) and (udp or tcp)") as fragments,
        natlab.capture(here, filter=f"{MAY_BE_FRAGMENTED} and src host {here.ip}") as breakable,
        natlab.capture(here, filter=f"udp and greater {DATAGRAM_MAX_BYTES + 45}") as long,
        natlab.capture(here, filter=f"udp and host {server}") as control,
        living(there, lambda: serving(server, home)),
    ):
        assert here.thread(asyncio.run, call()).result(40) == HELLO
    assert control.lines != []
    assert [capture.lines for capture in (fragments, breakable, long)] == [[], [], []]


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def fragmentation_needed(sender: tuple[str, int], target: tuple[str, int]) -> bytes:
    """What a router would say of a datagram from `sender` to `target`, and anybody else can."""
    addresses = socket.inet_aton(sender[0]) + socket.inet_aton(target[0])
    quoted = struct.pack("!BBHHHBBH", 0x45, 0, DATAGRAM_MAX_BYTES, 1, 0x4000, 60, 17, 0) + addresses
    quoted += struct.pack("!HHHH", sender[1], target[1], DATAGRAM_MAX_BYTES - 20, 0)
    body = struct.pack("!HH", 0, FORGED_MTU) + quoted
    return struct.pack("!BBH", 3, 4, checksum(struct.pack("!BBH", 3, 4, 0) + body)) + body


@pytest.mark.parametrize("is_ours", [True, False], ids=["ours", "a socket that believes it"])
def test_a_forged_fragmentation_needed_makes_nothing_smaller(natlab: Lab, is_ours: bool) -> None:
    """The other socket is the control: what was forged is good enough for a kernel that listens to it."""
    host, target = natlab.site("pub").host, (natlab.server.ip, 9)
    with contextlib.ExitStack() as stack:
        if is_ours:
            with host.inside():
                ours = UdpSocket((host.ip, 0))
            stack.callback(ours.close)
            udp = ours.socket
        else:
            udp = stack.enter_context(host.socket(socket.AF_INET, socket.SOCK_DGRAM))
            udp.bind((host.ip, 0))
        icmp = stack.enter_context(natlab.server.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        expected = f"{host.ip}.{udp.getsockname()[1]} > {target[0]}.{target[1]}"
        with natlab.capture(host, filter=f"(udp and dst host {target[0]}) or icmp[0] = 3 or (ip[6:2] & 0x1fff != 0)") as seen:
            udp.sendto(bytes(DATAGRAM_MAX_BYTES), target)
            icmp.sendto(fragmentation_needed(udp.getsockname(), target), (host.ip, 0))
            stack.enter_context(contextlib.suppress(OSError))
            udp.sendto(bytes(DATAGRAM_MAX_BYTES), target)
        assert sum(expected in line for line in seen.lines) == 2
        fragments = [line for line in seen.lines if "ip-proto-17" in line]
        assert bool(fragments) != is_ours, seen.lines
