"""What the tests of the network in memory share: hosts that write down what they get, and seeds for calls."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from itertools import product

from p2ptunnel.testing.simnet import KINDS, Host, Network, Segment
from p2ptunnel.types import Address

INSIDE_PORT = 40_000
SITE = "198.51.100.7"
MANY = 3 if sys.gettrace() else 12
"""Seeds a cell where each call may go its own way; fewer while coverage is measured, which is slow and sees no more."""
FAR: Address = ("203.0.113.10", 5000)
FAR_PORT: Address = ("203.0.113.10", 5001)
FAR_HOST: Address = ("203.0.113.20", 5000)


class Witness:
    """A host of the open internet that writes down what it gets."""

    def __init__(self, network: Network, address: Address) -> None:
        self.host: Host = network.add(*address)
        self.datagrams: list[tuple[bytes, Address]] = []
        self.segments: list[tuple[Segment, Address]] = []
        self.host.receive_udp = lambda data, source: self.datagrams.append((data, source))
        self.host.receive_tcp = lambda segment, source: self.segments.append((segment, source))

    @property
    def packets(self) -> int:
        """How many have come."""
        return len(self.datagrams) + len(self.segments)


def site(network: Network, kind: str) -> Witness:
    """Return a host behind a NAT of `kind`."""
    witness = Witness(network, (SITE, INSIDE_PORT))
    host = network.add(SITE, INSIDE_PORT, kind=KINDS[kind])
    host.receive_udp, host.receive_tcp = witness.host.receive_udp, witness.host.receive_tcp
    witness.host = host
    return witness


def seeds(caller: str, callee: str, count: int) -> Iterator[int]:
    """Return seeds that no other pair has."""
    return (zlib.crc32(f"{caller} {callee} {n}".encode()) for n in range(count))


def pairs(kinds: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return every ordered pair of `kinds`."""
    return list(product(kinds, kinds))
