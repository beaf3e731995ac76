"""What a peer holds between start and close: its sessions, its registration, its forwards, and how all of it ends.

Rule: what is kept here is closed by `close`, whatever happens; who ends by itself is forgotten.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from itertools import chain
from typing import Final
from weakref import WeakSet

from p2ptunnel.defaults import SESSIONS_OF_PEER_MAX
from p2ptunnel.errors import LocalProtocolError, StoreError
from p2ptunnel.identity.counter import ProfileCounter
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.store import PeerStore, PinnedPeer
from p2ptunnel.identity.taglock import TagLock
from p2ptunnel.net.changes import NetworkWatch
from p2ptunnel.net.descriptors import allow_descriptors, spare_descriptors
from p2ptunnel.net.lan import Lan
from p2ptunnel.net.web import WebLinks
from p2ptunnel.pairing import Invitation
from p2ptunnel.protocol.approach import Birthdays
from p2ptunnel.protocol.birthday import BirthdayGate
from p2ptunnel.protocol.intent import CallSigner, IntentJudge
from p2ptunnel.protocol.rounds import Rounds
from p2ptunnel.serving import ServiceTable
from p2ptunnel.session.session import Session
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.spare import Spares
from p2ptunnel.traversal.answer import AnsweringPort
from p2ptunnel.traversal.habits import NatHabits
from p2ptunnel.traversal.joining import Joining
from p2ptunnel.traversal.lan import AdmitLan, LanAnswerer
from p2ptunnel.traversal.port import OpenerTtl, PunchPort
from p2ptunnel.traversal.shared import Shared
from p2ptunnel.traversal.warm import WarmPort
from p2ptunnel.traversal.ways import Ways
from p2ptunnel.tunnels.local import Forward
from p2ptunnel.types import RelayUse, ServerSpec, Tag

__all__ = ["Started"]

_dice: Final = random.SystemRandom()


class Started:
    """What a peer holds between start and close."""

    def __init__(
        self,
        identity: Identity,
        counter: ProfileCounter,
        store: PeerStore,
        table: ServiceTable,
        tracer: Tracer,
        *,
        relay: RelayUse = "auto",
        lan: Lan | None = None,
    ) -> None:
        allow_descriptors()
        self.identity: Final = identity
        self.counter: Final = counter
        self.store: Final = store
        self.table: Final = table
        self.birthdays: Final = Birthdays(BirthdayGate(), spare_descriptors)
        self.rounds: Final = Rounds()
        self.judge: Final = IntentJudge(identity, _dice, is_admitted=self._admits)
        self.dialing: Final[Shared[tuple[Tag, PublicKey, bool], Session]] = Shared()
        self.registering: Final[Shared[None, None]] = Shared()
        self._links: Final = WebLinks()
        self.spares: Final = Spares(self._links, tracer)
        self.ways: Final = Ways(self._links)
        self.joining: Final = Joining(identity, self.spares, self.ways)
        self.answering: AnsweringPort | None = None
        self.spare: WarmPort | None = None
        """Ready for the next call, where there is a server."""
        self.replacing: asyncio.Task[None] | None = None
        self.lan: Final = lan
        self._lan_answering: LanAnswerer | None = None
        self.invitations: Final[WeakSet[Invitation]] = WeakSet()
        self.answered_for = 0
        """How many `Serving`s and `listen_raw`s need the registration."""
        self.tag_lock: TagLock | None = None
        """Our tag, while somebody needs the registration."""
        self._relay: Final[RelayUse] = relay
        self._ttl: Final = OpenerTtl()
        self._habits: Final = NatHabits(self._habits_learned, tracer=tracer)
        self._trace: Final = tracer
        self._is_closed = False
        self._sessions: list[Session] = []
        self._called: dict[tuple[PublicKey, bool], Session] = {}  # by whether they never use the relay
        self._forwards: list[Forward] = []
        table.own_listeners = lambda: tuple(forward.local for forward in self._forwards)
        self._watch: Final = NetworkWatch(lambda _: self.network_changed(), tracer=tracer)
        self._watch.start()
        if lan is not None:
            lan.start()

    def require_open(self) -> None:
        """Raise LocalProtocolError if we are closed: what began before is to end, and to leave nothing behind."""
        if self._is_closed:
            raise LocalProtocolError("the peer has been closed")

    async def open_port(self, server: ServerSpec) -> PunchPort:
        """Open a port at a server, and if the relay may be used a connection to it beside, which only we keep.

        Raises:
            LocalProtocolError: We are closed.
            P2PTunnelError: As `PunchPort.open`.
        """
        self.require_open()
        if self._relay != "never":
            self.joining.expect(server.address)
        port = await PunchPort.open(
            server, self._ttl, ways=self.ways, habits=self._habits.known, is_burnt=self._is_burnt, tracer=self._trace
        )
        if self._relay != "never":
            self.joining.keep(port)
        if self._relay != "always" and not self._is_closed:
            self._habits.learn(port)
        return port

    def _habits_learned(self) -> None:
        if self.answering is not None:
            self.answering.take_view()

    async def fresh_port(self, server: ServerSpec) -> PunchPort:
        """Return a port for one attempt, which nothing has been punched from: the spare one, or one that is opened now.

        Raises:
            LocalProtocolError: We are closed.
            P2PTunnelError: As `PunchPort.open`.
        """
        port = None if self.spare is None else await self.spare.take(server)
        return port or await self.open_port(server)

    def _is_burnt(self, number: int) -> bool:
        return self.rounds.is_number_burnt(number, time.monotonic())

    def signer(self, callee: PublicKey | None) -> CallSigner:
        """Return what signs one call to the peer with this key, or to one whose key is to be learnt."""
        return CallSigner(self.identity, self.counter, _dice, callee=callee)

    def _admits(self, key: PublicKey) -> bool:
        """Tell whether a key may connect; while that cannot be read, nobody may."""
        try:
            return key in self.table.admitted()
        except StoreError as error:
            self._trace("access", "unreadable", reason=str(error))
            return False

    def session(self, pinned: PinnedPeer, *, is_direct: bool) -> Session | None:
        """Return the live session with a peer that we called, the one that never uses the relay or the one that may."""
        session = self._called.get((pinned.key, is_direct))
        return session if session is not None and _is_with(session, pinned) else None

    def sessions_called(self, pinned: PinnedPeer) -> tuple[Session, ...]:
        """Return the live sessions with a peer that we called."""
        sessions = (self.session(pinned, is_direct=is_direct) for is_direct in (False, True))
        return tuple(session for session in sessions if session is not None)

    def session_with(self, pinned: PinnedPeer) -> Session | None:
        """Return the live session with a peer, whoever called; the one that we would use if there are several."""
        others = (session for session in reversed(self._sessions) if _is_with(session, pinned))
        return next(chain(self.sessions_called(pinned), others), None)

    def keep(self, session: Session) -> None:
        """Close the session with us."""
        if session not in self._sessions:
            self._sessions.append(session)
        if self._is_closed:
            session.abort()
        self.tidy()

    def keep_called(self, session: Session, *, is_direct: bool) -> None:
        """Close the session with us, and use it for later streams, for those that need a direct path or for all others."""
        self._called[session.peer_key, is_direct] = session
        self.keep(session)

    def find(self, key: PublicKey, session_id: bytes) -> Session | None:
        """Return the living session with a peer that has called us, by its id; one that we called only we move."""
        for session in self._sessions:
            if not session.is_caller and (session.peer_key, session.session_id) == (key, session_id) and session.error is None:
                return session
        return None

    def network_changed(self) -> None:
        """Look at every path anew."""
        self.ways.forget()
        self._habits.forget()
        self.birthdays.gate.network_changed()
        self.rounds.network_changed()
        for session in self._sessions:
            session.network_changed()
        if self.spare is not None:
            self.spare.renew()
        if self.answering is not None:
            self.answering.network_changed()
        if self.lan is not None:
            self.lan.network_changed()

    def answer_lan(self, admit: AdmitLan) -> None:
        """Be found in our own network as well until `leave`, if we are to be; doing so twice is fine.

        Raises:
            BindError: No port can be had.
        """
        if self.lan is not None and self._lan_answering is None:
            answering = LanAnswerer(self.lan, self.identity.public, admit, tracer=self._trace)
            answering.start()
            self._lan_answering = answering

    def tidy(self) -> None:
        """Forget sessions that have ended; keep few of one peer: those that wait for a channel go first, and older ones."""
        self._sessions = [session for session in self._sessions if not session.closed.is_set()]
        self._called = {name: session for name, session in self._called.items() if not session.closed.is_set()}
        callers: defaultdict[PublicKey, list[Session]] = defaultdict(list)
        for session in self._sessions:
            if not session.is_caller:
                callers[session.peer_key].append(session)
        for sessions in callers.values():
            sessions.sort(key=lambda session: session.state != "suspended")
            for session in sessions[:-SESSIONS_OF_PEER_MAX]:
                session.dismiss("too many sessions of this peer")

    def keep_forward(self, forward: Forward) -> None:
        """Close the forward with us."""
        self._forwards = [other for other in self._forwards if other.state != "closed"]
        self._forwards.append(forward)

    async def leave(self) -> None:
        """Need the registration no more; the last one ends it."""
        self.answered_for -= 1
        if self.answered_for:
            return
        answering, self.answering = self.answering, None
        self._release_tag()
        lan_answering, self._lan_answering = self._lan_answering, None
        try:
            await self._stop_replacing()  # which would leave a port that nobody closes
        finally:
            await asyncio.gather(*(one.close() for one in (answering, lan_answering) if one is not None))

    def _release_tag(self) -> None:
        lock, self.tag_lock = self.tag_lock, None
        if lock is not None:
            lock.release()

    async def _stop_replacing(self) -> None:
        if self.replacing is not None:
            self.replacing.cancel()
            await asyncio.gather(self.replacing, return_exceptions=True)

    async def close(self) -> None:
        """Close everything; cancelled, at once."""
        self._is_closed = True
        self._release_tag()
        self._watch.close()
        if self.replacing is not None:
            self.replacing.cancel()
        self.dialing.cancel()
        self.registering.cancel()
        spare = () if self.spare is None else (self.spare,)
        for port in spare:
            port.abort()
        self.spares.abort()
        self._habits.abort()
        try:
            await asyncio.gather(
                *(port.close() for port in spare),
                self._habits.close(),
                *(forward.close() for forward in self._forwards),
                *(invitation.close() for invitation in self.invitations),
                self._stop_replacing(),
                self.spares.close(),
                self.dialing.close(),
                self.registering.close(),
            )
            answering = (one for one in (self.answering, self._lan_answering, self.lan) if one is not None)
            await asyncio.gather(*(session.close() for session in self._sessions), *(one.close() for one in answering))
        finally:
            for session in self._sessions:
                session.abort()
            for one in (self.answering, self._lan_answering, self.lan):
                if one is not None:
                    one.abort()
            await asyncio.gather(*(forward.close() for forward in self._forwards), self._links.close())


def _is_with(session: Session, pinned: PinnedPeer) -> bool:
    """Tell whether a session is up, and with the key that is pinned now; the peer may have another name since it began."""
    return session.peer_key == pinned.key and not session.closed.is_set()
