"""What a command says of the streams that it carries."""

from __future__ import annotations

import asyncio
import sys

import pytest

from p2ptunnel.cli import talk
from p2ptunnel.cli.output import Output
from p2ptunnel.cli.talk import Waiting, tell_limits, tell_streams, tell_visitors
from p2ptunnel.trace import TraceEvent
from tests.helpers import run


class Said(Output):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def opened(at: float, peer: str, service: str, served: str) -> TraceEvent:
    return TraceEvent(at, "serving", "stream_opened", {"peer": peer, "service": service, "served": served})


def test_who_uses_what_is_said_once_a_visit() -> None:
    said = Said()
    tell = tell_visitors(said)
    for second in range(300):
        tell(opened(second, "laptop", f"10.0.0.9:{second}", "lan"))
    tell(opened(300.0, "laptop", "ssh", "ssh"))
    tell(opened(301.0, "phone", "ssh", "ssh"))
    tell(TraceEvent(302.0, "serving", "stream_closed", {"peer": "laptop", "service": "ssh"}))
    assert said.lines == ["laptop uses lan", "laptop uses ssh", "phone uses ssh"]
    tell(opened(900.0, "laptop", "ssh", "ssh"))
    tell(opened(1500.1, "laptop", "ssh", "ssh"))
    assert said.lines[3:] == ["laptop uses ssh"]


def test_who_is_limited_is_said_once_a_visit_and_reason() -> None:
    said = Said()
    tell = tell_limits(said)
    for second in range(300):
        over = {"peer": "laptop", "service": "web", "reason": "too many streams are open"}
        tell(TraceEvent(second, "serving", "over_quota", over))
        fast = {"tag": "phone", "service": f"s{second}", "code": "BUSY", "reason": "streams are opened too fast"}
        tell(TraceEvent(second, "session", "stream_denied", fast))
        tell(
            TraceEvent(second, "session", "stream_denied", {"tag": "phone", "service": "x", "code": "NOT_YOURS", "reason": ""})
        )
    tell(TraceEvent(300.0, "access", "muted", {"peer": "laptop", "seconds": 600.0}))
    assert said.lines == [
        "laptop: turned away from web: too many streams are open",
        "phone: turned away: streams are opened too fast",
        "laptop: refused again and again; you are not asked about it for 10 min",
    ]


def test_what_clients_run_into_is_said_once_with_the_next_step() -> None:
    said = Said()
    tell = tell_streams(said)
    failed = {"tag": "nas", "target": "web", "reason": "no peer is registered as 'nas'", "hint": "Check the tag."}
    for second in (0.0, 1.0):
        tell(TraceEvent(second, "tunnel", "client_failed", failed))
    assert said.lines == ["web of nas: no peer is registered as 'nas'", "hint: Check the tag."]
    tell(TraceEvent(2.0, "tunnel", "client_failed", {**failed, "reason": "cut off", "hint": ""}))
    assert said.lines[2:] == ["web of nas: cut off"]


@pytest.mark.parametrize(("is_terminal", "is_slow"), [(True, True), (True, False), (False, True)])
def test_a_long_wait_is_told_on_a_terminal_only(is_terminal: bool, is_slow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Told(Said):
        def say(self, text: str) -> None:
            super().say(text)
            told.set()

    async def main() -> None:
        with Waiting(said, "waiting for nas") as waiting:
            if not is_slow:
                waiting.end()
            if is_terminal and is_slow:
                await told.wait()
            else:
                due = asyncio.get_running_loop().create_future()
                asyncio.get_running_loop().call_later(0.01, due.set_result, None)
                await due

    said, told = Told(), asyncio.Event()
    monkeypatch.setattr(talk, "_SILENT_AT_MOST", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    run(main())
    assert said.lines == (["waiting for nas"] if is_terminal and is_slow else [])
