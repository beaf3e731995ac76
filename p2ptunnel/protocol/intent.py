"""Signed calls: the caller signs whom it wants and from where, the callee who answers and from where, both before a packet.

A callee that gets a call checks, cheapest first: form, who it says it is, whether it was there before, how much may be
verified now, and only then the signature.  Rule: nothing that is not verified is remembered, and nothing is said of it.

Source: docs/protocol/intents.md.
"""

from __future__ import annotations

import bisect
import enum
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct
from msgspec.structs import replace

from p2ptunnel.defaults import (
    INTENT_KEYS_MAX,
    INTENT_WINDOW,
    INTENTS_OF_SOURCE_PER_SECOND,
    INTENTS_PER_SECOND,
    PAIRING_CALL_PAUSE,
    STRANGERS_PER_SECOND,
)
from p2ptunnel.errors import InvalidKeyError
from p2ptunnel.identity.judge import member_payload, to_base64
from p2ptunnel.identity.keys import KEY_BYTES, Identity, PublicKey, Purpose, signed_bytes
from p2ptunnel.protocol.limits import Buckets, Rate, SourceLimit
from p2ptunnel.protocol.machine import Entropy
from p2ptunnel.types import Candidate
from p2ptunnel.wire.claims import hash_claims
from p2ptunnel.wire.intent import (
    COUNTER_END,
    NONCE_BYTES,
    UNKNOWN_KEY,
    Intent,
    IntentRole,
    MalformedIntentError,
    decode,
    encode,
    hash_intent,
)
from p2ptunnel.wire.messages import NatHints

__all__ = ["AnswerFault", "Answered", "AttemptKeys", "Call", "CallSigner", "CallVerdict", "Counter", "IntentJudge"]

_PURPOSE: Final = b"p2pt-attempt-1"
_MAC_KEY_BYTES: Final = 32
_SEAL_KEY_BYTES: Final = 32
_SELECTOR_BYTES: Final = 16


class Counter(Protocol):
    """A number that only grows, over restarts too (`identity.counter`)."""

    def next(self, at_least: int = 0) -> int:
        """Return a value above every one before, and above `at_least`."""
        ...


class AttemptKeys:
    """The keys of one attempt: for the MACs and for the sealing of each direction, and the attempt's selector.

    Attributes:
        caller_mac: 32 bytes, of datagrams that the caller sends.
        callee_mac: 32 bytes, of those that the callee sends.
        caller_seal: 32 bytes, of what the caller tells through the server.
        callee_seal: 32 bytes, of what the callee does.
        selector: 16 bytes, of the connections over the relay.
        conkey: 16 bytes, of the direct ones.
    """

    __slots__ = ("callee_mac", "callee_seal", "caller_mac", "caller_seal", "conkey", "selector")

    def __init__(self, shared: bytes, call: Intent, answer: Intent) -> None:
        salt = Hash(SHA256())
        salt.update(call.raw + answer.raw)
        length = 2 * _MAC_KEY_BYTES + 2 * _SEAL_KEY_BYTES + 2 * _SELECTOR_BYTES
        material = HKDF(SHA256(), length, salt=salt.finalize(), info=_PURPOSE).derive(shared)
        self.caller_mac, self.callee_mac = material[:32], material[32:64]
        self.caller_seal, self.callee_seal = material[64:96], material[96:128]
        self.selector, self.conkey = material[128:144], material[144:]


# --- the caller --------------------------------------------------------------------------------------------------------


class AnswerFault(enum.Enum):
    """Why an answer does not count."""

    UNSIGNED = "it is not signed"
    OTHER_KEY = "it is signed by another key"
    FORGED = "its signature does not hold"


class Answered(Struct, frozen=True):
    """An answer that counts: who gave it, and the keys of the attempt."""

    key: PublicKey
    keys: AttemptKeys


