"""What to expect of each kind of NAT: the transports on which the thirteen kinds of the laboratory settle."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from p2ptunnel.protocol.outlook import _KINDS, Carrier, expect
from p2ptunnel.testing.natlab.kinds import MATRIX_KINDS
from p2ptunnel.wire.messages import NatHints

HINTS = {name: hints for name, _, hints in _KINDS}


def carriers(own: NatHints, *, has_mapping: bool = False) -> dict[str, Carrier]:
    return {each.kind: each.carrier for each in expect(own, descriptors=None, has_mapping=has_mapping)}


def test_the_kinds_are_those_of_the_laboratory() -> None:
    assert tuple(HINTS) == MATRIX_KINDS


@pytest.mark.parametrize("own", MATRIX_KINDS)
def test_a_pair_settles_on_the_same_whoever_calls(own: str) -> None:
    assert carriers(HINTS[own]) == {other: carriers(HINTS[other])[own] for other in MATRIX_KINDS}


def test_only_three_cells_need_the_relay_and_one_quic() -> None:
    cells = {(own, other): carrier for own in MATRIX_KINDS for other, carrier in carriers(HINTS[own]).items()}
    assert {cell for cell, carrier in cells.items() if carrier == "relay"} == {
        ("symR", "symR"),
        ("symR", "symS"),
        ("symS", "symR"),
    }
    assert {cell for cell, carrier in cells.items() if carrier == "quic"} == {("noSO", "noSO")}
    assert set(cells.values()) == {"tcp", "quic", "relay"}


def test_a_mapping_by_the_router_makes_us_open_to_all() -> None:
    assert set(carriers(HINTS["symR"], has_mapping=True).values()) == {"tcp"}


def test_what_would_be_better_is_said_where_something_would() -> None:
    told = {each.kind: each.improve for each in expect(HINTS["symR"], descriptors=256, has_mapping=False)}
    assert told["pub"] == ""
    assert told["pr"].startswith("allow more open files: 256 are too few")
    assert told["symR"] == "turn on UPnP, NAT-PMP or PCP in the router"
    enough = {each.kind: each.improve for each in expect(HINTS["symR"], descriptors=1024, has_mapping=False)}
    assert enough["pr"] == ""


def test_what_is_not_known_is_taken_for_the_usual() -> None:
    assert carriers(NatHints(tcp="eim", udp="eim", low=True)) == carriers(HINTS["pr"])
    assert carriers(replace(HINTS["pr"], crosses=None)) == carriers(HINTS["pr"])
