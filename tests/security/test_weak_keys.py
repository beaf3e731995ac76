"""T32: keys under which everybody can sign."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2ptunnel.errors import AuthenticationError, InvalidKeyError, StoreError
from p2ptunnel.identity import tls
from p2ptunnel.identity.keys import SMALL_ORDER, PublicKey
from p2ptunnel.identity.store import PeerStore
from tests.unit.identity.test_tls import CALLEE, Ends, client_with, new_key, prove

EVERYBODYS = bytes([1]) + bytes(31)
"""The neutral element: the signature of it and zero is good for every message."""


def unguarded(raw: bytes) -> PublicKey:
    """A key past the guard: what a library without the table would give."""
    key = PublicKey(CALLEE.public.raw)
    msgspec.structs.force_setattr(key, "raw", raw)
    return key


def forged(leaf: ed25519.Ed25519PrivateKey) -> x509.Certificate:
    """A certificate whose signature, made by nobody, OpenSSL takes for the neutral element's."""
    pem = tls._leaf_certificate(CALLEE, leaf.public_key())
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    der = der.replace(CALLEE.public.raw.hex().encode(), EVERYBODYS.hex().encode())
    der = der.replace(_key_id(CALLEE.public.raw), _key_id(EVERYBODYS))
    return x509.load_der_x509_certificate(der[:-64] + EVERYBODYS + bytes(32))


def _key_id(raw: bytes) -> bytes:
    key = Ed25519PublicKey.from_public_bytes(raw)
    return x509.SubjectKeyIdentifier.from_public_key(key).digest


def test_a_certificate_of_nobody_would_pass_under_such_a_key(tmp_path: Path) -> None:
    """Why the table is there: TLS lets it in, and only the key's own guard says no."""
    leaf, weak = new_key(), unguarded(EVERYBODYS)
    ends = Ends(client_with(tmp_path / "x", [forged(leaf)], leaf), tls.callee_context(CALLEE, (weak,)))
    assert ends.outcomes["server"] == "done"
    with pytest.raises(AuthenticationError, match="cannot be read"):
        prove(ends.server, CALLEE.public)


@pytest.mark.parametrize("raw", sorted(SMALL_ORDER), ids=lambda raw: raw.hex()[:8])
def test_no_such_key_can_be_spelt_or_pinned(raw: bytes, tmp_path: Path) -> None:
    spelling = str(unguarded(raw))
    assert len(spelling) == len(str(CALLEE.public))
    with pytest.raises(InvalidKeyError):
        PublicKey.parse(spelling)
    (tmp_path / "peers.toml").write_text(f'[peers.nas]\nkey = "{spelling}"\n')
    (tmp_path / "peers.toml").chmod(0o600)
    with pytest.raises(StoreError, match="small order"):
        PeerStore(tmp_path / "peers.toml").all()
