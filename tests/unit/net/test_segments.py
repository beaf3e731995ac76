"""Many datagrams in one system call: they arrive as they are, and where that cannot be, they go one by one."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.net import udp
from p2ptunnel.net.segments import bursts, send_segments
from p2ptunnel.net.udp import UdpSocket
from p2ptunnel.types import Address

LOOPBACK = ("127.0.0.1", 0)
SIZES = st.lists(st.sampled_from([1, 29, 1199, 1200]), max_size=200)


@given(SIZES)
def test_a_portion_is_of_one_length_but_for_its_last_and_fits_into_one_packet(sizes: list[int]) -> None:
    datagrams = [bytes(size) for size in sizes]
    portions = list(bursts(datagrams))
    assert [datagram for portion in portions for datagram in portion] == datagrams
    for portion in portions:
        assert {len(datagram) for datagram in portion[:-1]} <= {len(portion[0])}
        assert len(portion[-1]) <= len(portion[0])
        assert 1 <= len(portion) <= 64
        assert sum(map(len, portion)) <= 65_000


def test_full_datagrams_and_a_rest_go_in_one_portion() -> None:
    assert [len(portion) for portion in bursts([bytes(1200)] * 16 + [b"rest"])] == [17]
    assert [len(portion) for portion in bursts([b"ack", bytes(1200), bytes(1200)])] == [1, 2]


def received(sock: UdpSocket) -> list[bytes]:
    sock.socket.setblocking(True)
    sock.socket.settimeout(5)
    came: list[bytes] = []
    while not came or came[-1] != b"the last":
        came.append(sock.socket.recv(2048))
    return came


def test_what_is_sent_together_arrives_apart() -> None:
    near, far = UdpSocket(LOOPBACK), UdpSocket(LOOPBACK)
    datagrams = [bytes([number]) * 1200 for number in range(40)] + [b"the last"]
    near.send_all(datagrams, far.address)
    assert received(far) == datagrams
    assert (near.sent, near.send_failures) == (41, 0)
    near.close()
    far.close()


def test_where_the_kernel_refuses_they_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(sock: socket.socket, burst: Sequence[bytes], destination: Address) -> bool:
        raise OSError(errno.EIO, "no checksum here")

    for refusal in (refuse, lambda *_: False):
        monkeypatch.setattr(udp, "send_segments", refusal)
        near, far = UdpSocket(LOOPBACK), UdpSocket(LOOPBACK)
        near.send_all([bytes(1200), bytes(1200), b"the last"], far.address)
        assert received(far) == [bytes(1200), bytes(1200), b"the last"]
        assert (near.sent, near.send_failures) == (3, 0)
        near.close()
        far.close()


def test_what_a_full_buffer_does_not_take_is_counted_and_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(sock: socket.socket, burst: Sequence[bytes], destination: Address) -> bool:
        raise BlockingIOError

    monkeypatch.setattr(udp, "send_segments", full)
    near = UdpSocket(LOOPBACK)
    near.send_all([bytes(1200)] * 3, near.address)
    assert (near.sent, near.send_failures) == (0, 3)
    near.close()


def test_an_address_of_another_family_is_refused_for_each() -> None:
    near = UdpSocket(LOOPBACK)
    near.send_all([bytes(1200)] * 3, ("::1", 9))
    assert (near.sent, near.send_failures) == (0, 3)
    near.close()


@pytest.mark.skipif(not hasattr(socket, "AF_NETLINK"), reason="segments are Linux's")
def test_a_burst_is_one_system_call() -> None:
    near, far = UdpSocket(LOOPBACK), UdpSocket(LOOPBACK)
    assert send_segments(near.socket, [bytes(1200)] * 3 + [b"the last"], far.address) is True
    assert received(far) == [bytes(1200)] * 3 + [b"the last"]
    near.close()
    far.close()


def test_a_duplicate_is_open_until_both_are_closed() -> None:
    near, far = UdpSocket(LOOPBACK), UdpSocket(LOOPBACK)
    twin = near.duplicate()
    near.close()
    assert near.is_closed
    assert not twin.is_closed
    twin.send(b"the last", far.address)
    assert received(far) == [b"the last"]
    twin.close()
    far.close()
