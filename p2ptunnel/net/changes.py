"""Noticing that the network around this machine has changed, or that the machine has slept.

Rule: what is a change is decided by functions of values, without a socket or a clock; `NetworkWatch` only asks and calls.

Source: rtnetlink(7), clock_gettime(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterable
from typing import Final, Literal

import msgspec

from p2ptunnel.defaults import LOOP_LATE, NETWORK_POLL, NETWORK_SETTLE, NETWORK_TICK, SLEEP_MIN, SLEEP_MIN_BY_WALL_CLOCK
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.net.gateway import ANYWHERE
from p2ptunnel.net.interfaces import local_addresses
from p2ptunnel.net.netlink import find_route, open_news, take_news
from p2ptunnel.net.watch import Watch
from p2ptunnel.trace import Tracer

__all__ = [
    "ClockReading",
    "NetworkChange",
    "NetworkWatch",
    "Surroundings",
    "address_change",
    "look_around",
    "seconds_late",
    "sleep_change",
]

_BOOTTIME: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)
_SHORTEST_SLEEP: Final = SLEEP_MIN_BY_WALL_CLOCK if _BOOTTIME is None else SLEEP_MIN
_TICKS_A_POLL: Final = round(NETWORK_POLL / NETWORK_TICK)


class NetworkChange(msgspec.Struct, frozen=True):
    """Why every path may be another now: addresses or default routes are others, or the machine has just woken."""

    kind: Literal["addresses", "woke"]
    text: str

    def __str__(self) -> str:
        return self.text


# --- what is a change -------------------------------------------------------------------------------------------------


class Surroundings(msgspec.Struct, frozen=True):
    """What packets of ours depend on: usable addresses, and where the default routes lead, in words."""

    addresses: frozenset[str]
    routes: frozenset[str] = frozenset()


class ClockReading(msgspec.Struct, frozen=True):
    """Two clocks at one time, in seconds: `awake` stands still while the machine sleeps, `always` does not."""

    awake: float
    always: float


def address_change(before: Surroundings, after: Surroundings) -> NetworkChange | None:
    """Return what came and what went; None if nothing did."""
    facts = (
        ("lost", before.addresses - after.addresses),
        ("new", after.addresses - before.addresses),
        ("no route by", before.routes - after.routes),
        ("route by", after.routes - before.routes),
    )
    text = "; ".join(f"{word} {_listed(which)}" for word, which in facts if which)
    return NetworkChange("addresses", text) if text else None


def sleep_change(before: ClockReading, after: ClockReading, shortest: float = SLEEP_MIN) -> NetworkChange | None:
    """Return that the machine has slept between two readings, for more than `shortest` seconds; None if it has not."""
    slept = (after.always - before.always) - (after.awake - before.awake)
    return NetworkChange("woke", f"slept {slept:.0f} s") if slept > shortest else None


def seconds_late(before: ClockReading, after: ClockReading) -> float:
    """Return how much later than a tick after `before` the second reading was taken, sleep not counted."""
    return max(0.0, after.awake - before.awake - NETWORK_TICK)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))


# --- asking and calling -----------------------------------------------------------------------------------------------


def look_around() -> Surroundings:
    """Return what the system tells now; off Linux the addresses alone, which are then those of the default routes."""
    routes: set[str] = set()
    with contextlib.suppress(OSError):  # no rtnetlink here, or it is forbidden
        routes = {str(route) for route in map(find_route, ANYWHERE) if route is not None}
    return Surroundings(frozenset(local_addresses()), frozenset(routes))


def _always() -> float:
    return time.time() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


class NetworkWatch:
    """Calls back on the running loop when the network changed or the machine slept, until closed.

    News of rtnetlink that come in one burst are one change; where there is none, addresses are polled.  Idle it costs one
    timer a second.
    """

    def __init__(
        self,
        on_change: Callable[[NetworkChange], None],
        *,
        tracer: Tracer | None = None,
        awake: Callable[[], float] = time.monotonic,
        always: Callable[[], float] = _always,
        look: Callable[[], Surroundings] = look_around,
        listen: Callable[[], socket.socket] = open_news,
    ) -> None:
        """Prepare; nothing is opened.

        Args:
            on_change: May call `close`.
            tracer: Told of changes, of a starved loop, and of news that cannot be had.
            awake: Seconds of a clock that stands still while the machine sleeps.
            always: Seconds of one that does not.
            look: Returns what is around; must not block.
            listen: Returns a socket with news, or raises OSError where there are none: then `look` is called every 2 s.
        """
        self._on_change = on_change
        self._trace = tracer or Tracer()
        self._awake = awake
        self._always = always
        self._look = look
        self._listen = listen
        self._around = Surroundings(frozenset())
        self._reading = ClockReading(0.0, 0.0)
        self._ticks = 0
        self._is_started = False
        self._news: socket.socket | None = None
        self._watch: Watch | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._is_closed = False

    def start(self) -> None:
        """Begin, on the loop that runs; what is around now is the state that later ones are compared with.

        Raises:
            LocalProtocolError: It has begun already, or was closed.
        """
        if self._is_started or self._is_closed:
            raise LocalProtocolError("a network watch is started once")
        self._is_started = True
        self._open_news()  # before the first look, so that nothing is missed in between
        self._around = self._look()
        self._reading = self._read_clocks()
        self._ticker = asyncio.get_running_loop().call_later(NETWORK_TICK, self._tick)

    def close(self) -> None:
        """Call no more; closing twice is fine."""
        self._is_closed = True
        for timer in (self._ticker, self._settling):
            if timer is not None:
                timer.cancel()
        self._close_news()

    def _open_news(self) -> None:
        try:
            self._news = self._listen()
        except OSError as error:
            self._trace("net", "news_unavailable", reason=str(error))
        else:
            self._watch = Watch(self._news, self._on_news)

    def _close_news(self) -> None:
        if self._watch is not None:
            self._watch.stop()
        if self._news is not None:
            self._news.close()
            self._news = None

    def _on_news(self) -> None:
        assert self._news is not None
        try:
            concerns = take_news(self._news)
        except OSError as error:  # from now on addresses are polled
            self._trace("net", "news_unavailable", reason=str(error))
            self._close_news()
            return
        if concerns and self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(NETWORK_SETTLE, self._settled)

    def _settled(self) -> None:
        self._settling = None
        self._compare()

    def _compare(self) -> None:
        before, self._around = self._around, self._look()
        self._tell(address_change(before, self._around))

    def _tick(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(NETWORK_TICK, self._tick)
        self._ticks += 1
        before, self._reading = self._reading, self._read_clocks()
        late = seconds_late(before, self._reading)
        if late > LOOP_LATE:
            self._trace("net", "loop_starved", seconds=round(late, 3))
        self._tell(sleep_change(before, self._reading, _SHORTEST_SLEEP))
        if self._news is None and self._ticks % _TICKS_A_POLL == 0 and not self._is_closed:
            self._compare()

    def _read_clocks(self) -> ClockReading:
        return ClockReading(self._awake(), self._always())

    def _tell(self, change: NetworkChange | None) -> None:
        if change is not None:
            self._trace("net", "network_changed", kind=change.kind, text=change.text)
            self._on_change(change)
