"""Networks as they are met: who connects there; and bytes that flow on while their path changes."""

from __future__ import annotations

import json

import pytest

from p2ptunnel.testing.natlab.__main__ import main
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.lab import Lab
from p2ptunnel.testing.natlab.scenarios import NETWORKS, Calls, Network, command, run_calls, run_transfer, run_warm
from p2ptunnel.testing.natlab.scenarios import calls as calls_module
from p2ptunnel.testing.natlab.scenarios.networks import find_network

pytestmark = pytest.mark.natlab


def calls(name: str, patience: float = 0.0) -> Calls:
    found = run_calls(find_network(name), attempts=2, patience=patience)
    assert len(found.attempts) == 2
    return found


@pytest.mark.parametrize("name", ["cgn", "only-443", "ipv6-drop", "ipv6-reject", "ipv6-only", "loss-5", "loss-10"])
def test_a_stream_comes_up(name: str) -> None:
    found = calls(name)
    assert found.is_good, str(found)


@pytest.mark.parametrize("name", ["ports", "cgn-hairpin", "lan", "lan-alone", "no-udp", "no-udp-caller"])
def test_a_direct_stream_comes_up(name: str) -> None:
    found = calls(name, patience=5.0)
    assert [attempt.is_direct for attempt in found.attempts] == [True, True], str(found)


def test_warm_calls_know_when_their_first_byte_was_at_the_callee() -> None:
    found = run_warm(attempts=2, patience=5.0)
    assert found.is_good, str(found)
    for call in (*found.confirmed, *found.unconfirmed):
        assert call.connected is not None
        assert call.first_byte is not None
        assert call.connected + 0.04 < call.first_byte < 2  # half a round trip to the callee, over the relay or not
        assert call.direct_after is not None
    assert found.first_byte_goal == pytest.approx(0.315)
    assert (found.proved_goal, found.direct_goal) == (pytest.approx(0.350), pytest.approx(0.450))


def test_more_calls_than_pairs_of_peers_are_made_one_after_the_other() -> None:
    found = run_calls(NETWORKS["cgn-hairpin"], attempts=3, at_once=1)
    assert [attempt.error for attempt in found.attempts] == [""] * 3


def test_a_transfer_moves_to_the_direct_path_and_back_and_loses_no_byte() -> None:
    found = run_transfer(30_000_000)
    assert found.is_good, str(found)
    opened, cut = found.switches
    assert (found.began_on, opened.path, cut.path) == ("relay tcp", "direct tcp", "relay tcp")
    assert opened.at < cut.at < found.seconds
    assert 0 < opened.pause < 3.0  # measured 0.5
    assert 0.5 < cut.pause < 5.0  # a silent cut must first be noticed; measured 1.4


def test_the_command_prints_an_object_for_each_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenarios", "cgn-hairpin", "ports", "-n", "1", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["name"], one["is_good"], len(one["attempts"])) for one in found] == [
        ("cgn-hairpin", True, 1),
        ("ports", True, 1),
    ]


def test_a_scenario_that_does_not_exist_is_named_before_any_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenarios", "cgn-hairpin", "moonbase"]) == 1
    captured = capsys.readouterr()
    assert (captured.out, "there is no scenario 'moonbase'" in captured.err) == ("", True)


def apart(lab: Lab) -> tuple[Host, Host]:
    return lab.site("pr").host, lab.site("pr").host


def test_calls_that_fail_are_told_by_the_exit_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two homes without a server: nobody could introduce them."""
    monkeypatch.setattr(command, "find_network", lambda _: Network("apart", "two homes, and no server", apart, "none"))
    monkeypatch.setattr(calls_module, "_CALL_TIMEOUT", 2.0)
    assert main(["scenarios", "apart", "-n", "1"]) == 1
    assert "0 of 1 connected" in capsys.readouterr().out
