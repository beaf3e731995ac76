"""What a rendezvous server signs so that a relay on another machine lets the two ends of one call in, and them only.

A grant is of fixed width: the keys of caller and callee (32 bytes each), when it ends (8, seconds since 1970), and the server's
signature (64) over these, the relay's key and the call's token.  It names no secret, and is of no use to anybody but the two
keys, each of which still signs for its own end.

Source: wire document, t=6.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

import msgspec

from p2ptunnel.defaults import GRANT_SKEW, TOKEN_TTL
from p2ptunnel.errors import InvalidKeyError
from p2ptunnel.identity.judge import from_base64, to_base64
from p2ptunnel.identity.keys import KEY_BYTES, Identity, PublicKey, Purpose, signed_bytes
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import RelayOffer

__all__ = ["Granted", "Grants", "Offers", "is_granted"]

_END_BYTES: Final = 8
_SAID_BYTES: Final = 2 * KEY_BYTES + _END_BYTES
_SIGNATURE_BYTES: Final = 64
_TOKEN_BYTES: Final = 64


class Granted(msgspec.Struct, frozen=True):
    """What a grant says: whom it is for, as text, and for how many seconds it still counts."""

    caller: str
    callee: str
    seconds: float


class Offers:
    """The relays of a rendezvous server, one of which it names for each call.

    Args:
        server: The server's own identity, which signs.
        relays: Where each is, and the key that it has as text; a name is of use from `look_up` on.
        clock: Seconds since 1970.
    """

    def __init__(self, server: Identity, relays: Sequence[tuple[Address, str]], clock: Callable[[], float]) -> None:
        self._server: Final = server
        self._relays: tuple[tuple[tuple[str, ...], int, PublicKey], ...] = tuple(
            ((host,), port, PublicKey.parse(key)) for (host, port), key in relays
        )
        self._clock: Final = clock

    async def look_up(self, resolve: Callable[[str], Awaitable[tuple[str, ...]]]) -> None:
        """Have numeric addresses from now on, one of each family that a name has; raises what `resolve` does."""
        self._relays = tuple([(await resolve(hosts[0]), port, key) for hosts, port, key in self._relays])

    def make(self, token: str, caller: str, callee: str) -> RelayOffer | None:
        """Return the offer for a call between these two keys, as text; None if one of them has none.

        Args:
            token: 32 random hex characters, which draw the lot as well.
            caller: Its key.
            callee: Its key.
        """
        if not (caller and callee):
            return None
        (host, *_), port, relay = self._relays[int(token[-8:], 16) % len(self._relays)]
        keys = PublicKey.parse(caller).raw + PublicKey.parse(callee).raw
        said = keys + int(self._clock() + TOKEN_TTL).to_bytes(_END_BYTES, "big")
        grant = said + self._server.sign(_payload(relay, token, said))
        return RelayOffer(host=host, port=port, key=str(relay), grant=to_base64(grant))

    def seen_from(self, offer: RelayOffer, host: str) -> RelayOffer:
        """Return an offer for an end of the call at `host`: the same relay in that family, if it has an address there."""
        hosts = next((hosts for hosts, _, key in self._relays if str(key) == offer.key and offer.host in hosts), ())
        at = next((other for other in hosts if (":" in other) == (":" in host)), offer.host)
        return msgspec.structs.replace(offer, host=at)


class Grants:
    """What a relay believes of grants.

    Args:
        relay: Its own key.
        servers: Whose grants count.
        clock: Seconds since 1970; how far it may be from a server's is `GRANT_SKEW`.
    """

    def __init__(self, relay: PublicKey, servers: Collection[PublicKey], clock: Callable[[], float]) -> None:
        self._relay: Final = relay
        self._servers: Final = tuple(servers)
        self._clock: Final = clock

    def read(self, token: str, grant: str) -> Granted | None:
        """Return what a grant for this call says; None if no server of ours has signed it, or it does not count any more."""
        raw = from_base64(grant)
        said = raw[:_SAID_BYTES]
        if not any(_is_signed(server, self._relay, token, raw) for server in self._servers):
            return None
        seconds = int.from_bytes(said[2 * KEY_BYTES :], "big") + GRANT_SKEW - self._clock()
        if not 0 < seconds <= TOKEN_TTL + 2 * GRANT_SKEW:
            return None
        try:
            caller, callee = PublicKey(said[:KEY_BYTES]), PublicKey(said[KEY_BYTES : 2 * KEY_BYTES])
        except InvalidKeyError:
            return None
        return Granted(str(caller), str(callee), seconds)


def is_granted(offer: RelayOffer, server_key: str, token: str) -> bool:
    """Tell whether the server of this key has signed that the relay of an offer is for this call."""
    try:
        server, relay = PublicKey.parse(server_key), PublicKey.parse(offer.key)
    except InvalidKeyError:
        return False
    return _is_signed(server, relay, token, from_base64(offer.grant))


def _is_signed(server: PublicKey, relay: PublicKey, token: str, raw: bytes) -> bool:
    said, signature = raw[:_SAID_BYTES], raw[_SAID_BYTES:]
    if len(signature) != _SIGNATURE_BYTES or not token.isascii() or len(token) > _TOKEN_BYTES:
        return False
    return server.verify(signature, _payload(relay, token, said))


def _payload(relay: PublicKey, token: str, said: bytes) -> bytes:
    return signed_bytes(Purpose.GRANT, relay.raw, token.encode("ascii").ljust(_TOKEN_BYTES, b"\0"), said)
