"""What the kernel knows of a TCP connection: its round trip, its losses, what has not left yet.

Rule: reading costs one system call and never raises, so that whoever judges paths may ask as often as it likes.

Source: linux/tcp.h (struct tcp_info), which only ever grows at its end.
"""

from __future__ import annotations

import socket
import struct
from asyncio.trsock import TransportSocket
from typing import Final

import msgspec

from p2ptunnel.net.sockets import LINUX

__all__ = ["TcpInfo", "read_tcp_info"]

_TCP_INFO: Final[int | None] = getattr(socket, "TCP_INFO", None) if LINUX else None
_CLOSED_STATES: Final = frozenset({7, 10})  # TCP_CLOSE; TCP_LISTEN, whose numbers mean something else
_MICROSECONDS, _MILLISECONDS = 1e-6, 1e-3
_PROBES: Final = 2
"""So many questions without an answer whether a full buffer has room again are no accident; before Linux 5.4, all that shows
that what is not sent could be: with the cable out of our own machine nothing is under way, and yet nothing is acknowledged."""

_LAYOUT: Final = struct.Struct(
    "="
    "B2xB12xI4xI28x"  # state at 0, probes at 3, snd_mss at 16, unacked at 24
    "I"  # last_ack_recv at 56
    "8xII24x"  # rtt at 68, rttvar at 72
    "I40x"  # total_retrans at 100
    "I8xI"  # notsent_bytes at 144, data_segs_out at 156
    "Q60x"  # delivery_rate at 160
    "I"  # snd_wnd at 228
)
_FIRST_BYTES: Final = 104  # up to total_retrans: all kernels since 2.6; what is missing behind reads as 0


class TcpInfo(msgspec.Struct, frozen=True):
    """One look at a connection; two of them tell what went on between.

    Attributes:
        rtt: Seconds, smoothed; 0 before the first measurement.
        rttvar: Seconds, mean deviation of the round trip.
        seconds_without_ack: How long ago the other side's kernel last acknowledged anything, while bytes are under way to it,
            or would be if this machine had a way to send them; 0 when nothing is.  After a silence this counts from before it:
            look again when an answer could have come.  A process that is stopped does not show here: its kernel goes on
            acknowledging, until its buffer is full and nothing is sent any more.
        retransmitted: Segments that were sent again, since the beginning.
        sent: Segments with data that were sent, repetitions included, since the beginning; 0 before Linux 4.6.
        delivery_rate: Bytes/s that lately arrived at the other side; 0 before Linux 4.9.
        snd_mss: Bytes of the largest segment that is sent, without headers.
        unsent_bytes: Written, but not sent yet: the other side or the path takes no more; 0 before Linux 4.6.
    """

    rtt: float
    rttvar: float
    seconds_without_ack: float
    retransmitted: int
    sent: int
    delivery_rate: int
    snd_mss: int
    unsent_bytes: int


def read_tcp_info(sock: socket.socket | TransportSocket) -> TcpInfo | None:
    """Return what the kernel knows of a connection; None where it does not tell, and when there is no connection (any more)."""
    if _TCP_INFO is None:
        return None
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LAYOUT.size)
    except OSError:  # no TCP socket, or closed by now
        return None
    return _parse(data)


def _parse(data: bytes) -> TcpInfo | None:
    if len(data) < _FIRST_BYTES:
        return None
    fields = _LAYOUT.unpack_from(data.ljust(_LAYOUT.size, b"\0"))
    state, probes, mss, unacked, last_ack, rtt, rttvar, retransmitted, unsent, sent, rate, window = fields
    if state in _CLOSED_STATES:
        return None
    is_held_here = unsent > 0 and (window >= mss or probes >= _PROBES)
    return TcpInfo(
        rtt=rtt * _MICROSECONDS,
        rttvar=rttvar * _MICROSECONDS,
        seconds_without_ack=last_ack * _MILLISECONDS if unacked or is_held_here else 0.0,
        retransmitted=retransmitted,
        sent=sent,
        delivery_rate=rate,
        snd_mss=mss,
        unsent_bytes=unsent,
    )
