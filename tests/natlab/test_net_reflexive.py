"""What a server sees of us through real NATs, over UDP and over TCP, all from one local port."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from p2ptunnel.net.hops import is_public
from p2ptunnel.net.interfaces import is_on_link, local_addresses, source_address
from p2ptunnel.net.reflexive import TcpControl, observe_tcp, observe_udp
from p2ptunnel.net.tcp import Listener, dial, reset_close
from p2ptunnel.net.udp import UdpSocket
from p2ptunnel.server.rendezvous import Rendezvous
from p2ptunnel.testing.natlab import Lab, Site
from p2ptunnel.types import Address

T = TypeVar("T")
PORT = 40000


def beside_a_server(lab: Lab, site: Site, client: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `client` at `site` while the rendezvous server is up: both ports of its first address, one of its second."""
    up, over = threading.Event(), threading.Event()
    first, second = lab.server.ips

    async def serve() -> None:
        async with Rendezvous((first, 7000), alt_listen=[(first, 7001), (second, 7000)]):
            up.set()
            await asyncio.to_thread(over.wait)

    serving = lab.server.thread(lambda: asyncio.run(serve()))
    try:
        assert up.wait(10)
        return site.host.thread(lambda: asyncio.run(client())).result(30)
    finally:
        over.set()
        serving.result(10)


@pytest.mark.parametrize(("kind", "udp_port", "tcp_port"), [("pr", PORT, PORT), ("shift", PORT ^ 0x0A5A, PORT ^ 0x0C3C)])
def test_mapped_port_is_learned_for_each_transport(natlab: Lab, kind: str, udp_port: int, tcp_port: int) -> None:
    site = natlab.site(kind, delay=0.01)
    server = (natlab.server.ip, 7000)

    async def client() -> tuple[Address, Address, float]:
        udp = await observe_udp(("0.0.0.0", PORT), server)
        control = await TcpControl.open(PORT, server)
        try:
            return udp.address, control.observed, control.rtt
        finally:
            await control.close()

    udp, tcp, rtt = beside_a_server(natlab, site, client)
    assert udp == (site.wan_address, udp_port)
    assert tcp == (site.wan_address, tcp_port)
    assert 0.02 <= rtt < 0.1


@pytest.mark.parametrize(("kind", "is_same"), [("pr", True), ("symR", False)])
def test_three_observers_tell_how_a_nat_maps(natlab: Lab, kind: str, is_same: bool) -> None:
    site = natlab.site(kind)
    first, second = natlab.server.ips

    async def client() -> tuple[set[int], set[int]]:
        main = UdpSocket(("0.0.0.0", PORT))
        observers = [(first, 7000), (first, 7001), (second, 7000)]
        udp = await asyncio.gather(*(observe_udp(main.address, each) for each in observers))
        tcp = await asyncio.gather(*(observe_tcp(PORT, each) for each in observers))
        assert set(udp[0].others) == {(first, 7001), (second, 7000)}
        main.close()
        return {seen.address[1] for seen in udp}, {seen.address[1] for seen in tcp}

    udp, tcp = beside_a_server(natlab, site, client)
    assert (len(udp) == 1) is is_same
    assert (len(tcp) == 1) is is_same


def test_port_carries_the_control_connection_a_listener_and_dials_at_once(natlab: Lab) -> None:
    site = natlab.site("pr")
    first, second = natlab.server.ips

    async def client() -> list[Address]:
        udp = UdpSocket(("0.0.0.0", PORT))
        control = await TcpControl.open(PORT, (first, 7000))
        listener = Listener(("0.0.0.0", PORT), lambda sock, _: reset_close(sock))
        dialled = [await dial(("0.0.0.0", PORT), each, rng=random.Random(1)) for each in ((first, 7001), (second, 7000))]
        names: list[Address] = [sock.getsockname() for sock in dialled]
        for sock in dialled:
            reset_close(sock)
        assert control.local == names[0]
        await control.close()
        listener.close()
        udp.close()
        return names

    assert beside_a_server(natlab, site, client) == [(site.host.ip, PORT)] * 2


def test_own_addresses_behind_a_nat_are_private(natlab: Lab) -> None:
    site = natlab.site("pr", hosts=2)
    neighbour = site.hosts[1].ip

    def look() -> tuple[tuple[str, ...], str, bool, bool]:
        return local_addresses(), source_address(natlab.server.ip), is_on_link(neighbour), is_on_link(natlab.server.ip)

    addresses, source, is_neighbour_near, is_server_near = site.host.thread(look).result(10)
    assert addresses == (site.host.ip,)
    assert source == site.host.ip
    assert not is_public(source)
    assert is_neighbour_near
    assert not is_server_near


def test_global_ipv6_address_is_one_of_ours(natlab: Lab) -> None:
    site = natlab.site("v6_drop")
    assert set(site.host.thread(local_addresses).result(10)) == {site.host.ip, site.host.ip6}
