"""Who does what, by the classes of the two mappings: the table, the phases, and that both sides' plans fit."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from p2ptunnel.protocol.strategy import METHODS, Method, Plan, Shape, choose, shape_of
from p2ptunnel.types import Role, Transport
from p2ptunnel.wire.messages import NatHints, PortRow
from p2ptunnel.wire.signal import FreshPort

ROW = PortRow(40_000, 1)
OPEN = NatHints(tcp="eim", low=True, is_open=True)
EIM = NatHints(tcp="eim", low=True)
SEQ = NatHints(tcp="seq", low=True, tcp_row=ROW)
RND = NatHints(tcp="rnd", low=True)
KNOWN = NatHints(low=True)
"""Of its NAT nothing is known."""
BY_SHAPE: dict[Shape, NatHints] = {"open": OPEN, "eim": EIM, "seq": SEQ, "hard": RND}
NAMED = (("198.51.100.2", 40_000),)
Pair = tuple[Plan, Plan]


def plans(caller: NatHints, callee: NatHints, transport: Transport = "tcp") -> Pair:
    return choose(transport, "caller", caller, callee), choose(transport, "callee", callee, caller)


def low(pair: Pair, phase: int) -> tuple[bool, bool]:
    """Whose SYNs die on the way: the caller's, the callee's."""
    return pair[0].sends_low(phase), pair[1].sends_low(phase)


@pytest.mark.parametrize(
    ("hints", "shape"),
    [
        (OPEN, "open"),
        (EIM, "eim"),
        (SEQ, "seq"),
        (RND, "hard"),
        (NatHints(tcp="adm"), "hard"),
        (NatHints(tcp="seq"), "hard"),  # it does not say where it stands
        (NatHints(tcp="none"), "eim"),
        (NatHints(), "eim"),
        (NatHints(tcp="what"), "eim"),
        (NatHints(tcp="rnd", is_open=True), "open"),
        (NatHints(tcp="rnd", is_open=False), "hard"),
    ],
)
def test_what_a_mapping_is_good_for(hints: NatHints, shape: str) -> None:
    assert shape_of(hints, "tcp") == shape


def test_transports_are_judged_apart() -> None:
    hints = NatHints(tcp="eim", udp="seq", udp_row=ROW)
    assert (shape_of(hints, "tcp"), shape_of(hints, "udp")) == ("eim", "seq")
    assert choose("udp", "caller", EIM, hints).row == ROW


@pytest.mark.parametrize("pair", list(product(get_args(Shape), repeat=2)))
def test_the_table_decides_in_either_order(pair: tuple[Shape, Shape]) -> None:
    assert (pair in METHODS) is (pair[::-1] not in METHODS or pair[0] == pair[1])
    method = METHODS.get(pair) or METHODS[pair[::-1]]
    caller, callee = plans(*(BY_SHAPE[shape] for shape in pair))
    assert caller.method is callee.method is method
    assert {caller.part, callee.part} == ({"easy", "hard"} if method is Method.BIRTHDAY else {None})


def test_who_opens_first_is_the_callee_then_the_caller_then_nobody() -> None:
    pair = plans(EIM, EIM)
    assert [low(pair, phase) for phase in range(4)] == [(False, True), (True, False), (False, False), (False, False)]
    assert [plan.waits(0) for plan in pair] == [False, False]


@pytest.mark.parametrize("unable", [replace(EIM, low=False), replace(EIM, crosses=False)], ids=["low", "so"])
def test_a_callee_that_cannot_open_waits_for_the_caller_to_have_done_so(unable: NatHints) -> None:
    pair = plans(EIM, unable)
    assert [low(pair, phase) for phase in range(3)] == [(True, False), (False, False), (False, False)]
    assert [plan.waits(0) for plan in pair] == [False, True]
    assert not pair[1].waits(1)


def test_a_caller_that_cannot_open_leaves_it_to_the_callee() -> None:
    pair = plans(replace(EIM, low=False), EIM)
    assert [low(pair, phase) for phase in range(3)] == [(False, True), (False, False), (False, False)]


def test_if_nobody_can_open_both_send_plain_ones_at_one_instant() -> None:
    unable = replace(EIM, low=False)
    pair = plans(unable, unable)
    assert not any(any(low(pair, phase)) for phase in range(3))
    assert [plan.waits(0) for plan in pair] == [False, True]
    assert all(plan.dials(phase) for plan in pair for phase in range(3))


def test_if_no_nat_lets_syns_meet_there_is_nothing_to_do_over_tcp() -> None:
    refusing = replace(EIM, crosses=False, quic=True)
    pair = plans(refusing, refusing)
    assert {plan.method for plan in pair} == {Method.NONE}
    assert [pair[0].dials(phase) for phase in range(3)] == [True, False, False]  # hints may be wrong
    assert {plan.method for plan in plans(refusing, refusing, "udp")} == {Method.PUNCH}


@pytest.mark.parametrize(
    ("caller", "callee"),
    [
        (NatHints(), NatHints(quic=True)),
        (NatHints(quic=True), NatHints()),
        (NatHints(quic=True, udp="none"), NatHints(quic=True)),
        (NatHints(quic=True), NatHints(quic=True, udp="none")),
        (NatHints(quic=True, udp="rnd"), NatHints(quic=True, udp="rnd")),
    ],
)
@pytest.mark.parametrize("tcp", [EIM, SEQ])
def test_where_quic_cannot_replace_it_nobodys_word_rules_tcp_out(caller: NatHints, callee: NatHints, tcp: NatHints) -> None:
    usual = plans(*(replace(tcp, udp=side.udp, quic=side.quic) for side in (caller, callee)))
    refusing = plans(*(replace(tcp, udp=side.udp, quic=side.quic, crosses=False) for side in (caller, callee)))
    assert refusing == tuple(replace(plan, is_doubted=True) for plan in usual)
    assert not any(plan.is_doubted for plan in usual)


@pytest.mark.parametrize(("hard_crosses", "easy_crosses"), list(product([True, False, None], repeat=2)))
def test_a_birthday_needs_the_hard_sides_nat_to_let_syns_meet(hard_crosses: bool | None, easy_crosses: bool | None) -> None:
    hard, easy = replace(RND, crosses=hard_crosses), replace(EIM, crosses=easy_crosses)
    expected = Method.NONE if hard_crosses is False else Method.BIRTHDAY
    assert {plan.method for plan in plans(hard, easy)} == {expected}
    assert {plan.method for plan in plans(easy, hard)} == {expected}


def test_before_a_birthday_the_easy_side_opens_and_the_hard_side_dials_plain() -> None:
    for pair in (plans(RND, EIM), plans(EIM, RND)):
        easy, hard = sorted(pair, key=lambda plan: plan.part or "")
        assert (easy.part, hard.part) == ("easy", "hard")
        assert (easy.sends_low(0), hard.sends_low(0)) == (True, False)
        assert easy.dials(0)
        assert hard.dials(0)
        assert hard.waits(0) is (hard.role == "callee")


def test_an_open_side_listens_before_it_does_anything_else() -> None:
    for other in (EIM, SEQ, RND, KNOWN):
        caller, callee = plans(other, OPEN)
        assert [callee.dials(phase) for phase in range(3)] == [False, True, True]
        assert [caller.dials(phase) for phase in range(3)] == [True, True, True]
        assert low((caller, callee), 0) == (False, False)
        assert low((caller, callee), 1) == (False, True)  # it was not open after all: as with any other
        assert not caller.waits(0)


def test_of_two_open_sides_the_callee_listens() -> None:
    caller, callee = plans(OPEN, OPEN)
    assert (caller.dials(0), callee.dials(0)) == (True, False)


def test_an_open_caller_listens_for_a_callee_that_is_not() -> None:
    caller, callee = plans(OPEN, EIM)
    assert (caller.dials(0), callee.dials(0), callee.waits(0)) == (False, True, False)


def test_to_a_port_that_is_known_everybody_goes() -> None:
    for plan in (*plans(EIM, EIM), *plans(RND, EIM), *plans(OPEN, SEQ), plans(SEQ, EIM)[0]):
        assert plan.targets(NAMED, 3) == NAMED
        assert plan.targets((*NAMED, ("2001:db8::2", 7)), 0) == (*NAMED, ("2001:db8::2", 7))


def test_to_a_sequential_nat_go_five_until_it_has_told_sealed_where_it_stands() -> None:
    plan = plans(EIM, SEQ)[0]
    assert plan.targets(NAMED, 0) == tuple(("198.51.100.2", 40_000 + k) for k in range(1, 6))
    assert len(plan.targets(NAMED, 2)) == 5
    told = plan.with_row(FreshPort(proto="tcp", row=PortRow(50_000, 2, busy=True)))
    assert told.targets(NAMED, 0) == tuple(("198.51.100.2", 50_000 + 2 * k) for k in range(1, 17))
    assert len(told.targets(NAMED, 1)) == 32


def test_between_two_sequential_nats_the_caller_aims_at_every_second_port() -> None:
    caller, callee = plans(SEQ, SEQ)
    assert [port for _, port in caller.targets(NAMED, 0)] == [40_001, 40_003, 40_005, 40_007, 40_009]
    assert [port for _, port in callee.targets(NAMED, 0)] == [40_001, 40_002, 40_003, 40_004, 40_005]


def test_ports_are_predicted_at_each_host_once() -> None:
    named = (("198.51.100.2", 1), ("2001:db8::2", 2), ("198.51.100.2", 3))
    targets = plans(EIM, SEQ)[0].targets(named, 0)
    assert [host for host, _ in targets] == ["198.51.100.2"] * 5 + ["2001:db8::2"] * 5


@pytest.mark.parametrize(
    "told", [FreshPort(proto="udp", row=PortRow(50_000, 2)), FreshPort(proto="tcp", row=PortRow(50_000, 2))]
)
def test_what_is_of_no_use_changes_nothing(told: FreshPort) -> None:
    plan = plans(EIM, EIM)[0]
    assert plan.with_row(told) is plan
    plan = plans(EIM, SEQ)[0]
    assert (plan.with_row(told) is plan) is (told.proto == "udp")


HINTS = st.builds(
    NatHints,
    tcp=st.sampled_from(["", "eim", "adm", "seq", "rnd", "none", "?"]),
    udp=st.sampled_from(["", "eim", "seq", "rnd", "none"]),
    low=st.booleans(),
    tcp_row=st.none() | st.builds(PortRow, st.integers(0, 65_535), st.integers(-32, 32), st.booleans()),
    udp_row=st.none() | st.builds(PortRow, st.integers(0, 65_535), st.integers(-32, 32), st.booleans()),
    crosses=st.none() | st.booleans(),
    is_open=st.none() | st.booleans(),
    quic=st.booleans(),
)


@given(HINTS, HINTS, st.sampled_from(["tcp", "udp"]))
def test_whatever_is_said_both_plans_fit(caller: NatHints, callee: NatHints, transport: Transport) -> None:
    pair = plans(caller, callee, transport)
    assert pair[0].method is pair[1].method
    assert pair[0].openers == pair[1].openers
    for phase in range(4):
        assert low(pair, phase) != (True, True)  # two SYNs that both die meet nobody
        assert any(plan.dials(phase) for plan in pair) or pair[0].method is Method.NONE
    roles: tuple[Role, Role] = ("caller", "callee")
    assert all(len(choose(transport, role, caller, callee).targets(NAMED, 9)) <= 5 for role in roles)


# --- swapped roles --------------------------------------------------------------------------------------------------------


def swapped(caller: NatHints, callee: NatHints) -> Pair:
    return choose("tcp", "caller", caller, callee, is_swapped=True), choose("tcp", "callee", callee, caller, is_swapped=True)


def test_with_swapped_roles_the_caller_opens_first() -> None:
    pair = swapped(EIM, EIM)
    assert [low(pair, phase) for phase in range(3)] == [(True, False), (False, True), (False, False)]
    assert [plan.waits(0) for plan in pair] == [False, True]


@given(HINTS, HINTS)
def test_swapping_orders_and_leaves_nothing_out(caller: NatHints, callee: NatHints) -> None:
    for plan, other in zip(plans(caller, callee), swapped(caller, callee), strict=True):
        assert sorted(map(str, plan.openers)) == sorted(map(str, other.openers))
        assert replace(plan, openers=()) == replace(other, openers=())
