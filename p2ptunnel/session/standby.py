"""Keeps a session on the best of its channels, and says which of the others are worth keeping.

Rule: it moves the session only to a channel that is up already; where there is none, others are looked for elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from p2ptunnel.defaults import LOADED_BYTES, SESSION_TICK
from p2ptunnel.protocol.link import Health
from p2ptunnel.protocol.paths import PathCandidate, PathChooser, name_of, score, tier_of
from p2ptunnel.protocol.resume import Endpoint
from p2ptunnel.session.leg import Leg
from p2ptunnel.types import Path

__all__ = ["Standbys"]

_NO_LINK_YET: Final = 0


class Standbys:
    """The channels of one session, on the side of the caller.

    Args:
        endpoint: Where their bytes stand.
        legs: Those that are up, by number; kept by the session.
    """

    def __init__(self, endpoint: Endpoint, legs: Mapping[int, Leg]) -> None:
        self._endpoint: Final = endpoint
        self._legs: Final = legs
        self._chooser: Final = PathChooser()
        self._is_loaded = False
        self._moved_bytes = 0
        self._moved_at = 0.0

    def move(self, now: float) -> bool:
        """Ask the peer to go on over another channel, if it is time to; tell whether that was asked."""
        self._look_at_load(now)
        candidates = [self._candidate(leg) for leg in self._legs.values()]
        number = self._chooser.choose(candidates, now)
        self._endpoint.watched = self._chooser.contender
        if any(each.is_active and each.health is not Health.UP for each in candidates):
            self._endpoint.probe(now)  # whoever answers elsewhere does not stand still
        if number is None:
            return False
        self._endpoint.resume(number)
        self._endpoint.link(number).ping(now)
        return True

    def takes_over(self, path: Path, round_trip: float, now: float) -> bool:
        """Tell whether the session moves to a path that is just coming up without measuring it beside its own; it then must.

        Args:
            path: It.
            round_trip: Seconds that its handshake took.
            now: Monotonic seconds.
        """
        fresh = _fresh(path, link=_NO_LINK_YET, rtt=round_trip, heard_at=now, round_trips=1)
        return self._chooser.takes_over(fresh, [self._candidate(leg) for leg in self._legs.values()], now)

    def has_not_taken_over(self) -> None:
        """Learn that the peer did not answer there."""
        self._chooser.has_not_taken_over()

    def is_healthy(self, number: int | None) -> bool:
        """Tell whether a channel is up and in no doubt; a peer that stands still is none of the channel's fault."""
        if number is None or number not in self._legs:
            return False
        return self._endpoint.link(number).health in {Health.UP, Health.STALLED}

    @property
    def has_any(self) -> bool:
        """Whether the session could go on if the channel that carries it were gone."""
        return any(self.is_healthy(number) for number in self._legs if number != self._endpoint.carrier)

    def relayed(self) -> list[int]:
        """Return the channels over the relay that do not carry the session."""
        kept = {self._endpoint.active, self._endpoint.heading}
        return [number for number, leg in self._legs.items() if leg.path.kind == "relay" and number not in kept]

    def spare(self) -> list[int]:
        """Return the channels that are worth nothing now that the session has moved: all but the best of another kind."""
        kept = {self._endpoint.active, self._endpoint.heading}
        kinds = {leg.path.kind for number, leg in self._legs.items() if number in kept}
        others = [
            self._candidate(leg)
            for number, leg in self._legs.items()
            if number not in kept and leg.path.kind not in kinds and self._endpoint.link(number).health is not Health.DEAD
        ]
        if others:
            kept.add(min(others, key=lambda each: (each.health is not Health.UP, each.tier, score(each))).link)
        return [number for number in self._legs if number not in kept]

    def replaced_by(self, number: int, kind: str) -> list[int]:
        """Return the older standbys of the kind of a new one."""
        kept = {number, self._endpoint.active, self._endpoint.heading}
        return [other for other, leg in self._legs.items() if other not in kept and leg.path.kind == kind]

    def _candidate(self, leg: Leg) -> PathCandidate:
        link, path, heading = self._endpoint.link(leg.number), leg.path, self._endpoint.heading
        is_active = leg.number == (heading if heading in self._legs else self._endpoint.active)
        return msgspec.structs.replace(
            _fresh(path, link=leg.number, rtt=link.rtt, heard_at=link.heard_at, round_trips=link.round_trips),
            health=link.health,
            rtt_deviation=link.rtt_deviation,
            loss=leg.channel.loss or 0.0,
            is_active=is_active,
            is_loaded=is_active and self._is_loaded,
        )

    def _look_at_load(self, now: float) -> None:
        """See how much has moved lately."""
        seconds = now - self._moved_at
        if seconds >= SESSION_TICK:
            moved = self._endpoint.mux.bytes_sent + self._endpoint.mux.bytes_received
            self._is_loaded = moved - self._moved_bytes > LOADED_BYTES * seconds
            self._moved_bytes, self._moved_at = moved, now


def _fresh(path: Path, *, link: int, rtt: float | None, heard_at: float, round_trips: int) -> PathCandidate:
    """Return what is known of a channel by its path and its first answers."""
    return PathCandidate(
        link=link,
        name=name_of(path),
        tier=tier_of(path),
        heard_at=heard_at,
        rtt=rtt,
        round_trips=round_trips,
        is_ipv6=":" in path.remote[0],
        is_on_link=path.kind == "lan",
    )
