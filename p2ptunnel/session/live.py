"""A session: many streams between two identities that have proved themselves, over one channel after the other.

Rule: every task, timer, channel and stream here ends with the session, and nothing that the peer does can raise out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, Literal, TypeAlias

import msgspec

from p2ptunnel.defaults import (
    ACCESS_TICK,
    CHANNELS_MAX,
    CLOSE_GRACE,
    JOIN_PATIENCE,
    RESUME_BUFFER_BYTES,
    RESUME_LINGER,
    SESSION_TICK,
    STARVED,
    STREAMS_MAX,
)
from p2ptunnel.errors import (
    ChannelClosedError,
    ChannelError,
    ChannelLostError,
    LocalProtocolError,
    RemoteProtocolError,
    ResumeExpiredError,
)
from p2ptunnel.events import (
    ApprovalAwaited,
    ChannelLost,
    ChannelOpened,
    PathChanged,
    PathSuspected,
    PeerEvent,
    SessionExpired,
    SessionResumed,
    SessionStalled,
)
from p2ptunnel.identity.acl import Access
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.protocol.link import ACTIVE, DORMANT, Health
from p2ptunnel.protocol.mux import Drained, Mux, Source
from p2ptunnel.protocol.resume import Endpoint, EndpointEvent, Forgotten, HealthChanged, Resumed
from p2ptunnel.session.channel import Channel
from p2ptunnel.session.guard import Guard
from p2ptunnel.session.leg import Leg
from p2ptunnel.session.migration import Migration
from p2ptunnel.session.outage import Outage
from p2ptunnel.session.request import FirstStream, OnOpen, OpenRequest, answer
from p2ptunnel.session.standby import Standbys
from p2ptunnel.session.stream import SessionStream
from p2ptunnel.session.upgrade import Upgrade
from p2ptunnel.session.work import Work
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Path, Tag, format_address
from p2ptunnel.wire.frames import (
    Capability,
    Data,
    Fin,
    GoAway,
    GoAwayCode,
    Open,
    Opened,
    Reset,
    ResetCode,
    Waiting,
)

__all__ = ["Session", "SessionOptions", "SessionState"]

_numbers: Final = itertools.count(1)
_TASKS_MAX: Final = 2 * STREAMS_MAX  # a peer that opens and resets without end must not leave a server busy for each


SessionState: TypeAlias = Literal["open", "stalled", "suspended", "closed"]
"""`stalled`: the connection stands, the peer's program does not answer; `suspended`: there is no channel, one is waited for."""


class SessionOptions(msgspec.Struct, frozen=True):
    """What a session does when its channel is lost.

    Attributes:
        resume_timeout: Seconds to wait for a new channel before every stream ends; 0: end with the channel.
        resume_buffer: Bytes sent and not acknowledged that are kept at most; more wait with their writers.
        on_event: Told what happens to the session.
    """

    resume_timeout: float = 0
    resume_buffer: int = RESUME_BUFFER_BYTES
    on_event: Callable[[PeerEvent], None] = lambda _: None

    def endpoint(self, *, is_caller: bool, now: float) -> Endpoint:
        """Return one end of a session, without a channel.

        Args:
            is_caller: Which.
            now: Monotonic seconds.
        """
        return Endpoint(caller=is_caller, now=now, resume_buffer=self.resume_buffer)