class CallSigner:
    """The calls of one attempt, signed; a renewed one takes the place of the one before.

    Args:
        identity: The caller's.
        counter: The caller's.
        entropy: A CSPRNG: the attempt's secret comes from it.
        callee: The pinned key; None while pairing by a spoken code: whoever answers is taken, and proves itself later.
        server_key: The rendezvous server's, 32 bytes; zeros while it has none.
    """

    def __init__(
        self,
        identity: Identity,
        counter: Counter,
        entropy: Entropy,
        *,
        callee: PublicKey | None,
        server_key: bytes = UNKNOWN_KEY,
    ) -> None:
        self.callee: Final = callee
        self._identity = identity
        self._counter = counter
        self._entropy = entropy
        self._server_key = server_key
        self._secret = _new_secret(entropy)
        self._at_least = 0
        self._call: Intent | None = None

    def sign(self, candidates: Sequence[Candidate], hints: NatHints | None = None) -> str:
        """Return the `extra.intent` of a call from these candidates, with these hints.

        Raises:
            MalformedIntentError: A candidate's host is not numeric, or the counter is at its end.
        """
        ts = self._next_counter()
        public = self._secret.public_key().public_bytes_raw()
        key = self._identity.public.raw
        nonce = _random_bytes(self._entropy, NONCE_BYTES)
        unsigned = Intent(IntentRole.CALL, key, public, ts, nonce, hash_claims(candidates, hints))
        callee = UNKNOWN_KEY if self.callee is None else self.callee.raw
        signature = self._identity.sign(_call_payload(self._server_key, callee, unsigned))
        self._call = replace(unsigned, signature=signature)
        return encode(self._call)

    def vouch(self, call: str, cookie: str, server_key: str) -> str:
        """Return the `extra.sig` of a t=4 with this call, empty without a cookie to sign.

        Raises:
            InvalidKeyError: `server_key` is no key.
        """
        payload = member_payload(server_key, cookie, call)
        return to_base64(self._identity.sign(payload)) if payload else ""

    def judge(self, text: str, candidates: Sequence[Candidate], hints: NatHints | None = None) -> Answered | AnswerFault:
        """Judge the `extra.intent` that came with the answer to the last call; cheap checks first."""
        answer = self._verified(text, IntentRole.ANSWER)
        if isinstance(answer, AnswerFault):
            return answer
        call = self._call
        assert call is not None
        try:
            is_bound = answer.claims == hash_claims(candidates, hints)
            shared = self._secret.exchange(X25519PublicKey.from_public_bytes(answer.ephemeral))
        except (MalformedIntentError, ValueError):  # ValueError: a point of small order
            return AnswerFault.FORGED
        if not is_bound:
            return AnswerFault.FORGED
        return Answered(PublicKey(answer.key), AttemptKeys(shared, call, answer))

    def renew(self, text: str) -> bool:
        """Tell whether the callee, and not somebody else, asks for a call with a higher counter; the next one has it."""
        answer = self._verified(text, IntentRole.RENEW)
        if isinstance(answer, AnswerFault) or answer.ts + 1 >= COUNTER_END:
            return False
        self._at_least = max(self._at_least, answer.ts)
        return True

    def is_of_another(self, text: str) -> bool:
        """Tell whether a no comes from somebody with another key than the pinned one: the call was not meant for it."""
        return self._verified(text, IntentRole.REFUSE) is AnswerFault.OTHER_KEY

    def _next_counter(self) -> int:
        """Return the counter of the next call; one that a callee has asked for lifts the machine's, if that may be trusted.

        All calls of the machine share it, so nobody may bring it near its end: what is asked for in the upper half, or by a
        callee whose key is yet to be learnt, holds for this attempt alone.
        """
        if self.callee is not None and self._at_least < COUNTER_END // 2:
            ts = self._counter.next(self._at_least)
        else:
            ts = max(self._counter.next(), self._at_least + 1)
        if ts >= COUNTER_END:
            raise MalformedIntentError("the counter is at its end")
        return ts

    def _verified(self, text: str, role: IntentRole) -> Intent | AnswerFault:
        if self._call is None or not text:
            return AnswerFault.UNSIGNED
        try:
            answer = decode(text)
            key = PublicKey(answer.key)
        except (MalformedIntentError, InvalidKeyError):
            return AnswerFault.FORGED
        if answer.role is not role:
            return AnswerFault.FORGED
        payload = _answer_payload(self._server_key, self._call, answer)
        if not key.verify(answer.signature, payload):
            return AnswerFault.FORGED
        return answer if self.callee in {None, key} else AnswerFault.OTHER_KEY


# --- the callee --------------------------------------------------------------------------------------------------------


