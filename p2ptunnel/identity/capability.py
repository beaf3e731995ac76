"""Access tickets: what an identity has signed for a peer to open until a day, and the peer shows when it connects.

Rule: a ticket adds services to a peer that is admitted anyway; it admits nobody, and what it says holds only as long as its
issuer has not revoked it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from datetime import UTC, datetime
from typing import Final, Self

import msgspec

from p2ptunnel.defaults import CAPABILITY_MAX_BYTES, CLOCK_MIN, SERVICE_MAX_BYTES
from p2ptunnel.errors import ConfigError, InvalidCodeError, InvalidKeyError, InvalidSpecError
from p2ptunnel.identity.keys import KEY_BYTES, SIGNATURE_BYTES, Identity, PublicKey, Purpose, signed_bytes
from p2ptunnel.types import clean

__all__ = ["Capability", "is_capability", "issue", "parse_capability", "require_usable"]

_VERSION: Final = 1
_ID_BYTES: Final = 16
_HEAD: Final = struct.Struct(f"!B{KEY_BYTES}s{KEY_BYTES}s{_ID_BYTES}sQ")  # version, issuer, holder, id, until
_UNTIL_MAX: Final = 253_402_300_800 - 86_400  # no clock on earth shows the year 10000 then, which cannot be written
_ANYBODY: Final = bytes(KEY_BYTES)
_PREFIX: Final = "p2pc1"
_PAIRING_PREFIX: Final = "p2pt"
_AGAIN: Final = "Copy all of it; `p2ptunnel peers ticket` on the other machine prints a new one."


class Capability(msgspec.Struct, frozen=True):
    """An access ticket.  `str` gives the ticket itself, which is a secret if no holder is named; its repr shows none of it.

    Attributes:
        issuer: Whose services these are; it has signed.
        services: What may be opened.
        until: When it ends, in seconds since 1970.
        holder: Who alone can use it; None: any peer that the issuer admits.
        id: 16 bytes, by which it is revoked.
        signature: The issuer's.
    """

    issuer: PublicKey
    services: tuple[str, ...]
    until: int
    holder: PublicKey | None
    id: bytes
    signature: bytes

    def __str__(self) -> str:
        return _PREFIX + base64.b32encode(self.raw).decode("ascii").rstrip("=").lower()

    def __repr__(self) -> str:
        return f"Capability({self.name}: {', '.join(self.services)})"

    @property
    def name(self) -> str:
        """The id in hex: what the ticket is called where it is shown and revoked."""
        return self.id.hex()

    @property
    def raw(self) -> bytes:
        """The bytes of the ticket."""
        return self._head + self._names + self.signature

    @property
    def is_genuine(self) -> bool:
        """Whether the issuer has signed it."""
        return self.issuer.verify(self.signature, self.signed_part)

    def holds(self, now: float) -> bool:
        """Tell whether it has not ended at a time in seconds since 1970; by a clock that was never set it has."""
        return CLOCK_MIN <= now < self.until

    @property
    def _head(self) -> bytes:
        holder = _ANYBODY if self.holder is None else self.holder.raw
        return _HEAD.pack(_VERSION, self.issuer.raw, holder, self.id, self.until)

    @property
    def _names(self) -> bytes:
        return b"".join(bytes((len(name),)) + name for name in (service.encode("utf-8") for service in self.services))

    @property
    def signed_part(self) -> bytes:
        """The bytes that the signature is over."""
        return signed_bytes(Purpose.CAPABILITY, self._head, hashlib.sha256(self._names).digest())

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Return the ticket that these bytes are; whether it is genuine is another question.

        Raises:
            InvalidCodeError: They are none.
        """
        if not _HEAD.size + SIGNATURE_BYTES < len(raw) <= CAPABILITY_MAX_BYTES:
            raise InvalidCodeError("an access ticket is longer or shorter than that", _AGAIN)
        version, issuer, holder, ticket_id, until = _HEAD.unpack_from(raw)
        if version != _VERSION:
            raise InvalidCodeError("an access ticket of another version", "Use the same version of p2ptunnel on both machines.")
        if until >= _UNTIL_MAX:
            raise InvalidCodeError("an access ticket that ends after the year 9999", _AGAIN)
        names = _read_names(raw[_HEAD.size : -SIGNATURE_BYTES])
        try:
            holding = None if holder == _ANYBODY else PublicKey(holder)
            return cls(PublicKey(issuer), names, until, holding, ticket_id, raw[-SIGNATURE_BYTES:])
        except InvalidKeyError as error:
            raise InvalidCodeError("an access ticket with a key that is none", _AGAIN) from error


