"""What the peer of a session may ask for and open, and for how long.

Rule: a list that cannot be read lets nobody in, and ends nothing that runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from p2ptunnel.defaults import OPENS_BURST, OPENS_PER_SECOND
from p2ptunnel.errors import RemoteProtocolError, StoreError
from p2ptunnel.identity.acl import Access
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.identity.store import as_last_read
from p2ptunnel.protocol.limits import Buckets, Rate
from p2ptunnel.session.stream import SessionStream
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Tag
from p2ptunnel.wire.frames import ResetCode

__all__ = ["Guard"]

_HASTE: Final = 10  # times the burst that a peer may have refused, before it is no mistake any more


class Guard:
    """Judges one peer, by what it is granted at the moment.

    Args:
        access: Who may open what; None: nobody anything, and whoever is there may stay.
        tag: The peer's name here.
        peer_key: The key that the peer has proved.
        tracer: Told of lists that cannot be read.

    Attributes:
        is_pinned: Whether a peer that we have called is still pinned here; None: it is.
    """

    def __init__(self, access: Access | None, tag: Tag, peer_key: PublicKey, tracer: Tracer) -> None:
        self.is_pinned: Callable[[], bool] | None = None
        self._access: Final = access
        self._tag: Final = tag
        self._peer_key: Final = peer_key
        self._trace: Final = tracer
        self._haste: Final = Buckets(Rate(OPENS_PER_SECOND, _HASTE * OPENS_BURST))  # of a peer that is turned away for it

    @property
    def has_access(self) -> bool:
        """Whether there is anything that the peer can be granted, and that can be taken back."""
        return self._access is not None

    def show(self, ticket: bytes) -> None:
        """Take a ticket that the peer shows."""
        if self._access is not None:
            self._access.show(self._peer_key, ticket)

    def refusal(self, service: str, now: float) -> tuple[ResetCode, str] | None:
        """Count that the peer asks for a service; return why it gets no stream, in words that it may be told, if it does not.

        Args:
            service: What it asks for.
            now: Monotonic seconds.

        Raises:
            RemoteProtocolError: It goes on asking, however often it is told that it does so too fast.
        """
        if self._access is not None and not self._access.may_ask(self._peer_key):  # first: it costs next to nothing
            if self._haste.take(None, now):
                return ResetCode.BUSY, "streams are opened too fast"
            raise RemoteProtocolError("it asks for one stream after the other, whatever it is told", self._tag)
        return None if self._may_open(service) else (ResetCode.NOT_YOURS, "")

    def judge(self, streams: Collection[SessionStream]) -> tuple[bool, list[SessionStream]]:
        """Return whether the peer is admitted still, and those of the streams that it has opened whose grants hold no more."""
        if self._access is None:
            return True, []
        try:
            is_admitted, revoked = self._judge(self._access, streams)
        except StoreError as error:  # nothing new is let in; what runs goes on for as long as it was granted
            self._note_unreadable(error)
            with as_last_read():
                is_admitted, revoked = self._judge(self._access, streams)
        return is_admitted, revoked

    def knows_peer(self) -> bool:
        """Tell whether a session that we have called may stay."""
        try:
            return self.is_pinned is None or self.is_pinned()
        except StoreError as error:  # what runs goes on
            self._note_unreadable(error)
            return True

    def _may_open(self, service: str) -> bool:
        try:
            return self._access is not None and self._access.may_open(self._peer_key, service)
        except StoreError as error:  # nothing is granted by a list that cannot be read
            self._note_unreadable(error)
            return False

    def _judge(self, access: Access, streams: Collection[SessionStream]) -> tuple[bool, list[SessionStream]]:
        revoked = [stream for stream in streams if not (stream.is_ours or self._holds(access, stream))]
        return self._peer_key in access.admitted(), revoked

    def _holds(self, access: Access, stream: SessionStream) -> bool:
        return access.may_open(self._peer_key, stream.service) if stream.holds is None else stream.holds()

    def _note_unreadable(self, error: StoreError) -> None:
        self._trace("session", "access_unreadable", reason=str(error))
