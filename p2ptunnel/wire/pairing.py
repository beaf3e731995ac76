"""Frames of a pairing: what two strangers say to each other inside TLS, under an ALPN of its own, and nowhere else.

Rule: fixed layout, one spelling; what is malformed is a RemoteProtocolError, nothing else.  Source: docs/protocol/pairing.md.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from msgspec import Struct

from p2ptunnel.defaults import SERVICE_MAX_BYTES
from p2ptunnel.errors import LocalProtocolError, RemoteProtocolError
from p2ptunnel.types import Tag, is_tag

__all__ = [
    "ELEMENT_BYTES",
    "PAIRING_HEADER",
    "PAIRING_VERSION",
    "PROOF_BYTES",
    "Done",
    "Exchange",
    "Paired",
    "PairingFrame",
    "PairingFrameType",
    "Proof",
    "ProofKind",
    "Refused",
    "RefusedCode",
    "Reply",
    "decode",
    "encode",
    "payload_length",
]

PAIRING_VERSION: Final = 1
PAIRING_HEADER: Final = struct.Struct("!BH")  # type, payload length
ELEMENT_BYTES: Final = 32
PROOF_BYTES: Final = 32
_TAG_MAX_BYTES: Final = 63
_PAYLOAD_MAX_BYTES: Final = 32 * 1024
_EXCHANGE: Final = struct.Struct(f"!B{ELEMENT_BYTES}s")
_PROOF: Final = struct.Struct(f"!BB{PROOF_BYTES}s")
_COUNT: Final = struct.Struct("!B")
_LENGTH: Final = struct.Struct("!H")


class PairingFrameType(enum.IntEnum):
    """First byte of a frame."""

    EXCHANGE = 1
    REPLY = 2
    PROOF = 3
    PAIRED = 4
    REFUSED = 5
    DONE = 6


class ProofKind(enum.IntEnum):
    """What the guest was given."""

    TICKET = 1
    CODE = 2


class RefusedCode(enum.IntEnum):
    """Why the host says no; a receiver takes an unknown code for NOT_VALID."""

    NOT_VALID = 1  # wrong, used, expired, malformed: one answer
    TOO_SOON = 2
    NAME_TAKEN = 3  # only behind a proof that was right
    NOT_STORED = 4  # the same


class Exchange(Struct, frozen=True):
    """Guest to host, first: its element of the exchange under the spoken code."""

    element: bytes
    v: int = PAIRING_VERSION

    def __repr__(self) -> str:
        return f"Exchange(v={self.v})"


class Reply(Struct, frozen=True):
    """Host to guest: its element."""

    element: bytes

    def __repr__(self) -> str:
        return "Reply()"


class Proof(Struct, frozen=True):
    """Guest to host: it knows the ticket's secret, or what the exchange came to; and what it wants to be called."""

    kind: ProofKind
    proof: bytes
    tag: Tag
    v: int = PAIRING_VERSION

    def __repr__(self) -> str:
        return f"Proof(v={self.v}, kind={self.kind.name}, tag={self.tag})"


class Paired(Struct, frozen=True):
    """Host to guest: so do I; you are known here, and may open these services.

    `services` has for each the host keys, lines of `type base64`, of the SSH server behind it; none where it is no such server.
    """

    proof: bytes
    services: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def __repr__(self) -> str:
        return f"Paired({', '.join(self.services)})"


class Refused(Struct, frozen=True):
    """Host to guest: no."""

    code: int


class Done(Struct, frozen=True):
    """Guest to host: you are known here, too."""


PairingFrame: TypeAlias = Exchange | Reply | Proof | Paired | Refused | Done


# --- frames to bytes --------------------------------------------------------------------------------------------------


def encode(frame: PairingFrame) -> bytes:
    """Return the bytes of one frame.

    Raises:
        LocalProtocolError: A field does not fit its place.
    """
    kind, payload = _encoded(frame)
    shortest, longest = _LENGTHS[kind]
    if not shortest <= len(payload) <= longest:
        raise LocalProtocolError(f"a {type(frame).__name__} frame that does not fit: {len(payload)} bytes")
    return PAIRING_HEADER.pack(kind, len(payload)) + payload


def _encoded(frame: PairingFrame) -> tuple[PairingFrameType, bytes]:
    match frame:
        case Exchange(element, v):
            return PairingFrameType.EXCHANGE, bytes((v,)) + element
        case Reply(element):
            return PairingFrameType.REPLY, element
        case Proof(kind, proof, tag, v):
            return PairingFrameType.PROOF, bytes((v, kind)) + proof + tag.encode("ascii", "replace")
        case Paired(proof, services):
            return PairingFrameType.PAIRED, proof + _COUNT.pack(len(services)) + b"".join(map(_service, services.items()))
        case Refused(code):
            return PairingFrameType.REFUSED, bytes((code,))
        case Done():
            return PairingFrameType.DONE, b""


