"""What a matrix says of its attempts, in figures and as text; and that no site is in two calls at once."""

from __future__ import annotations

import io
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from p2ptunnel.testing.natlab.kinds import MATRIX_KINDS
from p2ptunnel.testing.natlab.matrix import Attempt, Cell, Matrix
from p2ptunnel.testing.natlab.matrix.cells import RELAY_ONLY
from p2ptunnel.testing.natlab.matrix.progress import Progress
from p2ptunnel.testing.natlab.matrix.run import _in_turn, _Job, _lanes_max, _Turns
from p2ptunnel.testing.natlab.matrix.text import letters, render

DIRECT = Attempt(0.8, "direct tcp", first_byte=0.9, direct_after=0.8)
LATE = Attempt(0.2, "direct tcp", first_byte=0.3, direct_after=1.0)
QUIC = Attempt(0.2, "direct quic", first_byte=0.3, direct_after=0.5)
RELAYED = Attempt(0.2, "relay tcp", first_byte=0.3, reason="udp t=31: no answer")
FAILED = Attempt(5.0, "", "NoPathError: nothing works")


def cell(*attempts: Attempt, caller: str = "pr", callee: str = "pr") -> Cell:
    return Cell(caller, callee, attempts)


def test_a_cell_counts_what_connected_and_what_went_without_the_relay() -> None:
    made = cell(DIRECT, LATE, QUIC, RELAYED, FAILED)
    assert (made.connected, made.direct) == (4, 3)
    assert (made.is_connected, made.is_direct, made.is_tcp) == (False, False, False)
    made = cell(DIRECT, RELAYED)
    assert (made.is_connected, made.is_direct, made.is_tcp) == (True, False, False)
    made = cell(DIRECT, QUIC)
    assert (made.is_connected, made.is_direct, made.is_tcp) == (True, True, False)
    assert cell(DIRECT, LATE).is_tcp
    made = cell(DIRECT, LATE, QUIC, RELAYED, FAILED)
    assert made.paths == {"direct tcp": 2, "direct quic": 1, "relay tcp": 1, "": 1}


def test_medians_are_of_what_came_about() -> None:
    made = cell(DIRECT, LATE, RELAYED, FAILED)
    assert made.median == pytest.approx(0.2)
    assert made.first_byte == pytest.approx(0.3)
    assert made.direct_after == made.settled_after == pytest.approx(0.9)
    assert cell(RELAYED).settled_after == pytest.approx(0.2)
    assert (made.first_byte_p90, made.settled_p90) == (0.9, 1.0)
    assert cell(RELAYED, RELAYED).settled_p90 == 0.2
    assert cell(FAILED).settled_after == cell(FAILED).settled_p90 == cell(FAILED).first_byte_p90 == float("inf")


def test_letters_say_how_many_went_which_way() -> None:
    assert [letters(cell(*attempts)) for attempts in ([DIRECT, LATE], [QUIC], [RELAYED, DIRECT, FAILED, DIRECT])] == [
        "T",
        "Q",
        "2T1r1x",
    ]


def test_three_pairs_and_no_more_need_the_relay() -> None:
    assert {pair for pair in RELAY_ONLY if set(pair) <= set(MATRIX_KINDS)} == RELAY_ONLY
    able = [cell(caller=a, callee=b).can_be_direct for a in MATRIX_KINDS for b in MATRIX_KINDS]
    assert (len(able), sum(able)) == (169, 166)


def matrix() -> Matrix:
    cells = (
        cell(DIRECT, LATE),
        cell(RELAYED, DIRECT, callee="symR"),
        cell(FAILED, RELAYED, caller="symR"),
        cell(RELAYED, RELAYED, caller="symR", callee="symR"),
    )
    return Matrix(0.025, ("pr", "symR"), cells, 12.3)


