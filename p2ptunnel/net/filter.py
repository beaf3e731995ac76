"""The first gate of a UDP port under flood: a classic BPF program, so that junk never wakes the process.

Source: linux/filter.h.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Final

from p2ptunnel.defaults import DATAGRAM_MAX_BYTES
from p2ptunnel.net.sockets import LINUX

__all__ = ["attach_filter"]

_SO_ATTACH_FILTER: Final = 26
_LEN, _BYTE, _HALF, _WORD, _RETURN = 0x80, 0x30, 0x28, 0x20, 0x06
_EQUAL, _GREATER, _AT_LEAST = 0x15, 0x25, 0x35
_HEADER: Final = 8  # offsets count from the UDP header, over IPv4 and IPv6 alike
_SHORTEST: Final = 8  # the seed's bare {"t":30}
_STUN_REQUEST: Final = 0x0001
_STUN_COOKIE: Final = 0x2112A442

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
    if not LINUX:
        return False
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in _PROGRAM))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(_PROGRAM), ctypes.addressof(program)))
    return True
