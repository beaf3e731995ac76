"""How many files this process may still open."""

from __future__ import annotations

import os
import sys

__all__ = ["free_descriptors"]


def _limit() -> int | None:
    """Return how many files may be open at one time, None where there is no limit (Windows)."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def free_descriptors() -> int | None:
    """Return how many more may be opened, None where there is no limit; those open already are 0 where nobody tells."""
    limit = _limit()
    try:
        taken = len(os.listdir("/dev/fd"))
    except OSError:  # no such directory here
        taken = 0
    return None if limit is None else max(0, limit - taken)
