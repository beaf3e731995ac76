"""Two peers in one network, without a server: who calls tries what was announced, who is called answers who knows its key.

The datagrams are those of punching (t=31: are you there, t=32: open TCP for me), sent straight to the announced addresses.
They are keyed by the callee's public key: that proves nobody, but keeps strangers from being answered, and from answering.
Rule: what was announced is believed by nobody; it costs a few probes, and TLS decides.  Source: docs/protocol/lan.md.
"""

from __future__ import annotations

import enum
import hmac
from collections import deque
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from p2ptunnel.addresses import canonical, port_refusal, scope_of
from p2ptunnel.defaults import (
    LAN_CONKEY_TTL,
    LAN_CONKEYS_MAX,
    LAN_CONKEYS_OF_SOURCE_MAX,
    LAN_DATAGRAMS_BURST,
    LAN_DATAGRAMS_PER_SECOND,
    LAN_MEETINGS_MAX,
    LAN_OPEN_PAD_BYTES,
    LAN_PATIENCE,
    LAN_PROBE_FIRST,
    LAN_PROBES,
    LAN_STAGGER,
    LAN_TARGETS_AT_ONCE,
    LAN_TARGETS_MAX,
)
from p2ptunnel.errors import InvalidAddressError, LocalProtocolError
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.protocol.limits import Buckets, Rate
from p2ptunnel.protocol.machine import Datagram, Entropy, Event, MachineBase, new_mid, new_secret
from p2ptunnel.protocol.transaction import AnswerMemory
from p2ptunnel.types import Address, format_address
from p2ptunnel.wire.keyed import KeyedReceiver, KeyedSender
from p2ptunnel.wire.lan import LanKeys, lan_keys
from p2ptunnel.wire.messages import (
    ConkeyExtra,
    HoleAnswer,
    HoleProbe,
    OpenTcp,
    OpenTcpAnswer,
    OpenTcpExtra,
    encode,
    encode_padded,
)

__all__ = ["TRANSITIONS", "LanCaller", "LanExhausted", "LanPort", "LanReached", "LanTargetState", "LanTargetTrigger"]


class LanTargetState(enum.Enum):
    """Where one announced address stands."""

    WAITING = "waiting"
    PROBING = "probing"
    ANSWERED = "answered"
    ASKING = "asking"
    REACHED = "reached"
    DEAD = "dead"


class LanTargetTrigger(enum.Enum):
    """What moves it."""

    TURN = "its turn"
    PRESENT = "-31"
    CHOSEN = "its turn to be connected to"
    OPENED = "-32 200"
    SILENT = "no answer, or no"
    FAILED = "no channel"


_S, _T = LanTargetState, LanTargetTrigger
TRANSITIONS: Final = {
    (_S.WAITING, _T.TURN): _S.PROBING,
    (_S.PROBING, _T.PRESENT): _S.ANSWERED,
    (_S.PROBING, _T.SILENT): _S.DEAD,
    (_S.ANSWERED, _T.CHOSEN): _S.ASKING,
    (_S.ASKING, _T.OPENED): _S.REACHED,
    (_S.ASKING, _T.SILENT): _S.DEAD,
    (_S.REACHED, _T.FAILED): _S.DEAD,
}
"""Every legal transition of an announced address; what is not here cannot happen."""

_UNDER_WAY: Final = frozenset({_S.PROBING, _S.ASKING})
_MINUS: Final = 1  # byte by which -31 is longer than t=31


class LanReached(Event, frozen=True):
    """Whoever is at `address` knows the key that we look for, and waits for TCP; `rtt` in seconds, None if unsure.

    selector: What the connection begins with, 32 hex characters.
    """

    address: Address
    selector: str
    rtt: float | None


class LanExhausted(Event, frozen=True):
    """Time is up, and no address is left that may yet lead to the peer."""


