"""Pairing as machines: the desk at which a host takes guests, and the two sides of one attempt.

Rule: a code is burnt before anything is computed with it, and the host tells nothing that a guess could be checked against
before the guest has proved its own.  Bytes, arithmetic and files are the driver's (`session.pairing`); time comes in as `now`.

Source: docs/protocol/pairing.md.
"""

from __future__ import annotations

import enum
import hmac
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Final, TypeAlias

from msgspec import Struct

from p2ptunnel.defaults import PAIRING_FAILURES_MAX, PAIRING_FAILURES_WITHIN, PAIRING_PAUSE, PAIRING_SOURCES_MAX
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.identity.keys import PublicKey, Purpose, signed_bytes
from p2ptunnel.types import Tag
from p2ptunnel.wire.pairing import (
    PROOF_BYTES,
    Done,
    Exchange,
    Paired,
    PairingFrame,
    Proof,
    ProofKind,
    Refused,
    RefusedCode,
    Reply,
)

__all__ = [
    "GUEST_TRANSITIONS",
    "HOST_TRANSITIONS",
    "Bond",
    "Compute",
    "Desk",
    "GuestPairing",
    "HostPairing",
    "Keep",
    "Say",
    "Step",
]

_GUEST, _HOST = b"c", b"s"  # caller and callee: the roles in the proofs
_NO_ELEMENT: Final = bytes(PROOF_BYTES)


class Bond(Struct, frozen=True):
    """What ties a proof to the connection it travels on: both keys, both leaves, the attempt; each 32 bytes, the selector 16.

    A man in the middle has other leaves on either leg, and other keys if the server swapped them: no proof fits both.
    """

    guest: PublicKey
    host: PublicKey
    guest_leaf: bytes
    host_leaf: bytes
    selector: bytes

    def __repr__(self) -> str:
        return f"Bond({self.guest.short} to {self.host.short})"

    def ticket_proof(self, secret: bytes) -> bytes:
        """Return the guest's proof that it holds a ticket."""
        return hmac.digest(secret, signed_bytes(Purpose.TICKET, *self._fields()), "sha256")

    def guest_proof(self, key: bytes, elements: tuple[bytes, bytes]) -> bytes:
        """Return the guest's proof that it came to `key` by these elements, its own and the host's."""
        return self._proof(key, _GUEST, elements)

    def host_proof(self, key: bytes, messages: tuple[bytes, bytes]) -> bytes:
        """Return the host's proof: of what the exchange came to, or of the ticket's secret with the guest's proof of it."""
        return self._proof(key, _HOST, messages)

    def _proof(self, key: bytes, role: bytes, messages: tuple[bytes, bytes]) -> bytes:
        return hmac.digest(key, signed_bytes(Purpose.PAIRING, role, *self._fields(), *messages), "sha256")

    def _fields(self) -> tuple[bytes, ...]:
        return (self.guest.raw, self.host.raw, self.guest_leaf, self.host_leaf, self.selector)


# --- what a machine asks of its driver --------------------------------------------------------------------------------


class Say(Struct, frozen=True):
    """Send a frame."""

    frame: PairingFrame


class Compute(Struct, frozen=True):
    """Do the arithmetic of the exchange with the other side's element, and the host with these words; then call `exchanged`."""

    element: bytes
    words: str = ""

    def __repr__(self) -> str:
        return "Compute()"


class Keep(Struct, frozen=True):
    """Store the other side under this name, with what it tells of its services; then call `kept` or `not_kept`."""

    tag: Tag
    services: Mapping[str, tuple[str, ...]]


Step: TypeAlias = Say | Compute | Keep


# --- the desk ---------------------------------------------------------------------------------------------------------


