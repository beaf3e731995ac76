"""STUN Binding, the two messages of it that matter here: bytes to values and back (RFC 8489).  Rule: no state, no I/O."""

from __future__ import annotations

import ipaddress
import struct
import zlib
from typing import Final

import msgspec

from p2ptunnel.types import Address

__all__ = [
    "BindingRequest",
    "BindingResponse",
    "MalformedStunError",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
    "is_stun",
]

_COOKIE: Final = 0x2112A442
_HEADER: Final = struct.Struct("!HHI12s")
_REQUEST: Final = 0x0001
_RESPONSE: Final = 0x0101
_XOR_MAPPED_ADDRESS: Final = 0x0020
_SOFTWARE: Final = 0x8022
_FINGERPRINT: Final = 0x8028
_FINGERPRINT_MASK: Final = 0x5354554E
_COMPREHENSION_REQUIRED_BELOW: Final = 0x8000
_UNDERSTOOD: Final = frozenset({0x0001, 0x0008, 0x001C, _XOR_MAPPED_ADDRESS})  # MAPPED-ADDRESS, the two MESSAGE-INTEGRITY
_LONGEST_RESPONSE: Final = 44  # header 20, attribute header 4, IPv6 address 20: a request padded to it is never amplified
_ID_BYTES: Final = 12


class MalformedStunError(ValueError):
    """A datagram that is no STUN message of the kind asked for."""


class BindingRequest(msgspec.Struct, frozen=True):
    """A Binding request; the transaction id has 12 bytes."""

    transaction_id: bytes


class BindingResponse(msgspec.Struct, frozen=True):
    """A Binding success response: how the asker looks from there."""

    transaction_id: bytes
    mapped: Address


def is_stun(data: bytes) -> bool:
    """Tell whether `data` is for this codec: two zero bits, the magic cookie in its place (RFC 8489 6.3)."""
    return len(data) >= _HEADER.size and data[0] < 0x40 and int.from_bytes(data[4:8], "big") == _COOKIE


def encode_request(transaction_id: bytes) -> bytes:
    """Return a Binding request, padded with SOFTWARE so that no answer is longer.

    Raises:
        ValueError: The transaction id has not 12 bytes.
    """
    if len(transaction_id) != _ID_BYTES:
        raise ValueError(f"a transaction id of {len(transaction_id)} bytes, not {_ID_BYTES}")
    software = _attribute(_SOFTWARE, b"p2ptunnel".ljust(_LONGEST_RESPONSE - _HEADER.size - 4, b" "))
    return _HEADER.pack(_REQUEST, len(software), _COOKIE, transaction_id) + software


def encode_response(transaction_id: bytes, mapped: Address) -> bytes:
    """Return a Binding success response with XOR-MAPPED-ADDRESS; the host is numeric."""
    host, port = mapped
    address = ipaddress.ip_address(host.partition("%")[0])
    mask = _mask(transaction_id)[: len(address.packed)]
    xored = bytes(a ^ b for a, b in zip(address.packed, mask, strict=True))
    family = 1 if address.version == 4 else 2
    value = struct.pack("!BBH", 0, family, port ^ (_COOKIE >> 16)) + xored
    attribute = _attribute(_XOR_MAPPED_ADDRESS, value)
    return _HEADER.pack(_RESPONSE, len(attribute), _COOKIE, transaction_id) + attribute


def decode_request(data: bytes) -> BindingRequest:
    """Return the request in `data`.

    Raises:
        MalformedStunError: It is none, or has an attribute that must be understood and is not.
    """
    transaction_id, attributes = _decode(data, _REQUEST)
    if any(kind < _COMPREHENSION_REQUIRED_BELOW for kind in attributes):
        raise MalformedStunError("an attribute that must be understood")
    return BindingRequest(transaction_id)


def decode_response(data: bytes) -> BindingResponse:
    """Return the success response in `data`; its integrity is not checked, since nobody shares a key with a STUN server.

    Raises:
        MalformedStunError: It is none, has no XOR-MAPPED-ADDRESS, or an attribute that must be understood and is not.
    """
    transaction_id, attributes = _decode(data, _RESPONSE)
    if any(kind < _COMPREHENSION_REQUIRED_BELOW and kind not in _UNDERSTOOD for kind in attributes):
        raise MalformedStunError("an attribute that must be understood")
    value = attributes.get(_XOR_MAPPED_ADDRESS)
    if value is None:
        raise MalformedStunError("no XOR-MAPPED-ADDRESS")
    return BindingResponse(transaction_id, _unmask(value, transaction_id))


def _decode(data: bytes, expected: int) -> tuple[bytes, dict[int, bytes]]:
    if not is_stun(data):
        raise MalformedStunError("no STUN message")
    kind, length, _, transaction_id = _HEADER.unpack_from(data)
    if kind != expected:
        raise MalformedStunError(f"message type {kind:#06x}, not {expected:#06x}")
    if length != len(data) - _HEADER.size or length % 4:
        raise MalformedStunError("its length is wrong")
    return transaction_id, _attributes(data)


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = _HEADER.size
    while at < len(data):
        kind, length = struct.unpack_from("!HH", data, at)
        value = data[at + 4 : at + 4 + length]
        if len(value) != length:
            raise MalformedStunError("an attribute runs over the end")
        at += 4 + length + -length % 4
        if kind == _FINGERPRINT and (at < len(data) or value != _fingerprint(data[: -len(value) - 4])):
            raise MalformedStunError("the fingerprint is wrong, or not the last attribute")
        found.setdefault(kind, value)  # of two alike, the first counts (RFC 8489 14)
    return found


def _fingerprint(data: bytes) -> bytes:
    return (zlib.crc32(data) ^ _FINGERPRINT_MASK).to_bytes(4, "big")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def _mask(transaction_id: bytes) -> bytes:
    return _COOKIE.to_bytes(4, "big") + transaction_id


def _unmask(value: bytes, transaction_id: bytes) -> Address:
    packed = value[4:]
    if len(value) < 4 or {1: 4, 2: 16}.get(value[1]) != len(packed):
        raise MalformedStunError("an address of a wrong length")
    host = bytes(a ^ b for a, b in zip(packed, _mask(transaction_id), strict=False))
    return (str(ipaddress.ip_address(host)), int.from_bytes(value[2:4], "big") ^ (_COOKIE >> 16))
