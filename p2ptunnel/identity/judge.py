"""What a server decides by keys: whether a registration is signed, a tag handed on, a member shown to be one.

Pure: no clock, no dice.  Source: wire document, t=1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Container
from typing import Final, NoReturn

from p2ptunnel.errors import InvalidKeyError
from p2ptunnel.identity.keys import KEY_BYTES, Identity, PublicKey, Purpose, registration_payload, signed_bytes
from p2ptunnel.types import Tag
from p2ptunnel.wire.intent import MalformedIntentError, decode
from p2ptunnel.wire.messages import ConnectRequestExtra, RegisterExtra, RelayJoinExtra

__all__ = [
    "COOKIE_BYTES",
    "Judge",
    "answer_payload",
    "from_base64",
    "join_proof",
    "member_payload",
    "rekey_payload",
    "relay_payload",
    "server_key_bytes",
    "to_base64",
]

COOKIE_BYTES: Final = 16
_PROOF_BYTES: Final = 16
_EPOCH_BYTES: Final = 8
_TOKEN_BYTES: Final = 64
_RELAY_ROLES: Final = {"caller": b"\x01", "callee": b"\x02"}
_NO_SERVER_KEY: Final = bytes(KEY_BYTES)


class Judge:
    """What a server decides by keys and tokens.  Malformed fields prove nothing; nothing is raised.

    Args:
        identity: The server's own; None: it has no key, and nobody can tell it from another.
        join_token: What members show they know; empty: nothing is asked.
        members: The public keys, as text, that it serves; None: all.
    """

    def __init__(
        self, identity: Identity | None = None, *, join_token: str = "", members: Container[str] | None = None
    ) -> None:
        self._identity = identity
        self._join_token = join_token
        self._members = members
        self.server_key: Final = str(identity.public) if identity else ""

    def __reduce__(self) -> NoReturn:
        raise TypeError("a judge is not pickled: its join token stays in one process")

    @property
    def is_private(self) -> bool:
        """Whether only members are served."""
        return bool(self._join_token) or self._members is not None

    def is_signed(self, tag: Tag, extra: RegisterExtra) -> bool:
        """Tell whether `extra.sig` is by `extra.key` over this registration of `tag` with this server."""
        payload = self._payload(tag, extra)
        return bool(payload) and _is_by(extra.key, extra.sig, payload)

    def is_handed_on(self, tag: Tag, extra: RegisterExtra) -> bool:
        """Tell whether `extra.old_key` has signed that `extra.key` is to have the tag."""
        payload = self._payload(tag, extra)
        return bool(payload) and _is_by(extra.old_key, extra.rekey, rekey_payload(payload))

    def proof(self, extra: RegisterExtra, epoch: int) -> str:
        """Return our signature under the answer to a registration, empty without a key."""
        if self._identity is None:
            return ""
        payload = answer_payload(self._identity.public, PublicKey.parse(extra.key), from_base64(extra.nonce), epoch)
        return to_base64(self._identity.sign(payload))

    def is_member(self, tag: Tag, extra: RegisterExtra) -> bool:
        """Tell whether we serve who sends this registration of `tag`; that it is signed is another question."""
        return self._is_joined(extra.join, extra.cookie, self._payload(tag, extra)) and self.is_listed(extra.key)

    def is_calling_member(self, extra: ConnectRequestExtra) -> bool:
        """Tell whether we serve who makes this call.

        A key shows that it is listed by signing our cookie: fresh, good from that address only, and nothing about the callee
        has a part in it, so that the answer, and how long it takes, is the same whoever is online.
        """
        if not self._is_joined(extra.join, extra.cookie, extra.intent.encode()):
            return False
        if self._members is None:
            return True
        key, payload = self.caller_key(extra.intent), member_payload(self.server_key, extra.cookie, extra.intent)
        return bool(payload) and self.is_listed(key) and _is_by(key, extra.sig, payload)

    def is_listed(self, key: str) -> bool:
        """Tell whether `key` is one that we serve."""
        return self._members is None or key in self._members

    def caller_key(self, call: str) -> str:
        """Return the key that a call says it is by, as text; empty without one.  Whether it is, its signatures show.

        Args:
            call: `extra.intent` of a t=4.
        """
        try:
            return str(PublicKey.from_bytes(decode(call).key))
        except (MalformedIntentError, InvalidKeyError):
            return ""

    def is_end(self, extra: RelayJoinExtra) -> bool:
        """Tell whether `extra.sig` is by `extra.key` over joining this server's relay."""
        try:
            payload = relay_payload(self.server_key, extra.token, extra.role, PublicKey.parse(extra.key))
        except (InvalidKeyError, ValueError):
            return False
        return _is_by(extra.key, extra.sig, payload)

    def _is_joined(self, join: str, cookie: str, of: bytes) -> bool:
        proof = join_proof(self._join_token, self.server_key, cookie, of)
        return not self._join_token or (bool(proof) and hmac.compare_digest(join.encode(), proof.encode()))

    def _payload(self, tag: Tag, extra: RegisterExtra) -> bytes:
        """Return what `extra` should have signed, nothing if it cannot have."""
        try:
            key = PublicKey.parse(extra.key)
            nonce, cookie = from_base64(extra.nonce), from_base64(extra.cookie)
            return registration_payload(server_key_bytes(self.server_key), tag, key.raw, extra.ts, nonce, cookie)
        except (InvalidKeyError, ValueError):
            return b""


