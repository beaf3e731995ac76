"""How packets move between TUN devices, links and NATs."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from .answers import is_icmp, too_big
from .link import Direction, LinkSettings
from .loop import Loop
from .nat import Delivery, Nat

__all__ = ["Gateway", "Link", "Receiver", "Tun"]

_PACKET_BYTES: Final = 65536
_BATCH: Final = 64
_QUEUE: Final = 500
"""How many packets the kernel keeps for a TUN device (its transmit queue) until they are read."""

Receiver = Callable[[bytes], None]


def _nowhere(packet: bytes) -> None:
    """Drop a packet: nothing is plugged in."""


class Tun:
    """One TUN device; what its kernel sends goes to `receiver`."""

    def __init__(self, loop: Loop, descriptor: int) -> None:
        self.receiver: Receiver = _nowhere
        self._loop = loop
        self._descriptor = descriptor
        self._is_open = True
        loop.watch(descriptor, self._read)

    def send(self, packet: bytes) -> None:
        """Give a packet to the kernel; it is lost if the device is down."""
        with suppress(OSError):
            os.write(self._descriptor, packet)

    def close(self) -> None:
        """Let go of the descriptor."""
        os.close(self._descriptor)

    def drain(self) -> None:
        """Take all that the kernel has sent."""
        if self._is_open:
            self._read(_QUEUE)

    def _read(self, most: int = _BATCH) -> None:
        """Take what the kernel has sent, but no more than would keep the other devices waiting."""
        for _ in range(most):
            try:
                packet = os.read(self._descriptor, _PACKET_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:  # the device is gone
                self._is_open = False
                self._loop.forget(self._descriptor)
                return
            self.receiver(packet)


class Link:
    """Two directions; whoever stands at an end sets where packets come out there."""

    def __init__(self, loop: Loop, settings: LinkSettings, dice: random.Random) -> None:
        self.upper_end: Receiver = _nowhere
        self.lower_end: Receiver = _nowhere
        self.directions = {"up": Direction(settings, dice), "down": Direction(settings, dice)}
        self._loop = loop

    def up(self, packet: bytes) -> None:
        """Send towards the internet."""
        self._send(self.directions["up"], packet, self.upper_end, self.lower_end)

    def down(self, packet: bytes) -> None:
        """Send towards the site."""
        self._send(self.directions["down"], packet, self.lower_end, self.upper_end)

    def _send(self, direction: Direction, packet: bytes, end: Receiver, back: Receiver) -> None:
        """Send to the far end; where the packet is too big or ICMP is off, see to that first."""
        settings, now = direction.settings, time.monotonic()
        if not settings.icmp and is_icmp(packet):
            direction.lost += 1
            return
        if direction.is_too_big(len(packet)):
            if settings.icmp and (answer := too_big(packet, settings.mtu)):
                back(answer)
            return
        for arrival in direction.admit(len(packet), now):
            if arrival <= now:
                end(packet)
            else:
                self._loop.deliver(arrival, end, packet)


class Gateway:
    """A NAT at work: between a link and the hosts behind it, which may be other NATs."""

    def __init__(self, nat: Nat, link: Link) -> None:
        self.nat = nat
        self._link = link
        self._hosts: dict[bytes, Receiver] = {}
        link.lower_end = self._from_outside

    def add_host(self, address: str, receiver: Receiver) -> None:
        """Let packets for an inside address go to `receiver`."""
        packed = socket.inet_aton(address)
        self._hosts[packed] = receiver
        self.nat.add_host(packed)

    def from_inside(self, packet: bytes) -> None:
        """Take a packet from a host."""
        self._deliver(self.nat.from_inside(packet, time.monotonic()))

    def _from_outside(self, packet: bytes) -> None:
        self._deliver(self.nat.from_outside(packet, time.monotonic()))

    def _deliver(self, deliveries: list[Delivery]) -> None:
        for address, packet in deliveries:
            if address is None:
                self._link.up(packet)
            elif address in self._hosts:
                self._hosts[address](packet)
