"""News of rtnetlink: which ones concern us, and what becomes of a flood of them."""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from p2ptunnel.net import netlink
from p2ptunnel.net.netlink import Route, find_route, interface_addresses, open_news, take_news

NEW_LINK, DEL_LINK, NEW_ADDRESS, DEL_ADDRESS, NEW_ROUTE, DEL_ROUTE, NEW_NEIGHBOUR = 16, 17, 20, 21, 24, 25, 28


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Where news are told, and where they are taken."""
    teller, news = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    news.setblocking(False)
    with teller, news:
        yield teller, news


def message(kind: int, prefix: int = 0) -> bytes:
    return struct.pack("=IHHIIBBxxxxxxxxxx", 28, kind, 0, 0, 0, socket.AF_INET, prefix)


@pytest.mark.parametrize(
    ("kind", "prefix", "expected"),
    [
        (NEW_LINK, 0, True),
        (DEL_LINK, 0, True),
        (NEW_ADDRESS, 24, True),
        (DEL_ADDRESS, 24, True),
        (NEW_ROUTE, 0, True),
        (DEL_ROUTE, 0, True),
        (NEW_ROUTE, 1, True),  # half the internet: a VPN's
        (NEW_ROUTE, 24, False),
        (DEL_ROUTE, 128, False),
        (NEW_NEIGHBOUR, 0, False),
    ],
)
def test_addresses_links_and_default_routes_concern_us(
    ends: tuple[socket.socket, socket.socket], kind: int, prefix: int, expected: bool
) -> None:
    teller, news = ends
    teller.send(message(NEW_ROUTE, 32) + message(kind, prefix) + message(NEW_ROUTE, 32))
    assert take_news(news) is expected
    assert not take_news(news)


def test_one_that_concerns_us_is_not_forgotten_for_those_behind_it(ends: tuple[socket.socket, socket.socket]) -> None:
    teller, news = ends
    for kind in (NEW_ADDRESS, NEW_NEIGHBOUR):
        teller.send(message(kind))
    assert take_news(news)


@pytest.mark.parametrize("data", [b"", b"\x01", bytes(16), struct.pack("=IHHII", 16, NEW_ROUTE, 0, 0, 0)])
def test_damaged_news_are_no_news(ends: tuple[socket.socket, socket.socket], data: bytes) -> None:
    teller, news = ends
    teller.send(data)
    assert not take_news(news)


def test_a_flood_is_taken_in_portions(ends: tuple[socket.socket, socket.socket]) -> None:
    teller, news = ends
    news.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    teller.setblocking(False)
    told = 0
    while told < 1000 and select.select([], [teller], [], 0)[1]:
        try:
            teller.send(message(NEW_NEIGHBOUR))
        except BlockingIOError:
            break
        told += 1
    portions = 0
    while select.select([news], [], [], 0)[0]:
        assert not take_news(news)
        portions += 1
    assert portions == -(-told // netlink._NEWS_BATCH)


class Lossy(socket.socket):
    """A news socket whose queue has overflown, or that fails."""

    def __init__(self, error: int) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.setblocking(False)
        self._errors = [error]

    def recv(self, *arguments: int) -> bytes:
        if self._errors:
            raise OSError(self._errors.pop(), "")
        return super().recv(*arguments)


def test_lost_news_may_concern_us() -> None:
    with Lossy(errno.ENOBUFS) as news:
        assert take_news(news)


def test_broken_news_are_an_error() -> None:
    with Lossy(errno.EBADF) as news, pytest.raises(OSError, match=str(errno.EBADF)):
        take_news(news)


def test_loopback_is_found_by_its_device() -> None:
    assert find_route("127.0.0.1") == Route("lo", "")
    assert str(find_route("127.0.0.1")) == "lo"
    assert str(Route("eth0", "192.0.2.1")) == "192.0.2.1 on eth0"


def test_route_over_a_device_that_is_gone_keeps_its_number() -> None:
    body = struct.pack("=8xI", 0) + struct.pack("=HHI", 8, 4, 999_999)
    assert netlink._route(body) == Route("device 999999", "")


def test_branch_over_a_link_that_is_down_is_passed() -> None:
    def branch(flags: int, device: int) -> bytes:
        gateway = struct.pack("=HH4s", 8, 5, bytes([192, 0, 2, device % 256]))
        return struct.pack("=HBBi", 8 + len(gateway), flags, 0, device) + gateway

    branches = branch(0x10, 999_998) + branch(0x01, 999_997) + branch(0, 999_999)
    body = struct.pack("=8xI", 0) + struct.pack("=HH", 4 + len(branches), 9) + branches
    found = netlink._route(body)
    assert found is not None
    assert found.gateway == "192.0.2.63"


def test_system_without_rtnetlink_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink, "LINUX", False)
    for ask in (open_news, interface_addresses, lambda: find_route("192.0.2.1")):
        with pytest.raises(OSError, match="not supported"):
            ask()


class Forbidden(socket.socket):
    """A socket that may not be bound."""

    def bind(self, address: object) -> None:
        raise PermissionError(errno.EACCES, "forbidden")


def test_news_that_are_forbidden_leave_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    forbidden = Forbidden(socket.AF_UNIX, socket.SOCK_DGRAM)
    monkeypatch.setattr(netlink, "_open", lambda: forbidden)
    with pytest.raises(PermissionError):
        open_news()
    assert forbidden.fileno() < 0
