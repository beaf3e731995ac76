"""A router of a few lines that speaks PCP and NAT-PMP: what the machine that asks is tested against."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from p2ptunnel.types import Address, Transport
from p2ptunnel.wire import natpmp, pcp

__all__ = ["ROUTER", "FakeRouter"]

ROUTER: Address = ("192.168.1.1", 5351)

_PCP_REQUEST = struct.Struct("!BBxxI16s12sB3xHH16s")
_TRANSPORTS: dict[int, Transport] = {6: "tcp", 17: "udp"}
_NATPMP_TRANSPORTS: dict[int, Transport] = {1: "udp", 2: "tcp"}


@dataclass
class FakeRouter:
    """Answers requests, and keeps what it grants by transport and inside port.

    Attributes:
        speaks: Versions of the protocol: 2 is PCP, 0 NAT-PMP.
        host: Its outside address.
        code: What it refuses every mapping with; 0 to grant them.
        lifetime: Seconds that it grants at most; also how long a refusal by PCP lasts.
        taken: Outside ports that others have: it gives the next one.
        since: When it began.
        mappings: Outside ports of what stands.
        heard: What it was asked, as it came.
    """

    speaks: frozenset[int] = frozenset({0, 2})
    host: str = "198.51.101.7"
    code: int = 0
    lifetime: int = 7200
    taken: frozenset[int] = frozenset()
    since: float = 0.0
    mappings: dict[tuple[Transport, int], int] = field(default_factory=dict)
    heard: list[bytes] = field(default_factory=list)

    def reboot(self, now: float) -> None:
        """Forget everything, the time too."""
        self.since = now
        self.mappings.clear()

    def answer(self, data: bytes, now: float) -> bytes | None:
        """Return what it says to one datagram; None if it says nothing."""
        self.heard.append(data)
        epoch = int(now - self.since)
        if data[0] == 2 and 2 in self.speaks:
            return self._by_pcp(data, epoch)
        if 0 in self.speaks:
            return struct.pack("!BBHI", 0, 0x80 | data[1], 1, epoch) if data[0] else self._by_natpmp(data, epoch)
        return None

    def announcement(self, version: int, now: float) -> bytes:
        """Return what it tells everybody when it has begun."""
        epoch = int(now - self.since)
        if version == 2:
            return pcp.encode_answer(pcp.Announcement(0, epoch))
        return natpmp.encode_answer(natpmp.AddressAnswer(0, epoch, self.host))

    def _by_pcp(self, data: bytes, epoch: int) -> bytes:
        _, _, asked, _, nonce, protocol, port, external, _ = _PCP_REQUEST.unpack(data)
        transport = _TRANSPORTS[protocol]
        granted, given = self._grant(transport, port, external, asked)
        return pcp.encode_answer(
            pcp.MapAnswer(
                code=self.code,
                lifetime=self.lifetime if self.code else given,
                epoch=epoch,
                nonce=nonce,
                transport=transport,
                port=port,
                external=(self.host, granted),
            )
        )

    def _by_natpmp(self, data: bytes, epoch: int) -> bytes:
        if data == natpmp.ADDRESS_REQUEST:
            return natpmp.encode_answer(natpmp.AddressAnswer(self.code, epoch, "" if self.code else self.host))
        _, opcode, port, external, asked = struct.unpack("!BBxxHHI", data)
        transport = _NATPMP_TRANSPORTS[opcode]
        granted, given = self._grant(transport, port, external, asked)
        return natpmp.encode_answer(
            natpmp.MapAnswer(code=self.code, epoch=epoch, transport=transport, port=port, external_port=granted, lifetime=given)
        )

    def _grant(self, transport: Transport, port: int, external: int, asked: int) -> tuple[int, int]:
        if not asked:
            self.mappings.pop((transport, port), None)
            return 0, 0
        if self.code:
            return 0, 0
        while external in self.taken:
            external += 1
        self.mappings[transport, port] = external
        return external, min(asked, self.lifetime)