def issue(identity: Identity, services: tuple[str, ...], until: float, holder: PublicKey | None = None) -> Capability:
    """Return a ticket for services of this machine, signed by its identity.

    Args:
        identity: Ours.
        services: 1 at least.
        until: When it ends, in seconds since 1970.
        holder: Who alone can use it; None: any peer that is pinned here.

    Raises:
        InvalidSpecError: A service name is none.
        ConfigError: There are no services, or too many; or it would end before 1970 or after the year 9999.
    """
    if not 0 <= until < _UNTIL_MAX:
        raise ConfigError(f"an access ticket cannot end at {until:g} seconds since 1970")
    for service in services:
        if not 1 <= len(service.encode("utf-8", "surrogatepass")) <= SERVICE_MAX_BYTES or not service.isprintable():
            raise InvalidSpecError(clean(service), "it is no name of a service", "Example: web.")
    names = tuple(dict.fromkeys(services))
    blank = Capability(identity.public, names, int(until), holder, os.urandom(_ID_BYTES), bytes(SIGNATURE_BYTES))
    if not names or len(blank.raw) > CAPABILITY_MAX_BYTES:
        raise ConfigError("an access ticket is for one service at least, and for no more than fit into it")
    return msgspec.structs.replace(blank, signature=identity.sign(blank.signed_part))


def require_usable(ticket: Capability, own: PublicKey, now: float) -> None:
    """Refuse a ticket that the machine with the key `own` cannot use at a time in seconds since 1970.

    Raises:
        InvalidCodeError: It is of this very machine, for another one, or has ended.
    """
    if ticket.issuer == own:
        raise InvalidCodeError("this machine has made that ticket itself", "It is for the machine that you give it to.")
    if ticket.holder not in {None, own}:
        raise InvalidCodeError("that ticket is for another machine", "Ask for one for this machine's key: p2ptunnel id")
    if ticket.until <= now:
        ended = datetime.fromtimestamp(ticket.until, UTC).astimezone()
        raise InvalidCodeError(
            f"that ticket ended at {ended:%Y-%m-%d %H:%M}", "Ask for a new one there: p2ptunnel peers ticket"
        )


def is_capability(text: str) -> bool:
    """Tell whether `text` means to be an access ticket; whether it is one, `parse_capability` finds out."""
    return "".join(text[:64].split()).lower().startswith(_PREFIX)


def parse_capability(text: str) -> Capability:
    """Return the ticket in `text`, as its issuer signed it; blanks and line breaks within it do not matter.

    Raises:
        InvalidCodeError: It is none, or was damaged on the way.
    """
    written = "".join(text.split()).lower()
    body = written.removeprefix(_PREFIX)
    if written.startswith(_PAIRING_PREFIX):
        raise InvalidCodeError("that is a ticket for pairing, not an access ticket", "p2ptunnel pair TICKET")
    if body == written or not body.isascii():
        raise InvalidCodeError(f"an access ticket begins with {_PREFIX}", _AGAIN)
    try:
        raw = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
    except ValueError:
        raise InvalidCodeError("an access ticket has the characters a-z and 2-7 only", _AGAIN) from None
    ticket = Capability.from_bytes(raw)
    if not ticket.is_genuine:
        raise InvalidCodeError("the access ticket was damaged on the way, or is forged", _AGAIN)
    return ticket


def _read_names(data: bytes) -> tuple[str, ...]:
    names: list[str] = []
    while data:
        length, name, data = data[0], data[1 : 1 + data[0]], data[1 + data[0] :]
        try:
            names.append(name.decode("utf-8"))
        except UnicodeDecodeError:
            length = 0
        if not 1 <= length <= SERVICE_MAX_BYTES or length != len(name) or not names[-1].isprintable():
            raise InvalidCodeError("an access ticket with a service name that is none", _AGAIN)
    return tuple(names)
