"""What netcheck says of every kind of NAT: each told right, in a few seconds, all sites asking at one time."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Final

import pytest

from p2ptunnel.protocol.outlook import Carrier
from p2ptunnel.server.rendezvous import Rendezvous
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.kinds import KINDS, MATRIX_KINDS
from p2ptunnel.traversal.lifetime import mapping_lifetime
from p2ptunnel.traversal.netcheck import netcheck
from p2ptunnel.traversal.netreport import NetReport, Refusal
from tests.natlab.test_net_reflexive import beside_a_server

pytestmark = pytest.mark.natlab
OTHERS: Final = ("cgn_hairpin", "user_sym_addr", "no_simopen_rst")
SIDE_BY_SIDE: Final = 5.5  # seconds: the patience for what does not answer, and a little
REFUSALS: Final[dict[str, Refusal]] = {"drop": "drop", "reject": "reset", "accept": "reset"}  # there is nobody to accept it


@pytest.fixture(scope="module")
def reports() -> dict[str, tuple[NetReport, float]]:
    """What each kind is told, and in how many seconds."""
    with Lab(server_delay=0.01) as lab:
        up, over = threading.Event(), threading.Event()
        first, second = lab.server.ips

        async def serve() -> None:
            async with Rendezvous((first, 7000), alt_listen=[(first, 7001), (second, 7000)]):
                up.set()
                await asyncio.to_thread(over.wait)

        def ask() -> tuple[NetReport, float]:
            began = time.monotonic()
            report = asyncio.run(netcheck((first, 7000)))
            return report, time.monotonic() - began

        sites = {kind: lab.site(kind, delay=0.01) for kind in (*MATRIX_KINDS, *OTHERS)}
        serving = lab.server.thread(lambda: asyncio.run(serve()))
        try:
            assert up.wait(10)
            asking = {kind: site.host.thread(ask) for kind, site in sites.items()}
            return {kind: asked.result(20) for kind, asked in asking.items()}
        finally:
            over.set()
            serving.result(10)


@pytest.mark.parametrize("name", [*MATRIX_KINDS, *OTHERS])
def test_a_kind_is_told_as_what_it_is(reports: dict[str, tuple[NetReport, float]], name: str) -> None:
    kind, (report, seconds) = KINDS[name], reports[name]
    is_mapped_alike = kind.mapping == "endpoint-independent"
    keeps_port = kind.allocation == "preserving" and not kind.carrier
    for way, works in ((report.udp, kind.udp), (report.tcp, kind.tcp)):
        assert way.works is works
        if works:
            assert way.mapping.partition(",")[0] == kind.mapping
            assert way.filtering == kind.filtering
            assert way.hairpin is (kind.hairpinning if kind.router != "none" else None)
            assert way.port_preserved is keeps_port
    assert report.behind_nat is (kind.router != "none")
    if kind.udp:
        assert report.double_nat is bool(kind.carrier)
        assert report.simultaneous_open is (kind.simultaneous_open if is_mapped_alike else None)
    assert report.strangers == ("accept" if kind.filtering == "endpoint-independent" else REFUSALS[kind.unsolicited])
    assert report.tcp_port_equals_udp is (keeps_port if kind.udp else None)
    assert seconds < SIDE_BY_SIDE


@pytest.mark.parametrize("name", MATRIX_KINDS)
def test_what_to_expect_is_where_pairs_of_the_laboratory_settle(reports: dict[str, tuple[NetReport, float]], name: str) -> None:
    report, _ = reports[name]
    but: dict[tuple[str, str], Carrier] = {
        ("symR", "symR"): "relay",
        ("symR", "symS"): "relay",
        ("symS", "symR"): "relay",
        ("noSO", "noSO"): "quic",
    }
    expected = {other: but.get((name, other), "tcp") for other in MATRIX_KINDS}
    assert {each.kind: each.carrier for each in report.expectations} == expected


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("pub", "No NAT: expect direct TCP with every kind of NAT at the other end."),
        ("pubfw", "No NAT, but a firewall: expect direct TCP with every kind of NAT at the other end."),
        (
            "pr",
            "Behind a NAT that keeps one port for all destinations: expect direct TCP with every kind of NAT at the other end.",
        ),
        (
            "symR",
            "Behind a NAT that takes another port for each destination: expect direct TCP, but the relay with a NAT that takes"
            " a random port for each destination or takes the next port for each destination.",
        ),
        (
            "noSO",
            "Behind a NAT that keeps one port for all destinations: expect direct TCP, but QUIC with a NAT that refuses"
            " simultaneous open.",
        ),
        (
            "dbl",
            "Behind two NATs that keep one port for all destinations: expect direct TCP with every kind of NAT at the other"
            " end.",
        ),
        (
            "noU",
            "Behind a NAT that keeps one port for all destinations, with UDP blocked: expect direct TCP with every kind of NAT"
            " at the other end.",
        ),
    ],
)
def test_the_verdict_is_one_plain_sentence(reports: dict[str, tuple[NetReport, float]], name: str, verdict: str) -> None:
    assert reports[name][0].verdict == verdict


def test_a_router_that_nobody_can_ask_is_told_as_one(reports: dict[str, tuple[NetReport, float]]) -> None:
    mapped = reports["pr"][0].port_mapping
    assert mapped is not None
    assert (mapped.protocol, mapped.external) == (None, None)
    assert mapped.text == "tcp not mapped: PCP, NAT-PMP, UPnP: nobody answers"


def test_how_long_a_silent_port_is_remembered_is_told_to_a_second(natlab: Lab) -> None:
    site = natlab.site("pr", udp_timeout=2.0)
    began = time.monotonic()
    found = beside_a_server(natlab, site, lambda: mapping_lifetime((natlab.server.ip, 7000), 5.0))
    assert found is not None
    assert found.at_least in {1.0, 2.0}  # the kernel counts whole seconds
    assert found.below in {2.0, 3.0, 4.0}
    assert time.monotonic() - began < 9
