"""What a NAT does, from what observers saw, in the words of RFC 4787 and RFC 5382.  Rule: values in, values out."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Final, Literal, TypeAlias

import msgspec

from p2ptunnel.types import Address

__all__ = ["Mapping", "MappingClass", "classify", "describe"]

MappingClass: TypeAlias = Literal["eim", "adm", "seq", "rnd", "none", "unknown"]

_SEQUENTIAL_STEP_MAX: Final = 32
_WORDS: Final[dict[str, str]] = {
    "eim": "endpoint-independent",
    "adm": "address-dependent",
    "seq": "address-and-port-dependent, sequential ports",
    "rnd": "address-and-port-dependent, random ports",
    "none": "no answer",
    "unknown": "not known",
}


class Mapping(msgspec.Struct, frozen=True):
    """How the NAT maps one transport: its class, the last port seen, and the step between ports of a sequential one."""

    kind: MappingClass
    observed: Address | None = None
    last_port: int = 0
    delta: int = 0


def classify(first: Address | None, second: Address | None, third: Address | None, *, asked_third: bool = True) -> Mapping:
    """Classify a mapping from three observers, asked in this order from one local port.

    Args:
        first: As seen by the server's first address, first port; None for no answer.
        second: As seen by its first address, second port.
        third: As seen by its second address, first port.
        asked_third: False if the server has one address only: then address-dependent looks endpoint-independent.

    Returns:
        `none` without any answer; `unknown` if only one observer answered.

    Source: RFC 4787 4.1, RFC 5780 4.3; the steps of sequential NATs are measured (docs/explanation/nat.md).
    """
    seen = [address for address in (first, second, third) if address is not None]
    if not seen:
        return Mapping("none")
    last = seen[-1]
    if len(seen) == 1:
        return Mapping("unknown", last, last[1])
    ports = [port for _, port in seen]
    if len(set(seen)) == 1:
        return Mapping("eim", last, last[1])
    if asked_third and first is not None and first == second:
        return Mapping("adm", last, last[1])
    return _by_steps(ports, last)


def _by_steps(ports: list[int], last: Address) -> Mapping:
    steps = [later - earlier for earlier, later in pairwise(ports)]
    small = all(0 < abs(step) <= _SEQUENTIAL_STEP_MAX for step in steps)
    if small and (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
        step = math.gcd(*steps)  # ports in between went to flows of others
        return Mapping("seq", last, last[1], step if steps[0] > 0 else -step)
    return Mapping("rnd", last, last[1])


def describe(kind: MappingClass) -> str:
    """Return the mapping class in RFC words."""
    return _WORDS[kind]
