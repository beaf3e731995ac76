"""Two connections that belong together: what comes over one goes out over the other, as it is or in frames.

Rule: whoever does not read stops the other side's writer; nothing is kept here beyond what the two transports queue, and one
answer to a ping, which its sender may not leave unread for long: it goes on being read, or two that both write would wait for
each other.  The end
of one side is the end of both, once what it sent is on its way: TLS under asyncio closes by halves no more than WebSocket does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final, Protocol, cast

from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol as FrameProtocol
from websockets.protocol import State

from p2ptunnel.defaults import CONTROL_UNREAD

__all__ = ["Bridges", "Codec", "End", "Frames", "Plain"]

_QUEUED_MAX_BYTES: Final = 1024 * 1024  # ours are a mark, a frame and a read at most: the rest is what TLS answers by itself


class Codec(Protocol):
    """How bytes look on the outer connection."""

    def wrap(self, data: bytes) -> bytes:
        """Return what goes out for bytes of the inner one."""
        ...

    def unwrap(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Return what came for the inner one, what is answered, and whether the other side has ended."""
        ...


class Plain:
    """As they are."""

    def wrap(self, data: bytes) -> bytes:
        """Return them."""
        return data

    def unwrap(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Return them; there is nothing to answer."""
        return data, b"", False


class Frames:
    """Binary frames of WebSocket (RFC 6455), whose handshake is done.

    Args:
        protocol: Either side of it; masks and parses in C where that was compiled.
        early: Frames that came right behind the handshake.
    """

    def __init__(self, protocol: FrameProtocol, early: Sequence[object] = ()) -> None:
        self._protocol: Final = protocol
        self._early = early

    def wrap(self, data: bytes) -> bytes:
        """Return one frame; nothing once the other side has ended."""
        with contextlib.suppress(InvalidState):
            self._protocol.send_binary(data)
        return self._waiting()

    def unwrap(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """Return what was in the frames that are complete by now; what is no frame ends it.

        Of pings that come together the last one is answered, which does for all (RFC 6455 5.5.3).
        """
        with contextlib.suppress(EOFError):
            self._protocol.receive_data(data)
        early, self._early = self._early, ()
        frames = (event for event in (*early, *self._protocol.events_received()) if isinstance(event, Frame))
        came = b"".join(frame.data for frame in frames if frame.opcode in {Opcode.BINARY, Opcode.CONT})
        is_over = self._protocol.state is not State.OPEN or self._protocol.parser_exc is not None
        answers = [answer for answer in self._protocol.data_to_send() if answer]
        return came, b"".join(answers[-1:]), is_over

    def _waiting(self) -> bytes:
        return b"".join(self._protocol.data_to_send())


class End(asyncio.Protocol):
    """One of the two; until it is bridged it is read by `read`.

    Attributes:
        transport: From `connection_made` on.
        gone: Set when the transport has let go of its descriptor.
    """

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._other: End | None = None
        self._codec: Codec = Plain()
        self._is_outer = False
        self._came = bytearray()
        self._is_over = False
        self._is_full = False
        self._answer = b""  # that waits for room
        self._unread: asyncio.TimerHandle | None = None  # runs while it does
        self._changed: Final = asyncio.Event()
        self.gone: Final = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand bytes on, or keep them for `read`."""
        if self._other is not None:
            self._hand_on(data)
            return
        self._came += data
        self._changed.set()

    async def read(self, enough: int) -> bytes:
        """Return what has come since the last call, at least a byte, and empty at the end; it is not kept.

        Args:
            enough: From so many bytes on nothing more is read until the next call.
        """
        assert self.transport is not None
        while not self._came and not self._is_over:
            self._changed.clear()
            await self._changed.wait()
        data = bytes(self._came[:enough])
        del self._came[:enough]
        return data

    def pause_writing(self) -> None:
        """Stop the other side's writer."""
        self._is_full = True
        if self._other is not None and self._other.transport is not None:
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Let it go on."""
        self._is_full = False
        answer = self._forget_answer()
        if answer and self.transport is not None:
            self.transport.write(answer)
        if self._other is not None and self._other.transport is not None:
            self._other.transport.resume_reading()

    def eof_received(self) -> bool:
        """Let the transport close itself, and so both."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """End the other one as well, behind what it was given."""
        self._forget_answer()
        self._is_over = True
        self._changed.set()
        if self._other is not None and self._other.transport is not None:
            self._other.transport.close()
        self.gone.set()

    def abort(self) -> None:
        """Close it at once, and the other one behind it."""
        self._is_over = True
        if self.transport is not None:
            self.transport.abort()

    def is_heaped(self) -> bool:
        """Return whether more waits to be read at the far side than both ends may ever have sent."""
        if self.transport is None or self.transport.is_closing():
            return False
        return self.transport.get_write_buffer_size() > _QUEUED_MAX_BYTES

    def unread(self, data: bytes) -> None:
        """Put back what `read` has returned last."""
        self._came[:0] = data

    def _hand_on(self, data: bytes) -> None:
        assert self._other is not None
        assert self._other.transport is not None
        assert self.transport is not None
        if not self._is_outer:
            if data:
                self._other.transport.write(self._codec.wrap(data))
            return
        inner, answer, is_over = self._codec.unwrap(data)
        if inner:
            self._other.transport.write(inner)
        if answer and self._is_full and not is_over:
            self._keep_answer(answer)
        elif answer:
            self.transport.write(answer)
        if is_over:
            self.transport.close()

    def _keep_answer(self, answer: bytes) -> None:
        """Keep it instead of the last one, for as long as who asked may take to read what there is already."""
        self._answer = answer
        if self._unread is None:
            self._unread = asyncio.get_running_loop().call_later(CONTROL_UNREAD, self.abort)

    def _forget_answer(self) -> bytes:
        """Return the one that was kept."""
        if self._unread is not None:
            self._unread.cancel()
        answer, self._answer, self._unread = self._answer, b"", None
        return answer

    def join(self, other: End, codec: Codec, *, is_outer: bool) -> None:
        """Belong together with another end from now on."""
        self._other, self._codec, self._is_outer = other, codec, is_outer

    def begin(self) -> None:
        """Hand on what has come already."""
        assert self._other is not None
        assert self._other.transport is not None
        came, self._came = bytes(self._came), bytearray()
        self._hand_on(came)
        if self._is_over:
            self._other.transport.close()


class Bridges:
    """All pairs of connections of one owner."""

    def __init__(self) -> None:
        self._ends: Final[set[End]] = set()
        self._looking: asyncio.TimerHandle | None = None  # while there are any

    def add(self, outer: End, inner: End, codec: Codec) -> None:
        """Have two connections belong together, both of which are up; on the outer one bytes look as `codec` has them."""
        self._forget_gone()
        self._ends.update((outer, inner))
        if self._looking is None:
            self._look_later()
        outer.join(inner, codec, is_outer=True)
        inner.join(outer, codec, is_outer=False)
        outer.begin()
        inner.begin()

    async def close(self, grace: float = 0.0) -> None:
        """Close all of them, and wait for that; closing twice is fine.

        Args:
            grace: Seconds for what is on its way.
        """
        try:
            async with asyncio.timeout(grace):
                await self._wait_gone()
        except TimeoutError:
            pass
        finally:
            for end in self._ends:
                end.abort()
        await self._wait_gone()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _look(self) -> None:
        """Cut off whose answers of TLS heap up, new keys for one: no protocol is told when it should stop asking for them."""
        self._forget_gone()
        for end in self._ends:
            if end.is_heaped():
                end.abort()
        self._looking = None
        if self._ends:
            self._look_later()

    def _look_later(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(CONTROL_UNREAD, self._look)

    def _forget_gone(self) -> None:
        self._ends.difference_update([end for end in self._ends if end.gone.is_set()])

    async def _wait_gone(self) -> None:
        for end in tuple(self._ends):
            await end.gone.wait()
