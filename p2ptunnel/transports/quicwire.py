"""aioquic's connection as we use it: one stream, a window that moves as bytes are taken, ids that nobody takes for JSON.

Its TLS proves nothing: each process makes itself a certificate, and nobody checks it.  Who is at the other end is found out
inside, by the pinned TLS of the channel.

Rules: what aioquic keeps to itself is touched here and nowhere else; this module is imported when QUIC is wanted, not before.

Source: RFC 9000; aioquic 1.2 to 1.7.
"""

from __future__ import annotations

import datetime
import functools
import logging
import ssl
from typing import Final, cast

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import END_STATES, Limit, QuicConnection
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicFrameType, QuicProtocolVersion
from aioquic.tls import CipherSuite
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from p2ptunnel.defaults import QUIC_DATAGRAM_BYTES, QUIC_WINDOW_BYTES, USER_TIMEOUT

__all__ = ["ID_BYTES", "PEER", "STREAM", "Connection"]

ID_BYTES: Final = 8
PEER: Final = ("", 0)
"""What stands for the peer's address: where it is, and whether it has moved, is found out by consent, not by QUIC."""
STREAM: Final = 0
"""The one stream: bidirectional, opened by the caller."""
_ALPN: Final = "p2ptunnel/1"
_UNLIMITED: Final = 2**60  # of the stream alone: the connection's window is the one that counts
_YEAR: Final = datetime.timedelta(days=365)

logging.getLogger("quic").addHandler(logging.NullHandler())  # else Python prints what strangers make it complain of


class _Window:
    """How much the peer may send in all: what has been taken, and so much beyond; in the place of aioquic's own limit.

    That one doubles whenever half of it has come, whether anybody reads or not.
    """

    def __init__(self, size: int) -> None:
        self.frame_type: Final = QuicFrameType.MAX_DATA
        self.name: Final = "max_data"
        self.sent = size
        self.used = 0
        self._size: Final = size
        self._taken = 0
        self._value = size

    @property
    def value(self) -> int:
        """The limit."""
        return self._value

    @value.setter
    def value(self, value: int) -> None:
        """Keep ours, whatever aioquic thinks of."""

    def take(self, count: int) -> None:
        """Move the limit, in steps that are worth telling the peer."""
        self._taken += count
        if self._taken + self._size - self._value >= self._size // 4:
            self._value = self._taken + self._size


class Connection(QuicConnection):
    """One connection; whoever drives it gives it datagrams and the time, and sends what it wants sent.

    Args:
        name: What the caller calls the callee in its first datagrams, 16 bytes that nobody else can know.
        is_caller: Which end: the caller is the QUIC client.
        rtt: Seconds of a round trip, None while unknown.

    Attributes:
        is_caller: As it was given.
        id: What the peer calls us in all other datagrams; it begins with a byte above 0x7F, which JSON never has there.
    """

    def __init__(self, name: bytes, *, is_caller: bool, rtt: float | None) -> None:
        super().__init__(
            configuration=_configuration(is_caller=is_caller, rtt=rtt),
            original_destination_connection_id=None if is_caller else name,
        )
        self.is_caller: Final = is_caller
        self.id: Final = bytes([self.host_cid[0] | 0x80]) + self.host_cid[1:]
        self.host_cid = self._host_cids[0].cid = self._local_initial_source_connection_id = self.id
        if is_caller:
            self._peer_cid.cid = self._original_destination_connection_id = name
        self._window: Final = _Window(QUIC_WINDOW_BYTES)
        self._local_max_data = cast("Limit", self._window)
        for limit, most in ((self._local_max_streams_bidi, 0 if is_caller else 1), (self._local_max_streams_uni, 0)):
            limit.value = limit.sent = most
        self._written = 0

    @property
    def ended(self) -> ConnectionTerminated | None:
        """How it has ended; None while it lives."""
        return self._close_event if self._state in END_STATES else None

    @property
    def unsent_bytes(self) -> int:
        """Written, and not in any datagram yet."""
        stream = self._streams.get(STREAM)
        return self._written - stream.sender.highest_offset if stream else 0

    @property
    def is_delivered(self) -> bool:
        """Whether the peer has acknowledged everything, the end included."""
        stream = self._streams.get(STREAM)
        return stream is None or stream.sender.is_finished

    def write(self, data: bytes | bytearray | memoryview, *, end: bool = False) -> None:
        """Send `data`, which is copied, and with `end` nothing behind it."""
        self._written += len(data)
        self.send_stream_data(STREAM, cast("bytes", data), end)  # a bytearray takes them all

    def take(self, count: int) -> None:
        """Let the peer send so many bytes more, since as many were taken."""
        self._window.take(count)

    def _replenish_connection_ids(self) -> None:
        """Have no other ids: one is enough for whoever does not move by QUIC's rules."""


def _configuration(*, is_caller: bool, rtt: float | None) -> QuicConfiguration:
    configuration = QuicConfiguration(
        alpn_protocols=[_ALPN],
        connection_id_length=ID_BYTES,
        idle_timeout=USER_TIMEOUT,  # frees what is left of it; the session judges long before
        is_client=is_caller,
        max_datagram_size=QUIC_DATAGRAM_BYTES,
        max_stream_data=_UNLIMITED,
        cipher_suites=[CipherSuite.AES_128_GCM_SHA256],  # of those the cheapest: it hides nothing that is not hidden inside
        verify_mode=ssl.CERT_NONE,
        supported_versions=[QuicProtocolVersion.VERSION_1],
    )
    if rtt is not None:
        configuration.initial_rtt = rtt
    if not is_caller:
        configuration.certificate, configuration.private_key = _certificate()
    return configuration


@functools.cache
def _certificate() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return this process's throw-away certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - _YEAR, now + _YEAR)
    return builder.sign(key, hashes.SHA256()), key
