"""Classification of a mapping from what three observers saw."""

from __future__ import annotations

from typing import get_args

import pytest

from p2ptunnel.protocol.nat import Mapping, MappingClass, NatProfile, classify, describe
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import NatHints, PortRow

HOST = "198.51.100.7"


def at(port: int | None, host: str = HOST) -> Address | None:
    return None if port is None else (host, port)


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ((4000, 4000, 4000), ("eim", 4000, 0)),
        ((4000, 4000, 4001), ("adm", 4001, 0)),
        ((4000, 4000, 60000), ("adm", 60000, 0)),
        ((4000, 4001, 4002), ("seq", 4002, 1)),
        ((4000, 4002, 4004), ("seq", 4004, 2)),
        ((4004, 4002, 4000), ("seq", 4000, -2)),
        ((4000, 4032, 4064), ("seq", 4064, 32)),
        ((4000, 4033, 4066), ("rnd", 4066, 0)),  # too wide a step to be one
        ((4000, 4002, 4005), ("seq", 4005, 1)),  # steps of 2 and 3: others took ports in between
        ((4000, 4004, 4006), ("seq", 4006, 2)),
        ((4006, 4002, 4000), ("seq", 4000, -2)),
        ((4000, 4001, 4000), ("rnd", 4000, 0)),
        ((4000, 4001, 3999), ("rnd", 3999, 0)),
        ((65534, 65535, 1024), ("seq", 1024, 1)),  # behind the last port comes the first
        ((65530, 1028, 1038), ("seq", 1038, 10)),
        ((1025, 1024, 65535), ("seq", 65535, -1)),
        ((4000, 61234, 23456), ("rnd", 23456, 0)),
        ((4000, 4001, 4001), ("rnd", 4001, 0)),
        ((4000, 4000, None), ("eim", 4000, 0)),
        ((4000, None, 4000), ("eim", 4000, 0)),
        ((None, 4000, 4001), ("seq", 4001, 1)),
        ((4000, None, 9000), ("rnd", 9000, 0)),
        ((4000, None, None), ("unknown", 4000, 0)),
        ((None, None, 4000), ("unknown", 4000, 0)),
    ],
)
def test_classes(ports: tuple[int | None, int | None, int | None], expected: tuple[str, int, int]) -> None:
    mapping = classify(*(at(port) for port in ports))
    assert (mapping.kind, mapping.last_port, mapping.delta) == expected
    assert mapping.observed == (HOST, expected[1])


def test_no_answer_is_a_class_of_its_own() -> None:
    assert classify(None, None, None) == Mapping("none")


def test_a_server_with_one_address_cannot_tell_address_dependence() -> None:
    assert classify(at(4000), at(4000), None, asked_third=False).kind == "eim"
    assert classify(at(4000), at(4001), None, asked_third=False) == Mapping("seq", at(4001), 4001, 1)
    assert classify(at(4000), at(9000), None, asked_third=False).kind == "rnd"


def test_another_outside_address_is_no_endpoint_independence() -> None:
    assert classify(at(4000), at(4000), at(4000, "198.51.100.8")).kind == "adm"


@pytest.mark.parametrize("kind", get_args(MappingClass))
def test_each_class_has_words(kind: MappingClass) -> None:
    assert describe(kind)


@pytest.mark.parametrize(
    ("ports", "is_busy"), [((4000, 4002, 4004), False), ((4000, 4001, 4003), True), ((4009, 4003, 4001), True)]
)
def test_a_nat_whose_steps_differ_is_busy(ports: tuple[int, int, int], is_busy: bool) -> None:
    mapping = classify(*(at(port) for port in ports))
    assert mapping.is_busy is is_busy
    assert mapping.row == PortRow(ports[-1], mapping.delta, is_busy)


def test_only_a_sequential_nat_stands_somewhere_in_a_row() -> None:
    for mapping in (classify(at(4000), at(4000), at(4000)), classify(at(4000), at(9000), at(20)), Mapping("none")):
        assert mapping.row is None


def test_a_port_is_preserved_or_not_or_unknown() -> None:
    mapping = classify(at(4000), at(4000), at(4000))
    assert mapping.is_preserved(4000) is True
    assert mapping.is_preserved(4001) is False
    assert Mapping("none").is_preserved(4000) is None


@pytest.mark.parametrize(
    ("tcp", "udp", "expected"), [(4000, 4000, True), (4000, 4001, False), (4000, None, None), (None, 4000, None)]
)
def test_both_transports_show_one_port_or_not(tcp: int | None, udp: int | None, expected: bool | None) -> None:
    profile = NatProfile(tcp=classify(at(tcp), at(tcp), at(tcp)), udp=classify(at(udp), at(udp), at(udp)))
    assert profile.tcp_equals_udp is expected


def test_hints_say_what_is_known_and_nothing_else() -> None:
    assert NatProfile().hints(can_open_low=False, rtt=0.0) == NatHints()
    profile = NatProfile(
        tcp=classify(at(4000), at(4001), at(4003)), udp=classify(None, None, None), crosses=False, is_open=True
    )
    assert profile.hints(can_open_low=True, rtt=0.0314) == NatHints(
        tcp="seq", udp="none", low=True, rtt=31, tcp_row=PortRow(4003, 1, True), crosses=False, is_open=True
    )


def test_a_server_that_is_far_away_fits_into_the_hints() -> None:
    assert NatProfile().hints(can_open_low=True, rtt=1e9).rtt == 60_000