class Desk:
    """What one invitation offers, and to how many; all attempts on it meet here.

    Args:
        secret: Of the ticket.
        words: Of the first code.
        expires_at: Monotonic seconds from which on nobody is taken.
        uses: How many guests it is for, 1 at least.
    """

    def __init__(self, secret: bytes, words: str, *, expires_at: float, uses: int) -> None:
        self.expires_at: Final = expires_at
        self.uses_left = uses
        self.is_closed = False
        """It was closed, or too many wrong codes came in too short a time."""
        self._secret: Final = secret
        self._words: str | None = words
        self._seen: Final[OrderedDict[str, float]] = OrderedDict()
        self._failures: Final[deque[float]] = deque(maxlen=PAIRING_FAILURES_MAX)

    def __repr__(self) -> str:
        return f"<Desk for {self.uses_left} more>"

    @property
    def secret(self) -> bytes:
        """The ticket's secret."""
        return self._secret

    @property
    def words(self) -> str | None:
        """The words of the code that holds now; None from the moment in which somebody tried it to the next `issue`."""
        return self._words

    def is_open(self, now: float) -> bool:
        """Tell whether a guest could still be taken."""
        return not self.is_closed and self.uses_left > 0 and now < self.expires_at

    def knock(self, source: str, now: float) -> RefusedCode | None:
        """Note an attempt from `source`; return why it may not go on, None where it may."""
        last = self._seen.get(source)
        if last is not None and now - last < PAIRING_PAUSE:
            return RefusedCode.TOO_SOON
        self._seen[source] = now
        self._seen.move_to_end(source)
        if len(self._seen) > PAIRING_SOURCES_MAX:
            self._seen.popitem(last=False)
        return None if self.is_open(now) else RefusedCode.NOT_VALID

    def burn(self) -> str | None:
        """Take the code out of use for good, and return its words for the one attempt; None if there is none."""
        words, self._words = self._words, None
        return words

    def issue(self, words: str) -> None:
        """Put a new code in the place of a burnt one."""
        self._words = words

    def fail(self, now: float) -> None:
        """Count a wrong code; so many in so short a time close the desk."""
        self._failures.append(now)
        if len(self._failures) == PAIRING_FAILURES_MAX and now - self._failures[0] < PAIRING_FAILURES_WITHIN:
            self.close()

    def take(self) -> bool:
        """Use one of the uses; tell whether there was one."""
        if self.is_closed or not self.uses_left:
            return False
        self.uses_left -= 1
        return True

    def close(self) -> None:
        """Take nobody any more."""
        self.is_closed = True

    def give_back(self) -> None:
        """Undo a `take`: the guest could not be stored."""
        self.uses_left += 1


# --- the host's side of one attempt -----------------------------------------------------------------------------------


class HostState(enum.Enum):
    """Where a host stands with one guest."""

    WAITING = "waiting"
    EXCHANGING = "exchanging"
    PROVING = "proving"
    KEEPING = "keeping"
    PAIRED = "paired"
    OVER = "over"


class HostTrigger(enum.Enum):
    """What moves it."""

    EXCHANGE = "exchange; the code is burnt"
    COMPUTED = "exchange computed"
    RIGHT = "proof right"
    KEPT = "guest stored"
    DONE = "done"
    ENDED = "refused, or lost"


_H, _HT = HostState, HostTrigger
HOST_TRANSITIONS: Final = {
    (_H.WAITING, _HT.EXCHANGE): _H.EXCHANGING,
    (_H.WAITING, _HT.RIGHT): _H.KEEPING,
    (_H.WAITING, _HT.ENDED): _H.OVER,
    (_H.EXCHANGING, _HT.COMPUTED): _H.PROVING,
    (_H.EXCHANGING, _HT.ENDED): _H.OVER,
    (_H.PROVING, _HT.RIGHT): _H.KEEPING,
    (_H.PROVING, _HT.ENDED): _H.OVER,
    (_H.KEEPING, _HT.KEPT): _H.PAIRED,
    (_H.KEEPING, _HT.ENDED): _H.OVER,
    (_H.PAIRED, _HT.DONE): _H.OVER,
    (_H.PAIRED, _HT.ENDED): _H.OVER,
}
"""Every legal transition of a host; what is not here cannot happen."""


