"""What a side says of itself in a call, as the 16 bytes that its intent binds: where it is, and what its NATs do.

The server passes both on, and could else aim the other side's packets at others, or have more of them sent: how many leave, and
whether they wait for a datagram, follows from the hints.  Rule: another spelling in JSON changes nothing, another value
everything; a later version's hints are not bound here.  Source: docs/protocol/intents.md.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from typing import Final

from p2ptunnel.types import Candidate, CandidateKind
from p2ptunnel.wire.intent import MalformedIntentError
from p2ptunnel.wire.messages import NatHints, PortRow

__all__ = ["hash_claims"]

_HASH_BYTES: Final = 16
_KINDS: Final[dict[CandidateKind, int]] = {"host": 1, "srflx": 2, "mapped": 3, "prflx": 4, "relay": 5}
_PROTOS: Final = {"tcp": 1, "udp": 2}
_HINTS: Final = b"\0"  # no candidate begins so
_NO_HINTS: Final = NatHints()


def hash_claims(candidates: Iterable[Candidate], hints: NatHints | None = None) -> bytes:
    """Return 16 bytes (BLAKE2s) that bind the candidates, in order, and behind them the hints, if they say anything.

    Raises:
        MalformedIntentError: A host is not numeric.
    """
    packed = [_pack(candidate) for candidate in candidates]
    if hints is not None and hints != _NO_HINTS:
        packed.append(_pack_hints(hints))
    return hashlib.blake2s(b"".join(packed), digest_size=_HASH_BYTES).digest()


def _pack(candidate: Candidate) -> bytes:
    try:
        address = ipaddress.ip_address(candidate.host)
    except ValueError:
        raise MalformedIntentError("a candidate's host is not numeric") from None
    if "%" in candidate.host:  # a zone means something on one machine only, and `packed` leaves it out
        raise MalformedIntentError("a candidate's host has a zone")
    kind, proto = _KINDS[candidate.kind], _PROTOS[candidate.proto]
    return bytes((kind, proto, address.version)) + address.packed + candidate.port.to_bytes(2, "big")


def _pack_hints(hints: NatHints) -> bytes:
    classes = (_pack_text(hints.tcp), _pack_text(hints.udp))
    rows = (_pack_row(hints.tcp_row), _pack_row(hints.udp_row))
    answers = bytes(_pack_answer(answer) for answer in (hints.low, hints.crosses, hints.is_open, hints.quic))
    return b"".join((_HINTS, *classes, answers, hints.rtt.to_bytes(2, "big"), *rows))


def _pack_text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return bytes((len(data),)) + data


def _pack_answer(answer: bool | None) -> int:
    return 0 if answer is None else 1 + answer


def _pack_row(row: PortRow | None) -> bytes:
    if row is None:
        return b"\0"
    return bytes((_pack_answer(row.busy),)) + row.last.to_bytes(2, "big") + row.delta.to_bytes(1, "big", signed=True)
