"""Addresses and routes of this machine, asked of Linux over rtnetlink, and news of them; no privilege is needed.

Source: rtnetlink(7), linux/if_addr.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Final

import msgspec

from p2ptunnel.net.sockets import LINUX

__all__ = ["InterfaceAddress", "Route", "find_route", "interface_addresses", "open_news", "take_news"]

_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR, _RTM_GETADDR = 16, 17, 20, 21, 22
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_NLM_F_REQUEST, _NLM_F_REQUEST_DUMP = 0x001, 0x301
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA = 1, 4, 5, 9, 18
_RTM_F_FIB_MATCH: Final = 0x2000  # answer with the entry of the table, which knows whether its link is up
_RTNH_F_UNUSABLE: Final = 0x01 | 0x10  # DEAD, LINKDOWN
_NEWS_GROUPS: Final = 0x001 | 0x010 | 0x040 | 0x100 | 0x400  # RTMGRP_: LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
_NEWS_BATCH: Final = 64  # messages a wake-up
_NEWS_ALWAYS: Final = frozenset({_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR, _RTM_DELADDR})
_NEWS_OF_ROUTES: Final = frozenset({_RTM_NEWROUTE, _RTM_DELROUTE})
_WIDE: Final = (b"\0", b"\1")  # lengths of prefixes: VPNs put two routes of half the internet over the default route
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


class Route(msgspec.Struct, frozen=True):
    """Where packets to a destination leave: a device, and the router behind it ("" where the device leads there itself)."""

    device: str
    gateway: str

    def __str__(self) -> str:
        return f"{self.gateway} on {self.device}" if self.gateway else self.device


def interface_addresses() -> tuple[InterfaceAddress, ...]:
    """Return every usable address of every interface, in the kernel's order.

    Raises:
        OSError: The kernel does not answer.
    """
    with _open() as netlink:
        netlink.send(_request(_RTM_GETADDR, _NLM_F_REQUEST_DUMP, bytes(8)))
        found: list[InterfaceAddress] = []
        while True:
            for kind, body in _messages(netlink.recv(_ANSWER_BYTES)):
                if kind != _RTM_NEWADDR:
                    return tuple(found)
                address = _address(body)
                if address is not None:
                    found.append(address)


def find_route(destination: str) -> Route | None:
    """Return the route that packets to a numeric host take now; None if there is none, or only over a link that is down.

    Raises:
        OSError: The kernel does not answer.
    """
    packed = socket.inet_pton(_family(destination), destination)
    head = struct.pack("=BBBBBBBBI", _family(destination), len(packed) * 8, 0, 0, 0, 0, 0, 0, _RTM_F_FIB_MATCH)
    with _open() as netlink:
        netlink.send(_request(_RTM_GETROUTE, _NLM_F_REQUEST, head + struct.pack("=HH", 4 + len(packed), _RTA_DST) + packed))
        for kind, body in _messages(netlink.recv(_ANSWER_BYTES)):
            if kind == _RTM_NEWROUTE:
                return _route(body)
    return None


def open_news() -> socket.socket:
    """Return a non-blocking socket that can be read when an address, a link or a route has changed.

    Raises:
        OSError: This system has no rtnetlink, or forbids it.
    """
    news = _open()
    try:
        news.setblocking(False)
        news.bind((0, _NEWS_GROUPS))
    except OSError:
        news.close()
        raise
    return news


def take_news(news: socket.socket) -> bool:
    """Take what waits, and tell whether it may concern an address or a default route; so do news that were lost."""
    concerns = False
    for _ in range(_NEWS_BATCH):
        try:
            data = news.recv(_ANSWER_BYTES)
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # too many came at once
                raise
            concerns = True
        else:
            concerns = concerns or any(_concerns(kind, body) for kind, body in _messages(data))
    return concerns


def _concerns(kind: int, body: bytes) -> bool:
    return kind in _NEWS_ALWAYS or (kind in _NEWS_OF_ROUTES and body[1:2] in _WIDE)


def _open() -> socket.socket:
    if not LINUX:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    netlink.settimeout(_TIMEOUT)
    return netlink


def _request(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _messages(answer: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 16 <= len(answer):
        length, kind = struct.unpack_from("=IH", answer, at)
        yield kind, answer[at + 16 : at + length]
        at += max(16, (length + 3) & ~3)


def _address(body: bytes) -> InterfaceAddress | None:
    family, prefix, flags = struct.unpack_from("=BBB", body)
    attributes = dict(_attributes(body[8:]))
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)  # point to point: LOCAL is ours, ADDRESS theirs
    if packed is None or family not in (socket.AF_INET, socket.AF_INET6):
        return None
    if _IFA_FLAGS in attributes:
        flags = int.from_bytes(attributes[_IFA_FLAGS], sys.byteorder)
    if flags & _UNUSABLE:
        return None
    is_temporary = family == socket.AF_INET6 and bool(flags & _TEMPORARY)  # for IPv4 the bit means "secondary"
    return InterfaceAddress(socket.inet_ntop(family, packed), prefix, is_temporary)


def _route(body: bytes) -> Route | None:
    (flags,) = struct.unpack_from("=I", body, 8)
    attributes = dict(_attributes(body[12:]))
    hops = _next_hops(attributes[_RTA_MULTIPATH]) if _RTA_MULTIPATH in attributes else iter([(flags, attributes)])
    usable = (hop for flags, hop in hops if not flags & _RTNH_F_UNUSABLE)
    return next((Route(_device_name(hop), _gateway(hop)) for hop in usable), None)


def _next_hops(data: bytes) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Yield flags and attributes of each branch of a route that has several."""
    at = 0
    while at + 8 <= len(data):
        length, flags = struct.unpack_from("=HB", data, at)
        yield flags, {_RTA_OIF: data[at + 4 : at + 8], **dict(_attributes(data[at + 8 : at + length]))}
        at += max(8, (length + 3) & ~3)


def _gateway(hop: dict[int, bytes]) -> str:
    packed = hop.get(_RTA_GATEWAY) or hop.get(_RTA_VIA, b"")[2:]  # VIA: an IPv6 router of IPv4, behind its family
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed) if packed else ""


def _device_name(hop: dict[int, bytes]) -> str:
    index = int.from_bytes(hop.get(_RTA_OIF, b""), sys.byteorder)
    with contextlib.suppress(OSError):  # it is gone already
        return socket.if_indextoname(index)
    return f"device {index}"


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        yield kind, data[at + 4 : at + length]
        at += max(4, (length + 3) & ~3)
