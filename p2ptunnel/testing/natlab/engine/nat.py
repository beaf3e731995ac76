"""A NAT that does exactly what its settings say, packet by packet.  Rule: time and dice come in, packets come out.

It counts what it refuses, by reason, and answers as a router does: RST, ICMP errors, time exceeded.
"""

from __future__ import annotations

import random
import socket
from collections import Counter
from typing import Final

from .answers import DESTINATION_UNREACHABLE, TIME_EXCEEDED, error_about, is_error, quoted, reset_for
from .packet import ACK, ICMP, RST, SYN, TCP, UDP, Packet
from .table import Endpoint, Mapping, NatSettings, SessionState, Table

__all__ = ["Delivery", "Nat"]

Delivery = tuple[bytes | None, bytes]
"""The inside address to which a packet goes, None for outside; and the packet."""

_PORT_UNREACHABLE: Final = 3
_TRANSITIONS: Final[dict[tuple[SessionState, str], SessionState]] = {
    ("new", "SYN out"): "opened from inside",
    ("reset", "SYN out"): "opened from inside",
    ("opened from outside", "SYN out"): "established",
    ("new", "SYN-ACK out"): "established",
    ("opened from outside", "SYN-ACK out"): "established",
    ("new", "SYN in"): "opened from outside",
    ("reset", "SYN in"): "opened from outside",
    ("opened from inside", "SYN in"): "established",
    ("new", "SYN-ACK in"): "established",
    ("opened from inside", "SYN-ACK in"): "established",
    ("opened from outside", "SYN-ACK in"): "established",
}


