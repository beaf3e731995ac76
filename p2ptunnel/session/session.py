"""How a session begins: preamble, TLS, HELLO and ACCEPT over a pipe.  Rule: what does not come up leaves nothing open."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Final, TypeAlias

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import GIVE_UP_GRACE, HANDSHAKE_TIMEOUT, TAKE_OVER_PATIENCE
from p2ptunnel.errors import AuthenticationError, ChannelClosedError, ChannelLostError
from p2ptunnel.identity.acl import Access
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.tls import callee_context, caller_context
from p2ptunnel.net.threads import in_thread
from p2ptunnel.protocol.mux import Mux
from p2ptunnel.protocol.resume import Endpoint
from p2ptunnel.session.channel import Channel
from p2ptunnel.session.greeting import Selector, greet, selected, welcome
from p2ptunnel.session.live import Session, SessionOptions
from p2ptunnel.session.request import FirstStream, OnOpen, OpenRequest
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Tag
from p2ptunnel.wire.frames import GoAway, GoAwayCode, encode

__all__ = [
    "Beginning",
    "FindSession",
    "FirstStream",
    "OnOpen",
    "OpenRequest",
    "Rejoined",
    "Session",
    "SessionOptions",
    "accept_session",
    "add_channel",
    "connect_session",
    "fresh_channel",
    "resume_session",
]

FindSession: TypeAlias = Callable[[PublicKey, bytes], Session | None]
"""Finds the living session with a peer by its id."""


_TURN: Final = 3.0  # seconds, of the five that each of several channels has


class Beginning:
    """Of several channels that come up beside each other to one peer, the first begins the session, and the others join it.

    Args:
        first: The stream that it is begun for; None: for none.
        tickets: Shown to the peer before that, raw.

    Attributes:
        session: Once there is one.
        first: As it was given.
    """

    def __init__(self, first: FirstStream | None = None, tickets: Iterable[bytes] = ()) -> None:
        self.session: Session | None = None
        self.first: Final = first
        self._tickets: Final = tuple(tickets)
        self.turn: Final = asyncio.Lock()
        """Of saying HELLO for a session that does not exist yet: two at one time would make two sessions."""

    def abort(self, reason: str = "") -> None:
        """End nothing: that one way is not wanted any more is no reason to end what another one may have begun."""

    def ask(self, mux: Mux, now: float) -> FirstStream | None:
        """Have the mux of the session ask for the first stream, if that is to go behind HELLO; return it.

        Where there are tickets it waits for them, and they for ACCEPT: whoever has stolen the peer's TLS key could read them
        before.
        """
        if self.first is None or self._tickets:
            return None
        self.first.ask(mux, now)
        return self.first

    def go_on(self, session: Session) -> None:
        """Show and ask for what has waited for ACCEPT."""
        for ticket in self._tickets:
            session.show(ticket)
        if self.first is not None and self.first.stream is None:
            session.begin(self.first)


@contextlib.asynccontextmanager
async def _answered_in(seconds: float | None) -> AsyncGenerator[None]:
    """Limit the time for which a peer may leave HELLO unanswered; None: its time is that of the whole handshake."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError as error:
        if limit.expired():
            raise ChannelLostError(f"HELLO was not answered in {seconds:g} s") from error
        raise


