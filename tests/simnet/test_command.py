"""The command that prints the matrix."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2ptunnel.testing.simnet import KINDS
from p2ptunnel.testing.simnet.__main__ import main


def test_the_grid_has_every_pair(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "1", "--delay", "1"]) == 0
    head, *rows, foot = capsys.readouterr().out.splitlines()
    assert head.split()[:-1] == list(KINDS)
    grid = {row.split()[0]: dict(zip(KINDS, row.split()[1:], strict=True)) for row in rows}
    assert list(grid) == list(KINDS)
    assert (grid["prR"]["shift"], grid["symR"]["symS"], grid["fc"]["symR"]) == ("100", "0", "100")
    assert f"{len(KINDS) ** 2} calls" in foot


def test_what_it_does_not_know_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--wind", "3"])
    assert exit_.value.code == 2
    assert "--wind" in capsys.readouterr().err


def test_the_page_of_machines_shows_the_same_grid(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seeds", "1"])
    grid = capsys.readouterr().out.splitlines()[:-1]
    page = (Path(__file__).parents[2] / "docs" / "protocol" / "machines.md").read_text(encoding="utf-8")
    assert "\n".join(grid) in page