class LanTarget(Struct):
    """One announced address; times are monotonic seconds."""

    address: Address
    token: str
    keys: LanKeys
    state: LanTargetState = LanTargetState.WAITING
    mid: int = 0
    sends: int = 0
    sent_at: float = 0.0
    due_at: float = 0.0
    rtt: float | None = None

    def __repr__(self) -> str:
        return f"LanTarget({format_address(self.address)}, {self.state.value})"

    def move(self, trigger: LanTargetTrigger) -> None:
        """Make the one transition that the table gives.

        Raises:
            LocalProtocolError: It gives none.
        """
        try:
            self.state = TRANSITIONS[self.state, trigger]
        except KeyError:
            raise LocalProtocolError(f"an address that is {self.state.value} takes no {trigger.value}") from None


# --- the caller -------------------------------------------------------------------------------------------------------


class LanCaller(MachineBase):
    """One call through our own network: announced addresses go in, those that lead to the peer come out.

    Args:
        key: The callee's.
        entropy: For tokens and message ids.
    """

    def __init__(self, key: PublicKey, entropy: Entropy) -> None:
        super().__init__()
        self._key = key
        self._entropy = entropy
        self._targets: dict[tuple[bytes, Address], LanTarget] = {}
        self._near: deque[LanTarget] = deque()
        self._far: deque[LanTarget] = deque()
        self._answered: deque[LanTarget] = deque()
        self._taken = 0
        self._next_meeting = 0.0
        self._ends_at: float | None = None

    @property
    def targets(self) -> tuple[LanTarget, ...]:
        """Every address so far, in the order in which they were found."""
        return tuple(self._targets.values())

    def start(self, now: float) -> None:
        """Begin: for 4 s from now on, addresses may yet be found."""
        self._ends_at = now + LAN_PATIENCE

    def found(self, salt: bytes, near: Sequence[Address], far: Sequence[Address], now: float) -> None:
        """Take the addresses of a service whose mark is of the key; `near` ones are on our link.

        Of one service 16 count, of one call 64, near ones first; one that has failed is tried again when it is announced anew.
        """
        token = new_secret(self._entropy)
        keys = lan_keys(self._key.raw, salt, token)
        for address in (*near, *far)[:LAN_TARGETS_AT_ONCE]:
            known = self._targets.get((salt, address))
            if known is not None and known.state is not LanTargetState.DEAD:
                continue
            if self._taken >= LAN_TARGETS_MAX:
                self._drop("too many addresses")
                return
            self._taken += 1
            target = self._targets[salt, address] = LanTarget(address, token, keys)
            (self._near if address in near else self._far).append(target)
        self._go_on(now)

    def meeting_failed(self, address: Address, now: float) -> None:
        """Learn that no channel came up at an address that was reached."""
        for target in self._targets.values():
            if target.address == address and target.state is LanTargetState.REACHED:
                target.move(LanTargetTrigger.FAILED)
        self._next_meeting = now
        self._go_on(now)

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take one datagram; what is no keyed answer to a question that waits is dropped."""
        message = self._decode(data)
        if not isinstance(message, HoleAnswer | OpenTcpAnswer):
            self._drop("unexpected message")
            return
        target = self._asked(message, source)
        if target is None or not KeyedReceiver(target.keys.callee_mac).open(data):
            self._drop("unasked" if target is None else "not keyed")
            return
        target.rtt = now - target.sent_at if target.sends == 1 else target.rtt
        if isinstance(message, HoleAnswer):
            target.move(LanTargetTrigger.PRESENT)
            self._answered.append(target)
        elif message.code == 200 and message.extra is not None:
            target.move(LanTargetTrigger.OPENED)
            self._events.append(LanReached(target.address, target.keys.selector(message.extra.conkey).hex(), target.rtt))
        else:
            target.move(LanTargetTrigger.SILENT)
        self._go_on(now)

    def handle_timer(self, now: float) -> None:
        """Repeat questions, give up addresses, begin with the next ones."""
        for target in self._under_way():
            if now >= target.due_at:
                self._repeat(target, now)
        self._go_on(now)

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        waits = [target.due_at for target in self._under_way()]
        if self._answered and self._meetings() < LAN_MEETINGS_MAX:
            waits.append(self._next_meeting)
        if self._ends_at is not None and not self._has_hope():
            waits.append(self._ends_at)
        return min(waits, default=None)

    def _go_on(self, now: float) -> None:
        """Ask for a connection where it is time, and probe the next addresses where there is room; or see that all is over."""
        while self._answered and now >= self._next_meeting and self._meetings() < LAN_MEETINGS_MAX:
            self._begin(self._answered.popleft(), LanTargetTrigger.CHOSEN, now)
            self._next_meeting = now + LAN_STAGGER
        while (self._near or self._far) and len(self._under_way()) < LAN_TARGETS_AT_ONCE:
            self._begin((self._near or self._far).popleft(), LanTargetTrigger.TURN, now)
        if self._ends_at is not None and now >= self._ends_at and not self._has_hope():
            self._ends_at = None
            self._events.append(LanExhausted())

    def _begin(self, target: LanTarget, trigger: LanTargetTrigger, now: float) -> None:
        target.move(trigger)
        target.mid, target.sends = new_mid(self._entropy), 0
        self._send(target, now)

    def _repeat(self, target: LanTarget, now: float) -> None:
        if target.sends < LAN_PROBES:
            self._send(target, now)
            return
        if target.state is LanTargetState.ASKING:
            self._next_meeting = now
        target.move(LanTargetTrigger.SILENT)

    def _send(self, target: LanTarget, now: float) -> None:
        if target.state is LanTargetState.PROBING:
            question = encode(HoleProbe(mid=target.mid, token=target.token))
        else:
            open_tcp = OpenTcp(mid=target.mid, token=target.token, extra=OpenTcpExtra(op=1))
            question = encode_padded(open_tcp, LAN_OPEN_PAD_BYTES)
        self._datagrams.append(Datagram(KeyedSender(target.keys.caller_mac).seal(question), target.address))
        target.sent_at, target.due_at = now, now + LAN_PROBE_FIRST * 2**target.sends
        target.sends += 1

    def _asked(self, answer: HoleAnswer | OpenTcpAnswer, source: Address) -> LanTarget | None:
        """Return the address that answers what it was asked; nobody answers for another one."""
        wanted = LanTargetState.PROBING if isinstance(answer, HoleAnswer) else LanTargetState.ASKING
        for target in self._targets.values():
            if target.state is wanted and (target.address, target.mid, target.token) == (source, answer.mid, answer.token):
                return target
        return None

    def _has_hope(self) -> bool:
        return any(target.state is not LanTargetState.DEAD for target in self._targets.values())

    def _under_way(self) -> list[LanTarget]:
        return [target for target in self._targets.values() if target.state in _UNDER_WAY]

    def _meetings(self) -> int:
        return sum(target.state in {LanTargetState.ASKING, LanTargetState.REACHED} for target in self._targets.values())


# --- the callee -------------------------------------------------------------------------------------------------------


class _Conkey(Struct, frozen=True):
    """A conkey that was given out; it is good for one connection, which begins with the selector, from that host."""

    selector: bytes
    host: str
    expires_at: float

    def __repr__(self) -> str:
        return f"_Conkey(host={self.host!r}, expires_at={self.expires_at})"


class LanPort(MachineBase):
    """A port of ours in our own network; for strangers it keeps nothing but how much they have sent.

    Args:
        key: Ours: who knows it is answered.
        salt: Of the mark that we announce.
        entropy: For conkeys.
        on_loopback: Answer on loopback, too: a test.
    """

    def __init__(self, key: PublicKey, salt: bytes, entropy: Entropy, *, on_loopback: bool = False) -> None:
        super().__init__()
        self.salt = salt
        """Calls count that know this one."""
        self._key = key
        self._entropy = entropy
        self._scopes = {"private", "link-local", *(("loopback",) if on_loopback else ())}
        self._sources = Buckets(Rate(LAN_DATAGRAMS_PER_SECOND, LAN_DATAGRAMS_BURST))
        self._conkeys: list[_Conkey] = []
        self._answered = AnswerMemory(most=LAN_CONKEYS_MAX, seconds=LAN_CONKEY_TTL)

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Answer a t=31 or t=32 from our network by somebody who knows our key; drop everything else."""
        if not self._is_near(source[0]):
            self._drop("not from a network like ours")
            return
        if port_refusal(source[1]):
            self._drop("from the port of a service")
            return
        if not self._sources.take(source[0], now):
            self._drop("too many")
            return
        message = self._decode(data)
        if not isinstance(message, HoleProbe | OpenTcp):
            self._drop("unexpected message")
            return
        keys = lan_keys(self._key.raw, self.salt, message.token)
        if not KeyedReceiver(keys.caller_mac).open(data):
            self._drop("not keyed")
            return
        answer = self._answer(message, keys, source, now)
        if answer is None:
            return
        sealed = KeyedSender(keys.callee_mac).seal(encode(answer))
        if len(sealed) > len(data) + _MINUS:
            self._drop("shorter than its answer")
        else:
            self._datagrams.append(Datagram(sealed, source))

    def handle_timer(self, now: float) -> None:
        """Forget conkeys that are too old."""
        self._conkeys = [conkey for conkey in self._conkeys if conkey.expires_at > now]

    def next_deadline(self) -> float | None:
        """Return when the oldest conkey ends."""
        return min((conkey.expires_at for conkey in self._conkeys), default=None)

    def waiting_for(self, host: str, now: float) -> int:
        """Return how many connections of a host would count now."""
        return len(self._good(host, now))

    def matches(self, selector: bytes, host: str, now: float) -> bool:
        """Tell whether a connection of this host names a conkey of its own; compared in constant time.

        It stays good until `spend`: who has only seen it cannot burn it.
        """
        return any(hmac.compare_digest(conkey.selector, selector) for conkey in self._good(host, now))

    def spend(self, selector: bytes) -> None:
        """Forget a conkey: its connection has come to a channel."""
        self._conkeys = [conkey for conkey in self._conkeys if conkey.selector != selector]

    def _answer(
        self, message: HoleProbe | OpenTcp, keys: LanKeys, source: Address, now: float
    ) -> HoleAnswer | OpenTcpAnswer | None:
        if isinstance(message, HoleProbe):
            return HoleAnswer(mid=message.mid, token=message.token)
        if message.extra.op != 1:
            return OpenTcpAnswer(mid=message.mid, token=message.token, code=400, em="unknown op")
        request = (source, message.mid, message.token)
        given = self._answered.recall(request, now)
        if given is None:
            given = self._new_conkey(keys, source[0], now)
            if given is None:
                self._drop("too many conkeys")
                return None
            self._answered.remember(request, given, now)
        return OpenTcpAnswer(mid=message.mid, token=message.token, code=200, em="", extra=ConkeyExtra(conkey=given.decode()))

    def _new_conkey(self, keys: LanKeys, host: str, now: float) -> bytes | None:
        """Return a fresh conkey; a host that has many loses its oldest: it may have given up call after call."""
        self.handle_timer(now)
        of_host = self._good(host, now)
        if len(of_host) >= LAN_CONKEYS_OF_SOURCE_MAX:
            self._conkeys.remove(of_host[0])
        if len(self._conkeys) >= LAN_CONKEYS_MAX:
            return None
        conkey = new_secret(self._entropy)
        self._conkeys.append(_Conkey(keys.selector(conkey), host, now + LAN_CONKEY_TTL))
        return conkey.encode()

    def _good(self, host: str, now: float) -> list[_Conkey]:
        return [conkey for conkey in self._conkeys if conkey.host == host and conkey.expires_at > now]

    def _is_near(self, host: str) -> bool:
        try:
            return scope_of(canonical(host)) in self._scopes
        except InvalidAddressError:
            return False
