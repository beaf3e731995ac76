"""Signals: what the two peers of an attempt tell each other through the server (t=12), typed and sealed from end to end.

`extra.sealed` is base64url of a counter (8 bytes, big endian) and of what ChaCha20-Poly1305 makes of one JSON object; its nonce
is four zero bytes and the counter.  Each direction of each attempt has a key of its own, so no nonce comes twice.

Rule: no state but counters, no clock; what does not open is a `SignalFault`, never raised.  Source: docs/protocol/signals.md.
"""

from __future__ import annotations

import base64
import binascii
import enum
from typing import Annotated, Final, TypeAlias

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from msgspec import Meta, Struct

from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.types import Candidate, Transport
from p2ptunnel.wire.keyed import ReplayWindow
from p2ptunnel.wire.messages import Port, PortRow

__all__ = [
    "GO_PORTS_MAX",
    "SEALED_CHARACTERS",
    "SIGNAL_BYTES",
    "Again",
    "FreshPort",
    "GoAhead",
    "MoreCandidates",
    "SignalBody",
    "SignalFault",
    "SignalReceiver",
    "SignalSender",
    "Swap",
    "Sync",
]

SEALED_CHARACTERS: Final = 1024
"""`extra.sealed` has no more (`messages.SignalExtra`)."""
_COUNTER_BYTES: Final = 8
_TAG_BYTES: Final = 16
SIGNAL_BYTES: Final = SEALED_CHARACTERS * 3 // 4 - _COUNTER_BYTES - _TAG_BYTES
"""One JSON object has no more: 744."""

GO_PORTS_MAX: Final = 8
"""A go-ahead shows no more ports."""

_Candidates: TypeAlias = Annotated[tuple[Candidate, ...], Meta(max_length=8)]
_Round: TypeAlias = Annotated[int, Meta(ge=0, le=1000)]


class _Body(Struct, frozen=True, kw_only=True, tag_field="op", omit_defaults=True):
    """Bodies are told apart by `op`; unknown members are ignored."""


class Sync(_Body, frozen=True, tag="sync"):
    """Caller, with -11: I have your answer.  Whoever reads it knows that the caller hears, before any hole is open."""


class MoreCandidates(_Body, frozen=True, tag="cands"):
    """Candidates beyond those that the intent binds; sealed, they are as good."""

    cands: _Candidates


class FreshPort(_Body, frozen=True, tag="ports"):
    """Where my NAT stands now: seen from the port that I punch with, just before its SYNs leave."""

    proto: Transport
    row: PortRow
    round: _Round = 0


class GoAhead(_Body, frozen=True, tag="go"):
    """Hard side of a birthday: my holes are open, go on guessing.  `ports`: outside ports that my NAT has given lately."""

    round: _Round = 0
    ports: Annotated[tuple[Port, ...], Meta(max_length=GO_PORTS_MAX)] = ()


class Swap(_Body, frozen=True, tag="swap"):
    """In the round of this number the other side opens first."""

    round: _Round


class Again(_Body, frozen=True, tag="again"):
    """I begin the round of this number, from a fresh port with these candidates; who has not begun it does, and says so."""

    round: _Round
    cands: _Candidates = ()


SignalBody: TypeAlias = Sync | MoreCandidates | FreshPort | GoAhead | Swap | Again

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final[msgspec.json.Decoder[SignalBody]] = msgspec.json.Decoder(SignalBody)


class SignalFault(enum.Enum):
    """Why a signal does not count."""

    FORGED = "it is not sealed with the key of this direction"
    REPLAYED = "it was here before"
    UNKNOWN = "it is sealed right, and says nothing that we know"


class SignalSender:
    """Seals what one side of an attempt says; each signal gets the next counter.  A t=12 that is repeated is not sealed again.

    Args:
        key: 32 bytes, of this direction of this attempt (`AttemptKeys`).
    """

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._counter = 0

    def seal(self, body: SignalBody) -> str:
        """Return the `extra.sealed` that says `body`.

        Raises:
            LocalProtocolError: It is longer than 744 bytes: candidates whose hosts are not in their one spelling.
        """
        plain = _ENCODER.encode(body)
        if len(plain) > SIGNAL_BYTES:
            raise LocalProtocolError(f"a signal of {len(plain)} bytes, more than {SIGNAL_BYTES}")
        self._counter += 1
        counter = self._counter.to_bytes(_COUNTER_BYTES, "big")
        return base64.urlsafe_b64encode(counter + self._aead.encrypt(_nonce(counter), plain, None)).rstrip(b"=").decode("ascii")


class SignalReceiver:
    """Opens what the other side says; each counter counts once, and none that is 64 or more below the highest.

    Args:
        key: 32 bytes, of the other direction.
    """

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._window = ReplayWindow()

    def open(self, sealed: str) -> SignalBody | SignalFault:
        """Return what `sealed` says, or why it does not count."""
        raw = _raw(sealed)
        counter, box = raw[:_COUNTER_BYTES], raw[_COUNTER_BYTES:]
        if len(box) < _TAG_BYTES:
            return SignalFault.FORGED
        try:
            plain = self._aead.decrypt(_nonce(counter), box, None)
        except InvalidTag:
            return SignalFault.FORGED
        if not self._window.take(int.from_bytes(counter, "big")):
            return SignalFault.REPLAYED
        try:
            return _DECODER.decode(plain)
        except (msgspec.MsgspecError, ValueError, RecursionError):  # no UTF-8; members of no interest, hundreds of levels deep
            return SignalFault.UNKNOWN


def _raw(sealed: str) -> bytes:
    """Return the bytes that are spelt, none if it is no base64url; another spelling of the same bytes is only a replay."""
    try:
        return base64.b64decode(sealed.encode("ascii") + b"=" * (-len(sealed) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return b""


def _nonce(counter: bytes) -> bytes:
    return bytes(4) + counter
