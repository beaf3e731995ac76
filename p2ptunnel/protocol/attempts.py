"""The introductions that are under way, and who holds how many of them.

Rule: no one party keeps all others out.  Parties are told apart as rate limits tell them apart; where there is no place left,
the one that holds most gives one up.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterator

import msgspec

from p2ptunnel.defaults import (
    ATTEMPTS_MAX,
    ATTEMPTS_OF_CALLEE_MAX,
    ATTEMPTS_OF_SOURCE_MAX,
    ATTEMPTS_OF_SOURCE_TO_CALLEE_MAX,
    SITE_FACTOR,
)
from p2ptunnel.protocol.limits import limited_source
from p2ptunnel.protocol.replies import Endpoint
from p2ptunnel.types import Tag

__all__ = ["Attempt", "Attempts"]


class Attempt(msgspec.Struct, eq=False):
    """One introduction, from t=4 until the caller has acknowledged its result; `answered`: the callee has, or had its time."""

    token: str
    caller: Endpoint
    caller_tag: Tag
    callee: Endpoint
    callee_tag: Tag
    answer_by: float
    expires_at: float
    is_caller_known: bool
    answered: bool = False

    def __repr__(self) -> str:
        return f"Attempt({self.caller_tag} to {self.callee_tag})"


class Attempts:
    """All attempts of one server; iterating gives them in the order in which they began."""

    def __init__(self) -> None:
        self._by_token: dict[str, Attempt] = {}
        self._places = _Places()
        self._waiting: dict[Endpoint, _Places] = {}  # for each callee those that it has not answered
        self._held: Counter[Hashable] = Counter()  # by block, and by block and callee

    def __len__(self) -> int:
        return len(self._by_token)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(tuple(self._by_token.values()))

    def get(self, token: str) -> Attempt | None:
        """Return the attempt of that token, None if there is none, or no more."""
        return self._by_token.get(token)

    def refusal(self, caller: Endpoint, callee: Endpoint) -> str:
        """Return why there is no place for one more, empty if there is one, or one can be made."""
        block, site = _party(caller)
        if self._held[block] >= ATTEMPTS_OF_SOURCE_MAX or self._places.of(site) >= ATTEMPTS_OF_SOURCE_MAX * SITE_FACTOR:
            return "too many calls from there"
        if self._held[block, callee] >= ATTEMPTS_OF_SOURCE_TO_CALLEE_MAX:
            return "too many calls from there to that peer"
        waiting = self._waiting.get(callee)
        if waiting is not None and len(waiting) >= ATTEMPTS_OF_CALLEE_MAX and waiting.one_of_most(site) is None:
            return "too many calls to that peer"
        if len(self) >= ATTEMPTS_MAX and self._places.one_of_most(site) is None:
            return "server busy"
        return ""

    def free_at(self, caller: Endpoint, callee: Endpoint) -> float:
        """Return at which second, at the latest, there is a place again for one that has just been refused."""
        block, site = _party(caller)
        here, held = self._places.at(site), self._held[block]
        if held >= ATTEMPTS_OF_SOURCE_MAX:
            return next(attempt.expires_at for attempt in here if _party(attempt.caller)[0] == block)  # the oldest ends first
        if len(here) >= ATTEMPTS_OF_SOURCE_MAX * SITE_FACTOR:
            return here[0].expires_at
        waiting = tuple(self._waiting.get(callee, ()))
        own = [attempt.answer_by for attempt in waiting if _party(attempt.caller)[0] == block]
        if len(own) >= ATTEMPTS_OF_SOURCE_TO_CALLEE_MAX:
            return min(own)
        if len(waiting) >= ATTEMPTS_OF_CALLEE_MAX:
            return min(attempt.answer_by for attempt in waiting)
        return next(iter(self._by_token.values())).expires_at

    def make_room(self, caller: Endpoint, callee: Endpoint) -> list[Attempt]:
        """Forget what has to give way to one more attempt, which has just not been refused; return it."""
        _, site = _party(caller)
        waiting = self._waiting.get(callee)
        given_up: list[Attempt] = []
        if waiting is not None and len(waiting) >= ATTEMPTS_OF_CALLEE_MAX:
            given_up += self._give_up(waiting.one_of_most(site))
        if len(self) >= ATTEMPTS_MAX:
            given_up += self._give_up(self._places.one_of_most(site))
        return given_up

    def add(self, attempt: Attempt) -> None:
        """Begin one."""
        block, site = _party(attempt.caller)
        self._by_token[attempt.token] = attempt
        self._places.add(site, attempt)
        self._waiting.setdefault(attempt.callee, _Places()).add(site, attempt)
        self._held[block] += 1
        self._held[block, attempt.callee] += 1

    def forget(self, attempt: Attempt) -> None:
        """End one: it counts no more."""
        block, site = _party(attempt.caller)
        del self._by_token[attempt.token]
        self._places.remove(site, attempt)
        self._count_down(block)
        self.note_answer(attempt)

    def note_answer(self, attempt: Attempt) -> None:
        """The callee has answered or has had its time: the attempt keeps it busy no more, whatever the caller does."""
        if attempt.answered:
            return
        attempt.answered = True
        block, site = _party(attempt.caller)
        self._count_down((block, attempt.callee))
        waiting = self._waiting[attempt.callee]
        waiting.remove(site, attempt)
        if not waiting:
            del self._waiting[attempt.callee]

    def _give_up(self, attempt: Attempt | None) -> list[Attempt]:
        if attempt is None:
            return []
        self.forget(attempt)
        return [attempt]

    def _count_down(self, key: Hashable) -> None:
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]


class _Places:
    """Attempts by the site of their caller."""

    def __init__(self) -> None:
        self._of_site: dict[Hashable, dict[str, Attempt]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Attempt]:
        return itertools.chain.from_iterable(held.values() for held in self._of_site.values())

    def of(self, site: Hashable) -> int:
        """Return how many a site holds."""
        return len(self._of_site.get(site, ()))

    def at(self, site: Hashable) -> tuple[Attempt, ...]:
        """Return those of a site."""
        return tuple(self._of_site.get(site, {}).values())

    def add(self, site: Hashable, attempt: Attempt) -> None:
        """Count one."""
        self._of_site.setdefault(site, {})[attempt.token] = attempt
        self._count += 1

    def remove(self, site: Hashable, attempt: Attempt) -> None:
        """Count one no more."""
        held = self._of_site[site]
        del held[attempt.token]
        self._count -= 1
        if not held:
            del self._of_site[site]

    def one_of_most(self, site: Hashable) -> Attempt | None:
        """Return the oldest attempt of the site that holds most, for `site` to have its place.

        None: it holds hardly more, and to take turns in driving each other out helps nobody.
        """
        most = max(self._of_site.values(), key=len)
        return next(iter(most.values())) if len(most) > self.of(site) + 1 else None


def _party(caller: Endpoint) -> tuple[Hashable, Hashable]:
    """Return the block and the site that an attempt counts for; loopback is one of both."""
    return limited_source(caller.host) or (caller.host, caller.host)
