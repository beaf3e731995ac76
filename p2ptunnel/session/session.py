"""A session: many streams over one channel, between two identities that have proved themselves.

Rule: every task, timer and stream here ends with the session, and nothing that the peer does can raise out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Final

import msgspec

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import ACCESS_CHECK, CLOSE_GRACE, HANDSHAKE_TIMEOUT
from p2ptunnel.errors import (
    AuthenticationError,
    ChannelClosedError,
    ChannelError,
    ChannelLostError,
    P2PTunnelError,
    RemoteProtocolError,
    StoreError,
)
from p2ptunnel.identity.acl import Access, AccessList
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.tls import callee_context, caller_context
from p2ptunnel.net.threads import in_thread
from p2ptunnel.protocol.mux import Drained, Mux, MuxEvent, PeerSilent
from p2ptunnel.session.channel import Channel
from p2ptunnel.session.greeting import greet, welcome
from p2ptunnel.session.request import OnOpen, OpenRequest, answer
from p2ptunnel.session.stream import SessionStream
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Path, Tag, format_address
from p2ptunnel.wire.frames import Data, Fin, GoAway, GoAwayCode, Open, Opened, Reset, ResetCode

__all__ = ["OnOpen", "OpenRequest", "Session", "accept_session", "connect_session"]

_log: Final = logging.getLogger("p2ptunnel.session")


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
        self._access: Final = access or AccessList()
        self._on_open: Final = on_open
        self._trace: Final = tracer or Tracer()
        self._streams: Final[dict[int, SessionStream]] = {}
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self._flushing: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._quiet: Final = asyncio.Event()  # no stream is open, and nothing waits to be sent
        self._leaving: ChannelClosedError | None = None  # why no stream can be opened any more
        self._trace("session", "up", tag=tag, key=peer_key.short, path=path.kind, remote=format_address(path.remote))
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
        """End the session: no new streams, `grace` seconds for the open ones, then reset them.  Closing twice is fine.

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
        """Reset what is open, say goodbye and end; `error` None: because we went away."""
        for stream in tuple(self._streams.values()):
            self._mux.reset(stream.stream_id, ResetCode.CANCELLED, "the session was closed")
        self.flush()
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
        for event in self._mux.events():
            self._handle(event)
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
                self._forget_if_over(stream_id)
            case Opened(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.on_opened()
            case Reset(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.on_reset(event)
                self._forget_if_over(stream_id)
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
            self._trace("session", "stream_denied", tag=self.tag, service=frame.service)
            self._mux.reset(frame.stream_id, ResetCode.NOT_YOURS)
            self.settle(frame.stream_id)
            return
        stream = SessionStream(self, self._mux, frame.stream_id, frame.service, is_ours=False)
        self._add(stream)
        self.spawn(answer(self._on_open, OpenRequest(self, stream)))

    def _may_open(self, service: str) -> bool:
        try:
            return self._access.may_open(self.peer_key, service)
        except StoreError as error:  # nothing is granted by a list that cannot be read
            self._trace("session", "access_unreadable", reason=str(error))
            return False

    # --- time -----------------------------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        now = self._loop.time()
        due = self._mux.next_deadline() or now
        if self._on_open is not None:
            due = min(due, now + ACCESS_CHECK)
        self._timer = self._loop.call_at(due, self._on_timer)

    def _on_timer(self) -> None:
        self._mux.handle_timer(self._loop.time())
        self.flush()
        if self._on_open is not None:
            self._check_access()
        if self.error is None:
            self._set_timer()

    def _check_access(self) -> None:
        """End what the peer has open and may open no more."""
        try:
            is_admitted = self.peer_key in self._access.admitted()
            granted = self._access.granted(self.peer_key)
        except StoreError as error:  # what runs goes on; nothing new is let in
            self._trace("session", "access_unreadable", reason=str(error))
            return
        for stream in tuple(self._streams.values()):
            if not stream.is_ours and stream.service not in granted:
                stream.abort("access was revoked")
        if not is_admitted:
            self._go_away(GoAwayCode.REVOKED, "access was revoked")
            self._leave()


async def connect_session(
    pipe: Pipe, *, identity: Identity, tag: Tag, peer_key: PublicKey, selector: bytes, tracer: Tracer | None = None
) -> Session:
    """Open a session as the caller: preamble, TLS, HELLO, ACCEPT, in at most 5 s.

    The pipe is spent, whatever happens.

    Args:
        pipe: To whoever claims to be the peer.
        identity: Ours.
        tag: The peer's name, for errors.
        peer_key: The only key that is accepted.
        selector: 16 bytes: the conkey, or the attempt's own.
        tracer: Told what happens.

    Raises:
        PeerKeyChangedError: The other side did not prove `peer_key`; no byte of ours has left.
        PeerRefusedError: The peer does not admit our key.
        AuthenticationError: The peer's key is our own, or another protocol is spoken inside TLS.
        ChannelLostError: The connection broke, or took too long.
        RemoteProtocolError: The peer broke the protocol.
        OSError: The pipe was broken before.
    """

    def context() -> ssl.SSLContext:
        if peer_key == identity.public:
            raise AuthenticationError("the peer's key is this machine's own")
        return caller_context(identity, peer_key)

    async with _channel(pipe, context, callee=False) as channel:
        granted = await greet(channel, identity, tag, peer_key, selector)
        return Session(channel, is_caller=True, tag=tag, peer_key=peer_key, path=pipe.path, granted=granted, tracer=tracer)


async def accept_session(
    pipe: Pipe,
    *,
    identity: Identity,
    access: Access,
    selector: bytes,
    on_open: OnOpen,
    early: bytes = b"",
    tracer: Tracer | None = None,
) -> Session:
    """Open a session as the callee, on a pipe whose preamble has been read; in at most 5 s.

    The pipe is spent, whatever happens.

    Args:
        pipe: From whoever knew the selector.
        identity: Ours.
        access: Who may connect, and open what; asked anew for each stream.
        selector: 16 bytes, as the preamble had it and the caller must repeat it inside TLS.
        on_open: Called in a task of the session for each stream that the peer may open.
        early: Bytes read beyond the preamble.
        tracer: Told what happens.

    Raises:
        AuthenticationError: The caller proved no key that is admitted, or did not take ours.
        ChannelLostError: The connection broke, or took too long.
        RemoteProtocolError: The caller broke the protocol.
        StoreError: Who is admitted cannot be read.
        OSError: The pipe was broken before.
    """

    def context() -> ssl.SSLContext:
        return callee_context(identity, access.admitted())

    async with _channel(pipe, context, callee=True, early=early) as channel:
        peer_key = await welcome(channel, identity, access, selector)
        tag = access.name_of(peer_key)
        return Session(
            channel, is_caller=False, tag=tag, peer_key=peer_key, path=pipe.path, access=access, on_open=on_open, tracer=tracer
        )


@contextlib.asynccontextmanager
async def _channel(
    pipe: Pipe, context: Callable[[], ssl.SSLContext], *, callee: bool, early: bytes = b""
) -> AsyncGenerator[Channel]:
    """Give a channel over the pipe for the time in which it must come up; where the block fails, nothing stays open."""
    channel: Channel | None = None
    deadline = asyncio.timeout(HANDSHAKE_TIMEOUT)
    try:
        async with deadline:
            channel = Channel(await in_thread(context), callee=callee, early=early)  # a thousand anchors take 0.4 s
            await pipe.attach(lambda: channel)
            yield channel
    except BaseException as error:
        if channel is None:
            pipe.abort()
        else:
            channel.close()
        if isinstance(error, TimeoutError) and deadline.expired():
            raise ChannelLostError(f"the channel was not up in {HANDSHAKE_TIMEOUT:g} s") from error
        raise


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
