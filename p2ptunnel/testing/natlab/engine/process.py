"""The program: owns the TUN descriptors, obeys the laboratory, and leaves when the laboratory's process is gone.

Commands are JSON datagrams with descriptors attached; each gets one JSON reply, `{"error": ...}` if it failed.
"""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any, Final

from .link import LinkSettings
from .loop import Loop
from .nat import Nat
from .plumbing import Gateway, Link, Tun
from .table import NatSettings

__all__ = ["Engine", "main"]

_COMMAND_BYTES: Final = 65536
_DESCRIPTORS: Final = 16


class Engine:
    """All links and NATs of one laboratory, and the commands that make and change them."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._dice = random.Random()
        self._tuns: list[Tun] = []
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
        """Carry out one command and return its reply; packets that were sent before it are treated before it."""
        for tun in self._tuns:
            tun.drain()
        try:
            arguments = json.loads(command)
            return self._commands[arguments.pop("op")](*descriptors, **arguments)
        except (KeyError, TypeError, ValueError, OSError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def add_link(self, upper: int, lower: int, *, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Join two TUN devices."""
        link = self._links[name] = Link(self._loop, LinkSettings(**settings), self._dice)
        self._plug_upper(link, upper)
        self._plug_lower(link, lower)
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
        tun = self._tun(descriptor)
        tun.receiver = self._gateways[nat].from_inside
        self._gateways[nat].add_host(address, tun.send)
        return {}

    def add_router(self, descriptor: int, *, nat: str, address: str, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Put a TUN device behind a NAT, with a link between them."""
        link = self._links[name] = Link(self._loop, LinkSettings(**settings), self._dice)
        self._plug_lower(link, descriptor)
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

    def close(self) -> None:
        """Let go of all devices."""
        for tun in self._tuns:
            tun.close()

    def _plug_upper(self, link: Link, descriptor: int) -> None:
        tun = self._tun(descriptor)
        tun.receiver, link.upper_end = link.down, tun.send

    def _plug_lower(self, link: Link, descriptor: int) -> None:
        tun = self._tun(descriptor)
        tun.receiver, link.lower_end = link.up, tun.send

    def _tun(self, descriptor: int) -> Tun:
        tun = Tun(self._loop, descriptor)
        self._tuns.append(tun)
        return tun


def main(control: int, parent: int) -> None:
    """Run until the laboratory closes the control socket, or its process ends in whatever way.

    Args:
        control: Descriptor of the control socket.
        parent: Process whose end is ours.
    """
    with closing(Loop()) as loop, closing(Engine(loop)) as engine, socket.socket(fileno=control) as connection:

        def serve() -> None:
            with suppress(ConnectionError):  # it may be closed while an answer is under way
                command, descriptors, _, _ = socket.recv_fds(connection, _COMMAND_BYTES, _DESCRIPTORS)
                if command:
                    connection.send(json.dumps(engine.obey(command, descriptors)).encode())
                    return
            loop.stop()

        try:
            parent_end = os.pidfd_open(parent)
        except ProcessLookupError:  # it has ended already
            return
        loop.watch(connection.fileno(), serve)
        loop.watch(parent_end, loop.stop)
        loop.run()
        os.close(parent_end)
