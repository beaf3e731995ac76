"""Pinned TLS against real OpenSSL ends: who gets through the handshake, who does not, and who is caught behind it."""

from __future__ import annotations

import datetime
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.x509.oid import NameOID

from p2ptunnel.errors import AuthenticationError
from p2ptunnel.identity import tls
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.tls import ALPN, Proof, callee_context, caller_context, leaf_key, prove

CALLER, CALLEE, MALLORY = (Identity.from_seed(bytes([n]) * 32) for n in (11, 12, 13))
REFUSED = "CERTIFICATE_VERIFY_FAILED"


class Ends:
    """Two TLS ends in memory, after as much of a handshake as they came to."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext) -> None:
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(to_client, to_server, server_side=False)
        self.server = server.wrap_bio(to_server, to_client, server_side=True)
        self.wire = b""
        self.outcomes: dict[str, str] = {}
        for _ in range(4):
            for name, end in (("client", self.client), ("server", self.server)):
                self._step(name, end)

    def _step(self, name: str, end: ssl.SSLObject) -> None:
        if name in self.outcomes:
            return
        try:
            end.do_handshake()
            self.outcomes[name] = "done"
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.outcomes[name] = error.reason or type(error).__name__


def pinned(caller: Identity = CALLER, callee: Identity = CALLEE) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return caller_context(caller, callee.public), callee_context(callee, (caller.public,))


# --- who gets through ---------------------------------------------------------------------------------------------------


def test_two_peers_that_pin_each_other_prove_their_keys_and_leaves() -> None:
    ends = Ends(*pinned())
    assert ends.outcomes == {"client": "done", "server": "done"}
    assert prove(ends.client, CALLER.public, CALLEE.public) == Proof(CALLEE.public, leaf_key(CALLEE))
    assert prove(ends.server, CALLEE.public) == Proof(CALLER.public, leaf_key(CALLER))


def test_a_leaf_is_fresh_in_each_process_and_is_not_the_identity() -> None:
    code = "from p2ptunnel.identity.keys import Identity; from p2ptunnel.identity.tls import leaf_key;"
    code += "print(leaf_key(Identity.from_seed(bytes([11]) * 32)).hex())"
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert len({elsewhere, leaf_key(CALLER).hex(), CALLER.public.raw.hex()}) == 3
    assert leaf_key(CALLER) == leaf_key(CALLER)


def test_one_of_many_admitted_callers_is_told_from_the_others() -> None:
    others = tuple(Identity.generate().public for _ in range(30))
    server = callee_context(CALLEE, (*others, CALLER.public, MALLORY.public))
    for caller in (CALLER, MALLORY):
        ends = Ends(caller_context(caller, CALLEE.public), server)
        assert prove(ends.server, CALLEE.public).key == caller.public


def test_no_name_is_sent_and_no_ticket_given() -> None:
    client, server = pinned()
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    end = client.wrap_bio(to_client, to_server, server_side=False)
    with pytest.raises(ssl.SSLWantReadError):
        end.do_handshake()
    assert CALLEE.public.raw.hex().encode() not in to_server.read()
    assert server.num_tickets == 0


def test_every_context_is_strict_and_speaks_tls_1_3_only() -> None:
    for context in pinned():
        assert context.verify_flags & ssl.VERIFY_X509_STRICT
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is context.maximum_version is ssl.TLSVersion.TLSv1_3
        assert context.keylog_filename is None


def test_no_session_key_is_logged_where_the_environment_asks_for_it(tmp_path: Path) -> None:
    log = tmp_path / "keys"
    code = "from tests.unit.identity.test_tls import *; print(Ends(*pinned()).outcomes)"
    environment = {**os.environ, "SSLKEYLOGFILE": str(log)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "{'client': 'done', 'server': 'done'}\n"
    assert not log.exists()


# --- who does not -------------------------------------------------------------------------------------------------------


def test_a_caller_refuses_a_callee_with_another_key_and_tells_it() -> None:
    ends = Ends(caller_context(CALLER, CALLEE.public), callee_context(MALLORY, (CALLER.public,)))
    assert ends.outcomes == {"client": REFUSED, "server": "TLSV1_ALERT_UNKNOWN_CA"}


def test_a_callee_refuses_a_caller_that_is_not_admitted() -> None:
    for admitted in ((), (CALLER.public,), (CALLER.public, CALLEE.public)):
        ends = Ends(caller_context(MALLORY, CALLEE.public), callee_context(CALLEE, admitted))
        assert ends.outcomes["server"] == REFUSED


def test_a_machine_does_not_admit_itself_even_where_its_list_does() -> None:
    ends = Ends(caller_context(CALLEE, CALLEE.public), callee_context(CALLEE, (CALLEE.public, CALLER.public)))
    assert ends.outcomes["server"] == REFUSED


def test_a_key_that_is_taken_from_the_list_is_refused_by_the_next_context() -> None:
    assert Ends(*pinned()).outcomes["server"] == "done"
    ends = Ends(caller_context(CALLER, CALLEE.public), callee_context(CALLEE, (MALLORY.public,)))
    assert ends.outcomes["server"] == REFUSED


# --- forged certificates ------------------------------------------------------------------------------------------------


def certificate(
    *,
    issuer: PublicKey,
    signer: ed25519.Ed25519PrivateKey,
    subject: str = "leaf",
    key: ed25519.Ed25519PublicKey | rsa.RSAPublicKey,
    is_ca: bool = False,
    since: int = 1970,
) -> x509.Certificate:
    """A certificate as an attacker would make it."""

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    issuer_key = ed25519.Ed25519PublicKey.from_public_bytes(issuer.raw)
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False)
    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer.raw.hex()))
        .public_key(key)
        .serial_number(7)
        .not_valid_before(datetime.datetime(since, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=not is_ca, key_cert_sign=is_ca, encipher_only=False, decipher_only=False, **usage),
            critical=True,
        )
        .sign(signer, None)
    )


def client_with(
    path: Path, chain: list[x509.Certificate], key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey, alpn: str = ALPN
) -> ssl.SSLContext:
    """A client that trusts everybody and shows this chain."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(encoding, form, serialization.NoEncryption())
    path.write_bytes(pem + b"".join(one.public_bytes(encoding) for one in chain))
    context.load_cert_chain(path)
    return context


