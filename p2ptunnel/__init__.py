"""Connects two machines by name wherever they are, and runs tunnels over the connection.

    from p2ptunnel import Peer

    async with Peer("laptop", rendezvous="rv.example:7000") as peer:
        stream = await peer.connect("home-nas", service="web")

Names are loaded when they are first used, so that `import p2ptunnel` costs next to nothing; errors are in `p2ptunnel.errors`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from p2ptunnel._version import __version__

if TYPE_CHECKING:
    from p2ptunnel.abc import Opening, Stream, StreamStats
    from p2ptunnel.asking import AccessRequest
    from p2ptunnel.errors import P2PTunnelError
    from p2ptunnel.events import (
        AccessDecided,
        AccessRequested,
        ApprovalAwaited,
        ChannelLost,
        ChannelOpened,
        Events,
        EventsDropped,
        Paired,
        PairingFailed,
        PathChanged,
        PathSuspected,
        PeerEvent,
        ServerFound,
        ServerLost,
        SessionExpired,
        SessionResumed,
        SessionStalled,
    )
    from p2ptunnel.identity.capability import Capability
    from p2ptunnel.identity.keys import Identity, PublicKey
    from p2ptunnel.identity.pinned import IssuedTicket, PinnedPeer
    from p2ptunnel.identity.store import PeerStore, Profile
    from p2ptunnel.pairing import Invitation
    from p2ptunnel.peer import Peer
    from p2ptunnel.server.relaying import RelayServer
    from p2ptunnel.server.rendezvous import Rendezvous
    from p2ptunnel.serving import Serving
    from p2ptunnel.session.ping import PingReport, Pong
    from p2ptunnel.snapshot import PeerStatus, Snapshot
    from p2ptunnel.ssh.client import SSH
    from p2ptunnel.trace import JsonLines, TraceEvent, Tracer
    from p2ptunnel.transports.raw import RawStream
    from p2ptunnel.traversal.explain import Explanation
    from p2ptunnel.traversal.netreport import NetReport
    from p2ptunnel.tunnels.local import Forward
    from p2ptunnel.tunnels.spec import ServeSpec
    from p2ptunnel.types import Path

__all__ = [
    "SSH",
    "AccessDecided",
    "AccessRequest",
    "AccessRequested",
    "ApprovalAwaited",
    "Capability",
    "ChannelLost",
    "ChannelOpened",
    "Events",
    "EventsDropped",
    "Explanation",
    "Forward",
    "Identity",
    "Invitation",
    "IssuedTicket",
    "JsonLines",
    "NetReport",
    "Opening",
    "P2PTunnelError",
    "Paired",
    "PairingFailed",
    "Path",
    "PathChanged",
    "PathSuspected",
    "Peer",
    "PeerEvent",
    "PeerStatus",
    "PeerStore",
    "PingReport",
    "PinnedPeer",
    "Pong",
    "Profile",
    "PublicKey",
    "RawStream",
    "RelayServer",
    "Rendezvous",
    "ServeSpec",
    "ServerFound",
    "ServerLost",
    "Serving",
    "SessionExpired",
    "SessionResumed",
    "SessionStalled",
    "Snapshot",
    "Stream",
    "StreamStats",
    "TraceEvent",
    "Tracer",
    "__version__",
]

_HOMES: Final = {
    "SSH": "ssh.client",
    "AccessDecided": "events",
    "AccessRequest": "asking",
    "AccessRequested": "events",
    "ApprovalAwaited": "events",
    "Capability": "identity.capability",
    "ChannelLost": "events",
    "ChannelOpened": "events",
    "Events": "events",
    "EventsDropped": "events",
    "Explanation": "traversal.explain",
    "Forward": "tunnels.local",
    "Identity": "identity.keys",
    "Invitation": "pairing",
    "IssuedTicket": "identity.pinned",
    "JsonLines": "trace",
    "NetReport": "traversal.netreport",
    "Opening": "abc",
    "P2PTunnelError": "errors",
    "Paired": "events",
    "PairingFailed": "events",
    "Path": "types",
    "PathChanged": "events",
    "PathSuspected": "events",
    "Peer": "peer",
    "PeerEvent": "events",
    "PeerStatus": "snapshot",
    "PeerStore": "identity.store",
    "PingReport": "session.ping",
    "PinnedPeer": "identity.pinned",
    "Pong": "session.ping",
    "Profile": "identity.store",
    "PublicKey": "identity.keys",
    "RawStream": "transports.raw",
    "RelayServer": "server.relaying",
    "Rendezvous": "server.rendezvous",
    "ServeSpec": "tunnels.spec",
    "Serving": "serving",
    "ServerFound": "events",
    "ServerLost": "events",
    "SessionExpired": "events",
    "SessionResumed": "events",
    "SessionStalled": "events",
    "Snapshot": "snapshot",
    "Stream": "abc",
    "StreamStats": "abc",
    "TraceEvent": "trace",
    "Tracer": "trace",
}
"""The module in which each public name lives."""


def __getattr__(name: str) -> object:
    """Load a public name on its first use."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return __all__
