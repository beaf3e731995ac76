"""TLS 1.3 pinned to keys instead of names.  Rule: whatever is wrong with the other side's key fails the handshake itself.

The other side's key becomes a trust anchor that is forged here and never sent; its leaf certificate names that key as issuer.
So OpenSSL refuses every other key, with no callback that could fail open (docs/explanation/security.md).
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import secrets
import ssl
import sys
import tempfile
import threading
import weakref
from collections.abc import Generator
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import NameOID

from p2ptunnel.errors import AuthenticationError
from p2ptunnel.identity.keys import Identity, PublicKey

__all__ = [
    "ALPN",
    "PAIRING_ALPN",
    "Proof",
    "callee_context",
    "caller_context",
    "leaf_key",
    "prove",
    "web_client_context",
    "web_server_context",
]

ALPN: Final = "p2pt/1"
PAIRING_ALPN: Final = "p2pt-pair/1"
"""Under it only pairing frames are legal, and the keys are those that each side claims: nobody is admitted to anything."""
_WEB_ALPN: Final = "http/1.1"
_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: a board that wakes in 1970 works
_BEGIN: Final = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_END: Final = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_CONTEXTS_KEPT: Final = 32  # of each kind; building one takes 2 to 6 ms


class Proof(msgspec.Struct, frozen=True):
    """What a finished handshake has proved: that the holder of `leaf`, which `key` has certified, is on the other side."""

    key: PublicKey
    leaf: bytes


class _Leaf:
    """The key that TLS uses: fresh in each process and certified by the identity, which so stays out of TLS."""

    def __init__(self, identity: Identity) -> None:
        self.private_key: Final = Ed25519PrivateKey.generate()
        self.public_key: Final = self.private_key.public_key().public_bytes_raw()
        self.certificate: Final = _leaf_certificate(identity, self.private_key.public_key())


_LEAVES: Final[weakref.WeakKeyDictionary[Identity, _Leaf]] = weakref.WeakKeyDictionary()
_LEAVES_LOCK: Final = threading.Lock()


def _leaf(identity: Identity) -> _Leaf:
    """Return the one leaf of `identity`: contexts and HELLO must name the same, however many identities there are."""
    with _LEAVES_LOCK:
        if identity not in _LEAVES:
            _LEAVES[identity] = _Leaf(identity)
        return _LEAVES[identity]


def leaf_key(identity: Identity) -> bytes:
    """Return the 32 bytes of the public key that TLS uses for `identity` in this process."""
    return _leaf(identity).public_key


@functools.lru_cache(_CONTEXTS_KEPT)
def caller_context(identity: Identity, callee: PublicKey, alpn: str = ALPN) -> ssl.SSLContext:
    """Return a client context in which only `callee` can finish the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _pin(context, identity, (callee,), alpn)
    return context


@functools.lru_cache(_CONTEXTS_KEPT)
def callee_context(identity: Identity, admitted: tuple[PublicKey, ...], alpn: str = ALPN) -> ssl.SSLContext:
    """Return a server context in which only these keys can finish the handshake; our own is never one of them.

    Another tuple is another context, so a key that is taken from the list is refused at once.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # no resumption: each channel proves its keys anew
    _pin(context, identity, tuple(key for key in admitted if key != identity.public), alpn)
    return context


def web_server_context(identity: Identity | None, certificate: str = "", key: str = "") -> ssl.SSLContext:
    """Return the context of a server's TLS port, which asks its clients for nothing.

    Args:
        identity: The server's own, which certifies what it shows.
        certificate: A file with a certificate chain of the web's, to be shown instead.
        key: The file with its key; empty: it is in the same.

    Raises:
        OSError: A file cannot be read, or does not hold what it should.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2 if certificate else ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([_WEB_ALPN])
    if certificate or identity is None:
        context.load_cert_chain(certificate, key or None)
    else:
        _load_leaf(context, _leaf(identity))
    return context


@functools.lru_cache(_CONTEXTS_KEPT)
def web_client_context(server: PublicKey | None, *, is_public: bool = False) -> ssl.SSLContext:
    """Return the context for a server's TLS port.

    Args:
        server: The key that must have certified what it shows; None: whoever answers will do.
        is_public: Instead, a certificate of the web's for the name that is asked for.
    """
    if is_public:
        context = ssl.create_default_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # before verify_mode; the key is the name
        context.verify_mode = ssl.CERT_NONE if server is None else ssl.CERT_REQUIRED
    if server is not None:
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VerifyFlags(_NO_CHECK_TIME)
        context.load_verify_locations(cadata=_anchor_certificate(server))
    context.set_alpn_protocols([_WEB_ALPN])
    return context


