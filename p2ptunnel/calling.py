"""The way out: calls to peers, and the sessions that come of them.

Rule: an attempt that fails, or that nobody waits for any more, leaves neither a port nor a session behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import GIVE_UP_GRACE, RELAY_HEAD_START
from p2ptunnel.errors import (
    ConfigError,
    NoPathError,
    P2PTunnelError,
    PeerOfflineError,
    PeerRefusedError,
    PunchTimeoutError,
)
from p2ptunnel.events import Events, PathChanged
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.identity.store import PinnedPeer
from p2ptunnel.identity.tls import caller_context
from p2ptunnel.net.threads import in_thread
from p2ptunnel.protocol.intent import CallSigner
from p2ptunnel.session.greeting import Selector
from p2ptunnel.session.session import (
    Beginning,
    FirstStream,
    Rejoined,
    Session,
    SessionOptions,
    add_channel,
    connect_session,
    resume_session,
)
from p2ptunnel.started import Started
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.call import Abortable, Call, Conkey, Establish
from p2ptunnel.traversal.lan import LanCall, beside
from p2ptunnel.traversal.port import PunchPort
from p2ptunnel.traversal.race import Keep, Race
from p2ptunnel.traversal.relayed import RelayedCall
from p2ptunnel.traversal.servers import Servers
from p2ptunnel.traversal.tries import Tries, Trying
from p2ptunnel.types import RelayUse, ServerSpec, Tag
from p2ptunnel.wire.frames import conkey_to_selector

__all__ = ["Calling", "within"]

A = TypeVar("A", bound=Abortable)
T = TypeVar("T")


class Calling:
    """Reaches peers for one that is started: those in our own network, and with a server's help all others.

    Args:
        up: Keeps the sessions.
        servers: Those that are asked.
        own_name: What we call ourselves to others.
        options: Of the sessions.
        tracer: Gets what happens.

    Attributes:
        tried: By peer what the last attempt has tried.
    """

    def __init__(self, up: Started, servers: Servers, *, own_name: Tag, options: SessionOptions, tracer: Tracer) -> None:
        self.own_name: Final = own_name
        self.tried: Final[dict[PublicKey, Tries]] = {}
        self._up: Final = up
        self._servers: Final = servers
        self._options: Final = options
        self._trace: Final = tracer

    async def dial(self, pinned: PinnedPeer, relay: RelayUse, first: FirstStream | None = None) -> Session:
        """Return a session that is fresh; all who ask at one time share it, and it is begun for the `first` of one of them.

        Raises:
            P2PTunnelError: As `Peer.connect`, until there is a connection.
        """
        key = (pinned.wanted, pinned.key, relay == "never")
        return await self._up.dialing.join(key, lambda: self._dial(pinned, relay, first))

    async def _dial(self, pinned: PinnedPeer, relay: RelayUse, first: FirstStream | None) -> Session:
        up, beginning = self._up, Beginning(first, (ticket.raw for ticket in pinned.tickets))

        async def establish(pipe: Pipe, conkey: Conkey, _: PublicKey | None) -> Beginning:
            selector = _later(conkey, pinned.tag)
            await connect_session(
                pipe,
                identity=up.identity,
                tag=pinned.tag,
                peer_key=pinned.key,
                selector=selector,
                beginning=beginning,
                options=self._options,
                tracer=self._trace,
            )
            return beginning

        def keep(_: Beginning, calling: asyncio.Task[Any]) -> None:
            assert beginning.session is not None  # that came up over the relay
            beginning.session.attend(calling)

        try:
            await self._call_known(pinned, establish, relay, keep)
        except BaseException:
            if beginning.session is not None:  # it came up in the very turn in which nobody wanted it any more
                await _give_up(beginning.session)
            raise
        session = beginning.session
        assert session is not None  # one of the ways has begun it
        up.keep_called(session, is_direct=relay == "never")
        session.keep_up(
            lambda: self.redial(session, relay),
            is_known=lambda: up.store.by_key(pinned.key) is not None,
            improve=(lambda: self.redial(session, "never")) if relay == "auto" else None,
        )
        return session

    async def redial(self, session: Session, relay: RelayUse) -> None:
        """Bring up another channel for a session: one to go on over if it has lost its own, else one to choose.

        Raises:
            P2PTunnelError: As `Peer.connect`, until there is a connection.
        """
        up = self._up

        async def establish(pipe: Pipe, conkey: Conkey, _: PublicKey | None) -> Rejoined:
            bring_up = resume_session if session.in_doubt.is_set() else add_channel
            return await bring_up(session, pipe, identity=up.identity, selector=_later(conkey, session.tag))

        def keep(rejoined: Rejoined, calling: asyncio.Task[Any]) -> None:
            rejoined.session.attend(calling)

        pinned = up.store.by_key(session.peer_key)  # by its name of today
        await self._call_known(pinned or PinnedPeer(session.tag, session.peer_key), establish, relay, keep)

    async def probe(self, pinned: PinnedPeer, relay: RelayUse, moved: Events, *, timeout: float) -> None:
        """Try every way to a peer; wait until none is tried any more, and the session is on the best that came up.

        Args:
            pinned: The peer.
            relay: Whether the session may use the relay.
            moved: Tells when it is on another path; begun before.
            timeout: Seconds for all of it.

        Raises:
            ConfigError: No server is given, nor a network to search; all else that it may come to is noted in `tried`.
        """
        session = self._up.session(pinned, is_direct=relay == "never")

        async def attempt() -> None:
            if session is None:
                reached = await self.dial(pinned, relay)
            else:
                reached = session
                await self.redial(session, "always" if relay == "always" else "never")
            tries = self.tried[pinned.key]
            await tries.wait_idle()
            if tries.has_direct and reached.path.kind == "relay":
                await moved.wait_for(lambda event: isinstance(event, PathChanged) and event.tag == reached.tag)

        try:
            await within(timeout, pinned.tag, attempt())
        except ConfigError:
            raise
        except P2PTunnelError as error:
            self.tried[pinned.key].error = error

    async def call(
        self,
        tag: Tag,
        establish: Establish[A],
        signer: CallSigner | None,
        *,
        relay: RelayUse,
        keep: Keep[A] | None = None,
        servers: Servers | None = None,
        tries: Tries | None = None,
    ) -> A:
        """Call whoever is registered under a tag; return what comes of it.

        Args:
            tag: Under which the server knows it.
            establish: Makes of a pipe what is wanted; the first that it makes counts.
            signer: Signs this one call; None: for a program of the founding protocol.
            relay: Whether it may go over the relay.
            keep: As `Race` has it.
            servers: Those to ask; None: ours.
            tries: Noted in there what is tried.

        Raises:
            P2PTunnelError: As `Peer.connect`, until there is a connection.
        """
        tries = tries or Tries()
        reserving = asyncio.create_task(in_thread(self._up.counter.reserve))  # beside all else: a disk may be slow

        async def at(server: ServerSpec) -> A:
            with tries.begin("server", "t=5, UDP and TCP", remote=server.address) as looking:
                port = await self._up.fresh_port(server)
                _note_answer(looking, port.heard_over)
            try:
                await asyncio.shield(reserving)
            except BaseException:
                port.close()
                raise
            return await self._attempt(port, tag, establish, signer, relay, keep, tries)

        try:
            return await (servers or self._servers).first(at)
        finally:
            if not reserving.done():  # else what came up would be lost to whoever cancels us in the turn that is waited
                reserving.cancel()
                await asyncio.gather(reserving, return_exceptions=True)

    async def _call_known(self, pinned: PinnedPeer, establish: Establish[A], relay: RelayUse, keep: Keep[A]) -> A:
        """Call with a server's help, and beside it in our own network: what comes up first counts; note what is tried."""
        tries = self.tried[pinned.key] = Tries()
        lan, call = self._up.lan, partial(self._call_by_name, pinned, establish, relay, keep, tries)
        try:
            if lan is None or (lan.trouble and self._servers.specs):
                return await call()
            near = LanCall(lan, pinned.key, pinned.tag, establish, tries=tries, tracer=self._trace)
            return await (beside(call(), near.run()) if self._servers.specs else near.run())
        except P2PTunnelError as error:
            tries.error = error
            raise

    async def _call_by_name(
        self, pinned: PinnedPeer, establish: Establish[A], relay: RelayUse, keep: Keep[A], tries: Tries
    ) -> A:
        """Call a peer by the tag under which the server knows it; errors name it as it is called here."""
        try:
            return await self.call(pinned.wanted, establish, self._up.signer(pinned.key), relay=relay, keep=keep, tries=tries)
        except (PeerOfflineError, PeerRefusedError, NoPathError, PunchTimeoutError) as error:
            if pinned.wanted == pinned.tag:
                raise
            raise _by_name_here(error, pinned) from error

    async def open_spare(self) -> PunchPort:
        """Open a port at the server that is asked first, and a connection to its relay beside."""
        return await self._up.open_port(await self._servers.numeric(self._servers.specs[0]))

    async def _attempt(
        self,
        port: PunchPort,
        tag: Tag,
        establish: Establish[A],
        signer: CallSigner | None,
        relay: RelayUse,
        keep: Keep[A] | None,
        tries: Tries,
    ) -> A:
        """Make one attempt from a fresh port, which it closes."""
        preparing: list[asyncio.Task[object]] = []

        def prepare() -> None:
            if signer is not None and signer.callee is not None:  # some milliseconds that no handshake has to wait
                preparing.append(asyncio.create_task(in_thread(caller_context, self._up.identity, signer.callee)))

        try:
            self._up.require_open()
            call = partial(
                Call[A],
                tag=self.own_name,
                wanted=tag,
                establish=establish,
                birthdays=self._up.birthdays,
                rounds=self._up.rounds,
                open_other=lambda: self._up.fresh_port(port.spec),
                meanwhile=prepare,
                tries=tries,
                tracer=self._trace,
            )
            if signer is None or relay == "never":
                return await call(port, signer=signer).run()
            head_start = 0.0 if relay == "always" else RELAY_HEAD_START
            join = self._up.joining.at(port, "caller")
            relayed = RelayedCall(join, establish, callee=signer.callee, head_start=head_start, tries=tries, tracer=self._trace)
            calling = call(port, signer=signer, companion=relayed, is_punching=relay != "always")
            return await Race(calling, relayed, keep).run()
        except BaseException:
            port.close()  # it may not have come to the call, whose it is
            raise
        finally:
            await asyncio.gather(*preparing, return_exceptions=True)  # done long ago, but for a call that ended at once


