"""The stateless cookie: proof that whoever asks receives at the address it asks from.

`HMAC-SHA256(key of the epoch, ip)[:16]` in base64url; the current and the previous epoch's are good.  It covers the IP, not the
port, so that a known peer's next socket pays no round trip.  Source: wire document, "What the seed leaves open".
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from p2ptunnel.defaults import COOKIE_EPOCH

__all__ = ["CookieJar"]


class CookieJar:
    """Makes and checks cookies; holds one secret and what follows from it."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._keys: dict[int, bytes] = {}

    def make(self, host: str, now: float) -> str:
        """Return the cookie of `host`, 22 characters, good for 30 to 60 s from `now`."""
        return self._cookie(host, int(now // COOKIE_EPOCH))

    def is_valid(self, cookie: str, host: str, now: float) -> bool:
        """Tell whether `cookie` was made for `host` in this epoch or the one before."""
        epoch = int(now // COOKIE_EPOCH)
        offered = cookie.encode()
        return any(hmac.compare_digest(offered, self._cookie(host, e).encode()) for e in (epoch, epoch - 1))

    def _cookie(self, host: str, epoch: int) -> str:
        key = self._key(epoch)
        return base64.urlsafe_b64encode(hmac.digest(key, host.encode(), hashlib.sha256)[:16]).rstrip(b"=").decode()

    def _key(self, epoch: int) -> bytes:
        key = self._keys.get(epoch)
        if key is None:
            key = hmac.digest(self._secret, epoch.to_bytes(8, "big", signed=True), hashlib.sha256)
            self._keys = {other: self._keys[other] for other in self._keys if abs(other - epoch) == 1} | {epoch: key}
        return key
