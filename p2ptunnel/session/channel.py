"""One TLS connection, driven by hand over two memory buffers: bytes of the transport in, bytes of frames out, and back.

Rule: an end of file that TLS did not announce is a loss, never an end; a byte handed on has been authenticated.

Until `start` the channel is pulled: `handshake` and `read_frame` take exactly what they need, and what lies in the socket
beyond that stays there.  From then on it pushes what it decrypts to its consumer.

Source: docs/explanation/security.md; docs/protocol/frames.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final, Protocol, cast

from p2ptunnel.defaults import BATCH_FIRST_BYTES, BATCH_MIN_BYTES, BATCH_SLOW, CLOSE_GRACE, HANDSHAKE_MAX_BYTES
from p2ptunnel.errors import ChannelClosedError, ChannelError, ChannelLostError, RemoteProtocolError
from p2ptunnel.net.room import Room
from p2ptunnel.net.tcpinfo import TcpInfo, read_tcp_info
from p2ptunnel.protocol.replay import PIECE_BYTES as BATCH_BYTES
from p2ptunnel.wire.frames import HEADER, Frame, decode, payload_length

__all__ = ["Channel", "Consumer"]

_TURN_SLOW: Final = 0.005  # seconds that one channel may take while others wait
_TURN_MIN_BYTES: Final = 4096
_FEED_BYTES: Final = 16 * 1024  # what TLS is given at a time: in one call it does all that needs no answer of ours
_UNREAD_MAX_BYTES: Final = 4 * BATCH_BYTES  # in the transport: the session gives it a batch at most, TLS answers at any time
_ANSWERS_MAX_BYTES: Final = 1024  # of its own, to so much: a peer asks for new keys once in a while, not in every record


class Consumer(Protocol):
    """Who takes what a channel decrypts."""

    def data_received(self, data: memoryview) -> None:
        """Take bytes; `data` is overwritten afterwards."""
        ...

    def writable(self) -> None:
        """Write on: the transport has taken what it had."""
        ...

    def channel_ended(self, error: ChannelError) -> None:
        """Learn that nothing more comes or goes; called once, never after `close` or `abort`."""
        ...


class Channel(asyncio.BufferedProtocol):
    """TLS over an asyncio transport.

    Args:
        context: A pinned one.
        callee: Which end: the TLS server.
        early: Bytes of the other side that have been read already.
    """

    def __init__(self, context: ssl.SSLContext, *, callee: bool, early: bytes = b"") -> None:
        self.gone: Final = asyncio.Event()
        """Set when the transport has let go of its descriptor."""
        self._incoming: Final = ssl.MemoryBIO()
        self._outgoing: Final = ssl.MemoryBIO()
        self.tls: Final = context.wrap_bio(self._incoming, self._outgoing, server_side=callee)
        self._sealed = memoryview(bytearray(HANDSHAKE_MAX_BYTES))  # as it comes from the transport
        self._unfed = self._sealed[:0]  # of it: what TLS has not been given yet
        self._plain = memoryview(b"")  # decrypted from it; a stranger costs us no large buffers
        self._transport: asyncio.Transport | None = None
        self._consumer: Consumer | None = None
        self._handshake_room = HANDSHAKE_MAX_BYTES - len(early)  # bytes that may still come before the handshake is done
        self._is_secure = False
        self._is_paused = False
        self._is_ending = False  # the end has been read, and what came before it is being handed on
        self._paused_at = 0.0
        self._written = 0  # bytes since the kernel last had room
        self._has_eof = False  # the transport closes in the next turn: nothing is put off any more
        self._is_eof_fed = False
        self._turn_bytes = _TURN_MIN_BYTES  # what is decrypted and handed on before others have their turn
        self._room: Room | None = None
        self.batch_bytes = BATCH_FIRST_BYTES
        """What to write at a time: so much as the path takes in a few milliseconds, since all else waits behind it."""
        self.is_shared = False
        """Whether there are several streams: then we wait until the kernel has room, or one would wait behind another."""
        self._arrived: Final = asyncio.Event()
        self._end: ChannelError | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._incoming.write(early)

    @property
    def is_writable(self) -> bool:
        """Whether `write` would reach the transport now and not pile up."""
        if self._is_paused or self._is_ending or self._end is not None:
            return False
        return self._transport is not None and not self._transport.is_closing()

    @property
    def seconds_without_ack(self) -> float | None:
        """How long the other side's kernel has acknowledged nothing of what is under way to it; None where nobody can tell."""
        info = self._tcp_info()
        return None if info is None else info.seconds_without_ack

    @property
    def loss(self) -> float | None:
        """Share of the segments that had to be sent again, since the beginning; None where nobody can tell."""
        info = self._tcp_info()
        return info.retransmitted / info.sent if info and info.sent else None

    def _tcp_info(self) -> TcpInfo | None:
        sock = self._transport.get_extra_info("socket") if self._transport else None
        return None if sock is None else read_tcp_info(sock)

    # --- pulled: up to the greeting -----------------------------------------------------------------------------------

    async def handshake(self, first: bytes = b"") -> None:
        """Finish the TLS handshake.

        Args:
            first: Bytes to send in the clear ahead of it, in the same write.

        Raises:
            ssl.SSLError: It failed; the other side has been sent the alert that says why.
            ChannelLostError: The connection broke.
            RemoteProtocolError: More than 16 KiB came, and the handshake was not done.
        """
        while not self._is_secure:
            try:
                with contextlib.suppress(ssl.SSLWantReadError):
                    self.tls.do_handshake()
                    self._is_secure = True
            finally:
                self._flush(first)  # when it failed, the alert that says why
            first = b""
            if not self._is_secure and not self._feed():
                await self._more()

    async def read_frame(self) -> Frame:
        """Return the next frame; not a byte behind it is read.

        Raises:
            ssl.SSLError: The bytes were damaged, or the other side refused the handshake after all.
            ChannelLostError: The connection broke.
            RemoteProtocolError: It is no frame.
        """
        header = await self.read_exactly(HEADER.size)
        return decode(header + await self.read_exactly(payload_length(header)))

    async def read_exactly(self, count: int) -> bytes:
        """Return the next `count` bytes; not a byte behind them is read.

        Raises:
            ssl.SSLError: The bytes were damaged, or the other side refused the handshake after all.
            ChannelLostError: The connection broke.
        """
        data = b""
        while len(data) < count:
            try:
                part = self.tls.read(count - len(data))
            except ssl.SSLWantReadError:
                if not self._feed():
                    await self._more()
                continue
            if not part:
                raise ChannelLostError("it was closed during the greeting")
            data += part
        return data

    async def _more(self) -> None:
        """Wait for more bytes, or for the end of them."""
        if self._end is not None:
            raise self._end
        if not self._is_secure and self._handshake_room <= 0:
            raise RemoteProtocolError(f"{HANDSHAKE_MAX_BYTES} bytes, and no handshake in them")
        assert self._transport is not None
        self._arrived.clear()
        self._transport.resume_reading()
        await self._arrived.wait()

    # --- pushed: from the greeting on ---------------------------------------------------------------------------------

    def start(self, consumer: Consumer) -> None:
        """Hand everything that comes from now on to `consumer`, beginning with what is here already."""
        assert self._transport is not None
        self._consumer = consumer
        self._sealed, self._plain = memoryview(bytearray(BATCH_BYTES)), memoryview(bytearray(BATCH_BYTES))
        if self._end is None:
            self._room = Room(self._transport.get_extra_info("socket"), self._on_room)
            self._room.limit(self.batch_bytes // 2)
            self._transport.resume_reading()
            self._decrypt(consumer)
        else:
            consumer.channel_ended(self._end)

    def write(self, data: memoryview | bytes) -> None:
        """Seal `data` and give it to the transport in one write; what is written after the end is dropped."""
        if self._end is not None:
            return
        view = memoryview(data)
        try:
            while view:
                view = view[self.tls.write(view) :]
        except ssl.SSLError as error:
            self._fail(ChannelLostError(_reason(error)))
        self._flush()
        self._written += len(data)
        if self.is_shared and self._written >= self.batch_bytes and self.is_writable and self._room and self._room.wait():
            self.pause_writing()

    def close(self) -> None:
        """Say goodbye and close when everything written has left; closing twice is fine.

        The socket is closed when the other side has closed its own, or after `CLOSE_GRACE`: closed at once, it would answer
        what is still under way with a reset, and that could destroy what we have sent.
        """
        if self._end is not None:
            return
        self._end = ChannelClosedError()
        if self._transport is None:
            return
        with contextlib.suppress(ssl.SSLError):  # it asks for the other side's goodbye, for which nobody waits here
            self.tls.unwrap()
        self._flush()
        self._lingering = asyncio.get_running_loop().call_later(CLOSE_GRACE, self._transport.abort)
        self._transport.write_eof()
        self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once; what is written and has not left is lost."""
        self._end = self._end or ChannelClosedError()
        if self._transport is not None and not self.gone.is_set():  # some transports fail when they are gone already
            self._transport.abort()

    # --- what asyncio calls -------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        transport = cast("asyncio.Transport", transport)  # which uvloop's are not by name
        transport.set_write_buffer_limits(high=0)  # one batch waits at most: a later small frame is not behind megabytes
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to put what arrives."""
        return self._sealed if self._is_secure else self._sealed[: max(self._handshake_room, 1)]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what arrived."""
        if self._end is not None:
            return
        self._unfed = self._sealed[:nbytes]
        if not self._is_secure:
            self._handshake_room -= nbytes
        self._advance()

    def eof_received(self) -> bool:
        """Learn that the socket has ended; whether TLS had said so before is seen when it is read."""
        self._has_eof = True
        if self._end is None:
            self._advance()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Learn that the transport is gone."""
        if self._room is not None:
            self._room.close()
        lost = ChannelLostError(str(exc) if exc else "the connection ended without a goodbye")
        lost.__cause__ = exc
        self._finish(lost)
        self._sealed = self._plain = memoryview(b"")
        self._arrived.set()
        self.gone.set()
        if self._lingering is not None:
            self._lingering.cancel()

    def pause_writing(self) -> None:
        """Learn that the transport has not taken all of the last batch."""
        self._is_paused = True
        self._paused_at = asyncio.get_running_loop().time()

    def resume_writing(self) -> None:
        """Learn that it has by now; or that the kernel has room, where that was asked."""
        if self._room is not None and self._room.is_awaited:
            return
        self._is_paused = False
        self._written = 0
        self._adapt(asyncio.get_running_loop().time() - self._paused_at)
        asyncio.get_running_loop().call_soon(self._write_on)  # not from within the transport's own write (CPython 156512)

    def _write_on(self) -> None:
        if self._consumer is not None and self._end is None:
            self._consumer.writable()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _on_room(self) -> None:
        assert self._transport is not None
        if not self._transport.get_write_buffer_size():  # else the transport tells when it has none
            self.resume_writing()

    def _adapt(self, took: float) -> None:
        """Write less at a time where the last batch took long to leave, and more where it did not; so does the kernel."""
        before = self.batch_bytes
        if took > BATCH_SLOW:
            self.batch_bytes = max(round(before * BATCH_SLOW / took), BATCH_MIN_BYTES)
        elif took < BATCH_SLOW / 4:
            self.batch_bytes = min(before * 2, BATCH_BYTES)
        if self._room is not None and self.batch_bytes != before:
            self._room.limit(self.batch_bytes // 2)

    def _advance(self) -> None:
        if self._consumer is not None:
            self._decrypt(self._consumer)
            return
        assert self._transport is not None
        self._transport.pause_reading()
        self._arrived.set()

    def _decrypt(self, consumer: Consumer) -> None:
        """Decrypt and hand on everything that is whole, then the end if it has come.

        Bytes that cost much, as frames of one byte do, are taken in small portions, and between them everybody else has a turn.
        """
        end: ChannelError | None = None
        is_more, is_slow = True, False
        while is_more and (self._has_eof or not is_slow) and self._end is None:
            limit = self._turn_bytes
            used, end = self._fill_plain(limit)
            is_more = used == limit and end is None
            self._is_ending = end is not None  # an answer now would fail, and hide both the bytes and the reason
            if used:
                is_slow = self._hand_on(consumer, used)
        if end is not None:
            self._fail(end)
        elif is_more and self._end is None:
            assert self._transport is not None
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._decrypt_on, consumer)
        self._flush()  # TLS may have something to answer, such as a new key
        if self._end is None and self._transport is not None and self._transport.get_write_buffer_size() > _UNREAD_MAX_BYTES:
            self._finish(ChannelLostError("the peer does not read what TLS answers"))
            self._transport.abort()

    def _decrypt_on(self, consumer: Consumer) -> None:
        if self._end is None and self._transport is not None:
            self._transport.resume_reading()
            self._decrypt(consumer)

    def _feed(self) -> bool:
        """Give TLS the next piece of what has come, or the end; tell whether there was any.

        Raises:
            ChannelLostError: TLS had to answer more than an honest peer makes it answer.
        """
        if self._outgoing.pending > _ANSWERS_MAX_BYTES:
            raise ChannelLostError("the peer asks for one new TLS key after the other")
        if self._unfed:
            self._incoming.write(self._unfed[:_FEED_BYTES])
            self._unfed = self._unfed[_FEED_BYTES:]
            return True
        if not self._has_eof or self._is_eof_fed:
            return False
        self._is_eof_fed = True
        self._incoming.write_eof()
        return True

    def _hand_on(self, consumer: Consumer, used: int) -> bool:
        """Hand on what was decrypted; tell whether that took so long that others are due."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        consumer.data_received(self._plain[:used])
        is_slow = loop.time() - began > _TURN_SLOW
        if is_slow:
            self._turn_bytes = max(self._turn_bytes // 2, _TURN_MIN_BYTES)
        elif used == self._turn_bytes:
            self._turn_bytes = min(self._turn_bytes * 2, BATCH_BYTES)
        return is_slow

    def _fill_plain(self, limit: int) -> tuple[int, ChannelError | None]:
        """Decrypt records one behind the other; return how many bytes there are, and the end if it follows them."""
        used = 0
        try:
            while used < limit:
                try:
                    count = cast("int", self.tls.read(limit, self._plain[used:limit]))  # with a buffer it returns a count
                except ssl.SSLWantReadError:
                    if self._feed():
                        continue
                    break
                if not count:
                    return used, ChannelClosedError("the peer")
                used += count
        except ChannelLostError as error:
            return used, error
        except ssl.SSLZeroReturnError:
            return used, ChannelClosedError("the peer")
        except ssl.SSLError as error:
            return used, ChannelLostError(_reason(error))
        return used, None

    def _fail(self, error: ChannelError) -> None:
        self._finish(error)
        self._flush()  # the alert that tells the other side why
        assert self._transport is not None
        self._transport.close()

    def _finish(self, error: ChannelError) -> None:
        if self._end is None:
            self._end = error
            if self._consumer is not None:
                self._consumer.channel_ended(error)

    def _flush(self, first: bytes = b"") -> None:
        assert self._transport is not None
        if data := first + self._outgoing.read():
            self._transport.write(data)


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLEOFError):
        return "the connection ended without a goodbye"
    return f"TLS failed: {error.reason or type(error).__name__}".lower().replace("_", " ")
