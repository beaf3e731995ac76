"""Packets for the tests of the laboratory's engine, built and checked by a second, independent implementation."""

from __future__ import annotations

import ipaddress
import struct
from typing import NamedTuple

from p2ptunnel.testing.natlab.engine.packet import ACK, ICMP, TCP, UDP

HOST = ("192.168.1.2", 40000)
NEIGHBOUR = ("192.168.1.3", 41000)
WAN = "198.51.100.7"
LAN = "192.168.1.1"
PEER = ("203.0.113.1", 5000)
PEER_OTHER_PORT = ("203.0.113.1", 5001)
STRANGER = ("203.0.113.2", 6000)

Address = tuple[str, int]


class Seen(NamedTuple):
    """What a packet says, read without the code under test."""

    protocol: int
    source: Address
    destination: Address
    ttl: int
    flags: int
    payload: bytes


def udp(source: Address, destination: Address, payload: bytes = b"hello", *, ttl: int = 64, checksum: bool = True) -> bytes:
    """A UDP packet."""
    body = struct.pack("!HHHH", source[1], destination[1], 8 + len(payload), 0) + payload
    total = internet_checksum(pseudo_header(source[0], destination[0], UDP, len(body)) + body) or 0xFFFF
    if checksum:
        body = body[:6] + struct.pack("!H", total) + body[8:]
    return ipv4(source[0], destination[0], UDP, body, ttl=ttl)


def tcp(source: Address, destination: Address, flags: int, payload: bytes = b"", *, seq: int = 100, ack: int = 0) -> bytes:
    """A TCP packet."""
    body = struct.pack("!HHIIBBHHH", source[1], destination[1], seq, ack, 0x50, flags, 1000, 0, 0) + payload
    total = internet_checksum(pseudo_header(source[0], destination[0], TCP, len(body)) + body)
    body = body[:16] + struct.pack("!H", total) + body[18:]
    return ipv4(source[0], destination[0], TCP, body)


def icmp_error(source: str, destination: str, about: bytes, kind: int = 3, code: int = 3) -> bytes:
    """An ICMP error that quotes the header and eight bytes of a packet."""
    body = struct.pack("!BBHI", kind, code, 0, 0) + about[:28]
    body = body[:2] + struct.pack("!H", internet_checksum(body)) + body[4:]
    return ipv4(source, destination, ICMP, body)


def ipv4(source: str, destination: str, protocol: int, body: bytes, *, ttl: int = 64, fragment: int = 0x4000) -> bytes:
    """An IPv4 packet."""
    header = (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, fragment, ttl, protocol, 0) + packed(source) + packed(destination)
    )
    return header[:10] + struct.pack("!H", internet_checksum(header)) + header[12:] + body


def read(data: bytes) -> Seen:
    """Read a packet, after checking its length and its checksums."""
    assert int.from_bytes(data[2:4], "big") == len(data)
    assert internet_checksum(data[:20]) == 0, "the header's checksum is wrong"
    source, destination = str(ipaddress.ip_address(data[12:16])), str(ipaddress.ip_address(data[16:20]))
    protocol, body = data[9], data[20:]
    if protocol == ICMP:
        assert internet_checksum(body) == 0, "the checksum of ICMP is wrong"
        return Seen(protocol, (source, 0), (destination, 0), data[8], 0, body)
    has_checksum = protocol == TCP or body[6:8] != bytes(2)
    if has_checksum:
        assert internet_checksum(pseudo_header(source, destination, protocol, len(body)) + body) == 0, "the checksum is wrong"
    ports = struct.unpack("!HH", body[:4])
    payload = body[20:] if protocol == TCP else body[8:]
    return Seen(protocol, (source, ports[0]), (destination, ports[1]), data[8], body[13] if protocol == TCP else 0, payload)


def read_quoted(seen: Seen) -> tuple[Address, Address]:
    """Source and destination of what an ICMP error quotes."""
    quoted = seen.payload[8:]
    assert internet_checksum(quoted[:20]) == 0, "the quoted header's checksum is wrong"
    ports = struct.unpack("!HH", quoted[20:24])
    return (str(ipaddress.ip_address(quoted[12:16])), ports[0]), (str(ipaddress.ip_address(quoted[16:20])), ports[1])


def packed(address: str) -> bytes:
    """The four bytes of an address."""
    return ipaddress.ip_address(address).packed


def pseudo_header(source: str, destination: str, protocol: int, size: int) -> bytes:
    """What TCP and UDP put before themselves for their checksum."""
    return packed(source) + packed(destination) + struct.pack("!HH", protocol, size)


def internet_checksum(data: bytes) -> int:
    """RFC 1071, as a sum modulo 65535."""
    padded = data + bytes(len(data) % 2)
    total = int.from_bytes(padded, "big") % 0xFFFF
    return 0xFFFF - total if total or not any(padded) else 0


__all__ = ["ACK", "HOST", "LAN", "NEIGHBOUR", "PEER", "PEER_OTHER_PORT", "STRANGER", "WAN", "Seen"]
