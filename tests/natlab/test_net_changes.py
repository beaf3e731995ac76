"""Two machines on one cable, and two behind routers: what the kernel tells of changes, of connections, of segments."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from p2ptunnel.defaults import PUNCH_MSS_BYTES
from p2ptunnel.net.changes import NetworkChange, NetworkWatch, look_around
from p2ptunnel.net.netlink import Route, find_route
from p2ptunnel.net.tcp import Listener, dial, reset_close
from p2ptunnel.net.tcpinfo import TcpInfo, read_tcp_info
from p2ptunnel.testing.natlab import Host, Lab

LEFT, RIGHT, NETWORK = "10.77.0.1", "10.77.0.2", 24
PORT = 40000
TIMESTAMPS = 12  # bytes that every segment spends on them
PATIENCE = 10.0


@pytest.fixture
def cable() -> Iterator[tuple[Host, Host]]:
    """Two machines, a veth between them; the left one's default route leads over it."""
    with contextlib.ExitStack() as undo:
        left, right = (undo.enter_context(contextlib.closing(Host(name, ip))) for name, ip in (("l", LEFT), ("r", RIGHT)))
        left.namespace.netlink.add_cable("wire", right.namespace.descriptor, "wire")
        for host in (left, right):
            host.namespace.netlink.set_up("wire")
        for host in (left, right):
            host.namespace.netlink.settle("wire")
            host.namespace.netlink.add_address("wire", f"{host.ip}/{NETWORK}")
        left.namespace.netlink.add_route("0.0.0.0/0", "wire", via=RIGHT)
        yield left, right


# --- changes ----------------------------------------------------------------------------------------------------------


def changes_of(watched: Host, *steps: Iterable[str], acting: Host | None = None) -> list[tuple[str, float]]:
    """Run each step's commands of `ip` at once while a watch is on, and wait for the one change that it makes.

    Returns the text of each change, and after how many seconds it came.
    """

    async def main() -> list[tuple[str, float]]:
        told: asyncio.Queue[NetworkChange] = asyncio.Queue()
        watch = NetworkWatch(told.put_nowait)
        watch.start()
        try:
            found: list[tuple[str, float]] = []
            for step in steps:
                began = time.monotonic()
                await asyncio.to_thread((acting or watched).run, ["ip", "-batch", "-"], input="\n".join(step))
                change = await asyncio.wait_for(told.get(), PATIENCE)
                assert change.kind == "addresses"
                found.append((change.text, time.monotonic() - began))
            assert told.empty()
            return found
        finally:
            watch.close()

    return watched.thread(lambda: asyncio.run(main())).result(60)


def test_address_that_goes_and_comes_is_told_at_once(cable: tuple[Host, Host]) -> None:
    left, _ = cable
    gone, back = changes_of(
        left,
        [f"addr del {LEFT}/{NETWORK} dev wire"],
        [f"addr add {LEFT}/{NETWORK} dev wire", f"route add default via {RIGHT}"],
    )
    assert gone[0] == f"lost {LEFT}; no route by {RIGHT} on wire"
    assert back[0] == f"new {LEFT}; route by {RIGHT} on wire"
    assert max(gone[1], back[1]) < 1.0


def test_address_exchanged_in_one_burst_is_one_change(cable: tuple[Host, Host]) -> None:
    left, _ = cable
    [change] = changes_of(left, [f"addr del {LEFT}/{NETWORK} dev wire", f"addr add 10.77.0.9/{NETWORK} dev wire"])
    assert change[0] == f"lost {LEFT}; new 10.77.0.9; no route by {RIGHT} on wire"


def test_default_route_alone_is_a_change(cable: tuple[Host, Host]) -> None:
    left, _ = cable
    changes = changes_of(left, ["route del default"], [f"route add default via {RIGHT} metric 7"])
    assert [text for text, _ in changes] == [f"no route by {RIGHT} on wire", f"route by {RIGHT} on wire"]


def test_routes_of_a_vpn_over_the_default_route_are_a_change(cable: tuple[Host, Host]) -> None:
    left, _ = cable
    [change] = changes_of(left, ["route add 128.0.0.0/1 via 10.77.0.3"])
    assert change[0] == f"no route by {RIGHT} on wire; route by 10.77.0.3 on wire"


def test_unplugged_cable_is_a_change_though_addresses_stay(cable: tuple[Host, Host]) -> None:
    left, right = cable
    changes = changes_of(left, ["link set wire down"], ["link set wire up"], acting=right)
    assert [text for text, _ in changes] == [f"no route by {RIGHT} on wire", f"route by {RIGHT} on wire"]


def test_what_matters_to_nobody_is_no_change(cable: tuple[Host, Host]) -> None:
    """Link-local and loopback addresses, a route to one network, a device without an address; then one that matters."""
    left, _ = cable
    idle = [
        "addr add 169.254.7.7/16 dev wire",
        "addr add 127.0.0.9/8 dev lo",
        "route add 198.51.100.0/24 via 10.77.0.2",
        "link add idle type bridge",
        "link set idle up",
    ]
    before = left.thread(look_around).result(10)
    left.run(["ip", "-batch", "-"], input="\n".join(idle))
    assert left.thread(look_around).result(10) == before
    [change] = changes_of(left, ["addr del 169.254.7.7/16 dev wire", "link del idle", "addr add 10.78.0.1/24 dev wire"])
    assert change[0] == "new 10.78.0.1"