async def connect_session(
    pipe: Pipe,
    *,
    identity: Identity,
    tag: Tag,
    peer_key: PublicKey,
    selector: Selector,
    beginning: Beginning | None = None,
    options: SessionOptions | None = None,
    tracer: Tracer | None = None,
) -> Session:
    """Open a session as the caller: preamble, TLS, HELLO, ACCEPT, in at most 5 s; or join the one that has begun beside us.

    What the session is begun for follows HELLO at once: TLS has been finished with the peer's key, and it judges when it knows
    ours.

    The pipe is spent, whatever happens.

    Args:
        pipe: To whoever claims to be the peer.
        identity: Ours.
        tag: The peer's name, for errors.
        peer_key: The only key that is accepted.
        selector: 16 bytes: the conkey, or the attempt's own.
        beginning: Shared with the other channels of the attempt; None: there are none.
        options: What to do when the channel is lost; None: end with it.
        tracer: Told what happens.

    Raises:
        PeerKeyChangedError: The other side did not prove `peer_key`; no byte of ours has left.
        PeerRefusedError: The peer does not admit our key.
        AuthenticationError: The peer's key is our own, or another protocol is spoken inside TLS.
        ChannelClosedError: The pipe is of the relay, and another one has begun the session.
        ChannelLostError: The connection broke, or took too long.
        RemoteProtocolError: The peer broke the protocol.
        OSError: The pipe was broken before.
    """
    beginning, options = beginning or Beginning(), options or SessionOptions()
    async with fresh_channel(pipe, _pinned(identity, peer_key), callee=False) as channel:
        began = asyncio.get_running_loop().time()
        conkey = await selected(channel, tag, peer_key, pipe.path, selector)
        took = asyncio.get_running_loop().time() - began
        if tracer is not None:
            tracer("session", "handshake_done", tag=tag, path=pipe.path.kind, seconds=round(took, 3))
        async with beginning.turn:
            if beginning.session is None:
                endpoint, first, behind = _begun(beginning, options)
                try:
                    async with _answered_in(_TURN):  # a way that goes silent must not keep a good one from beginning
                        granted = await greet(channel, identity, tag, peer_key, conkey, behind=behind)
                except BaseException:
                    await _say_goodbye(channel, endpoint)
                    raise
                beginning.session = Session(
                    channel,
                    session_id=conkey,
                    is_caller=True,
                    tag=tag,
                    peer_key=peer_key,
                    path=pipe.path,
                    granted=granted,
                    options=options,
                    tracer=tracer,
                    endpoint=endpoint,
                    first=first,
                )
                beginning.go_on(beginning.session)
                return beginning.session
        if pipe.path.kind == "relay":  # nobody waits for that any more
            channel.abort()
            raise ChannelClosedError("us: another way was faster")
        await _add(beginning.session, channel, pipe, identity, conkey, took)
        return beginning.session


def _begun(beginning: Beginning, options: SessionOptions) -> tuple[Endpoint, FirstStream | None, bytes]:
    """Return our end of a session that is about to begin, what was asked for in it, and what to send behind HELLO."""
    now = asyncio.get_running_loop().time()
    endpoint = options.endpoint(is_caller=True, now=now)
    number = endpoint.begin(now)
    first = beginning.ask(endpoint.mux, now)
    return endpoint, first, bytes(endpoint.data_to_send(number, now))


async def _say_goodbye(channel: Channel, endpoint: Endpoint) -> None:
    """Tell the peer that nobody will go on with what it may have begun to do for us, and wait a moment for its answer."""
    endpoint.mux.go_away(GoAwayCode.CLOSED, "given up")
    if endpoint.active is not None:
        channel.write(endpoint.data_to_send(endpoint.active, asyncio.get_running_loop().time()))
    channel.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(GIVE_UP_GRACE):
            await channel.gone.wait()


async def _add(session: Session, channel: Channel, pipe: Pipe, identity: Identity, selector: bytes, took: float) -> int:
    """Greet for a session that has begun, and leave the channel to it, whose handshake took so long; return its number there.

    The first that needs no relay takes over, and asks for that behind HELLO.
    """
    if session.takes_over(pipe.path, took):
        try:
            return await _go_over(session, channel, pipe, identity, selector, patience=max(TAKE_OVER_PATIENCE, 2 * took))
        except BaseException:
            session.has_not_taken_over()
            raise
    await greet(channel, identity, session.tag, session.peer_key, selector, session=session.session_id)
    return session.stand_by(channel, pipe.path)


async def _go_over(
    session: Session, channel: Channel, pipe: Pipe, identity: Identity, selector: bytes, *, patience: float | None = None
) -> int:
    """Greet, and ask the peer to go on over this channel; return its number.

    The peer moves when it is asked: where its answer does not come in `patience` seconds, it is asked back.
    """
    try:
        number, behind = await session.join()  # only now: whoever joins keeps the others waiting
    except ChannelClosedError:  # the session ended meanwhile
        channel.abort()
        raise
    try:
        async with _answered_in(patience):
            await greet(channel, identity, session.tag, session.peer_key, selector, session=session.session_id, behind=behind)
        session.adopt(channel, pipe.path, number)
    except BaseException:
        session.withdraw(number)
        raise
    return number


async def resume_session(session: Session, pipe: Pipe, *, identity: Identity, selector: Selector) -> Rejoined:
    """Bring up another channel for a session that we called, and ask the peer to go on over it; in at most 5 s.

    The pipe is spent, whatever happens.  The session moves when the peer answers; until then it stays where it is.

    Args:
        session: Not ended.
        pipe: To whoever claims to be the peer.
        identity: Ours.
        selector: 16 bytes: the conkey of this attempt.

    Raises:
        P2PTunnelError: As `connect_session`.
        OSError: The pipe was broken before.
    """
    async with fresh_channel(pipe, _pinned(identity, session.peer_key), callee=False) as channel:
        conkey = await selected(channel, session.tag, session.peer_key, pipe.path, selector)
        return Rejoined(session, await _go_over(session, channel, pipe, identity, conkey))


