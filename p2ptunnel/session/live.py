"""A session that is up: many streams over one channel, between two identities that have proved themselves.

Rule: every task, timer and stream here ends with the session, and nothing that the peer does can raise out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeAlias

import msgspec

from p2ptunnel.defaults import CLOSE_GRACE, PATH_DEAD, SESSION_TICK, STREAMS_MAX
from p2ptunnel.errors import (
    ChannelClosedError,
    ChannelError,
    ChannelLostError,
    LocalProtocolError,
    P2PTunnelError,
    RemoteProtocolError,
    StoreError,
    TargetRefusedError,
)
from p2ptunnel.identity.acl import Access
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.protocol.mux import Drained, Mux, MuxEvent, PeerSilent
from p2ptunnel.session.channel import Channel
from p2ptunnel.session.stream import SessionStream
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Path, Tag, format_address
from p2ptunnel.wire.frames import Data, Fin, GoAway, GoAwayCode, Open, Opened, Reset, ResetCode

__all__ = ["OnOpen", "OpenRequest", "Session"]

_log: Final = logging.getLogger("p2ptunnel.session")
_TASKS_MAX: Final = 2 * STREAMS_MAX  # a peer that opens and resets without end must not leave a server busy for each


class OpenRequest:
    """The peer asks for a stream to a service that it may open; accept it or refuse it, once."""

    def __init__(self, session: Session, stream: SessionStream) -> None:
        self.session: Final = session
        self.service: Final = stream.service
        self.peer_key: Final = session.peer_key
        self._stream: Final = stream
        self._is_decided = False

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


async def _answer(on_open: OnOpen, request: OpenRequest) -> None:
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


class Session:
    """Streams to and from one peer; `connect_session` and `accept_session` make it.

    Attributes:
        tag: The peer's name here.
        peer_key: The key that the peer has proved.
        granted: The services that the peer grants us, as it said when the session began.
        closed: Set when the session has ended; `error` then tells why.
        error: What every stream that was still open raises; None while the session lives.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        is_caller: bool,
        tag: Tag,
        peer_key: PublicKey,
        path: Path,
        granted: tuple[str, ...] = (),
        access: Access | None = None,
        on_open: OnOpen | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.tag: Final = tag
        self.peer_key: Final = peer_key
        self.granted: Final = granted
        self.closed: Final = asyncio.Event()
        self.error: ChannelError | None = None
        self._loop: Final = asyncio.get_running_loop()
        self._mux: Final = Mux(caller=is_caller, now=self._loop.time())
        self._channel: Final = channel
        self._path: Final = path
        self._access: Final = access
        self._on_open: Final = on_open
        self._trace: Final = tracer or Tracer()
        self._streams: Final[dict[int, SessionStream]] = {}
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._flushing: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._quiet: Final = asyncio.Event()  # no stream is open, and nothing waits to be sent
        self._leaving: ChannelClosedError | None = None  # why no stream can be opened any more
        self._trace("session", "up", tag=tag, key=peer_key.short, path=path.kind, remote=format_address(path.remote))
        self._looked_at = self._acked_at = self._loop.time()
        self._set_timer()
        self._mux.ping(self._loop.time())  # windows grow by the round trip
        channel.start(self)
        self.flush()

    def __repr__(self) -> str:
        state = "open" if self.error is None else str(self.error)
        return f"<Session with {self.tag} ({self.peer_key.short}): {self.streams} streams, {state}>"

    @property
    def path(self) -> Path:
        """Where the channel runs, with the round trip measured last."""
        return msgspec.structs.replace(self._path, rtt=self.rtt)

    @property
    def rtt(self) -> float | None:
        """Seconds of a round trip inside the channel; None until measured."""
        return self._mux.rtt

    @property
    def streams(self) -> int:
        """How many streams are open in at least one direction."""
        return len(self._mux)

    @property
    def bytes_sent(self) -> int:
        """Bytes of all streams that were sent."""
        return self._mux.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes of all streams that came."""
        return self._mux.bytes_received

    # --- streams ------------------------------------------------------------------------------------------------------

    def open(self, service: str, *, interactive: bool = True) -> SessionStream:
        """Open a stream to a service of the peer, without waiting; a refusal shows at the first read.

        Args:
            service: 1 to 200 bytes of UTF-8, printable.
            interactive: False for bulk, which goes behind interactive streams.

        Raises:
            ChannelError: The session has ended, or is ending.
            ChannelBusyError: 1024 of our streams are open.
            LocalProtocolError: `service` is no name.
        """
        if error := self.error or self._leaving:
            raise error.with_traceback(None)
        stream_id = self._mux.open(service, self._loop.time(), interactive=interactive)
        stream = SessionStream(self, self._mux, stream_id, service, is_ours=True)
        self._add(stream)
        self.settle(stream_id)
        return stream

    async def open_confirmed(self, service: str, *, interactive: bool = True) -> SessionStream:
        """Open a stream and wait until the peer has accepted it; cancelling it resets the stream.

        Raises:
            AccessDeniedError: The service does not exist there or is not ours; `granted` lists what is.
            TargetRefusedError: What the service stands for cannot be reached from there.
            ChannelError: As for `open`, or the session ended meanwhile.
            LocalProtocolError: `service` is no name.
        """
        stream = self.open(service, interactive=interactive)
        try:
            await stream.opened()
        except BaseException:
            stream.abort()
            raise
        return stream

    # --- the end ------------------------------------------------------------------------------------------------------

    async def close(self, grace: float = CLOSE_GRACE) -> None:
        """End the session: no new streams, `grace` seconds for the open ones, then goodbye.  Closing twice is fine.

        Cancelling it ends the session at once.
        """
        try:
            if self.error is None:
                self._go_away(GoAwayCode.CLOSED)
                await _wait(self._quiet, grace)
                self._leave()
            await _wait(self._channel.gone, CLOSE_GRACE)
        finally:
            self.abort()
        await self._channel.gone.wait()
        await asyncio.gather(*(self._tasks - {asyncio.current_task()}), return_exceptions=True)

    def abort(self, reason: str = "") -> None:
        """End the session at once; bytes under way are lost."""
        self._channel.abort()
        self._end(ChannelClosedError(f"us: {reason}" if reason else "us"))

    def _go_away(self, code: GoAwayCode, reason: str = "") -> None:
        self._leaving = self._leaving or ChannelClosedError(f"us: {reason}" if reason else "us")
        self._mux.go_away(code, reason)
        self.flush()

    def _leave(self, error: ChannelError | None = None) -> None:
        """Say goodbye and end; `error` None: because we went away.  The peer's streams end by what GOAWAY said."""
        self._channel.close()
        self._end(error or self._leaving or ChannelClosedError())

    def _end(self, error: ChannelError) -> None:
        if self.error is not None:
            return
        self.error = error
        self._trace("session", "down", tag=self.tag, key=self.peer_key.short, reason=str(error))
        for handle in (self._timer, self._flushing):
            if handle is not None:
                handle.cancel()
        for stream in self._streams.values():
            stream.on_lost(error)
        self._streams.clear()
        for task in self._tasks - {asyncio.current_task()}:  # a service may close the session that it serves
            task.cancel()
        self._quiet.set()
        self.closed.set()

    # --- what streams need --------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what waits now, as far as the transport takes it."""
        while self._channel.is_writable and (batch := self._mux.data_to_send()):
            self._channel.write(batch)
        events = self._mux.events()
        for event in events:
            self._handle(event)
        for event in events:  # only now: a reset may follow a FIN at once, and the stream must hear of both
            if isinstance(event, (Fin, Reset, Drained)):
                self._forget_if_over(event.stream_id)
        self._note_quiet()

    def settle(self, stream_id: int) -> None:
        """Send what waits before the loop sleeps again, and forget the stream if it is over."""
        self._forget_if_over(stream_id)
        if self._flushing is None and self.error is None:
            self._flushing = self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = None
        self.flush()

    def consumed(self, stream_id: int, count: int) -> None:
        """Let the peer send as much again."""
        if self._mux.consumed(stream_id, count, self._loop.time()):
            self.settle(stream_id)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` as long as the session lives; its errors are traced."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._worked)
        return task

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, (P2PTunnelError, OSError)):
            self._trace("session", "work_failed", tag=self.tag, reason=str(error))
        elif error is not None:
            _log.error("a task of the session with %s failed", self.tag, exc_info=error)

    def _add(self, stream: SessionStream) -> None:
        self._streams[stream.stream_id] = stream

    def _forget_if_over(self, stream_id: int) -> None:
        if stream_id not in self._mux:
            self._streams.pop(stream_id, None)

    def _note_quiet(self) -> None:
        if self._streams or self._mux.has_output:
            self._quiet.clear()
        else:
            self._quiet.set()

    # --- what the channel tells ---------------------------------------------------------------------------------------

    def data_received(self, data: memoryview) -> None:
        """Take bytes that the channel has authenticated."""
        try:
            self._mux.receive_data(data, self._loop.time())
        except RemoteProtocolError as error:
            self._violated(error)
        else:
            self.flush()

    def writable(self) -> None:
        """Write on."""
        self.flush()

    def channel_ended(self, error: ChannelError) -> None:
        """The channel is gone; a goodbye that the peer had announced is its doing, for the reason that it gave."""
        self._end(self._leaving if self._leaving and isinstance(error, ChannelClosedError) else error)

    def _violated(self, violation: RemoteProtocolError) -> None:
        """Tell the peer what it did wrong, and go."""
        error = ChannelLostError(str(violation))
        error.__cause__ = violation
        self._go_away(GoAwayCode.PROTOCOL, violation.problem)
        self._leave(error)

    def _handle(self, event: MuxEvent) -> None:
        match event:
            case Data(stream_id, payload):
                if stream := self._streams.get(stream_id):
                    stream.on_data(payload)
            case Drained(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.on_drained()
            case Fin(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.on_fin()
            case Opened(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.on_opened()
            case Reset(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.on_reset(event)
            case Open():
                self._offered(event)
            case GoAway(_, reason):
                self._leaving = self._leaving or ChannelClosedError(f"the peer: {reason}" if reason else "the peer")
                self._trace("session", "peer_goes", tag=self.tag, reason=reason)
            case PeerSilent():
                self._channel.abort()
                self._end(ChannelLostError("the peer has fallen silent"))

    # --- streams that the peer opens ----------------------------------------------------------------------------------

    def _offered(self, frame: Open) -> None:
        if self._on_open is None or not self._may_open(frame.service):
            self._turn_away(frame, ResetCode.NOT_YOURS)
        elif len(self._tasks) >= _TASKS_MAX:
            self._turn_away(frame, ResetCode.BUSY, "too many streams are being served")
        else:
            stream = SessionStream(self, self._mux, frame.stream_id, frame.service, is_ours=False)
            self._add(stream)
            self.spawn(_answer(self._on_open, OpenRequest(self, stream)))

    def _turn_away(self, frame: Open, code: ResetCode, reason: str = "") -> None:
        self._trace("session", "stream_denied", tag=self.tag, service=frame.service, code=code.name)
        self._mux.reset(frame.stream_id, code, reason)
        self.settle(frame.stream_id)

    def _may_open(self, service: str) -> bool:
        try:
            return self._access is not None and self._access.may_open(self.peer_key, service)
        except StoreError as error:  # nothing is granted by a list that cannot be read
            self._trace("session", "access_unreadable", reason=str(error))
            return False

    # --- time -----------------------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        self._timer = self._loop.call_later(SESSION_TICK, self._on_timer)

    def _on_timer(self) -> None:
        now = self._loop.time()
        self._mux.handle_timer(now)
        self.flush()
        self._check_path(now)
        if self._access is not None:
            self._check_access(self._access)
        if self.error is None:
            self._set_timer()

    def _check_path(self, now: float) -> None:
        """End the session when the path has swallowed everything for long; a peer that only stands still is waited for."""
        if self._channel.seconds_without_ack < now - self._looked_at:
            self._acked_at = now
        self._looked_at = now
        if now - self._acked_at >= PATH_DEAD:
            self._channel.abort()
            self._end(ChannelLostError(f"the path has been dead for {PATH_DEAD:g} s"))

    def _check_access(self, access: Access) -> None:
        """End the session of a peer that is no longer admitted."""
        try:
            is_admitted = self.peer_key in access.admitted()
        except StoreError as error:  # what runs goes on; nothing new is let in
            self._trace("session", "access_unreadable", reason=str(error))
            return
        if not is_admitted:
            self._go_away(GoAwayCode.REVOKED, "access was revoked")
            self._leave()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
