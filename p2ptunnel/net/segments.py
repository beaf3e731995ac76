"""Many datagrams to one address in one system call, where the kernel cuts them apart (UDP GSO).

A system call for each is a quarter of what QUIC costs whoever sends much.

Rule: whatever a kernel or a device says to it, the datagrams can still be sent one by one.

Source: linux/udp.h, udp(7); Linux 4.18.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from p2ptunnel.net.sockets import LINUX, socket_address
from p2ptunnel.types import Address

__all__ = ["bursts", "send_segments"]

_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_SIZE: Final = struct.Struct("=H")
_SEGMENTS_MAX: Final = 54  # of 1200 bytes: what fits into 64 KiB, and less than the 64 that the kernel takes


def bursts(datagrams: Iterable[bytes]) -> Iterator[Sequence[bytes]]:
    """Yield them in portions that can go in one call: all of one length but for the last, which may be shorter."""
    burst: list[bytes] = []
    for datagram in datagrams:
        if burst and (len(datagram) > len(burst[0]) or len(burst[-1]) < len(burst[0]) or len(burst) == _SEGMENTS_MAX):
            yield burst
            burst = []
        burst.append(datagram)
    if burst:
        yield burst


def send_segments(sock: socket.socket, burst: Sequence[bytes], destination: Address) -> bool:
    """Send a burst in one call; return whether this system can do that at all.

    Raises:
        BlockingIOError: The socket's buffer is full.
        OSError: There is no way to `destination`, or no such thing as segments on the way to it.
    """
    if not LINUX:
        return False
    control = [(_SOL_UDP, _UDP_SEGMENT, _SIZE.pack(len(burst[0])))]
    sock.sendmsg(burst, control, 0, socket_address(destination))
    return True
