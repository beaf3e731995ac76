"""A peer: composes identity, traversal, sessions and tunnels; decides nothing itself.

async with Peer("laptop", rendezvous="rv.example:7000") as peer:
    stream = await peer.connect("home-nas", "web")
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import msgspec
from typeguard import typechecked

from p2ptunnel.abc import Opening, Pipe, Stream
from p2ptunnel.defaults import CONNECT_TIMEOUT, RENDEZVOUS_PORT
from p2ptunnel.errors import (
    ChannelError,
    ConfigError,
    LocalProtocolError,
    PunchTimeoutError,
    RemoteProtocolError,
    RendezvousTimeoutError,
    UnknownPeerError,
)
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.registration import KeyCredentials
from p2ptunnel.identity.store import PeerStore, PinnedPeer, Profile
from p2ptunnel.net.interfaces import resolve
from p2ptunnel.net.threads import in_thread
from p2ptunnel.serving import Allow, ServiceTable, Serving
from p2ptunnel.session.session import Session, accept_session, connect_session
from p2ptunnel.ssh.client import SSH, open_ssh
from p2ptunnel.ssh.hostkeys import fetch_host_keys
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.raw import RawStream
from p2ptunnel.traversal.answer import AnsweringPort
from p2ptunnel.traversal.call import Abortable, Call
from p2ptunnel.traversal.netcheck import NetReport, netcheck
from p2ptunnel.traversal.port import OpenerTtl, PunchPort
from p2ptunnel.tunnels.local import Forward, open_forward
from p2ptunnel.tunnels.spec import ServeSpec, Target
from p2ptunnel.types import Address, Path, Tag, parse_address, parse_tag

__all__ = ["Peer", "PeerStatus", "Snapshot"]

T = TypeVar("T")
A = TypeVar("A", bound=Abortable)
K = TypeVar("K")
V = TypeVar("V")
_SELECTOR_BYTES: Final = 16


class PeerStatus(msgspec.Struct, frozen=True):
    """A pinned peer, and the session with it if there is one."""

    tag: Tag
    key: str
    services: tuple[str, ...]
    path: Path | None = None
    rtt: float | None = None
    streams: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """How a peer stands now; every field is a plain value."""

    tag: Tag | None
    key: str
    rendezvous: tuple[str, ...]
    observed: Address | None
    serving: tuple[str, ...]
    peers: tuple[PeerStatus, ...]


class Peer:
    """This machine among its peers.

    Nothing is read or sent before `start` (or `async with`).  It registers with the server only while it serves; a peer that
    only calls is known to nobody.

    Args:
        tag: Our name; needed to serve.
        rendezvous: The server's `host:port` (port 7000 if left out), or several, of which the first that answers is used.
        profile: Where key and pinned peers are kept: a directory, or None for the user's own.
        allow_unauthenticated: Also reach, and be reached by, programs that speak the founding protocol only, by `connect_raw`
            and `listen_raw`; nothing else changes.
        tracer: Gets the events of every layer.

    Raises:
        InvalidTagError: The tag is none.
        InvalidAddressError: A server's address is none.
    """

    @typechecked
    def __init__(
        self,
        tag: str | None = None,
        *,
        rendezvous: str | Sequence[str] | None = None,
        profile: Profile | str | os.PathLike[str] | None = None,
        allow_unauthenticated: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        self.tag = None if tag is None else parse_tag(tag)
        servers = [rendezvous] if isinstance(rendezvous, str) else rendezvous or ()
        self._rendezvous = tuple(parse_address(server, default_port=RENDEZVOUS_PORT) for server in servers)
        self.profile: Final = profile if isinstance(profile, Profile) else Profile(profile)
        self._allow_unauthenticated = allow_unauthenticated
        self._trace = tracer or Tracer()
        self._ttl = OpenerTtl()
        self._started: _Started | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read identity and pinned peers; the first start on a machine makes the identity.  Starting twice is fine.

        Raises:
            InsecureKeyFileError: Others could read or replace the key; the hint says what to do.
            StoreError: A file of the profile cannot be read.
        """
        if self._started is None:
            identity = await in_thread(self.profile.identity)
            store = self.profile.peers()
            await in_thread(store.all)
            self._started = _Started(identity, store, ServiceTable(store, self._trace))

    async def close(self) -> None:
        """Leave the server, close tunnels, sessions and sockets; waits at most about two seconds.  Closing twice is fine."""
        started, self._started = self._started, None
        if started is not None:
            await started.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- who we are ---------------------------------------------------------------------------------------------------

    @property
    def key(self) -> PublicKey:
        """Our public key: what other machines pin.

        Raises:
            LocalProtocolError: The peer has not been started.
        """
        return self._up.identity.public

    @property
    def peers(self) -> PeerStore:
        """The pinned peers.

        Raises:
            LocalProtocolError: The peer has not been started.
        """
        return self._up.store

    @property
    def local_address(self) -> Address | None:
        """The UDP address that the server sees while we serve, else None."""
        answering = self._started.answering if self._started else None
        return answering.observed if answering else None

    def snapshot(self) -> Snapshot:
        """Return how we stand now; reads the peers file, asks nobody."""
        up = self._up
        peers: list[PeerStatus] = []
        for pinned in up.store.all():
            session = up.session(pinned.tag)
            status = PeerStatus(pinned.tag, str(pinned.key), pinned.services)
            if session is not None:
                status = PeerStatus(pinned.tag, str(pinned.key), pinned.services, session.path, session.rtt, session.streams)
            peers.append(status)
        rendezvous = tuple(f"{host}:{port}" for host, port in self._rendezvous)
        return Snapshot(self.tag, str(self.key), rendezvous, self.local_address, up.table.names, tuple(peers))

    # --- streams ------------------------------------------------------------------------------------------------------

    async def connect(self, tag: str, service: str = "default", *, timeout: float | None = CONNECT_TIMEOUT) -> Stream:
        """Open a stream to a service of a peer: authenticated, encrypted, usable when this returns.

        Streams to one peer share one punched connection.  Cancelling leaves nothing open on either side.

        Args:
            tag: The peer's; its key must be pinned.
            service: What it serves: a name, a port, or `host:port`.
            timeout: Seconds for everything; None waits as long as each part of it does.

        Raises:
            UnknownPeerError: No key is pinned for the tag.
            PeerOfflineError: Nobody is registered under the tag.
            RendezvousTimeoutError: No server answers.
            NoPathError: No connection came up.
            PunchTimeoutError: Not in `timeout`.
            PeerKeyChangedError: Whoever answers has another key than the pinned one.
            PeerRefusedError: The peer has not pinned our key.
            AccessDeniedError: The service is not there, or not ours.
            TargetRefusedError: The service is ours, but nobody answers behind it.
        """
        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                return await self._connect(self._pinned(tag), service)
        except TimeoutError as error:
            if deadline.expired() and type(error) is TimeoutError and timeout is not None:
                raise PunchTimeoutError(tag, timeout) from None
            raise

    async def _connect(self, pinned: PinnedPeer, service: str) -> Stream:
        known = self._up.session(pinned.tag)
        if known is not None and known.peer_key == pinned.key:
            try:
                return await known.open_confirmed(service)
            except ChannelError:  # it died unnoticed: a new one is worth one try
                known.abort("replaced")
        session = await self._up.dialing.join(pinned.tag, lambda: self._dial(pinned))
        return await session.open_confirmed(service)

    async def _dial(self, pinned: PinnedPeer) -> Session:
        async def establish(pipe: Pipe, conkey: str) -> Session:
            return await connect_session(
                pipe,
                identity=self._up.identity,
                tag=pinned.tag,
                peer_key=pinned.key,
                selector=_selector(conkey, pinned.tag),
                tracer=self._trace,
            )

        session = await self._call(pinned.tag, establish)
        self._up.keep(session)
        return session

    async def _call(self, tag: Tag, establish: Callable[[Pipe, str], Awaitable[A]], *, raw: bool = False) -> A:
        own_tag = self.tag or f"p-{self.key.short}"

        async def at(server: Address) -> A:
            port = await PunchPort.open(server, self._ttl, tracer=self._trace)
            return await Call(port, own_tag, tag, establish, raw=raw, tracer=self._trace).run()

        return await self._with_server(at)

    async def connect_raw(self, tag: str, *, timeout: float | None = CONNECT_TIMEOUT) -> RawStream:
        """Reach a program that speaks the founding protocol only: no key, no encryption, no claim of who answers.

        Raises:
            ConfigError: `allow_unauthenticated` is off.
            P2PTunnelError: As `connect`, as far as it goes.
        """
        self._require_unauthenticated("connect_raw")

        async def establish(pipe: Pipe, conkey: str) -> RawStream:
            return await RawStream.over(pipe)

        deadline = asyncio.timeout(timeout)
        try:
            async with deadline:
                return await self._call(parse_tag(tag), establish, raw=True)
        except TimeoutError as error:
            if deadline.expired() and type(error) is TimeoutError and timeout is not None:
                raise PunchTimeoutError(tag, timeout) from None
            raise

    @asynccontextmanager
    async def listen_raw(self) -> AsyncIterator[AsyncIterator[RawStream]]:
        """Register, and let in programs that speak the founding protocol only; yields an iterator of their streams.

        Raises:
            ConfigError: `allow_unauthenticated` is off, or we have no tag.
            P2PTunnelError: As `serve`.
        """
        self._require_unauthenticated("listen_raw")
        arrived = self._up.raw
        await self._register()

        async def streams() -> AsyncIterator[RawStream]:
            while True:
                yield await arrived.get()

        yield streams()

    # --- services and tunnels -----------------------------------------------------------------------------------------

    @typechecked
    def serve(self, services: Mapping[str, Target | ServeSpec], *, allow: Allow = ()) -> Opening[Serving]:
        """Serve: let pinned peers open these services of this machine.

        Nobody is let in by default: only peers whom `p2ptunnel peers add … --services` or `allow` grants the name.

        Args:
            services: What peers ask for, and what it stands for: a port of this machine, `host:port`, `unix:/path`, `ssh`, or a
                function that is given each stream.
            allow: Tags of pinned peers that may open these services.

        Returns:
            To be awaited, or entered with `async with`: the `Serving`, up when the server knows us.

        Raises:
            ConfigError: We have no tag; a name is taken.
            InvalidSpecError: A name or a target cannot be read.
            UnknownPeerError: A tag in `allow` is not pinned.
            TagInUseError: Another key owns our tag.
            RendezvousTimeoutError: No server answers.
        """
        return Opening(self._serve(dict(services), tuple(allow)))

    async def _serve(self, services: dict[str, Target | ServeSpec], allow: tuple[Tag, ...]) -> Serving:
        table = self._up.table
        added: list[str] = []
        try:
            for name, target in services.items():
                table.add(name, target, allow)
                added.append(name)
            await self._register()
        except BaseException:
            for name in added:
                table.remove(name)
            raise
        return Serving(table, tuple(services))

    def forward(self, tag: str, target: str | int, *, listen: Address | int = 0) -> Opening[Forward]:
        """Listen on this machine, and carry each connection to a service of a peer.

        Args:
            tag: The peer's.
            target: The service: a name, a port, or `host:port`.
            listen: `(host, port)` or a port on 127.0.0.1; port 0 picks a free one, see `Forward.local`.

        Raises:
            AddressInUseError: Another program has the address.
            BindError: It cannot be had otherwise.
            InvalidSpecError: The target cannot be read.
        """
        address = ("127.0.0.1", listen) if isinstance(listen, int) else listen
        return Opening(open_forward(self, tag, target, listen=address, tracer=self._trace))

    async def ssh(self, tag: str, *, username: str | None = None, service: str = "ssh", **options: Any) -> SSH:
        """Log in to the SSH server that a peer serves, with asyncssh; its host key is the one the peer told of.

        Args:
            tag: The peer's.
            username: None: the name of the user who runs this.
            service: The service that is the SSH server.
            options: For `asyncssh.connect`; `client_keys` among them.

        Raises:
            MissingExtraError: asyncssh is not installed (`pip install 'p2ptunnel[ssh]'`).
            SSHError: The server has another host key, or did not let us in.
            P2PTunnelError: As `connect`.
        """
        keys = await fetch_host_keys(self, tag, service)
        return await open_ssh(self, tag, known_host_keys=keys, username=username, service=service, **options)

    async def netcheck(self, *, timeout: float = 5.0) -> NetReport:
        """Find out what our NAT does, as far as the server can help.

        Raises:
            RendezvousTimeoutError: No server answers.
        """

        async def at(server: Address) -> NetReport:
            return await netcheck(server, timeout=timeout)

        return await self._with_server(at)

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def _up(self) -> _Started:
        if self._started is None:
            raise LocalProtocolError("the peer has not been started: use `async with Peer(…)` or `await peer.start()`")
        return self._started

    def _pinned(self, tag: str) -> PinnedPeer:
        pinned = self._up.store.get(parse_tag(tag))
        if pinned is None:
            raise UnknownPeerError(tag)
        return pinned

    def _require_unauthenticated(self, what: str) -> None:
        if not self._allow_unauthenticated:
            raise ConfigError(
                f"{what} needs Peer(allow_unauthenticated=True)", "It has no security at all; see docs/reference."
            )

    async def _with_server(self, use: Callable[[Address], Awaitable[T]]) -> T:
        """Do it with the first server that answers."""
        if not self._rendezvous:
            raise ConfigError(
                "no rendezvous server is given", "Peer(rendezvous='host:7000'), --rendezvous host:7000 or P2PTUNNEL_RENDEZVOUS."
            )
        *others, last = self._rendezvous
        for host, port in others:
            try:
                return await use((await resolve(host), port))
            except RendezvousTimeoutError as error:
                self._trace("peer", "server_silent", server=f"{host}:{port}", reason=str(error))
        return await use((await resolve(last[0]), last[1]))

    async def _register(self) -> None:
        """Be registered and answer calls; several services share one registration."""
        if self.tag is None:
            raise ConfigError("a peer that serves needs a tag", "Peer('home-nas', …), --tag or P2PTUNNEL_TAG.")
        up = self._up
        async with up.registering:
            if up.answering is None:
                up.answering = await self._with_server(self._answer_at)

    async def _answer_at(self, server: Address) -> AnsweringPort:
        assert self.tag is not None
        up = self._up
        port = await PunchPort.open(server, self._ttl, tracer=self._trace)
        answering = AnsweringPort(
            port,
            self.tag,
            KeyCredentials(up.identity, self.tag),
            self._admit,
            admit_raw=self._admit_raw if self._allow_unauthenticated else None,
            tracer=self._trace,
        )
        try:
            await answering.start()
        except BaseException:
            await answering.close()
            raise
        return answering

    async def _admit(self, pipe: Pipe, conkey: str) -> None:
        up = self._up
        session = await accept_session(
            pipe,
            identity=up.identity,
            access=up.table,
            selector=_selector(conkey, "this machine"),
            on_open=up.table.handle,
            tracer=self._trace,
        )
        up.keep_incoming(session)

    async def _admit_raw(self, pipe: Pipe) -> None:
        self._up.raw.put_nowait(await RawStream.over(pipe))


