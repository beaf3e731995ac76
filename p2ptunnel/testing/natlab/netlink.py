"""The kernel's interface for network configuration, as far as the laboratory needs it; no program is started.

Source: rtnetlink(7), netlink(7), linux/rtnetlink.h, linux/if_link.h.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

__all__ = ["Netlink", "exchange", "open_netlink"]

_REQUEST, _ACKNOWLEDGE, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x200, 0x400
_NEW_LINK, _GET_LINK, _NEW_ADDRESS, _DELETE_ADDRESS, _NEW_ROUTE = 16, 18, 20, 21, 24
_NETLINK_ROUTE: Final = 0
_IPV6_ADDRESS_NEWS: Final = 0x100
_PATIENCE: Final = 5.0
_MESSAGE_ERROR, _MESSAGE_DONE = 2, 3
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 10, 18, 28
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_NO_DAD, _IFA_PERMANENT = 0x02, 0x80
_RTA_DESTINATION, _RTA_OUTPUT, _RTA_GATEWAY = 1, 4, 5
_MAIN_TABLE, _STATIC, _UNICAST, _ONLINK = 254, 4, 1, 4
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_UP: Final = 1
_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBi")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")


class Netlink:
    """Configures the namespace in which it was made.

    Args:
        name: Of the namespace, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._socket = open_netlink(_NETLINK_ROUTE)
        self._news = open_netlink(_NETLINK_ROUTE, _IPV6_ADDRESS_NEWS)
        self._news.settimeout(_PATIENCE)
        self._sequence = 0
        self._indices: dict[str, int] = {}

    def close(self) -> None:
        """Close the sockets; closing twice is fine."""
        self._socket.close()
        self._news.close()

    def set_up(self, device: str, *, bridge: str | None = None) -> None:
        """Bring a device up, as a port of a bridge or as it is."""
        master = b"" if bridge is None else _attribute(_IFLA_MASTER, struct.pack("=I", self._index(bridge)))
        self._request(_NEW_LINK, 0, _LINK.pack(0, 0, self._index(device), _UP, _UP) + master)

    def settle(self, device: str) -> None:
        """Make a new carrier count now: asking for the device does, else it may take a second.

        A bridge port drops packets until then; so bring both ends of a cable up, settle both, and only then enslave.
        """
        self._request(_GET_LINK, 0, _LINK.pack(0, 0, self._index(device), 0, 0))

    def add_cable(self, device: str, far_namespace: int, far_device: str) -> None:
        """Make a veth pair from here to the namespace of that descriptor."""
        far = _LINK.pack(0, 0, 0, 0, 0) + _name(far_device) + _attribute(_IFLA_NET_NS_FD, struct.pack("=I", far_namespace))
        self._add_device(device, "veth", _attribute(_INFO_DATA, _attribute(_VETH_INFO_PEER, far)))

    def add_bridge(self, device: str) -> None:
        """Make a bridge."""
        self._add_device(device, "bridge", b"")

    def add_address(self, device: str, address: str) -> None:
        """Give a device an address with its prefix length, usable when this returns; without duplicate detection."""
        interface = ipaddress.ip_interface(address)
        self._request(_NEW_ADDRESS, _CREATE | _EXCLUSIVE, self._address(device, interface))
        if interface.version == 6:
            self._wait_for_address(device, interface.ip.packed)

    def remove_address(self, device: str, address: str) -> None:
        """Take an address from a device; with the last IPv4 address go all its IPv4 routes."""
        self._request(_DELETE_ADDRESS, 0, self._address(device, ipaddress.ip_interface(address)))

    def add_route(self, destination: str, device: str, *, via: str | None = None) -> None:
        """Add a route; `destination` is a prefix, `0.0.0.0/0` and `::/0` the defaults; the gateway need not be on a subnet."""
        network = ipaddress.ip_network(destination)
        scope = _SCOPE_LINK if via is None and network.version == 4 else _SCOPE_UNIVERSE
        flags = 0 if via is None else _ONLINK
        family = _family(network.version)
        body = _ROUTE.pack(family, network.prefixlen, 0, 0, _MAIN_TABLE, _STATIC, scope, _UNICAST, flags)
        if network.prefixlen:
            body += _attribute(_RTA_DESTINATION, network.network_address.packed)
        if via is not None:
            body += _attribute(_RTA_GATEWAY, ipaddress.ip_address(via).packed)
        body += _attribute(_RTA_OUTPUT, struct.pack("=i", self._index(device)))
        self._request(_NEW_ROUTE, _CREATE | _EXCLUSIVE, body)

    def _address(self, device: str, interface: ipaddress.IPv4Interface | ipaddress.IPv6Interface) -> bytes:
        flags = _IFA_PERMANENT | (_IFA_NO_DAD if interface.version == 6 else 0)
        header = _ADDRESS.pack(_family(interface.version), interface.network.prefixlen, flags, 0, self._index(device))
        packed = interface.ip.packed
        return header + _attribute(_IFA_ADDRESS, packed) + _attribute(_IFA_LOCAL, packed)

    def _wait_for_address(self, device: str, packed: bytes) -> None:
        """Wait until an IPv6 address is in use.

        The kernel puts it into use in a worker of its own, some time after it has accepted the request; a neighbour's
        question that comes in between is answered a second later only.  The news of it is sent while that worker holds
        the lock which the next request takes.
        """
        sought = (self._index(device), packed)
        while sought not in _addresses(self._news.recv(65536)):
            pass
        self.settle(device)

    def _add_device(self, device: str, kind: str, data: bytes) -> None:
        info = _attribute(_IFLA_LINKINFO, _attribute(_INFO_KIND, kind.encode()) + data)
        self._request(_NEW_LINK, _CREATE | _EXCLUSIVE, _LINK.pack(0, 0, 0, 0, 0) + _name(device) + info)

    def _index(self, device: str) -> int:
        if device not in self._indices:
            replies = self._request(_GET_LINK, 0, _LINK.pack(0, 0, 0, 0, 0) + _name(device))
            self._indices[device] = _LINK.unpack_from(replies[0])[2]
        return self._indices[device]

    def _request(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        self._sequence += 1
        try:
            return exchange(self._socket, kind, flags, body, self._sequence)
        except OSError as error:
            raise OSError(error.errno, f"rtnetlink message {kind} in {self._name}: {error.strerror}") from error


def open_netlink(protocol: int, groups: int = 0) -> socket.socket:
    """Return a netlink socket of the calling thread's namespace, subscribed to groups of news."""
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    connection.bind((0, groups))
    return connection


def exchange(connection: socket.socket, kind: int, flags: int, body: bytes, sequence: int = 1) -> list[bytes]:
    """Send one request and return the bodies of its replies; none if there is only the acknowledgement.

    Raises:
        OSError: The kernel refuses it.
    """
    size = _HEADER.size + len(body)
    connection.send(_HEADER.pack(size, kind, flags | _REQUEST | _ACKNOWLEDGE, sequence, 0) + body)
    replies: list[bytes] = []
    while True:
        for kind, answered, message in _messages(connection.recv(65536)):
            if answered != sequence:
                continue
            if kind in (_MESSAGE_ERROR, _MESSAGE_DONE):
                _check(message)
                return replies
            replies.append(message)


def _messages(received: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, sequence number and body of each message."""
    while received:
        size, kind, _, sequence, _ = _HEADER.unpack_from(received)
        yield kind, sequence, received[_HEADER.size : size]
        received = received[(size + 3) & ~3 :]


def _addresses(news: bytes) -> set[tuple[int, bytes]]:
    """Return the addresses, each with the index of its device, that have come into use."""
    size = _ADDRESS.size + 4
    return {
        (_ADDRESS.unpack_from(message)[4], message[size : size + 16])  # the address is the first attribute
        for kind, _, message in _messages(news)
        if kind == _NEW_ADDRESS
    }


def _check(acknowledgement: bytes) -> None:
    error = -int(struct.unpack_from("=i", acknowledgement)[0])
    if error:
        raise OSError(error, os.strerror(error))


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def _name(device: str) -> bytes:
    return _attribute(_IFLA_IFNAME, device.encode() + b"\0")
