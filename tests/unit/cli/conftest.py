"""No test of the command line touches the profile of the user who runs it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The profile's directory for commands that are not told another."""
    for name in [name for name in os.environ if name.startswith("P2PTUNNEL_")]:
        monkeypatch.delenv(name)
    directory = tmp_path / "profile"
    monkeypatch.setenv("P2PTUNNEL_PROFILE", str(directory))
    return directory