class HostPairing:
    """One guest at the desk.

    Args:
        desk: Of the invitation.
        bond: Of this connection.
        source: Where the guest comes from, as far as attempts are counted.

    Attributes:
        failure: Why it came to nothing, in words for the host's owner; empty while it has not.
    """

    def __init__(self, desk: Desk, bond: Bond, source: str) -> None:
        self.state = HostState.WAITING
        self.failure = ""
        self._desk = desk
        self._bond = bond
        self._source = source
        self._steps: list[Step] = []
        self._key = desk.secret
        self._messages = (_NO_ELEMENT, _NO_ELEMENT)
        self._guest_element = _NO_ELEMENT

    @property
    def is_over(self) -> bool:
        """Nothing more is to be said or heard."""
        return self.state is HostState.OVER

    def steps(self) -> list[Step]:
        """Return and forget what is to be done, in order."""
        waiting, self._steps = self._steps, []
        return waiting

    def receive(self, frame: PairingFrame, now: float) -> None:
        """Take what the guest says; out of turn, it is refused."""
        match frame:
            case Exchange() if self.state is HostState.WAITING:
                self._begin_exchange(frame.element, now)
            case Proof(kind=ProofKind.TICKET) if self.state is HostState.WAITING:
                self._judge_ticket(frame, now)
            case Proof(kind=ProofKind.CODE) if self.state is HostState.PROVING:
                self._judge_code(frame, now)
            case Done() if self.state is HostState.PAIRED:
                self._move(HostTrigger.DONE)
            case _ if self.state is HostState.PAIRED:
                self._move(HostTrigger.ENDED)
            case _ if not self.is_over:
                self._give_up("it does not keep to the protocol", now)
            case _:
                pass

    def exchanged(self, element: bytes, key: bytes | None, now: float) -> None:
        """Go on after `Compute`.

        Args:
            element: Ours.
            key: What the exchange came to, 32 bytes; None where the guest's element was no such thing.
            now: Monotonic seconds.
        """
        if key is None:
            self._give_up("it does not keep to the protocol", now)
            return
        self._move(HostTrigger.COMPUTED)
        self._key, self._messages = key, (self._guest_element, element)
        self._steps.append(Say(Reply(element)))

    def kept(self, services: Mapping[str, tuple[str, ...]]) -> None:
        """Go on after `Keep`: the guest is stored, and may open these."""
        self._move(HostTrigger.KEPT)
        self._steps.append(Say(Paired(self._bond.host_proof(self._key, self._messages), services)))

    def not_kept(self, code: RefusedCode, why: str) -> None:
        """Go on after `Keep`: the guest is not stored, and its use is given back."""
        self._desk.give_back()
        self._refuse(code, why)

    def lost(self, now: float) -> None:
        """Learn that the guest has gone, or taken too long; when all is over, that is nothing."""
        if self.is_over:
            return
        self._give_back_unstored()
        if self.state in {HostState.EXCHANGING, HostState.PROVING}:
            self._desk.fail(now)  # who tries a code and goes has used up a guess
            self.failure = "it went away without a proof of the code"
        elif self.state is not HostState.PAIRED:
            self.failure = "it went away"
        self._move(HostTrigger.ENDED)

    def _begin_exchange(self, element: bytes, now: float) -> None:
        refusal = self._desk.knock(self._source, now)
        words = None if refusal else self._desk.burn()
        if words is None:
            self._refuse(refusal or RefusedCode.NOT_VALID, _REFUSALS[refusal])
            return
        self._move(HostTrigger.EXCHANGE)
        self._guest_element = element
        self._steps.append(Compute(element, words))

    def _judge_ticket(self, proof: Proof, now: float) -> None:
        refusal = self._desk.knock(self._source, now)
        if refusal:
            self._refuse(refusal, _REFUSALS[refusal])
        elif not hmac.compare_digest(proof.proof, self._bond.ticket_proof(self._desk.secret)):
            self._refuse(RefusedCode.NOT_VALID, "it has a wrong ticket")
        else:
            self._messages = (proof.proof, _NO_ELEMENT)
            self._admit(proof.tag)

    def _judge_code(self, proof: Proof, now: float) -> None:
        if hmac.compare_digest(proof.proof, self._bond.guest_proof(self._key, self._messages)):
            self._admit(proof.tag)
        else:
            self._give_up("it tried a wrong code", now)

    def _admit(self, tag: Tag) -> None:
        if self._desk.take():
            self._move(HostTrigger.RIGHT)
            self._steps.append(Keep(tag, {}))
        else:  # another guest was faster
            self._refuse(RefusedCode.NOT_VALID, "the invitation is used up")

    def _give_up(self, why: str, now: float) -> None:
        """Refuse whoever has spent a code, or said what is not to be said."""
        if self.state in {HostState.EXCHANGING, HostState.PROVING}:
            self._desk.fail(now)
        self._give_back_unstored()
        self._refuse(RefusedCode.NOT_VALID, why)

    def _give_back_unstored(self) -> None:
        """Undo a `take` where `Keep` was never handed out; after that, only `not_kept` says that nothing was stored."""
        if self.state is HostState.KEEPING and self._steps:
            self._desk.give_back()

    def _refuse(self, code: RefusedCode, why: str) -> None:
        self._move(HostTrigger.ENDED)
        self.failure = why
        self._steps = [Say(Refused(code))]

    def _move(self, trigger: HostTrigger) -> None:
        try:
            self.state = HOST_TRANSITIONS[self.state, trigger]
        except KeyError:
            raise LocalProtocolError(f"a host that is {self.state.value} takes no {trigger.value!r}") from None


_REFUSALS: Final = {
    None: "it tried a code that has been tried already",
    RefusedCode.TOO_SOON: "it tried again too soon",
    RefusedCode.NOT_VALID: "the invitation is over",
}


