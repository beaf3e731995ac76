"""The page of networks as they are met."""

from __future__ import annotations

from argparse import Namespace

from bench.results import Machine
from bench.scenarios import render_page
from p2ptunnel.testing.natlab.attempt import Attempt
from p2ptunnel.testing.natlab.scenarios import Calls, Switch, Transfer, Warm, WarmCall

MACHINE = Machine("A processor", 2, 3.8, "Linux 6.1", "3.11.7", "OpenSSL 3.0.19", 0.25, "2001-02-03")
OPTIONS = Namespace(attempts=2, at_once=4, patience=12.0, size=200, names=())
DIRECT, FAILED = Attempt(0.8, "direct tcp", first_byte=0.9, direct_after=0.8), Attempt(5.0, "", "NoPathError: nothing works")
WARM = Warm("warm", "two homes", (WarmCall(0.4, 0.45, 0.6, 0.66),), (WarmCall(error="EOFError: "),), 0.315, 0.35, 0.45)
SWITCH = Switch("the direct path opens", "direct tcp", at=4.7, seconds=0.85, pause=0.54)


def test_the_page_has_the_machine_the_command_and_a_row_for_each_network() -> None:
    page = render_page([Calls("ports", "two homes", (DIRECT, FAILED))], MACHINE, OPTIONS)
    assert "A processor, 2 cores, 4 GiB; Linux 6.1; Python 3.11.7" in page
    assert "Command: `python -m bench.scenarios -n 2 --at-once 4 --patience 12 --size 200`." in page
    row = "| `ports` | two homes | 1 of 2 | 1 direct tcp | 0.90 / 0.90 / 0.90 s | 0.80 / 0.80 / 0.80 s |\n"
    assert row in page
    assert page.endswith("\nCalls that failed:\n\n- `ports`, 1 x NoPathError: nothing works\n")


def test_where_no_call_failed_none_is_told_of_and_what_did_not_come_has_no_time() -> None:
    page = render_page([Calls("cgn", "two homes", (Attempt(0.2, "relay tcp", first_byte=0.3),))], MACHINE, OPTIONS)
    assert page.endswith("| `cgn` | two homes | 1 of 1 | 1 relay tcp | 0.30 / 0.30 / 0.30 s | - |\n")


def test_warm_calls_stand_beside_their_goals() -> None:
    page = render_page([WARM], MACHINE, OPTIONS)
    assert "| the first byte is at the callee | True | 450 ms | 450 ms | 450 ms | 1 of 1 | 315 ms |\n" in page
    assert "| a direct path is in use | True | 660 ms | 660 ms | 660 ms | 1 of 1 | 450 ms |\n" in page
    assert "| `connect` has returned | False | - | - | - | 0 of 1 |  |\n" in page


def test_a_transfer_has_a_row_for_each_change_of_its_path() -> None:
    page = render_page([Transfer(200_000_000, "relay tcp", 24.0, True, (SWITCH,))], MACHINE, OPTIONS)
    assert "200 MB, 10 ms a line, 160 Mbit/s; SHA-256 equal." in page
    assert page.endswith("| the direct path opens | direct tcp | 0.85 s | 0.54 s |\n")
    assert "SHA-256 NOT EQUAL" in render_page([Transfer(1, "relay tcp", 1.0)], MACHINE, OPTIONS)
    assert "; TimeoutError: ." in render_page([Transfer(1, error="TimeoutError: ")], MACHINE, OPTIONS)
