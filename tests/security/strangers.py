"""TLS as somebody else speaks it: tlslite-ng, pure Python, so that no fault of OpenSSL's is on both sides of a test.

It sends whatever it is told to: chains that belong to no key, signatures by another key, older versions, other protocols.
"""

from __future__ import annotations

import contextlib
import socket
import warnings
from collections.abc import Sequence
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from p2ptunnel.identity.tls import ALPN

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # it brings a way into asyncore, which nobody takes
    from tlslite.api import HandshakeSettings, TLSConnection, X509CertChain, parsePEMKey
    from tlslite.errors import BaseTLSException
    from tlslite.x509 import X509

__all__ = ["Stranger", "refused"]

TLS_1_2, TLS_1_3 = (3, 3), (3, 4)
_TIMEOUT: Final = 5.0


class Stranger:
    """What a TLS client of another make shows.

    Args:
        chain: Its certificates, leaf first; none: it shows none.
        key: What it signs the handshake with; need not belong to the leaf.
        alpn: The protocols that it offers.
        version: The newest TLS that it speaks.
    """

    def __init__(
        self,
        chain: Sequence[x509.Certificate] = (),
        key: ed25519.Ed25519PrivateKey | None = None,
        *,
        alpn: Sequence[str] = (ALPN,),
        version: tuple[int, int] = TLS_1_3,
    ) -> None:
        self._settings = HandshakeSettings()
        self._settings.minVersion, self._settings.maxVersion = (TLS_1_2, version) if version == TLS_1_2 else (version, version)
        self._settings.certificate_compression_send = self._settings.certificate_compression_receive = ()  # OpenSSL has none
        self._alpn = [name.encode() for name in alpn] or None
        self._chain = X509CertChain([_parsed(one) for one in chain]) if chain else None
        self._key = None if key is None else parsePEMKey(_pem(key), private=True)

    def secure(self, sock: socket.socket) -> Any:
        """Finish the client's handshake on a connected socket; blocks.

        Raises:
            BaseTLSException: It failed here, or the other side said so.
            OSError: The connection broke.
        """
        sock.setblocking(True)
        sock.settimeout(_TIMEOUT)
        connection = TLSConnection(sock)
        connection.ignoreAbruptClose = False
        connection.handshakeClientCert(self._chain, self._key, settings=self._settings, alpn=self._alpn)
        return connection


def refused(stranger: Stranger, sock: socket.socket) -> bool:
    """Tell whether the other side shuts the stranger out, in the handshake or at the first byte behind it; blocks."""
    with contextlib.suppress(BaseTLSException, OSError):
        connection = stranger.secure(sock)
        connection.write(bytes(8))
        return not connection.read(max=1, min=1)
    return True


def _pem(key: ed25519.Ed25519PrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _parsed(certificate: x509.Certificate) -> X509:
    parsed = X509()
    parsed.parse(certificate.public_bytes(serialization.Encoding.PEM).decode())
    return parsed
