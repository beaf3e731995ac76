"""What a Linux router knows of connections.  Everything here concerns the calling thread's namespace.

Source: linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

from p2ptunnel.testing.natlab.netlink import exchange, open_netlink

__all__ = ["count_connections", "forget_connections"]

_NETLINK_NETFILTER: Final = 12
_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2
_DUMP: Final = 0x300
_ORIGINAL_TUPLE, _PROTOCOL_PART, _PROTOCOL_NUMBER = 1, 2, 1
_HEADER: Final = struct.Struct("=BBH")
_ATTRIBUTE: Final = struct.Struct("=HH")
_KIND: Final = 0x3FFF


def forget_connections() -> None:
    """Empty the table of connections.

    Raises:
        OSError: The kernel has no connection tracking.
    """
    with open_netlink(_NETLINK_NETFILTER) as connection:
        exchange(connection, _DELETE, 0, _HEADER.pack(socket.AF_UNSPEC, 0, 0))


def count_connections() -> int:
    """Count the flows of TCP and UDP over IPv4; the kernel's own chatter, such as IGMP, is left out.

    Raises:
        OSError: The kernel has no connection tracking.
    """
    with open_netlink(_NETLINK_NETFILTER) as connection:
        entries = exchange(connection, _GET, _DUMP, _HEADER.pack(socket.AF_INET, 0, 0))
    return sum(_protocol(entry) in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) for entry in entries)


def _protocol(entry: bytes) -> int:
    original = dict(_attributes(entry[_HEADER.size :]))[_ORIGINAL_TUPLE]
    return dict(_attributes(dict(_attributes(original))[_PROTOCOL_PART]))[_PROTOCOL_NUMBER][0]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and value of each attribute."""
    while data:
        size, kind = _ATTRIBUTE.unpack_from(data)
        yield kind & _KIND, data[_ATTRIBUTE.size : size]
        data = data[(size + 3) & ~3 :]
