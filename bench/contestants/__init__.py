"""Who takes part: one module a contestant, in the order of the table; this one imports none of them by itself."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Final

from bench.contest import BenchError, Contestant

__all__ = ["find_contestants"]

_MODULES: Final = ("ours", "openssh", "asyncssh", "stunnel", "socat", "plain", "iroh", "libp2p", "aiortc")


def find_contestants(names: Sequence[str] = ()) -> list[Contestant]:
    """Return the contestants of these names, or all.

    Args:
        names: `openssh` also stands for `openssh-default`.

    Raises:
        BenchError: Nobody has one of the names.
    """
    modules = [importlib.import_module(f"{__name__}.{module}") for module in _MODULES]
    everybody: list[Contestant] = [contestant for module in modules for contestant in module.CONTESTANTS]
    for name in names:
        if not any(_is_meant(contestant, name) for contestant in everybody):
            known = ", ".join(dict.fromkeys(contestant.name for contestant in everybody))
            raise BenchError(f"no contestant is called {name!r}; there are {known}")
    return [contestant for contestant in everybody if not names or any(_is_meant(contestant, name) for name in names)]


def _is_meant(contestant: Contestant, name: str) -> bool:
    return contestant.name == name or contestant.name.startswith(f"{name}-")