def test_ipv6_address_is_told_once_it_may_be_used(cable: tuple[Host, Host]) -> None:
    left, _ = cable
    [change] = changes_of(left, ["addr add 2001:db8:77::1/64 dev wire"])
    assert change[0] == "new 2001:db8:77::1"


def test_routes_are_found_with_their_router_and_by_branches(cable: tuple[Host, Host]) -> None:
    left, _ = cable
    far = "198.51.100.1"

    def find(host: str = far) -> Route | None:
        return left.thread(find_route, host).result(10)

    assert find() == Route("wire", RIGHT)
    assert find(RIGHT) == Route("wire", "")
    assert find("2001:db8::1") is None
    left.run(["ip", "route", "replace", "default", "nexthop", "via", "10.77.0.8", "nexthop", "via", RIGHT])
    assert find() == Route("wire", "10.77.0.8")
    left.run(["ip", "-4", "route", "replace", "default", "via", "inet6", "fe80::7", "dev", "wire"])
    assert find() == Route("wire", "fe80::7")
    left.run(["ip", "route", "replace", "unreachable", "default"])
    assert find() is None


# --- what the kernel knows of a connection ----------------------------------------------------------------------------


def connected(left: Host, right: Host) -> tuple[socket.socket, socket.socket]:
    """A connection from the left machine to the right one."""
    with right.socket() as listener:
        listener.bind((right.ip, 0))
        listener.listen()
        client = left.socket()
        client.connect(listener.getsockname())
        return client, listener.accept()[0]


@contextlib.contextmanager
def connection(left: Host, right: Host) -> Iterator[tuple[socket.socket, socket.socket]]:
    client, server = connected(left, right)
    with client, server:
        yield client, server


def look(sock: socket.socket) -> TcpInfo:
    info = read_tcp_info(sock)
    assert info is not None
    return info


def wait_until(sock: socket.socket, condition: Callable[[TcpInfo], bool]) -> TcpInfo:
    """Look at a connection until something is true of it: the kernel announces no such thing."""
    over = time.monotonic() + PATIENCE
    nobody = threading.Event()
    while not condition(info := look(sock)):
        assert time.monotonic() < over, info
        nobody.wait(0.005)
    return info


def last_ack(sock: socket.socket) -> float:
    """Seconds since the last ACK, as the kernel has it (tcpi_last_ack_recv)."""
    return int(struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 56)[0]) / 1000


def send_all(client: socket.socket, server: socket.socket, size: int) -> None:
    """Carry so many bytes from one end to the other, to the last ACK."""
    sender = threading.Thread(target=client.sendall, args=(bytes(size),))
    sender.start()
    while size:
        size -= len(server.recv(min(size, 65536)))
    sender.join(PATIENCE)


_SEGMENT_BYTES = 1448
DROP = "table inet t {{ chain i {{ type filter hook input priority 0; {0} drop; }}; }}"


