"""Options of sockets, and what a system without them does."""

from __future__ import annotations

import socket

import pytest

from p2ptunnel.net import sockets
from p2ptunnel.net.sockets import (
    can_open_low,
    family_of,
    forbid_fragments,
    get_ttl,
    is_loopback,
    is_sendable,
    keep_alive,
    limit_segments,
    set_min_ttl,
    set_ttl,
    share_port,
    socket_address,
    syn_repeats,
    unacknowledged_bytes,
    widen_receiving,
)
from p2ptunnel.types import Address

MTU_DISCOVER = {socket.AF_INET: (socket.IPPROTO_IP, 10), socket.AF_INET6: (socket.IPPROTO_IPV6, 23)}
MIN_TTL = {socket.AF_INET: (socket.IPPROTO_IP, 21), socket.AF_INET6: (socket.IPPROTO_IPV6, 73)}


@pytest.mark.parametrize(
    ("host", "family"),
    [
        ("192.0.2.1", socket.AF_INET),
        ("2001:db8::1", socket.AF_INET6),
        ("fe80::1%eth0", socket.AF_INET6),
        ("::ffff:192.0.2.1", socket.AF_INET6),
        ("", None),
        ("localhost", None),
        ("192.0.2", None),
        ("192.0.2.1%eth0", None),
        ("192.0.2.1\0", None),
        ("[::1]", None),
        ("\ud800", None),
    ],
)
def test_only_a_numeric_host_has_a_family(host: str, family: socket.AddressFamily | None) -> None:
    assert family_of(host) == family


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("192.0.2.1", 1), True),
        (("192.0.2.1", 65535), True),
        (("192.0.2.1", 0), False),
        (("192.0.2.1", 65536), False),
        (("2001:db8::1", 1), False),
        (("host.example", 1), False),
    ],
)
def test_address_that_a_socket_can_be_pointed_at(address: Address, expected: bool) -> None:
    assert is_sendable(address, socket.AF_INET) is expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("127.example", False), ("192.0.2.1", False)],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_ttl_is_set_and_read(family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        set_ttl(sock, 7)
        assert get_ttl(sock) == 7
        with pytest.raises(OSError, match="Invalid argument"):
            set_ttl(sock, 256)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_lowest_accepted_ttl_is_set(family: socket.AddressFamily) -> None:
    with socket.socket(family) as sock:
        set_min_ttl(sock, 2)
        assert sock.getsockopt(*MIN_TTL[family]) == 2


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_path_mtu_is_probed_and_no_icmp_believed(family: socket.AddressFamily) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        forbid_fragments(sock)
        assert sock.getsockopt(*MTU_DISCOVER[family]) == 3


def test_dead_peer_is_found_idle_and_with_data_under_way() -> None:
    with socket.socket() as sock:
        keep_alive(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [15, 5, 3, 10_000]


def test_system_without_the_options_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TCP_KEEPIDLE", "TCP_USER_TIMEOUT", "TCP_MAXSEG"):
        monkeypatch.delattr(socket, name)
    monkeypatch.setattr(sockets, "LINUX", False)
    monkeypatch.setattr(sockets, "_SO_REUSEPORT", None)
    monkeypatch.setattr(sockets, "_TCP_INFO", None)
    with socket.socket() as sock:
        before = sock.getsockopt(*MTU_DISCOVER[socket.AF_INET])
        keep_alive(sock)
        limit_segments(sock, 1200)
        forbid_fragments(sock)
        share_port(sock)
        assert sock.getsockopt(*MTU_DISCOVER[socket.AF_INET]) == before
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
        assert syn_repeats(sock) is None
    assert not can_open_low()


def test_segments_that_the_system_does_not_limit_are_no_error() -> None:
    with socket.socket() as sock:
        limit_segments(sock, 1)
        unlimited = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        limit_segments(sock, 1200)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == 1200
        limit_segments(sock, 0)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == unlimited != 1200


@pytest.mark.parametrize("is_linux", [True, False])
def test_more_may_wait_to_be_read(monkeypatch: pytest.MonkeyPatch, is_linux: bool) -> None:
    monkeypatch.setattr(sockets, "LINUX", is_linux)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        widen_receiving(sock, before + 4096)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > before


def test_what_has_not_been_acknowledged_is_counted_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as near:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        with far:
            assert unacknowledged_bytes(far) == 0
            far.setblocking(False)
            written = far.send(b"x" * 2**20)
            left = unacknowledged_bytes(far)
            assert left is not None
            assert 0 < left <= written
            while written:
                written -= len(near.recv(written))
            while unacknowledged_bytes(far):  # the last acknowledgement may come a little later
                pass
            assert unacknowledged_bytes(listener) is None  # it has no other end
            monkeypatch.setattr(sockets, "LINUX", False)
            assert unacknowledged_bytes(far) is None


def test_a_zone_is_a_number_to_a_socket() -> None:
    assert socket_address(("192.0.2.1", 7)) == ("192.0.2.1", 7)
    assert socket_address(("2001:db8::1", 7)) == ("2001:db8::1", 7)
    assert socket_address(("fe80::1%lo", 7)) == ("fe80::1", 7, 0, socket.if_nametoindex("lo"))
    with pytest.raises(OSError, match="interface"):
        socket_address(("fe80::1%none", 7))