class Nat:
    """One NAT with the hosts behind it.

    Attributes:
        refused: How many packets were not let through, by reason.
    """

    def __init__(self, settings: NatSettings, dice: random.Random) -> None:
        self.settings = settings
        self.refused: Counter[str] = Counter()
        self.table = Table(settings, dice)
        self._wan = socket.inet_aton(settings.wan_address)
        self._lan = socket.inet_aton(settings.lan_address)
        self._hosts: set[bytes] = set()
        self._barred: set[tuple[Endpoint, bytes]] = set()  # an inside TCP port, and the host that it may not deal with
        self._passes = {UDP: settings.udp, TCP: settings.tcp}

    def add_host(self, address: bytes) -> None:
        """Have a host with this address behind the NAT."""
        self._hosts.add(address)

    def flush(self) -> None:
        """Forget all mappings but the static ones, as after a reboot."""
        self.table.clear()

    # --- from inside ---------------------------------------------------------------------------------------------------

    def from_inside(self, data: bytes, now: float) -> list[Delivery]:
        """Take a packet from a host and return what becomes of it."""
        packet = Packet.parse(data)
        if packet is None:
            return self._refuse_unreadable(data)
        destination = packet.destination
        if destination in self._hosts:
            return [(destination, data)]
        if destination[0] >> 4 == 0xE:  # multicast stays in the local network
            return [(host, data) for host in self._hosts if host != packet.source]
        if not packet.hop():
            return [(packet.source, error_about(packet, self._lan, TIME_EXCEEDED, 0))]
        if packet.protocol == ICMP:
            return self._error_outwards(packet)
        if destination == self._wan:
            return self._hairpin(packet, now)
        return [(None, bytes(packet.data))] if self._translate_outwards(packet, now) else []

    def _hairpin(self, packet: Packet, now: float) -> list[Delivery]:
        if not self.settings.hairpinning:
            return self._refuse("hairpin")
        if not self._translate_outwards(packet, now):
            return []
        deliveries: list[Delivery] = []
        for to, data in self._inwards(packet, now):
            deliveries += self._inwards_again(data, now) if to is None else [(to, data)]
        return deliveries

    def _inwards_again(self, answer: bytes, now: float) -> list[Delivery]:
        """Bring our own answer to a hairpinned packet back to the host that sent it."""
        packet = Packet.parse(answer)
        return [] if packet is None else [(to, data) for to, data in self._inwards(packet, now) if to is not None]

    def _translate_outwards(self, packet: Packet, now: float) -> bool:
        if not self._passes.get(packet.protocol):
            self.refused["blocked"] += 1
            return False
        source_port, destination_port = packet.ports
        inside, remote = (packet.source, source_port), (packet.destination, destination_port)
        if packet.protocol == TCP and (inside, remote[0]) in self._barred:
            self.refused["barred"] += 1
            return False
        mapping = self.table.outbound(packet.protocol, inside, remote, now)
        if mapping is None:
            mapping = self._open(packet, inside, remote, now)
        if mapping is None:
            return False
        mapping.last_used = now
        self._note(packet, mapping, remote, "out")
        packet.set_source(self._wan, mapping.outside_port)
        return True

    def _open(self, packet: Packet, inside: Endpoint, remote: Endpoint, now: float) -> Mapping | None:
        if packet.protocol == TCP and not packet.flags & SYN:
            self.refused["no connection"] += 1
            return None
        mapping = self.table.open(packet.protocol, inside, remote, now)
        if mapping is None:
            self.refused["table full"] += 1
        return mapping

    def _error_outwards(self, packet: Packet) -> list[Delivery]:
        """Pass on a host's ICMP error about a packet that was let in, with the outside view in its quotation."""
        about = quoted(packet) if is_error(packet) else None
        if about is None:
            return self._refuse("not translatable")
        for mapping in self.table:
            if (mapping.protocol, mapping.inside) == (about.protocol, (about.destination, about.ports[1])):
                about.set_destination(self._wan, mapping.outside_port)
                kind, code = packet.data[packet.start : packet.start + 2]
                return [(None, error_about(about, self._wan, kind, code, rest=_rest(packet)))]
        return self._refuse("no mapping")

    # --- from outside --------------------------------------------------------------------------------------------------

    def from_outside(self, data: bytes, now: float) -> list[Delivery]:
        """Take a packet from the internet and return what becomes of it."""
        packet = Packet.parse(data)
        if packet is None:
            return self._refuse_unreadable(data)
        if packet.destination != self._wan:
            return self._refuse("not translatable")
        if not packet.hop():
            return [(None, error_about(packet, self._wan, TIME_EXCEEDED, 0))]
        return self._inwards(packet, now)

    def _inwards(self, packet: Packet, now: float) -> list[Delivery]:
        if packet.protocol == ICMP:
            return self._error_inwards(packet, now)
        if not self._passes.get(packet.protocol):
            return self._refuse("blocked")
        source_port, destination_port = packet.ports
        remote = (packet.source, source_port)
        mapping = self.table.inbound(packet.protocol, destination_port, now)
        if mapping is None or not self._lets_in(packet, mapping, remote):
            return self._answer_unsolicited(packet)
        mapping.last_used = now
        self.table.answer_through(mapping, remote, now)
        self._note(packet, mapping, remote, "in")
        packet.set_destination(*mapping.inside)
        return [(mapping.inside[0], bytes(packet.data))]

    def _lets_in(self, packet: Packet, mapping: Mapping, remote: Endpoint) -> bool:
        if mapping.is_static:
            return True
        if packet.protocol == TCP and (mapping.inside, remote[0]) in self._barred:
            return False
        session = mapping.sessions.get(remote)
        if session is not None and packet.is_opening:
            if session.state == "opened from inside" and not self.settings.simultaneous_open:
                if self.settings.is_guarded:
                    self._barred.add((mapping.inside, remote[0]))
                return False
            if session.state == "reset":
                return self._filters_in(mapping, remote, is_known=False)
        return self._filters_in(mapping, remote, is_known=session is not None)

    def _filters_in(self, mapping: Mapping, remote: Endpoint, *, is_known: bool) -> bool:
        match self.settings.filtering:
            case "endpoint-independent":
                return True
            case "address-dependent":
                return any(address == remote[0] for address, _ in mapping.sessions)
            case _:
                return is_known

    def _answer_unsolicited(self, packet: Packet) -> list[Delivery]:
        self.refused["unsolicited"] += 1
        if self.settings.unsolicited != "reject" or packet.flags & RST:
            return []
        if packet.protocol == TCP:
            return [(None, reset_for(packet))]
        return [(None, error_about(packet, self._wan, DESTINATION_UNREACHABLE, _PORT_UNREACHABLE))]

    def _error_inwards(self, packet: Packet, now: float) -> list[Delivery]:
        """Pass on an ICMP error about a packet that a host sent, with the inside view in its quotation."""
        about = quoted(packet) if is_error(packet) else None
        if about is None or about.source != self._wan or about.protocol not in (TCP, UDP):
            return self._refuse("not translatable")
        source_port, destination_port = about.ports
        mapping = self.table.inbound(about.protocol, source_port, now)
        if mapping is None or (about.destination, destination_port) not in mapping.sessions:
            return self._refuse("no mapping")
        about.set_source(*mapping.inside)
        kind, code = packet.data[packet.start : packet.start + 2]
        return [(mapping.inside[0], error_about(about, packet.source, kind, code, to=mapping.inside[0], rest=_rest(packet)))]

    # --- both ----------------------------------------------------------------------------------------------------------

    def _note(self, packet: Packet, mapping: Mapping, remote: Endpoint, direction: str) -> None:
        """Let the session with `remote` see the packet."""
        session = mapping.session(remote)
        flags = packet.flags
        if flags & RST:
            self._note_reset(mapping, remote, direction)
        elif flags & SYN:
            event = f"{'SYN-ACK' if flags & ACK else 'SYN'} {direction}"
            session.state = _TRANSITIONS.get((session.state, event), session.state)

    def _note_reset(self, mapping: Mapping, remote: Endpoint, direction: str) -> None:
        if direction == "out" or self.settings.inbound_reset == "session":
            mapping.session(remote).state = "reset"
        elif self.settings.inbound_reset == "mapping":
            self.table.remove(mapping)

    def _refuse_unreadable(self, data: bytes) -> list[Delivery]:
        """Count a fragment or a broken packet, but not IPv6, which every kernel sends by itself."""
        return [] if data and data[0] >> 4 == 6 else self._refuse("not translatable")

    def _refuse(self, reason: str) -> list[Delivery]:
        self.refused[reason] += 1
        return []


def _rest(error: Packet) -> bytes:
    """Return the second half of an ICMP error's header."""
    return bytes(error.data[error.start + 4 : error.start + 8])
