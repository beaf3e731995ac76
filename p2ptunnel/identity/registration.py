"""Who registers: the signed body of t=1, made and judged.  Source: wire document, t=1."""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from typing import Final

from p2ptunnel.defaults import WIRE_VERSION
from p2ptunnel.errors import InvalidKeyError
from p2ptunnel.identity.keys import KEY_BYTES, Identity, PublicKey, registration_payload
from p2ptunnel.types import Tag
from p2ptunnel.wire.messages import RegisterExtra

__all__ = ["KeyCredentials", "verify_registration"]

_NONCE_BYTES: Final = 16
_COOKIE_BYTES: Final = 16
_NO_SERVER_KEY: Final = bytes(KEY_BYTES)


class KeyCredentials:
    """Signs registrations of one tag with an identity.

    `ts` is a counter that looks like microseconds: newer than any before, whatever the clock says.
    """

    def __init__(self, identity: Identity, tag: Tag) -> None:
        self._identity = identity
        self._tag = tag
        self._last_ts = 0

    def register_extra(self, *, cookie: str, server_key: str, at_least_ts: int) -> RegisterExtra:
        """Return a freshly signed body; its `ts` is above `at_least_ts` and above that of any body before.

        Without a cookie of the right form it is unsigned: the server will not look at it before it has sent one.
        """
        key = str(self._identity.public)
        cookie_bytes = _from_base64(cookie)
        if len(cookie_bytes) != _COOKIE_BYTES:
            return RegisterExtra(v=WIRE_VERSION, key=key)
        self._last_ts = max(self._last_ts + 1, at_least_ts + 1, time.time_ns() // 1000)
        nonce = secrets.token_bytes(_NONCE_BYTES)
        payload = registration_payload(
            _server_key(server_key), self._tag, self._identity.public.raw, self._last_ts, nonce, cookie_bytes
        )
        return RegisterExtra(
            v=WIRE_VERSION,
            key=key,
            ts=self._last_ts,
            nonce=_to_base64(nonce),
            sig=_to_base64(self._identity.sign(payload)),
            cookie=cookie,
        )


def verify_registration(tag: Tag, extra: RegisterExtra, server_key: str) -> bool:
    """Tell whether `extra.sig` is by `extra.key` over this registration of `tag` with this server.

    Malformed fields are no valid signature; nothing is raised.
    """
    try:
        key = PublicKey.parse(extra.key)
        nonce, cookie = _from_base64(extra.nonce), _from_base64(extra.cookie)
        payload = registration_payload(_server_key(server_key), tag, key.raw, extra.ts, nonce, cookie)
    except (InvalidKeyError, ValueError):
        return False
    return key.verify(_from_base64(extra.sig), payload)


def _server_key(text: str) -> bytes:
    return PublicKey.parse(text).raw if text else _NO_SERVER_KEY


def _to_base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        return b""