# --- the guest's side -------------------------------------------------------------------------------------------------


class GuestState(enum.Enum):
    """Where a guest stands."""

    EXCHANGING = "exchanging"
    PROVING = "proving"
    KEEPING = "keeping"
    PAIRED = "paired"
    REFUSED = "refused"


class GuestTrigger(enum.Enum):
    """What moves it."""

    COMPUTED = "exchange computed"
    RIGHT = "paired; the host's proof is right"
    WRONG = "refused, or a wrong proof"
    KEPT = "host stored"


_G, _GT = GuestState, GuestTrigger
GUEST_TRANSITIONS: Final = {
    (_G.EXCHANGING, _GT.COMPUTED): _G.PROVING,
    (_G.EXCHANGING, _GT.WRONG): _G.REFUSED,
    (_G.PROVING, _GT.RIGHT): _G.KEEPING,
    (_G.PROVING, _GT.WRONG): _G.REFUSED,
    (_G.KEEPING, _GT.KEPT): _G.PAIRED,
}
"""Every legal transition of a guest, which begins by exchanging with a code, by proving with a ticket."""


class GuestPairing:
    """A guest, with what it was given.

    Args:
        bond: Of this connection.
        tag: What it wants to be called.
        kind: What it was given.
        given: The secret of the ticket; or our element of the exchange under the code.

    Attributes:
        refusal: Why it came to nothing; None while it has not.
    """

    def __init__(self, bond: Bond, tag: Tag, kind: ProofKind, given: bytes) -> None:
        self.refusal: RefusedCode | None = None
        self.is_impostor = False
        """The host did not know the code or the ticket itself."""
        self._bond = bond
        self._tag = tag
        self._steps: list[Step] = []
        self._key = self._element = given
        self._messages = (_NO_ELEMENT, _NO_ELEMENT)
        if kind is ProofKind.TICKET:
            self.state = GuestState.PROVING
            proof = bond.ticket_proof(given)
            self._messages = (proof, _NO_ELEMENT)
            self._steps.append(Say(Proof(kind, proof, tag)))
        else:
            self.state = GuestState.EXCHANGING
            self._steps.append(Say(Exchange(given)))

    @property
    def is_over(self) -> bool:
        """Nothing more is to be said or heard."""
        return self.state in {GuestState.PAIRED, GuestState.REFUSED}

    def steps(self) -> list[Step]:
        """Return and forget what is to be done, in order."""
        waiting, self._steps = self._steps, []
        return waiting

    def receive(self, frame: PairingFrame) -> None:
        """Take what the host says; out of turn, it is no host of ours."""
        match frame:
            case Reply() if self.state is GuestState.EXCHANGING:
                self._messages = (self._element, frame.element)
                self._steps.append(Compute(frame.element))
            case Paired() if self.state is GuestState.PROVING:
                self._judge(frame)
            case Refused() if self.state in {GuestState.EXCHANGING, GuestState.PROVING}:
                known = frame.code in set(RefusedCode)
                self._end(RefusedCode(frame.code) if known else RefusedCode.NOT_VALID)
            case _ if self.state in {GuestState.EXCHANGING, GuestState.PROVING}:
                self._end(RefusedCode.NOT_VALID)
            case _:
                pass

    def exchanged(self, key: bytes | None) -> None:
        """Go on after `Compute` with what the exchange came to; None where the host's element was no such thing."""
        if key is None:
            self.is_impostor = True
            self._end(RefusedCode.NOT_VALID)
            return
        self._move(GuestTrigger.COMPUTED)
        self._key = key
        self._steps.append(Say(Proof(ProofKind.CODE, self._bond.guest_proof(key, self._messages), self._tag)))

    def kept(self) -> None:
        """Go on after `Keep`: the host is stored."""
        self._move(GuestTrigger.KEPT)
        self._steps.append(Say(Done()))

    def _judge(self, frame: Paired) -> None:
        if hmac.compare_digest(frame.proof, self._bond.host_proof(self._key, self._messages)):
            self._move(GuestTrigger.RIGHT)
            self._steps.append(Keep("", frame.services))
        else:
            self.is_impostor = True
            self._end(RefusedCode.NOT_VALID)

    def _end(self, code: RefusedCode) -> None:
        self._move(GuestTrigger.WRONG)
        self.refusal = code
        self._steps = []

    def _move(self, trigger: GuestTrigger) -> None:
        try:
            self.state = GUEST_TRANSITIONS[self.state, trigger]
        except KeyError:
            raise LocalProtocolError(f"a guest that is {self.state.value} takes no {trigger.value!r}") from None
