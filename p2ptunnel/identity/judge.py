"""What a server decides by keys: whether a registration is signed, a tag handed on, a member shown to be one.

Pure: no clock, no dice.  Source: wire document, t=1.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Container
from typing import Final

from p2ptunnel.errors import InvalidKeyError
from p2ptunnel.identity.keys import KEY_BYTES, Identity, PublicKey, Purpose, registration_payload, signed_bytes
from p2ptunnel.types import Tag
from p2ptunnel.wire.intent import UNKNOWN_KEY, Intent, MalformedIntentError, decode
from p2ptunnel.wire.messages import RegisterExtra

__all__ = [
    "COOKIE_BYTES",
    "Judge",
    "answer_payload",
    "from_base64",
    "join_proof",
    "rekey_payload",
    "server_key_bytes",
    "to_base64",
]

COOKIE_BYTES: Final = 16
_PROOF_BYTES: Final = 16
_EPOCH_BYTES: Final = 8
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

    def is_joined(self, join: str, cookie: str) -> bool:
        """Tell whether `join` shows that who was given `cookie` knows the join token."""
        proof = join_proof(self._join_token, self.server_key, cookie)
        return not self._join_token or (bool(proof) and hmac.compare_digest(join.encode(), proof.encode()))

    def is_listed(self, key: str) -> bool:
        """Tell whether `key` is one that we serve."""
        return self._members is None or key in self._members

    def is_listed_caller(self, call: str, callee_key: str) -> bool:
        """Tell whether a call is signed by a key that we serve.

        Args:
            call: `extra.intent` of a t=4.
            callee_key: Of the registered callee, empty if nobody is registered.
        """
        if self._members is None:
            return True
        try:
            intent = decode(call)
            caller = PublicKey.from_bytes(intent.key)
        except (MalformedIntentError, InvalidKeyError):
            return False
        return str(caller) in self._members and self._is_call(intent, caller, callee_key)

    def _is_call(self, intent: Intent, caller: PublicKey, callee_key: str) -> bool:
        """Check the signature; who calls may not know our key, or not yet know the callee's."""
        servers, callees = ({server_key_bytes(key), UNKNOWN_KEY} for key in (self.server_key, callee_key))
        return any(
            caller.verify(intent.signature, signed_bytes(Purpose.INTENT, server, callee, intent.signed))
            for server in servers
            for callee in callees
        )

    def _payload(self, tag: Tag, extra: RegisterExtra) -> bytes:
        """Return what `extra` should have signed, nothing if it cannot have."""
        try:
            key = PublicKey.parse(extra.key)
            nonce, cookie = from_base64(extra.nonce), from_base64(extra.cookie)
            return registration_payload(server_key_bytes(self.server_key), tag, key.raw, extra.ts, nonce, cookie)
        except (InvalidKeyError, ValueError):
            return b""


def join_proof(join_token: str, server_key: str, cookie: str) -> str:
    """Return what shows to the server of `server_key` that who was given `cookie` knows the token; empty without either.

    The token itself is never sent.  The server's key is in it, so that no other server can collect proofs for this one.
    """
    cookie_bytes = from_base64(cookie)
    if not join_token or len(cookie_bytes) != COOKIE_BYTES:
        return ""
    payload = signed_bytes(Purpose.JOIN, server_key_bytes(server_key), cookie_bytes)
    return to_base64(hmac.digest(join_token.encode(), payload, hashlib.sha256)[:_PROOF_BYTES])


def rekey_payload(registration: bytes) -> bytes:
    """Return what the old owner of a tag signs: the registration by which the new one takes it over."""
    return signed_bytes(Purpose.REKEY, registration)


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
