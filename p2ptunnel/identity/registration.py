"""Who registers: the signed body of t=1, and what the server's answer must prove.  Source: wire document, t=1."""

from __future__ import annotations

import secrets
import time
from typing import Final

from msgspec.structs import replace

from p2ptunnel.defaults import WIRE_VERSION
from p2ptunnel.identity.judge import (
    COOKIE_BYTES,
    answer_payload,
    from_base64,
    join_proof,
    rekey_payload,
    server_key_bytes,
    to_base64,
)
from p2ptunnel.identity.keys import Identity, PublicKey, registration_payload
from p2ptunnel.types import Tag
from p2ptunnel.wire.intent import COUNTER_END
from p2ptunnel.wire.messages import Observed, RegisterExtra

__all__ = ["KeyCredentials"]

_NONCE_BYTES: Final = 16


class KeyCredentials:
    """Signs registrations of one tag with an identity.

    `ts` is a counter that looks like microseconds: newer than any before, whatever the clock says.

    Args:
        identity: Ours.
        tag: The tag.
        server_key: The server's public key as text, if it was given: then no other server is believed.
        join_token: What the server wants of its members.
        previous: The identity whose tag it is so far; it hands the tag on to `identity`.
    """

    def __init__(
        self,
        identity: Identity,
        tag: Tag,
        *,
        server_key: str = "",
        join_token: str = "",
        previous: Identity | None = None,
    ) -> None:
        self.server_key: Final = server_key
        self._identity = identity
        self._tag = tag
        self._join_token = join_token
        self._previous = previous
        self._last_ts = 0
        self._last_nonce = b""

    def register_extra(self, *, cookie: str, server_key: str, at_least_ts: int) -> RegisterExtra:
        """Return a freshly signed body; its `ts` is above `at_least_ts`, and above every one of ours that was not asked for.

        Without a cookie of the right form it is unsigned: the server will not look at it before it has sent one.

        Raises:
            ValueError: `server_key` is no key, or the counter is at its end.
        """
        key = str(self._identity.public)
        cookie_bytes = from_base64(cookie)
        if len(cookie_bytes) != COOKIE_BYTES:
            return RegisterExtra(v=WIRE_VERSION, key=key)
        self._last_ts = max(self._last_ts + 1, time.time_ns() // 1000)
        ts = max(self._last_ts, at_least_ts + 1)  # what a server wants holds for this body: anybody may answer in its name
        if ts >= COUNTER_END:
            raise ValueError("the counter is at its end")
        self._last_nonce = secrets.token_bytes(_NONCE_BYTES)
        payload = registration_payload(
            server_key_bytes(server_key), self._tag, self._identity.public.raw, ts, self._last_nonce, cookie_bytes
        )
        extra = RegisterExtra(
            v=WIRE_VERSION,
            key=key,
            ts=ts,
            nonce=to_base64(self._last_nonce),
            sig=to_base64(self._identity.sign(payload)),
            cookie=cookie,
            join=join_proof(self._join_token, server_key, cookie, payload),
        )
        if self._previous is None:
            return extra
        signature = to_base64(self._previous.sign(rekey_payload(payload)))
        return replace(extra, old_key=str(self._previous.public), rekey=signature)

    def is_proven(self, answer: Observed) -> bool:
        """Tell whether the server that answered our last body holds the key that was given for it, if one was."""
        if not self.server_key:
            return True
        payload = answer_payload(PublicKey.parse(self.server_key), self._identity.public, self._last_nonce, answer.epoch)
        return PublicKey.parse(self.server_key).verify(from_base64(answer.sig), payload)
