"""Networks that let little through: one port only, no IPv4, homes behind one carrier's NAT."""

from __future__ import annotations

import errno

import pytest

from p2ptunnel.errors import ConfigError
from p2ptunnel.testing.natlab import Host, Lab, Site
from p2ptunnel.testing.natlab.behaviour.sockets import Bench, address_of, answer_to, receive


def answers(lab: Lab, host: Host, port: int) -> str:
    with Bench() as bench:
        bench.listener(lab.server, lab.server.ip, port)
        return answer_to(bench.tcp(host), (lab.server.ip, port))


def test_behind_a_firewall_for_one_port_only_that_one_is_reached(natlab: Lab) -> None:
    host = natlab.site("pr", udp=False, only_port=443).host
    assert [answers(natlab, host, port) for port in (443, 7000, 80)] == ["open", "drop", "drop"]
    with Bench() as bench:
        observer = bench.udp(natlab.server, natlab.server.ip, 443)
        bench.udp(host).sendto(b"?", address_of(observer))
        assert receive(observer) is None


def test_behind_a_firewall_for_one_address_only_that_one_is_reached_over_tcp(natlab: Lab) -> None:
    one, other = natlab.server.ips
    host = natlab.site("symR", only_host=one).host
    with Bench() as bench:
        for address, answer in ((one, "open"), (other, "drop")):
            bench.listener(natlab.server, address, 7000)
            assert answer_to(bench.tcp(host), (address, 7000)) == answer
        observer = bench.udp(natlab.server, other, 7000)
        bench.udp(host).sendto(b"?", address_of(observer))
        assert receive(observer) is not None


def test_a_machine_with_ipv6_only_reaches_ipv6_and_nothing_else(natlab: Lab) -> None:
    host = natlab.site("v6_drop", ipv4=False).host
    assert (host.ips, str(host)) == ([], "<Host v6_drop-1-2 2001:db8:1::2>")
    with pytest.raises(ConfigError, match="v6_drop-1-2 has IPv6 addresses only"):
        _ = host.ip
    with Bench() as bench:
        listener = bench.listener(natlab.server, natlab.server.ip6 or "")
        assert answer_to(bench.tcp(host, "::"), address_of(listener)) == "open"
        with host.socket() as sock, pytest.raises(OSError, match="Network is unreachable") as raised:
            sock.connect((natlab.server.ip, 9))
        assert raised.value.errno == errno.ENETUNREACH


def homes(lab: Lab, carrier: str) -> tuple[Site, Site]:
    above = lab.site(carrier, hosts=0)
    return lab.site("pr", upstream=above), lab.site("pr", upstream=above)


@pytest.mark.parametrize(("carrier", "does_hairpin"), [("cgn_hairpin", True), ("cgn", False)])
def test_homes_behind_one_carrier_meet_if_it_hairpins(natlab: Lab, carrier: str, does_hairpin: bool) -> None:
    one, other = homes(natlab, carrier)
    with Bench() as bench:
        observer = bench.udp(natlab.server, natlab.server.ip)
        left, right = bench.udp(one.host), bench.udp(other.host)
        outside = {}
        for sock in (left, right):
            sock.sendto(b"?", address_of(observer))
            seen = receive(observer)
            assert seen is not None
            outside[sock] = seen[1]
        assert outside[left][0] == outside[right][0]  # one address for both
        for sender, target in ((left, right), (right, left), (left, right)):
            sender.sendto(b"hello", outside[target])
        assert (receive(right) is not None) is does_hairpin


def test_a_site_below_a_carrier_has_a_carrier_s_address(natlab: Lab) -> None:
    one, other = homes(natlab, "cgn")
    assert {site.wan_address.rpartition(".")[0] for site in (one, other)} == {"100.64.0"}