@pytest.mark.parametrize("interval", [0, 20, 5], ids=["nothing", "5 %", "20 %"])
def test_share_of_repeated_segments_is_that_of_lost_packets(cable: tuple[Host, Host], interval: int) -> None:
    left, right = cable
    left.run(["ip", "link", "set", "wire", "gso_max_segs", "1"])  # a lost packet is one segment
    with connection(left, right) as (client, server):
        if interval:
            right.nft(DROP.format(f"tcp dport {server.getsockname()[1]} numgen inc mod {interval} 0"))
        before = look(client)
        send_all(client, server, 600_000)
        after = wait_until(client, lambda info: not info.unsent_bytes and not info.seconds_without_ack)
        sent = after.sent - before.sent
        repeated = after.retransmitted - before.retransmitted
        assert repeated >= (sent // interval - 1 if interval else 0)
        assert 0.99 <= (sent - repeated) * _SEGMENT_BYTES / 600_000 <= 1.02  # what a busy machine repeats for nothing included


def test_round_trip_is_the_lines(natlab: Lab) -> None:
    site = natlab.site("pub", delay=0.04)
    with connection(site.host, natlab.server) as (client, server):
        send_all(client, server, 1000)
        info = wait_until(client, lambda info: info.sent > 0 and not info.seconds_without_ack)
        assert 0.08 <= info.rtt < 0.4  # a busy machine adds to it
        assert 0 < info.rttvar < 0.2


def test_time_without_ack_grows_in_a_black_hole_and_ends_with_it(cable: tuple[Host, Host]) -> None:
    left, right = cable
    with connection(left, right) as (client, server):
        send_all(client, server, 1000)
        right.nft(DROP.format(f"tcp dport {server.getsockname()[1]}"))
        began = time.monotonic()
        client.send(b"lost")
        info = wait_until(client, lambda info: info.seconds_without_ack > 2)
        assert time.monotonic() - began == pytest.approx(info.seconds_without_ack, abs=0.4)
        assert info.retransmitted >= 2
        right.nft("delete table inet t")
        assert server.recv(100) == b"lost"
        assert wait_until(client, lambda info: not info.seconds_without_ack).sent > info.sent


def test_time_without_ack_counts_from_before_a_silence(cable: tuple[Host, Host]) -> None:
    """Nobody owed an ACK then, so whoever judges looks again when one could have come."""
    left, right = cable
    with connection(left, right) as (client, server):
        send_all(client, server, 1000)
        wait_until(client, lambda _: last_ack(client) > 2)
        assert not look(client).seconds_without_ack
        right.nft(DROP.format(f"tcp dport {server.getsockname()[1]}"))
        client.send(b"late")
        assert look(client).seconds_without_ack > 2
        right.nft("delete table inet t")
        assert server.recv(100) == b"late"
        wait_until(client, lambda info: not info.seconds_without_ack)
        assert last_ack(client) < 2


def test_bytes_stay_unsent_when_the_reader_stops(cable: tuple[Host, Host]) -> None:
    left, right = cable
    with connection(left, right) as (client, server):
        client.setblocking(False)
        written = 0
        with contextlib.suppress(BlockingIOError):
            while written < 64 << 20:
                written += client.send(bytes(65536))
        info = wait_until(client, lambda info: not info.seconds_without_ack and info.unsent_bytes > 0)
        assert 0 < info.unsent_bytes < written
        while written:
            written -= len(server.recv(65536))
        assert not wait_until(client, lambda info: not info.unsent_bytes).seconds_without_ack


# --- how large segments are -------------------------------------------------------------------------------------------


def segments_of(caller: Host, callee: Host, target: str, expected: Iterable[str] | None, local: str = "0.0.0.0") -> list[int]:
    """Have the caller dial the callee's listener; return the largest segment that the caller sends, and the callee."""
    listening = threading.Event()

    async def serve() -> int:
        accepted: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        listener = Listener((local, PORT), lambda sock, _: accepted.set_result(sock))
        if expected is not None:
            listener.expect(expected)
        listening.set()
        try:
            return await measure(await asyncio.wait_for(accepted, PATIENCE))
        finally:
            listener.close()

    async def call() -> int:
        await asyncio.to_thread(listening.wait)
        return await measure(await dial((local, 0), (target, PORT), rng=random.Random(1), patience=PATIENCE))

    async def measure(sock: socket.socket) -> int:
        """Look after a byte each way, when both ends are up."""
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(sock, b"x")
            assert await loop.sock_recv(sock, 1) == b"x"
            return look(sock).snd_mss
        finally:
            await loop.sock_sendall(sock, b"y")
            await loop.sock_recv(sock, 1)
            reset_close(sock)

    there, here = callee.thread(lambda: asyncio.run(serve())), caller.thread(lambda: asyncio.run(call()))
    return [here.result(30), there.result(30)]


LIMITED = PUNCH_MSS_BYTES - TIMESTAMPS
ETHERNET = 1500 - 40 - TIMESTAMPS


def test_segments_to_a_peer_on_the_link_fill_its_packets(cable: tuple[Host, Host]) -> None:
    left, right = cable
    assert segments_of(left, right, RIGHT, [LEFT]) == [ETHERNET] * 2


def test_one_near_peer_among_those_expected_lifts_the_limit(cable: tuple[Host, Host]) -> None:
    left, right = cable
    assert segments_of(left, right, RIGHT, ["198.51.100.7", LEFT]) == [ETHERNET] * 2


@pytest.mark.parametrize("expected", [None, [], ["198.51.100.7"]], ids=["not told", "nobody", "a far one"])
def test_listener_that_expects_no_near_peer_limits_both_ends(cable: tuple[Host, Host], expected: list[str] | None) -> None:
    left, right = cable
    assert segments_of(left, right, RIGHT, expected) == [LIMITED] * 2


@pytest.mark.parametrize("is_told", [False, True])
def test_segments_to_a_peer_behind_routers_survive_a_black_hole(natlab: Lab, is_told: bool) -> None:
    caller, callee = natlab.site("pr"), natlab.site("pub")
    expected = [caller.wan_address] if is_told else None
    assert segments_of(caller.host, callee.host, callee.host.ip, expected) == [LIMITED] * 2


def test_who_dials_through_routers_limits_both_ends_alone(natlab: Lab) -> None:
    """The listener has lifted the limit for somebody near."""
    caller, callee = natlab.site("pr"), natlab.site("pub")
    assert segments_of(caller.host, callee.host, callee.host.ip, ["127.0.0.1"]) == [LIMITED] * 2


@pytest.mark.parametrize("local", ["127.0.0.1", "0.0.0.0"])
def test_segments_over_loopback_are_as_large_as_they_can_be(cable: tuple[Host, Host], local: str) -> None:
    left, _ = cable
    assert min(segments_of(left, left, "127.0.0.1", ["127.0.0.1"], local)) > 20_000
