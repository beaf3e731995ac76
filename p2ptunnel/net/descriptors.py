"""How many files this process may open.

Rule: a limit is only ever raised, and never beyond what the administrator allows.
"""

from __future__ import annotations

import contextlib
import os
import sys

from p2ptunnel.defaults import BIRTHDAY_SOCKETS_FEW, DESCRIPTORS, DESCRIPTORS_BESIDE

__all__ = ["allow_descriptors", "free_descriptors", "spare_descriptors"]


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


def spare_descriptors() -> int:
    """Return how many of the free descriptors a birthday may take, 0 if these are too few for one."""
    free = free_descriptors()
    spare = DESCRIPTORS if free is None else free - DESCRIPTORS_BESIDE
    return spare if spare >= BIRTHDAY_SOCKETS_FEW else 0


def allow_descriptors(wanted: int = DESCRIPTORS) -> None:
    """Raise the soft limit of this process to `wanted`, or to its hard limit if that is less; a higher one stays.

    It is not put back: whoever has opened files since, in this thread or another, needs it, and so may the next birthday.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        with contextlib.suppress(OSError, ValueError):  # a system that says otherwise has fewer holes
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
