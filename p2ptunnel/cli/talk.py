"""What is said while a command carries streams: who is there, who asks for too much, and with -v what comes and goes."""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType
from typing import Final, Self

from p2ptunnel.cli.output import Output
from p2ptunnel.trace import Sink, TraceEvent
from p2ptunnel.types import format_duration

__all__ = ["Waiting", "tell_limits", "tell_streams", "tell_visitors"]

_VISIT: Final = 600.0
"""Seconds: who opened a service so long ago and not since is told of again."""

_SILENT_AT_MOST: Final = 2.0
"""Seconds that a person is left without a word."""

_TEXTS: Final = {
    ("serving", "stream_opened"): "{peer} opened {service}",
    ("serving", "stream_closed"): "{peer} is done with {service}",
    ("serving", "stream_broke"): "{peer} lost {service}: {reason}",
    ("serving", "target_refused"): "{peer} asked for {service}, which cannot be reached: {reason}",
    ("tunnel", "client_connected"): "{client} opened {target} of {tag}",
    ("tunnel", "client_done"): "{client} is done with {target} of {tag}",
    ("tunnel", "client_lost"): "{client} broke off: {reason}",
}


class Waiting:
    """Says on a terminal what is waited for, once that takes longer than two seconds; to programs it says nothing.

    Args:
        output: What says it.
        text: What is waited for.
    """

    def __init__(self, output: Output, text: str) -> None:
        self._output: Final = output
        self._text: Final = text
        self._timer: asyncio.TimerHandle | None = None

    def end(self) -> None:
        """It has come."""
        if self._timer is not None:
            self._timer.cancel()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._timer = asyncio.get_running_loop().call_later(_SILENT_AT_MOST, self._output.say, self._text)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()


def tell_streams(output: Output) -> Sink:
    """Return a sink that says in words which streams come and go, and once what clients of a forward run into."""
    failing = ""

    def tell(event: TraceEvent) -> None:
        nonlocal failing
        if text := _TEXTS.get((event.layer, event.name)):
            output.detail(text.format_map(event.facts))
        if event.name == "client_failed":
            trouble = "{target} of {tag}: {reason}".format_map(event.facts)
            if trouble != failing:  # a browser tries again and again
                output.say(trouble)
                if hint := event.facts.get("hint"):
                    output.say(f"hint: {hint}")
            failing = trouble
        elif event.name == "client_done":
            failing = ""

    return tell


def tell_visitors(output: Output) -> Sink:
    """Return a sink that says who opens which service, once a visit: not each stream of a web page."""
    last_seen: dict[tuple[object, object], float] = {}

    def tell(event: TraceEvent) -> None:
        if (event.layer, event.name) != ("serving", "stream_opened"):
            return
        visit = (event.facts["peer"], event.facts["served"])  # few, whatever a peer asks for
        seen, last_seen[visit] = last_seen.get(visit), event.at
        if seen is None or event.at - seen > _VISIT:
            output.say("{} uses {}".format(*visit))

    return tell


def tell_limits(output: Output) -> Sink:
    """Return a sink that says whose calls are cut short here, and why; once a visit, however often it tries."""
    last_told: dict[tuple[object, str], float] = {}

    def tell(event: TraceEvent) -> None:
        if not (limited := _limited(event)):
            return
        told, last_told[limited] = last_told.get(limited), event.at  # few: pinned peers, and our own words
        if told is None or event.at - told > _VISIT:
            output.say("{}: {}".format(*limited))

    return tell


def _limited(event: TraceEvent) -> tuple[object, str] | None:
    """Return who is limited, and how; None: nobody."""
    match event.layer, event.name, event.facts:
        case "access", "muted", {"peer": peer, "seconds": float(seconds)}:
            return peer, f"refused again and again; you are not asked about it for {format_duration(seconds)}"
        case "serving", "over_quota", {"peer": peer, "service": service, "reason": reason}:
            return peer, f"turned away from {service}: {reason}"
        case "session", "stream_denied", {"tag": peer, "code": "BUSY", "reason": reason}:
            return peer, f"turned away: {reason}"
        case _:
            return None
