"""Kinds are values that refuse what no router can do; names and rules belong to each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from p2ptunnel.errors import ConfigError
from p2ptunnel.testing.natlab.behaviour.expected import COLUMNS, EXPECTED, Behaviour
from p2ptunnel.testing.natlab.behaviour.words import name_allocation, name_mapping
from p2ptunnel.testing.natlab.engine.link import LinkSettings
from p2ptunnel.testing.natlab.engine.table import NatSettings
from p2ptunnel.testing.natlab.kinds import KINDS, MATRIX_KINDS, Kind, find_kind
from p2ptunnel.testing.natlab.rules import flush_rules, mapping_rule, router_rules
from p2ptunnel.testing.natlab.site import LinkChanges

PAGE = (Path(__file__).parents[3] / "docs" / "laboratory.md").read_text(encoding="utf-8")
APD = "address-and-port-dependent"


def test_the_matrix_has_thirteen_kinds_and_they_come_first() -> None:
    assert tuple(KINDS)[:13] == MATRIX_KINDS


def test_every_kind_has_one_expected_line() -> None:
    assert list(EXPECTED) == list(KINDS)


def test_every_carrier_is_a_kind() -> None:
    assert {kind.carrier for kind in KINDS.values()} - {""} <= KINDS.keys()


def test_kinds_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        KINDS["pr"] = KINDS["pub"]  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        KINDS["pr"].udp = False  # type: ignore[misc]


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as raised:
        find_kind("carrier pigeon")
    assert str(raised.value) == "there is no kind 'carrier pigeon'"
    assert "pub, pubfw, fc" in raised.value.hint


def test_a_changed_kind_keeps_the_rest() -> None:
    assert KINDS["prR"].but(hairpinning=True) == Kind(router="kernel", unsolicited="reject", hairpinning=True)


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        ("pr", {"maping": APD}, "a kind has no maping"),
        ("pr", {"mapping": "symmetric"}, "mapping of a kind is one of .*, not 'symmetric'"),
        ("pr", {"router": "carrier"}, "router of a kind is one of none, kernel, user, not 'carrier'"),
        ("pr", {"simultaneous_open": False}, "a kernel cannot do simultaneous_open=False"),
        ("pr", {"inbound_reset": "mapping"}, "a kernel cannot do inbound_reset='mapping'"),
        ("pr", {"max_mappings": 3}, "a kernel cannot do max_mappings=3"),
        ("pr", {"allocation": "random"}, "a kernel cannot do endpoint-independent mapping with random ports"),
        ("fc", {"allocation": "shifted"}, "a kernel cannot do endpoint-independent filtering with shifted ports"),
        ("symR", {"mapping": "address-dependent"}, "a kernel cannot do address-dependent mapping with .* filtering"),
        ("symR", {"allocation": "preserving"}, "a kernel cannot do address-and-port-dependent mapping with preserving ports"),
        ("noSO", {"ipv6": "drop"}, "a user-space NAT speaks IPv4 only"),
        ("noSO", {"unsolicited": "accept"}, "a user-space NAT has no stack of its own to accept with"),
        ("pr", {"tcp": False}, "a kernel cannot do tcp=False"),
        ("pr", {"ipv4": False}, "a machine with neither IPv4 nor IPv6 has no network"),
        ("noSO", {"ipv4": False}, "a user-space NAT speaks IPv4 only"),
        ("noSO", {"only_port": 443}, "a user-space NAT lets out to every port and address"),
        ("noSO", {"only_host": "203.0.113.1"}, "a user-space NAT lets out to every port and address"),
        ("pub", {"only_port": 443}, "a host without a router cannot do only_port=443"),
        ("pub", {"tcp": False}, "a host without a router cannot do tcp=False"),
        ("pubfw", {"mapping": "address-dependent"}, "a host without a router cannot do mapping='address-dependent'"),
    ],
)
def test_what_no_router_can_do_is_refused(kind: str, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        KINDS[kind].but(**changes)


def test_a_nat_takes_the_words_of_a_kind() -> None:
    shared = {field.name for field in dataclasses.fields(NatSettings)} - {"wan_address", "lan_address"}
    assert shared == {field.name for field in dataclasses.fields(Kind)} - {
        "router",
        "ipv4",
        "ipv6",
        "only_port",
        "only_host",
        "carrier",
    }


def test_a_site_can_change_all_that_a_link_does() -> None:
    assert LinkChanges.__annotations__.keys() == {field.name for field in dataclasses.fields(LinkSettings)}


# --- rules --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.router == "kernel"])
def test_every_closing_brace_of_a_chain_stands_on_a_line_of_its_own(name: str) -> None:
    rules = router_rules(KINDS[name], "198.51.100.1", "192.168.1.0/24")
    assert rules.count("{") == rules.count("}")
    assert " chain post {\n" in rules
    for line in rules.splitlines():
        if line.startswith("  "):
            assert line.count("{") == line.count("}"), line


def test_only_kinds_with_maps_have_something_to_flush() -> None:
    assert flush_rules(KINDS["fc"]) == "flush map ip nat udp_m\nflush map ip nat tcp_m\n"
    assert flush_rules(KINDS["pr"]) == ""


def test_a_static_mapping_is_one_rule() -> None:
    rule = mapping_rule("198.51.100.1", "tcp", 443, "192.168.1.2", 8443)
    assert rule == "add rule ip nat pre ip daddr 198.51.100.1 tcp dport 443 dnat to 192.168.1.2:8443\n"


# --- what observations are called ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ports", "mapping", "allocation"),
    [
        ([7, 7, 7, 7], "EI", "preserving"),
        ([9, 9, 9, 9], "EI", "other"),
        ([8, 8, 5, 5], "AD", "random"),
        ([8, 9, 10, 11], "APD", "sequential"),
        ([8, 30, 2, 11], "APD", "random"),
        ([8, 8, 9, 10], "APD", "random"),
    ],
)
def test_mapping_and_allocation_are_named(ports: list[int], mapping: str, allocation: str) -> None:
    seen = [("198.51.100.1", port) for port in ports]
    assert (name_mapping(seen), name_allocation(7, seen)) == (mapping, allocation)


def test_the_same_port_at_another_address_is_another_mapping() -> None:
    assert name_mapping([("198.51.100.1", 7)] * 2 + [("198.51.100.2", 7)] * 2) == "AD"


def test_differences_name_the_column() -> None:
    line = " ".join(EXPECTED["pr"].words())
    assert Behaviour.parse(line) == EXPECTED["pr"]
    assert EXPECTED["pr"].differences(EXPECTED["prR"]) == [
        "udp_stranger is icmp, not drop",
        "tcp_stranger is rst, not drop",
        "after_rst is rst, not drop",
    ]


@pytest.mark.parametrize("count", [len(COLUMNS) - 1, len(COLUMNS) + 1])
def test_a_line_of_another_length_is_no_behaviour(count: int) -> None:
    with pytest.raises(TypeError):
        Behaviour.parse("x " * count)


# --- the documentation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_the_documentation_has_the_line_that_is_expected(name: str) -> None:
    b = EXPECTED[name]
    udp = "blocked" if b.udp_mapping == "blocked" else f"{b.udp_mapping} {b.udp_filtering} {b.udp_allocation}"
    tcp = f"{b.tcp_mapping} {b.tcp_filtering} {b.tcp_allocation}"
    strangers = (udp, b.udp_stranger, b.early, tcp, b.tcp_stranger)
    rest = (b.after_syn, b.after_rst, b.rst_ends, b.tcp_hairpin, b.ports, b.hops, b.ipv6)
    assert f"| `{name}` | {' | '.join((*strangers, *rest))} |\n" in PAGE


def test_the_documentation_tells_what_each_kind_is() -> None:
    told = PAGE.partition("## The kinds")[2].partition("## How it is proved")[0]
    assert [name for name in KINDS if f"`{name}`" not in told] == []
