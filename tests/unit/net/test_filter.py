"""The kernel's filter: what passes it, over IPv4 and IPv6."""

from __future__ import annotations

import socket

import pytest

from p2ptunnel.net.filter import attach_filter, attach_neighbour_filter
from p2ptunnel.wire.stun import encode_request, encode_response

STUN = encode_request(bytes(12))
BARE_STUN = bytes.fromhex("000100002112a442") + bytes(12)


def passes(data: bytes, host: str) -> bool:
    """Send `data` to a filtered socket, behind it something that passes, and see which comes first."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as filtered, socket.socket(family, socket.SOCK_DGRAM) as sender:
        filtered.bind((host, 0))
        filtered.settimeout(5)
        assert attach_filter(filtered)
        sender.sendto(data, filtered.getsockname())
        sender.sendto(b'{"t":30,"last":1}', filtered.getsockname())
        return filtered.recv(2048) == data


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(
    "data",
    [b'{"t":30}', b"{" + bytes(1199), STUN, BARE_STUN],
    ids=["shortest of the seed's", "longest", "STUN", "bare STUN"],
)
def test_what_is_ours_passes(data: bytes, host: str) -> None:
    assert passes(data, host)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"t":3}',
        b"{" + bytes(1200),
        b"[" + bytes(99),
        b' {"t":30}',
        bytes(100),
        STUN[:7],
        bytes.fromhex("000100002112a443") + bytes(12),
        encode_response(bytes(12), ("192.0.2.1", 9)),
        b"\xff" * 100,
    ],
    ids=["empty", "7 bytes", "1201 bytes", "array", "space", "zeros", "short STUN", "other cookie", "STUN answer", "noise"],
)
def test_what_is_not_ours_never_wakes_us(data: bytes, host: str) -> None:
    assert not passes(data, host)


def test_elsewhere_than_on_linux_there_is_no_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2ptunnel.net.filter.LINUX", False)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert attach_filter(sock) is False
    assert not attach_neighbour_filter(socket.socket.__new__(socket.socket))


def test_neighbours_pass_the_filter_of_neighbours() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as filtered, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as near:
        filtered.bind(("127.0.0.1", 0))
        filtered.settimeout(5)
        assert attach_neighbour_filter(filtered)
        near.sendto(b"hello", filtered.getsockname())
        assert filtered.recv(100) == b"hello"
