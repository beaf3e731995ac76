"""Over which channel a session runs: a score, and rules that keep it from hopping back and forth.  Rule: `now` comes in.

A path in doubt is left at once, for any other that answers.  All else is voluntary: it needs a reason that lasts, and happens
once in ten seconds at most.

Source: docs/explanation/traversal.md; docs/explanation/reliability.md.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Final, TypeAlias

import msgspec

from p2ptunnel.defaults import (
    FLAP_MEMORY,
    FLAP_WAIT,
    FLAP_WAIT_MAX,
    PING_ACTIVE,
    SUSPECT_AFTER,
    SWITCH_MARGIN,
    SWITCH_MARGIN_MS,
    SWITCH_MEASUREMENTS,
    SWITCH_PAUSE,
    SWITCH_PROOF,
)
from p2ptunnel.protocol.link import Health
from p2ptunnel.types import Path

__all__ = ["PathCandidate", "PathChooser", "PathName", "Tier", "name_of", "score", "tier_of"]

_TIER_FACTOR: Final = 2  # a better tier may score so many times the worse one's, and so much more
_TIER_MARGIN_MS: Final = 100
_DEVIATIONS: Final = 2
_LOSS_MS: Final = 1000  # a share of 1; every lost segment costs about its retransmission timeout
_IPV6_MS: Final = 3  # no NAT that forgets
_ON_LINK_MS: Final = 5  # nobody between
_MEANWHILE: Final = SUSPECT_AFTER - PING_ACTIVE  # seconds: for as long a question went unanswered before anybody was in doubt


class Tier(enum.IntEnum):
    """Kinds of paths, better ones first: a kernel's TCP moves many times what QUIC in Python does, and no relay is as near."""

    DIRECT = 0
    QUIC = 1
    RELAY = 2


PathName: TypeAlias = tuple[str, str, str]
"""What two channels of one path have in common: kind, transport and remote host.  Not the port: each attempt has another."""


class PathCandidate(msgspec.Struct, frozen=True, kw_only=True):
    """One channel as the chooser sees it.

    Attributes:
        link: Its number in the session.
        name: Of its path; what died under that name died here.
        tier: Of its path.
        health: What is thought of it; only one that is UP is moved to.
        heard_at: Monotonic seconds: when the last byte came over it.
        rtt: Smoothed seconds of a round trip; None until measured, and before that nobody moves to it of his own will.
        rtt_deviation: Seconds.
        round_trips: How many were measured: a rise is a new measurement.
        loss: Share of the segments that had to be sent again, 0 to 1.
        is_ipv6: Whether it runs over IPv6.
        is_on_link: Whether the peer is in the same local network.
        is_active: Whether the session is on it, or on its way to it; true of one candidate at most.
        is_loaded: Whether so much goes over it now that its round trips tell of our own queue.
    """

    link: int
    name: PathName
    tier: Tier
    health: Health = Health.UP
    heard_at: float = 0.0
    rtt: float | None = None
    rtt_deviation: float = 0.0
    round_trips: int = 0
    loss: float = 0.0
    is_ipv6: bool = False
    is_on_link: bool = False
    is_active: bool = False
    is_loaded: bool = False


def tier_of(path: Path) -> Tier:
    """Return the tier of a path."""
    if path.kind == "relay":
        return Tier.RELAY
    return Tier.QUIC if path.transport == "quic" else Tier.DIRECT


def name_of(path: Path) -> PathName:
    """Return the name under which the deaths of a path are remembered."""
    return (path.kind, path.transport, path.remote[0])


def score(candidate: PathCandidate) -> float:
    """Return what a path costs, in milliseconds, lower being better; infinity until it is measured.

    Source: docs/explanation/traversal.md: round trip, twice its deviation, 1000 for a loss of everything.
    """
    if candidate.rtt is None:
        return math.inf
    credit = _IPV6_MS * candidate.is_ipv6 + _ON_LINK_MS * candidate.is_on_link
    return 1000 * (candidate.rtt + _DEVIATIONS * candidate.rtt_deviation) + _LOSS_MS * candidate.loss - credit


