"""The router of the default route, from the kernel's answer and from its table as text."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from p2ptunnel.net import gateway
from p2ptunnel.net.gateway import Gateway, find_gateway
from p2ptunnel.net.netlink import Route

TABLE = """Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	0101A8C0	0003	0	0	100	00000000	0	0	0
eth0	0001A8C0	00000000	0001	0	0	100	00FFFFFF	0	0	0
"""


def test_a_route_without_a_router_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "find_route", lambda _: Route("tun0", ""))
    assert find_gateway("0.0.0.0") is None


def test_no_route_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "find_route", lambda _: None)
    assert find_gateway("0.0.0.0") is None


def test_a_router_of_ipv4_that_is_reached_by_ipv6_maps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "find_route", lambda _: Route("eth0", "fe80::1"))
    assert find_gateway("0.0.0.0") is None


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_loopback_has_no_router(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(gateway, "find_route", lambda _: Route("eth0", "192.168.1.1"))
    assert find_gateway(host) is None


def test_the_address_that_packets_leave_from_is_found_unless_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "find_route", lambda _: Route("eth0", "192.168.1.1"))
    monkeypatch.setattr(gateway, "source_address", lambda _: "192.168.1.2")
    assert find_gateway("0.0.0.0") == Gateway("192.168.1.1", "192.168.1.2")
    assert find_gateway("192.168.1.7") == Gateway("192.168.1.1", "192.168.1.7")


def test_a_link_local_router_has_its_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "find_route", lambda _: Route("eth0", "fe80::1"))
    monkeypatch.setattr(gateway, "source_address", lambda _: "2001:db8::2")
    assert find_gateway("::") == Gateway("fe80::1%eth0", "2001:db8::2")


def refuse(_: str) -> Route:
    raise OSError(errno.EPERM, "no rtnetlink here")


def test_where_rtnetlink_is_forbidden_the_table_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = tmp_path / "route"
    table.write_text(TABLE)
    monkeypatch.setattr(gateway, "find_route", refuse)
    monkeypatch.setattr(gateway, "_ROUTES", table)
    monkeypatch.setattr(gateway, "source_address", lambda _: "192.168.1.2")
    assert find_gateway("0.0.0.0") == Gateway("192.168.1.1", "192.168.1.2")
    assert find_gateway("::") is None
    table.write_text("\n".join(line for line in TABLE.splitlines() if "0101A8C0" not in line))
    assert find_gateway("0.0.0.0") is None
    table.unlink()
    assert find_gateway("0.0.0.0") is None


def test_no_source_address_is_no_router(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "find_route", lambda _: Route("eth0", "192.168.1.1"))
    monkeypatch.setattr(gateway, "source_address", refuse)
    assert find_gateway("0.0.0.0") is None
