"""T8: an admitted peer and the server conspire to aim a callee at its own machine and network: its kernel counts what leaves.

What a peer that is admitted signs may be private (two machines of one network meet there); nothing else that is special may.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import pytest

from p2ptunnel import Peer, Profile
from p2ptunnel.protocol.intent import CallSigner
from p2ptunnel.testing.natlab import Host, Lab
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.testing.simnet.peers import SimCounter
from p2ptunnel.types import Address, Candidate
from tests.helpers.meeting import echo
from tests.security.evil import EvilRendezvous
from tests.unit.test_addresses import SPELLINGS

pytestmark = pytest.mark.natlab
NOWHERE = sorted(spelling for spelling, (_, scope) in SPELLINGS.items() if scope not in {"public", "private"})
SERVICES = (22, 80, 1023, 1900, 5353, 11211)
"""Ports that are probed nowhere, public addresses included."""
RULES = """
table inet witness {
    counter strays {}
    chain output {
        type filter hook output priority 0;
        ip daddr SERVER accept
        meta l4proto != { tcp, udp } accept
        ip daddr CONTROL th dport != { SERVICES } accept
        counter name strays
    }
}
"""


class Conspiracy:
    """A callee on the open internet, and the server and the admitted peer that want it to send elsewhere."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.server = EvilRendezvous((lab.server.ip, 7000))
        self.home: Host = lab.site("pub").host
        self.control = lab.site("pub").host.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.control.bind(("0.0.0.0", 0))
        self.control_address: Address = (lab.sites[-1].host.ip, self.control.getsockname()[1])
        self._profile, laptop = Profile(directory / "home"), Profile(directory / "laptop").identity()
        self._profile.peers().add("laptop", laptop.public, ("echo",))
        self._signer = CallSigner(laptop, SimCounter(), random.SystemRandom(), callee=self._profile.identity().public)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        where = "{}:{}".format(*self.server.address)
        peer = Peer("home-nas", rendezvous=where, profile=self._profile, port_mapping=False)  # the router is none of its peers
        async with peer, peer.serve({"echo": echo}):
            yield

    def call(self, at: Address) -> None:
        """Have the server tell the callee of a call from there, properly signed."""
        cands = (Candidate("srflx", "udp", *at), Candidate("srflx", "tcp", *at))
        home = self.server._broker.registrar.online["home-nas"].endpoint.address
        self.server.call(self._signer.sign(cands), cands, at=at, to=home)

    @property
    def strays(self) -> int:
        """Packets that went where none may go."""
        told = self.home.run(["nft", "list", "counter", "inet", "witness", "strays"]).stdout
        found = re.search(r"packets (\d+)", told)
        assert found is not None
        return int(found[1])


@pytest.fixture
def conspiracy(natlab: Lab, tmp_path: Path) -> Generator[Conspiracy]:
    found = Conspiracy(natlab, tmp_path)
    rules = RULES.replace("SERVER", natlab.server.ip).replace("CONTROL", found.control_address[0])
    found.home.nft(rules.replace("SERVICES", ", ".join(map(str, SERVICES))))
    with found.control, living(natlab.server, lambda: found.server), living(found.home, found.serving):
        yield found


def test_no_spelling_of_an_address_that_is_no_peers_makes_a_callee_send_there(conspiracy: Conspiracy) -> None:
    assert len(NOWHERE) >= 60
    for spelling in NOWHERE:
        conspiracy.call((spelling, 40_000))
    for port in SERVICES:
        conspiracy.call((conspiracy.control_address[0], port))
    conspiracy.call(conspiracy.control_address)  # where it may send: by then it has judged all the others
    conspiracy.control.settimeout(10)
    assert len(conspiracy.control.recv(2048)) == 53
    assert conspiracy.strays == 0


def test_a_packet_that_strays_would_be_counted(conspiracy: Conspiracy) -> None:
    with conspiracy.home.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for host in ("127.0.0.1", "169.254.169.254", conspiracy.control_address[0]):
            with contextlib.suppress(OSError):  # there may be no route
                sock.sendto(b"{}", (host, 1900))
    assert conspiracy.strays >= 2
