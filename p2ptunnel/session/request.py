"""The peer asks for a stream: accepted or refused once, and answered for where whoever should answer fails or forgets to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from p2ptunnel.errors import LocalProtocolError, TargetRefusedError
from p2ptunnel.session.stream import SessionStream
from p2ptunnel.wire.frames import ResetCode

if TYPE_CHECKING:
    from p2ptunnel.session.live import Session

__all__ = ["OnOpen", "OpenRequest", "answer"]


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
