"""T29: what another user of the same machine gets of a punched port: nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Generator

import pytest

from p2ptunnel.errors import BindError
from p2ptunnel.net.dial import punch_socket
from p2ptunnel.net.udp import UdpSocket
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.port import take_number

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can be another user for a moment"
)
NOBODY = 65534
HOST = "127.0.0.1"


@contextlib.contextmanager
def somebody_else() -> Generator[None]:
    """Be another user: sockets belong to whoever makes them."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def taken(kind: socket.SocketKind, port: int, *options: int) -> socket.socket | None:
    """Try to have the port with these options set; return the socket that has it."""
    sock = socket.socket(socket.AF_INET, kind)
    for option in options:
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        sock.bind((HOST, port))
    except OSError:
        sock.close()
        return None
    return sock


SHARING = [(), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)]


@pytest.mark.parametrize("options", SHARING, ids=["alone", "reuseaddr", "reuseport", "both"])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
def test_nobody_else_shares_a_punched_port(kind: socket.SocketKind, options: tuple[int, ...]) -> None:
    udp, reserved = take_number(HOST, Tracer())
    try:
        with somebody_else():
            stolen = taken(kind, udp.address[1], *options)
        if stolen is not None:
            stolen.close()
        assert stolen is None
    finally:
        udp.close()
        reserved.close()


def test_we_share_it_with_ourselves() -> None:
    """Else nothing above would say anything: it is the user that makes the difference."""
    udp, reserved = take_number(HOST, Tracer())
    second, third = UdpSocket(udp.address), punch_socket(udp.address)
    for sock in (second, third, udp, reserved):
        sock.close()


def test_what_another_user_offers_to_share_we_do_not_take() -> None:
    with somebody_else():
        theirs = taken(socket.SOCK_DGRAM, 0, socket.SO_REUSEADDR, socket.SO_REUSEPORT)
    assert theirs is not None
    with theirs, pytest.raises(BindError, match="Address already in use"):
        UdpSocket(theirs.getsockname()).close()
