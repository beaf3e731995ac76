"""A router that speaks NAT-PMP whatever its outside address is, as many do behind a carrier's NAT; miniupnpd refuses there."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import threading
from collections.abc import Generator
from typing import Final

from p2ptunnel.testing.natlab import Site
from p2ptunnel.types import Transport

__all__ = ["mapping_router"]

_PORT: Final = 5351
_OLD: Final = struct.pack("!BBHI", 0, 128, 1, 0)  # to PCP: this version is not spoken here
_TRANSPORTS: Final[dict[int, Transport]] = {1: "udp", 2: "tcp"}


@contextlib.contextmanager
def mapping_router(site: Site) -> Generator[list[tuple[Transport, int]]]:
    """Let the router of a site map what it is asked to, as long as the block lasts; yields what it has mapped."""
    mapped: list[tuple[Transport, int]] = []
    with site.router.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind((str(site.lan[1]), _PORT))
        serving = threading.Thread(target=_serve, args=(sock, site, mapped), daemon=True)
        serving.start()
        yield mapped
        with site.router.socket(type=socket.SOCK_DGRAM) as knock:
            knock.sendto(b"", (str(site.lan[1]), _PORT))  # the end
        serving.join(10)


def _serve(sock: socket.socket, site: Site, mapped: list[tuple[Transport, int]]) -> None:
    while True:
        question, asker = sock.recvfrom(100)
        if not question:
            return
        sock.sendto(_answer(question, asker[0], site, mapped), asker)


def _answer(question: bytes, asker: str, site: Site, mapped: list[tuple[Transport, int]]) -> bytes:
    version, operation = question[:2]
    if version != 0:
        return _OLD
    if operation == 0:
        return struct.pack("!BBHI4s", 0, 128, 0, 1, ipaddress.IPv4Address(site.wan_address).packed)
    inside, outside, lifetime = struct.unpack("!HHI", question[4:12])
    way = (_TRANSPORTS[operation], outside or inside)
    if lifetime and way not in mapped:
        site.map_port(way[0], way[1], inside, next(host for host in site.hosts if host.ip == asker))
        mapped.append(way)
    return struct.pack("!BBHIHHI", 0, 128 + operation, 0, 1, inside, way[1], lifetime)
