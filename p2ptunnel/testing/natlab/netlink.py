"""The kernel's interface for network configuration, as far as the laboratory needs it; no program is started.

Source: rtnetlink(7), netlink(7), linux/rtnetlink.h, linux/if_link.h, linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from typing import Final

__all__ = ["Netlink", "forget_connections"]

_REQUEST, _ACKNOWLEDGE, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x200, 0x400
_NEW_LINK, _GET_LINK, _NEW_ADDRESS, _NEW_ROUTE = 16, 18, 20, 24
_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_CONNTRACK_DELETE: Final = (1 << 8) | 2
_MESSAGE_ERROR: Final = 2
_IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 4, 10, 18, 28
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
        self._socket = _connect(_NETLINK_ROUTE)
        self._sequence = 0
        self._indices: dict[str, int] = {}

    def close(self) -> None:
        """Close the socket; closing twice is fine."""
        self._socket.close()

    def set_up(self, device: str, *, mtu_bytes: int | None = None, bridge: str | None = None) -> None:
        """Bring a device up, with an MTU, as a port of a bridge."""
        attributes = b""
        if mtu_bytes is not None:
            attributes += _attribute(_IFLA_MTU, struct.pack("=I", mtu_bytes))
        if bridge is not None:
            attributes += _attribute(_IFLA_MASTER, struct.pack("=I", self._index(bridge)))
        self._request(_NEW_LINK, 0, _LINK.pack(0, 0, self._index(device), _UP, _UP) + attributes)

    def set_down(self, device: str) -> None:
        """Take a device down; its routes go."""
        self._request(_NEW_LINK, 0, _LINK.pack(0, 0, self._index(device), 0, _UP))

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
        """Give a device an address with its prefix length; IPv6 is usable at once, without duplicate detection."""
        interface = ipaddress.ip_interface(address)
        flags = _IFA_PERMANENT | (_IFA_NO_DAD if interface.version == 6 else 0)
        header = _ADDRESS.pack(_family(interface.version), interface.network.prefixlen, flags, 0, self._index(device))
        packed = interface.ip.packed
        body = header + _attribute(_IFA_ADDRESS, packed) + _attribute(_IFA_LOCAL, packed)
        self._request(_NEW_ADDRESS, _CREATE | _EXCLUSIVE, body)

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

    def _add_device(self, device: str, kind: str, data: bytes) -> None:
        info = _attribute(_IFLA_LINKINFO, _attribute(_INFO_KIND, kind.encode()) + data)
        self._request(_NEW_LINK, _CREATE | _EXCLUSIVE, _LINK.pack(0, 0, 0, 0, 0) + _name(device) + info)

    def _index(self, device: str) -> int:
        if device not in self._indices:
            reply = self._request(_GET_LINK, 0, _LINK.pack(0, 0, 0, 0, 0) + _name(device))
            self._indices[device] = _LINK.unpack_from(reply)[2]
        return self._indices[device]

    def _request(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        try:
            return _exchange(self._socket, kind, flags, body, self._sequence)
        except OSError as error:
            raise OSError(error.errno, f"rtnetlink message {kind} in {self._name}: {error.strerror}") from error


def forget_connections() -> None:
    """Empty the connection tracking table of the calling thread's namespace.

    Raises:
        OSError: The kernel has no connection tracking.
    """
    with _connect(_NETLINK_NETFILTER) as connection:
        _exchange(connection, _CONNTRACK_DELETE, 0, struct.pack("=BBH", socket.AF_UNSPEC, 0, 0), 1)


def _connect(protocol: int) -> socket.socket:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    connection.bind((0, 0))
    return connection


def _exchange(connection: socket.socket, kind: int, flags: int, body: bytes, sequence: int) -> bytes:
    """Send one request and return the body of its reply, empty if there is only the acknowledgement."""
    size = _HEADER.size + len(body)
    connection.send(_HEADER.pack(size, kind, flags | _REQUEST | _ACKNOWLEDGE, sequence, 0) + body)
    reply = b""
    while True:
        received = connection.recv(65536)
        while received:
            size, kind, _, answered, _ = _HEADER.unpack_from(received)
            message, received = received[_HEADER.size : size], received[(size + 3) & ~3 :]
            if answered != sequence:
                continue
            if kind == _MESSAGE_ERROR:
                _check(message)
                return reply
            reply = message


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