def new_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def test_the_forger_passes_with_a_true_certificate(tmp_path: Path) -> None:
    leaf = new_key()
    true = certificate(issuer=CALLER.public, signer=CALLER.private_key, key=leaf.public_key())
    ends = Ends(client_with(tmp_path / "x", [true], leaf), callee_context(CALLEE, (CALLER.public,)))
    assert ends.outcomes["server"] == "done"
    assert prove(ends.server, CALLEE.public).key == CALLER.public


def test_no_clock_is_asked_whether_a_certificate_is_valid(tmp_path: Path) -> None:
    leaf = new_key()
    true = certificate(issuer=CALLER.public, signer=CALLER.private_key, key=leaf.public_key(), since=9000)
    ends = Ends(client_with(tmp_path / "x", [true], leaf), callee_context(CALLEE, (CALLER.public,)))
    assert ends.outcomes["server"] == "done"


def test_a_leaf_that_names_an_issuer_who_did_not_sign_it_is_refused(tmp_path: Path) -> None:
    leaf = new_key()
    forged = certificate(issuer=CALLER.public, signer=MALLORY.private_key, key=leaf.public_key())
    for admitted in ((CALLER.public,), (CALLER.public, MALLORY.public)):  # also where the forger is admitted itself
        ends = Ends(client_with(tmp_path / "x", [forged], leaf), callee_context(CALLEE, admitted))
        assert ends.outcomes["server"] == REFUSED


