"""Watching paths more closely than in earnest, so that a test need not wait for seconds of silence."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import PING_ACTIVE
from p2ptunnel.protocol import link, resume
from p2ptunnel.protocol.link import Pace
from p2ptunnel.session import live

__all__ = ["hasten"]


def hasten(monkeypatch: pytest.MonkeyPatch, *, dead: float) -> None:
    """Ask after 50 ms of silence, doubt 100 ms later, and give a path up after `dead` seconds, while bytes move."""
    pace = Pace(ping=0.05, dead=dead)
    for module in (live, resume):
        monkeypatch.setattr(module, "ACTIVE", pace)
    monkeypatch.setattr(link, "SUSPECT_AFTER", PING_ACTIVE + 0.1)
