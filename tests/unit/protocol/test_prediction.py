"""Which ports come next, and how many of them are tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.addresses import port_refusal
from p2ptunnel.protocol.prediction import predict, steps, window
from p2ptunnel.types import Transport
from p2ptunnel.wire.messages import PortRow


@pytest.mark.parametrize(
    ("last", "delta", "expected"),
    [
        (40_000, 1, (40_001, 40_002, 40_003)),
        (40_000, 2, (40_002, 40_004, 40_006)),
        (40_000, -1, (39_999, 39_998, 39_997)),
        (65_533, 1, (65_534, 65_535, 1024)),
        (65_535, 1, (1024, 1025, 1026)),
        (1025, -1, (1024, 65_535, 65_534)),
        (65_530, 10, (1028, 1038, 1048)),
        (1899, 1, (1901, 1902)),  # 1900 answers one packet with many: nobody probes it
        (40_000, 0, (40_000,)),
    ],
)
def test_the_next_ports(last: int, delta: int, expected: tuple[int, ...]) -> None:
    assert predict(PortRow(last, delta), range(1, 4)) == expected


@given(st.integers(0, 65_535), st.integers(-32, 32), st.integers(0, 64))
def test_whatever_a_row_says_no_probe_goes_where_none_may(last: int, delta: int, count: int) -> None:
    ports = predict(PortRow(last, delta), range(1, count + 1))
    assert len(ports) == len(set(ports)) <= count
    assert all(port_refusal(port) is None for port in ports)


@pytest.mark.parametrize(
    ("transport", "is_busy", "expected"),
    [("tcp", False, [5, 10, 20, 32, 32]), ("udp", False, [8, 16, 32, 32, 32]), ("tcp", True, [16, 32, 32, 32, 32])],
)
def test_a_window_doubles_with_each_round(transport: Transport, is_busy: bool, expected: list[int]) -> None:
    assert [window(transport, number, is_busy=is_busy, is_sealed=True) for number in range(5)] == expected
    assert window(transport, 10**6, is_busy=is_busy, is_sealed=True) == 32


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("is_busy", [False, True])
def test_hints_buy_five_packets(transport: Transport, is_busy: bool) -> None:
    assert {window(transport, number, is_busy=is_busy, is_sealed=False) for number in range(9)} == {5}


def test_one_side_aims_at_every_port_the_other_at_every_second() -> None:
    assert list(steps(5, is_staggered=False)) == [1, 2, 3, 4, 5]
    assert list(steps(5, is_staggered=True)) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("count", [5, 16, 32])
def test_two_sequential_sides_meet_in_spite_of_taken_ports(count: int) -> None:
    """The k-th SYN of a side leaves from its k-th port, and as many further as others have taken."""
    caller = list(enumerate(steps(count, is_staggered=True), 1))
    callee = list(enumerate(steps(count, is_staggered=False), 1))
    for taken in range((count + 1) // 2):
        for ours in range(taken + 1):
            theirs = taken - ours
            sent = {(k + ours, aim) for k, aim in caller}
            met = {(aim, k + theirs) for k, aim in callee}
            assert sent & met, (ours, theirs)


def test_if_both_aimed_alike_one_taken_port_would_part_them() -> None:
    both = list(enumerate(steps(32, is_staggered=False), 1))
    assert not {(k + 1, aim) for k, aim in both} & {(aim, k) for k, aim in both}
