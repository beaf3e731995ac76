"""The sockets of one service: for each family that it is reached over one of UDP and one of TCP, all on one port."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from p2ptunnel.defaults import FLOOD_ROOM_BYTES
from p2ptunnel.errors import AddressInUseError, BindError
from p2ptunnel.net.filter import attach_filter
from p2ptunnel.net.sockets import widen_receiving
from p2ptunnel.net.udp import UdpSocket
from p2ptunnel.server.listening import bind_error, listening_socket
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address

__all__ = ["Door", "open_doors"]

_PORT_TRIES: Final = 16


class Door(msgspec.Struct, frozen=True):
    """One address of a service."""

    udp: UdpSocket
    listener: socket.socket

    def close(self) -> None:
        """Close both; closing twice is fine."""
        self.udp.close()
        self.listener.close()


def open_doors(addresses: Sequence[Address], trace: Tracer, *, is_dialled_from: bool = False) -> tuple[Door, ...]:
    """Bind UDP and TCP to each address; with the port 0, to the same one everywhere, trying until one is free.

    The first one's UDP socket sends and receives for all.

    Args:
        addresses: One or two, of different families; the hosts are numeric, and a port 0 stands for the first one's.
        trace: Told of what the system refuses.
        is_dialled_from: Whether connections are to be made from the same port.

    Raises:
        AddressInUseError: Another program has the port.
        BindError: An address is not ours.
        InvalidAddressError: A host is not numeric.
    """
    tries = 1 if addresses[0][1] else _PORT_TRIES
    for _ in range(tries - 1):
        with contextlib.suppress(AddressInUseError):
            return _open_once(addresses, trace, is_dialled_from=is_dialled_from)
    return _open_once(addresses, trace, is_dialled_from=is_dialled_from)


def _open_once(addresses: Sequence[Address], trace: Tracer, *, is_dialled_from: bool) -> tuple[Door, ...]:
    with contextlib.ExitStack() as undo:
        doors: list[Door] = []
        for host, port in addresses:
            port = port or (doors[0].udp.address[1] if doors else 0)
            doors.append(_door((host, port), trace, is_dialled_from=is_dialled_from))
            undo.callback(doors[-1].close)
        for beside in doors[1:]:
            doors[0].udp.join(beside.udp)
        undo.pop_all()
        return tuple(doors)


def _door(address: Address, trace: Tracer, *, is_dialled_from: bool) -> Door:
    try:
        udp = UdpSocket(address, shared=False, tracer=trace)
    except BindError as error:
        raise bind_error(address, error.__cause__, error.reason) from error
    try:
        attach_filter(udp.socket)
        widen_receiving(udp.socket, FLOOD_ROOM_BYTES)
        return Door(udp, listening_socket(udp.address, is_dialled_from=is_dialled_from))
    except OSError as error:
        udp.close()
        raise bind_error(udp.address, error, error.strerror or str(error)) from error
