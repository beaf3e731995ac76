"""IPv6 firewalls that let no TCP from outside through and UDP they do: QUIC over IPv6, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2ptunnel.testing.natlab import Lab
from tests.natlab.test_ipv6 import DELAY, Rendezvoused

pytestmark = pytest.mark.natlab

NO_TCP = (
    "table ip6 gone { chain f { type filter hook forward priority -300; policy accept; "
    "ip6 daddr != 2001:db8:ffff::1 ip6 saddr != 2001:db8:ffff::1 meta l4proto tcp drop; }\n}\n"
)
"""No TCP over IPv6 between sites; what goes to the server and comes from it may pass."""


@pytest.mark.parametrize("delay", [0.0, DELAY], ids=["0 ms", "25 ms"])
@pytest.mark.parametrize("kind", ["v6_open", "v6_drop", "v6_reject"])
def test_where_tcp_is_dropped_over_ipv6_quic_takes_its_place(natlab: Lab, tmp_path: Path, kind: str, delay: float) -> None:
    """The server sees both over IPv4, where each destination gets a random port."""
    home, laptop = natlab.site(kind, delay=delay), natlab.site(kind, delay=delay)
    natlab.inet.nft(NO_TCP)
    peers = Rendezvoused(tmp_path, (natlab.server.ip, 7000))
    with peers.serving(natlab.server, home.host):
        _, path = peers.call(laptop.host)
    assert (path.kind, path.transport, path.remote[0]) == ("direct", "quic", home.host.ip6)


@pytest.mark.parametrize("kind", ["v6_drop", "v6_reject"])
def test_so_it_does_in_a_world_without_ipv4(natlab: Lab, tmp_path: Path, kind: str) -> None:
    assert natlab.server.ip6 is not None
    home, laptop = (natlab.site(kind, ipv4=False) for _ in range(2))
    natlab.inet.nft(NO_TCP)
    peers = Rendezvoused(tmp_path, (natlab.server.ip6, 7000))
    with peers.serving(natlab.server, home.host):
        _, path = peers.call(laptop.host)
    assert (path.kind, path.transport, path.remote[0]) == ("direct", "quic", home.host.ip6)
