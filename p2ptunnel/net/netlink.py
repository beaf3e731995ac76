"""The addresses of this machine, asked of Linux over rtnetlink: one request, one answer, no privilege.

Source: rtnetlink(7), linux/if_addr.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

__all__ = ["InterfaceAddress", "interface_addresses"]

_NLMSG_DONE, _RTM_NEWADDR, _RTM_GETADDR = 3, 20, 22
_NLM_F_REQUEST_DUMP: Final = 0x301
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_TEMPORARY, _UNUSABLE = 0x01, 0x08 | 0x20 | 0x40  # IFA_F_TEMPORARY; DADFAILED, DEPRECATED, TENTATIVE
_ANSWER_BYTES: Final = 1 << 16
_TIMEOUT: Final = 0.5  # seconds; the kernel answers before it returns from send()


class InterfaceAddress(msgspec.Struct, frozen=True):
    """One address of an interface.

    prefix: length of its network in bits.  is_temporary: an IPv6 privacy address, which will change.
    """

    host: str
    prefix: int
    is_temporary: bool = False

    def is_near(self, host: str) -> bool:
        """Tell whether a numeric host is in the network of this address; a network of prefix 0 has nobody in it."""
        own, other = (socket.inet_pton(_family(each), each) for each in (self.host, host))
        foreign_bits = len(own) * 8 - self.prefix
        return (
            self.prefix > 0
            and len(own) == len(other)
            and int.from_bytes(own, "big") >> foreign_bits == int.from_bytes(other, "big") >> foreign_bits
        )


def interface_addresses() -> tuple[InterfaceAddress, ...]:
    """Return every usable address of every interface, in the kernel's order.

    Raises:
        OSError: The kernel does not answer.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_TIMEOUT)
        netlink.send(struct.pack("=IHHII", 24, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0) + bytes(8))
        found: list[InterfaceAddress] = []
        while True:
            for kind, body in _messages(netlink.recv(_ANSWER_BYTES)):
                if kind != _RTM_NEWADDR:
                    return tuple(found)
                address = _address(body)
                if address is not None:
                    found.append(address)


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _messages(answer: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 16 <= len(answer):
        length, kind = struct.unpack_from("=IH", answer, at)
        yield kind, answer[at + 16 : at + length]
        at += (length + 3) & ~3


def _address(body: bytes) -> InterfaceAddress | None:
    family, prefix, flags = struct.unpack_from("=BBB", body)
    attributes = dict(_attributes(body[8:]))
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)  # point to point: LOCAL is ours, ADDRESS theirs
    if packed is None or family not in (socket.AF_INET, socket.AF_INET6):
        return None
    if _IFA_FLAGS in attributes:
        flags = int.from_bytes(attributes[_IFA_FLAGS], "little" if struct.pack("=H", 1)[0] else "big")
    if flags & _UNUSABLE:
        return None
    is_temporary = family == socket.AF_INET6 and bool(flags & _TEMPORARY)  # for IPv4 the bit means "secondary"
    return InterfaceAddress(socket.inet_ntop(family, packed), prefix, is_temporary)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        yield kind, data[at + 4 : at + length]
        at += max(4, (length + 3) & ~3)