class Session:
    """Streams to and from one peer; `connect_session` and `accept_session` make it.

    Attributes:
        session_id: 16 bytes, the same on both sides: the selector of the channel with which the session began.
        tag: The peer's name here.
        peer_key: The key that the peer has proved.
        granted: The services that the peer grants us, as it said when the session began.
        closed: Set when the session has ended; `error` then tells why.
        error: What every stream that was still open raises; None while the session lives.
        in_doubt: Set while another channel is wanted: the one in use is silent or gone, or the network has changed.
        settled: Set while none is.
        relayed: Set while the channel in use needs the relay.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        session_id: bytes,
        is_caller: bool,
        tag: Tag,
        peer_key: PublicKey,
        path: Path,
        granted: tuple[str, ...] = (),
        access: Access | None = None,
        on_open: OnOpen | None = None,
        options: SessionOptions | None = None,
        tracer: Tracer | None = None,
        endpoint: Endpoint | None = None,
        first: FirstStream | None = None,
    ) -> None:
        self.session_id: Final = session_id
        self.tag: Final = tag
        self.peer_key: Final = peer_key
        self.granted: Final = granted
        self.closed: Final = asyncio.Event()
        self.error: ChannelError | None = None
        self.in_doubt: Final = asyncio.Event()
        self.settled: Final = asyncio.Event()
        self.settled.set()
        self.relayed: Final = asyncio.Event()
        self._may_join: Final = asyncio.Event()
        self._may_join.set()
        self._migration: Migration | None = None
        self._upgrade: Upgrade | None = None
        options = options or SessionOptions()
        self._resume_timeout: Final = options.resume_timeout
        self._number: Final = next(_numbers)
        self._on_event: Final = options.on_event
        self._loop: Final = asyncio.get_running_loop()
        self._endpoint: Final = endpoint or options.endpoint(is_caller=is_caller, now=self._loop.time())
        self._mux: Final[Mux] = self._endpoint.mux
        self._is_caller: Final = is_caller
        self._path = path
        self._note_relay()
        self._on_open: Final = on_open
        self._trace: Final = tracer or Tracer()
        self._guard: Final = Guard(access, tag, peer_key, self._trace)
        self._streams: Final[dict[int, SessionStream]] = {}
        self._legs: Final[dict[int, Leg]] = {}
        self._standbys: Final = Standbys(self._endpoint, self._legs)
        self._carried_by = 0  # number of the leg that carries what we send, or did last
        self._channels: set[Channel] = set()  # those whose socket is not closed yet
        self._work: Final = Work(tag, self._trace)
        self._flushing: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._quiet: Final = asyncio.Event()  # no stream is open, and everything is acknowledged
        self._heard: Final = asyncio.Event()  # something has come, or the end
        self._undelivered: dict[int, int] = {}  # at the end: bytes of each stream that the peer had not acknowledged
        self._leaving: ChannelClosedError | None = None  # why no stream can be opened any more
        self._is_peer_leaving = False
        self._has_peer_left = False  # by a goodbye behind its GOAWAY, on whichever channel: others are not waited for
        self._outage: Final = Outage()
        self._resumes = self._replayed_bytes = 0
        self._doubted_trips = 0
        self._joining = 0  # the number of the channel that is asked for
        self._is_closing = False
        self._pace = ACTIVE
        self._due = 0.0
        self._trace("session", "up", tag=tag, key=peer_key.short, path=path.kind, remote=format_address(path.remote))
        self._carried_by = self._endpoint.active or self._endpoint.begin(self._loop.time())
        if first is not None:
            self._give(first)
        self._use(channel, path, self._carried_by)

    def __repr__(self) -> str:
        state = self.state if self.error is None else str(self.error)
        return f"<Session with {self.tag} ({self.peer_key.short}): {self.streams} streams, {state}>"

    @property
    def is_caller(self) -> bool:
        """Whether we have called the peer, and so move the session."""
        return self._is_caller

    @property
    def state(self) -> SessionState:
        """How it is now."""
        if self.error is not None:
            return "closed"
        if self._outage.is_suspended:
            return "suspended"
        return "stalled" if self._outage.is_stalled else "open"

    @property
    def path(self) -> Path:
        """Where the channel runs, or ran last, with what was measured last."""
        leg = self._active
        return msgspec.structs.replace(self._path, rtt=self.rtt, loss=leg.channel.loss if leg else None)

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

    @property
    def resumes(self) -> int:
        """How often the session has gone on over another channel."""
        return self._resumes

    @property
    def suspended_for(self) -> float | None:
        """For how many seconds no channel has carried what we send; None while one does."""
        return self._outage.suspended_for(self._loop.time())

    def unacknowledged_of(self, stream_id: int) -> int:
        """Return how many bytes of a stream were sent and are not acknowledged; also after the end."""
        waiting = self._endpoint.unacknowledged_of() if self.error is None else self._undelivered
        return waiting.get(stream_id, 0)

    async def delivered(self, stream_id: int) -> None:
        """Wait until the peer has acknowledged every byte of a stream.

        Raises:
            ChannelError: The session ended before.
        """
        if not self.unacknowledged_of(stream_id):
            return
        behind = self._endpoint.sent
        while self._endpoint.acknowledged < behind:
            if self.error is not None:
                raise self.error.with_traceback(None)
            if self._endpoint.request_ack():
                self._flush_soon()
            self._heard.clear()
            await self._heard.wait()

    async def ping(self) -> tuple[float, Path]:
        """Ask the peer for a sign of life over the channel in use; return the seconds until it came, and where that runs.

        While there is no channel, or another one takes over, the question waits for that.

        Raises:
            ChannelError: The session has ended.
        """
        asked, before = 0, 0
        while self.error is None:
            number = self._endpoint.carrier or 0
            leg = self._legs.get(number)
            link = None if leg is None else self._endpoint.link(number)
            if leg is not None and link is not None and number == asked and link.round_trips > before:
                assert link.last_round_trip is not None
                return link.last_round_trip, leg.path
            if link is not None and number != asked:
                asked, before = number, link.round_trips
                link.ping(self._loop.time())
                self._flush_soon()
            self._heard.clear()
            await self._heard.wait()
        raise self.error.with_traceback(None)

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
        stream = self._opened(self._mux.open(service, self._loop.time(), interactive=interactive), service)
        self.settle(stream.stream_id)
        return stream

    def begin(self, first: FirstStream) -> None:
        """Open the stream that the session was begun for, if that was not asked for behind HELLO."""
        first.ask(self._mux, self._loop.time())
        self._give(first)
        self.settle(first.stream_id)

    def _give(self, first: FirstStream) -> None:
        """Hand over the stream that was asked for."""
        stream = self._opened(first.stream_id, first.service)
        stream.on_asked = first.on_asked
        first.give(stream)

    def _opened(self, stream_id: int, service: str) -> SessionStream:
        stream = SessionStream(self, self._mux, stream_id, service, is_ours=True)
        self._add(stream)
        return stream

    async def open_confirmed(
        self, service: str, *, interactive: bool = True, on_asked: Callable[[float], None] | None = None
    ) -> SessionStream:
        """Open a stream and wait until the peer has accepted it; cancelling it resets the stream.

        Args:
            service: As for `open`.
            interactive: As for `open`.
            on_asked: Called with the seconds for which the peer's owner is asked, if that is so.

        Raises:
            AccessDeniedError: The service does not exist there or is not ours; `granted` lists what is.
            ApprovalTimeoutError: The peer's owner was asked, and has not answered.
            TargetRefusedError: What the service stands for cannot be reached from there.
            ChannelError: As for `open`, or the session ended meanwhile.
            LocalProtocolError: `service` is no name.
        """
        stream = self.open(service, interactive=interactive)
        stream.on_asked = on_asked
        return await stream.confirmed()

    def show(self, ticket: bytes) -> None:
        """Show the peer a ticket that it has signed: streams that are opened from now on go by it.

        Raises:
            ChannelError: The session has ended, or is ending.
        """
        if error := self.error or self._leaving:
            raise error.with_traceback(None)
        self._mux.show(ticket)
        self._flush_soon()

    # --- channels -----------------------------------------------------------------------------------------------------

    async def join(self) -> tuple[int, bytes]:
        """Ask for going on over a channel that is coming up; return its number, and what to send behind HELLO.

        One channel is asked for at a time: the peer would close the first one for the second, which nobody waits for by then.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(JOIN_PATIENCE):
                while not self._may_join.is_set():  # several may wait, and one goes on
                    await self._may_join.wait()
        if self.error is not None:
            raise self.error.with_traceback(None)
        self._may_join.clear()
        number = self._joining = self._endpoint.attach(self._loop.time())
        self._endpoint.resume(number)
        return number, bytes(self._endpoint.data_to_send(number, self._loop.time()))

    def takes_over(self, path: Path, round_trip: float) -> bool:
        """Tell whether a channel that is just coming up has to `join`: it is what everybody waits for.

        Args:
            path: Where it runs.
            round_trip: Seconds that its handshake took.
        """
        return self._is_caller and self.error is None and self._standbys.takes_over(path, round_trip, self._loop.time())

    def has_not_taken_over(self) -> None:
        """Learn that the peer did not answer on that channel, which is withdrawn."""
        self._standbys.has_not_taken_over()

    def is_carried_by(self, number: int) -> bool:
        """Tell whether what we send goes over this channel."""
        return self._endpoint.carrier == number and number in self._legs

    def withdraw(self, number: int) -> None:
        """Forget a channel that did not come up, or is wanted no more."""
        leg = self._legs.pop(number, None)
        self._endpoint.detach(number)
        self._joined(number)
        self._flush_soon()
        if leg is not None:
            leg.channel.abort()
        self._check_carried("the channel that carried it was withdrawn")

    def _joined(self, number: int) -> None:
        """Let the next one join, if this was the one that did."""
        if number == self._joining:
            self._may_join.set()

    def adopt(self, channel: Channel, path: Path, number: int | None = None) -> int:
        """Take over a channel that came up with the same peer; return its number.

        Args:
            channel: Greeted, and not started.
            path: Where it runs.
            number: From `join`; None on the side of the callee, which goes on over it when the caller says so.

        Raises:
            ChannelError: The session has ended meanwhile.
        """
        if self.error is not None:
            channel.abort()
            raise self.error.with_traceback(None)
        number = self._endpoint.attach(self._loop.time()) if number is None else number
        self._use(channel, path, number)
        waiting = [other for other in self._legs if other not in {number, self._endpoint.active, self._endpoint.heading}]
        for other in waiting[: max(len(self._legs) - CHANNELS_MAX, 0)]:
            self._retire(other)
        return number

    def stand_by(self, channel: Channel, path: Path) -> int:
        """Keep another channel that came up with the same peer; return its number.

        The session moves to it when that is better, or when its own is in doubt: only the caller decides.  An older standby of
        the same kind of path is closed.

        Args:
            channel: Greeted, and not started.
            path: Where it runs.

        Raises:
            ChannelError: The session has ended meanwhile.
            LocalProtocolError: This is the callee.
        """
        if not self._is_caller:
            channel.abort()
            raise LocalProtocolError("the caller moves the session, not the callee")
        number = self.adopt(channel, path)
        for other in self._standbys.replaced_by(number, path.kind):
            self._retire(other)
        return number

    def _retire(self, number: int) -> None:
        """Close a channel that is of no more use; what was written to it still leaves."""
        leg = self._legs.pop(number)
        self._endpoint.detach(number)
        leg.channel.close()

    def network_changed(self) -> None:
        """Find out whether the path still lives; the caller looks for another one beside."""
        if self.error is None:
            active = self._active
            self._doubted_trips = self._endpoint.link(active.number).round_trips if active else 0
            self._endpoint.probe(self._loop.time())
            if self._can_wait():
                self._doubt()
            if self._migration is not None:
                self._migration.hurry()
            if self._upgrade is not None:
                self._upgrade.hurry()
            self.flush()

    def keep_up(
        self,
        redial: Callable[[], Awaitable[None]],
        is_known: Callable[[], bool] | None = None,
        *,
        improve: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Look for another channel whenever one is wanted, from now on; only the caller can.

        Args:
            redial: Brings one up.
            is_known: Whether the peer is still pinned here, asked once a second; the session ends when it is not.  None: it is.
            improve: Brings up one that needs no relay, while the session runs over that; None: it stays there.
        """
        self._guard.is_pinned = is_known
        self._migration = Migration(self, redial, self._redial_failed)
        self._work.start(self._migration.run())
        if improve is not None:
            self._upgrade = Upgrade(self, improve, self._redial_failed)
            self._work.start(self._upgrade.run())

    def attend(self, attempt: asyncio.Task[Any]) -> None:
        """Take over an attempt to bring up another channel, which is under way: it ends with the session at the latest."""
        self._work.attend(attempt)

    async def attempted(self) -> None:
        """Wait until no attempt is under way that we have been given."""
        await self._work.attempted()

    def _redial_failed(self, error: Exception) -> None:
        self._trace("session", "redial_failed", tag=self.tag, reason=str(error))

    def _note_relay(self) -> None:
        (self.relayed.set if self._path.kind == "relay" else self.relayed.clear)()

    def _doubt(self) -> None:
        self.in_doubt.set()
        self.settled.clear()

    def _settle(self) -> None:
        self.in_doubt.clear()
        self.settled.set()

    @property
    def _active(self) -> Leg | None:
        """The leg that carries what we send."""
        return self._legs.get(self._endpoint.active or 0)

    def _use(self, channel: Channel, path: Path, number: int) -> None:
        leg = self._legs[number] = Leg(self, channel, path, number)
        self._channels = {known for known in self._channels if not known.gone.is_set()} | {channel}
        self._tell(ChannelOpened(tag=self.tag, path=path))
        self._endpoint.link(number).heard(self._loop.time())
        self._endpoint.link(number).ping(self._loop.time())  # windows grow by the round trip
        self._set_timer(self._loop.time())
        channel.start(leg)
        self.flush()

    # --- the end ------------------------------------------------------------------------------------------------------

    async def close(self, grace: float = CLOSE_GRACE) -> None:
        """End the session: no new streams, `grace` seconds for the open ones, then goodbye.  Closing twice is fine.

        Cancelling it ends the session at once; the goodbye is still sent.
        """
        try:
            if self.error is None:
                self._is_closing = True
                self._go_away(GoAwayCode.CLOSED)
                if not self._outage.is_suspended:
                    await _wait(self._quiet, grace)
                self._leave()
            for channel in self._channels:
                await _wait(channel.gone, CLOSE_GRACE)
        except asyncio.CancelledError:
            if self.error is None:  # who is waited for no longer still hears that it is over, and does not look for us
                self._leave()
            raise
        finally:
            self.abort()
        await asyncio.gather(*(channel.gone.wait() for channel in self._channels))
        await self._work.ended()

    def abort(self, reason: str = "") -> None:
        """End the session at once; bytes under way are lost."""
        self._end(ChannelClosedError(f"us: {reason}" if reason else "us"))
        for channel in self._channels:
            channel.abort()

    def dismiss(self, reason: str) -> None:
        """End the session at once, and tell the peer why: it does not try to go on."""
        if self.error is None:
            self._go_away(GoAwayCode.CLOSED, reason)
            self._leave()

    def _go_away(self, code: GoAwayCode, reason: str = "") -> None:
        self._leaving = self._leaving or ChannelClosedError(f"us: {reason}" if reason else "us")
        self._mux.go_away(code, reason)
        self.flush()

    def _leave(self, error: ChannelError | None = None) -> None:
        """Say goodbye and end; `error` None: because we went away.  The peer's streams end by what GOAWAY said."""
        for leg in self._legs.values():
            leg.channel.close()
        self._legs.clear()
        self._end(error or self._leaving or ChannelClosedError())

    def _end(self, error: ChannelError) -> None:
        if self.error is not None:
            return
        self.error = error
        if isinstance(error, ChannelLostError) and not (self._outage.is_suspended or isinstance(error, ResumeExpiredError)):
            self._tell(ChannelLost(tag=self.tag, cause=error.cause))
        self._trace("session", "down", tag=self.tag, key=self.peer_key.short, reason=str(error))
        for handle in (self._timer, self._flushing):
            if handle is not None:
                handle.cancel()
        for leg in self._legs.values():
            leg.channel.abort()
        self._legs.clear()
        self._undelivered = self._endpoint.unacknowledged_of()
        for stream_id, stream in self._streams.items():
            stream.on_lost(error, self._undelivered.get(stream_id, 0))
        self._streams.clear()
        self._endpoint.close()
        self._work.end()
        self._settle()
        self._quiet.set()
        self._heard.set()
        self.closed.set()

    # --- what streams need --------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Send what waits now, as far as the transport takes it."""
        now = self._loop.time()
        is_shared = len(self._mux) > 1
        for leg in tuple(self._legs.values()):
            leg.channel.is_shared = is_shared
            self._endpoint.limit_batches(leg.channel.batch_bytes)
            while leg.channel.is_writable and (batch := self._endpoint.data_to_send(leg.number, now)):
                leg.channel.write(batch)
        events = self._endpoint.events()
        for event in events:
            if self.error is not None:  # nothing begins on a session that has ended
                return
            self._handle(event)
        for event in events:  # only now: a reset may follow a FIN at once, and the stream must hear of both
            if isinstance(event, (Fin, Reset, Drained)):
                self._forget_if_over(event.stream_id)
        self._note_quiet()
        if self._pace is not ACTIVE and self.error is None and self._endpoint.pace(now) is ACTIVE:
            self._set_timer(now)

    def settle(self, stream_id: int) -> None:
        """Send what waits before the loop sleeps again, and forget the stream if it is over."""
        self._forget_if_over(stream_id)
        self._flush_soon()

    def _flush_soon(self) -> None:
        if self._flushing is None and self.error is None:
            self._flushing = self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = None
        with self._ending_on_faults():
            self.flush()

    @contextlib.contextmanager
    def _ending_on_faults(self) -> Generator[None]:
        """End the session if the block fails by a fault of ours: what it had begun is half done, and must not be resumed."""
        try:
            yield
        except Exception:
            self._end(ChannelLostError("a fault of this program; its log says more"))
            raise

    def feed_from(self, stream_id: int, source: Source) -> None:
        """Take the stream's bytes from `source` from now on."""
        self._mux.feed_from(stream_id, source)

    def source_ready(self, stream_id: int) -> None:
        """Take what the source has, now or when the stream's turn comes."""
        self._mux.source_ready(stream_id)
        self.flush()

    def consumed(self, stream_id: int, count: int) -> None:
        """Let the peer send as much again."""
        if self._mux.consumed(stream_id, count, self._loop.time()):
            self.settle(stream_id)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` as long as the session lives; its errors are traced."""
        return self._work.start(work)

    def _add(self, stream: SessionStream) -> None:
        self._streams[stream.stream_id] = stream

    def _forget_if_over(self, stream_id: int) -> None:
        if stream_id not in self._mux:
            self._streams.pop(stream_id, None)

    def _note_quiet(self) -> None:
        if self._streams or not self._endpoint.is_settled:
            self._quiet.clear()
            if self._is_closing and not self._streams and self._endpoint.request_ack():
                self._flush_soon()
        else:
            self._quiet.set()

    # --- what the channels tell ---------------------------------------------------------------------------------------

    def received(self, leg: Leg, data: memoryview) -> None:
        """Take bytes that a channel has authenticated."""
        is_carrier = leg.number == self._endpoint.carrier
        with self._ending_on_faults():
            try:
                self._endpoint.receive_data(leg.number, data, self._loop.time())
            except RemoteProtocolError as error:
                self._violated(error)
            else:
                self._heard.set()
                if self._outage.is_stalled and is_carrier:
                    self._flowing(0)
                if not is_carrier:  # it may be the first measurement of a better path
                    self._move()
                self.flush()

    def leg_ended(self, leg: Leg, error: ChannelError) -> None:
        """A channel is gone; a goodbye that the peer had announced is its doing, for the reason that it gave."""
        was_carrier = self._endpoint.carrier == leg.number
        has_goodbye = isinstance(error, ChannelClosedError)
        self._has_peer_left |= has_goodbye and self._is_peer_leaving
        self._legs.pop(leg.number, None)
        self._endpoint.detach(leg.number)
        if self._leaving and self._has_peer_left and self._endpoint.carrier not in self._legs:
            self._end(self._leaving)
        elif not was_carrier:
            self._joined(leg.number)
            self._trace("session", "channel_ended", tag=self.tag, reason=str(error))
            self._reconsider()
            self._check_carried(str(error))
            self._flush_soon()
        elif self._leaving and has_goodbye:
            self._end(self._leaving)
        elif self._can_wait() or self._endpoint.links:  # or the session is just moving, and the peer was faster
            self._suspend(error.cause if isinstance(error, ChannelLostError) else str(error))
        else:
            self._end(error)

    def _violated(self, violation: RemoteProtocolError) -> None:
        """Tell the peer what it did wrong, and go."""
        error = ChannelLostError(str(violation))
        error.__cause__ = violation
        self._go_away(GoAwayCode.PROTOCOL, violation.problem)
        self._leave(error)

    def _handle(self, event: EndpointEvent) -> None:
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
            case Waiting(stream_id, patience):
                if stream := self._streams.get(stream_id):
                    self._tell(ApprovalAwaited(tag=self.tag, service=stream.service, patience=patience))
                    stream.on_waiting(patience)
            case Capability(ticket):
                self._guard.show(ticket)
            case Reset(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.on_reset(event)
            case Open():
                self._offered(event)
            case GoAway(_, reason):
                self._leaving = self._leaving or ChannelClosedError(f"the peer: {reason}" if reason else "the peer")
                self._is_peer_leaving = True
                self._trace("session", "peer_goes", tag=self.tag, reason=reason)
            case HealthChanged(number, health):
                self._on_health(number, health)
            case Resumed(number, replayed_bytes):
                self._on_resumed(number, replayed_bytes)
            case Forgotten(number, reason) if self._is_carried_elsewhere(number):
                self._trace("session", "channel_of_a_stranger", tag=self.tag, reason=reason)
                self.withdraw(number)
            case Forgotten(_, reason):
                self._expire(f"{self.tag} does not know the session any more" + (f" ({reason})" if reason else ""))

    # --- from one channel to the next ---------------------------------------------------------------------------------

    def _can_wait(self) -> bool:
        """Tell whether the session outlives its channel: a caller without streams has nothing to wait for but a standby."""
        is_used = self._streams or self._endpoint.unacknowledged
        return self._resume_timeout > 0 and bool(not self._is_caller or is_used or self._standbys.has_any)

    def _check_carried(self, cause: str) -> None:
        """Hold what must always hold: a session that no channel of ours carries is suspended, or over."""
        if self.error is None and not self._outage.is_suspended and self._endpoint.carrier not in self._legs:
            if self._can_wait():
                self._suspend(cause)
            else:
                self._end(ChannelLostError(cause))

    def _reconsider(self) -> None:
        """Move to another channel if it is time to, and have one looked for where none that is up will do."""
        if not self._move() and not self._standbys.is_healthy(self._endpoint.heading) and self._can_wait():
            self._doubt()

    def _move(self) -> bool:
        now = self._loop.time()
        if not self._is_caller or self.error is not None or not self._standbys.move(now):
            return False
        self._trace("session", "moves", tag=self.tag, channel=self._endpoint.heading)
        self._set_timer(now)
        self._flush_soon()
        return True

    def _on_health(self, number: int, health: Health) -> None:
        self._trace("session", "path_health", tag=self.tag, channel=number, health=health.value)
        if number != self._endpoint.carrier:
            if health is Health.DEAD and number in self._legs:
                self.withdraw(number)
            if self.state != "stalled":  # the first sign of a peer that goes on again may come over any channel
                self._reconsider()
            return
        match health:
            case Health.UP:
                if number == self._endpoint.active:
                    self._settle()
                    if not self._outage.is_stalled:  # else it may be the kernel's word only; see `received`
                        self._flowing(0)
            case Health.SUSPECT:
                self._tell(PathSuspected(tag=self.tag))
                self._reconsider()
            case Health.STALLED:
                if self._outage.stall(self._loop.time()):
                    self._tell(SessionStalled(tag=self.tag))
            case Health.DEAD:
                self._on_dead()

    def _on_dead(self) -> None:
        cause = f"the path has been dead for {self._endpoint.silence(self._loop.time()):.1f} s"
        if self._can_wait():
            self._suspend(cause)
        else:
            self._end(ChannelLostError(cause))

    def _suspend(self, cause: str) -> None:
        """Wait for another channel; a dead one is still read, for it may come back first."""
        if self._outage.suspend(cause, self._loop.time()):
            self._trace("session", "suspended", tag=self.tag, reason=cause)
            self._tell(ChannelLost(tag=self.tag, cause=cause, patience=self._patience))
        if not self._move():
            self._doubt()

    def _on_resumed(self, number: int, replayed_bytes: int) -> None:
        """Go on over another channel, and close those that are of no more use: the caller does, the callee follows it."""
        leg = self._legs[number]
        self._joined(number)
        for other in self._standbys.spare() if self._is_caller else ():
            self._retire(other)
        self._replayed_bytes += replayed_bytes
        self._trace("session", "resumed", tag=self.tag, remote=format_address(leg.path.remote), replayed_bytes=replayed_bytes)
        if number != self._carried_by:  # else the peer came back from a channel that never came up
            old, self._path, self._carried_by = self._path, leg.path, number
            self._note_relay()
            self._resumes += 1
            self._tell(PathChanged(tag=self.tag, old=old, new=leg.path))
        self._settle()
        self._flowing(replayed_bytes)
        self._flush_soon()

    def _flowing(self, replayed_bytes: int) -> None:
        """Bytes flow again, if they did not."""
        if (gap := self._outage.end(self._loop.time())) is not None:
            self._tell(SessionResumed(tag=self.tag, gap=gap, replayed_bytes=replayed_bytes))

    def _tell(self, event: PeerEvent) -> None:
        self._on_event(msgspec.structs.replace(event, session=self._number))

    @property
    def _patience(self) -> float:
        """For how many seconds another channel is waited for; little without streams, and where one side is about to go."""
        is_used = self._streams or self._endpoint.unacknowledged
        return self._resume_timeout if is_used and not self._leaving else min(self._resume_timeout, RESUME_LINGER)

    def _check_patience(self, now: float) -> None:
        if self._outage.is_reminder_due(now):
            self._tell(PathSuspected(tag=self.tag))
        suspended_for = self._outage.suspended_for(now)
        if suspended_for is not None and suspended_for >= self._patience:
            self._expire(self._outage.cause)

    def _is_carried_elsewhere(self, number: int) -> bool:
        """Tell whether a channel other than this one is up and carries the session: then the peer cannot have forgotten it."""
        active = self._endpoint.active
        return active not in (None, number) and self._standbys.is_healthy(active)

    def _expire(self, cause: str) -> None:
        gap, unacknowledged = self.suspended_for or 0.0, self._endpoint.unacknowledged
        self._tell(SessionExpired(tag=self.tag, gap=gap, unacknowledged_bytes=unacknowledged, cause=cause))
        self._end(ResumeExpiredError(cause, gap, unacknowledged))

    # --- streams that the peer opens ----------------------------------------------------------------------------------

    def _offered(self, frame: Open) -> None:
        try:
            refusal = self._guard.refusal(frame.service, self._loop.time())
        except RemoteProtocolError as violation:
            self._violated(violation)
            return
        if refusal is not None:
            self._turn_away(frame, *refusal)
        elif self._on_open is None:
            self._turn_away(frame, ResetCode.NOT_YOURS)
        elif len(self._work) >= _TASKS_MAX:
            self._turn_away(frame, ResetCode.BUSY, "too many streams are being served")
        else:
            stream = SessionStream(self, self._mux, frame.stream_id, frame.service, is_ours=False)
            self._add(stream)
            self._work.start(answer(self._on_open, OpenRequest(self, stream)))

    def _turn_away(self, frame: Open, code: ResetCode, reason: str = "") -> None:
        self._trace("session", "stream_denied", tag=self.tag, service=frame.service, code=code.name, reason=reason)
        self._mux.reset(frame.stream_id, code, reason)
        self.settle(frame.stream_id)

    # --- time -----------------------------------------------------------------------------------------------------------

    def _set_timer(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._pace = self._endpoint.pace(now)
        tick = min(ACCESS_TICK, SESSION_TICK) if self._guard.has_access and self._streams else SESSION_TICK
        self._due = min(self._endpoint.next_deadline(now), now + tick)
        self._timer = self._loop.call_at(self._due, self._on_timer)

    def _on_timer(self) -> None:
        with self._ending_on_faults():
            self._look_around()

    def _look_around(self) -> None:
        now = self._loop.time()
        if now - self._due > STARVED:  # what came meanwhile has not been read: it speaks for the peer
            self._endpoint.forgive(now - self._due)
            self._trace("session", "loop_starved", tag=self.tag, seconds=now - self._due)
        self._endpoint.handle_timer(now, self._seconds_without_ack)
        self._check_doubt()
        self.flush()
        self._reconsider()
        if self._is_caller and self._pace is DORMANT:  # without a stream a few seconds' gap hurts nobody
            for number in self._standbys.relayed():
                self._retire(number)
        self._check_patience(now)
        self._check_access()
        if self.error is None:
            self._set_timer(now)

    def _seconds_without_ack(self, number: int) -> float | None:
        """Ask the kernel whether the other end acknowledges; over the relay that is the relay, and no word of the peer's."""
        leg = self._legs.get(number)
        return None if leg is None or leg.path.kind == "relay" else leg.channel.seconds_without_ack

    def _check_doubt(self) -> None:
        """The network has changed, and the path has answered since: nothing else is wanted."""
        leg = self._active
        if leg is not None and self.in_doubt.is_set() and not self._outage.is_suspended:
            link = self._endpoint.link(leg.number)
            if link.health is Health.UP and link.round_trips > self._doubted_trips:
                self._settle()

    def _check_access(self) -> None:
        """End the session of a peer that is no longer admitted, or pinned, and the streams of grants that hold no more."""
        if self.error is not None:
            return
        is_admitted, revoked = self._guard.judge(self._streams.values())
        if not is_admitted:
            self._go_away(GoAwayCode.REVOKED, "access was revoked")
            self._leave()
            return
        for stream in revoked:
            self._trace("session", "stream_revoked", tag=self.tag, service=stream.service)
            stream.refuse(ResetCode.NOT_YOURS, "access was revoked")
        if self.error is None and not self._guard.knows_peer():
            self._go_away(GoAwayCode.CLOSED, "the peer was removed")
            self._leave()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