class CallVerdict(enum.Enum):
    """What becomes of a call that was looked at in full."""

    ADMITTED = "admitted"
    PAIRING = "a stranger, while pairing is open"
    REFUSED = "a stranger"
    FORGED = "its signature does not hold, or is meant for another key"
    STALE = "its counter is too low"


class Call(Struct, frozen=True):
    """A call that was looked at in full.

    Attributes:
        key: Who calls: it has signed, unless the call is forged, and proves itself again in the channel.
        verdict: What becomes of it.
        intent: As it came.
        highest: The highest counter seen of this key, this one's among them.
    """

    key: PublicKey
    verdict: CallVerdict
    intent: Intent
    highest: int


class IntentJudge:
    """Judges calls, and signs answers.

    Args:
        identity: The callee's.
        entropy: A CSPRNG: the secrets of attempts come from it.
        is_admitted: Whether a key may connect, asked for every call.
        is_pairing_open: Whether strangers are let in now, one each two seconds.
        server_key: The rendezvous server's, 32 bytes; zeros while it has none.
    """

    def __init__(
        self,
        identity: Identity,
        entropy: Entropy,
        *,
        is_admitted: Callable[[PublicKey], bool],
        is_pairing_open: Callable[[], bool] = lambda: False,
        server_key: bytes = UNKNOWN_KEY,
    ) -> None:
        self._identity = identity
        self._entropy = entropy
        self._is_admitted = is_admitted
        self._is_pairing_open = is_pairing_open
        self._server_key = server_key
        self._seen: OrderedDict[PublicKey, list[tuple[int, bytes]]] = OrderedDict()  # counter and nonce, sorted
        self._hosts: dict[PublicKey, str] = {}  # where each of these called from last
        of_one = Rate(INTENTS_OF_SOURCE_PER_SECOND, INTENTS_OF_SOURCE_PER_SECOND)
        self._halves = Buckets(Rate(INTENTS_PER_SECOND / 2, INTENTS_PER_SECOND / 2), most=2)  # from where it was last, or not
        self._sources = SourceLimit(of_one)
        self._keys = Buckets(of_one)
        self._strangers = Buckets(Rate(STRANGERS_PER_SECOND, STRANGERS_PER_SECOND), most=1)
        self._pairing = Buckets(Rate(1 / PAIRING_CALL_PAUSE, 1), most=1)

    def judge(
        self, text: str, candidates: Sequence[Candidate], source: str, now: float, *, hints: NatHints | None = None
    ) -> Call | str:
        """Judge the `extra.intent` of a call; the text says why nothing at all is to be done.

        Args:
            text: As it came.
            candidates: The caller's, as they came with it.
            source: The caller's host, as the server sees it; rates are kept by it.
            now: Monotonic seconds.
            hints: The caller's, as they came with it.
        """
        try:
            intent = decode(text)
            key = PublicKey(intent.key)
            is_bound = intent.role is IntentRole.CALL and intent.claims == hash_claims(candidates, hints)
        except (MalformedIntentError, InvalidKeyError):
            return "no intent"
        if not is_bound:
            return "an intent for something else"
        is_admitted, is_pairing = self._is_admitted(key), self._is_pairing_open()
        if (intent.ts, intent.nonce) in self._seen.get(key, ()):
            return "intent repeated"
        is_signed = self._verify(key, intent, source, now, is_admitted=is_admitted, is_pairing=is_pairing)
        if is_signed is None:
            return "too many intents"
        if not is_signed:
            return Call(key, CallVerdict.FORGED, intent, intent.ts)
        if not (is_admitted or is_pairing):
            return Call(key, CallVerdict.REFUSED, intent, intent.ts)
        if not self._is_high_enough(key, intent.ts):
            return Call(key, CallVerdict.STALE, intent, self._highest(key))
        if not (is_admitted or self._pairing.take(None, now)):
            return "too many strangers"
        self._remember(key, intent, source)
        verdict = CallVerdict.ADMITTED if is_admitted else CallVerdict.PAIRING
        return Call(key, verdict, intent, self._highest(key))

    def answer(
        self, call: Call, candidates: Sequence[Candidate], hints: NatHints | None = None
    ) -> tuple[str, AttemptKeys] | None:
        """Return the `extra.intent` of our answer and the keys of the attempt; None where the caller's point is unusable.

        Raises:
            MalformedIntentError: A host among our candidates is not numeric.
        """
        secret = _new_secret(self._entropy)
        try:
            shared = secret.exchange(X25519PublicKey.from_public_bytes(call.intent.ephemeral))
        except ValueError:  # a point of small order: anybody would know the keys
            return None
        answer = self._sign(call, IntentRole.ANSWER, secret.public_key().public_bytes_raw(), hash_claims(candidates, hints))
        return encode(answer), AttemptKeys(shared, call.intent, answer)

    def renew(self, call: Call) -> str:
        """Return the `extra.intent` that asks for a call with a higher counter."""
        return encode(self._sign(call, IntentRole.RENEW, bytes(KEY_BYTES), hash_claims(())))

    def refuse(self, call: Call) -> str:
        """Return the `extra.intent` of a no, which is the same for all who are not let in, and shows our key."""
        return encode(self._sign(call, IntentRole.REFUSE, bytes(KEY_BYTES), hash_claims(())))

    def _sign(self, call: Call, role: IntentRole, ephemeral: bytes, claims: bytes) -> Intent:
        nonce = _random_bytes(self._entropy, NONCE_BYTES)
        key = self._identity.public.raw
        unsigned = Intent(role, key, ephemeral, call.highest, nonce, claims)
        signature = self._identity.sign(_answer_payload(self._server_key, call.intent, unsigned))
        return replace(unsigned, signature=signature)

    def _verify(
        self, key: PublicKey, intent: Intent, source: str, now: float, *, is_admitted: bool, is_pairing: bool
    ) -> bool | None:
        """Tell whether it is signed, None if that costs more than there is; strangers cannot use up what peers need.

        Whoever has not signed is a stranger, whatever key it names.  Each call takes a stranger's token, a peer's gives it
        back, and a forged one is answered for a token only: were it any other way, anybody could find out whom we admit.
        """
        if not self._sources.take(source, now):
            return None
        has_token = self._strangers.take(None, now)
        has_share = is_admitted and self._halves.take(self._hosts.get(key) == source, now)
        if not (has_share or has_token):
            return None
        if not self._is_signed(key, intent, is_pairing=is_pairing):
            return False if has_token else None
        if has_share and has_token:
            self._strangers.give_back(None)
        return not is_admitted or self._keys.take(key, now) or None  # not before: forged calls would use it up

    def _is_signed(self, key: PublicKey, intent: Intent, *, is_pairing: bool) -> bool:
        """Verify; who pairs by a spoken code does not know our key yet."""
        callees = (self._identity.public.raw, UNKNOWN_KEY) if is_pairing else (self._identity.public.raw,)
        return any(key.verify(intent.signature, _call_payload(self._server_key, callee, intent)) for callee in callees)

    def _is_high_enough(self, key: PublicKey, ts: int) -> bool:
        """Tell whether the counter is above the smallest that is remembered, and new: a file that was lost is no replay."""
        seen = self._seen.get(key)
        return not seen or (ts > seen[0][0] and all(ts != other for other, _ in seen))

    def _highest(self, key: PublicKey) -> int:
        return self._seen[key][-1][0]

    def _remember(self, key: PublicKey, intent: Intent, source: str) -> None:
        seen = self._seen.setdefault(key, [])
        bisect.insort(seen, (intent.ts, intent.nonce))
        del seen[:-INTENT_WINDOW]
        self._seen.move_to_end(key)
        self._hosts[key] = source
        if len(self._seen) > INTENT_KEYS_MAX:
            oldest, _ = self._seen.popitem(last=False)
            del self._hosts[oldest]


# --- what both sign ----------------------------------------------------------------------------------------------------


def _call_payload(server_key: bytes, callee: bytes, intent: Intent) -> bytes:
    return signed_bytes(Purpose.INTENT, server_key, callee, intent.signed)


def _answer_payload(server_key: bytes, call: Intent, answer: Intent) -> bytes:
    return signed_bytes(Purpose.ANSWER, server_key, call.key, hash_intent(call), answer.signed)


def _random_bytes(entropy: Entropy, count: int) -> bytes:
    return entropy.getrandbits(8 * count).to_bytes(count, "big")


def _new_secret(entropy: Entropy) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(_random_bytes(entropy, KEY_BYTES))
