"""What an attempt to reach a peer tries: one entry for each way, begun and ended by whoever tries it, shown by `explain`.

Rule: an entry holds no token, no selector and no key; what others have said is cleaned before it stands in one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

import msgspec

from p2ptunnel.addresses import canonical, scope_of
from p2ptunnel.errors import ChannelClosedError, InvalidAddressError, P2PTunnelError
from p2ptunnel.net.dial import DialRecord
from p2ptunnel.protocol.birthday import BirthdayEnded, OpenHoles, SendProbes
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.punch import AnswerProved, CallFailed, CallOffered, HoleOpened, PunchStarted
from p2ptunnel.types import Address, CandidateKind, Path, clean, format_address

__all__ = ["CallTries", "Outcome", "Tries", "Try", "Trying", "Way"]

Way: TypeAlias = Literal["server", "lan", "tcp", "udp", "quic", "relay", "channel"]
"""What was tried: a question to the server, our own network without one, packets to a candidate over a transport, the relay,
TLS on a connection."""

Outcome: TypeAlias = Literal[
    "under way", "answered", "connected", "silent", "refused", "taken", "burnt", "dead", "replaced", "failed", "given up"
]
"""How it ended; those of `net.dial.DialOutcome` mean the same here."""

_MS: Final = 1000.0
_REASONS: Final[dict[tuple[str | None, str], str]] = {
    ("connected", "SYN 1"): "",
    ("replaced", "given up"): "no answer until then",
}
"""Words of a dial that say too little, or too much, beside its outcome."""


class Try(msgspec.Struct, frozen=True, kw_only=True):
    """One way that was tried.

    Attributes:
        way: What was tried.
        kind: Of the candidate at the other end (RFC 8445); None where that is no candidate of the peer's.
        local: Where it left from; None where that does not matter.
        remote: Where it went.
        sent: What went there, in words.
        start_ms: When it began, in milliseconds since the attempt did.
        end_ms: When it ended; None while it is under way.
        outcome: How, in one word.
        reason: The same in words.
        hint: What the error that ended it says to do; empty where there is none, or it says nothing.
    """

    way: Way
    kind: CandidateKind | None = None
    local: Address | None = None
    remote: Address | None = None
    sent: str
    start_ms: float
    end_ms: float | None = None
    outcome: Outcome = "under way"
    reason: str = ""
    hint: str = ""

    def __str__(self) -> str:
        where = "" if self.remote is None else f"{format_address(self.remote)} "
        took = 0.0 if self.end_ms is None else self.end_ms - self.start_ms
        seconds = "" if took < 1 or self.way == "channel" else f" after {took / _MS:.1f} s"
        return f"{where}{self.sent}: {self.reason or 'no answer yet'}{seconds}"


class Trying:
    """A way that is being tried.  As a context manager it ends as the block does, unless that has said how before."""

    def __init__(self, seconds: Callable[[], float], begun: Try) -> None:
        self._seconds: Final = seconds
        self.now: Try = begun

    def end(self, outcome: Outcome, reason: str = "", hint: str = "") -> None:
        """Say how it ended; what is said first holds.

        Args:
            outcome: In one word.
            reason: In words, which may be another machine's.
            hint: What to do about it.
        """
        if self.now.end_ms is None:
            end_ms = self._seconds() * _MS
            self.now = msgspec.structs.replace(self.now, end_ms=end_ms, outcome=outcome, reason=clean(reason), hint=hint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        match error:
            case None:
                self.end("connected")
            case ChannelClosedError():  # in order: another way was faster, or the session has ended
                self.end("given up", str(error))
            case P2PTunnelError():
                self.end("failed", str(error), error.hint)
            case OSError():
                self.end("failed", str(error))
            case _:
                self.end("given up", "given up")


class Tries:
    """Collects what one attempt tries, on all ways that are tried side by side.

    Args:
        clock: Of the event loop: monotonic seconds.

    Attributes:
        began_at: When the attempt began, in seconds since 1970.
        error: Why it came to nothing; None as long as that is not known.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.began_at: Final = time.time()
        self.error: P2PTunnelError | None = None
        self._clock: Final = clock
        self._start: Final = clock()
        self._entries: list[Trying] = []
        self._calls: list[CallTries] = []
        self._working = 0
        self._idle: Final = asyncio.Event()
        self._idle.set()

    @property
    def all(self) -> tuple[Try, ...]:
        """Everything that was tried, in the order in which it began."""
        tried = [*(entry.now for entry in self._entries), *(each for call in self._calls for each in call.dials)]
        return tuple(sorted(tried, key=lambda each: each.start_ms))

    @property
    def has_direct(self) -> bool:
        """Whether a connection of ours to the peer has shown that it is the peer's."""
        return any(entry.now.way == "channel" and entry.now.outcome == "connected" for entry in self._entries)

    def begin(
        self,
        way: Way,
        sent: str,
        *,
        remote: Address | None = None,
        local: Address | None = None,
        kind: CandidateKind | None = None,
    ) -> Trying:
        """Begin an entry; whoever begins it ends it.

        Args:
            way: What is tried.
            sent: What goes there, in words.
            remote: Where it goes.
            local: Where it leaves from.
            kind: Of the candidate there.
        """
        begun = Try(way=way, kind=kind, local=local, remote=remote, sent=sent, start_ms=self._seconds() * _MS)
        entry = Trying(self._seconds, begun)
        self._entries.append(entry)
        return entry

    def call(self, server: Address, local: Address, dials: Callable[[], Iterable[DialRecord]]) -> CallTries:
        """Return what a direct call notes here what it does.

        Args:
            server: The rendezvous server.
            local: The port that is punched.
            dials: What has become of its dials so far.
        """
        noted = CallTries(self, server, local, dials)
        self._calls.append(noted)
        return noted

    @contextlib.contextmanager
    def working(self) -> Generator[None]:
        """Say that something is tried while the block lasts: `wait_idle` waits for it."""
        self.begin_work()
        try:
            yield
        finally:
            self.end_work()

    def begin_work(self) -> None:
        """Say that something is tried until `end_work`."""
        self._working += 1
        self._idle.clear()

    def end_work(self) -> None:
        """Say that it is tried no more."""
        self._working -= 1
        if not self._working:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Wait until nothing is tried any more."""
        await self._idle.wait()

    def from_dial(self, record: DialRecord, local: Address, peer_host: str) -> Try:
        """Return what became of a dial as an entry."""
        return Try(
            way="tcp",
            kind=_kind_of(record.target, peer_host),
            local=(local[0], record.port or local[1]),
            remote=record.target,
            sent="SYN" if record.low_ttl is None else f"SYN with TTL {record.low_ttl}",
            start_ms=(record.started - self._start) * _MS,
            end_ms=None if record.ended is None else (record.ended - self._start) * _MS,
            outcome=record.outcome or "under way",
            reason=_REASONS.get((record.outcome, record.reason), record.reason),
        )

    def _seconds(self) -> float:
        return self._clock() - self._start


class CallTries:
    """What one direct call tries, by what its agent and its dials tell."""

    def __init__(self, tries: Tries, server: Address, local: Address, dials: Callable[[], Iterable[DialRecord]]) -> None:
        self._tries: Final = tries
        self._server: Final = server
        self._local: Final = local
        self._dials = dials
        self._peer_host = ""
        self._asking: Trying | None = None
        self._hole: Trying | None = None
        self._told: list[Trying] = []
        self._guessing: Trying | None = None
        self._counted = 0
        self._sent = ""

    @property
    def dials(self) -> tuple[Try, ...]:
        """Its dials so far."""
        return tuple(self._tries.from_dial(record, self._local, self._peer_host) for record in self._dials())

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each connection that was tried, the dials first."""
        failed = (str(entry.now) for entry in self._told if entry.now.outcome in {"failed", "dead"})
        return (*map(str, self.dials), *failed)

    def start(self) -> None:
        """Note that the server is asked for the peer; `close` must follow."""
        self._tries.begin_work()
        self._asking = self._begin_asking("t=4")

    def note(self, event: Event) -> None:
        """Note what the agent reports."""
        match event:
            case CallOffered():
                self._end(self._asking, "answered", "the peer is registered there")
                self._asking = self._begin_asking("t=10 to the peer")
            case AnswerProved():
                self._end(self._asking, "answered", "the peer has signed its answer")
            case PunchStarted():
                self._peer_host = event.peer[0]
                self._end(self._asking, "answered", "the peer has answered")
                kind = _kind_of(event.peer, self._peer_host)
                self._hole = self._tries.begin("udp", "t=31", remote=event.peer, local=self._local, kind=kind)
            case HoleOpened():
                rtt = "" if event.rtt is None else f", {event.rtt * _MS:.0f} ms there and back"
                if self._guessing is None:
                    self._end(self._hole, "answered", f"UDP passes both ways{rtt}")
                else:
                    found = f"UDP passes both ways with {format_address(event.remote)}{rtt}, {self._sent}"
                    self._guessing.end("answered", found)
            case OpenHoles(transport="udp"):
                self._count("sockets", len(event.holes))
            case SendProbes(transport="udp"):
                self._count("guesses", len(event.ports))
            case BirthdayEnded() if self._guessing is not None:
                self._guessing.end("failed", f"{event.why}, {self._sent}")
            case BirthdayEnded():
                entry = self._tries.begin("tcp", "birthday", local=self._local)
                entry.end("failed", f"{event.why}, {event.probes} guesses" if event.probes else event.why)
                self._told.append(entry)
            case _:
                pass

    def failed(self, event: CallFailed, error: P2PTunnelError) -> None:
        """Note that the agent has given up, and what to do about that."""
        if self._asking is not None:
            self._asking.end("failed", event.text or event.kind, error.hint)

    def channel(self, path: Path) -> Trying:
        """Begin the entry of a connection that came up and has to show whose it is."""
        entry = self._tries.begin("channel", "connected", remote=path.remote, local=path.local)
        self._told.append(entry)
        return entry

    def quic(self, remote: Address | None = None) -> Trying:
        """Begin the entry of a connection by QUIC, or of that there is none."""
        entry = self._tries.begin("quic", "QUIC", remote=remote, local=self._local)
        self._told.append(entry)
        return entry

    def close(self) -> None:
        """Note that it is over, whatever came of it; the sockets are closed by now."""
        if self._asking is None:  # it has not begun
            return
        self._tries.end_work()
        self._end(self._asking, "given up", "given up")
        self._end(self._hole, "silent", "no answer")
        self._end(self._guessing, "given up", f"given up, {self._sent}")
        ended = tuple(self._dials())
        self._dials = lambda: ended

    def _count(self, what: str, count: int) -> None:
        """Note sockets or guesses of a birthday over UDP, which is one entry."""
        if self._guessing is None:
            self._guessing = self._tries.begin("udp", "UDP birthday", local=self._local)
            self._told.append(self._guessing)
        self._counted += count
        self._sent = f"{self._counted} {what}"

    def _begin_asking(self, sent: str) -> Trying:
        return self._tries.begin("server", sent, remote=self._server, local=self._local)

    @staticmethod
    def _end(entry: Trying | None, outcome: Outcome, reason: str) -> None:
        if entry is not None:
            entry.end(outcome, reason)


def _kind_of(target: Address, peer_host: str) -> CandidateKind:
    """Tell what a candidate is by its address alone: one of a machine, the one that the server sees, another way in."""
    try:
        address = canonical(target[0])
    except InvalidAddressError:
        return "host"
    scope = scope_of(address)
    if address.version == 6 or scope not in {"public", "private"}:
        return "host"
    if target[0] != peer_host:
        return "mapped"
    return "srflx" if scope == "public" else "host"
