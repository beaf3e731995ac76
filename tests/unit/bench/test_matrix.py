"""The page of NATs and its picture."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from bench.matrix import _grids, render_page
from bench.plot_matrix import _main
from bench.results import Machine
from p2ptunnel.testing.natlab.matrix import Attempt, Cell, Matrix

ROOT = Path(__file__).parents[3]
MACHINE = Machine("A processor", 2, 3.8, "Linux 6.1", "3.11.7", "OpenSSL 3.0.19", 0.25, "2001-02-03")
DIRECT, FAILED = Attempt(0.8, "direct tcp", first_byte=0.9, direct_after=0.8), Attempt(5.0, "", "NoPathError: nothing works")
MATRIX = Matrix(0.025, ("pr",), (Cell("pr", "pr", (DIRECT, DIRECT, DIRECT, FAILED)),))
DEAD = Matrix(0.0, ("noU",), (Cell("noU", "noU", (FAILED,)),))


def test_the_page_has_the_machine_the_options_and_the_tables() -> None:
    page = render_page([MATRIX, DEAD], MACHINE, Namespace(attempts=4, patience=12.0))
    assert "A processor, 2 cores, 4 GiB; Linux 6.1; Python 3.11.7" in page
    assert "4 calls of each pair." in page
    assert "## 25 ms\n\n```text\nOne way 25 ms a line" in page
    assert "## 0 ms\n\n```text\nOne way 0 ms a line" in page
    assert "  noU-noU: NoPathError: nothing works\n```\n" in page


def test_what_is_drawn_has_a_share_a_time_and_letters_for_each_cell() -> None:
    assert _grids(MATRIX) == {
        "delay_ms": 25.0,
        "kinds": ("pr",),
        "direct": [[0.75]],
        "median_ms": [[800.0]],
        "p90_ms": [[800.0]],
        "paths": [["3T1x"]],
    }
    assert _grids(DEAD)["median_ms"] == [[None]]
    assert "p90_ms" not in _grids(DEAD)  # of one call there is one time


def test_a_cell_has_the_colour_of_the_way_that_most_calls_went() -> None:
    assert [_main(text) for text in ("T", "7T3r", "1T10r", "2Q2x")] == ["T", "T", "r", "x"]


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_picture_is_drawn(tmp_path: Path) -> None:
    file, picture = tmp_path / "grids.json", tmp_path / "picture.png"
    file.write_text(json.dumps([_grids(MATRIX), _grids(DEAD)]))
    subprocess.run([sys.executable, "-m", "bench.plot_matrix", file, picture], cwd=ROOT, check=True, timeout=60)
    assert picture.read_bytes().startswith(b"\x89PNG")
