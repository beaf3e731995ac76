"""Every kind behaves as its name says, and the proof notices when one does not."""

from __future__ import annotations

import time
from typing import Any

import pytest

from p2ptunnel.errors import ConfigError
from p2ptunnel.testing.natlab import KINDS, Lab, Site
from p2ptunnel.testing.natlab.__main__ import main
from p2ptunnel.testing.natlab.behaviour import EXPECTED, measure, proof, prove
from p2ptunnel.testing.natlab.behaviour.sockets import Bench, address_of
from p2ptunnel.testing.natlab.behaviour.tcp import measure_ports
from p2ptunnel.testing.natlab.behaviour.way import measure_hops, measure_ipv6

SECONDS = 30.0


def test_every_kind_behaves_as_its_name_says() -> None:
    before = time.monotonic()
    verdicts = list(prove())
    assert [verdict.kind for verdict in verdicts] == list(KINDS)
    assert {verdict.kind: verdict.differences for verdict in verdicts if not verdict.is_proved} == {}
    assert time.monotonic() - before < SECONDS


NO_PREROUTING = "flush chain ip nat pre"
MASQUERADE, RANDOM = "masquerade", "masquerade fully-random"


def translate(rule: str) -> str:
    return f"flush chain ip nat post\nadd rule ip nat post oifname wan {rule}\n"


DAMAGED_RULES = {
    "prR": ("flush chain inet fw input", {"udp_stranger", "tcp_stranger", "after_rst"}),
    "prO": ("add chain inet fw input { policy drop ; }", {"early", "udp_stranger", "tcp_stranger"}),
    "pr": (translate(RANDOM), {"udp_mapping", "tcp_mapping"}),
    "symR": (translate(MASQUERADE), {"udp_mapping", "tcp_mapping", "ports"}),
    "symS": (translate(RANDOM), {"udp_allocation", "tcp_allocation"}),
    "shift": (translate(MASQUERADE), {"udp_allocation", "tcp_allocation", "ports"}),
    "fc": (NO_PREROUTING, {"udp_filtering", "tcp_filtering"}),
    "ar": ("flush chain ip nat forw", {"udp_filtering", "tcp_filtering"}),
    "noU": ("flush chain inet fw forward\nadd chain inet fw forward { policy accept ; }", {"udp_mapping"}),
    "fc_hairpin": (translate(MASQUERADE), {"tcp_hairpin"}),
    "v6_drop": ("add chain inet fw forward { policy accept ; }", {"ipv6"}),
    "v6_open": ("add rule inet fw forward drop", {"ipv6"}),
    "v6_reject": ("insert rule inet fw forward meta nfproto ipv6 iifname wan ct state new drop", {"ipv6"}),
}
"""By kind: commands that damage its router, and the columns that must notice."""

DAMAGED_WORDS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "pub": ({"filtering": "address-and-port-dependent"}, {"udp_filtering", "tcp_filtering", "udp_stranger", "tcp_stranger"}),
    "pubfw": ({"filtering": "endpoint-independent"}, {"udp_filtering", "tcp_filtering"}),
    "noSO": ({"simultaneous_open": True}, {"after_syn"}),
    "dbl": ({"carrier": ""}, {"hops", "udp_allocation", "tcp_allocation"}),
    "user_full_cone": ({"filtering": "address-dependent"}, {"udp_filtering", "tcp_filtering"}),
    "user_addr_restricted": ({"filtering": "endpoint-independent"}, {"udp_filtering", "tcp_filtering"}),
    "user_port_restricted": ({"mapping": "address-and-port-dependent", "allocation": "random"}, {"udp_mapping"}),
    "user_port_restricted_reject": ({"unsolicited": "drop"}, {"udp_stranger", "tcp_stranger"}),
    "user_shift": ({"allocation": "preserving"}, {"udp_allocation", "tcp_allocation", "ports"}),
    "user_sym_random": ({"allocation": "sequential"}, {"udp_allocation", "tcp_allocation"}),
    "user_sym_seq": ({"allocation": "random"}, {"udp_allocation", "tcp_allocation"}),
    "user_sym_addr": ({"mapping": "address-and-port-dependent"}, {"udp_mapping", "tcp_mapping"}),
    "user_no_udp": ({"udp": True}, {"udp_mapping"}),
    "no_simopen_rst": ({"unsolicited": "drop"}, {"udp_stranger", "tcp_stranger", "after_syn", "after_rst"}),
    "rst_kills": ({"inbound_reset": "session"}, {"rst_ends"}),
    "cgn": ({"allocation": "preserving"}, {"udp_allocation", "tcp_allocation", "ports"}),
    "cgn_hairpin": ({"hairpinning": False}, {"udp_hairpin", "tcp_hairpin"}),
    "dbl_hairpin": ({"carrier": ""}, {"hops"}),
    "pr_cgn": ({"carrier": ""}, {"hops", "ports"}),
}
"""By kind: fields that are wrong, and the columns that must notice."""


