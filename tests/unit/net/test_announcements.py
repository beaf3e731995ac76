"""News of routers where they cannot be heard; where they can: tests/natlab/test_portmap.py."""

from __future__ import annotations

import errno
import socket

import pytest

from p2ptunnel.net import announcements
from p2ptunnel.net.announcements import Announcements
from p2ptunnel.trace import TraceEvent, Tracer
from tests.helpers import run


def test_where_they_cannot_be_heard_that_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: str) -> socket.socket:
        raise OSError(errno.EADDRINUSE, "taken")

    monkeypatch.setattr(announcements, "_listen", refuse)

    async def main() -> None:
        traced: list[TraceEvent] = []
        Announcements("127.0.0.1", lambda *_: None, Tracer(traced.append)).close()
        assert [event.name for event in traced] == ["announcements_unavailable"]

    run(main())


def test_over_ipv6_nothing_is_opened() -> None:
    Announcements("::1", lambda *_: None, Tracer()).close()
