"""What scenarios say of themselves."""

from __future__ import annotations

import pytest

from p2ptunnel.errors import ConfigError
from p2ptunnel.testing.natlab.attempt import Attempt
from p2ptunnel.testing.natlab.scenarios.networks import NETWORKS, find_network
from p2ptunnel.testing.natlab.scenarios.report import Calls, Switch, Transfer
from p2ptunnel.testing.natlab.scenarios.transfer import _Sink

DIRECT = Attempt(0.8, "direct tcp", first_byte=0.9, direct_after=0.8)
RELAYED = Attempt(0.2, "relay tcp", first_byte=0.3)
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
    ]


def test_calls_that_all_failed_have_no_times() -> None:
    assert str(Calls("lan-alone", "no server", (FAILED,))).splitlines()[1:4] == [
        "  0 of 1 connected",
        "  first byte  -",
        "  direct      -",
    ]


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