@pytest.fixture(scope="module")
def damaged() -> dict[str, set[str]]:
    """By kind, the columns in which a damaged site of it differs; all sites are measured at the same time."""
    with Lab() as lab:
        sites = {kind: lab.site(kind, hosts=2) for kind in DAMAGED_RULES}
        for kind, (commands, _) in DAMAGED_RULES.items():
            sites[kind].router.nft(commands)
        for kind, (words, _) in DAMAGED_WORDS.items():
            sites[kind] = lab.site(kind, hosts=1 if kind in ("pub", "pubfw") else 2, **words)
        threads = {kind: lab.server.thread(measure, lab, site) for kind, site in sites.items()}
        differences = {kind: EXPECTED[kind].differences(thread.result(SECONDS)) for kind, thread in threads.items()}
    return {kind: {line.split()[0] for line in lines} for kind, lines in differences.items()}


@pytest.mark.parametrize("kind", DAMAGED_RULES)
def test_a_damaged_rule_of_a_linux_router_fails_the_proof(kind: str, damaged: dict[str, set[str]]) -> None:
    assert DAMAGED_RULES[kind][1] <= damaged[kind]


@pytest.mark.parametrize("kind", DAMAGED_WORDS)
def test_a_word_that_was_changed_fails_the_proof(kind: str, damaged: dict[str, set[str]]) -> None:
    assert DAMAGED_WORDS[kind][1] <= damaged[kind]


def test_every_kind_is_damaged_once() -> None:
    assert {*DAMAGED_RULES, *DAMAGED_WORDS} == set(KINDS)


def test_a_kind_that_differs_is_measured_again_and_then_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def damaged(lab: Lab, name: str) -> Site:
        measured.append(name)
        return lab.site(name, hosts=2, allocation="shifted")

    monkeypatch.setattr(proof, "_add_site", damaged)
    [verdict] = prove(["pr"])
    assert measured == ["pr", "pr"]
    assert not verdict.is_proved
    assert "udp_allocation is other, not preserving" in verdict.differences


def test_a_site_that_lets_nothing_out_is_a_verdict_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "_add_site", lambda lab, _: lab.site("noSO", tcp=False))
    [verdict] = prove(["noSO"])
    assert verdict.differences == ["no connection outwards: drop"]


def test_hops_are_unknown_where_nobody_says_that_time_was_exceeded(natlab: Lab) -> None:
    natlab.inet.nft("table ip quiet {\n chain o {\n type filter hook output priority 0\n ip protocol icmp drop\n }\n }\n")
    assert measure_hops(natlab.server, natlab.inet, natlab.site("pr").host) == "-"


def test_ports_cannot_be_compared_where_udp_is_blocked(natlab: Lab) -> None:
    assert measure_ports(natlab.server, natlab.site("noU").host) == "-"


def test_a_host_that_does_not_get_out_over_ipv6_is_no_answer(natlab: Lab) -> None:
    site = natlab.site("v6_drop")
    site.router.nft("insert rule inet fw forward meta nfproto ipv6 drop")
    with pytest.raises(ConnectionError, match="no connection outwards over IPv6: drop"):
        measure_ipv6(natlab.server, site.host)


def test_probers_that_ask_at_the_same_time_never_share_a_port(natlab: Lab) -> None:
    server = natlab.server
    server.namespace.configure("ipv4/ip_local_port_range", "40000 40015")
    with Bench() as others, Bench() as bench:
        for port in range(40000, 40008):  # half of them are taken at the second address
            others.udp(server, server.ips[1], port)
            others.listener(server, server.ips[1], port)
        for observers in (bench.udp_observers(server), bench.tcp_observers(server)):
            ends = [address_of(observer) for observer in observers]
            assert [address for address, _ in ends] == [server.ips[0], server.ips[0], server.ips[1], server.ips[1]]
            assert ends[0][1] == ends[2][1] >= 40008
            assert len(set(ends)) == 4


def test_an_unknown_kind_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match="there is no kind 'pigeon'"):
        list(prove(["pr", "pigeon"]))


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["behaviour", "pub", "fc"]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[1].split() == ["ok", "pub", *EXPECTED["pub"].words()]
    assert output.endswith("2 of 2 kinds behave as their names say\n")
