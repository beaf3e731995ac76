"""Asking for streams: the one for which a session is begun, and what the peer asks for.

What the peer asks for is accepted or refused once, and answered for where whoever should answer fails or forgets to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from p2ptunnel.errors import LocalProtocolError, TargetRefusedError
from p2ptunnel.protocol.mux import Mux
from p2ptunnel.session.stream import SessionStream
from p2ptunnel.wire.frames import Open, ResetCode, encode

if TYPE_CHECKING:
    from p2ptunnel.session.live import Session

__all__ = ["FirstStream", "OnOpen", "OpenRequest", "answer"]


class FirstStream:
    """The stream for which a session is begun: asked for right behind HELLO, it costs no round trip of its own.

    Args:
        service: 1 to 200 bytes of UTF-8, printable.
        on_asked: Called with the seconds for which the peer's owner is asked, if that is so.

    Attributes:
        service: As it was given.
        on_asked: As it was given.
        stream: It, once the session is up; None also where somebody else has begun that.
        stream_id: Its id there; 0: it has not been asked for.

    Raises:
        LocalProtocolError: `service` is no name.
    """

    def __init__(self, service: str, *, on_asked: Callable[[float], None] | None = None) -> None:
        encode(Open(1, 0, service))
        self.service: Final = service
        self.on_asked: Final = on_asked
        self.stream: SessionStream | None = None
        self.stream_id = 0
        self._is_wanted = True

    def ask(self, mux: Mux, now: float) -> None:
        """Ask for it in the mux of a session that does not exist yet; of another one, if the peer did not greet us there."""
        self.stream_id = mux.open(self.service, now)

    def give(self, stream: SessionStream) -> None:
        """Hand it to who wants it; where nobody does any more, the peer is told so."""
        self.stream = stream
        if not self._is_wanted:
            stream.abort()

    def abandon(self) -> None:
        """Want it no more, whether it is there by now or comes later."""
        self._is_wanted = False
        if self.stream is not None:
            self.stream.abort()


class OpenRequest:
    """The peer asks for a stream to a service that it may open; accept it or refuse it, once."""

    def __init__(self, session: Session, stream: SessionStream) -> None:
        self.session: Final = session
        self.service: Final = stream.service
        self.peer_key: Final = session.peer_key
        self._stream: Final = stream
        self._is_decided = False

    def hold_while(self, holds: Callable[[], bool]) -> None:
        """Reset the stream once `holds` says no; it is asked about twice a second, may raise StoreError, and cannot wait."""
        self._stream.holds = holds

    def wait(self, patience: float) -> None:
        """Tell the peer that somebody is asked, who may take so many seconds."""
        self._stream.wait(patience)

    def accept(self) -> SessionStream:
        """Tell the peer that its stream is open, and return it; it is the caller's to close.

        Raises:
            LocalProtocolError: It was decided already.
        """
        self._decide()
        self._stream.admit()
        return self._stream

    def refuse(self, code: ResetCode = ResetCode.TARGET_REFUSED, reason: str = "") -> None:
        """Tell the peer that it gets no stream; `reason` is shown to the person there.

        Raises:
            LocalProtocolError: It was decided already.
        """
        self._decide()
        self._stream.refuse(code, reason)

    def fail(self, code: ResetCode, reason: str = "") -> None:
        """Refuse the stream if it is undecided; reset it if it was accepted and is open still."""
        self._is_decided = True
        self._stream.refuse(code, reason)

    @property
    def is_decided(self) -> bool:
        """Whether it was accepted or refused."""
        return self._is_decided

    def _decide(self) -> None:
        if self._is_decided:
            raise LocalProtocolError("a request is accepted or refused once")
        self._is_decided = True


OnOpen: TypeAlias = Callable[[OpenRequest], Awaitable[None]]


async def answer(on_open: OnOpen, request: OpenRequest) -> None:
    """Let `on_open` answer the request, and answer for it where it fails or forgets to.

    Raises:
        Exception: Whatever `on_open` raises.
    """
    try:
        await on_open(request)
    except TargetRefusedError as error:
        request.fail(ResetCode.TARGET_REFUSED, error.reason)
        raise
    except Exception:  # but not its being cancelled: then the session has ended, and every stream knows
        request.fail(ResetCode.INTERNAL)
        raise
    if not request.is_decided:
        request.refuse(ResetCode.INTERNAL, "nobody took the stream")
