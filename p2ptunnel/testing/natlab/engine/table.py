"""The mappings of a NAT: how ports are chosen, who has been spoken to, and when they are forgotten.

Words of RFC 4787 4 and RFC 5382.  Rule: time and dice come in.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from .packet import TCP, UDP

__all__ = ["Endpoint", "Mapping", "NatSettings", "Session", "SessionState", "Table"]

Endpoint = tuple[bytes, int]
Key = tuple[int, bytes, int, bytes, int]
SessionState = Literal["new", "opened from inside", "opened from outside", "established", "reset"]

_LOWEST_PORT, _HIGHEST_PORT = 1024, 65535
_PORT_COUNT: Final = _HIGHEST_PORT - _LOWEST_PORT + 1
_SHIFT: Final = {UDP: 7001, TCP: 12003}
_FIRST_PORT_RANGE: Final = (20000, 40000)
_TRIES: Final = 200


@dataclass(frozen=True, kw_only=True)
class NatSettings:
    """What a NAT does; the words are those of `p2ptunnel.testing.natlab.Kind`.

    Attributes:
        wan_address: Its outside address.
        lan_address: Its inside address, from which its ICMP errors come.
    """

    wan_address: str
    lan_address: str
    mapping: str = "endpoint-independent"
    filtering: str = "address-and-port-dependent"
    allocation: str = "preserving"
    unsolicited: str = "drop"
    simultaneous_open: bool = True
    is_guarded: bool = False
    inbound_reset: str = "session"
    hairpinning: bool = False
    udp: bool = True
    tcp: bool = True
    udp_timeout: float = 120.0
    tcp_opening_timeout: float = 75.0
    tcp_timeout: float = 7440.0
    max_mappings: int = 0


@dataclass(slots=True)
class Session:
    """A mapping's dealings with one remote endpoint; UDP has no states."""

    state: SessionState = "new"


@dataclass(slots=True)
class Mapping:
    """An inside endpoint and the outside port that stands for it."""

    protocol: int
    inside: Endpoint
    outside_port: int
    last_used: float = 0.0
    is_static: bool = False
    sessions: dict[Endpoint, Session] = field(default_factory=dict[Endpoint, Session])
    keys: set[Key] = field(default_factory=set[Key])

    def session(self, remote: Endpoint) -> Session:
        """Return the session with a remote endpoint, a new one if there was none."""
        return self.sessions.setdefault(remote, Session())


class Table:
    """All mappings of one NAT."""

    def __init__(self, settings: NatSettings, dice: random.Random) -> None:
        self._settings = settings
        self._dice = dice
        self._next_port = {protocol: dice.randrange(*_FIRST_PORT_RANGE) for protocol in (UDP, TCP)}
        self._by_key: dict[Key, Mapping] = {}
        self._by_port: dict[tuple[int, int], Mapping] = {}

    def __len__(self) -> int:
        return len(self._by_port)

    def __iter__(self) -> Iterator[Mapping]:
        return iter(list(self._by_port.values()))

    def outbound(self, protocol: int, inside: Endpoint, remote: Endpoint, now: float) -> Mapping | None:
        """Return the mapping for a flow from inside, or None if there is none yet."""
        mapping = self._by_key.get((protocol, *inside, *remote)) or self._by_key.get(self._key(protocol, inside, remote))
        return self._unless_expired(mapping, now)

    def inbound(self, protocol: int, outside_port: int, now: float) -> Mapping | None:
        """Return the mapping behind an outside port, or None."""
        return self._unless_expired(self._by_port.get((protocol, outside_port)), now)

    def open(self, protocol: int, inside: Endpoint, remote: Endpoint, now: float) -> Mapping | None:
        """Make a mapping for a flow from inside, or return None if the table is full."""
        if self._settings.max_mappings and len(self) >= self._settings.max_mappings:
            self._purge(now)
            if len(self) >= self._settings.max_mappings:
                return None
        port = self._choose_port(protocol, inside[1])
        if port is None:
            return None
        mapping = self._by_port[protocol, port] = Mapping(protocol, inside, port, now)
        self._bind(mapping, self._key(protocol, inside, remote))
        return mapping

    def answer_through(self, mapping: Mapping, remote: Endpoint, now: float) -> None:
        """Have what goes back to a remote endpoint that was let in leave by the mapping through which it came."""
        if self.outbound(mapping.protocol, mapping.inside, remote, now) is not mapping:
            self._bind(mapping, (mapping.protocol, *mapping.inside, *remote))

    def add_static(self, protocol: int, outside_port: int, inside: Endpoint) -> None:
        """Make a mapping that lasts and lets everybody in, as its owner would by hand."""
        self._by_port[protocol, outside_port] = Mapping(protocol, inside, outside_port, is_static=True)

    def remove(self, mapping: Mapping) -> None:
        """Forget one mapping."""
        for key in mapping.keys:
            del self._by_key[key]
        mapping.keys.clear()
        self._by_port.pop((mapping.protocol, mapping.outside_port), None)

    def clear(self) -> None:
        """Forget all mappings but the static ones, of which only the flows are forgotten."""
        for mapping in self:
            self.remove(mapping)
            if mapping.is_static:
                self.add_static(mapping.protocol, mapping.outside_port, mapping.inside)

    def _bind(self, mapping: Mapping, key: Key) -> None:
        """Let a key lead to a mapping; the one to which it led before loses it."""
        if key in self._by_key:
            self._by_key[key].keys.discard(key)
        self._by_key[key] = mapping
        mapping.keys.add(key)

    def _key(self, protocol: int, inside: Endpoint, remote: Endpoint) -> Key:
        if self._settings.mapping == "endpoint-independent":
            return (protocol, *inside, b"", 0)
        if self._settings.mapping == "address-dependent":
            return (protocol, *inside, remote[0], 0)
        return (protocol, *inside, *remote)

    def _unless_expired(self, mapping: Mapping | None, now: float) -> Mapping | None:
        if mapping is not None and self._is_expired(mapping, now):
            self.remove(mapping)
            return None
        return mapping

    def _is_expired(self, mapping: Mapping, now: float) -> bool:
        return not mapping.is_static and now - mapping.last_used > self._lifetime(mapping)

    def _lifetime(self, mapping: Mapping) -> float:
        if mapping.protocol == UDP:
            return self._settings.udp_timeout
        is_established = any(session.state == "established" for session in mapping.sessions.values())
        return self._settings.tcp_timeout if is_established else self._settings.tcp_opening_timeout

    def _purge(self, now: float) -> None:
        for mapping in self:
            self._unless_expired(mapping, now)

    def _choose_port(self, protocol: int, inside_port: int) -> int | None:
        match self._settings.allocation:
            case "preserving":
                first = inside_port
            case "shifted":
                first = (inside_port + _SHIFT[protocol] - _LOWEST_PORT) % _PORT_COUNT + _LOWEST_PORT
            case "sequential":
                return self._choose_next_port(protocol)
            case _:
                return self._choose_random_port(protocol)
        return first if (protocol, first) not in self._by_port else self._choose_random_port(protocol)

    def _choose_next_port(self, protocol: int) -> int | None:
        for _ in range(_PORT_COUNT):
            port = self._next_port[protocol]
            self._next_port[protocol] = port + 1 if port < _HIGHEST_PORT else _LOWEST_PORT
            if (protocol, port) not in self._by_port:
                return port
        return None

    def _choose_random_port(self, protocol: int) -> int | None:
        for _ in range(_TRIES):
            port = self._dice.randint(_LOWEST_PORT, _HIGHEST_PORT)
            if (protocol, port) not in self._by_port:
                return port
        return None
