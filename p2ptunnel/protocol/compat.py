"""The ration of programs of the founding document, which cannot show a cookie: few enough that nobody can be flooded.

It is of registrations that nobody signs, too: they have no owner, whose number would bound them.
"""

from __future__ import annotations

from p2ptunnel.defaults import COMPAT_REQUESTS_PER_MINUTE, COMPAT_REQUESTS_PER_SECOND
from p2ptunnel.protocol.limits import limited_source

__all__ = ["SeedRation"]


class SeedRation:
    """Counts the cookieless requests of the last minute; keeps no more of them than it allows."""

    def __init__(self) -> None:
        self._uses: list[tuple[float, str | int]] = []

    def __len__(self) -> int:
        return len(self._uses)

    def take(self, host: str, now: float) -> bool:
        """Count one request; return whether it may be served."""
        self._uses = [use for use in self._uses if now - use[0] < 60]
        source = limited_source(host)
        user = host if source is None else source.block
        of_source = sum(other == user for _, other in self._uses)
        of_all = sum(now - at < 1 for at, _ in self._uses)
        if of_source >= COMPAT_REQUESTS_PER_MINUTE or of_all >= COMPAT_REQUESTS_PER_SECOND:
            return False
        self._uses.append((now, user))
        return True

    def wait(self, host: str, now: float) -> float:
        """Return after how many seconds one more request of `host` may be served, if nobody else takes its place."""
        user = host if (source := limited_source(host)) is None else source.block
        of_source = [at + 60 for at, other in self._uses if other == user][-COMPAT_REQUESTS_PER_MINUTE:]
        of_all = [at + 1 for at, _ in self._uses][-COMPAT_REQUESTS_PER_SECOND:]
        full = [
            ends[0]
            for ends, most in ((of_source, COMPAT_REQUESTS_PER_MINUTE), (of_all, COMPAT_REQUESTS_PER_SECOND))
            if len(ends) == most
        ]
        return max(0.0, max(full, default=now) - now)