class _Contest:
    """One path that has been better than the one in use, and since when."""

    def __init__(self, target: PathCandidate, active: PathCandidate, now: float) -> None:
        self.links: Final = (active.link, target.link)
        self._since: Final = now
        self._round_trips = target.round_trips
        self._wins = 1

    def count(self, target: PathCandidate, now: float) -> bool:
        """Count a new measurement; tell whether it has won."""
        if target.round_trips > self._round_trips:
            self._round_trips = target.round_trips
            self._wins += 1
        return self._wins >= SWITCH_MEASUREMENTS and now - self._since >= SWITCH_PROOF


class _Deaths(msgspec.Struct):
    """Of one path: how many followed close upon another, and until when it waits for that."""

    followed: int
    until: float

    def again(self, now: float) -> None:
        """Count one more, soon after the last."""
        self.until = now + min(FLAP_WAIT * 2 ** min(self.followed, 10), FLAP_WAIT_MAX)
        self.followed += 1


class PathChooser:
    """Decides when a session leaves the channel that it is on, and for which.

    `choose` is to be asked on every timer, once a second at least, and whenever the health of a channel changes.
    """

    def __init__(self) -> None:
        self._used: set[int] = set()  # links that carried the session once: they come back only after a while
        self._current: PathName | None = None  # of the path in use, as long as its death is not counted
        self._deaths: Final[dict[PathName, _Deaths]] = {}
        self._contest: _Contest | None = None
        self._hoped_for: int | None = None  # link of a better tier than the one in use
        self._switched_at = -math.inf  # voluntarily
        self._switched_before = -math.inf
        self._is_wary = False  # a path that was to take over at once has not answered: the next one is measured first

    @property
    def contender(self) -> int | None:
        """The link that is to be measured as often as the one in use; None for none.

        It is about to win; or it would be by its tier, and what was measured while it was in doubt must not count for ever.
        """
        return self._hoped_for if self._contest is None else self._contest.links[1]

    def waits_until(self, name: PathName) -> float:
        """Return until when a path is not gone back to voluntarily, since it died too often; monotonic seconds."""
        deaths = self._deaths.get(name)
        return -math.inf if deaths is None else deaths.until

    def choose(self, candidates: Sequence[PathCandidate], now: float) -> int | None:
        """Return the link to move to, None to stay.

        Whoever asks is expected to move: the answer counts as a switch.

        Args:
            candidates: All channels of the session that are up.
            now: Monotonic seconds.
        """
        active = next((each for each in candidates if each.is_active), None)
        others = [each for each in candidates if not each.is_active and each.health is Health.UP]
        self._used &= {each.link for each in candidates}
        better = [each for each in others if active and each.tier < active.tier]
        self._hoped_for = min(better, key=score).link if better else None
        if active is None or _is_in_doubt(active, others):
            return self._escape(active, others, now)
        self._current = active.name
        self._used.add(active.link)
        self._is_wary &= active.tier is Tier.RELAY
        return None if active.health is Health.STALLED else self._improve(active, others, now)

    def takes_over(self, fresh: PathCandidate, candidates: Sequence[PathCandidate], now: float) -> bool:
        """Tell whether a path that is just coming up is moved to at once: the first one that needs no relay.

        Whoever asks is expected to move, or to say that it could not: yes counts as a switch.

        Args:
            fresh: Its handshake was its first round trip.
            candidates: All channels of the session that are up.
            now: Monotonic seconds.
        """
        active = next((each for each in candidates if each.is_active), None)
        if self._is_wary or active is None or active.health is not Health.UP or not self._is_first_direct(active, fresh):
            return False
        if (
            self.waits_until(fresh.name) > now
            or now - self._switched_at < SWITCH_PAUSE
            or _target(active, [fresh]) is not fresh
        ):
            return False
        self._switched_before, self._switched_at = self._switched_at, now
        return True

    def has_not_taken_over(self) -> None:
        """Count the last one as no switch, since the peer did not answer there, and be wary of the next."""
        self._switched_at = self._switched_before
        self._is_wary = True

    # --- what must be -------------------------------------------------------------------------------------------------

    def _escape(self, active: PathCandidate | None, others: Sequence[PathCandidate], now: float) -> int | None:
        """Leave for the best path that answers; one that waits is better than none."""
        self._contest = None
        target = _best([each for each in others if self.waits_until(each.name) <= now] or others)
        if target is not None or active is None or active.health is Health.DEAD:
            self._count_death(now)
        return None if target is None else target.link

    def _count_death(self, now: float) -> None:
        name, self._current = self._current, None
        if name is None:
            return
        for other in [other for other, deaths in self._deaths.items() if now - deaths.until > FLAP_MEMORY]:
            del self._deaths[other]
        if name in self._deaths:
            self._deaths[name].again(now)
        else:
            self._deaths[name] = _Deaths(0, now)

    # --- what may be --------------------------------------------------------------------------------------------------

    def _improve(self, active: PathCandidate, others: Sequence[PathCandidate], now: float) -> int | None:
        """Go where it is better, if it has been for long enough."""
        target = _target(active, [each for each in others if self.waits_until(each.name) <= now])
        if target is None:
            self._contest = None
            return None
        if self._contest is None or self._contest.links != (active.link, target.link):
            self._contest = _Contest(target, active, now)
        has_won = self._contest.count(target, now) or self._is_first_direct(active, target)
        if not has_won or now - self._switched_at < SWITCH_PAUSE:
            return None
        self._contest = None
        self._switched_at = now
        return target.link

    def _is_first_direct(self, active: PathCandidate, target: PathCandidate) -> bool:
        """Tell whether a path without the relay has come up: that is what everybody waits for."""
        return active.tier is Tier.RELAY and target.tier is not Tier.RELAY and target.link not in self._used


