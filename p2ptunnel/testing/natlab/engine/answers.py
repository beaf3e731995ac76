"""Packets that a router makes itself: the RST of a closed port, ICMP errors, and ICMP errors translated.

Source: RFC 9293 3.10.7.1 (resets), RFC 792 (errors), RFC 5508 4 (errors through a NAT).
"""

from __future__ import annotations

import struct
from typing import Final

from .packet import ACK, FIN, ICMP, RST, SYN, TCP, Packet, checksum

__all__ = ["DESTINATION_UNREACHABLE", "TIME_EXCEEDED", "error_about", "is_error", "quoted", "reset_for"]

DESTINATION_UNREACHABLE, TIME_EXCEEDED, _PARAMETER_PROBLEM = 3, 11, 12
_HEADER: Final = struct.Struct("!BBHHHBBH4s4s")
_SEGMENT: Final = struct.Struct("!HHIIBBHHH")
_DO_NOT_FRAGMENT: Final = 0x4000
_TTL: Final = 64
_QUOTED_TRANSPORT_BYTES: Final = 8


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


def error_about(packet: Packet, source: bytes, kind: int, code: int, *, to: bytes | None = None) -> bytes:
    """Return the ICMP error that quotes a packet.

    Args:
        packet: What it is about.
        source: Address of the router that says so.
        kind: ICMP type.
        code: ICMP code.
        to: Who hears it; None for the packet's sender.
    """
    message = struct.pack("!BBHI", kind, code, 0, 0) + packet.data[: packet.start + _QUOTED_TRANSPORT_BYTES]
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    return _datagram(source, packet.source if to is None else to, ICMP, message)


def is_error(packet: Packet) -> bool:
    """Tell whether it is an ICMP error about another packet."""
    return packet.data[packet.start] in (DESTINATION_UNREACHABLE, TIME_EXCEEDED, _PARAMETER_PROBLEM)


def quoted(packet: Packet) -> Packet | None:
    """Return the packet that an ICMP error quotes, or None if its ports are not in it."""
    return Packet.parse_quoted(packet.data[packet.start + 8 :])


def _datagram(source: bytes, destination: bytes, protocol: int, body: bytes) -> bytes:
    header = _HEADER.pack(0x45, 0, 20 + len(body), 0, _DO_NOT_FRAGMENT, _TTL, protocol, 0, source, destination)
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body
