"""The first gate of a UDP port: a classic BPF program, so that what is not for us never wakes the process.

Source: linux/filter.h.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from asyncio.trsock import TransportSocket
from collections.abc import Sequence
from ipaddress import ip_network
from typing import Final, TypeAlias

from p2ptunnel.defaults import DATAGRAM_MAX_BYTES
from p2ptunnel.net.sockets import LINUX

__all__ = ["attach_filter", "attach_neighbour_filter"]

_Instruction: TypeAlias = tuple[int, int, int, int]
_SO_ATTACH_FILTER: Final = 26
_LEN, _BYTE, _HALF, _WORD, _RETURN, _AND = 0x80, 0x30, 0x28, 0x20, 0x06, 0x54
_EQUAL, _GREATER, _AT_LEAST = 0x15, 0x25, 0x35
_HEADER: Final = 8  # offsets count from the UDP header, over IPv4 and IPv6 alike
_SHORTEST: Final = 8  # the seed's bare {"t":30}
_STUN_REQUEST: Final = 0x0001
_STUN_COOKIE: Final = 0x2112A442

_IPV4_SOURCE: Final = 0xFFF0_0000 + 12  # SKF_NET_OFF: counts from the IP header

_NEIGHBOURS: Final = tuple(
    map(
        ip_network,
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "127.0.0.0/8"),
    )
)

_PROGRAM: Final = (  # (code, jump if true, jump if false, operand); jumps count from the next instruction
    (_LEN, 0, 0, 0),
    (_GREATER, 8, 0, _HEADER + DATAGRAM_MAX_BYTES),
    (_AT_LEAST, 0, 7, _HEADER + _SHORTEST),
    (_BYTE, 0, 0, _HEADER),
    (_EQUAL, 4, 0, ord("{")),
    (_HALF, 0, 0, _HEADER),
    (_EQUAL, 0, 3, _STUN_REQUEST),
    (_WORD, 0, 0, _HEADER + 4),
    (_EQUAL, 0, 1, _STUN_COOKIE),
    (_RETURN, 0, 0, 0xFFFFFFFF),  # all of it
    (_RETURN, 0, 0, 0),  # nothing of it
)


def attach_filter(sock: socket.socket) -> bool:
    """Let the kernel drop whatever is neither a message of ours by length and first byte, nor a STUN Binding request.

    For the rendezvous server's sockets; a peer's punched port may carry QUIC as well.

    Returns:
        False where the system has no such filter; then decoding alone must cope.
    """
    return _attach(sock, _PROGRAM)


def attach_neighbour_filter(sock: socket.socket | TransportSocket) -> bool:
    """Let the kernel drop whatever does not come from a private, link-local or loopback IPv4 address.

    For multicast DNS: its socket is open on all interfaces, and would answer the whole internet where one of them leads there.

    Returns:
        False where the system has no such filter.
    """
    checks: list[_Instruction] = []
    for number, network in enumerate(_NEIGHBOURS, 1):
        to_the_end = 3 * (len(_NEIGHBOURS) - number) + 1
        checks += [
            (_WORD, 0, 0, _IPV4_SOURCE),
            (_AND, 0, 0, int(network.netmask)),
            (_EQUAL, to_the_end, 0, int(network.network_address)),
        ]
    return _attach(sock, (*checks, (_RETURN, 0, 0, 0), (_RETURN, 0, 0, 0xFFFFFFFF)))


def _attach(sock: socket.socket | TransportSocket, instructions: Sequence[_Instruction]) -> bool:
    if not LINUX:
        return False
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in instructions))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(instructions), ctypes.addressof(program)))
    return True