def _is_in_doubt(active: PathCandidate, others: Sequence[PathCandidate]) -> bool:
    """Tell whether the path in use must be left.

    One that is stalled is, if the peer has spoken elsewhere meanwhile: then it is not the peer that stands still.
    """
    if active.health is Health.STALLED:
        return any(each.heard_at > active.heard_at + _MEANWHILE for each in others)
    return active.health is not Health.UP


def _best(candidates: Sequence[PathCandidate]) -> PathCandidate | None:
    """Return the best score of the best tier that is worth it.

    A tier is worth it if it costs no more than twice as much, and 100 ms, as each that is worse: measured against all of them,
    since against its neighbour alone three paths could go round in a circle.
    """
    best: PathCandidate | None = None
    limit = math.inf
    for tier in sorted(Tier, reverse=True):
        among = [each for each in candidates if each.tier is tier]
        if not among:
            continue
        nearest = min(among, key=score)
        if best is None or score(nearest) <= limit:
            best = nearest
        limit = min(limit, _TIER_FACTOR * score(nearest) + _TIER_MARGIN_MS)
    return best


def _target(active: PathCandidate, others: Sequence[PathCandidate]) -> PathCandidate | None:
    """Return the path that is better than the one in use now, None if none is.

    A path that is filled is not left for its score: what its round trips measure is our own queue, and it would come along.
    """
    measured = [each for each in others if each.rtt is not None]
    best = _best([active, *measured])
    assert best is not None
    if best.tier < active.tier:
        return best
    if active.is_loaded or active.rtt is None:
        return None
    if best.tier > active.tier:
        return best
    nearest = min((each for each in measured if each.tier is active.tier), key=score, default=active)
    gain = score(active) - score(nearest)
    return nearest if gain >= max(SWITCH_MARGIN_MS, SWITCH_MARGIN * score(active)) else None
