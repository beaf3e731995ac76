"""A laboratory of real NATs: network namespaces, Linux routers, exact user-space NATs, links with delay and loss.

    with Lab() as lab:
        home = lab.site("pr", delay=0.025)
        office = lab.site("symR", delay=0.025)
        home.host.popen([sys.executable, "-m", "p2ptunnel", ...])

It needs root, `nft` and `setpriv`; `capable()` says what is missing.  Names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from p2ptunnel.testing.natlab.capability import capable
    from p2ptunnel.testing.natlab.capture import Capture
    from p2ptunnel.testing.natlab.dataplane import Traffic
    from p2ptunnel.testing.natlab.host import Host, HostThread
    from p2ptunnel.testing.natlab.kinds import KINDS, MATRIX_KINDS, Kind, find_kind
    from p2ptunnel.testing.natlab.lab import Lab
    from p2ptunnel.testing.natlab.site import Site

__all__ = [
    "KINDS",
    "MATRIX_KINDS",
    "Capture",
    "Host",
    "HostThread",
    "Kind",
    "Lab",
    "Site",
    "Traffic",
    "capable",
    "find_kind",
]

_MODULES: Final = {
    "KINDS": "kinds",
    "MATRIX_KINDS": "kinds",
    "Capture": "capture",
    "Host": "host",
    "HostThread": "host",
    "Kind": "kinds",
    "Lab": "lab",
    "Site": "site",
    "Traffic": "dataplane",
    "capable": "capability",
    "find_kind": "kinds",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
