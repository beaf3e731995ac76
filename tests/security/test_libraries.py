"""T30: no library below its floor is installed, and no floor lies below what is known to be broken."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BROKEN_BELOW = {
    "asyncssh": "2.14.2",  # CVE-2023-46445, 46446 and 48795: who carries the bytes of SSH could take part in it
    "cryptography": "42.0.4",  # CVE-2024-26130
}
REQUIREMENTS = [
    requirement
    for text in (*PROJECT["dependencies"], *(text for texts in PROJECT["optional-dependencies"].values() for text in texts))
    if (requirement := Requirement(text)).name != PROJECT["name"]
]


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_no_library_below_its_floor_is_installed(requirement: Requirement) -> None:
    assert [clause.operator for clause in requirement.specifier] == [">="]
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        pytest.skip(f"{requirement.name} is not installed")
    assert requirement.specifier.contains(installed, prereleases=True)


@pytest.mark.parametrize("name", BROKEN_BELOW)
def test_no_floor_lies_below_what_is_known_to_be_broken(name: str) -> None:
    floors = [clause.version for requirement in REQUIREMENTS if requirement.name == name for clause in requirement.specifier]
    assert floors != []
    assert all(Version(floor) >= Version(BROKEN_BELOW[name]) for floor in floors)