def test_the_text_has_grids_of_paths_and_times_what_they_come_to_what_went_wrong_and_what_was_relayed() -> None:
    assert render(matrix()).splitlines() == [
        "One way 25 ms a line, rows call columns.",
        "",
        "T direct TCP, Q direct QUIC, r relay, x failed; median ms to the direct path, by relay to the stream:",
        "            pr     symR",
        "   pr    T 900 1T1r 800",
        " symR 1r1x 200    r 200",
        "",
        "Median ms until the first byte was back:",
        "          pr   symR",
        "   pr    600    600",
        " symR    300    300",
        "",
        "Ms in which nine of ten calls were on the direct path, by relay had the stream:",
        "          pr   symR",
        "   pr   1000    800",
        " symR    200    200",
        "",
        "Ms in which the first byte was back for nine of ten:",
        "          pr   symR",
        "   pr    900    900",
        " symR    300    300",
        "",
        "3 of 4 pairs connect.  Of 3 that can do without a relay 1 always did, 1 over TCP alone; 1 did in most of their calls.",
        "8 calls: 3 direct over TCP, 4 relayed, 1 failed.  12 s.",
        "First byte back: p50 300 ms, p90 900 ms; direct path: p50 800 ms, p90 1000 ms.",
        "  symR-pr: NoPathError: nothing works",
        "  pr-symR, 1 of 2 relayed: udp t=31: no answer",
        "  symR-pr, 1 of 2 relayed: udp t=31: no answer",
    ]


def test_of_one_call_a_cell_there_are_no_percentiles() -> None:
    text = render(Matrix(0.025, ("pr",), (cell(DIRECT),)))
    assert "nine of ten" not in text
    assert text.count("\n   pr ") == 2


def test_a_matrix_is_read_back_from_its_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(matrix()), type=Matrix) == matrix()
    assert json.loads(msgspec.json.encode(matrix()))["cells"][0]["attempts"][0]["direct_after"] == 0.8


def test_a_pair_is_not_connected_if_one_call_failed() -> None:
    assert [(one.caller, one.callee) for one in matrix().unconnected] == [("symR", "pr")]


# --- turns ----------------------------------------------------------------------------------------------------------------


def test_as_many_calls_in_a_row_as_there_are_kinds_have_no_site_in_common() -> None:
    pairs = _in_turn(MATRIX_KINDS)
    assert len(set(pairs)) == 169
    for start in range(0, 169, 13):
        callers, callees = zip(*pairs[start : start + 13], strict=True)
        assert set(callers) == set(callees) == set(MATRIX_KINDS)


@pytest.mark.parametrize("lanes", [1, 2])
def test_no_site_is_in_two_calls_at_once_and_every_call_is_made(lanes: int) -> None:
    pairs = _in_turn(("a", "b", "c")) * 5
    turns, lock = _Turns(pairs, lanes), threading.Lock()
    busy: set[tuple[int, str, str]] = set()
    made: list[tuple[str, str]] = []

    def work(_: int) -> None:
        while (job := turns.take()) is not None:
            with lock:
                assert busy.isdisjoint(job.sites)
                busy.update(job.sites)
            with lock:
                busy.difference_update(job.sites)
                made.append((job.caller, job.callee))
            turns.give_back(job)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert sorted(made) == sorted(pairs)


def test_calls_of_one_pair_are_made_in_all_lanes_in_turn() -> None:
    turns, lanes = _Turns([("a", "b")] * 4, 2), []
    while (job := turns.take()) is not None:
        lanes.append(job.lane)
        turns.give_back(job)
    assert lanes == [0, 1, 0, 1]


def test_pairs_with_most_calls_left_come_first() -> None:
    turns = _Turns([("a", "b"), ("c", "d"), ("c", "d")], 1)
    assert turns.take() == _Job(0, "c", "d")
    assert turns.take() == _Job(0, "a", "b")


def test_there_are_no_more_lanes_than_a_laboratory_has_room_for() -> None:
    assert _lanes_max(("pr",)) == 125
    assert _lanes_max(("dbl",)) == 62
    assert _lanes_max(MATRIX_KINDS) == 8


def test_whoever_finds_all_sites_busy_waits_for_one() -> None:
    turns = _Turns([("a", "b"), ("a", "c")], 1)
    first = turns.take()
    assert first == _Job(0, "a", "b")
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(turns.take)
        with pytest.raises(TimeoutError):
            second.result(0.05)
        turns.give_back(first)
        assert second.result(5) == _Job(0, "a", "c")
    assert turns.take() is None


# --- progress -------------------------------------------------------------------------------------------------------------


def test_progress_ends_with_all_calls_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    progress = Progress("25 ms", 3)
    for made in (DIRECT, RELAYED, FAILED):
        progress("pr", "pr", made)
    [line] = stderr.getvalue().splitlines()
    assert line.startswith("25 ms: 3 of 3 calls, 1 T, 1 r, 1 x; ")
