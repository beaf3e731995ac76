"""What a site does with TCP: connections, strangers' SYNs, and SYNs that cross."""

from __future__ import annotations

import dataclasses
import select
import socket
from typing import Final

from p2ptunnel.testing.natlab.behaviour.sockets import (
    ANSWER_TIME,
    Answer,
    Bench,
    accept,
    address_of,
    answer_to,
    is_ready,
    receive,
)
from p2ptunnel.testing.natlab.behaviour.words import name_allocation, name_mapping
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.types import Address

__all__ = ["TcpBehaviour", "measure_ports", "measure_tcp"]

_FIRST_CONTACT_TIME: Final = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class TcpBehaviour:
    """The part of a `Behaviour` that concerns TCP."""

    mapping: str
    filtering: str
    allocation: str
    stranger: str
    after_syn: str
    after_rst: str
    rst_ends: str
    hairpin: str


def measure_tcp(server: Host, host: Host, neighbour: Host) -> TcpBehaviour:
    """Ask all about TCP; `neighbour` stands behind the same router, or is the host itself."""
    with Bench() as bench:
        prober = _Prober(bench, server, host)
        inside_port, seen = prober.observe()
        stranger, filtering = prober.filtering()
        return TcpBehaviour(
            name_mapping(seen),
            filtering,
            name_allocation(inside_port, seen),
            stranger,
            prober.after_syn(),
            *prober.after_rst(),
            prober.hairpin(neighbour),
        )


def measure_ports(server: Host, host: Host) -> str:
    """Tell whether a UDP and a TCP flow of one inside port have one outside port; `-` if UDP does not get out."""
    with Bench() as bench:
        observer, client = bench.udp(server, server.ip), bench.udp(host)
        client.sendto(b"?", address_of(observer))
        heard = receive(observer, _FIRST_CONTACT_TIME)
        opened = _Prober(bench, server, host).open(address_of(client)[1])
        if heard is None:
            return "-"
        return "same" if heard[1] == opened.outside else "other"


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    """A fresh inside port with a listener and one connection, to the first observer; and its outside address."""

    port: int
    outside: Address
    inside_end: socket.socket
    outside_end: socket.socket

    def settle(self) -> None:
        """Send a byte outwards: when it has arrived, so has what the host sent before."""
        self.inside_end.send(b".")
        self.outside_end.settimeout(_FIRST_CONTACT_TIME)
        self.outside_end.recv(1)

    def is_open_inwards(self) -> bool:
        """Tell whether a byte still gets in."""
        self.outside_end.send(b".")
        return is_ready(self.inside_end, select.POLLIN, ANSWER_TIME)


class _Prober:
    def __init__(self, bench: Bench, server: Host, host: Host) -> None:
        self._bench, self._server, self._host = bench, server, host
        self._observers = bench.tcp_observers(server)
        self._one = self._observers[0]

    def observe(self) -> tuple[int, list[Address]]:
        """Return an inside port and what four observers see of it."""
        port, seen = 0, list[Address]()
        for observer in self._observers:
            client = self._bench.tcp(self._host, port=port)
            port = address_of(client)[1]
            seen.append(self._connect(client, observer)[1])
        return port, seen

    def filtering(self) -> tuple[Answer, str]:
        """Return what becomes of a stranger's SYN, and who may send in."""
        opened = self.open()
        stranger = answer_to(self._bench.tcp(self._server, self._server.ips[1]), opened.outside)
        if stranger == "open":
            return stranger, "EI"
        same_address = answer_to(self._bench.tcp(self._server, self._server.ip), opened.outside)
        return stranger, "AD" if same_address == "open" else "APD"

    def after_syn(self) -> Answer:
        """Return what a peer's SYN meets after ours to it went unanswered."""
        opened = self.open()
        silent = self._bench.swallower(self._server, self._server.ips[1])
        self._bench.tcp(self._host, port=opened.port).connect_ex(silent)
        opened.settle()
        return answer_to(self._bench.tcp(self._server, *silent), opened.outside)

    def after_rst(self) -> tuple[Answer, str]:
        """Return what a peer's SYN meets after it answered ours by RST, and what that RST has ended."""
        opened = self.open()
        peer = self._bench.tcp(self._server, self._server.ips[1])
        refused = answer_to(self._bench.tcp(self._host, port=opened.port), address_of(peer), _FIRST_CONTACT_TIME)
        if refused != "rst":
            raise ConnectionError(f"a closed port was answered with {refused}")
        return answer_to(peer, opened.outside), "flow" if opened.is_open_inwards() else "mapping"

    def hairpin(self, neighbour: Host) -> str:
        """Tell whether a SYN reaches an inside listener by its outside address."""
        return "yes" if answer_to(self._bench.tcp(neighbour), self.open().outside) == "open" else "no"

    def open(self, port: int = 0) -> _Opened:
        """Connect from an inside port, on which somebody listens too."""
        client = self._bench.tcp(self._host, port=port)
        port = address_of(client)[1]
        self._bench.listener(self._host, port=port)
        connection, outside = self._connect(client, self._one)
        return _Opened(port, outside, client, connection)

    def _connect(self, client: socket.socket, listener: socket.socket) -> tuple[socket.socket, Address]:
        answer = answer_to(client, address_of(listener), _FIRST_CONTACT_TIME)
        if answer != "open":
            raise ConnectionError(f"no connection outwards: {answer}")
        connection, source = accept(listener)
        return self._bench.enter_context(connection), source
