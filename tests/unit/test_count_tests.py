"""The sum that `make check` ends with."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.count_tests import main

pytest_plugins = ["pytester"]

TESTS = """
    import pytest

    def test_good(): pass
    def test_bad(): assert False
    def test_left_out(): pytest.skip("not here")
    @pytest.mark.xfail
    def test_known(): assert False
"""


def test_what_pytest_has_written_is_summed_up(pytester: pytest.Pytester, capsys: pytest.CaptureFixture[str]) -> None:
    pytester.makepyfile(TESTS)
    reports = pytester.path / "counts"
    for run in ("one", "two"):
        pytester.runpytest_inprocess("-p", "no:cacheprovider", f"--junit-xml={reports / run}.xml")
    capsys.readouterr()
    main(reports)
    counts = "1 failed, 1 passed, 1 skipped, 1 xfailed"
    assert capsys.readouterr().out == (f"one: {counts}\ntwo: {counts}\nin 2 runs: 2 failed, 2 passed, 2 skipped, 2 xfailed\n")


def test_where_nothing_ran_nothing_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(tmp_path)
    assert capsys.readouterr().out == "in 0 runs: no tests\n"
