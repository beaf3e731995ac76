"""What observations are called."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from p2ptunnel.types import Address

__all__ = ["name_allocation", "name_mapping"]


def name_mapping(seen: Sequence[Address]) -> str:
    """Name a mapping, from what address 1 port 1, address 1 port 2, address 2 port 1, address 2 port 2 saw."""
    if len(set(seen)) == 1:
        return "EI"
    first, second, third, fourth = seen
    return "AD" if first == second and third == fourth else "APD"


def name_allocation(inside_port: int, seen: Sequence[Address]) -> str:
    """Name how outside ports are chosen, from what observers saw one after the other."""
    ports = [port for _, port in seen]
    if set(ports) == {inside_port}:
        return "preserving"
    if len(set(ports)) == 1:
        return "other"
    return "sequential" if {after - before for before, after in pairwise(ports)} == {1} else "random"
