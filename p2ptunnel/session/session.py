"""How a session begins: preamble, TLS, HELLO and ACCEPT over a pipe.  Rule: what does not come up leaves nothing open."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Callable

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import HANDSHAKE_TIMEOUT
from p2ptunnel.errors import AuthenticationError, ChannelLostError
from p2ptunnel.identity.acl import Access
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.tls import callee_context, caller_context
from p2ptunnel.net.threads import in_thread
from p2ptunnel.session.channel import Channel
from p2ptunnel.session.greeting import greet, welcome
from p2ptunnel.session.live import OnOpen, OpenRequest, Session
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Tag

__all__ = ["OnOpen", "OpenRequest", "Session", "accept_session", "connect_session"]


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
            channel.abort()  # an alert that says why has been sent by then
        if isinstance(error, TimeoutError) and deadline.expired():
            raise ChannelLostError(f"the channel was not up in {HANDSHAKE_TIMEOUT:g} s") from error
        raise
