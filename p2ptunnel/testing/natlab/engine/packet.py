"""One IPv4 packet, read and edited in place.  Rule: bytes only, no clock, no socket.

Source: RFC 791, 768, 9293, 792; checksums are adjusted as in RFC 1624.
"""

from __future__ import annotations

import struct
from typing import Final

__all__ = ["ACK", "FIN", "ICMP", "RST", "SYN", "TCP", "UDP", "Packet", "checksum"]

ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10

_SMALLEST: Final = {ICMP: 8, TCP: 20, UDP: 8}
_CHECKSUM_OFFSET: Final = {TCP: 16, UDP: 6}
_PORTS: Final = struct.Struct("!HH")
_SHORT: Final = struct.Struct("!H")
_FRAGMENT: Final = 0x3FFF


class Packet:
    """An IPv4 packet; both checksums stay right whatever is changed.

    Attributes:
        data: The whole packet.
        start: Offset of the transport header.
        protocol: `TCP`, `UDP`, `ICMP` or another number.
    """

    __slots__ = ("data", "protocol", "start")

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytearray(data)
        self.start = (data[0] & 15) * 4
        self.protocol = data[9]

    @classmethod
    def parse(cls, data: bytes | bytearray) -> Packet | None:
        """Return the packet, or None if it is not whole, unfragmented IPv4 with a transport header."""
        if len(data) < 20 or data[0] >> 4 != 4 or _SHORT.unpack_from(data, 6)[0] & _FRAGMENT:
            return None
        packet = cls(data)
        room = len(data) - packet.start
        return packet if packet.start >= 20 and room >= _SMALLEST.get(packet.protocol, 0) else None

    @classmethod
    def parse_quoted(cls, data: bytes | bytearray) -> Packet | None:
        """Return what an ICMP error quotes: a header and eight bytes, ports included; None if it is less."""
        if len(data) < 28 or data[0] >> 4 != 4:
            return None
        packet = cls(data)
        return packet if packet.start >= 20 and len(data) >= packet.start + 8 else None

    @property
    def source(self) -> bytes:
        """The address it comes from, 4 bytes."""
        return bytes(self.data[12:16])

    @property
    def destination(self) -> bytes:
        """The address it goes to, 4 bytes."""
        return bytes(self.data[16:20])

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination port of TCP or UDP."""
        source, destination = _PORTS.unpack_from(self.data, self.start)
        return source, destination

    @property
    def flags(self) -> int:
        """The flags of TCP; 0 for another protocol."""
        return self.data[self.start + 13] if self.protocol == TCP else 0

    @property
    def is_opening(self) -> bool:
        """Whether it is a SYN without ACK."""
        return self.flags & (SYN | ACK) == SYN

    def set_source(self, address: bytes, port: int) -> None:
        """Let it come from another address and port."""
        self._replace(12, address, self.start, port)

    def set_destination(self, address: bytes, port: int) -> None:
        """Let it go to another address and port."""
        self._replace(16, address, self.start + 2, port)

    def hop(self) -> bool:
        """Take one from its TTL; False if it must not travel on."""
        if self.data[8] <= 1:
            return False
        before = bytes(self.data[8:10])
        self.data[8] -= 1
        self._adjust(10, before, bytes(self.data[8:10]))
        return True

    def _replace(self, address_at: int, address: bytes, port_at: int, port: int) -> None:
        old_address, old_port = bytes(self.data[address_at : address_at + 4]), bytes(self.data[port_at : port_at + 2])
        new_port = _SHORT.pack(port)
        self.data[address_at : address_at + 4] = address
        self.data[port_at : port_at + 2] = new_port
        self._adjust(10, old_address, address)
        at = self.start + _CHECKSUM_OFFSET[self.protocol]
        if at + 2 <= len(self.data) and (self.protocol == TCP or self.data[at] or self.data[at + 1]):
            self._adjust(at, old_address + old_port, address + new_port)
            if self.protocol == UDP and not (self.data[at] or self.data[at + 1]):
                self.data[at : at + 2] = b"\xff\xff"  # 0 would mean that there is none

    def _adjust(self, at: int, old: bytes, new: bytes) -> None:
        total = ~int(_SHORT.unpack_from(self.data, at)[0]) & 0xFFFF
        for (before,), (after,) in zip(_SHORT.iter_unpack(old), _SHORT.iter_unpack(new), strict=True):
            total += (~before & 0xFFFF) + after
        _SHORT.pack_into(self.data, at, ~_fold(total) & 0xFFFF)


def checksum(data: bytes | bytearray) -> int:
    """Return the checksum of RFC 1071 over `data`."""
    padded = bytes(data) + bytes(len(data) & 1)
    return ~_fold(sum(word for (word,) in _SHORT.iter_unpack(padded))) & 0xFFFF


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
