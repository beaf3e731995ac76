"""How a peer shows itself in its own network: a mark that only who knows its key can read, and what keys the datagrams there.

`v=1 s=<salt> h=<hash>` stands in the TXT record of a DNS-SD service whose name is random: no tag, no key, no name of a host.
Who has pinned the key recognises its peer; to everybody else two marks of one machine are two machines.  Rule: no state, no
clock, no dice.  Source: RFC 6762, 6763; docs/protocol/lan.md.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Final

from msgspec import Struct

__all__ = ["LAN_SALT_BYTES", "LAN_SERVICE", "LanKeys", "LanMark", "decode_mark", "encode_mark", "lan_keys", "make_mark"]

LAN_SERVICE: Final = "_p2ptunnel._udp.local."
LAN_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 16
_VERSION: Final = b"1"
_CHARACTERS: Final = 22  # of 16 bytes in base64url
_MARK, _CALLER, _CALLEE, _SELECTOR = b"p2ptlanm", b"p2ptlanc", b"p2ptlans", b"p2ptlanx"  # what a hash is for: BLAKE2's `person`


class LanMark(Struct, frozen=True):
    """What stands in the TXT record: a salt, fresh at each start and in each network, and a hash of it under the peer's key."""

    salt: bytes
    digest: bytes

    def is_of(self, key: bytes) -> bool:
        """Tell whether it claims to be of the peer with this public key; anybody can repeat what was announced."""
        return hmac.compare_digest(self.digest, _hash(key, _MARK, self.salt))


class LanKeys(Struct, frozen=True):
    """What keys the datagrams of one attempt, each direction apart, and what becomes of a conkey."""

    caller_mac: bytes
    callee_mac: bytes
    selector_key: bytes

    def selector(self, conkey: str) -> bytes:
        """Return the 16 bytes with which the caller begins a TCP connection; who gives the conkey does not choose them.

        Whoever answers may stand before a service of somebody else's, which must not read there what he likes.
        """
        return hashlib.blake2s(conkey.encode(), key=self.selector_key, digest_size=_HASH_BYTES).digest()

    def __repr__(self) -> str:
        return "LanKeys(...)"


def make_mark(key: bytes, salt: bytes) -> LanMark:
    """Return the mark of a public key, 32 bytes, under a salt of 16."""
    return LanMark(salt, _hash(key, _MARK, salt))


def encode_mark(mark: LanMark) -> dict[str, bytes]:
    """Return the pairs of the TXT record."""
    return {"v": _VERSION, "s": _text(mark.salt), "h": _text(mark.digest)}


def decode_mark(pairs: Mapping[bytes, bytes | None]) -> LanMark | None:
    """Return the mark that the pairs of a TXT record hold; None if they hold none of ours."""
    salt, digest = _raw(pairs.get(b"s")), _raw(pairs.get(b"h"))
    if pairs.get(b"v") != _VERSION or salt is None or digest is None:
        return None
    return LanMark(salt, digest)


def lan_keys(key: bytes, salt: bytes, token: str) -> LanKeys:
    """Return what keys an attempt: known to whoever knows the callee's public key, so no proof of who sends.

    It keeps strangers from being answered at all, and from answering in a peer's name; TLS proves the rest.

    Args:
        key: The callee's public key.
        salt: Of its mark.
        token: The caller's, fresh for each service that it tries.
    """
    attempt = salt + token.encode()
    return LanKeys(*(_hash(key, person, attempt) for person in (_CALLER, _CALLEE, _SELECTOR)))


def _hash(key: bytes, person: bytes, data: bytes) -> bytes:
    return hashlib.blake2s(data, key=key, person=person, digest_size=_HASH_BYTES).digest()


def _text(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _raw(text: bytes | None) -> bytes | None:
    """Return the 16 bytes that a text spells in the one way there is."""
    if text is None or len(text) != _CHARACTERS:
        return None
    try:
        raw = base64.urlsafe_b64decode(text + b"==")
    except ValueError:
        return None
    return raw if _text(raw) == text else None
