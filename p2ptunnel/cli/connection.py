"""What a command says about its connections: lost, found again, given up; once an event, in words and as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator
from time import monotonic
from typing import Any, Final

import msgspec

from p2ptunnel.cli.output import Output, in_words
from p2ptunnel.defaults import RESUME_LINGER, RESUME_TIMEOUT
from p2ptunnel.events import (
    AccessDecided,
    ApprovalAwaited,
    ChannelLost,
    ChannelOpened,
    EventsDropped,
    PathChanged,
    PathSuspected,
    PeerEvent,
    ServerFound,
    ServerLost,
    SessionExpired,
    SessionResumed,
    SessionStalled,
)
from p2ptunnel.types import Path, format_address, format_duration

__all__ = ["Narrator", "facts", "tell_connections", "telling_beside"]

_WORDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_AT_ONCE_BELOW: Final = 0.05
_SETTLED: Final = 2.0
"""Seconds for which a connection keeps its path before that is told: what lasts shorter nobody needs to know."""
_KIB: Final = 1024


class Narrator:
    """Puts events into words; keeps in mind what belongs together.

    Over which path a connection runs is told by `settled`, once it has run over that for a while.

    Args:
        patience: Seconds for which a connection with streams is waited for: who waits shorter has none.
        begins_at_once: Whether `detail` tells of a new connection at once over the relay, too.
    """

    def __init__(self, patience: float = RESUME_TIMEOUT, *, begins_at_once: bool = False) -> None:
        self._patience = patience
        self._begins_at_once = begins_at_once
        self._unmissed: set[int] = set()
        self._paths: dict[int, Path] = {}
        self._told: dict[int, Path] = {}
        self._settling: dict[int, PeerEvent] = {}
        self._waiting: set[int] = set()
        self._stalled: set[int] = set()

    def text(self, event: PeerEvent | EventsDropped) -> str:
        """Return what there is to say about an event; empty for what only `detail` tells, or another event."""
        return "" if self._is_unmissed(event) else self._words(event)

    def next_deadline(self) -> float | None:
        """Return the monotonic second at which `settled` has something to tell, unless another event comes; None: never."""
        return min(event.at for event in self._settling.values()) + _SETTLED if self._settling else None

    def settled(self, now: float) -> list[tuple[str, str]]:
        """Return what there is to say about paths that have settled: each a text as of `text`, and one as of `detail`.

        Args:
            now: Monotonic seconds.
        """
        due = [event for event in self._settling.values() if now >= event.at + _SETTLED]
        return [words for event in due if any(words := self._settle(event))]

    def _settle(self, event: PeerEvent) -> tuple[str, str]:
        before, path = self._told.get(event.session), self._paths[event.session]
        self._keep_in_mind(event.session)
        if before is None:
            return "", f"{event.tag}: connected{self._over(event)}"
        return "" if _is_alike(before, path) else f"{event.tag}: moved to a new connection{self._over(event)}", ""

    def _keep_in_mind(self, session: int) -> None:
        """Take note that it is told, or about to be, over which path a session runs."""
        self._settling.pop(session, None)
        if session in self._paths:
            self._told[session] = self._paths[session]

    def _is_unmissed(self, event: PeerEvent | EventsDropped) -> bool:
        """Tell whether an event is of a connection that was lost while it had no streams: nobody waits for it."""
        match event:
            case ChannelLost(patience=patience):
                is_idle = patience <= RESUME_LINGER and patience < self._patience
                (self._unmissed.add if is_idle else self._unmissed.discard)(event.session)
                return is_idle
            case SessionResumed():
                return event.session in self._unmissed
            case SessionExpired(unacknowledged_bytes=count):
                return event.session in self._unmissed and not count
            case _:
                return False

    def _words(self, event: PeerEvent | EventsDropped) -> str:
        match event:
            case ChannelLost(cause=cause, patience=patience):
                self._settling.pop(event.session, None)
                self._waiting.add(event.session)
                self._stalled.discard(event.session)
                waiting = f"; waiting up to {format_duration(patience)}" if patience else ""
                return f"{event.tag}: connection lost ({in_words(cause)}){waiting}"
            case SessionStalled():
                self._stalled.add(event.session)
                return f"{event.tag}: its program does not answer, though the connection stands; waiting"
            case SessionResumed(gap=gap, replayed_bytes=replayed):
                self._waiting.discard(event.session)
                self._unmissed.discard(event.session)
                if event.session in self._stalled:
                    self._stalled.remove(event.session)
                    return f"{event.tag}: its program answers again, {_after(gap)}"
                self._keep_in_mind(event.session)
                again = f"; {_size(replayed)} sent again" if replayed else ""
                return f"{event.tag}: connected again {_after(gap)}{self._over(event)}{again}"
            case SessionExpired(gap=gap, unacknowledged_bytes=count, cause=cause):
                self._forget(event)
                lost = f"; {_size(count)} unconfirmed" if count else ""
                return f"{event.tag}: gave up {_after(gap)} ({in_words(cause)}){lost}"
            case PathChanged(old=old, new=path):
                if event.session not in self._paths:
                    self._told[event.session] = old
                self._paths[event.session] = path
                if event.session not in self._waiting:
                    self._settling[event.session] = event
                return ""
            case ApprovalAwaited(service=service, patience=patience):
                return f"{event.tag}: waiting for approval of {service} there, up to {format_duration(patience)}"
            case AccessDecided(service=service, decision=decision, by=by):
                answer = "nobody answered" if by == "timeout" else decision
                return f"{event.tag}: {service}: {answer}"
            case ServerLost(server=server, cause=cause):
                return f"{server}: {in_words(cause)}; nobody new finds {event.tag}, open connections go on"
            case ServerFound(server=server):
                return f"{server}: {event.tag} is found again"
            case EventsDropped(count=count):
                return f"{count} events came too fast to be told"
            case _:
                return ""

    def detail(self, event: PeerEvent | EventsDropped) -> str:
        """Return what only -v asks for; ask for `text` first."""
        if self._is_unmissed(event):
            return self._words(event)
        match event:
            case ChannelOpened(path=path) if event.session not in self._paths:  # later ones are told when they are in use
                self._paths[event.session] = path
                if path.kind == "relay" and not self._begins_at_once:  # most often a direct path is up a moment later
                    self._settling[event.session] = event
                    return ""
                self._keep_in_mind(event.session)
                return f"{event.tag}: connected{self._over(event)}"
            case PathSuspected() if event.session not in self._waiting:
                return f"{event.tag}: no sign of life; looking for another path"
            case _:
                return ""

    def _over(self, event: PeerEvent) -> str:
        path = self._paths.get(event.session)
        if path is None:
            return ""
        return f" over {'the relay ' if path.kind == 'relay' else ''}{format_address(path.remote)}"

    def _forget(self, event: PeerEvent) -> None:
        self._waiting.discard(event.session)
        self._stalled.discard(event.session)
        self._unmissed.discard(event.session)
        for kept in (self._paths, self._told, self._settling):
            kept.pop(event.session, None)


def facts(event: PeerEvent | EventsDropped) -> dict[str, Any]:
    """Return an event as the fields of a JSON object: `event` is its name, `peer` the tag, `time` seconds since 1970."""
    fields = msgspec.to_builtins(event)
    fields.pop("at", None)
    named = {"event": _WORDS.sub("_", type(event).__name__).lower()}
    if "tag" in fields:
        named["peer"] = fields.pop("tag")
    return {**named, **fields}


async def tell_connections(
    events: AsyncIterator[PeerEvent | EventsDropped], output: Output, *, patience: float = RESUME_TIMEOUT
) -> None:
    """Say what happens to connections until the peer ends: words on stderr, and with --json objects on stdout.

    Args:
        events: Of the peer.
        output: Where it is said.
        patience: Seconds for which a connection with streams is waited for.

    Raises:
        ReaderGoneError: Nobody reads the objects any more.
    """
    narrator = Narrator(patience)
    async with contextlib.aclosing(_with_pauses(events, narrator)) as paused:
        async for event in paused:
            for text, detail in narrator.settled(monotonic()) if event is None else [_said(narrator, event)]:
                output.say(text)
                output.detail(detail)
            if event is not None and output.as_json:
                output.data("", **facts(event))


async def _with_pauses(
    events: AsyncIterator[PeerEvent | EventsDropped], narrator: Narrator
) -> AsyncGenerator[PeerEvent | EventsDropped | None]:
    """Yield the events, and None whenever the narrator has waited long enough for another.

    An event is taken in the turn in which it comes, without a task between: others who tell of the same must not be faster.
    """
    while True:
        deadline = narrator.next_deadline()
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - monotonic())):
                event = await anext(events, None)
        except TimeoutError:
            yield None
            continue
        if event is None:
            return
        yield event


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
    narrator = Narrator(begins_at_once=True)
    async with contextlib.aclosing(_with_pauses(events, narrator)) as paused:
        async for event in paused:
            for text, detail in narrator.settled(monotonic()) if event is None else [_said(narrator, event)]:
                output.detail(text or detail)


def _said(narrator: Narrator, event: PeerEvent | EventsDropped) -> tuple[str, str]:
    return narrator.text(event), narrator.detail(event)


def _is_alike(one: Path, other: Path) -> bool:
    """Tell whether two paths are the same to people."""
    return (one.kind, one.transport, one.remote) == (other.kind, other.transport, other.remote)


def _after(seconds: float) -> str:
    return "at once" if seconds < _AT_ONCE_BELOW else f"after {format_duration(seconds)}"


def _size(count: int) -> str:
    """Return it as people say it: 900 B, 48 KiB, 3.2 MiB."""
    if count < _KIB:
        return f"{count} B"
    return f"{count / _KIB:.0f} KiB" if count < _KIB**2 else f"{count / _KIB**2:.1f} MiB"
