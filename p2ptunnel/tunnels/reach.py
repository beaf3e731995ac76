"""What peers may connect to through a service that stands for no single address: networks and names, with ports.

Rule: what decides is the numeric address that a destination resolves to, and the connection goes to that very address; a name
that no grant lists is not looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Final, TypeAlias

import msgspec

from p2ptunnel.addresses import IPAddress, IPNetwork, canonical, target_refusal
from p2ptunnel.errors import InvalidAddressError, InvalidSpecError
from p2ptunnel.types import Address

__all__ = ["Reach", "covers", "may_reach", "parse_reach"]

_Ports: TypeAlias = tuple[int, int]
"""The first and the last port of a range."""

_EVERYWHERE: Final = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_PORTS: Final = re.compile(r"[0-9]{1,5}(?:-[0-9]{1,5})?", re.ASCII)
_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*"
)
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")  # at the end of what some resolvers take for an address
_EXAMPLES: Final = "Examples: 10.0.0.0/24:80,443, 10.0.0.5:8000-8010, [2001:db8::/32]:22, db.internal:5432, 10.0.0.0/8:*."


class Reach(msgspec.Struct, frozen=True):
    """One place that may be connected to: `10.0.0.0/24:80,443`, as `str` prints it.

    Attributes:
        where: A network, or a host name in lower case, whose addresses are then checked as well.
        ports: The ranges that are open there.
    """

    where: IPNetwork | str
    ports: tuple[_Ports, ...]

    def __str__(self) -> str:
        ports = ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.ports)
        return f"{f'[{self.where}]' if ':' in str(self.where) else self.where}:{ports}"

    def opens(self, port: int) -> bool:
        """Tell whether a port is among those that are open there."""
        return any(first <= port <= last for first, last in self.ports)

    def refusal(self, host: str, address: IPAddress, port: int) -> str | None:
        """Return why a destination is not reached by this, None if it is.

        Args:
            host: What was asked for: a name in lower case, or the address in numbers.
            address: Canonical; one of those that `host` resolved to.
            port: TCP.
        """
        if not self.opens(port):
            return "not in the grant"
        if isinstance(self.where, str):
            return target_refusal(address, _EVERYWHERE[address.version]) if host == self.where else "not in the grant"
        return target_refusal(address, self.where)


def parse_reach(text: str) -> Reach:
    """Read `network:ports` or `name:ports`; ports are `80`, `80,443`, `8000-8010`, or `*` for all.

    Raises:
        InvalidSpecError: The text is none of these.
    """
    where, _, ports = text.rpartition(":")
    if not where:
        raise InvalidSpecError(text, "a network or a name and ports belong together, with a colon between them", _EXAMPLES)
    return Reach(_where(where, text), tuple(_range(part, text) for part in ("1-65535" if ports == "*" else ports).split(",")))


def _where(where: str, text: str) -> IPNetwork | str:
    bare = where[1:-1] if where.startswith("[") and where.endswith("]") else where
    try:
        network = ip_network(bare)
    except ValueError as error:
        is_name = _NAME.fullmatch(bare.lower()) and not _NUMBER.fullmatch(bare.lower().rpartition(".")[2])
        if bare != where or not is_name:
            raise InvalidSpecError(text, f"{where!r} is neither a network nor a host name: {error}", _EXAMPLES) from error
        return bare.lower()
    try:
        is_plain = canonical(str(network.network_address)) == network.network_address
    except InvalidAddressError:  # it has a zone
        is_plain = False
    if not is_plain:  # no address would ever be in it: they are taken out before they are compared
        raise InvalidSpecError(text, "an IPv4 network is written as IPv4, and none with a zone", _EXAMPLES)
    return network


def _range(part: str, text: str) -> _Ports:
    first, _, last = part.partition("-")
    if not _PORTS.fullmatch(part) or not 1 <= int(first) <= int(last or first) <= 65535:
        raise InvalidSpecError(text, f"{part!r} is no port and no range of ports", _EXAMPLES)
    return int(first), int(last or first)


def covers(reaches: Iterable[Reach], destination: Address) -> bool:
    """Tell whether a destination is reached; of a name, whether it may turn out to be once it is resolved.

    Only a name that one of the reaches lists is worth that: looking up others would tell the peer which names exist here, and
    carry what it likes to a name server of its choice.  What is listed may resolve into a network of another reach.
    """
    reaches, (host, port) = tuple(reaches), destination
    try:
        address = canonical(host)
    except InvalidAddressError:
        return any(reach.where == host for reach in reaches) and any(reach.opens(port) for reach in reaches)
    return may_reach(reaches, host, address, port)


def may_reach(reaches: Iterable[Reach], host: str, address: IPAddress, port: int) -> bool:
    """Tell whether one of the reaches lets a connection go to this address, to which `host` has resolved."""
    return any(reach.refusal(host, address, port) is None for reach in reaches)
