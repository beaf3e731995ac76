"""The program: owns the TUN descriptors, obeys the laboratory, and leaves when the laboratory's process is gone.

Commands are JSON datagrams with descriptors attached; each gets one JSON reply, `{"error": ...}` if it failed.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from .link import Direction, LinkSettings
from .loop import Loop
from .nat import Delivery, Nat
from .table import NatSettings

__all__ = ["Engine", "main"]

_PACKET_BYTES: Final = 65536
_BATCH: Final = 64
_COMMAND_BYTES: Final = 65536
_DESCRIPTORS: Final = 16

Receiver = Callable[[bytes], None]


class Tun:
    """One TUN device; what its kernel sends goes to `receiver`."""

    def __init__(self, loop: Loop, descriptor: int) -> None:
        self.receiver: Receiver = _nowhere
        self._loop = loop
        self._descriptor = descriptor
        loop.watch(descriptor, self._read)

    def send(self, packet: bytes) -> None:
        """Give a packet to the kernel; it is lost if the device is down."""
        with suppress(OSError):
            os.write(self._descriptor, packet)

    def _read(self) -> None:
        for _ in range(_BATCH):  # so that no device starves the others
            try:
                packet = os.read(self._descriptor, _PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:  # its namespace is gone
                self._loop.forget(self._descriptor)
                return
            self.receiver(packet)


class Link:
    """Two directions; whoever stands at an end sets where packets come out there."""

    def __init__(self, loop: Loop, settings: LinkSettings, dice: random.Random) -> None:
        self.upper_end: Receiver = _nowhere
        self.lower_end: Receiver = _nowhere
        self.directions = {"up": Direction(settings, dice), "down": Direction(settings, dice)}
        self._loop = loop

    def up(self, packet: bytes) -> None:
        """Send towards the internet."""
        self._send(self.directions["up"], self.upper_end, packet)

    def down(self, packet: bytes) -> None:
        """Send towards the site."""
        self._send(self.directions["down"], self.lower_end, packet)

    def _send(self, direction: Direction, end: Receiver, packet: bytes) -> None:
        now = time.monotonic()
        for arrival in direction.admit(len(packet), now):
            if arrival <= now:
                end(packet)
            else:
                self._loop.deliver(arrival, end, packet)


class Gateway:
    """A NAT at work: between a link and the hosts behind it, which may be other NATs."""

    def __init__(self, nat: Nat, link: Link) -> None:
        self.nat = nat
        self._link = link
        self._hosts: dict[bytes, Receiver] = {}
        link.lower_end = self._from_outside

    def add_host(self, address: str, receiver: Receiver) -> None:
        """Let packets for an inside address go to `receiver`."""
        packed = socket.inet_aton(address)
        self._hosts[packed] = receiver
        self.nat.add_host(packed)

    def from_inside(self, packet: bytes) -> None:
        """Take a packet from a host."""
        self._deliver(self.nat.from_inside(packet, time.monotonic()))

    def _from_outside(self, packet: bytes) -> None:
        self._deliver(self.nat.from_outside(packet, time.monotonic()))

    def _deliver(self, deliveries: list[Delivery]) -> None:
        for address, packet in deliveries:
            if address is None:
                self._link.up(packet)
            elif address in self._hosts:
                self._hosts[address](packet)


class Engine:
    """All links and NATs of one laboratory, and the commands that make and change them."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._dice = random.Random()
        self._links: dict[str, Link] = {}
        self._gateways: dict[str, Gateway] = {}
        self._commands: dict[str, Callable[..., dict[str, Any]]] = {
            "add_link": self.add_link,
            "add_nat": self.add_nat,
            "add_host": self.add_host,
            "add_router": self.add_router,
            "change_link": self.change_link,
            "flush": self.flush,
            "map_port": self.map_port,
            "stats": self.stats,
        }

    def obey(self, command: bytes, descriptors: Sequence[int]) -> dict[str, Any]:
        """Carry out one command and return its reply."""
        try:
            arguments = json.loads(command)
            return self._commands[arguments.pop("op")](*descriptors, **arguments)
        except (KeyError, TypeError, ValueError, OSError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def add_link(self, upper: int, lower: int, *, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Join two TUN devices."""
        link = self._links[name] = Link(self._loop, LinkSettings(**settings), self._dice)
        self._plug_upper(link, upper)
        tun = Tun(self._loop, lower)
        tun.receiver = link.up
        link.lower_end = tun.send
        return {}

    def add_nat(
        self, *upper: int, name: str, settings: dict[str, Any], link: dict[str, Any], upstream: str | None
    ) -> dict[str, Any]:
        """Make a NAT whose link ends in a TUN device, or behind another NAT."""
        made = self._links[name] = Link(self._loop, LinkSettings(**link), self._dice)
        rules = NatSettings(**settings)
        self._gateways[name] = Gateway(Nat(rules, self._dice), made)
        if upstream is None:
            self._plug_upper(made, *upper)
        else:
            made.upper_end = self._gateways[upstream].from_inside
            self._gateways[upstream].add_host(rules.wan_address, made.down)
        return {}

    def add_host(self, descriptor: int, *, nat: str, address: str) -> dict[str, Any]:
        """Put a TUN device behind a NAT."""
        tun = Tun(self._loop, descriptor)
        tun.receiver = self._gateways[nat].from_inside
        self._gateways[nat].add_host(address, tun.send)
        return {}

    def add_router(self, descriptor: int, *, nat: str, address: str, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Put a TUN device behind a NAT, with a link between them."""
        link = self._links[name] = Link(self._loop, LinkSettings(**settings), self._dice)
        tun = Tun(self._loop, descriptor)
        tun.receiver, link.lower_end = link.up, tun.send
        link.upper_end = self._gateways[nat].from_inside
        self._gateways[nat].add_host(address, link.down)
        return {}

    def change_link(self, *, name: str, directions: list[str], changes: dict[str, Any]) -> dict[str, Any]:
        """Change how a link treats the packets to come."""
        for direction in directions:
            self._links[name].directions[direction].change(changes)
        return {}

    def flush(self, *, name: str) -> dict[str, Any]:
        """Let a NAT forget its mappings."""
        self._gateways[name].nat.flush()
        return {}

    def map_port(self, *, name: str, protocol: int, outside_port: int, address: str, port: int) -> dict[str, Any]:
        """Add a static mapping to a NAT."""
        self._gateways[name].nat.table.add_static(protocol, outside_port, (socket.inet_aton(address), port))
        return {}

    def stats(self, *, name: str) -> dict[str, Any]:
        """Count what a link and a NAT have done."""
        counts = {key: [way.sent, way.lost] for key, way in self._links[name].directions.items()}
        nat = self._gateways[name].nat if name in self._gateways else None
        return {**counts, "mappings": len(nat.table) if nat else 0, "refused": dict(nat.refused) if nat else {}}

    def _plug_upper(self, link: Link, descriptor: int) -> None:
        tun = Tun(self._loop, descriptor)
        tun.receiver = link.down
        link.upper_end = tun.send


def main(control: int, parent: int) -> None:
    """Run until the laboratory closes the control socket, or its process ends in whatever way.

    Args:
        control: Descriptor of the control socket.
        parent: Process whose end is ours.
    """
    loop = Loop()
    engine = Engine(loop)
    with socket.socket(fileno=control) as connection:

        def serve() -> None:
            command, descriptors, _, _ = socket.recv_fds(connection, _COMMAND_BYTES, _DESCRIPTORS)
            if not command:
                loop.stop()
                return
            connection.send(json.dumps(engine.obey(command, descriptors)).encode())

        loop.watch(connection.fileno(), serve)
        loop.watch(os.pidfd_open(parent), loop.stop)
        loop.run()


def _nowhere(packet: bytes) -> None:
    """Drop a packet: nothing is plugged in."""
