"""Classification of a mapping from what three observers saw."""

from __future__ import annotations

from typing import get_args

import pytest

from p2ptunnel.protocol.nat import Mapping, MappingClass, classify, describe
from p2ptunnel.types import Address

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
