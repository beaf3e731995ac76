"""The streams of a session.  Rule: an end is clean only behind the peer's FIN; everything else is an error that stays.

Sending, the application's bytes are copied once, into the batch that is sealed; receiving once, out of the buffer that was
decrypted into.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from p2ptunnel.abc import Splice, Stream, StreamStats
from p2ptunnel.defaults import ASK_PATIENCE
from p2ptunnel.errors import (
    AccessDeniedError,
    AccessRevokedError,
    ApprovalTimeoutError,
    ChannelClosedError,
    LocalProtocolError,
    P2PTunnelError,
    StreamResetError,
    TargetRefusedError,
)
from p2ptunnel.net.pump import pump
from p2ptunnel.net.transport import Tunnel
from p2ptunnel.protocol.mux import Mux, Source
from p2ptunnel.types import Path, Tag
from p2ptunnel.wire.frames import Reset, ResetCode

__all__ = ["Carrier", "SessionStream"]

_MERGE_BYTES: Final = 1024  # smaller chunks are put together: a peer that sends single bytes must not cost an object for each


class Carrier(Protocol):
    """What a stream needs of its session."""

    @property
    def tag(self) -> Tag:
        """The peer's name here."""
        ...

    @property
    def path(self) -> Path:
        """The path that carries the bytes now."""
        ...

    @property
    def granted(self) -> tuple[str, ...]:
        """The services that the peer grants us."""
        ...

    def flush(self) -> None:
        """Send what waits now, as far as the transport takes it."""
        ...

    def settle(self, stream_id: int) -> None:
        """Send what waits before the loop sleeps again, and forget the stream if it is over."""
        ...

    def consumed(self, stream_id: int, count: int) -> None:
        """Let the peer send as much again."""
        ...

    def feed_from(self, stream_id: int, source: Source) -> None:
        """Take the stream's bytes from `source` from now on."""
        ...

    def source_ready(self, stream_id: int) -> None:
        """Take what the source has, now or when the stream's turn comes."""
        ...

    def unacknowledged_of(self, stream_id: int) -> int:
        """Return how many bytes of a stream were sent and are not acknowledged."""
        ...

    async def delivered(self, stream_id: int) -> None:
        """Wait until the peer has acknowledged every byte of a stream."""
        ...

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` as long as the session lives."""
        ...


class SessionStream(Stream):
    """One stream of a session; sessions make them.

    One task at a time may read, and one may write.
    """

    def __init__(self, carrier: Carrier, mux: Mux, stream_id: int, service: str, *, is_ours: bool) -> None:
        self.service = service
        self.tag = carrier.tag
        self.stream_id: Final = stream_id
        self.is_ours: Final = is_ours
        """Whether this side has opened it."""
        self.holds: Callable[[], bool] | None = None
        """Whether the grant by which the peer opened it holds; None: the access list is asked as it was when it opened."""
        self.on_asked: Callable[[float], None] | None = None
        """Called with the seconds for which the peer's owner is asked, before the stream is open."""
        self._carrier: Final = carrier
        self._mux: Final = mux
        self._counts: Final = mux.counts(stream_id)
        self._splice: Splice | None = None
        self._unacknowledged: int | None = None  # when the session ended
        self._chunks: Final[deque[bytes]] = deque()
        self._offset = 0  # bytes of the first chunk that have been read
        self._is_opened = False
        self._is_ended = False  # the peer's FIN came
        self._is_closed = False  # by us
        self._error: P2PTunnelError | None = None
        self._reading: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<SessionStream {self.stream_id} of {self.tag}: {self.service}>"

    @property
    def path(self) -> Path:
        """The path that carries the bytes now."""
        return self._carrier.path

    @property
    def stats(self) -> StreamStats:
        """How far it has got; also after its end."""
        waiting = self._unacknowledged
        if waiting is None:
            waiting = self._carrier.unacknowledged_of(self.stream_id)
        return StreamStats(self._counts.sent, waiting, self._counts.received)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def read(self, n: int = 65536) -> bytes:
        """Return 1 to `n` bytes, or `b""` after the peer's FIN; what came before an error is returned before it is raised.

        Cancelling it loses nothing.

        Raises:
            StreamResetError: The peer reset the stream.
            AccessDeniedError: The service does not exist there or is not ours.
            TargetRefusedError: What the service stands for cannot be reached from there.
            ChannelLostError: The channel broke.
            ChannelClosedError: The session was closed, or this stream by us.
            LocalProtocolError: Another task is reading, or `n` is below 1.
        """
        if n < 1:
            raise LocalProtocolError("a read asks for one byte at least: no byte means the end")
        while not self._chunks:
            if self._is_closed:
                raise ChannelClosedError
            if self._is_ended:
                return b""
            self._raise_error()
            await self._wait_readable()
        data = self._take(n)
        self._carrier.consumed(self.stream_id, len(data))
        return data

    def _take(self, n: int) -> bytes:
        chunk, offset = self._chunks[0], self._offset
        if offset == 0 and len(chunk) <= n:
            return self._chunks.popleft()
        data = chunk[offset : offset + n]
        self._offset += len(data)
        if self._offset == len(chunk):
            self._chunks.popleft()
            self._offset = 0
        return data

    async def _wait_readable(self) -> None:
        if self._reading is not None:
            raise LocalProtocolError("another task is reading this stream")
        self._reading = asyncio.get_running_loop().create_future()
        try:
            await self._reading
        finally:
            self._reading = None

    # --- writing ------------------------------------------------------------------------------------------------------

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`; returns when all of it is sealed, so the buffer is free again and awaiting it is the back-pressure.

        Cancelling it leaves an unknown part of `data` sent: reset the stream then, or know that the part does not matter.

        Raises:
            StreamResetError: The peer reset the stream, or takes no more.
            AccessDeniedError: The service does not exist there or is not ours.
            TargetRefusedError: What the service stands for cannot be reached from there.
            ChannelLostError: The channel broke.
            ChannelClosedError: The session was closed, or this stream by us.
            LocalProtocolError: Another task is writing, or `write_eof` was called.
        """
        if self._is_closed:
            raise ChannelClosedError
        self._raise_error()
        with memoryview(data) as given:  # released in any case: the caller may want to resize its buffer
            if given.nbytes:
                with given.cast("B") as view:
                    await self._write(view)

    async def _write(self, view: memoryview) -> None:
        if self._writing is not None:
            raise LocalProtocolError("another task is writing this stream")
        self._mux.write(self.stream_id, view)
        self._carrier.flush()
        if not self._mux.is_drained(self.stream_id):
            await self._wait_drained()
        self._raise_error()

    async def _wait_drained(self) -> None:
        self._writing = asyncio.get_running_loop().create_future()
        try:
            await self._writing
        finally:
            self._writing = None
            if self._mux.take_back(self.stream_id):  # a FIN waited behind it
                self._fail(StreamResetError("a write was cancelled"))
                self._carrier.settle(self.stream_id)

    async def write_eof(self) -> None:
        """Send FIN behind what is written: no more bytes from here; reading goes on.  Doing so twice is fine."""
        self._mux.write_eof(self.stream_id)
        self._carrier.settle(self.stream_id)

    async def delivered(self) -> None:
        """Wait until the peer has acknowledged every byte that was written; also after `close`.

        Raises:
            ResumeExpiredError: The connection was lost, and no other came in time; `stats` says how far the stream got.
            ChannelError: The session ended before.
        """
        if self._unacknowledged and self._error is not None:
            raise self._error.with_traceback(None)
        await self._carrier.delivered(self.stream_id)

    # --- spliced ------------------------------------------------------------------------------------------------------

    def splice(self, other: Splice) -> None:
        """Join the stream to `other`; see `p2ptunnel.abc.Spliceable`.

        Raises:
            StreamResetError: The peer reset the stream.
            ChannelError: The session has ended, or the stream was closed by us.
            LocalProtocolError: It is being read or written.
        """
        if self._is_closed:
            raise ChannelClosedError
        self._raise_error()
        if self._reading is not None:
            raise LocalProtocolError("another task is reading this stream")
        self._carrier.feed_from(self.stream_id, other)
        self._splice = other
        self.sink_ready()

    def source_ready(self) -> None:
        """Take what the splice has, as far as credit and turns go."""
        self._carrier.source_ready(self.stream_id)

    def sink_ready(self) -> bool:
        """Give the splice what waits for it; tell whether that was all."""
        assert self._splice is not None
        taken = 0
        while self._chunks:
            chunk = memoryview(self._chunks[0])[self._offset :]
            count = self._splice.take(chunk)
            taken += count
            if count < len(chunk):
                self._offset += count
                break
            self._chunks.popleft()
            self._offset = 0
        if taken:
            self._carrier.consumed(self.stream_id, taken)
        self._end_splice()
        return not self._chunks

    def _end_splice(self) -> None:
        """Tell the splice how the peer's bytes ended, when it has taken all of them."""
        if self._splice is None or self._chunks:
            return
        if self._is_ended:
            self._splice.ended()
        elif self._error is not None:
            self._splice.broke(self._error)

    # --- the end ------------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Send FIN behind what is written and read no more; closing twice is fine, and so is closing what broke.

        The peer reads all of it and a clean end.  Should it still write, it learns that nobody reads.
        """
        self.finish()

    def finish(self) -> None:
        """Do what `close` does, without awaiting it."""
        if not self._is_closed:
            self._give_up_reading()
            self._mux.write_eof(self.stream_id)
            self._end_if_drained()
            self._carrier.settle(self.stream_id)

    def abort(self, reason: str = "cancelled") -> None:
        """Reset the stream at once; bytes under way are lost, and the peer sees an error with this reason."""
        self.refuse(ResetCode.CANCELLED, reason)

    def _give_up_reading(self) -> None:
        self._is_closed = True
        unread = sum(map(len, self._chunks)) - self._offset
        self._chunks.clear()
        self._offset = 0
        if unread:
            self._carrier.consumed(self.stream_id, unread)
        self._wake(self._reading)

    def _end_if_drained(self) -> None:
        """Tell the peer, behind our FIN, that nobody reads any more; its own FIN may have come, then nothing is told."""
        if self._mux.is_drained(self.stream_id):
            self._mux.reset(self.stream_id, ResetCode.CLOSED)

    def socket(self) -> socket.socket:
        """Give a blocking socket, one end of a socketpair, that carries this stream; the stream itself is spent.

        A socket of this kind knows no reset: where the stream breaks, the socket ends.  Who needs to tell a loss from an end
        reads the stream itself.
        """
        ours, theirs = socket.socketpair()
        self._carrier.spawn(pump(self, ours)).add_done_callback(lambda _: ours.close())  # cancelled before it began
        return theirs

    def asyncssh_tunnel(self) -> Tunnel:
        """Give an object for asyncssh's `tunnel=`: `asyncssh.connect(host, tunnel=stream.asyncssh_tunnel())`.

        The host that is named there is only a name, as which the host key is looked up.  The stream is spent.
        """
        return Tunnel(self)

    async def opened(self) -> None:
        """Wait until the peer has accepted the stream.

        Raises:
            AccessDeniedError: The service does not exist there or is not ours.
            ApprovalTimeoutError: The peer's owner was asked, and has not answered.
            TargetRefusedError: What the service stands for cannot be reached from there.
            ChannelError: The channel ended before.
        """
        while not self._is_opened:
            self._raise_error()
            await self._wait_readable()

    async def confirmed(self) -> SessionStream:
        """Return it once the peer has accepted it, and reset it if that does not come; raises as `opened`."""
        try:
            await self.opened()
        except BaseException:
            self.abort()
            raise
        return self

    # --- what the session does ------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Tell the peer that its stream is open."""
        self._mux.accept(self.stream_id)
        self._is_opened = True
        self._carrier.settle(self.stream_id)

    def wait(self, patience: float) -> None:
        """Tell the peer that somebody is asked about its stream, for so many seconds."""
        self._mux.wait(self.stream_id, math.ceil(patience))
        self._carrier.settle(self.stream_id)

    def refuse(self, code: int, reason: str = "") -> None:
        """Reset the stream with a code that says more than `abort` does."""
        self._give_up_reading()
        self._mux.reset(self.stream_id, code, reason)
        self._fail(StreamResetError(reason or "refused"))
        self._carrier.settle(self.stream_id)

    def on_opened(self) -> None:
        """The peer has accepted the stream."""
        self._is_opened = True
        self._wake(self._reading)

    def on_waiting(self, patience: float) -> None:
        """The peer's owner is asked, for so many seconds; no peer can make us wait for ever by saying so again and again."""
        on_asked, self.on_asked = self.on_asked, None
        if on_asked is not None:
            on_asked(min(patience, ASK_PATIENCE))

    def on_data(self, payload: memoryview) -> None:
        """Keep bytes that came; nobody has to be there to read them."""
        if self._is_closed:
            self._carrier.consumed(self.stream_id, len(payload))
            return
        if self._splice is not None and not self._chunks:
            taken = self._splice.take(payload)
            self._carrier.consumed(self.stream_id, taken)
            payload = payload[taken:]
            if not payload:
                return
        if self._chunks and len(self._chunks[-1]) + len(payload) <= _MERGE_BYTES:
            self._chunks[-1] += payload
        else:
            self._chunks.append(bytes(payload))
        self._wake(self._reading)

    def on_fin(self) -> None:
        """The peer has finished writing."""
        self._is_ended = True
        self._wake(self._reading)
        self._end_splice()

    def on_reset(self, frame: Reset) -> None:
        """The peer has reset the stream."""
        self._fail(self._meaning(frame))

    def on_drained(self) -> None:
        """What was written is sealed."""
        self._wake(self._writing)
        if self._is_closed:
            self._end_if_drained()
            self._carrier.settle(self.stream_id)

    def on_lost(self, error: P2PTunnelError, unacknowledged: int) -> None:
        """The session has ended, and the peer has not acknowledged so many bytes of this stream."""
        self._unacknowledged = unacknowledged
        self._fail(error)

    def _meaning(self, frame: Reset) -> P2PTunnelError:
        if self.is_ours and not self._is_opened:
            if frame.code == ResetCode.NOT_YOURS:
                return AccessDeniedError(self.tag, self.service, self._carrier.granted)
            if frame.code == ResetCode.UNANSWERED:
                return ApprovalTimeoutError(self.tag, self.service)
            if frame.code == ResetCode.TARGET_REFUSED:
                return TargetRefusedError(self.tag, self.service, frame.reason)
        elif self.is_ours and frame.code == ResetCode.NOT_YOURS:
            return AccessRevokedError(self.tag, self.service)
        return StreamResetError(frame.reason or _WORDS.get(frame.code, "cancelled by the peer"))

    def _fail(self, error: P2PTunnelError) -> None:
        if self._error is None:
            self._error = error
            if self._splice is not None:
                self._splice.stopped()
                self._end_splice()
        self._wake(self._reading)
        self._wake(self._writing)

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)

    @staticmethod
    def _wake(waiting: asyncio.Future[None] | None) -> None:
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


_WORDS: Final[dict[int, str]] = {
    ResetCode.CLOSED: "the peer reads no more",
    ResetCode.BUSY: "the peer is busy",
    ResetCode.INTERNAL: "the peer's service failed",
}
