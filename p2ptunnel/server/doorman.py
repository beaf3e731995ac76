"""Who may stay at a listener that anybody can connect to: counts by source, a lot among the silent, penalties.

Pure: connections are numbers, time and luck come in.  Rule: peers say a line at once, so only who is silent is in danger.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final

from p2ptunnel.addresses import Source
from p2ptunnel.defaults import (
    CONTROL_CONNECTIONS_MAX,
    CONTROL_DROP_FIRST,
    CONTROL_DROP_FROM,
    CONTROL_DROP_FULL,
    CONTROL_JUNK_BURST,
    CONTROL_JUNK_PER_MINUTE,
    CONTROL_OF_SOURCE_MAX,
    CONTROL_PENALTY,
    CONTROL_SILENT_OF_SOURCE_MAX,
    LIMITED_SOURCES_MAX,
    SITE_FACTOR,
)
from p2ptunnel.protocol.limits import Buckets, Rate, limited_source
from p2ptunnel.protocol.machine import Entropy

__all__ = ["Doorman"]


class Doorman:
    """Counts the connections of one listener."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy: Final = entropy
        self._sources: dict[int, Source | None] = {}
        self._of_block: Counter[int] = Counter()
        self._of_site: Counter[int] = Counter()
        self._silent: list[int] = []
        self._silent_of_block: Counter[int] = Counter()
        self._junk = Buckets(Rate(CONTROL_JUNK_PER_MINUTE / 60, CONTROL_JUNK_BURST))
        self._penalties: OrderedDict[int, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sources)

    def enter(self, number: int, host: str, now: float) -> str:
        """Count a connection; return why it cannot stay, empty if it can.  `leave` follows in both cases."""
        source = self._sources[number] = limited_source(host)
        if source is not None:
            self._of_block[source.block] += 1
            self._of_site[source.site] += 1
        if len(self._sources) > CONTROL_CONNECTIONS_MAX:
            return "too many connections"
        if source is None:
            return ""
        if self._penalties.get(source.block, now) > now:
            return "penalty"
        of_block, of_site = self._of_block[source.block], self._of_site[source.site]
        is_too_many = of_block > CONTROL_OF_SOURCE_MAX or of_site > CONTROL_OF_SOURCE_MAX * SITE_FACTOR
        return "too many connections of a source" if is_too_many else ""

    def fell_silent(self, number: int) -> tuple[int, str] | None:
        """Count a connection that has not said anything yet; return which one must go for it, and why."""
        source = self._sources[number]
        self._silent.append(number)
        if source is not None:
            self._silent_of_block[source.block] += 1
            if self._silent_of_block[source.block] > CONTROL_SILENT_OF_SOURCE_MAX:
                return number, "too many silent connections of a source"
        if self._entropy.random() < self._danger():
            return self._silent[int(self._entropy.random() * len(self._silent))], "too many silent connections"
        return None

    def spoke(self, number: int) -> None:
        """Take a connection off the silent ones."""
        if number in self._silent:
            self._silent.remove(number)
            if source := self._sources[number]:
                self._count_down(self._silent_of_block, source.block)

    def leave(self, number: int) -> None:
        """Forget a connection."""
        self.spoke(number)
        if source := self._sources.pop(number):
            self._count_down(self._of_block, source.block)
            self._count_down(self._of_site, source.site)

    def punish(self, number: int, now: float) -> None:
        """Let nobody in from the source of a connection for a while: it speaks something else, and not for the first time.

        Who has a web page open that asks us for something is no attacker, and shares its address with peers.
        """
        source = self._sources[number]
        if source is None or self._junk.take(source.block, now):
            return
        self._penalties[source.block] = now + CONTROL_PENALTY
        self._penalties.move_to_end(source.block)
        if len(self._penalties) > LIMITED_SOURCES_MAX:
            self._penalties.popitem(last=False)

    def _danger(self) -> float:
        """Return with what probability one of the silent must go: none for few of them, 0.3 from 11 on, 1 from 100 on."""
        beyond = len(self._silent) - CONTROL_DROP_FROM
        if beyond <= 0:
            return 0.0
        return CONTROL_DROP_FIRST + (1 - CONTROL_DROP_FIRST) * beyond / (CONTROL_DROP_FULL - CONTROL_DROP_FROM)

    @staticmethod
    def _count_down(counter: Counter[int], key: int) -> None:
        counter[key] -= 1
        if not counter[key]:
            del counter[key]
