"""A peer: composes identity, traversal, sessions and tunnels; decides nothing itself.

async with Peer("laptop", rendezvous="rv.example:7000") as peer:
    stream = await peer.connect("home-nas", "web")
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import msgspec
from typeguard import typechecked

from p2ptunnel.abc import Opening, Pipe, Stream
from p2ptunnel.asking import AskCallback
from p2ptunnel.calling import Calling, within
from p2ptunnel.defaults import (
    CONNECT_TIMEOUT,
    PAIRING_EXPIRES,
    PING_TIMEOUT,
    RENDEZVOUS_PORT,
    RESUME_BUFFER_BYTES,
    RESUME_BUFFER_MIN_BYTES,
    RESUME_TIMEOUT,
    STREAMS_OF_SERVICE_MAX,
)
from p2ptunnel.errors import (
    ChannelClosedError,
    ChannelLostError,
    ConfigError,
    LocalProtocolError,
    NoSuchPeerError,
    NotReadyError,
    PeerKeyChangedError,
    PeerOfflineError,
    PeerRefusedError,
    RendezvousTimeoutError,
    ResolveError,
    TagInUseError,
    UnknownPeerError,
)
from p2ptunnel.events import (
    ChannelLost,
    EventHub,
    Events,
    PathChanged,
    PathSuspected,
    PeerEvent,
    SessionExpired,
)
from p2ptunnel.identity.capability import Capability, issue, parse_capability, require_usable
from p2ptunnel.identity.counter import ProfileCounter
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.store import PeerStore, PinnedPeer, Profile
from p2ptunnel.identity.taglock import TagLock
from p2ptunnel.net.lan import Lan
from p2ptunnel.net.threads import in_thread
from p2ptunnel.pairing import Invitation, Redemption, pairing_tag, require_elsewhere, with_host_keys
from p2ptunnel.protocol.intent import IntentJudge
from p2ptunnel.reachable import Reachable
from p2ptunnel.serving import Allow, ServiceTable, Serving
from p2ptunnel.session.pairing import PairingChannel
from p2ptunnel.session.ping import Pinger, PingReport, Pong
from p2ptunnel.session.session import FirstStream, Session, SessionOptions
from p2ptunnel.snapshot import Snapshot, status_of
from p2ptunnel.ssh.client import SSH, open_ssh
from p2ptunnel.ssh.hostkeys import fetch_host_keys
from p2ptunnel.started import Started
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.raw import RawStream, RawStreams
from p2ptunnel.traversal.call import Conkey
from p2ptunnel.traversal.explain import Explanation, explain
from p2ptunnel.traversal.netcheck import netcheck
from p2ptunnel.traversal.netreport import NetReport
from p2ptunnel.traversal.servers import Servers
from p2ptunnel.traversal.warm import WarmPort
from p2ptunnel.tunnels.local import Forward, open_forward
from p2ptunnel.tunnels.spec import ServeSpec, Target, parse_target
from p2ptunnel.types import Address, RelayUse, ServerSpec, Tag, parse_tag
from p2ptunnel.wire.frames import conkey_to_selector

__all__ = ["Peer"]

_dice: Final = random.SystemRandom()


class _Parts(NamedTuple):
    """What a peer works with while it is started."""

    up: Started
    calling: Calling
    reachable: Reachable


class Peer:
    """This machine among its peers.

    Nothing is read or sent before `start` (or `async with`).  It registers with the server only while it serves; a peer that
    only calls is known to nobody.  Starting it raises the soft limit of open files of this process to 1024 where it is lower,
    as far as the hard limit allows: to guess the ports of a peer's NAT takes some hundred sockets.  It is not put back.

    Args:
        tag: Our name; needed to serve.
        rendezvous: The server's `host:port` (port 7000 if left out), or the whole line that its operator has given
            (`host:port#p2p:KEY`, `#join:TOKEN` behind it): then no other server can pass for it.  Or several, of which the
            first that answers is used; who calls asks the next one also if nobody is registered there under the tag.  None:
            only peers in our own network are reached, and reach us.
        profile: Where key and pinned peers are kept: a directory, or None for the user's own.
        relay: Whether connections may go over the server's relay, which carries what it cannot read.  "auto": until there is a
            direct path, which is looked for at the same time and afterwards.  "never": no relay is asked for.  "always":
            nothing is punched.
        allow_unauthenticated: Also reach, and be reached by, programs that speak the founding protocol only, by `connect_raw`
            and `listen_raw`; nothing else changes.
        lan: Pinned peers in our own network are also found there, by multicast, and find us while we serve, with no server;
            False sends nothing there, nor does a peer that always uses the relay.
        port_mapping: While we serve, our router is asked for a way in, by PCP, NAT-PMP or UPnP, which is taken back in the end.
        resume_timeout: Seconds for which streams wait, when the connection to a peer is lost, until there is another one; both
            sides have their own. 0: streams end with their connection.
        resume_buffer: Bytes sent and not acknowledged that are kept for each peer, 512 KiB at least; more wait with their
            writers.
        tracer: Gets the events of every layer.

    Raises:
        InvalidTagError: The tag is none.
        InvalidAddressError: A server's address is none.
        ConfigError: `resume_timeout` is negative or not finite; `resume_buffer` is below 512 KiB.
    """

    @typechecked
    def __init__(
        self,
        tag: str | None = None,
        *,
        rendezvous: str | Sequence[str] | None = None,
        profile: Profile | str | os.PathLike[str] | None = None,
        relay: RelayUse = "auto",
        allow_unauthenticated: bool = False,
        lan: bool = True,
        port_mapping: bool = True,
        resume_timeout: float = RESUME_TIMEOUT,
        resume_buffer: int = RESUME_BUFFER_BYTES,
        tracer: Tracer | None = None,
    ) -> None:
        _check_resuming(resume_timeout, resume_buffer)
        self.tag = None if tag is None else parse_tag(tag)
        self.profile: Final = profile if isinstance(profile, Profile) else Profile(profile)
        self._relay: Final[RelayUse] = relay
        self._allow_unauthenticated = allow_unauthenticated
        self._has_lan: Final = lan and relay != "always"
        self._is_mapping: Final = port_mapping
        self._trace = tracer or Tracer()
        servers = (rendezvous,) if isinstance(rendezvous, str) else rendezvous or ()
        self._servers = Servers(servers, default_port=RENDEZVOUS_PORT, tracer=self._trace)
        self._events: Final = EventHub()
        self._options: Final = SessionOptions(resume_timeout, resume_buffer, self._on_session_event)
        self._parts: _Parts | None = None

    def __repr__(self) -> str:
        return f"<Peer {self.tag or 'without a tag'} via {', '.join(self._servers.texts) or 'no server'}>"

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read identity and pinned peers; the first start on a machine makes the identity.  Starting twice is fine.

        Raises:
            InsecureKeyFileError: Others could read or replace the key; the hint says what to do.
            StoreError: A file of the profile cannot be read.
        """
        if self._parts is not None:
            return
        identity = await in_thread(self.profile.identity)
        store = self.profile.peers()
        await in_thread(store.all)
        if self._parts is None:  # others may have started it, too
            self._parts = self._compose(identity, store)

    def _compose(self, identity: Identity, store: PeerStore) -> _Parts:
        counter = ProfileCounter(self.profile.directory / "counter")
        table = ServiceTable(store, self._trace, self._events, issuer=identity.public)
        lan = Lan(tracer=self._trace) if self._has_lan else None
        up = Started(identity, counter, store, table, self._trace, relay=self._relay, lan=lan)
        own_name = self.tag or f"p-{identity.public.short}"  # who has no tag has a name that is no promise
        calling = Calling(up, self._servers, own_name=own_name, options=self._options, tracer=self._trace)
        reachable = Reachable(
            up,
            self._servers,
            self.profile.directory,
            relay=self._relay,
            is_mapping=self._is_mapping,
            options=self._options,
            tell=self._events,
            tracer=self._trace,
        )
        if self._servers.specs:
            up.spare = WarmPort(calling.open_spare, tracer=self._trace)
            up.spare.start()
        return _Parts(up, calling, reachable)

    async def close(self) -> None:
        """Leave the server, close tunnels, sessions and sockets; waits at most about two seconds.  Closing twice is fine."""
        parts, self._parts = self._parts, None
        try:
            if parts is not None:
                await parts.up.close()
        finally:
            self._events.close()

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
        answering = self._parts.up.answering if self._parts else None
        return answering.observed if answering else None

    def snapshot(self) -> Snapshot:
        """Return how we stand now; reads the peers file, asks nobody.

        Raises:
            LocalProtocolError: The peer has not been started.
            StoreError: The peers file cannot be read.
        """
        up = self._up
        peers = tuple(status_of(pinned, up.session_with(pinned)) for pinned in up.store.all())
        return Snapshot(self.tag, str(self.key), self._servers.texts, self.local_address, up.table.names, peers)

    def events(self, *kinds: type[PeerEvent], buffer: int = 1000) -> Events:
        """Return what happens to connections from now on; see `p2ptunnel.events`.

        Args:
            kinds: Which events; none for all.
            buffer: How many wait to be read, 1 at least, before the oldest are dropped, which an EventsDropped then tells.

        Raises:
            TypeError: A kind is no class of events.
            ValueError: `buffer` is below 1.
        """
        return self._events.listen(*kinds, buffer=buffer)

    # --- streams ------------------------------------------------------------------------------------------------------

    async def connect(
        self,
        tag: str,
        service: str | int = "default",
        *,
        timeout: float | None = CONNECT_TIMEOUT,
        confirm: bool = True,
        require_direct: bool = False,
    ) -> Stream:
        """Open a stream to a service of a peer: authenticated, encrypted, usable when this returns.

        Streams to one peer share one connection: over the server's relay where that is up first, and over a direct path as
        soon as there is one, without a break.  Cancelling leaves nothing open on either side.  Where the answer to the first
        greeting does not come in three seconds, the peer may be asked once more by another way: it sees the first stream reset.

        Args:
            tag: The peer's; its key must be pinned.
            service: What it serves: a name, a port, or `host:port`.
            timeout: Seconds for everything; None waits as long as each part of it does.
            confirm: False does not wait for the peer to accept the stream, which saves a round trip: what is written goes
                with the request, and a refusal (AccessDeniedError, TargetRefusedError) is raised by the first `read`.
            require_direct: Not over the relay, now or later: rather no stream.

        Raises:
            ConfigError: A direct path is required of a peer that always uses the relay.
            InvalidSpecError: `service` is a number and no port.
            UnknownPeerError: No key is pinned for the tag.
            PeerOfflineError: Nobody is registered under the tag; without a server, nobody in our own network is the peer.
            RendezvousTimeoutError: No server answers.
            ResolveError: The server's name has no address.
            NoPathError: No connection came up.
            PunchTimeoutError: Not in `timeout`.
            PeerKeyChangedError: Whoever answers has another key than the pinned one.
            AuthenticationError: The answer is not the peer's own; nothing was sent to where it says the peer is.
            PeerRefusedError: The peer has not pinned our key.
            AccessDeniedError: The service is not there, or not ours.
            ApprovalTimeoutError: The peer's owner was asked, which `timeout` does not count, and has not answered.
            TargetRefusedError: The service is ours, but nobody answers behind it.
            ChannelError: The connection broke before the stream was open.
        """
        name = parse_target(service) if isinstance(service, int) else service
        if require_direct and self._relay == "always":
            raise ConfigError("a direct path is required, and the relay is always used", 'Peer(relay="auto"), or --relay auto.')
        relay: RelayUse = "never" if require_direct else self._relay
        deadline = asyncio.timeout(timeout)
        connecting = self._connect(self._pinned(tag), name, relay, confirm=confirm, deadline=deadline)
        return await within(timeout, tag, connecting, deadline)

    async def _connect(
        self, pinned: PinnedPeer, service: str, relay: RelayUse, *, confirm: bool, deadline: asyncio.Timeout
    ) -> Stream:
        def on_asked(patience: float) -> None:
            if (end := deadline.when()) is not None and not deadline.expired():
                deadline.reschedule(end + patience)

        async def open_on(session: Session) -> Stream:
            return await session.open_confirmed(service, on_asked=on_asked) if confirm else session.open(service)

        is_direct = relay == "never"
        known = self._up.session(pinned, is_direct=is_direct)
        if known is not None:
            with suppress(ChannelClosedError, ChannelLostError):  # it died unnoticed, or was about to end
                for ticket in pinned.tickets:  # some may be newer than the session
                    known.show(ticket.raw)
                return await open_on(known)
        first = FirstStream(service, on_asked=on_asked)
        try:
            session = await self._calling.dial(pinned, relay, first)
            if first.stream is None:
                return await open_on(session)
            return await first.stream.confirmed() if confirm else first.stream
        except BaseException:
            first.abandon()
            raise

    async def ready(self, *, timeout: float | None = CONNECT_TIMEOUT) -> None:
        """Wait until the next `connect` has nothing to gather: how we look from outside is known, a relay connection stands.

        For whoever measures, or wants the first call to be as fast as later ones; `connect` itself needs no waiting.  Without
        a server there is nothing to wait for.

        Args:
            timeout: Seconds; None waits until it is so.

        Raises:
            NotReadyError: Not in `timeout`, or there is no relay to be reached; it says what is missing, and why.
            LocalProtocolError: The peer has not been started, or has been closed meanwhile.
        """
        up, spare = self._up, self._up.spare
        if spare is None:
            return
        missing, trouble = "no port stands at the server", ""
        try:
            async with asyncio.timeout(timeout):
                at = await spare.stand()
                up.require_open()
                if at is not None and self._relay != "never":
                    missing = "no connection to the relay stands"
                    trouble = await up.joining.stand(at.address)
        except TimeoutError:
            raise NotReadyError(missing, spare.trouble or f"not in {timeout:g} s") from None
        if trouble:
            raise NotReadyError(missing, trouble)

    async def connect_raw(self, tag: str, *, timeout: float | None = CONNECT_TIMEOUT) -> RawStream:
        """Reach a program that speaks the founding protocol only: no key, no encryption, no claim of who answers.

        Raises:
            ConfigError: `allow_unauthenticated` is off.
            AuthenticationError: The peer lets in nobody without a key: `connect` is for it.
            P2PTunnelError: As `connect`, as far as it goes.
        """
        self._require_unauthenticated("connect_raw")

        async def establish(pipe: Pipe, conkey: Conkey, _: PublicKey | None) -> RawStream:
            return await RawStream.over(pipe)

        return await within(timeout, tag, self._calling.call(parse_tag(tag), establish, None, relay="never"))

    @asynccontextmanager
    async def listen_raw(self) -> AsyncGenerator[AsyncIterator[RawStream]]:
        """Register, and let in programs that speak the founding protocol only, while the block lasts.

        Yields:
            An iterator of their streams, which ends with the block; those that nobody has taken by then are closed.

        Raises:
            ConfigError: `allow_unauthenticated` is off, we have no tag, or raw streams are listened for already.
            P2PTunnelError: As `serve`.
        """
        self._require_unauthenticated("listen_raw")
        up = self._up
        answering = await self._reachable.register(self._required_tag())
        streams = RawStreams()
        try:
            if answering is None:
                raise ConfigError("raw streams come with the help of a server", "Peer(rendezvous='host:7000', …)")
            if answering.admit_raw is not None:
                raise ConfigError("raw streams are listened for already", "End the other listen_raw first.")
            answering.admit_raw = streams.admit
            try:
                yield streams
            finally:
                for port in {answering, up.answering or answering}:  # it may have been replaced meanwhile
                    port.admit_raw = None
                streams.close()
        finally:
            await up.leave()

    # --- services and tunnels -----------------------------------------------------------------------------------------

    @typechecked
    def serve(
        self,
        services: Mapping[str, Target | ServeSpec],
        *,
        allow: Allow = (),
        until: datetime | None = None,
        ask: AskCallback | None = None,
        max_streams: int = STREAMS_OF_SERVICE_MAX,
    ) -> Opening[Serving]:
        """Serve: let pinned peers open these services of this machine.

        Nobody is let in by default: only peers whom `p2ptunnel peers allow` or `allow` grants the name, and only as long as
        they are pinned.

        Args:
            services: What peers ask for, and what it stands for: a port of this machine, `host:port`, `unix:/path`, `ssh`, a
                function that is given each stream, or `any:` and what may be reached: `any:10.0.0.0/24:80,443 db:5432`.
            allow: Tags of pinned peers that may open these services.
            until: When that ends; None: with the service.
            ask: Asks somebody, for 30 s, about every other pinned peer that wants one; None: those are refused.
            max_streams: Of one peer to each of these services.

        Returns:
            To be awaited, or entered with `async with`: the `Serving`, up when the server knows us.

        Raises:
            ConfigError: We have no tag; a name is taken; `until` is over.
            InvalidSpecError: A name or a target cannot be read.
            NoSuchPeerError: No peer is called as a tag in `allow` says; an UnknownPeerError as well.
            TagInUseError: Another key owns our tag.
            TagBusyError: Another program of this profile serves under our tag.
            RendezvousTimeoutError: No server answers.
            ResolveError: The server's name has no address.
        """
        end = None if until is None else _end(until)
        add = partial(ServiceTable.add, until=end, ask=ask, most=max_streams)
        return Opening(self._serve(dict(services), (allow,) if isinstance(allow, str) else tuple(allow), add))

    async def _serve(
        self, services: dict[str, Target | ServeSpec], allow: tuple[Tag, ...], add: Callable[..., None]
    ) -> Serving:
        up = self._up
        add(up.table, services, allow)
        try:
            await self._reachable.register(self._required_tag())
        except BaseException:
            up.table.remove(services)
            raise
        return Serving(up.table, tuple(services), up.leave)

    def forward(self, tag: str, target: str | int, *, listen: Address | int = 0) -> Opening[Forward]:
        """Listen on this machine, and carry each connection to a service of a peer.

        Args:
            tag: The peer's.
            target: The service: a name, a port, or `host:port`.
            listen: `(host, port)` or a port on 127.0.0.1; port 0 picks a free one, see `Forward.local`.

        Raises:
            InvalidTagError: The tag is none.
            InvalidSpecError: The target cannot be read.
            AddressInUseError: Another program has the address.
            BindError: It cannot be had otherwise.
        """
        address = ("127.0.0.1", listen) if isinstance(listen, int) else listen
        return Opening(self._forward(tag, target, address))

    async def _forward(self, tag: str, target: str | int, address: Address) -> Forward:
        up = self._up
        forward = await open_forward(self, parse_tag(tag), target, listen=address, tracer=self._trace)
        up.keep_forward(forward)
        return forward

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

    async def netcheck(self, *, timeout: float = 5.0, brief: bool = False, watch: float = 0.0) -> NetReport:
        """Find out what our NAT does, as far as the server can help, what the router says, and what to expect of peers.

        Everything is asked at once; the router, if it may be asked (`port_mapping`), for a way in, which is given back.  Where
        only the web is let through, the report says so (`NetReport.web`), and little else can be known.

        Args:
            timeout: Seconds for each question.
            brief: Only how we look from outside, in a few round trips.
            watch: Seconds for which to watch how long our NAT remembers a silent UDP port; 0: not at all.

        Raises:
            RendezvousTimeoutError: No server answers.
            ServerKeyError: The server has another key than was given for it.
            ResolveError: The server's name has no address.
        """

        async def at(server: ServerSpec) -> NetReport:
            other = None if brief else await self._servers.other_family(server.address)
            return await netcheck(server, timeout=timeout, brief=brief, other=other, watch=watch, asks_router=self._is_mapping)

        return await self._servers.first(at)

    async def explain(self, tag: str, *, probe: bool = False, timeout: float = CONNECT_TIMEOUT) -> Explanation:
        """Tell how the last attempt to reach a peer went: each way that was tried, when, how it ended, and what to do.

        Where none was made yet, one is made now, which opens no stream; who answers is proved as ever.  That it comes to
        nothing is told and not raised.

        Args:
            tag: The peer's.
            probe: Make a fresh attempt in any case; a session that there is stays where it is until a better path is up.
            timeout: Seconds for that attempt, all ways of it.

        Raises:
            UnknownPeerError: No key is pinned for the tag.
            ConfigError: No server is given, and our own network is not to be searched.
        """
        pinned, calling = self._pinned(tag), self._calling
        if probe or pinned.key not in calling.tried:
            async with self.events(PathChanged) as moved:
                await calling.probe(pinned, self._relay, moved, timeout=timeout)
        session = self._up.session_with(pinned)
        return explain(pinned.tag, calling.tried[pinned.key], None if session is None else session.path)

    async def ping(
        self,
        tag: str,
        *,
        count: int | None = 4,
        until_direct: bool = False,
        timeout: float | None = PING_TIMEOUT,
        tell: Callable[[Pong], None] | None = None,
    ) -> PingReport:
        """Measure round trips to a peer, a second apart, inside the connection that streams use; make one if there is none.

        Args:
            tag: The peer's.
            count: How many; None: without end, or with `until_direct` until then.
            until_direct: End as soon as the connection needs no relay.
            timeout: Seconds for everything with `until_direct`, else until there is a connection; None: no limit.
            tell: Told of each as it comes.

        Returns:
            All of them; one that nobody answered in five seconds has no `rtt`.  That it did not become direct in time is no
            error: `is_direct` says so.

        Raises:
            ConfigError: `count` is below 1, or a path can never become direct.
            P2PTunnelError: As `connect`, where no connection comes up.
        """
        if count is not None and count < 1:
            raise ConfigError(f"a count of {count} pings", "1 or more.")
        if until_direct and self._relay == "always":
            raise ConfigError(
                "a direct path is waited for, and the relay is always used", 'Peer(relay="auto"), or --relay auto.'
            )
        pinned, loop = self._pinned(tag), asyncio.get_running_loop()
        began = loop.time()
        session = self._up.session(pinned, is_direct=self._relay == "never")
        if session is None:
            session = await within(timeout, pinned.tag, self._calling.dial(pinned, self._relay))
        pinger = Pinger(session, self.events(PathChanged), tell or (lambda _: None))
        left = None if timeout is None or not until_direct else began + timeout - loop.time()
        return await pinger.run(count, until_direct=until_direct, seconds=left)

    # --- pairing ------------------------------------------------------------------------------------------------------

    async def invite(
        self, *, services: Sequence[str] = (), expires: float = PAIRING_EXPIRES, uses: int = 1, name: str | None = None
    ) -> Invitation:
        """Wait for a machine that is not known here yet, and pin its key when it proves that it was invited.

        What it is to show is in the `Invitation`: a code to be said, and a ticket to be pasted.  While it is open, strangers
        may call, at a tag of its own: whoever serves stays as unreachable for them as ever.

        Args:
            services: What the guest may open here, by their names; they need not be served yet.
            expires: Seconds, > 0.
            uses: How many guests it is for, 1 at least.
            name: What to call the guest here; None: as it is called already, else as it calls itself.

        Raises:
            ConfigError: We have no tag; `expires` or `uses` is out of range.
            InvalidSpecError: A service's name is none.
            InvalidTagError: `name` is no tag.
            TagInUseError: Another key waits under our tag.
            TagBusyError: Another invitation of this profile is open under our tag.
            RendezvousTimeoutError: No server answers.
            ResolveError: The server's name has no address.
        """
        tag = self._required_tag()
        offered = await with_host_keys(services)

        async def at(server: ServerSpec) -> Invitation:
            invitation = Invitation(
                self._up.identity,
                self._up.store,
                tag,
                server,
                services=offered,
                expires=expires,
                uses=uses,
                name=name,
                tell=self._events,
            )
            await self._wait_for_guests(invitation, server, lock)
            return invitation

        lock = TagLock.take(self.profile.directory, tag, "pair")
        *others, last = self._servers.specs or (ServerSpec(("", 0)),)
        try:
            for server in others:
                with suppress(RendezvousTimeoutError, ResolveError):
                    return await at(server)
            return await at(last)
        except BaseException:
            lock.release()
            raise

    async def _wait_for_guests(self, invitation: Invitation, server: ServerSpec, lock: TagLock) -> None:
        """Register at one server under the tag that guests ask for, and take them; with the last, release the tag."""
        up, tag = self._up, pairing_tag(invitation.tag)
        judge = IntentJudge(up.identity, _dice, is_admitted=lambda _: False, is_pairing_open=lambda: invitation.is_open)

        async def admit(pipe: Pipe, conkey: str, key: PublicKey) -> None:
            await invitation.admit(pipe, key, conkey_to_selector(conkey, "this machine"))

        up.invitations.add(invitation)
        try:
            servers = Servers((server,) if self._servers.specs else (), default_port=RENDEZVOUS_PORT, tracer=self._trace)
            port = await servers.first(lambda at: self._reachable.register_at(at, tag, judge, admit))
        except BaseException as error:
            await invitation.close()
            if isinstance(error, TagInUseError):
                raise TagInUseError(invitation.tag, error.server) from error  # by the name that people know
            raise

        async def leave() -> None:
            lock.release()
            await port.close()

        invitation.wait_at(leave)

    async def redeem(
        self,
        code_or_ticket: str,
        *,
        services: Sequence[str] = (),
        name: str | None = None,
        timeout: float | None = CONNECT_TIMEOUT,
    ) -> PinnedPeer:
        """Pair with the machine that gave us a code or a ticket: afterwards each has pinned the other's key.

        Args:
            code_or_ticket: As it was said or pasted; words may be cut to four letters, and slips are mended.
            services: What the other machine may open here, by their names.
            name: What to call the other machine here; None: as it is called already, else as it calls itself.
            timeout: Seconds until it must have been reached; None waits as long as each part of it does.

        Raises:
            InvalidCodeError: It is neither a code nor a ticket.
            InvalidSpecError: A service's name is none.
            InvalidTagError: `name` is no tag.
            PairingError: It is not valid (any more); whoever answered did not know it; the name is taken, here or there; the
                ticket names a server of ours at a loopback or link-local address, which we have not been given ourselves.
            PeerOfflineError: Nobody waits there.
            P2PTunnelError: As `connect`.
        """
        up, calling = self._up, self._calling
        redemption = Redemption(code_or_ticket, up.store, name=name, services=services)
        named = redemption.server
        specs = self._servers.specs if named is None else (self._known_as(named),)
        is_named_by_ticket = named is not None and not self._servers.has(named.address)

        turn = asyncio.Lock()  # who comes both ways at once would look like two who try the code

        async def establish(pipe: Pipe, conkey: Conkey, key: PublicKey | None) -> PairingChannel:
            assert key is not None  # the call is signed, so its answer is
            named = conkey if isinstance(conkey, str) else await asyncio.shield(conkey)
            async with turn:
                return await redemption.call(pipe, up.identity, key, conkey_to_selector(named, redemption.host))

        check = require_elsewhere if is_named_by_ticket else None
        servers = Servers(specs, default_port=RENDEZVOUS_PORT, tracer=self._trace, check=check)
        wanted, signer = pairing_tag(redemption.host), up.signer(redemption.host_key)
        try:
            call = calling.call(wanted, establish, signer, relay=self._relay, servers=servers)
            channel = await within(timeout, redemption.host, call)
        except (PeerOfflineError, PeerRefusedError, PeerKeyChangedError) as error:
            raise redemption.explained(error) from error
        try:
            return await redemption.settle(channel, calling.own_name)
        finally:  # cancelled while it was pinned, the host is pinned all the same
            if (pinned := redemption.pinned) is not None:
                self._events(redemption.told(pinned))

    def _known_as(self, server: ServerSpec) -> ServerSpec:
        """Return what we know ourselves of a server that a ticket names: a join token, perhaps, that no ticket has."""
        known = self._servers.spec_at(server.address)
        return known if known.key else msgspec.structs.replace(known, key=server.key)

    # --- access -------------------------------------------------------------------------------------------------------

    async def allow(self, tag: str, service: str, *, until: datetime | None = None) -> None:
        """Let a pinned peer open a service of this machine, now and after a restart; what is said last holds.

        Args:
            tag: The peer's.
            service: The name under which it is served, now or later.
            until: When that ends; None: never.  One without a time zone is local time.

        Raises:
            NoSuchPeerError: No peer is called so; an UnknownPeerError as well.
            InvalidSpecError: The service name is no name.
            ConfigError: `until` is over.
            StoreError: The peers file cannot be written.
        """
        await in_thread(self._up.store.allow, tag, service, until=None if until is None else _end(until))

    async def revoke(self, tag: str, service: str | None = None) -> None:
        """Take a service back from a peer, or without `service` forget the peer; its streams end within a second.

        Raises:
            NoSuchPeerError: No peer is called so; an UnknownPeerError as well.
            StoreError: The peers file cannot be written.
        """
        store = self._up.store
        await (in_thread(store.remove, tag) if service is None else in_thread(store.deny, tag, service))

    async def ticket(self, services: Sequence[str], *, until: datetime, holder: str | None = None) -> Capability:
        """Make an access ticket, and note that it was made: `str` of it lets a peer open these services here until then.

        It admits nobody: its holder must be pinned here as well.

        Args:
            services: Their names.
            until: When it ends.
            holder: Tag of the only peer that can use it; None: any can.

        Raises:
            NoSuchPeerError: No peer is called `holder`; an UnknownPeerError as well.
            InvalidSpecError: A service name is no name.
            ConfigError: There is no service, or there are more than fit; it would have ended already.
            StoreError: The peers file cannot be written.
        """
        up = self._up
        pinned = None if holder is None else up.store.get(parse_tag(holder))
        if holder is not None and pinned is None:
            raise NoSuchPeerError(holder)
        made = issue(up.identity, tuple(services), _end(until), pinned.key if pinned else None)
        await in_thread(up.store.note_issued, made, time.time())
        return made

    async def revoke_ticket(self, ticket: Capability) -> None:
        """Let nobody use an access ticket of ours any more; streams that it let in end within a second.

        Raises:
            StoreError: The peers file cannot be written.
        """
        await in_thread(self._up.store.revoke_ticket, ticket.name, ticket.until)

    async def use_ticket(self, text: str) -> PinnedPeer:
        """Keep an access ticket, and show it whenever we connect to its issuer; return who that is.

        Raises:
            InvalidCodeError: It is none, or none for us: our own, another machine's, or one that has ended.
            NoSuchPeerError: Its issuer is not pinned; an UnknownPeerError as well.
            StoreError: The peers file cannot be written.
        """
        up, ticket = self._up, parse_capability(text)
        require_usable(ticket, up.identity.public, time.time())
        pinned = await in_thread(up.store.keep_ticket, ticket, time.time())
        for session in up.sessions_called(pinned):
            session.show(ticket.raw)
        return pinned

    # --- inside -------------------------------------------------------------------------------------------------------

    def _required_parts(self) -> _Parts:
        if self._parts is None:
            raise LocalProtocolError("the peer has not been started: use `async with Peer(…)` or `await peer.start()`")
        return self._parts

    @property
    def _up(self) -> Started:
        return self._required_parts().up

    @property
    def _calling(self) -> Calling:
        return self._required_parts().calling

    @property
    def _reachable(self) -> Reachable:
        return self._required_parts().reachable

    def _on_session_event(self, event: PeerEvent) -> None:
        """Tell who listens; a silent path may mean that nobody can call us any more, either."""
        self._events(event)
        if self._parts is None:
            return
        up, _, reachable = self._parts
        match event:
            case PathSuspected():
                if up.spare is not None:
                    up.spare.renew()
                reachable.path_suspected()
            case ChannelLost() | SessionExpired():
                asyncio.get_running_loop().call_soon(up.tidy)  # not now: the session is in the middle of something
            case _:
                pass

    def _required_tag(self) -> Tag:
        if self.tag is None:
            raise ConfigError("a peer that others are to find needs a tag", "Peer('home-nas', …), --tag or P2PTUNNEL_TAG.")
        return self.tag

    def _pinned(self, tag: str) -> PinnedPeer:
        pinned = self._up.store.get(parse_tag(tag))
        if pinned is None:
            raise self._unknown(tag)
        return pinned

    def _unknown(self, tag: Tag) -> UnknownPeerError:
        error = UnknownPeerError(tag)
        if other := next((peer for peer in self._up.store.all() if peer.wanted == tag), None):
            error.hint = f"The peer that is registered as {tag} is called {other.tag} here."
        return error

    def _require_unauthenticated(self, what: str) -> None:
        if not self._allow_unauthenticated:
            raise ConfigError(
                f"{what} needs Peer(allow_unauthenticated=True)", "It has no security at all; see docs/reference."
            )
        if self._relay == "always":
            raise ConfigError(f"{what} needs a direct path, and the relay is always used", 'Peer(relay="auto").')


def _check_resuming(timeout: float, buffer: int) -> None:
    """Raise ConfigError where sessions could not be gone on with as it says."""
    if not (math.isfinite(timeout) and timeout >= 0):
        raise ConfigError(f"a resume_timeout of {timeout} seconds", "0 or more; 0 ends streams with their connection.")
    if buffer < RESUME_BUFFER_MIN_BYTES:
        raise ConfigError(f"a resume_buffer of {buffer} bytes", f"{RESUME_BUFFER_MIN_BYTES} at least.")


def _end(moment: datetime) -> float:
    """Return when a grant is to end, in seconds since 1970; one that is over would look granted and open nothing."""
    if moment.timestamp() <= time.time():
        raise ConfigError(f"{moment:%Y-%m-%d %H:%M} is over already", "Without a time zone it is local time.")
    return moment.timestamp()
