"""How much one source may ask: token buckets, bounded in number.  Rule: what is refused here has cost nothing yet."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

from msgspec import Struct

from p2ptunnel.addresses import Source, canonical, scope_of, source_of
from p2ptunnel.defaults import LIMITED_SOURCES_MAX, SITE_FACTOR

__all__ = ["Buckets", "Rate", "SourceLimit", "limited_source"]

_IPV4_END: Final = 1 << 48  # of the numbers that stand for IPv4 addresses
_LOOPBACK: Final = "127."


class Rate(Struct, frozen=True):
    """So many a second for as long as one likes, and `burst` at once."""

    per_second: float
    burst: float


class Buckets:
    """One token bucket a key.

    Of keys that were used least recently it forgets the oldest: those begin anew with a full bucket, so who can make keys at
    will is to be stopped by something else as well.
    """

    def __init__(self, rate: Rate, *, most: int = LIMITED_SOURCES_MAX) -> None:
        self._per_second, self._burst = rate.per_second, rate.burst
        self._most = most
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()  # (tokens, as of), least recently used first

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, key: Hashable, now: float) -> bool:
        """Take one token; return whether there was one."""
        level = self._levels.pop(key, None)  # to stand last
        tokens = self._burst if level is None else min(self._burst, level[0] + max(0.0, now - level[1]) * self._per_second)
        has_one = tokens >= 1
        self._levels[key] = (tokens - has_one, now)
        if len(self._levels) > self._most:
            del self._levels[next(iter(self._levels))]
        return has_one

    def give_back(self, key: Hashable) -> None:
        """Return a token that was taken: what it was taken for has turned out to need none."""
        level = self._levels.get(key)
        if level is not None:
            self._levels[key] = (min(level[0] + 1, self._burst), level[1])

    def wait(self, key: Hashable, now: float) -> float:
        """Return after how many seconds there is a token."""
        tokens, at = self._levels.get(key, (self._burst, now))
        return max(0.0, (1 - tokens) / self._per_second - max(0.0, now - at))


class SourceLimit:
    """The same rate for every source: an IPv4 address or a /64; a /48 has 16 times as much.  Loopback has no limit."""

    def __init__(self, rate: Rate, *, most: int = LIMITED_SOURCES_MAX) -> None:
        self._blocks = Buckets(rate, most=most)
        self._sites = Buckets(Rate(rate.per_second * SITE_FACTOR, rate.burst * SITE_FACTOR), most=most)

    def take(self, host: str, now: float, *, of: Hashable = None) -> bool:
        """Count one thing that `host` asks for, for each `of` apart; return whether it may."""
        block, site = _block_and_site(host)
        if block is None:
            return True
        if not self._blocks.take((block, of), now):
            return False
        return site is None or self._sites.take((site, of), now)

    def give_back(self, host: str) -> None:
        """Do not count the last one: it has shown who it is."""
        block, site = _block_and_site(host)
        self._blocks.give_back((block, None))
        self._sites.give_back((site, None))

    def wait(self, host: str, now: float, *, of: Hashable = None) -> float:
        """Return after how many seconds `host` may ask again."""
        block, site = _block_and_site(host)
        return max(self._blocks.wait((block, of), now), self._sites.wait((site, of), now))


def _block_and_site(host: str) -> tuple[str | int | None, int | None]:
    """Return whom buckets are for: nobody for what has no limit, and no site for IPv4.

    IPv4 is told apart as the kernel spells it and not parsed: a flood brings another one with each datagram.
    """
    if ":" not in host and host[:1].isdigit():
        return None if host.startswith(_LOOPBACK) else host, None
    source = limited_source(host)
    if source is None:
        return None, None
    return (str(canonical(host.partition("%")[0])), None) if source.block < _IPV4_END else source


@functools.lru_cache(maxsize=LIMITED_SOURCES_MAX)
def limited_source(host: str) -> Source | None:
    """Return whom a limit takes the numeric address for; None for loopback, and for what is no address: a test's."""
    try:
        address = canonical(host.partition("%")[0])
    except ValueError:
        return None
    return None if scope_of(address) == "loopback" else source_of(address)