class _Started:
    """What a peer holds between start and close."""

    def __init__(self, identity: Identity, store: PeerStore, table: ServiceTable) -> None:
        self.identity: Final = identity
        self.store: Final = store
        self.table: Final = table
        self._sessions: dict[Tag, Session] = {}
        self._incoming: list[Session] = []
        self.dialing: _Shared[Tag, Session] = _Shared()
        self.registering = asyncio.Lock()
        self.answering: AnsweringPort | None = None
        self.raw: asyncio.Queue[RawStream] = asyncio.Queue()

    def session(self, tag: Tag) -> Session | None:
        """Return the live session with a peer that we called."""
        session = self._sessions.get(tag)
        return None if session is None or session.closed.is_set() else session

    def keep(self, session: Session) -> None:
        """Use the session for later streams; close the one it replaces."""
        before = self._sessions.get(session.tag)
        self._sessions[session.tag] = session
        if before is not None:
            before.abort("replaced")

    def keep_incoming(self, session: Session) -> None:
        """Close the session with us, if it has not ended before."""
        self._incoming = [other for other in self._incoming if not other.closed.is_set()]
        self._incoming.append(session)

    async def close(self) -> None:
        """Close everything."""
        await self.dialing.close()
        sessions = (*self._sessions.values(), *self._incoming)
        answering = () if self.answering is None else (self.answering.close(),)
        while not self.raw.empty():
            self.raw.get_nowait().abort()
        await asyncio.gather(*(session.close() for session in sessions), *answering)


class _Shared(Generic[K, V]):
    """Work that several callers wait for together: begun by the first, cancelled when the last gives up."""

    def __init__(self) -> None:
        self._running: dict[K, tuple[asyncio.Task[V], int]] = {}

    async def join(self, key: K, begin: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """Wait for the work of `key`, which `begin` starts if nobody has."""
        task, waiting = self._running.get(key) or (asyncio.create_task(begin()), 0)
        self._running[key] = (task, waiting + 1)
        try:
            return await asyncio.shield(task)
        finally:
            task, waiting = self._running[key]
            self._running[key] = (task, waiting - 1)
            if waiting == 1:
                del self._running[key]
                if not task.done():
                    task.cancel()
                    await asyncio.wait([task])

    async def close(self) -> None:
        """Cancel all work."""
        tasks = [task for task, _ in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _selector(conkey: str, source: str) -> bytes:
    """Return the 16 bytes that a conkey spells."""
    try:
        selector = bytes.fromhex(conkey)
    except ValueError:
        selector = b""
    if len(selector) != _SELECTOR_BYTES:
        raise RemoteProtocolError("a conkey that is not 32 hex characters", source)
    return selector
