"""Each injector does its one thing, seen from plain sockets at both ends, and heals without a trace."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
from collections.abc import Iterator

import pytest

from p2ptunnel.errors import ConfigError, LaboratoryError
from p2ptunnel.testing.natlab import Host, Lab, Site
from p2ptunnel.testing.natlab.faults import change_address, cut, kill_tcp, part, rebind

PATIENCE = 5.0
SILENCE = 0.5
"""Seconds without a packet that count as none: everything here is microseconds away, and TCP repeats itself after 0.2 s."""


@contextlib.contextmanager
def connection(lab: Lab, host: Host, address: str | None = None) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection from a host to the server, and the server's end of it."""
    with lab.server.socket() as listener, host.socket() as near:
        listener.bind((address or lab.server.ip, 0))
        listener.listen()
        near.settimeout(PATIENCE)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
        with far:
            far.settimeout(PATIENCE)
            yield near, far


@contextlib.contextmanager
def datagrams(lab: Lab, host: Host) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A UDP socket of a host, connected to one of the server."""
    with lab.server.socket(type=socket.SOCK_DGRAM) as far, host.socket(type=socket.SOCK_DGRAM) as near:
        far.bind((lab.server.ip, 0))
        near.connect(far.getsockname())
        near.settimeout(PATIENCE)
        far.settimeout(PATIENCE)
        yield near, far


def ask(near: socket.socket, far: socket.socket) -> tuple[str, int]:
    """Send a datagram and its answer; return the address from which the first one came."""
    near.send(b"?")
    data, outside = far.recvfrom(100)
    far.sendto(b"!", outside)
    assert (data, near.recv(100)) == (b"?", b"!")
    return outside


def exchange(near: socket.socket, far: socket.socket) -> None:
    """Send a byte each way."""
    near.sendall(b"a")
    assert far.recv(1) == b"a"
    far.sendall(b"b")
    assert near.recv(1) == b"b"


def hears_nothing(*sockets: socket.socket) -> bool:
    return select.select(sockets, [], [], SILENCE)[0] == []


def error_of(sock: socket.socket) -> int | None:
    try:
        assert sock.recv(1) == b""
    except OSError as error:
        return error.errno
    return None


@pytest.fixture
def site(natlab: Lab) -> Site:
    return natlab.site("pr")


def test_a_killed_connection_fails_at_both_ends(natlab: Lab, site: Site) -> None:
    with connection(natlab, site.host) as (near, far):
        exchange(near, far)
        assert kill_tcp(site.host, natlab.server.ip) == 1
        assert error_of(near) == errno.ECONNABORTED
        assert error_of(far) == errno.ECONNRESET


def test_a_connection_can_be_killed_by_the_far_end_too(natlab: Lab, site: Site) -> None:
    with connection(natlab, site.host) as (near, far):
        assert kill_tcp(natlab.server, site.wan_address) == 1
        assert error_of(far) == errno.ECONNABORTED
        assert error_of(near) == errno.ECONNRESET


def test_connections_elsewhere_and_listeners_live_on(natlab: Lab, site: Site) -> None:
    there, other_address = natlab.server.ips
    with (
        connection(natlab, site.host, there) as one,
        connection(natlab, site.host, there) as other,
        connection(natlab, site.host, other_address) as elsewhere,
    ):
        assert kill_tcp(site.host, there, one[1].getsockname()[1]) == 1
        assert error_of(one[0]) == errno.ECONNABORTED
        exchange(*other)
        assert kill_tcp(site.host, there) == 1
        assert error_of(other[0]) == errno.ECONNABORTED
        exchange(*elsewhere)
    assert kill_tcp(site.host, natlab.server.ip) == 0


def test_every_one_of_many_is_killed(natlab: Lab, site: Site) -> None:
    with contextlib.ExitStack() as stack:
        pairs = [stack.enter_context(connection(natlab, site.host)) for _ in range(30)]
        assert kill_tcp(site.host, natlab.server.ip) == 30
        assert {error_of(near) for near, _ in pairs} == {errno.ECONNABORTED}


def test_what_ss_refuses_is_said(site: Site) -> None:
    with pytest.raises(LaboratoryError, match=r"ss on pr-1-2 says .+"):
        kill_tcp(site.host, "no address")


def test_a_flush_is_survived_where_the_port_is_the_same_again(natlab: Lab, site: Site) -> None:
    with connection(natlab, site.host) as (near, far):
        exchange(near, far)
        site.flush()
        assert site.stats().mappings == 0
        exchange(near, far)


def test_a_flush_gives_another_port_where_ports_are_random(natlab: Lab) -> None:
    site = natlab.site("symR")
    with datagrams(natlab, site.host) as (near, far):
        before = ask(near, far)
        assert ask(near, far) == before
        site.flush()
        assert ask(near, far) != before


def test_rebound_a_connection_reaches_nobody_and_nobody_reaches_it(natlab: Lab, site: Site) -> None:
    other = natlab.site("pr")  # behind a router, as the far end of a punched connection is: nobody there to answer a stranger
    other.map_port("tcp", 7777, 7777)
    with other.host.socket() as listener, site.host.socket() as near:
        listener.bind(("", 7777))
        listener.listen()
        near.settimeout(PATIENCE)
        near.connect((other.wan_address, 7777))
        far, outside = listener.accept()
        with far:
            far.settimeout(PATIENCE)
            exchange(near, far)
            other.router.nft("flush chain ip nat pre\n")  # from now on it knows this connection, and no stranger
            exchange(near, far)
            rebind(site)
            with natlab.capture(None, f"src host {site.wan_address} and tcp") as seen:
                near.sendall(b"lost")
                far.sendall(b"lost")
                assert hears_nothing(near, far)
        assert seen.lines
        assert not [line for line in seen.lines if f"{site.wan_address}.{outside[1]} >" in line]


def test_rebound_new_connections_and_datagrams_get_the_port_of_the_kind(natlab: Lab, site: Site) -> None:
    rebind(site)
    rebind(site)
    with connection(natlab, site.host) as (near, far), datagrams(natlab, site.host) as pair:
        exchange(near, far)
        assert far.getpeername() == (site.wan_address, near.getsockname()[1])
        assert ask(*pair) == (site.wan_address, pair[0].getsockname()[1])
        rebind(site)
        assert ask(*pair) == (site.wan_address, pair[0].getsockname()[1])


def test_only_a_linux_router_rebinds(natlab: Lab) -> None:
    with pytest.raises(ConfigError, match="has no Linux router"):
        rebind(natlab.site("noSO"))


@pytest.mark.parametrize("kind", ["pub", "pr", "noSO", "dbl", "pr_cgn"])
def test_what_is_cut_is_silent_both_ways_and_heals(natlab: Lab, kind: str) -> None:
    site, other = natlab.site(kind), natlab.site("pr")
    with datagrams(natlab, site.host) as (near, far), datagrams(natlab, other.host) as others:
        outside = ask(near, far)
        with cut(site):
            near.send(b"lost")
            far.sendto(b"lost", outside)
            assert hears_nothing(near, far)
            ask(*others)
        ask(near, far)


def test_what_tcp_sends_while_it_is_cut_arrives_afterwards(natlab: Lab, site: Site) -> None:
    with connection(natlab, site.host) as (near, far):
        with cut(site):
            near.sendall(b"a")
            far.sendall(b"b")
            assert hears_nothing(near, far)
        assert (far.recv(10), near.recv(10)) == (b"a", b"b")


def test_a_cut_heals_when_its_block_fails(natlab: Lab, site: Site) -> None:
    with datagrams(natlab, site.host) as pair:
        with pytest.raises(KeyError), cut(site):
            raise KeyError
        ask(*pair)


def test_what_is_cut_cannot_be_cut_again(site: Site) -> None:
    with cut(site), pytest.raises(LaboratoryError, match="nft on inet says"), cut(site):
        pass


def test_two_sites_that_are_parted_reach_everybody_but_each_other(natlab: Lab) -> None:
    one, other = natlab.site("pub"), natlab.site("pub")
    with one.host.socket(type=socket.SOCK_DGRAM) as near, other.host.socket(type=socket.SOCK_DGRAM) as far:
        for sock, host in ((near, one.host), (far, other.host)):
            sock.bind((host.ip, 0))
            sock.settimeout(PATIENCE)
        with part(one, other), datagrams(natlab, one.host) as first, datagrams(natlab, other.host) as second:
            near.sendto(b"?", far.getsockname())
            far.sendto(b"?", near.getsockname())
            assert hears_nothing(near, far)
            for ends in (first, second):
                ask(*ends)
            with pytest.raises(LaboratoryError):
                part(one, other).__enter__()
        near.sendto(b"!", far.getsockname())
        assert far.recv(1) == b"!"


def test_who_shares_a_user_space_nat_cannot_be_parted(natlab: Lab) -> None:
    upstream = natlab.site("cgn")
    below = natlab.site("cgn", upstream=upstream)
    with pytest.raises(ConfigError, match="cannot be parted"):
        part(below, natlab.site("pub")).__enter__()


def test_moved_a_machine_is_reached_at_its_new_address_only(natlab: Lab, site: Site) -> None:
    before = site.host.ip
    with connection(natlab, site.host) as (near, far):
        exchange(near, far)
        after = change_address(site)
        assert site.host.ip == after != before
        far.sendall(b"lost")
        assert hears_nothing(near)
    with datagrams(natlab, site.host) as (near, far):
        ask(near, far)
        assert near.getsockname()[0] == after
    site.map_port("tcp", 7777, 7777)
    with site.host.socket() as listener, natlab.server.socket() as client:
        listener.bind((after, 7777))
        listener.listen()
        client.settimeout(PATIENCE)
        client.connect((site.wan_address, 7777))


def test_each_move_leads_to_an_address_of_nobody(natlab: Lab) -> None:
    site = natlab.site("pr", hosts=2)
    seen = {host.ip for host in site.hosts}
    for host in (*site.hosts, *site.hosts):
        address = change_address(site, host)
        assert address not in seen - {host.ip}
        with connection(natlab, host) as pair:
            exchange(*pair)
            assert pair[0].getsockname()[0] == address
        assert len({each.ip for each in site.hosts}) == 2


@pytest.mark.parametrize("kind", ["pub", "noSO"])
def test_a_machine_whose_address_is_not_its_own_affair_cannot_move(natlab: Lab, kind: str) -> None:
    site = natlab.site(kind)
    before = site.host.ip
    with pytest.raises(ConfigError, match="cannot change its address"):
        change_address(site)
    assert site.host.ip == before
