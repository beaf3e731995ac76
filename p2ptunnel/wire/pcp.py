"""The Port Control Protocol, as far as a client of MAP needs it: values to bytes and back (RFC 6887).  Rule: no state."""

from __future__ import annotations

import ipaddress
import struct
from typing import Final, TypeAlias

import msgspec

from p2ptunnel.types import Address, Transport
from p2ptunnel.wire.redacted import Redacted

__all__ = [
    "NONCE_BYTES",
    "VERSION",
    "Announcement",
    "Answer",
    "MalformedPcpError",
    "MapAnswer",
    "MapRequest",
    "decode",
    "encode",
    "encode_answer",
    "reason_of",
]

VERSION: Final = 2
NONCE_BYTES: Final = 12

_REQUEST: Final = struct.Struct("!BBxxI16s")
_ANSWER: Final = struct.Struct("!BBxBII12x")
_MAP: Final = struct.Struct("!12sB3xHH16s")
_ANNOUNCE, _MAP_OPCODE = 0, 1
_IS_ANSWER: Final = 0x80
_MAX_BYTES: Final = 1100  # RFC 6887 7
_NUMBERS: Final[dict[Transport, int]] = {"tcp": 6, "udp": 17}
_TRANSPORTS: Final[dict[int, Transport]] = {number: transport for transport, number in _NUMBERS.items()}

_REASONS: Final = {
    1: "it speaks another version",
    2: "not authorized",
    3: "it could not read the request",
    4: "it maps no ports",
    5: "it wants no such option",
    6: "it could not read an option",
    7: "it has no connection itself",
    8: "it has no room for another mapping",
    9: "it does not map this transport",
    10: "this machine has as many mappings as it may",
    11: "it cannot give that outside address or port",
    12: "another NAT stands between it and us",
    13: "too many remote peers",
}


class MalformedPcpError(ValueError):
    """A datagram that is no answer of PCP's version 2."""


class MapRequest(Redacted, frozen=True, kw_only=True):
    """Asks for a way in to a port of ours; a lifetime of 0 takes it back.

    nonce: NONCE_BYTES that only we and the router know.  client: our own address, which the router compares with what it sees.
    external: what we should like, port 0 and the unspecified address for anything.
    """

    nonce: bytes
    transport: Transport
    client: str
    port: int
    external: Address
    lifetime: int


class MapAnswer(Redacted, frozen=True, kw_only=True):
    """What the router says to a MapRequest; with a `code` other than 0 it refuses, for `lifetime` seconds.

    epoch: seconds since the router lost all it knew.
    """

    code: int
    lifetime: int
    epoch: int
    nonce: bytes
    transport: Transport
    port: int
    external: Address


class Announcement(msgspec.Struct, frozen=True):
    """The router tells everybody its epoch, unasked: it has restarted."""

    code: int
    epoch: int


Answer: TypeAlias = MapAnswer | Announcement


def reason_of(code: int) -> str:
    """Return what a code other than 0 says, in words."""
    return _REASONS.get(code, f"code {code}")


def encode(request: MapRequest) -> bytes:
    """Return the 60 bytes of a request."""
    return _REQUEST.pack(VERSION, _MAP_OPCODE, request.lifetime, _packed(request.client)) + _MAP.pack(
        request.nonce, _NUMBERS[request.transport], request.port, request.external[1], _packed(request.external[0])
    )


def encode_answer(answer: Answer) -> bytes:
    """Return the bytes that a router would send."""
    if isinstance(answer, Announcement):
        return _ANSWER.pack(VERSION, _IS_ANSWER | _ANNOUNCE, answer.code, 0, answer.epoch)
    return _ANSWER.pack(VERSION, _IS_ANSWER | _MAP_OPCODE, answer.code, answer.lifetime, answer.epoch) + _MAP.pack(
        answer.nonce, _NUMBERS[answer.transport], answer.port, answer.external[1], _packed(answer.external[0])
    )


def decode(data: bytes) -> Answer:
    """Return the answer in `data`; options behind it, which we never ask for, are not read.

    Raises:
        MalformedPcpError: It is none.
    """
    if not _ANSWER.size <= len(data) <= _MAX_BYTES or len(data) % 4:
        raise MalformedPcpError(f"{len(data)} bytes")
    version, opcode, code, lifetime, epoch = _ANSWER.unpack_from(data)
    if version != VERSION:
        raise MalformedPcpError(f"version {version}")
    if opcode == _IS_ANSWER | _ANNOUNCE:
        return Announcement(code, epoch)
    if opcode != _IS_ANSWER | _MAP_OPCODE or len(data) < _ANSWER.size + _MAP.size:
        raise MalformedPcpError(f"opcode {opcode} in {len(data)} bytes")
    nonce, protocol, port, external_port, packed = _MAP.unpack_from(data, _ANSWER.size)
    if protocol not in _TRANSPORTS:
        raise MalformedPcpError(f"protocol {protocol}")
    return MapAnswer(
        code=code,
        lifetime=lifetime,
        epoch=epoch,
        nonce=nonce,
        transport=_TRANSPORTS[protocol],
        port=port,
        external=(_host(packed), external_port),
    )


def _packed(host: str) -> bytes:
    """Return 16 bytes; an IPv4 address inside an IPv6 one (RFC 6887 5)."""
    address = ipaddress.ip_address(host)
    return b"\0" * 10 + b"\xff\xff" + address.packed if address.version == 4 else address.packed


def _host(packed: bytes) -> str:
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)
