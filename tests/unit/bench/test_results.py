"""Statistics over rounds, and results as text and files."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from bench.page import render_page
from bench.results import METRICS, Machine, Report, Result, median, ratio
from bench.table import render_spread, render_table, render_trouble

ROOT = Path(__file__).parents[3]
THROUGHPUT, CPU = METRICS[0], METRICS[1]
MACHINE = Machine("A processor", 2, 3.8, "Linux 6.1", "3.11.7", "OpenSSL 3.0.19", 0.25, "2001-02-03")


def result(name: str, *rounds: dict[str, float], trouble: tuple[str, ...] = ()) -> Result:
    return Result(name, "forward", f"The {name}", "1.2", list(rounds), list(trouble))


def report(*results: Result) -> Report:
    return Report(MACHINE, is_quick=False, results=list(results))


def test_the_median_is_of_what_is_there() -> None:
    assert median([None, 3.0, 1.0, 2.0]) == 2
    assert median([None]) is None


def test_a_ratio_says_how_many_times_better_ours_is_whichever_end_is_good() -> None:
    ours = result("ours", {"throughput": 300.0, "cpu_near": 1.0, "cpu_far": 1.0})
    theirs = result("theirs", {"throughput": 100.0, "cpu_near": 3.0, "cpu_far": 1.0})
    assert ratio(THROUGHPUT, ours, theirs) == 3
    assert ratio(CPU, ours, theirs) == 2


def test_ratios_are_taken_within_a_round_so_that_a_slow_one_does_no_harm() -> None:
    ours = result("ours", {"throughput": 200.0}, {"throughput": 20.0}, {"throughput": 210.0})
    theirs = result("theirs", {"throughput": 100.0}, {"throughput": 10.0}, {"throughput": 70.0})
    assert ratio(THROUGHPUT, ours, theirs) == 2


def test_a_round_that_one_of_them_missed_makes_no_ratio() -> None:
    ours = result("ours", {"throughput": 200.0}, {"throughput": 300.0})
    assert ratio(THROUGHPUT, ours, result("theirs", {}, {"throughput": 100.0})) == 3
    assert ratio(THROUGHPUT, ours, result("theirs", {}, {})) is None
    assert ratio(THROUGHPUT, ours, result("theirs")) is None


def test_a_reason_is_noted_once() -> None:
    slow = result("slow")
    for _ in range(3):
        slow.complain("time limit")
    assert slow.trouble == ["time limit"]


def test_the_table_shows_medians_ratios_and_marks_and_its_columns_are_aligned() -> None:
    rows = [
        result("ours", {"throughput": 412.3, "cpu_near": 1.456, "cpu_far": 1.2}),
        result("theirs", {"throughput": 103.0, "cpu_near": 15.23, "cpu_far": 140.7}),
        result("broken", trouble=("start: it says no",)),
    ]
    assert render_table(rows).splitlines() == [
        "|                     |        MB/s | CPU-s/GB, near + far |",
        "| ------------------- | ----------: | -------------------: |",
        "| The ours, 1.2       |         412 |          1.46 + 1.20 |",
        "| The theirs, 1.2     | 103 (4.00x) |   15.2 + 141 (58.7x) |",
        "| The broken, 1.2 [1] |           - |                    - |",
    ]
    assert render_trouble(rows) == "[1] The broken: start: it says no"


def test_the_spread_is_that_of_the_rounds() -> None:
    first = {"throughput": 412.3, "cpu_near": 1.0, "cpu_far": 0.5}
    rounds: tuple[dict[str, float], ...] = (first, {"throughput": 9.5, "cpu_near": 0.5, "cpu_far": 0.25}, {})
    rows = [result("ours", *rounds), result("broken", trouble=("start: no",))]
    assert render_spread(rows).splitlines() == [
        "|                 |        MB/s | CPU-s/GB, near and far together |",
        "| --------------- | ----------: | ------------------------------: |",
        "| The ours, 1.2   | 9.50 to 412 |                    0.75 to 1.50 |",
        "| The broken, 1.2 |           - |                               - |",
    ]
    assert render_spread(rows) in render_page(report(*rows))


def test_without_ours_there_are_no_ratios() -> None:
    assert "x)" not in render_table([result("theirs", {"throughput": 103.0})])


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    written = report(result("ours", {"throughput": 1.5}, {}), result("broken", trouble=("start: no",)))
    written.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == written


def test_the_page_has_the_machine_the_tables_and_every_reason() -> None:
    page = render_page(report(result("ours", {"throughput": 412.3}), result("broken", trouble=("start: it says no",))))
    assert "A processor, 2 cores, 4 GiB; Linux 6.1; Python 3.11.7 with OpenSSL 3.0.19; 2001-02-03" in page
    assert "## Through a local port\n" in page
    assert "## From Python to Python\n" not in page
    assert "[1] The broken: start: it says no" in page


def test_the_picture_is_drawn_whatever_the_range(tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib is not installed")
    figures = ({"throughput": 400.0, "cpu_near": 1.0, "cpu_far": 2.0}, {"throughput": 1.0, "cpu_near": 0.0, "cpu_far": 0.0})
    report(*(result(str(i), found) for i, found in enumerate(figures)), result("broken")).save(tmp_path / "report.json")
    argv = [sys.executable, "-m", "bench.plot", tmp_path / "report.json", tmp_path / "picture.png"]
    subprocess.run(argv, cwd=ROOT, check=True)  # a program of its own, as in use: matplotlib keeps its fonts open
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("value", "text"), [(9.949, "9.95"), (9.96, "10.0"), (99.4, "99.4"), (99.6, "100"), (0.0, "0.00")])
def test_figures_have_two_or_three_digits(value: float, text: str) -> None:
    assert f"| {text} |" in render_table([result("theirs", {"throughput": value})]).replace("  ", " ")
