"""What a command says about its connections: lost, found again, given up; once an event, in words and as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final

import msgspec

from p2ptunnel.cli.output import Output
from p2ptunnel.events import (
    ChannelLost,
    ChannelOpened,
    EventsDropped,
    PathChanged,
    PathSuspected,
    PeerEvent,
    SessionExpired,
    SessionResumed,
    SessionStalled,
)
from p2ptunnel.types import Path, format_address

__all__ = ["Narrator", "facts", "tell_connections", "telling_beside"]

_WORDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"))
_TENTHS_BELOW: Final = 10.0  # seconds
_KIB: Final = 1024


class Narrator:
    """Puts events into words; keeps in mind what belongs together."""

    def __init__(self) -> None:
        self._waiting: set[str] = set()
        self._paths: dict[str, Path] = {}

    def text(self, event: PeerEvent | EventsDropped) -> str:
        """Return what there is to say about an event; empty for what another event tells with more."""
        match event:
            case ChannelLost(tag=tag, cause=cause, patience=patience):
                self._waiting.add(tag)
                return f"{tag}: connection lost ({cause}); waiting up to {_duration(patience)}"
            case SessionResumed(tag=tag, gap=gap, replayed_bytes=replayed):
                self._waiting.discard(tag)
                again = f"; {_size(replayed)} sent again" if replayed else ""
                return f"{tag}: connected again after {_duration(gap)}{self._over(tag)}{again}"
            case SessionStalled(tag=tag):
                self._waiting.add(tag)
                return f"{tag}: its program does not answer, its machine does; waiting"
            case SessionExpired(tag=tag):
                self._waiting.discard(tag)
                why = f" ({event.cause})" if event.cause else ""
                return f"{tag}: gave up after {_duration(event.gap)}{why}; {_size(event.unacknowledged_bytes)} unconfirmed"
            case PathChanged(tag=tag, new=path):
                self._paths[tag] = path
                return "" if tag in self._waiting else f"{tag}: moved{self._over(tag)}, without a break"
            case EventsDropped(count=count):
                return f"{count} events were too many to tell"
            case _:
                return ""

    def detail(self, event: PeerEvent | EventsDropped) -> str:
        """Return what only -v asks for."""
        match event:
            case ChannelOpened(tag=tag, path=path):
                self._paths.setdefault(tag, path)
                return f"{tag}: a connection over {format_address(path.remote)} is up"
            case PathSuspected(tag=tag):
                return f"{tag}: no sign of life; looking for another path"
            case _:
                return ""

    def _over(self, tag: str) -> str:
        path = self._paths.get(tag)
        return "" if path is None else f" over {format_address(path.remote)}"


def facts(event: PeerEvent | EventsDropped) -> dict[str, Any]:
    """Return an event as the fields of a JSON object: `event` is its name, `peer` the tag, `time` seconds since 1970."""
    fields = msgspec.to_builtins(event)
    fields.pop("at", None)
    named = {"event": _WORDS.sub("_", type(event).__name__).lower()}
    if "tag" in fields:
        named["peer"] = fields.pop("tag")
    return {**named, **fields}


async def tell_connections(events: AsyncIterator[PeerEvent | EventsDropped], output: Output) -> None:
    """Say what happens to connections until the peer ends: words on stderr, and with --json objects on stdout.

    Raises:
        ReaderGoneError: Nobody reads the objects any more.
    """
    narrator = Narrator()
    async for event in events:
        output.say(narrator.text(event))
        output.detail(narrator.detail(event))
        if output.as_json:
            output.data("", **facts(event))


@contextlib.asynccontextmanager
async def telling_beside(events: AsyncIterator[PeerEvent | EventsDropped], output: Output) -> AsyncGenerator[None]:
    """Say the same while the block lasts, but only with -v and never on stdout: both belong to another program, too."""
    telling = asyncio.ensure_future(_tell_details(events, output))
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def _tell_details(events: AsyncIterator[PeerEvent | EventsDropped], output: Output) -> None:
    narrator = Narrator()
    async for event in events:
        output.detail(narrator.text(event) or narrator.detail(event))


def _duration(seconds: float) -> str:
    """Return it as people say it: 1.8 s, 45 s, 10 min, 1.5 h."""
    if seconds < _TENTHS_BELOW:
        return f"{seconds:.1f} s"
    for unit, name in _UNITS:
        if seconds >= unit:
            return f"{round(seconds / unit, 1):g} {name}"
    return f"{seconds:.0f} s"


def _size(count: int) -> str:
    """Return it as people say it: 900 B, 48 KiB, 3.2 MiB."""
    if count < _KIB:
        return f"{count} B"
    return f"{count / _KIB:.0f} KiB" if count < _KIB**2 else f"{count / _KIB**2:.1f} MiB"