def _service(service: tuple[str, tuple[str, ...]]) -> bytes:
    name, keys = service[0].encode("utf-8"), "\n".join(service[1]).encode("ascii")
    return _COUNT.pack(len(name)) + name + _LENGTH.pack(len(keys)) + keys


# --- bytes to frames --------------------------------------------------------------------------------------------------


def payload_length(header: bytes) -> int:
    """Return how many bytes follow the 3 of a header.

    Raises:
        RemoteProtocolError: No frame begins so.
    """
    kind, length = PAIRING_HEADER.unpack(header)
    shortest, longest = _LENGTHS.get(kind, (1, 0))
    if not shortest <= length <= longest:
        raise RemoteProtocolError(f"no pairing frame has type {kind} and length {length}")
    return int(length)


def decode(data: bytes) -> PairingFrame:
    """Return the one frame that `data` is.

    Raises:
        RemoteProtocolError: It is none, or not one alone.
    """
    header, payload = data[: PAIRING_HEADER.size], data[PAIRING_HEADER.size :]
    if len(header) < PAIRING_HEADER.size or len(payload) != payload_length(header):
        raise RemoteProtocolError("bytes that are not one pairing frame")
    return _DECODERS[header[0]](payload)


def _decode_exchange(payload: bytes) -> Exchange:
    v, element = _EXCHANGE.unpack(payload)
    return Exchange(element, _version(v))


def _decode_proof(payload: bytes) -> Proof:
    v, kind, proof = _PROOF.unpack_from(payload)
    tag = payload[_PROOF.size :].decode("ascii", "replace")
    if kind not in set(ProofKind) or not is_tag(tag):
        raise RemoteProtocolError("a proof of no kind, or for no tag")
    return Proof(ProofKind(kind), proof, tag, _version(v))


def _decode_paired(payload: bytes) -> Paired:
    proof, count, rest = payload[:PROOF_BYTES], payload[PROOF_BYTES], payload[PROOF_BYTES + 1 :]
    services: dict[str, tuple[str, ...]] = {}
    for _ in range(count):
        name, rest = _cut(rest, _COUNT)
        keys, rest = _cut(rest, _LENGTH)
        services[_service_name(name)] = tuple(_text(keys, "ascii").split("\n")) if keys else ()
    if rest or len(services) != count:
        raise RemoteProtocolError("a list of services that is not whole, or names one twice")
    return Paired(proof, MappingProxyType(services))


def _cut(data: bytes, prefix: struct.Struct) -> tuple[bytes, bytes]:
    """Split what its length stands before from what follows."""
    length = prefix.unpack_from(data)[0] if len(data) >= prefix.size else len(data)
    end = prefix.size + length
    if len(data) < end:
        raise RemoteProtocolError("a list of services that ends within one")
    return data[prefix.size : end], data[end:]


def _service_name(data: bytes) -> str:
    name = _text(data, "utf-8")
    if not name or len(data) > SERVICE_MAX_BYTES or not name.isprintable():
        raise RemoteProtocolError(f"a service name that is not 1 to {SERVICE_MAX_BYTES} printable bytes")
    return name


def _text(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise RemoteProtocolError("a list of services that is no text") from None


def _version(v: int) -> int:
    if v != PAIRING_VERSION:
        raise RemoteProtocolError(f"pairing of version {v}, not {PAIRING_VERSION}")
    return v


_DECODERS: Final[dict[int, Callable[[bytes], PairingFrame]]] = {
    PairingFrameType.EXCHANGE: _decode_exchange,
    PairingFrameType.REPLY: Reply,
    PairingFrameType.PROOF: _decode_proof,
    PairingFrameType.PAIRED: _decode_paired,
    PairingFrameType.REFUSED: lambda payload: Refused(payload[0]),
    PairingFrameType.DONE: lambda _: Done(),
}

_LENGTHS: Final[dict[int, tuple[int, int]]] = {
    PairingFrameType.EXCHANGE: (_EXCHANGE.size, _EXCHANGE.size),
    PairingFrameType.REPLY: (ELEMENT_BYTES, ELEMENT_BYTES),
    PairingFrameType.PROOF: (_PROOF.size + 1, _PROOF.size + _TAG_MAX_BYTES),
    PairingFrameType.PAIRED: (PROOF_BYTES + 1, _PAYLOAD_MAX_BYTES),
    PairingFrameType.REFUSED: (1, 1),
    PairingFrameType.DONE: (0, 0),
}
