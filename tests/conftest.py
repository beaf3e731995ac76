"""What holds for every test: its time, its Hypothesis profile, and that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.helpers import watch_for_leaks

TIMEOUTS = {"simnet": 180, "natlab": 120, "e2e": 90}
"""Seconds a test may take, by its directory; all others have pyproject's 20."""

LABORATORY = "p2ptunnel.testing.natlab.plugin"

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("types", max_examples=10, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("night", max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Load the laboratory's fixtures; last, since typeguard and coverage must be in place before the package is imported.

    A shell lets what runs in its background ignore SIGINT, and so would every program that a test starts and interrupts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.import_plugin(LABORATORY)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test by the directory it stands in, and give it that directory's time."""
    for item in items:
        directory = item.path.relative_to(config.rootpath / "tests").parts[0]
        if directory in ("natlab", "e2e"):
            item.add_marker(directory)
        if directory in TIMEOUTS and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUTS[directory]))


@pytest.fixture(autouse=True)
def no_neighbours(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep peers of a test from the network that it happens to run in; in the laboratory the networks are its own."""
    if request.node.get_closest_marker("natlab") is None:
        monkeypatch.setattr("p2ptunnel.net.lan.lan_hosts", tuple)


@pytest.fixture(autouse=True)
def nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Fail a test that leaves a task running when its loop ends, or a descriptor open."""
    with watch_for_leaks(monkeypatch) as leaks:
        yield
    if leaks:
        pytest.fail(str(leaks))
