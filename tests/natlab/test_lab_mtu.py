"""Narrow lines: their MTU is found by whoever asks too much of them, and where ICMP is off nobody hears of it."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Iterator

import pytest

from p2ptunnel.testing.natlab import Host, Lab, Site

PATIENCE = 10.0
SILENCE = 0.5
MTU = 1300
IP_MTU, IP_MTU_DISCOVER, IP_PMTUDISC_DO = 14, 10, 2
SO_RCVBUFFORCE = 33
"""Of linux/in.h and asm/socket.h; the socket module does not have them all."""


@contextlib.contextmanager
def connection(
    lab: Lab, host: Host, family: socket.AddressFamily = socket.AF_INET
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection from a host to the server, and the server's end of it."""
    address = lab.server.ip if family == socket.AF_INET else lab.server.ip6
    with lab.server.socket(family) as listener, host.socket(family) as near:
        listener.bind((address, 0))
        listener.listen()
        near.settimeout(PATIENCE)
        near.connect(listener.getsockname()[:2])
        far, _ = listener.accept()
        with far:
            far.settimeout(PATIENCE)
            yield near, far


def arrives(sender: socket.socket, receiver: socket.socket, size: int = 20_000) -> bool:
    """Tell whether bytes that fill many packets come through."""
    data = os.urandom(size)
    sender.sendall(data)
    came = b""
    while len(came) < size and (part := receiver.recv(size)):
        came += part
    return came == data


@pytest.mark.parametrize("kind", ["pub", "pr", "symR", "noSO", "dbl", "pr_cgn"])
def test_tcp_finds_a_narrow_line_both_ways(natlab: Lab, kind: str) -> None:
    site = natlab.site(kind, link=True)
    with connection(natlab, site.host) as (near, far):
        site.link(mtu=MTU)
        assert arrives(near, far)
        assert arrives(far, near)
        assert far.getsockopt(socket.IPPROTO_IP, IP_MTU) == MTU
    stats = site.stats()
    assert stats.lost_up > 0
    assert stats.lost_down > 0


def test_tcp_finds_a_narrow_line_over_ipv6(natlab: Lab) -> None:
    site = natlab.site("v6_drop", link=True)
    with connection(natlab, site.host, socket.AF_INET6) as (near, far):
        site.link(mtu=MTU)
        assert arrives(near, far)
        assert arrives(far, near)
    assert site.stats().lost_up > 0


@pytest.mark.parametrize("kind", ["pub", "pr", "noSO"])
def test_who_sends_too_large_a_datagram_is_told_what_would_pass(natlab: Lab, kind: str) -> None:
    site = natlab.site(kind, link=True)
    site.link(mtu=MTU)
    with site.host.socket(type=socket.SOCK_DGRAM) as near:
        near.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        near.connect((natlab.server.ip, 9))
        near.send(bytes(1400))
        assert wait_for_error(near) == errno.EMSGSIZE
        assert near.getsockopt(socket.IPPROTO_IP, IP_MTU) == MTU
        near.send(bytes(MTU - 28))
        assert site.stats().lost_up == 1


def wait_for_error(sock: socket.socket) -> int:
    poll = select.poll()
    poll.register(sock, 0)
    assert poll.poll(PATIENCE * 1000)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


@pytest.mark.parametrize("kind", ["pub", "pr", "noSO"])
def test_without_icmp_a_narrow_line_is_a_black_hole(natlab: Lab, kind: str) -> None:
    site = natlab.site(kind, link=True)
    with connection(natlab, site.host) as (near, far):
        site.link(mtu=MTU, icmp=False)
        near.sendall(bytes(20_000))
        assert select.select([far], [], [], SILENCE)[0] == []
        assert site.stats().lost_up > 0


def test_without_icmp_nobody_hears_of_a_closed_port(natlab: Lab) -> None:
    site = natlab.site("pr", link=True)
    with site.host.socket(type=socket.SOCK_DGRAM) as near:
        near.connect((natlab.server.ip, 9))
        near.send(b"?")
        assert wait_for_error(near) == errno.ECONNREFUSED
        site.link(icmp=False)
        near.send(b"?")
        assert select.select([near], [], [], SILENCE)[0] == []
    assert site.stats().lost_down == 1


@pytest.fixture
def site(natlab: Lab) -> Site:
    return natlab.site("pr", link=True)


def test_packets_arrive_twice_and_overtake_if_asked_to(natlab: Lab, site: Site) -> None:
    with site.host.socket(type=socket.SOCK_DGRAM) as near, natlab.server.socket(type=socket.SOCK_DGRAM) as far:
        far.bind((natlab.server.ip, 0))
        far.settimeout(PATIENCE)
        near.connect(far.getsockname())
        site.link("up", duplicate=1.0)
        near.send(b"a")
        assert [far.recv(10) for _ in range(2)] == [b"a", b"a"]
        site.link("up", duplicate=0.0, delay=0.1)
        near.send(b"late")
        site.link("up", reorder=1.0)
        near.send(b"early")
        assert [far.recv(10) for _ in range(2)] == [b"early", b"late"]


def test_packets_are_lost_in_bursts_if_asked_to(natlab: Lab, site: Site) -> None:
    with site.host.socket(type=socket.SOCK_DGRAM) as near, natlab.server.socket(type=socket.SOCK_DGRAM) as far:
        far.bind((natlab.server.ip, 0))
        far.settimeout(PATIENCE)
        far.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
        near.connect(far.getsockname())
        site.link("up", loss=0.25, burst=8.0)
        for number in range(1000):
            near.send(number.to_bytes(2))
            if number % 100 == 99:
                site.stats()  # answered when all of them are through: a device has a queue of 500
        site.link("up", loss=0.0)
        near.send(b"end")
        came = [int.from_bytes(data) for data in iter(lambda: far.recv(10), b"end")]
    gaps = [after - before - 1 for before, after in zip([-1, *came], [*came, 1000], strict=True) if after - before > 1]
    assert 50 < sum(gaps) < 500  # of a thousand; four deviations each way
    assert 4 < sum(gaps) / len(gaps) < 16
