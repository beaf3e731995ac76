"""Whose handshakes a listener carries at a time: so many of a source and of its site, and a lot among all where it is full.

Pure: handshakes are numbers, luck comes in.  Rule: who finishes soon is seldom drawn, however many there are that never do.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from p2ptunnel.addresses import Source
from p2ptunnel.defaults import WEB_HANDSHAKES_MAX, WEB_HANDSHAKES_OF_SITE_MAX, WEB_HANDSHAKES_OF_SOURCE_MAX
from p2ptunnel.protocol.limits import limited_source
from p2ptunnel.protocol.machine import Entropy

__all__ = ["Handshakes"]


class Handshakes:
    """Counts the handshakes of one listener; those from loopback are of no source."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy: Final = entropy
        self._sources: Final[dict[int, Source | None]] = {}
        self._of_block: Final[Counter[int]] = Counter()
        self._of_site: Final[Counter[int]] = Counter()

    def enter(self, number: int, host: str) -> int | None:
        """Count a handshake, and return which one must go for it, and is forgotten: maybe itself, None if all may stay."""
        source = self._sources[number] = limited_source(host)
        if source is not None:
            self._of_block[source.block] += 1
            self._of_site[source.site] += 1
            of_block, of_site = self._of_block[source.block], self._of_site[source.site]
            if of_block > WEB_HANDSHAKES_OF_SOURCE_MAX or of_site > WEB_HANDSHAKES_OF_SITE_MAX:
                return self._drop(number)
        if len(self._sources) > WEB_HANDSHAKES_MAX:
            return self._drop(tuple(self._sources)[int(self._entropy.random() * len(self._sources))])
        return None

    def leave(self, number: int) -> None:
        """Forget a handshake, unless it is."""
        if number in self._sources:
            self._drop(number)

    def _drop(self, number: int) -> int:
        source = self._sources.pop(number)
        if source is not None:
            for counter, key in ((self._of_block, source.block), (self._of_site, source.site)):
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]
        return number
