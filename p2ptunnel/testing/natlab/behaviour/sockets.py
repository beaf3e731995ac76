"""The prober's sockets: on both sides of a NAT, all closed at the end of one block."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import select
import socket
import struct
from typing import Final, Literal, TypeAlias

from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.types import Address

__all__ = ["ANSWER_TIME", "Answer", "Bench", "accept", "address_of", "answer_to", "is_ready", "receive"]

Answer: TypeAlias = Literal["open", "rst", "drop"]

ANSWER_TIME: Final = 0.4
"""Seconds after which silence counts as an answer; below 1.0, when the kernel repeats a SYN."""

_SO_ATTACH_FILTER: Final = 26
_RETURN_NOTHING: Final = struct.pack("=HBBI", 0x06, 0, 0, 0)


class Bench(contextlib.ExitStack):
    """Makes sockets and closes them when its block ends."""

    def udp(self, host: Host, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
        """Return a bound UDP socket that does not block."""
        return self._bound(host.socket(socket.AF_INET, socket.SOCK_DGRAM), (address, port))

    def tcp(self, host: Host, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
        """Return a bound TCP socket that does not block and shares its port."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = host.socket(family, socket.SOCK_STREAM)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            made.setsockopt(socket.SOL_SOCKET, option, 1)
        return self._bound(made, (address, port))

    def listener(self, host: Host, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
        """Return a listening socket that shares its port."""
        made = self.tcp(host, address, port)
        made.listen(16)
        return made

    def udp_observers(self, server: Host) -> tuple[socket.socket, ...]:
        """Return UDP sockets at address 1 port 1, address 1 port 2, address 2 port 1, address 2 port 2."""
        return self._observers(server, socket.SOCK_DGRAM)

    def tcp_observers(self, server: Host) -> tuple[socket.socket, ...]:
        """Return listening TCP sockets at the same four."""
        observers = self._observers(server, socket.SOCK_STREAM)
        for observer in observers:
            observer.listen(16)
        return observers

    def swallower(self, host: Host, address: str) -> Address:
        """Return an address that answers a SYN with nothing at all, while others may still connect from it."""
        made = self.tcp(host, address)
        code = ctypes.create_string_buffer(_RETURN_NOTHING)
        program = struct.pack("@HP", 1, ctypes.addressof(code))
        made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        made.listen(16)
        return address_of(made)

    def _observers(self, server: Host, kind: socket.SocketKind) -> tuple[socket.socket, ...]:
        one, other_address = self._twins(server, kind)
        first, second = (
            self._bound(server.socket(socket.AF_INET, kind), (address, 0)) for address in (server.ips[0], server.ips[1])
        )
        return one, first, other_address, second

    def _twins(self, server: Host, kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
        """Return sockets with one port, which nobody else has, at both addresses of the server."""
        while True:
            one = self._bound(server.socket(socket.AF_INET, kind), (server.ips[0], 0))
            try:
                return one, self._bound(server.socket(socket.AF_INET, kind), (server.ips[1], address_of(one)[1]))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:  # else another prober has it at the second address
                    raise

    def _bound(self, made: socket.socket, address: Address) -> socket.socket:
        self.enter_context(made)
        made.bind(address)
        made.setblocking(False)
        return made


def is_ready(waited_for: socket.socket, event: int, seconds: float) -> bool:
    """Wait until a socket can be read or written, or has failed; False if the time is over."""
    poll = select.poll()
    poll.register(waited_for, event)
    return bool(poll.poll(seconds * 1000))


def address_of(bound: socket.socket) -> Address:
    """Return host and port of a bound socket."""
    host, port = bound.getsockname()[:2]
    return (str(host), int(port))


def receive(receiver: socket.socket, seconds: float = ANSWER_TIME) -> tuple[bytes, Address] | None:
    """Return the next datagram and its source, or None if there is none in time."""
    if not is_ready(receiver, select.POLLIN, seconds):
        return None
    try:
        data, (host, port) = receiver.recvfrom(2048)
    except ConnectionRefusedError:  # an ICMP error came instead
        return None
    return data, (str(host), int(port))


def answer_to(opener: socket.socket, destination: Address, seconds: float = ANSWER_TIME) -> Answer:
    """Connect and return what came back.

    Raises:
        OSError: Neither a connection, nor a RST, nor nothing.
    """
    opener.connect_ex(destination)
    if not is_ready(opener, select.POLLOUT, seconds):
        return "drop"
    error = opener.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error == errno.ECONNREFUSED:
        return "rst"
    if error:
        raise OSError(error, f"connecting to {destination[0]}: {errno.errorcode[error]}")
    return "open"


def accept(listener: socket.socket, seconds: float = ANSWER_TIME) -> tuple[socket.socket, Address]:
    """Return the next connection and where it comes from.

    Raises:
        TimeoutError: None came in time.
    """
    if not is_ready(listener, select.POLLIN, seconds):
        raise TimeoutError("a connection that was opened did not arrive")
    connection, source = listener.accept()
    return connection, (str(source[0]), int(source[1]))
