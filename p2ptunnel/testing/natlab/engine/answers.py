"""Packets that a router makes itself: the RST of a closed port, ICMP errors, and ICMP errors translated.

Source: RFC 9293 3.10.7.1 (resets), RFC 792 and 1191, 4443 (errors), RFC 5508 4 (errors through a NAT).
"""

from __future__ import annotations

import struct
from typing import Final

from .packet import ACK, FIN, ICMP, RST, SYN, TCP, Packet, checksum

__all__ = ["DESTINATION_UNREACHABLE", "TIME_EXCEEDED", "error_about", "is_error", "is_icmp", "quoted", "reset_for", "too_big"]

DESTINATION_UNREACHABLE, TIME_EXCEEDED, _PARAMETER_PROBLEM = 3, 11, 12
_HEADER: Final = struct.Struct("!BBHHHBBH4s4s")
_SEGMENT: Final = struct.Struct("!HHIIBBHHH")
_DO_NOT_FRAGMENT: Final = 0x4000
_TTL: Final = 64
_QUOTED_TRANSPORT_BYTES: Final = 8
_FRAGMENTATION_NEEDED: Final = 4
_IPV6, _ICMP_6, _PACKET_TOO_BIG, _IPV6_MINIMUM_MTU = 6, 58, 2, 1280


def reset_for(packet: Packet) -> bytes:
    """Return the RST with which a closed port answers a TCP packet."""
    source, destination, sequence, acknowledged, offset, flags = struct.unpack_from("!HHIIBB", packet.data, packet.start)
    if flags & ACK:
        segment = _SEGMENT.pack(destination, source, acknowledged, 0, 0x50, RST, 0, 0, 0)
    else:
        payload = len(packet.data) - packet.start - (offset >> 4) * 4
        seen = (sequence + payload + bool(flags & SYN) + bool(flags & FIN)) & 0xFFFFFFFF
        segment = _SEGMENT.pack(destination, source, 0, seen, 0x50, RST | ACK, 0, 0, 0)
    pseudo = packet.destination + packet.source + struct.pack("!HH", TCP, len(segment))
    segment = segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]
    return _datagram(packet.destination, packet.source, TCP, segment)


def error_about(
    packet: Packet, source: bytes, kind: int, code: int, *, to: bytes | None = None, rest: bytes = bytes(4)
) -> bytes:
    """Return the ICMP error that quotes a packet.

    Args:
        packet: What it is about.
        source: Address of the router that says so.
        kind: ICMP type.
        code: ICMP code.
        to: Who hears it; None for the packet's sender.
        rest: The second half of the header, 4 bytes: the MTU of a narrow link is there.
    """
    message = struct.pack("!BBH", kind, code, 0) + rest + packet.data[: packet.start + _QUOTED_TRANSPORT_BYTES]
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    return _datagram(source, packet.source if to is None else to, ICMP, message)


def too_big(packet: bytes, mtu: int) -> bytes | None:
    """Return the ICMP error of a link that a packet does not fit through, in the name of where it goes; None: it has none."""
    if packet[0] >> 4 == _IPV6:
        return _too_big_6(packet, mtu)
    read = Packet.parse(packet)
    if read is None:
        return None
    return error_about(read, read.destination, DESTINATION_UNREACHABLE, _FRAGMENTATION_NEEDED, rest=struct.pack("!I", mtu))


def _too_big_6(packet: bytes, mtu: int) -> bytes:
    source, destination = packet[24:40], packet[8:24]
    message = struct.pack("!BBHI", _PACKET_TOO_BIG, 0, 0, mtu) + packet[: _IPV6_MINIMUM_MTU - 48]
    pseudo = source + destination + struct.pack("!II", len(message), _ICMP_6)
    message = message[:2] + struct.pack("!H", checksum(pseudo + message)) + message[4:]
    return struct.pack("!IHBB", _IPV6 << 28, len(message), _ICMP_6, _TTL) + source + destination + message


def is_icmp(packet: bytes) -> bool:
    """Tell whether it is ICMP, of either version; neighbour discovery does not pass here."""
    return packet[6] == _ICMP_6 if packet[0] >> 4 == _IPV6 else packet[9] == ICMP


def is_error(packet: Packet) -> bool:
    """Tell whether it is an ICMP error about another packet."""
    return packet.data[packet.start] in (DESTINATION_UNREACHABLE, TIME_EXCEEDED, _PARAMETER_PROBLEM)


def quoted(packet: Packet) -> Packet | None:
    """Return the packet that an ICMP error quotes, or None if its ports are not in it."""
    return Packet.parse_quoted(packet.data[packet.start + 8 :])


def _datagram(source: bytes, destination: bytes, protocol: int, body: bytes) -> bytes:
    header = _HEADER.pack(0x45, 0, 20 + len(body), 0, _DO_NOT_FRAGMENT, _TTL, protocol, 0, source, destination)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body
