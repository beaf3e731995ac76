"""Connection attempts whose SYN opens our own NATs and dies before it reaches anybody else's.

The peer's NAT thus never sees a SYN that it would answer with RST or remember.  The socket stays in SYN_SENT, so the
peer's SYN, when it comes through the hole, is answered with the sequence number that our NAT has seen.

Source: docs/explanation/nat.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

from p2ptunnel.net.sockets import get_ttl, set_min_ttl, set_ttl, syn_repeats
from p2ptunnel.net.witness import Witness
from p2ptunnel.types import Address

__all__ = ["LowConnect"]

_REPEAT: Final = 1.0  # the kernel repeats a SYN 1.00 to 1.03 s after the one before
_LEAD: Final = 0.01  # lower this long before
_SPAN: Final = 0.06  # and give up waiting this long after the earliest time
_POLL: Final = 0.004  # short: what meets the lowered TTL loses its SYN-ACK, which comes again 1 s later only
_HOLD: Final = 0.02  # IPv6: on top of the hop's round trip, where no witness tells when it is over


class LowConnect:
    """One low-TTL connection attempt: the first SYN, the kernel's repetitions, and the ICMP errors that they cause."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, ttl: int, hop_rtt: float) -> None:
        """Prepare.

        Args:
            loop: The loop that runs.
            sock: Not connected; the caller keeps owning it and calls `stop` before it is closed or handed over.
            ttl: Of the SYNs, 1 to 255.
            hop_rtt: Seconds to the hop where they die and back, 0 if unknown; for IPv6, which waits no longer.
        """
        self._loop = loop
        self._socket = sock
        self._low = ttl
        self._normal = get_ttl(sock)
        self._is_ipv6 = sock.family == socket.AF_INET6
        self._hold = hop_rtt + _HOLD
        self._target: Address | None = None
        self._witness: Witness | None = None
        self._repeat_timer: asyncio.TimerHandle | None = None
        self._hold_timer: asyncio.TimerHandle | None = None

    def connect(self, target: Address) -> int:
        """Do connect_ex() with a SYN that dies on the way; return its errno.

        Raises:
            OSError: The system cannot do this (see `sockets.can_open_low`).
        """
        self._target = target
        self._lower()
        try:
            error = self._socket.connect_ex(target)
        finally:
            self._raise()
        self._await_repeat(self._loop.time() + _REPEAT)
        return error

    def stop(self) -> None:
        """Leave the socket as any other."""
        if self._repeat_timer is not None:
            self._repeat_timer.cancel()
        self._stop_holding()
        with contextlib.suppress(OSError):  # a system that cannot do this
            set_ttl(self._socket, self._normal)
            set_min_ttl(self._socket, 0)

    def _lower(self) -> None:
        """Let what is sent die on the way, and the error that tells of it end nothing.

        IPv4 compares the quoted packet, which has 1 left there, so 2 keeps out just these errors for good.  IPv6 compares
        the error's own hop limit: 255 keeps out every router's, but the peer's SYN too, hence for a moment only: until the
        error must have come.
        """
        self._stop_holding()
        set_min_ttl(self._socket, 255 if self._is_ipv6 else 2)
        set_ttl(self._socket, self._low)

    def _raise(self) -> None:
        """Let what is sent arrive: the SYN-ACK that answers the peer's SYN."""
        set_ttl(self._socket, self._normal)
        if self._is_ipv6 and self._target is not None:
            self._hold_timer = self._loop.call_later(self._hold, self._hear)
            with contextlib.suppress(OSError):  # no descriptor is left: the time tells
                self._witness = Witness(self._socket.getsockname()[0], self._target, self._low, self._hear)
            if self._witness is not None and self._witness.is_back:
                self._hear()

    def _hear(self) -> None:
        """Take what comes from now on."""
        self._stop_holding()
        set_min_ttl(self._socket, 0)

    def _stop_holding(self) -> None:
        if self._hold_timer is not None:
            self._hold_timer.cancel()
        if self._witness is not None:
            self._witness.stop()
            self._witness = None

    def _await_repeat(self, at: float) -> None:
        self._repeat_timer = self._loop.call_at(at - _LEAD, self._lower_for_repeat, at)

    def _lower_for_repeat(self, at: float) -> None:
        seen = syn_repeats(self._socket)
        if seen is not None:
            self._lower()
            self._raise_after_repeat(at, seen)

    def _raise_after_repeat(self, at: float, seen: int) -> None:
        now, repeats = self._loop.time(), syn_repeats(self._socket)
        if repeats == seen and now < at + _SPAN:
            self._repeat_timer = self._loop.call_later(_POLL, self._raise_after_repeat, at, seen)
            return
        self._raise()
        if repeats is not None:  # a kernel that doubles its intervals skips some of our windows
            self._await_repeat((at if repeats == seen else now) + _REPEAT)
