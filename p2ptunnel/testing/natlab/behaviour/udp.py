"""What a site does with UDP.

A datagram that must get through follows each one that may not, on the same way: when it is there, the other is not coming.
"""

from __future__ import annotations

import dataclasses
import select
import socket
from typing import Final

from p2ptunnel.testing.natlab.behaviour.sockets import Bench, address_of, is_ready, receive
from p2ptunnel.testing.natlab.behaviour.words import name_allocation, name_mapping
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.types import Address

__all__ = ["UdpBehaviour", "measure_udp"]

_FIRST_CONTACT_TIME: Final = 1.0
_ERROR_TIME: Final = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class UdpBehaviour:
    """The part of a `Behaviour` that concerns UDP."""

    mapping: str = "blocked"
    filtering: str = "-"
    allocation: str = "-"
    stranger: str = "-"
    early: str = "-"
    hairpin: str = "-"


def measure_udp(server: Host, host: Host, neighbour: Host) -> UdpBehaviour:
    """Ask all about UDP; `neighbour` stands behind the same router, or is the host itself."""
    with Bench() as bench:
        prober = _Prober(bench, server, host)
        seen = prober.observe()
        if seen is None:
            return UdpBehaviour()
        mapping = name_mapping(seen.addresses)
        stranger, filtering = prober.filtering()
        early = prober.early() if mapping == "EI" else "-"
        allocation = name_allocation(seen.inside_port, seen.addresses)
        return UdpBehaviour(mapping, filtering, allocation, stranger, early, prober.hairpin(neighbour))


@dataclasses.dataclass(frozen=True, slots=True)
class _Observation:
    inside_port: int
    addresses: list[Address]


class _Prober:
    def __init__(self, bench: Bench, server: Host, host: Host) -> None:
        self._bench, self._server, self._host = bench, server, host
        self._observers = bench.udp_observers(server)
        self._one, self._other_port, *_ = self._observers

    def observe(self) -> _Observation | None:
        """Return what four observers see of one socket; None if UDP does not get out."""
        client = self._bench.udp(self._host)
        addresses: list[Address] = []
        for observer in self._observers:
            client.sendto(b"?", address_of(observer))
            heard = receive(observer, _FIRST_CONTACT_TIME)
            if heard is None:
                return None
            addresses.append(heard[1])
        return _Observation(address_of(client)[1], addresses)

    def filtering(self) -> tuple[str, str]:
        """Return what becomes of a stranger's datagram, and who may send in."""
        client, outside = self._open()
        stranger = self._bench.udp(self._server, self._server.ips[1])
        stranger.connect(outside)
        stranger.send(b"stranger")
        self._other_port.sendto(b"other port", outside)
        arrived = self._until_last(client, outside)
        if b"stranger" in arrived:
            return "open", "EI"
        return _refusal(stranger), "AD" if b"other port" in arrived else "APD"

    def early(self) -> str:
        """Tell whether a refused datagram moves the next mapping towards its sender."""
        client, outside = self._open()
        peer = self._bench.udp(self._server, self._server.ips[1])
        peer.sendto(b"early", outside)
        self._until_last(client, outside)
        client.sendto(b"punch", address_of(peer))
        heard = receive(peer)
        return "stays" if heard is not None and heard[1] == outside else "moves"

    def hairpin(self, neighbour: Host) -> str:
        """Tell whether a datagram reaches an inside socket by its outside address."""
        client, outside = self._open()
        self._bench.udp(neighbour).sendto(b"hairpin", outside)
        return "no" if receive(client) is None else "yes"

    def _open(self) -> tuple[socket.socket, Address]:
        """Return a client to whom only the first observer has spoken, and its outside address."""
        client = self._bench.udp(self._host)
        client.sendto(b"?", address_of(self._one))
        heard = receive(self._one, _FIRST_CONTACT_TIME)
        if heard is None:
            raise TimeoutError("a datagram got lost")
        return client, heard[1]

    def _until_last(self, client: socket.socket, outside: Address) -> set[bytes]:
        """Send a datagram that must get in, and return what came before it."""
        self._one.sendto(b"last", outside)
        arrived: set[bytes] = set()
        while (heard := receive(client, _FIRST_CONTACT_TIME)) is not None and heard[0] != b"last":
            arrived.add(heard[0])
        return arrived


def _refusal(stranger: socket.socket) -> str:
    """Tell whether a connected socket heard an ICMP error; it was sent before the datagram that has arrived."""
    if not is_ready(stranger, select.POLLIN, _ERROR_TIME):
        return "drop"
    return "icmp" if stranger.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) else "drop"
