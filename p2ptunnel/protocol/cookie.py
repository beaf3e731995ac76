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
    """Makes and checks cookies; holds one secret and no other state."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def make(self, host: str, now: float) -> str:
        """Return the cookie of `host`, 22 characters, good for 30 to 60 s from `now`."""
        return self._cookie(host, int(now // COOKIE_EPOCH))

    def is_valid(self, cookie: str, host: str, now: float) -> bool:
        """Tell whether `cookie` was made for `host` in this epoch or the one before."""
        epoch = int(now // COOKIE_EPOCH)
        offered = cookie.encode()
        return any(hmac.compare_digest(offered, self._cookie(host, e).encode()) for e in (epoch, epoch - 1))

    def _cookie(self, host: str, epoch: int) -> str:
        key = hmac.digest(self._secret, epoch.to_bytes(8, "big", signed=True), hashlib.sha256)
        return base64.urlsafe_b64encode(hmac.digest(key, host.encode(), hashlib.sha256)[:16]).rstrip(b"=").decode()
