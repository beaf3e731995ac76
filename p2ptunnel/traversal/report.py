"""Words for what an attempt did: the `why` of a path."""

from __future__ import annotations

import socket
from typing import Final, Literal, TypeAlias

from p2ptunnel.net.interfaces import is_on_link
from p2ptunnel.net.tcp import How
from p2ptunnel.types import Address, Path

__all__ = ["ConnectedBy", "path_of"]

ConnectedBy: TypeAlias = How | Literal["accept"]
"""How a connection came up: one that we dialled, or one that we accepted."""

_WHY: Final[dict[ConnectedBy, str]] = {
    "connect": "our SYN reached it",
    "opener": "a SYN of ours with low TTL opened the way for it",
    "accept": "its SYN reached our listener",
}


def path_of(sock: socket.socket, remote: Address, how: ConnectedBy, rtt: float | None = None) -> Path:
    """Return the path of a TCP connection that `how` (connect, opener, accept) brought up."""
    local: Address = sock.getsockname()[:2]
    return Path(
        kind="lan" if is_on_link(remote[0]) else "direct", transport="tcp", local=local, remote=remote, rtt=rtt, why=_WHY[how]
    )