def test_a_leaf_cannot_certify_another_leaf(tmp_path: Path) -> None:
    middle, leaf = new_key(), new_key()
    middle_key = PublicKey.from_bytes(middle.public_key().public_bytes_raw())
    for is_ca in (False, True):
        above = certificate(
            issuer=CALLER.public,
            signer=CALLER.private_key,
            subject=middle_key.raw.hex(),
            key=middle.public_key(),
            is_ca=is_ca,
        )
        below = certificate(issuer=middle_key, signer=middle, key=leaf.public_key())
        ends = Ends(client_with(tmp_path / "x", [below, above], leaf), callee_context(CALLEE, (CALLER.public,)))
        assert ends.outcomes["server"] == REFUSED


def test_the_forged_anchor_itself_is_no_leaf(tmp_path: Path) -> None:
    anchor = x509.load_der_x509_certificate(tls._anchor_certificate(CALLER.public))
    ends = Ends(client_with(tmp_path / "x", [anchor], CALLER.private_key), callee_context(CALLEE, (CALLER.public,)))
    assert ends.outcomes["server"] == REFUSED


def test_a_client_without_certificate_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([ALPN])
    ends = Ends(context, callee_context(CALLEE, (CALLER.public,)))
    assert ends.outcomes["server"] == "PEER_DID_NOT_RETURN_A_CERTIFICATE"


def test_tls_below_1_3_is_refused_on_both_ends(tmp_path: Path) -> None:
    leaf = new_key()
    true = certificate(issuer=CALLER.public, signer=CALLER.private_key, key=leaf.public_key())
    old = client_with(tmp_path / "x", [true], leaf)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    assert Ends(old, callee_context(CALLEE, (CALLER.public,))).outcomes["server"] == "UNSUPPORTED_PROTOCOL"


# --- what TLS lets through and `prove` does not ---------------------------------------------------------------------------


def test_another_protocol_inside_tls_is_caught(tmp_path: Path) -> None:
    leaf = new_key()
    true = certificate(issuer=CALLER.public, signer=CALLER.private_key, key=leaf.public_key())
    ends = Ends(client_with(tmp_path / "x", [true], leaf, alpn="h2"), callee_context(CALLEE, (CALLER.public,)))
    assert ends.outcomes["server"] == "done"
    with pytest.raises(AuthenticationError, match=r"does not speak p2pt/1 over TLS 1\.3"):
        prove(ends.server, CALLEE.public)


def test_a_leaf_of_another_kind_is_caught(tmp_path: Path) -> None:
    leaf = rsa.generate_private_key(65537, 2048)
    odd = certificate(issuer=CALLER.public, signer=CALLER.private_key, key=leaf.public_key())
    ends = Ends(client_with(tmp_path / "x", [odd], leaf), callee_context(CALLEE, (CALLER.public,)))
    assert ends.outcomes["server"] == "done"
    with pytest.raises(AuthenticationError, match="leaf is not an Ed25519 key"):
        prove(ends.server, CALLEE.public)


def test_the_own_key_and_an_unexpected_one_are_caught() -> None:
    ends = Ends(*pinned())
    with pytest.raises(AuthenticationError, match="the other side is this machine itself"):
        prove(ends.client, CALLEE.public)
    with pytest.raises(AuthenticationError, match="another key than the expected one"):
        prove(ends.client, CALLER.public, MALLORY.public)


# --- handing the leaf over ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_leafs_key_is_nowhere_on_disk_in_the_clear(platform: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = list[bytes]()
    real = ssl.SSLContext.load_cert_chain

    def watching(context: ssl.SSLContext, path: str, *, password: bytes) -> None:
        seen.append(Path(path).read_bytes())
        assert (platform == "linux") == path.startswith("/proc/self/fd/")
        real(context, path, password=password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watching)
    identity = Identity.generate()
    caller_context(identity, CALLEE.public)
    [file] = seen
    assert file.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert list(tmp_path.iterdir()) == []
