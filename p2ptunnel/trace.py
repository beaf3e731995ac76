"""Events of every layer, as values, and the sinks they go to.

One stream of events feeds the log, `--trace`, `--json` and the tests.  Rule: an event holds no token, conkey, key or payload.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import IO, Final, TypeAlias

import msgspec

__all__ = ["JsonLines", "Sink", "TraceEvent", "Tracer", "log_sink"]


class TraceEvent(msgspec.Struct, frozen=True):
    """Something that happened: `at` is monotonic seconds, `facts` are plain JSON values."""

    at: float
    layer: str
    name: str
    facts: dict[str, object]


_log: Final = logging.getLogger("p2ptunnel.trace")

Sink: TypeAlias = Callable[[TraceEvent], None]


class Tracer:
    """Hands events to its sinks; with none, tracing costs one attribute look-up."""

    __slots__ = ("_clock", "_sinks")

    def __init__(self, *sinks: Sink, clock: Callable[[], float] = time.monotonic) -> None:
        self._sinks: Final[list[Sink]] = list(sinks)
        self._clock = clock

    @property
    def is_active(self) -> bool:
        """Whether anybody listens; asked before facts are made that cost something."""
        return bool(self._sinks)

    def add(self, sink: Sink) -> None:
        """Send every later event to `sink` as well."""
        self._sinks.append(sink)

    def remove(self, sink: Sink) -> None:
        """Stop sending events to `sink`.

        Raises:
            ValueError: It was not added.
        """
        self._sinks.remove(sink)

    def __call__(self, layer: str, name: str, **facts: object) -> None:
        """Record that `name` happened in `layer`."""
        if self._sinks:
            event = TraceEvent(self._clock(), layer, name, facts)
            for sink in tuple(self._sinks):
                try:
                    sink(event)
                except (OSError, ValueError) as error:  # a full disk, a closed file: tracing must not cost what it traces
                    self._sinks.remove(sink)
                    _log.warning("tracing ended: %s", error)


class JsonLines:
    """A sink that writes one JSON object a line: `time` (wall), `at` (monotonic), `layer`, `event` and the facts."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __call__(self, event: TraceEvent) -> None:
        """Write the event and flush, so that a reader sees it at once."""
        line = {"time": time.time(), "at": event.at, "layer": event.layer, "event": event.name, **event.facts}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def log_sink(event: TraceEvent) -> None:
    """Write the event to the logger `p2ptunnel.<layer>` at DEBUG."""
    logger = logging.getLogger(f"p2ptunnel.{event.layer}")
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s %s", event.name, " ".join(f"{key}={value}" for key, value in event.facts.items()))