async def add_channel(session: Session, pipe: Pipe, *, identity: Identity, selector: Selector) -> Rejoined:
    """Bring up another channel for a session that we called, which stays where it is until that is better; in at most 5 s.

    The pipe is spent, whatever happens.

    Args:
        session: Not ended.
        pipe: To whoever claims to be the peer; its path decides with which channels this one competes.
        identity: Ours.
        selector: 16 bytes: the conkey of this attempt.

    Raises:
        P2PTunnelError: As `connect_session`.
        LocalProtocolError: We are the callee of this session.
        OSError: The pipe was broken before.
    """
    async with fresh_channel(pipe, _pinned(identity, session.peer_key), callee=False) as channel:
        began = asyncio.get_running_loop().time()
        conkey = await selected(channel, session.tag, session.peer_key, pipe.path, selector)
        took = asyncio.get_running_loop().time() - began
        return Rejoined(session, await _add(session, channel, pipe, identity, conkey, took))


class Rejoined:
    """A channel that came up for a session.

    Attributes:
        session: It.
    """

    def __init__(self, session: Session, number: int) -> None:
        self.session: Final = session
        self._number = number

    def abort(self, reason: str = "") -> None:
        """Close the channel at once, unless the session runs over it by now, which then is no longer ours to end."""
        if not self.session.is_carried_by(self._number):
            self.session.withdraw(self._number)


def _pinned(identity: Identity, peer_key: PublicKey) -> Callable[[], ssl.SSLContext]:
    def context() -> ssl.SSLContext:
        if peer_key == identity.public:
            raise AuthenticationError("the peer's key is this machine's own")
        return caller_context(identity, peer_key)

    return context


async def accept_session(
    pipe: Pipe,
    *,
    identity: Identity,
    access: Access,
    selector: bytes,
    on_open: OnOpen,
    key: PublicKey | None = None,
    find: FindSession = lambda key, session_id: None,
    options: SessionOptions | None = None,
    early: bytes = b"",
    tracer: Tracer | None = None,
) -> Session:
    """Open a session as the callee, on a pipe whose preamble has been read, or go on with one; in at most 5 s.

    The pipe is spent, whatever happens.

    Args:
        pipe: From whoever knew the selector.
        identity: Ours.
        access: Who may connect, and open what; asked anew for each stream.
        selector: 16 bytes, as the preamble had it and the caller must repeat it inside TLS.
        on_open: Called in a task of the session for each stream that the peer may open.
        key: Of those that `access` admits, the only one that may come; None: each of them.
        find: Finds the session that a caller wants to go on with.
        options: What to do when the channel is lost; None: end with it.
        early: Bytes read beyond the preamble.
        tracer: Told what happens.

    Raises:
        AuthenticationError: The caller proved no key that is admitted, or did not take ours.
        ChannelClosedError: The caller wants to go on with a session that has ended; it has been told.
        ChannelLostError: The connection broke, or took too long.
        RemoteProtocolError: The caller broke the protocol.
        StoreError: Who is admitted cannot be read.
        OSError: The pipe was broken before.
    """

    def context() -> ssl.SSLContext:
        return callee_context(identity, tuple(admitted for admitted in access.admitted() if key in {None, admitted}))

    async with fresh_channel(pipe, context, callee=True, early=early) as channel:
        peer_key, session_id = await welcome(channel, identity, access, selector)
        if session_id != selector:
            return _go_on(find(peer_key, session_id), channel, pipe)
        tag = access.name_of(peer_key)
        return Session(
            channel,
            session_id=session_id,
            is_caller=False,
            tag=tag,
            peer_key=peer_key,
            path=pipe.path,
            access=access,
            on_open=on_open,
            options=options,
            tracer=tracer,
        )


def _go_on(session: Session | None, channel: Channel, pipe: Pipe) -> Session:
    """Give the channel to the session that it is for."""
    if session is None:
        channel.write(encode(GoAway(GoAwayCode.EXPIRED)))
        channel.close()
        raise ChannelClosedError("us: the session that the caller wants to go on with has ended")
    session.adopt(channel, pipe.path)
    return session


@contextlib.asynccontextmanager
async def fresh_channel(
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
    except ChannelClosedError:  # by us, in order
        raise
    except BaseException as error:
        if channel is None:
            pipe.abort()
        else:
            channel.abort()  # an alert that says why has been sent by then
        if isinstance(error, TimeoutError) and deadline.expired():
            raise ChannelLostError(f"the channel was not up in {HANDSHAKE_TIMEOUT:g} s") from error
        raise
