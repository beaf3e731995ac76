"""One QUIC connection, driven: its datagrams, its timer, the consent to send them, and the bytes that wait on either side.

Rule: nothing that arrives raises out of here, and what came and was not taken is never more than the window.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from aioquic.quic.events import HandshakeCompleted, StopSendingReceived, StreamDataReceived, StreamReset

from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.protocol.consent import Consent
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.quicwire import PEER, STREAM, Connection
from p2ptunnel.types import Address, format_address
from p2ptunnel.wire.messages import ConsentAnswer, ConsentCheck

__all__ = ["Link", "Sink"]

_OPENING: Final = b"\x01"
"""The first byte from the caller: it makes the stream known to the callee, which may then write first."""
_NO_ERROR, _ABORTED = 0, 1


class Sink(Protocol):
    """Who takes the bytes of a link."""

    def arrived(self) -> None:
        """Learn that there is something to `take`, or that the end of it is known."""
        ...

    def left(self) -> None:
        """Learn that something was sent, or that nothing will be any more."""
        ...


class Link:
    """A connection and what drives it.

    Args:
        connection: New.
        consent: Knows where the peer is, and whether it may be sent to.
        send: Sends datagrams to an address.
        on_over: Called once, when nothing is to be sent or received any more.

    Attributes:
        opened: Done when bytes pass both ways; fails with an OSError if the connection ends before.
        error: Why it is over; None while it is not, and if it ended in order.
        is_over: Whether it is.
        is_end_known: Whether the peer writes no more than what is here.
    """

    def __init__(
        self,
        connection: Connection,
        consent: Consent,
        send: Callable[[Sequence[bytes], Address], None],
        on_over: Callable[[], None],
        tracer: Tracer | None = None,
    ) -> None:
        self.opened: Final[asyncio.Future[None]] = asyncio.get_running_loop().create_future()
        self.opened.add_done_callback(_retrieve)  # perhaps nobody waits for it any more
        self.error: OSError | None = None
        self.is_over = self.is_end_known = False
        self.consent: Final = consent
        self.connection: Final = connection
        self._loop: Final = asyncio.get_running_loop()
        self._send: Final = send
        self._on_over: Final = on_over
        self._trace: Final = tracer or Tracer()
        self._sink: Sink | None = None
        self._came: list[bytes] = []
        self._arrival: Final = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._is_turn_due = self._is_finishing = self._is_dropping = False
        self._is_opening_due = not connection.is_caller

    # --- datagrams ----------------------------------------------------------------------------------------------------

    def start(self, first: bytes = b"") -> None:
        """Begin: as the caller with a datagram of ours, as the callee with the caller's, which is `first`."""
        if self.connection.is_caller:
            self.connection.connect(PEER, self._loop.time())
            self.connection.write(_OPENING)
            self._turn_soon()
        else:
            self.receive(first, self.consent.remote)

    def receive(self, data: bytes, source: Address) -> None:
        """Take a datagram that is for this connection, by what it says; whether that is true, it is asked itself."""
        if self.is_over:
            return
        now = self._loop.time()
        if source != self.consent.remote or not self.consent.is_given:
            self.consent.suspect(source, now)
        self.connection.receive_datagram(data, PEER, now)
        self._turn_soon()

    def receive_consent(self, message: ConsentCheck | ConsentAnswer, data: bytes, source: Address) -> None:
        """Take a t=33 or -33 of the peer's."""
        self.consent.receive(message, data, source, self._loop.time())
        self._turn_soon()

    # --- bytes --------------------------------------------------------------------------------------------------------

    def join(self, sink: Sink) -> None:
        """Tell `sink` of everything from now on.

        Raises:
            LocalProtocolError: Another one has been told before.
        """
        if self._sink is not None:
            raise LocalProtocolError("a pipe is attached once")
        self._sink = sink
        self._turn_soon()

    async def wait_arrived(self) -> None:
        """Wait until there is something to take, or the end of it is known."""
        await self._arrival.wait()

    def take(self) -> bytes:
        """Return all that has come, and let as much come again; empty if there is nothing."""
        data = b"".join(self._came)
        self._came.clear()
        if not (self.is_end_known or self.is_over):
            self._arrival.clear()
        if data and not self.is_over:
            self.connection.take(len(data))
            self._turn_soon()  # to tell the peer
        return data

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, now if the path takes it, else as soon as it does; dropped when it is over."""
        if not (self.is_over or self._is_finishing):
            self.connection.write(data)
            self._flush()

    def write_eof(self) -> None:
        """Send nothing behind what was written."""
        if not (self.is_over or self._is_finishing):
            self._is_finishing = True
            self.connection.write(b"", end=True)
            self._flush()

    def finish(self) -> None:
        """End when everything written has been acknowledged; what still comes is dropped."""
        self.write_eof()
        self._is_dropping = True
        self._turn_soon()

    def abort(self) -> None:
        """End now, and tell the peer; what has not been acknowledged may be lost.  Aborting twice is fine."""
        if not self.is_over:
            self._close(_ABORTED)
            self._end(ConnectionAbortedError("it was aborted"))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _turn_soon(self) -> None:
        """Answer all datagrams of one reading together."""
        if not (self._is_turn_due or self.is_over):
            self._is_turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_turn_due = False
        if self.is_over:
            return
        self._collect()
        if self._sink is not None:
            self._sink.arrived()
        if not self.is_over:
            self._flush()

    def _collect(self) -> None:
        """Take what the connection has to tell."""
        while (event := self.connection.next_event()) is not None:
            match event:
                case HandshakeCompleted() if self.connection.is_caller:
                    self._open()
                case StreamDataReceived() if event.stream_id == STREAM:
                    self._on_data(event.data)
                    self.is_end_known = event.end_stream  # which is the last of its kind
                    if self._came or self.is_end_known:
                        self._arrival.set()
                case StreamDataReceived() | StreamReset() | StopSendingReceived():
                    self._close(_ABORTED)  # there is one stream, and a half of it is of no use to anybody here
                case _:
                    pass
        if self._is_dropping:
            self.take()

    def _on_data(self, data: bytes) -> None:
        if self._is_opening_due and data:
            self._is_opening_due = False
            self.connection.take(len(_OPENING))
            data = data[len(_OPENING) :]
            self._open()
        if data:
            self._came.append(data)

    def _open(self) -> None:
        self.consent.start(self._loop.time())
        if not self.opened.done():
            self.opened.set_result(None)

    def _flush(self) -> None:
        """Send what may be sent, and see whether that was all."""
        now = self._loop.time()
        self._run_consent(now)
        if self.consent.is_given:
            self._send_all(now)
        if (ended := self.connection.ended) is not None:
            is_in_order = ended.error_code == _NO_ERROR and self.is_end_known
            self._end(None if is_in_order else ConnectionResetError(f"the peer ended it (QUIC {ended.error_code:#x})"))
        elif self._is_dropping and self.connection.is_delivered:
            self._close(_NO_ERROR)
            self._end(None)
        else:
            self._arm(now)
        if self._sink is not None:
            self._sink.left()

    def _send_all(self, now: float) -> None:
        datagrams = self.connection.datagrams_to_send(now)
        if datagrams:
            self._send([data for data, _ in datagrams], self.consent.remote)

    def _run_consent(self, now: float) -> None:
        for datagram in self.consent.datagrams_to_send():
            self._send([datagram.data], datagram.destination)
        for event in self.consent.events():
            self._trace("net", type(event).__name__, remote=format_address(self.consent.remote))

    def _arm(self, now: float) -> None:
        """Have a timer at the next deadline; one that comes too early does no harm, and setting it anew costs more."""
        deadlines = [self.consent.next_deadline(), self.connection.get_timer() if self.consent.is_given else None]
        deadline = min((at for at in deadlines if at is not None), default=None)
        if self._timer is not None and (deadline is None or self._timer.when() > deadline):
            self._timer.cancel()
            self._timer = None
        if self._timer is None and deadline is not None:
            self._timer = self._loop.call_at(max(deadline, now), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        self.consent.handle_timer(now)
        self.connection.handle_timer(now)
        self._turn()

    def _close(self, code: int) -> None:
        """Tell the peer, once; whether it comes or not, nothing is sent behind it."""
        self.connection.close(error_code=code)
        if self.consent.is_given:
            self._send_all(self._loop.time())

    def _end(self, error: OSError | None) -> None:
        if self.is_over:
            return
        self.is_over, self.error = True, error
        self._arrival.set()
        if self._timer is not None:
            self._timer.cancel()
        if not self.opened.done():
            self.opened.set_exception(error or ConnectionResetError("it ended before it began"))
        self._on_over()
        if self._sink is not None:  # not from within what it has just called
            self._loop.call_soon(self._sink.arrived)


def _retrieve(opened: asyncio.Future[None]) -> None:
    if not opened.cancelled():
        opened.exception()