def join_proof(join_token: str, server_key: str, cookie: str, of: bytes) -> str:
    """Return what shows to the server of `server_key` that who was given `cookie` knows the token; empty without either.

    The token itself is never sent.  The server's key is in it, so that no other server can collect proofs for this one, and so
    is what it is sent with, so that whoever sees one can do nothing else with it.

    Args:
        join_token: The token.
        server_key: As text, empty if it has none.
        cookie: As the server sent it.
        of: What a registration signs, or the `extra.intent` of a call.

    Raises:
        InvalidKeyError: `server_key` is no key.
    """
    cookie_bytes = from_base64(cookie)
    if not join_token or not of or len(cookie_bytes) != COOKIE_BYTES:
        return ""
    payload = signed_bytes(Purpose.JOIN, server_key_bytes(server_key), cookie_bytes, hashlib.sha256(of).digest())
    return to_base64(hmac.digest(join_token.encode(), payload, hashlib.sha256)[:_PROOF_BYTES])


def member_payload(server_key: str, cookie: str, call: str) -> bytes:
    """Return what a caller signs to show a server that its key is listed there; nothing without a cookie of the right form.

    Args:
        server_key: As text, empty if it has none.
        cookie: As the server sent it.
        call: The `extra.intent` that it goes with.

    Raises:
        InvalidKeyError: `server_key` is no key.
    """
    cookie_bytes = from_base64(cookie)
    if len(cookie_bytes) != COOKIE_BYTES:
        return b""
    return signed_bytes(Purpose.MEMBER, server_key_bytes(server_key), cookie_bytes, hashlib.sha256(call.encode()).digest())


def rekey_payload(registration: bytes) -> bytes:
    """Return what the old owner of a tag signs: the registration by which the new one takes it over."""
    return signed_bytes(Purpose.REKEY, registration)


def relay_payload(server_key: str, token: str, role: str, key: PublicKey) -> bytes:
    """Return what the owner of `key` signs who joins the relay of the server as one end of a call.

    Args:
        server_key: As text, empty if it has none; without it a server could use at another one what was signed for it.
        token: Of the call; at most 64 bytes, padded with zeros.
        role: `caller` or `callee`.
        key: The signer's.

    Raises:
        InvalidKeyError: `server_key` is no key.
        ValueError: There is no such role, or the token is too long or not ASCII.
    """
    padded = token.encode("ascii").ljust(_TOKEN_BYTES, b"\0")
    if role not in _RELAY_ROLES or len(padded) != _TOKEN_BYTES:
        raise ValueError("no such role" if role not in _RELAY_ROLES else f"a token of more than {_TOKEN_BYTES} bytes")
    return signed_bytes(Purpose.RELAY, server_key_bytes(server_key), padded, _RELAY_ROLES[role], key.raw)


def answer_payload(server: PublicKey, peer: PublicKey, nonce: bytes, epoch: int) -> bytes:
    """Return what a server signs that has taken the registration of `peer` with this nonce."""
    return signed_bytes(Purpose.SERVER, server.raw, peer.raw, nonce, epoch.to_bytes(_EPOCH_BYTES, "big"))


def _is_by(key: str, signature: str, payload: bytes) -> bool:
    try:
        return PublicKey.parse(key).verify(from_base64(signature), payload)
    except InvalidKeyError:
        return False


def server_key_bytes(text: str) -> bytes:
    """Return the 32 bytes that stand for a server's key where it is signed: zeros while it has none.

    Raises:
        InvalidKeyError: It is no key.
    """
    return PublicKey.parse(text).raw if text else _NO_SERVER_KEY


def to_base64(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def from_base64(text: str) -> bytes:
    """Return the bytes that base64url without padding spells, none if it is something else."""
    try:
        return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return b""
