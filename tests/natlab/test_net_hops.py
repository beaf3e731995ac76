"""The opener's TTL behind real routers: it passes every NAT of ours and no more."""

from __future__ import annotations

import asyncio

import pytest

from p2ptunnel.net.hops import Hops, opener_ttl
from p2ptunnel.testing.natlab import Lab, Site
from p2ptunnel.types import Address


def hops_from(site: Site, server: Address, wait: float = 1.0) -> Hops:
    return site.host.thread(lambda: asyncio.run(opener_ttl(server, wait=wait))).result(20)


@pytest.mark.parametrize(
    ("kind", "ttl"), [("pub", 1), ("pubfw", 1), ("pr", 2), ("prR", 2), ("prO", 2), ("symR", 2), ("noSO", 2), ("dbl", 3)]
)
def test_opener_dies_at_the_first_hop_outside(natlab: Lab, kind: str, ttl: int) -> None:
    found = hops_from(natlab.site(kind, delay=0.025), (natlab.server.ip, 9))
    assert found.ttl == ttl
    assert 0.05 <= found.rtt < 0.2
    assert set(range(1, ttl + 1)) <= set(found.hops)


def test_answer_comes_in_one_round_trip(natlab: Lab) -> None:
    site = natlab.site("dbl", delay=0.025)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await opener_ttl((natlab.server.ip, 9), wait=5.0)
        return loop.time() - began

    assert 0.05 <= site.host.thread(lambda: asyncio.run(main())).result(20) < 0.5


def test_where_udp_is_blocked_the_home_router_still_answers(natlab: Lab) -> None:
    found = hops_from(natlab.site("noU"), (natlab.server.ip, 9), wait=0.2)
    assert list(found.hops) == [1]
    assert found.ttl == 3


def test_silent_router_is_passed(natlab: Lab) -> None:
    site = natlab.site("pr")
    drop = "add table inet t; add chain inet t o { type filter hook output priority 0; }; add rule inet t o icmp type 11 drop"
    natlab.inet.run(["nft", drop])
    found = hops_from(site, (natlab.server.ip, 9), wait=0.2)
    assert 2 not in found.hops
    assert found.ttl == 3


@pytest.mark.parametrize("kind", ["v6_open", "v6_drop", "v6_reject"])
def test_ipv6_opener_leaves_its_own_site(natlab: Lab, kind: str) -> None:
    assert natlab.server.ip6
    found = hops_from(natlab.site(kind, delay=0.01), (natlab.server.ip6, 9))
    assert found.ttl == 2
    assert 0.02 <= found.rtt < 0.2


def test_no_route_is_nothing_known(natlab: Lab) -> None:
    assert natlab.server.ip6
    assert hops_from(natlab.site("pr"), (natlab.server.ip6, 9), wait=0.05) == Hops(None, {})
