"""Who takes part, and what happens to those who cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import install
from bench.contest import BenchError, Contestant
from bench.contestants import find_contestants
from bench.rig import Program, Rig


def never(rig: Rig, python: Path) -> Program:
    raise NotImplementedError


def names(*asked: str) -> list[tuple[str, str]]:
    return [(contestant.name, contestant.kind) for contestant in find_contestants(asked)]


def test_each_contestant_is_one_line_of_one_table() -> None:
    everybody = names()
    assert len(set(everybody)) == len(everybody)
    assert everybody[:2] == [("ours", "forward"), ("ours", "stream")]


def test_a_name_stands_for_all_its_variants_in_the_order_of_the_table() -> None:
    assert names("openssh", "ours") == [
        ("ours", "forward"),
        ("ours", "stream"),
        ("openssh", "forward"),
        ("openssh-default", "forward"),
    ]
    assert names("openssh-default") == [("openssh-default", "forward")]


def test_a_name_that_nobody_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(BenchError, match="no contestant is called 'frp'; there are ours, openssh, "):
        find_contestants(["ours", "frp"])


def test_every_python_package_is_pinned() -> None:
    for contestant in find_contestants():
        for requirement in contestant.requirements:
            assert "==" in requirement


def test_a_missing_program_is_a_reason_where_nothing_can_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "which", dict[str, str]().get)
    with pytest.raises(BenchError, match="not installed: a-package, b-package"):
        install.prepare(Contestant("x", "forward", "X", never, programs={"b": "b-package", "a": "a-package"}))


def test_what_a_failing_installer_says_last_is_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(install, "_HOME", tmp_path / ".bench")
    with pytest.raises(BenchError, match=r"nothing-here\.whl"):
        install.environment([f"{tmp_path.name}/nothing-here.whl"])


def test_the_version_is_the_packages_the_contestants_own_or_debians_without_its_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    def dpkg_query(argv: Sequence[str], timeout: float) -> str:
        return "1:9.2p1-2+deb12u10"

    monkeypatch.setattr(install, "_run", dpkg_query)
    assert install.version(Contestant("x", "stream", "X", never, requirements=("lib==1.2.0",))) == "1.2.0"
    assert install.version(Contestant("x", "stream", "X", never, version="0.1")) == "0.1"
    assert install.version(Contestant("x", "forward", "X", never, programs={"ssh": "openssh-client"})) == "9.2p1"
