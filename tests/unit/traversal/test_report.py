"""Words for what an attempt did."""

from __future__ import annotations

import socket

import pytest

from p2ptunnel.traversal.report import ConnectedBy, path_of
from p2ptunnel.types import Address

TARGET: Address = ("198.51.100.7", 40001)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("connect", "our SYN reached it"),
        ("opener", "a SYN of ours with low TTL opened the way for it"),
        ("accept", "its SYN reached our listener"),
    ],
)
def test_a_path_says_how_it_came_to_be(how: ConnectedBy, why: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        path = path_of(sock, server.getsockname(), how, 0.25)
        assert (path.kind, path.transport, path.why, path.rtt) == ("lan", "tcp", why, 0.25)
        assert (path.local, path.remote) == (sock.getsockname(), server.getsockname())


def test_behind_a_router_it_is_direct_and_no_lan() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert path_of(sock, TARGET, "connect").kind == "direct"
