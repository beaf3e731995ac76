"""Intents: who calls, who answers, and from where, as 170 signed bytes.  Rule: fixed layout, one spelling, no state, no clock.

What is signed is checked over the bytes received, so nobody ever signs JSON.  Source: docs/protocol/intents.md.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import struct
from typing import Final

from msgspec import Struct

__all__ = [
    "COUNTER_END",
    "INTENT_BYTES",
    "INTENT_CHARACTERS",
    "INTENT_VERSION",
    "NONCE_BYTES",
    "UNKNOWN_KEY",
    "Intent",
    "IntentRole",
    "MalformedIntentError",
    "decode",
    "encode",
    "hash_intent",
]

INTENT_VERSION: Final = 1
INTENT_BYTES: Final = 170
INTENT_CHARACTERS: Final = 227
NONCE_BYTES: Final = 16
COUNTER_END: Final = 2**62
"""No counter gets here: microseconds do in 146 000 years, and whoever names a higher one wants the next not to fit.

Counters of registrations have the same bound (`messages.Counter`).
"""
UNKNOWN_KEY: Final = bytes(32)
"""Stands where a key is signed that its signer does not know: a server without one, a callee before pairing."""

_LAYOUT: Final = struct.Struct("!BB32s32sQ16s16s64s")
_SIGNATURE_BYTES: Final = 64


class MalformedIntentError(ValueError):
    """Text that is no intent, or claims that cannot be bound to one: counted and dropped by whoever reads it."""


class IntentRole(enum.IntEnum):
    """Who signed, and what for."""

    CALL = 1
    ANSWER = 2
    RENEW = 3
    """The callee asks for another call: the counter of this one is too low, `ts` is the highest that it has seen."""
    REFUSE = 4
    """The callee does not let the caller in, or the call is meant for another key than its own."""


class Intent(Struct, frozen=True):
    """One intent.  `ts` is the caller's counter; in an answer, the highest that the callee has seen of this caller.

    Attributes:
        key: Ed25519 public key of the signer, 32 bytes.
        ephemeral: X25519 public key of this attempt, 32 bytes.
        nonce: 16 random bytes.
        claims: What `hash_claims` makes of where the signer says it is, and of its hints.
        signature: 64 bytes, over a purpose, what the signer knows of the others, and `signed`.
    """

    role: IntentRole
    key: bytes
    ephemeral: bytes
    ts: int
    nonce: bytes
    claims: bytes
    signature: bytes = bytes(_SIGNATURE_BYTES)

    def __repr__(self) -> str:
        return f"Intent({self.role.name}, ts={self.ts})"

    @property
    def raw(self) -> bytes:
        """All 170 bytes."""
        fields = (self.key, self.ephemeral, self.ts, self.nonce, self.claims, self.signature)
        return _LAYOUT.pack(INTENT_VERSION, self.role, *fields)

    @property
    def signed(self) -> bytes:
        """The bytes before the signature."""
        return self.raw[:-_SIGNATURE_BYTES]


def encode(intent: Intent) -> str:
    """Return the 227 characters that stand in `extra.intent`: base64url without padding."""
    return base64.urlsafe_b64encode(intent.raw).rstrip(b"=").decode("ascii")


def decode(text: str) -> Intent:
    """Return the intent that `text` spells; its signature has not been looked at.

    Raises:
        MalformedIntentError: Wrong length, another version, an unknown role, a counter at its end, no base64url, or a second
            spelling.
    """
    if len(text) != INTENT_CHARACTERS:
        raise MalformedIntentError(f"{len(text)} characters, not {INTENT_CHARACTERS}")
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=", altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise MalformedIntentError("not base64url") from None
    if len(raw) != INTENT_BYTES:  # its last character was padding already
        raise MalformedIntentError(f"{len(raw)} bytes, not {INTENT_BYTES}")
    version, role, *fields = _LAYOUT.unpack(raw)
    if version != INTENT_VERSION:
        raise MalformedIntentError(f"version {version}, not {INTENT_VERSION}")
    try:
        intent = Intent(IntentRole(role), *fields)
    except ValueError:
        raise MalformedIntentError(f"unknown role {role}") from None
    if intent.ts >= COUNTER_END:
        raise MalformedIntentError("a counter at its end")
    if encode(intent) != text:  # bits behind the last byte
        raise MalformedIntentError("not in the one spelling of these bytes")
    return intent


def hash_intent(intent: Intent) -> bytes:
    """Return the 32 bytes (BLAKE2s) by which an answer names the intent that it is for."""
    return hashlib.blake2s(intent.raw).digest()
