"""Words for what an attempt did."""

from __future__ import annotations

import socket

import pytest

from p2ptunnel.net.dial import DialRecord
from p2ptunnel.traversal.report import ConnectedBy, attempt_lines, path_of
from p2ptunnel.types import Address

TARGET: Address = ("198.51.100.7", 40001)


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            DialRecord(TARGET, None, 10.0, 11.26, "refused", "Connection refused, 7 times"),
            "198.51.100.7:40001 SYN: Connection refused, 7 times after 1.3 s",
        ),
        (
            DialRecord(TARGET, 2, 10.0, 10.3, "replaced", "given up"),
            "198.51.100.7:40001 SYN with TTL 2: given up after 0.3 s",
        ),
        (
            DialRecord(("2001:db8::7", 40001), None, 10.0, 20.0, "silent", "no answer in 10 s"),
            "[2001:db8::7]:40001 SYN: no answer in 10 s after 10.0 s",
        ),
        (DialRecord(TARGET, None, 10.0, None, None, ""), "198.51.100.7:40001 SYN: no answer yet"),
    ],
)
def test_a_dial_is_one_line(record: DialRecord, line: str) -> None:
    assert attempt_lines([record]) == (line,)


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
