"""The ticket: all that a stranger needs to pair, as one word to paste.  Rule: one ticket has one spelling.

`p2pt1`, then base32 without padding of: server key (32), callee key (32), secret (16), server (1 + n), tag (1 + n), and the
first 4 bytes of the SHA-256 of all that (docs/protocol/pairing.md).
"""

from __future__ import annotations

import base64
import hashlib
import struct
from typing import Final

from msgspec import Struct

from p2ptunnel.errors import ConfigError, InvalidCodeError, LocalProtocolError
from p2ptunnel.types import Address, Tag, format_address, parse_address, parse_tag

__all__ = ["NO_KEY", "SECRET_BYTES", "Ticket", "is_ticket", "parse_ticket"]

SECRET_BYTES: Final = 16
_PREFIX: Final = "p2pt1"
_KEYS: Final = struct.Struct(f"!32s32s{SECRET_BYTES}s")
_CHECKSUM_BYTES: Final = 4
NO_KEY: Final = bytes(32)
"""Stands for the key of a server that has none."""
_LONGEST: Final = 1024  # characters; a tag of 63 and a server name of 255 make 650


class Ticket(Struct, frozen=True):
    """Who to ask, through which server, and the secret that proves the asker was invited.

    `str` gives the ticket itself; its repr shows no secret.

    Attributes:
        server: The rendezvous server at which the callee waits.
        tag: The callee's name.
        callee_key: 32 bytes: the only key that may answer.
        secret: 16 random bytes.
        server_key: 32 bytes; zeros while the server has none.
    """

    server: Address
    tag: Tag
    callee_key: bytes
    secret: bytes
    server_key: bytes = NO_KEY

    def __str__(self) -> str:
        body = self._body()
        return _PREFIX + base64.b32encode(body + _checksum(body)).decode("ascii").rstrip("=").lower()

    def __repr__(self) -> str:
        return f"Ticket(server={format_address(self.server)}, tag={self.tag})"

    def _body(self) -> bytes:
        keys = (self.server_key, self.callee_key, self.secret)
        if tuple(map(len, keys)) != (32, 32, SECRET_BYTES):
            raise LocalProtocolError("a ticket's keys have 32 bytes, its secret 16")
        names = (format_address(self.server).encode("utf-8"), self.tag.encode("ascii"))
        if max(map(len, names)) > 255:
            raise LocalProtocolError("a ticket's names have at most 255 bytes")
        return _KEYS.pack(*keys) + b"".join(bytes((len(name),)) + name for name in names)


def is_ticket(text: str) -> bool:
    """Tell whether `text` means to be a ticket; whether it is one, `parse_ticket` finds out."""
    return "".join(text[:64].split()).lower().startswith(_PREFIX)


def parse_ticket(text: str) -> Ticket:
    """Return the ticket in `text`; blanks and line breaks within it do not matter, nor does its case.

    Raises:
        InvalidCodeError: It is no ticket, or was damaged on the way.
    """
    written = "".join(text.split()).lower()
    if not written.startswith(_PREFIX) or not written.isascii() or len(written) > _LONGEST:
        raise InvalidCodeError(f"a ticket begins with {_PREFIX} and has at most {_LONGEST} characters", _AGAIN)
    data = _decoded(written.removeprefix(_PREFIX))
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if _checksum(body) != checksum:
        raise InvalidCodeError("the ticket is not whole: its checksum does not fit", _AGAIN)
    ticket = _unpacked(body)
    if str(ticket) != written:
        raise InvalidCodeError("the ticket is not in the one spelling that it has", _AGAIN)
    return ticket


_AGAIN: Final = "Copy all of it, from p2pt1 to its end."


def _decoded(letters: str) -> bytes:
    try:
        return base64.b32decode(letters.upper() + "=" * (-len(letters) % 8))
    except ValueError:  # its text could quote the ticket
        raise InvalidCodeError("the ticket has a character that no ticket has, or lacks some", _AGAIN) from None


def _unpacked(body: bytes) -> Ticket:
    """Return the ticket with this body, whose checksum is right: made by a program, though perhaps not by ours."""
    if len(body) < _KEYS.size:
        raise InvalidCodeError("the ticket is shorter than one can be", _AGAIN)
    server_key, callee_key, secret = _KEYS.unpack_from(body)
    server, rest = _name(body[_KEYS.size :])
    tag, rest = _name(rest)
    if rest:
        raise InvalidCodeError("the ticket has more than it should", _AGAIN)
    try:
        return Ticket(parse_address(server), parse_tag(tag), callee_key, secret, server_key)
    except ConfigError:
        raise InvalidCodeError("the ticket names no server, or no tag", "Is p2ptunnel here as new as there?") from None


def _name(data: bytes) -> tuple[str, bytes]:
    """Split a name with its length before it from what follows."""
    end = 1 + data[0] if data else 1
    name = data[1:end].decode("utf-8", "replace")
    if len(data) < end or not name.isprintable():
        raise InvalidCodeError("the ticket has a name that cannot be read", _AGAIN)
    return name, data[end:]


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]
