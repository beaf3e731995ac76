"""What we say of NATs is what coturn says of them: our proof of each kind, and netcheck behind it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2ptunnel.testing.natlab import KINDS, Lab
from p2ptunnel.testing.natlab.behaviour import EXPECTED
from p2ptunnel.testing.natlab.peers import rendezvous
from p2ptunnel.traversal.netcheck import netcheck
from p2ptunnel.types import parse_server
from tests.natlab.coturn import coturn, discover, require

pytestmark = pytest.mark.daemons

UDP_KINDS = tuple(kind for kind, expected in EXPECTED.items() if expected.udp_mapping != "blocked")


@pytest.fixture(autouse=True)
def daemons() -> None:
    require()


def test_coturn_says_of_every_kind_what_our_proof_says(natlab: Lab, tmp_path: Path) -> None:
    sites = {kind: natlab.site(kind) for kind in UDP_KINDS}
    with coturn(natlab, tmp_path):
        threads = {kind: natlab.server.thread(discover, natlab, site.host) for kind, site in sites.items()}
        found = {kind: thread.result() for kind, thread in threads.items()}
    assert found == {kind: (EXPECTED[kind].udp_mapping, EXPECTED[kind].udp_filtering) for kind in UDP_KINDS}


def test_coturn_says_of_every_kind_what_netcheck_says(natlab: Lab, tmp_path: Path) -> None:
    sites = {kind: natlab.site(kind) for kind in UDP_KINDS}
    with coturn(natlab, tmp_path), rendezvous(natlab) as server:
        theirs = {kind: natlab.server.thread(discover, natlab, site.host) for kind, site in sites.items()}
        address = parse_server(server, default_port=0).address
        ours = {kind: site.host.thread(asyncio.run, netcheck(address)) for kind, site in sites.items()}
        found = {kind: thread.result() for kind, thread in theirs.items()}
        said = {kind: thread.result().udp for kind, thread in ours.items()}
    assert {kind: (SHORT[udp.mapping.partition(",")[0]], SHORT[udp.filtering]) for kind, udp in said.items()} == found


SHORT = {"endpoint-independent": "EI", "address-dependent": "AD", "address-and-port-dependent": "APD"}
"""By what netcheck says, what coturn says."""


def test_the_second_opinion_is_one_of_its_own(natlab: Lab, tmp_path: Path) -> None:
    """A site with another behaviour than its name says is not seen as what it is called."""
    site = natlab.site("pr", mapping="address-and-port-dependent", allocation="random")
    with coturn(natlab, tmp_path):
        assert discover(natlab, site.host) == ("APD", "APD") != (EXPECTED["pr"].udp_mapping, EXPECTED["pr"].udp_filtering)


def test_there_is_a_kind_of_every_mapping_and_filtering() -> None:
    assert {EXPECTED[kind].udp_mapping for kind in KINDS} == {"EI", "AD", "APD", "blocked"}
    assert {EXPECTED[kind].udp_filtering for kind in UDP_KINDS} == {"EI", "AD", "APD"}