async def _give_up(session: Session) -> None:
    """End a session that nobody wants, and wait a moment until the peer knows."""
    with suppress(TimeoutError):
        async with asyncio.timeout(GIVE_UP_GRACE):
            await session.close(grace=0)


async def within(timeout: float | None, tag: Tag, work: Coroutine[Any, Any, T], deadline: asyncio.Timeout | None = None) -> T:
    """Await `work` for at most `timeout` seconds, or until its `deadline`; only this end becomes a PunchTimeoutError.

    Args:
        timeout: Seconds, which are the end unless a `deadline` is; None: there is none.
        tag: The peer's, for the error.
        work: What is to be done.
        deadline: Not entered yet; who has it may put it off.

    Raises:
        PunchTimeoutError: Not in `timeout`.
    """
    deadline = deadline or asyncio.timeout(timeout)
    try:
        async with deadline:
            return await work
    except TimeoutError as error:
        if timeout is not None and deadline.expired() and type(error) is TimeoutError:
            raise PunchTimeoutError(tag, timeout) from None
        raise


def _note_answer(looking: Trying, over: tuple[str, ...]) -> None:
    """End the entry of the question how we look by what has answered."""
    alone = f", {over[0]} alone" if len(over) == 1 else ""
    if over:
        looking.end("answered", f"how this machine looks from outside{alone}")
    else:
        looking.end("silent", "no answer over either")


def _by_name_here(
    error: PeerOfflineError | PeerRefusedError | NoPathError | PunchTimeoutError, pinned: PinnedPeer
) -> P2PTunnelError:
    """Return the error of a call with the peer's name here; where its tag matters, with that as well."""
    match error:
        case PeerOfflineError():
            return PeerOfflineError(pinned.wanted, error.server, pinned.tag)
        case PeerRefusedError():
            return PeerRefusedError(pinned.tag)
        case NoPathError():
            return NoPathError(pinned.tag, error.attempts)
        case PunchTimeoutError():
            return PunchTimeoutError(pinned.tag, error.timeout)


def _later(conkey: Conkey, source: str) -> Selector:
    """Return the selector, or what waits for it, where the attempt has no name yet."""
    if isinstance(conkey, str):
        return conkey_to_selector(conkey, source)

    async def known() -> bytes:
        return conkey_to_selector(await asyncio.shield(conkey), source)

    return known
