"""How a peer and its sessions stand at a moment, in plain values: what `status`, widgets and tests look at."""

from __future__ import annotations

import time

import msgspec

from p2ptunnel.identity.store import PinnedPeer
from p2ptunnel.session.live import SessionState
from p2ptunnel.session.session import Session
from p2ptunnel.types import Address, Path, Tag

__all__ = ["PeerStatus", "Snapshot", "status_of"]


class PeerStatus(msgspec.Struct, frozen=True):
    """A pinned peer, and the session with it if there is one.

    Attributes:
        tag: Its name here.
        key: What it proves.
        services: What it may open.
        path: Where the connection runs, or ran last; None without a session, and so are the two below.
        rtt: Seconds of a round trip; None until measured.
        state: `stalled`: the connection stands, its program does not answer; `suspended`: it is lost, another is waited for.
        streams: How many are open.
        resumes: How often the session has gone on over another connection.
        suspended_for: For how many seconds there has been no connection; None while there is one.
    """

    tag: Tag
    key: str
    services: tuple[str, ...]
    path: Path | None = None
    rtt: float | None = None
    streams: int = 0
    state: SessionState | None = None
    resumes: int = 0
    suspended_for: float | None = None


class Snapshot(msgspec.Struct, frozen=True):
    """How a peer stands now; every field is a plain value."""

    tag: Tag | None
    key: str
    rendezvous: tuple[str, ...]
    observed: Address | None
    serving: tuple[str, ...]
    peers: tuple[PeerStatus, ...]


def status_of(pinned: PinnedPeer, session: Session | None) -> PeerStatus:
    """Return how a pinned peer stands; `session` is the one with it, None if there is none."""
    status = PeerStatus(pinned.tag, str(pinned.key), pinned.granted(time.time()))
    if session is None:
        return status
    return msgspec.structs.replace(
        status,
        path=session.path,
        rtt=session.rtt,
        streams=session.streams,
        state=session.state,
        resumes=session.resumes,
        suspended_for=session.suspended_for,
    )