def prove(connection: ssl.SSLObject, own: PublicKey, expected: PublicKey | None = None, *, alpn: str = ALPN) -> Proof:
    """Return what the finished handshake of `connection` has proved.

    Args:
        connection: Its handshake is done.
        own: Our key; a peer that has it is ourselves.
        expected: The key that the other side must have; None when the issuer of its leaf tells who came.
        alpn: What is spoken inside.

    Raises:
        AuthenticationError: It proved less than a channel needs.
    """
    if connection.version() != "TLSv1.3" or connection.selected_alpn_protocol() != alpn:
        raise AuthenticationError(f"the other side does not speak {alpn} over TLS 1.3")
    key, leaf = _read_leaf(connection.getpeercert(binary_form=True) or b"")
    if key == own:
        raise AuthenticationError("the other side is this machine itself")
    if expected is not None and key != expected:
        raise AuthenticationError("the other side proved another key than the expected one")
    return Proof(key, leaf)


def _read_leaf(der: bytes) -> tuple[PublicKey, bytes]:
    """Return the identity key that a verified leaf names as its issuer, and the leaf's own key."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        leaf = certificate.public_key()
        [issuer] = certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = PublicKey(bytes.fromhex(str(issuer.value)))
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:  # OpenSSL takes more than these
        raise AuthenticationError("the other side's certificate cannot be read") from error
    if not isinstance(leaf, Ed25519PublicKey):  # TLS itself lets other kinds through
        raise AuthenticationError("the other side's leaf is not an Ed25519 key")
    return key, leaf.public_bytes_raw()


def _pin(context: ssl.SSLContext, identity: Identity, keys: tuple[PublicKey, ...], alpn: str) -> None:
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # Debian's Python sets it: a forged FIN would look like a clean end
    context.check_hostname = False  # before verify_mode; the key is the name
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VerifyFlags(_NO_CHECK_TIME)
    context.set_alpn_protocols([alpn])
    _load_leaf(context, _leaf(identity))
    if keys:  # without anchors every key is refused
        context.load_verify_locations(cadata=b"".join(map(_anchor_certificate, keys)))


# --- certificates -----------------------------------------------------------------------------------------------------


def _anchor_certificate(key: PublicKey) -> bytes:
    """Forge the trust anchor for a key that is not ours: nothing checks the signature of an anchor."""
    public_key = Ed25519PublicKey.from_public_bytes(key.raw)
    return (
        _certificate(_name(key.raw.hex()), key, public_key, serial=1)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(Ed25519PrivateKey.generate(), None)
        .public_bytes(serialization.Encoding.DER)
    )


def _leaf_certificate(identity: Identity, public_key: Ed25519PublicKey) -> bytes:
    return (
        _certificate(_name("leaf"), identity.public, public_key, serial=2)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .sign(identity.private_key, None)
        .public_bytes(serialization.Encoding.PEM)
    )


def _certificate(subject: x509.Name, issuer: PublicKey, public_key: Ed25519PublicKey, serial: int) -> x509.CertificateBuilder:
    issuer_key = Ed25519PublicKey.from_public_bytes(issuer.raw)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(_name(issuer.raw.hex()))
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


# --- handing the leaf to OpenSSL, which reads files only ----------------------------------------------------------------


def _load_leaf(context: ssl.SSLContext, leaf: _Leaf) -> None:
    password = secrets.token_bytes(32)
    encryption = serialization.BestAvailableEncryption(password)
    key = leaf.private_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    with _readable_path(key + leaf.certificate) as path:
        context.load_cert_chain(path, password=password)


@contextlib.contextmanager
def _readable_path(data: bytes) -> Generator[str]:
    """Give a path at which `data` can be read while the block runs: in memory on Linux, else a file only we can read."""
    if sys.platform == "linux" and os.path.isdir("/proc/self/fd"):
        with open(os.memfd_create("leaf", os.MFD_CLOEXEC), "wb", buffering=0) as memory:
            memory.write(data)
            yield f"/proc/self/fd/{memory.fileno()}"
        return
    descriptor, path = tempfile.mkstemp()
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        yield path
    finally:
        os.unlink(path)
