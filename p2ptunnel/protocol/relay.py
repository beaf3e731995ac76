"""The relay's mind: who may join, what a circuit may carry, and when it is over.

Pure: signed joins and `now` in, answers and ends out; the bytes themselves never come here.  Rule: a byte is carried only
between the two keys of a call that was introduced, each of which has signed for it, and not one beyond the quota of either.

Source: wire document, t=6.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Final, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from p2ptunnel.addresses import Source
from p2ptunnel.defaults import (
    RELAY_ACCOUNTS_MAX,
    RELAY_CALLS_MAX,
    RELAY_CIRCUITS_MAX,
    RELAY_CIRCUITS_OF_KEY,
    RELAY_CIRCUITS_OF_PAIR,
    RELAY_CIRCUITS_OF_SOURCE,
    RELAY_IDLE,
    RELAY_JOIN_TIMEOUT,
    RELAY_QUOTA_BYTES,
    RELAY_STALLED,
    RELAY_TICK,
    SITE_FACTOR,
    TOKEN_TTL,
)
from p2ptunnel.identity.grant import Grants
from p2ptunnel.identity.judge import Judge
from p2ptunnel.protocol.limits import limited_source
from p2ptunnel.protocol.machine import Event
from p2ptunnel.wire.messages import Observed, RelayJoin, RelayJoinAnswer, RelayJoinExtra

__all__ = ["Circuit", "CircuitEnded", "EndReason", "Relay", "RelayJoined"]

EndReason: TypeAlias = Literal[
    "both ends closed",
    "an end was lost",
    "an end left before the other came",
    "the other end did not come",
    "an end does not read",
    "idle",
    "the quota is used up",
    "the relay closed",
]
"""Why a circuit is over."""

_K = TypeVar("_K")
_ENDS: Final = 2
_DAY: Final = 86_400.0
_RETRY: Final = 5.0  # seconds; circuits end all the time


class RelayJoined(Event, frozen=True):
    """An end is in: `line` is its answer, and what follows on its connection belongs to the circuit of that number."""

    connection: int
    circuit: int
    role: str
    line: bytes


class CircuitEnded(Event, frozen=True):
    """A circuit is over, and why."""

    circuit: int
    why: EndReason
    carried_bytes: int


class Circuit:
    """One call at the relay: one end that waits, or two whose bytes cross.

    Attributes:
        number: Its own, of one server.
        pair: The keys of its call, whoever has joined.
        carried_bytes: Both ways.
    """

    __slots__ = ("accounts", "blocked", "carried_bytes", "moved_at", "number", "pair", "roles", "since", "sources")

    def __init__(self, number: int, pair: tuple[str, str], now: float) -> None:
        self.number: Final = number
        self.pair: Final = pair
        self.carried_bytes = 0
        self.since: Final = now
        self.moved_at = now
        self.roles: Final[set[str]] = set()
        self.accounts: Final[list[_Account]] = []  # each once, as of the sources: both ends may be one key, or behind one NAT
        self.sources: Final[list[Source]] = []
        self.blocked: Final[dict[str, float]] = {}  # the ends that bytes wait for, and since when they take none

    def __repr__(self) -> str:
        return f"Circuit({self.number}, {'open' if self.is_open else 'waiting'})"

    @property
    def is_open(self) -> bool:
        """Whether both ends are in."""
        return len(self.roles) == _ENDS


class _Account(msgspec.Struct, eq=False):
    """What a key has left of its day."""

    key: str
    left_bytes: int
    renewed_at: float
    circuits: int = 0


class _Call(msgspec.Struct, eq=False):
    """A call that was introduced: its keys by role, and the one circuit that it gets."""

    keys: dict[str, str]
    expires_at: float
    circuit: Circuit | None = None

    @property
    def pair(self) -> tuple[str, str]:
        """The two keys, whoever called."""
        first, second = sorted((self.keys["caller"], self.keys["callee"]))
        return first, second


class _Refusal(NamedTuple):
    code: int
    why: str
    retry_after: float = 0


_NO_CALL: Final = _Call({}, -math.inf)
_UNKNOWN: Final = _Refusal(404, "no such call, or it is over")
_NOT_AN_END: Final = _Refusal(403, "not signed by that end of the call")
_TAKEN: Final = _Refusal(409, "that end is in already")
_FULL: Final = _Refusal(429, "the relay is full", _RETRY)
_MANY_OF_KEY: Final = _Refusal(429, "too many circuits of that key", _RETRY)
_MANY_OF_PAIR: Final = _Refusal(429, "too many circuits between these two", _RETRY)
_MANY_OF_SOURCE: Final = _Refusal(429, "too many circuits from there", _RETRY)


class Relay:
    """The circuits of one server.

    Args:
        judge: Of signatures.
        quota_bytes: What one key may have carried in a day, which begins with its first circuit.
        circuits_of_key: At a time.
        grants: Knows the calls that servers elsewhere have introduced; None: there are none but those that are introduced here.

    Attributes:
        circuits: Those that wait or are open, by number.
        carried_bytes: By all circuits that there ever were.
        refused: Joins, by reason.
        ended: Circuits, by reason.
    """

    def __init__(
        self,
        judge: Judge,
        *,
        quota_bytes: int = RELAY_QUOTA_BYTES,
        circuits_of_key: int = RELAY_CIRCUITS_OF_KEY,
        grants: Grants | None = None,
    ) -> None:
        self.circuits: Final[dict[int, Circuit]] = {}
        self.carried_bytes = 0
        self.refused: Final[Counter[str]] = Counter()
        self.ended: Final[Counter[str]] = Counter()
        self._judge = judge
        self._grants = grants
        self._quota_bytes = quota_bytes
        self._circuits_of_key = circuits_of_key
        self._calls: dict[str, _Call] = {}  # in the order in which they expire
        self._accounts: dict[str, _Account] = {}  # in the order in which they are renewed
        self._of_pair: Counter[tuple[str, str]] = Counter()
        self._of_block: Counter[int] = Counter()
        self._of_site: Counter[int] = Counter()
        self._last = 0
        self._tick_at: float | None = None

    # --- who may join -------------------------------------------------------------------------------------------------

    def introduce(self, token: str, caller_key: str, callee_key: str, now: float) -> None:
        """Let these two keys meet here while the token lives; who has no key has nothing to join with."""
        if caller_key and callee_key:
            self._admit(token, caller_key, callee_key, now + TOKEN_TTL, now)

    def _admit(self, token: str, caller_key: str, callee_key: str, expires_at: float, now: float) -> _Call:
        for oldest, call in tuple(itertools.islice(self._calls.items(), 2)):  # two for each new one: the table only shrinks
            if call.expires_at <= now or len(self._calls) >= RELAY_CALLS_MAX:
                del self._calls[oldest]
        call = self._calls[token] = _Call({"caller": caller_key, "callee": callee_key}, expires_at)
        return call

    def _granted(self, extra: RelayJoinExtra, now: float) -> _Call:
        """Return the call that a server elsewhere has introduced; it is remembered for as long as its grant counts."""
        granted = None if self._grants is None else self._grants.read(extra.token, extra.grant)
        if granted is None:
            return _NO_CALL
        return self._admit(extra.token, granted.caller, granted.callee, now + granted.seconds, now)

    def join(self, message: RelayJoin, host: str, now: float) -> tuple[RelayJoinAnswer, Circuit | None]:
        """Return the answer to a t=6 from a numeric host, and the circuit that its sender is an end of from now on."""
        extra = message.extra
        call = self._calls.get(extra.token) or self._granted(extra, now)
        source = limited_source(host) if extra.role == "caller" else None  # a callee joins at the wish of others
        if refusal := self._refusal(call, extra, now) or self._excess(call, extra.key, source, now):
            self.refused[refusal.why] += 1
            body = Observed(retry_after=refusal.retry_after) if refusal.retry_after else None
            return RelayJoinAnswer(mid=message.mid, code=refusal.code, em=refusal.why, extra=body), None
        circuit = call.circuit = call.circuit or self._new_circuit(call.pair, now)
        self._enter(circuit, extra, source, now)
        return RelayJoinAnswer(mid=message.mid, code=200, em=""), circuit

    def _refusal(self, call: _Call, extra: RelayJoinExtra, now: float) -> _Refusal | None:
        """Return why the sender is nobody that this call is for."""
        if now >= call.expires_at or (call.circuit is not None and call.circuit.number not in self.circuits):
            return _UNKNOWN
        if call.keys.get(extra.role) != extra.key or not self._judge.is_end(extra):
            return _NOT_AN_END
        return _TAKEN if call.circuit is not None and extra.role in call.circuit.roles else None

    def _excess(self, call: _Call, key: str, source: Source | None, now: float) -> _Refusal | None:
        """Return which limit one more end would be beyond."""
        circuit = call.circuit
        if circuit is None and len(self.circuits) >= RELAY_CIRCUITS_MAX:
            return _FULL
        if circuit is None and self._of_pair[call.pair] >= RELAY_CIRCUITS_OF_PAIR:  # one peer leaves room for the others
            return _MANY_OF_PAIR
        account = self._account(key, now)
        if not account.left_bytes:
            return _Refusal(429, "the quota of that key is used up", account.renewed_at - now)
        if account.circuits >= self._circuits_of_key and (circuit is None or account not in circuit.accounts):
            return _MANY_OF_KEY
        if source is None or (circuit is not None and source in circuit.sources):
            return None
        is_too_many = (
            self._of_block[source.block] >= RELAY_CIRCUITS_OF_SOURCE
            or self._of_site[source.site] >= RELAY_CIRCUITS_OF_SOURCE * SITE_FACTOR
        )
        return _MANY_OF_SOURCE if is_too_many else None

    def _new_circuit(self, pair: tuple[str, str], now: float) -> Circuit:
        self._last += 1
        circuit = self.circuits[self._last] = Circuit(self._last, pair, now)
        self._of_pair[pair] += 1
        if self._tick_at is None:
            self._tick_at = now + RELAY_TICK
        return circuit

    def _enter(self, circuit: Circuit, extra: RelayJoinExtra, source: Source | None, now: float) -> None:
        circuit.roles.add(extra.role)
        circuit.moved_at = now
        account = self._account(extra.key, now)
        if account not in circuit.accounts:
            circuit.accounts.append(account)
            account.circuits += 1
        if source is not None and source not in circuit.sources:
            circuit.sources.append(source)
            self._of_block[source.block] += 1
            self._of_site[source.site] += 1

    # --- what a circuit may carry -------------------------------------------------------------------------------------

    def room(self, circuit: Circuit, now: float) -> int:
        """Return how many bytes it may carry now, of either direction."""
        for account in circuit.accounts:
            self._renew(account, now)
        return min(account.left_bytes for account in circuit.accounts)

    def carried(self, circuit: Circuit, count: int, now: float) -> None:
        """Count bytes that were taken from one end for the other, at most as many as there was room for."""
        circuit.moved_at = now
        circuit.carried_bytes += count
        self.carried_bytes += count
        for account in circuit.accounts:
            account.left_bytes -= count

    def blocked(self, circuit: Circuit, role: str, now: float) -> None:
        """Note that bytes wait for this end: from now on, or still, after it has taken some."""
        circuit.blocked[role] = now

    def unblocked(self, circuit: Circuit, role: str) -> None:
        """Note that none wait for this end any more."""
        circuit.blocked.pop(role, None)

    def _account(self, key: str, now: float) -> _Account:
        account = self._accounts.get(key)
        if account is None:
            self._forget_one(now)
            account = self._accounts[key] = _Account(key, self._quota_bytes, now + _DAY)
        self._renew(account, now)
        return account

    def _renew(self, account: _Account, now: float) -> None:
        if now < account.renewed_at:
            return
        account.left_bytes, account.renewed_at = self._quota_bytes, now + _DAY
        self._accounts[account.key] = self._accounts.pop(account.key)

    def _forget_one(self, now: float) -> None:
        """Forget a key whose day is over, or, of too many, the one whose day ends next; none that has a circuit."""
        for account in self._accounts.values():
            if account.renewed_at > now and len(self._accounts) < RELAY_ACCOUNTS_MAX:
                return
            if not account.circuits:
                del self._accounts[account.key]
                return

    # --- when it is over ----------------------------------------------------------------------------------------------

    def handle_timer(self, now: float) -> list[CircuitEnded]:
        """Return the circuits whose time is up."""
        if self._tick_at is None or now < self._tick_at:
            return []
        circuits = tuple(self.circuits.values())
        ended = [self.end(circuit, why) for circuit in circuits if (why := _why_over(circuit, now))]
        self._tick_at = now + RELAY_TICK if self.circuits else None
        return ended

    def next_deadline(self) -> float | None:
        """Return when to look for them."""
        return self._tick_at

    def end(self, circuit: Circuit, why: EndReason) -> CircuitEnded:
        """End a circuit that has not ended yet: its call gets no other."""
        del self.circuits[circuit.number]
        self.ended[why] += 1
        _count_down(self._of_pair, circuit.pair)
        for account in circuit.accounts:
            account.circuits -= 1
        for source in circuit.sources:
            _count_down(self._of_block, source.block)
            _count_down(self._of_site, source.site)
        return CircuitEnded(circuit.number, why, circuit.carried_bytes)


def _why_over(circuit: Circuit, now: float) -> EndReason | None:
    """Return why the time of a circuit is up, None while it is not."""
    if not circuit.is_open:
        return "the other end did not come" if now >= circuit.since + RELAY_JOIN_TIMEOUT else None
    if any(now >= since + RELAY_STALLED for since in circuit.blocked.values()):
        return "an end does not read"
    return "idle" if now >= circuit.moved_at + RELAY_IDLE else None


def _count_down(counter: Counter[_K], key: _K) -> None:
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
