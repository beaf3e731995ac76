"""NAT-PMP, the older sister of PCP, for IPv4 only: values to bytes and back (RFC 6886).  Rule: no state, no I/O."""

from __future__ import annotations

import ipaddress
import struct
from typing import Final, TypeAlias

import msgspec

from p2ptunnel.types import Transport

__all__ = [
    "ADDRESS_REQUEST",
    "NETWORK_FAILURE",
    "UNSUPPORTED_VERSION",
    "VERSION",
    "AddressAnswer",
    "Answer",
    "MalformedNatPmpError",
    "MapAnswer",
    "MapRequest",
    "decode",
    "encode",
    "encode_answer",
    "reason_of",
]

VERSION: Final = 0
UNSUPPORTED_VERSION: Final = 1
NETWORK_FAILURE: Final = 3
ADDRESS_REQUEST: Final = bytes((VERSION, 0))
"""Asks for the router's outside address."""

_REQUEST: Final = struct.Struct("!BBxxHHI")
_HEAD: Final = struct.Struct("!BBHI")
_MAP: Final = struct.Struct("!HHI")
_IS_ANSWER: Final = 0x80
_ADDRESS_OPCODE: Final = 0
_OPCODES: Final[dict[Transport, int]] = {"udp": 1, "tcp": 2}
_TRANSPORTS: Final[dict[int, Transport]] = {number: transport for transport, number in _OPCODES.items()}
_MAX_BYTES: Final = 1100

_REASONS: Final = {
    1: "it speaks another version",
    2: "not authorized",
    3: "it has no connection itself",
    4: "it has no room for another mapping",
    5: "it does not map this transport",
}


class MalformedNatPmpError(ValueError):
    """A datagram that is no answer of NAT-PMP's."""


class MapRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for a way in to a port of ours; `external_port` is what we should like; a lifetime of 0 takes it back."""

    transport: Transport
    port: int
    external_port: int
    lifetime: int


class MapAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the router says to a MapRequest; with a `code` other than 0 it refuses, and the other fields may be 0.

    epoch: seconds since the router lost all it knew.
    """

    code: int
    epoch: int
    transport: Transport
    port: int
    external_port: int
    lifetime: int


class AddressAnswer(msgspec.Struct, frozen=True):
    """The router's outside address, asked for or told to everybody when it has restarted; "" with a code other than 0."""

    code: int
    epoch: int
    host: str


Answer: TypeAlias = MapAnswer | AddressAnswer


def reason_of(code: int) -> str:
    """Return what a code other than 0 says, in words."""
    return _REASONS.get(code, f"code {code}")


def encode(request: MapRequest) -> bytes:
    """Return the 12 bytes of a request."""
    opcode = _OPCODES[request.transport]
    return _REQUEST.pack(VERSION, opcode, request.port, request.external_port, request.lifetime)


def encode_answer(answer: Answer) -> bytes:
    """Return the bytes that a router would send."""
    if isinstance(answer, AddressAnswer):
        head = _HEAD.pack(VERSION, _IS_ANSWER | _ADDRESS_OPCODE, answer.code, answer.epoch)
        return head + ipaddress.IPv4Address(answer.host or 0).packed
    head = _HEAD.pack(VERSION, _IS_ANSWER | _OPCODES[answer.transport], answer.code, answer.epoch)
    return head + _MAP.pack(answer.port, answer.external_port, answer.lifetime)


def decode(data: bytes) -> Answer:
    """Return the answer in `data`; one that refuses may end behind its epoch.

    Raises:
        MalformedNatPmpError: It is none.
    """
    if not _HEAD.size <= len(data) <= _MAX_BYTES:
        raise MalformedNatPmpError(f"{len(data)} bytes")
    version, opcode, code, epoch = _HEAD.unpack_from(data)
    number = opcode ^ _IS_ANSWER
    if version != VERSION or (number != _ADDRESS_OPCODE and number not in _TRANSPORTS):
        raise MalformedNatPmpError(f"version {version}, opcode {opcode}")
    body = data[_HEAD.size :]
    if number == _ADDRESS_OPCODE:
        return AddressAnswer(code, epoch, _host(body) if code == 0 else "")
    port, external_port, lifetime = _MAP.unpack(_body(body, _MAP.size, code))
    return MapAnswer(
        code=code,
        epoch=epoch,
        transport=_TRANSPORTS[number],
        port=port,
        external_port=external_port,
        lifetime=lifetime,
    )


def _host(body: bytes) -> str:
    return str(ipaddress.IPv4Address(_body(body, 4, 0)))


def _body(body: bytes, size_bytes: int, code: int) -> bytes:
    """Return the first bytes of a body; zeros where a refusal has none."""
    if len(body) >= size_bytes:
        return body[:size_bytes]
    if code == 0:
        raise MalformedNatPmpError(f"a body of {len(body)} bytes")
    return bytes(size_bytes)
