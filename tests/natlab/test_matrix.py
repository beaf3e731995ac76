"""The matrix with real peers: what it records, and what its exit status says."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime

import pytest

from p2ptunnel.protocol import callee, caller
from p2ptunnel.testing.natlab import MATRIX_KINDS
from p2ptunnel.testing.natlab.__main__ import main
from p2ptunnel.testing.natlab.matrix import Attempt, diagonal, run_matrix
from p2ptunnel.testing.natlab.matrix import run as matrix_run

pytestmark = pytest.mark.natlab


def test_a_cell_has_the_way_and_the_times_of_each_call() -> None:
    told: list[tuple[str, str, Attempt]] = []
    cells = run_matrix(
        ("pr", "symR"), attempts=2, delay=0.005, at_once=4, relay="auto", patience=3.0, tell=lambda *made: told.append(made)
    )
    assert [(cell.caller, cell.callee) for cell in cells] == [("pr", "pr"), ("pr", "symR"), ("symR", "pr"), ("symR", "symR")]
    assert [(cell.connected, len(cell.attempts)) for cell in cells] == [(2, 2)] * 4, [cell.attempts for cell in cells]
    assert sorted(told, key=str) == sorted(
        ((cell.caller, cell.callee, made) for cell in cells for made in cell.attempts), key=str
    )
    first, last = cells[0], cells[-1]
    assert first.direct == 2
    for made in first.attempts:
        assert made.first_byte is not None
        assert made.direct_after is not None
        assert 0.02 < made.seconds < made.first_byte  # a round trip to the server, at least
        assert 0.02 < made.direct_after < 3
        assert made.reason == ""
    assert last.direct == 0
    assert {(made.path, made.direct_after) for made in last.attempts} == {("relay tcp", None)}
    assert all("udp t=31: " in made.reason for made in last.attempts)


def test_a_birthday_may_begin_in_each_call_between_two_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer has two an hour with one other: these are others each time."""
    monkeypatch.setattr(matrix_run, "_in_turn", lambda _: [("symR", "pr")])
    monkeypatch.setattr(matrix_run, "_lanes_max", lambda _: 1)
    cells = run_matrix(("symR", "pr"), attempts=3, delay=0.001, at_once=1, relay="auto", patience=6.0)
    [cell] = [cell for cell in cells if cell.attempts]
    assert len(cell.attempts) == 3
    assert not [made for made in cell.attempts if "in the last hour" in made.reason], cell.attempts
    assert cell.direct >= 2, cell.attempts  # a round misses one time in sixty


def test_the_command_prints_an_object_for_each_delay_and_ends_well_if_all_connect(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix", "--kinds", "pub", "fc", "--delay", "0", "--delay", "1", "--json"]) == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["delay"] for line in captured.out.splitlines()] == [0, 0.001]
    assert "1 ms: 4 of 4 calls, 4 T" in captured.err


def test_a_pair_that_does_not_connect_is_told_by_the_exit_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for agents in (caller, callee):
        monkeypatch.setattr(agents, "PUNCH_TIMEOUT", 1.0)
    assert main(["matrix", "--kinds", "symR", "--delay", "0", "--relay", "never"]) == 1
    output = capsys.readouterr().out
    assert "0 of 1 pairs connect" in output
    assert "symR-symR: NoPathError" in output


def test_a_kind_that_does_not_exist_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix", "--kinds", "nonsense"]) == 1
    assert "there is no kind 'nonsense'" in capsys.readouterr().err


def test_a_part_of_all_pairs_each_day_another_one_connects_as_it_should() -> None:
    """One diagonal of the thirteen, with lines of 25 ms; MATRIX_PART chooses another than today's."""
    part = int(os.environ.get("MATRIX_PART", datetime.now(tz=UTC).toordinal()))
    pairs = diagonal(MATRIX_KINDS, part)
    cells = run_matrix(MATRIX_KINDS, attempts=2, delay=0.025, at_once=7, relay="auto", patience=12.0, pairs=pairs)
    found = "; ".join(f"{cell.caller}-{cell.callee}: {dict(cell.paths)}" for cell in cells)
    told = f"MATRIX_PART={part % len(MATRIX_KINDS)}: {found}"
    print(told)
    assert [(cell.caller, cell.callee) for cell in cells] == pairs
    assert all(cell.is_connected for cell in cells), told
    for cell in cells:
        expected = "direct quic" if (cell.caller, cell.callee) == ("noSO", "noSO") else "direct tcp"
        if not cell.can_be_direct:
            assert cell.direct == 0, told
        elif "symR" in {cell.caller, cell.callee}:  # guesses may all be wrong, once in sixty rounds
            assert cell.direct >= 1, told
        else:
            assert set(cell.paths) == {expected}, told
