"""What follows from the facts, in words."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from p2ptunnel.protocol.outlook import expect
from p2ptunnel.traversal.netreport import NetReport, PortMapReport, TransportReport, improvements, nat_above, verdict
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import NatHints

OUTSIDE: Address = ("198.51.100.7", 41000)
WORKS = TransportReport(True, OUTSIDE, "endpoint-independent", 0, True)
SILENT = TransportReport(False, None, "no answer", 0, None)
MAPPED = PortMapReport("PCP", ("198.51.100.7", 41000), "tcp 198.51.100.7:41000 by PCP")
REPORT = NetReport(
    server=("203.0.113.1", 7000),
    local=("192.168.1.17", 41000),
    rtt=0.02,
    observers=3,
    udp=WORKS,
    tcp=WORKS,
    tcp_port_equals_udp=True,
    behind_nat=True,
    opener_ttl=2,
    can_open_low=True,
    hops={},
    descriptors=1024,
    verdict="",
)
EVERYWHERE = "expect direct TCP with every kind of NAT at the other end."
EIM = NatHints(tcp="eim", udp="eim", low=True, crosses=True)


def outlook(hints: NatHints = EIM) -> NetReport:
    return replace(REPORT, expectations=expect(hints, descriptors=1024, has_mapping=False))


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (replace(REPORT, behind_nat=False), "No NAT."),
        (replace(REPORT, behind_nat=False, strangers="drop"), "No NAT, but a firewall."),
        (outlook(), f"Behind a NAT that keeps one port for all destinations: {EVERYWHERE}"),
        (replace(outlook(), double_nat=True), f"Behind two NATs that keep one port for all destinations: {EVERYWHERE}"),
        (replace(outlook(), port_mapping=MAPPED), f"Behind a NAT that lets others in when it is asked by PCP: {EVERYWHERE}"),
        (
            replace(REPORT, port_mapping=MAPPED, double_nat=True),
            "Behind two NATs that keep one port for all destinations.",
        ),
        (
            replace(REPORT, tcp=replace(WORKS, mapping="not known")),
            "Behind a NAT, and the server has one address only (give it --alt-listen), so how it maps is not known.",
        ),
        (replace(REPORT, udp=SILENT), "Behind a NAT that keeps one port for all destinations, with UDP blocked."),
        (
            replace(REPORT, tcp=SILENT),
            "The server cannot be reached over TCP: only peers that can open a TCP connection to you can be reached.",
        ),
    ],
)
def test_the_verdict(report: NetReport, sentence: str) -> None:
    assert verdict(report) == sentence


@pytest.mark.parametrize(
    ("hops", "mapped", "is_double", "why"),
    [
        ({1: "192.168.1.1", 2: "198.51.100.1"}, None, False, ""),
        ({1: "192.168.1.1", 2: "100.64.0.1"}, None, True, "the second hop, 100.64.0.1, has no public address either"),
        ({1: "192.168.1.1"}, None, None, ""),
        ({2: "10.0.0.1"}, MAPPED, False, ""),
        (
            {},
            replace(MAPPED, external=("100.64.0.9", 41000)),
            True,
            "the router's outside address 100.64.0.9 is private",
        ),
        (
            {},
            replace(MAPPED, external=("198.51.100.99", 41000)),
            True,
            "the router's outside address is 198.51.100.99, others see 198.51.100.7",
        ),
        ({2: "198.51.100.1"}, PortMapReport(None, None, "nobody answers"), False, ""),
    ],
)
def test_another_nat_above(hops: dict[int, str], mapped: PortMapReport | None, is_double: bool | None, why: str) -> None:
    assert nat_above(hops, OUTSIDE, mapped) == (is_double, why)


def test_where_nothing_is_missing_nothing_is_to_be_better() -> None:
    assert improvements(outlook()) == ()


def test_what_would_help_is_said_once() -> None:
    report = outlook(replace(EIM, tcp="rnd", udp="rnd", crosses=None))
    assert improvements(report) == ("turn on UPnP, NAT-PMP or PCP in the router", "turn on IPv6, where the provider has it")
    assert improvements(replace(report, has_ipv6=True)) == ("turn on UPnP, NAT-PMP or PCP in the router",)


def test_a_transport_that_is_blocked_comes_first() -> None:
    assert improvements(replace(REPORT, udp=SILENT))[0] == "let UDP to the server through the firewalls on the way"
    assert improvements(replace(REPORT, tcp=SILENT))[0] == "let TCP to the server through the firewalls on the way"
