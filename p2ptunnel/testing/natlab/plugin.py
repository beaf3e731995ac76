"""The laboratory for pytest: a fixture, a marker, and a skip with a reason where it cannot be built.

With P2PTUNNEL_REQUIRE_NATLAB=1 in the environment the skip is a failure.  Rule: this module imports the laboratory only
when a test asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from p2ptunnel.testing.natlab.lab import Lab

__all__ = ["natlab", "pytest_collection_modifyitems", "pytest_configure", "pytest_runtest_setup"]

_MARKER = "natlab: needs network namespaces, nftables and TUN; skipped with the reason where they are missing"
_REQUIRE = "P2PTUNNEL_REQUIRE_NATLAB"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses the fixture; pytest asks plugins before its own `-m` chooses."""
    for item in items:
        if isinstance(item, pytest.Function) and "natlab" in item.fixturenames:
            item.add_marker("natlab")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a marked test where no laboratory can be built, or fail it if one is required."""
    if item.get_closest_marker("natlab") is not None:
        _require_laboratory()


@pytest.fixture
def natlab() -> Iterator[Lab]:
    """A fresh laboratory, gone after the test."""
    from p2ptunnel.testing.natlab.lab import Lab

    _require_laboratory()
    with Lab() as lab:
        yield lab


def _require_laboratory() -> None:
    from p2ptunnel.testing.natlab.capability import capable

    if reason := capable():
        if os.environ.get(_REQUIRE) == "1":
            pytest.fail(f"{_REQUIRE}=1, but {reason}", pytrace=False)
        pytest.skip(f"no laboratory: {reason}")
