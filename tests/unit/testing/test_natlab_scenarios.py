"""What scenarios say of themselves."""

from __future__ import annotations

import pytest

from p2ptunnel.errors import ConfigError
from p2ptunnel.testing.natlab.attempt import Attempt
from p2ptunnel.testing.natlab.scenarios.networks import NETWORKS, find_network
from p2ptunnel.testing.natlab.scenarios.report import Calls, Switch, Transfer, Warm, WarmCall
from p2ptunnel.testing.natlab.scenarios.transfer import _Sink

DIRECT = Attempt(0.8, "direct tcp", first_byte=0.9, direct_after=0.8)
RELAYED = Attempt(0.2, "relay tcp", first_byte=0.3, reason="udp t=31: no answer")
FAILED = Attempt(5.0, "", "NoPathError: nothing works")
OPENED = Switch("the direct path opens", "direct tcp", at=4.7, seconds=0.85, pause=0.54)
CUT = Switch("the direct path is cut", "relay tcp", at=12.4, seconds=1.45, pause=1.36)


def test_calls_say_how_many_connected_over_what_how_fast_and_why_not() -> None:
    calls = Calls("loss-5", "5 % of packets are lost", (DIRECT, DIRECT, RELAYED, FAILED))
    assert not calls.is_good
    assert str(calls).splitlines() == [
        "loss-5: 5 % of packets are lost",
        "  3 of 4 connected: 2 direct tcp, 1 relay tcp",
        "  first byte  p50 0.900 s  p95 0.900 s  max 0.900 s  of 3",
        "  direct      p50 0.800 s  p95 0.800 s  max 0.800 s  of 2",
        "  1 x NoPathError: nothing works",
        "  1 relayed: udp t=31: no answer",
    ]
    assert calls.figures == {
        "connected": 3,
        "paths": {"direct tcp": 2, "relay tcp": 1},
        "first_byte": {"count": 3, "p50": 0.9, "p95": 0.9, "max": 0.9},
        "direct_after": {"count": 2, "p50": 0.8, "p95": 0.8, "max": 0.8},
        "errors": {"NoPathError: nothing works": 1},
    }


def test_errors_of_one_class_are_counted_together_by_the_first_of_them() -> None:
    texts = ("NoPathError: to 192.0.2.1", "TimeoutError: ", "NoPathError: to 192.0.2.2")
    calls = Calls("loss-5", "5 %", tuple(Attempt(5.0, "", text) for text in texts))
    assert calls.errors == {"NoPathError: to 192.0.2.1": 2, "TimeoutError: ": 1}


def test_calls_that_all_failed_have_no_times() -> None:
    assert str(Calls("lan-alone", "no server", (FAILED,))).splitlines()[1:4] == [
        "  0 of 1 connected",
        "  first byte  -",
        "  direct      -",
    ]


def test_warm_calls_stand_beside_what_they_are_to_reach() -> None:
    calls = (WarmCall(0.4, 0.45, 0.6, 0.66), WarmCall(0.5, 0.55), WarmCall(error="EOFError: "))
    warm = Warm("warm", "two homes", calls, calls[:1], 0.315, 0.35, 0.45)
    assert not warm.is_good
    assert str(warm).splitlines() == [
        "warm: two homes; 3 calls of each sort, one after the other",
        "  confirm=True",
        "    connect returned      p50 0.400 s  p95 0.500 s  max 0.500 s  of 2",
        "    first byte at callee  p50 0.450 s  p95 0.550 s  max 0.550 s  of 2  goal 0.315 s",
        "    direct path proved    p50 0.600 s  p95 0.600 s  max 0.600 s  of 1  goal 0.350 s",
        "    direct path in use    p50 0.660 s  p95 0.660 s  max 0.660 s  of 1  goal 0.450 s",
        "  confirm=False",
        "    connect returned      p50 0.400 s  p95 0.400 s  max 0.400 s  of 1",
        "    first byte at callee  p50 0.450 s  p95 0.450 s  max 0.450 s  of 1  goal 0.315 s",
        "    direct path proved    p50 0.600 s  p95 0.600 s  max 0.600 s  of 1  goal 0.350 s",
        "    direct path in use    p50 0.660 s  p95 0.660 s  max 0.660 s  of 1  goal 0.450 s",
        "  1 x EOFError: ",
    ]
    assert warm.figures["unconfirmed"] == {
        "connected": {"count": 1, "p50": 0.4, "p95": 0.4, "max": 0.4},
        "first_byte": {"count": 1, "p50": 0.45, "p95": 0.45, "max": 0.45},
        "proved": {"count": 1, "p50": 0.6, "p95": 0.6, "max": 0.6},
        "direct_after": {"count": 1, "p50": 0.66, "p95": 0.66, "max": 0.66},
    }
    assert Warm("warm", "two homes", calls[:2], calls[:1], 0.315, 0.35, 0.45).is_good


def test_a_transfer_says_when_it_changed_paths_and_how_long_nothing_came() -> None:
    transfer = Transfer(200_000_000, "relay tcp", 24.0, True, (OPENED, CUT))
    assert transfer.is_good
    assert str(transfer).splitlines() == [
        "transfer: 200 MB while a direct path opens and is cut",
        "  24.0 s, sha256 equal; began on relay tcp",
        "    4.7 s  the direct path opens: direct tcp after 0.85 s, longest pause 0.54 s",
        "   12.4 s  the direct path is cut: relay tcp after 1.45 s, longest pause 1.36 s",
    ]


@pytest.mark.parametrize(
    "transfer",
    [
        Transfer(1, "relay tcp", 1.0, False, (OPENED, CUT)),
        Transfer(1, "relay tcp", 1.0, True, (OPENED,)),
        Transfer(1, error="TimeoutError: "),
    ],
)
def test_a_transfer_that_lost_bytes_or_a_change_of_path_is_not_good(transfer: Transfer) -> None:
    assert not transfer.is_good


def test_a_pause_is_the_longest_between_arrivals_that_touches_the_span() -> None:
    sink = _Sink()
    sink.arrivals = [0.0, 3.0, 3.5, 5.5, 6.0, 10.0]
    assert sink.pause(3.2, 5.6) == 2.0
    assert sink.pause(2.0, 3.2) == 3.0
    assert sink.pause(11.0, 12.0) == 0.0


def test_every_network_goes_by_its_name_and_others_are_refused() -> None:
    assert [network.name for network in NETWORKS.values()] == list(NETWORKS)
    assert find_network("ports") is NETWORKS["ports"]
    with pytest.raises(ConfigError, match="there is no scenario 'moonbase'") as raised:
        find_network("moonbase")
    assert "ports, cgn, " in raised.value.hint
