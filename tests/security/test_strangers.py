"""T2, T22, T31: the handshake against a TLS stack of another make, which does what OpenSSL's own ends would never do."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

import pytest
from cryptography import x509

from p2ptunnel.errors import AuthenticationError, ChannelLostError, P2PTunnelError
from p2ptunnel.identity.keys import Identity, PublicKey, Purpose, signed_bytes
from p2ptunnel.session.session import Session
from p2ptunnel.wire.frames import HEADER, Accept, Hello, decode, encode, payload_length, preamble
from tests.helpers import run
from tests.helpers.peers import CALLEE, CALLER, Peers, tcp_pair
from tests.security.strangers import TLS_1_2, Stranger, refused
from tests.unit.identity.test_tls import certificate, new_key

MALLORY = Identity.from_seed(bytes([66]) * 32)
LEAF = new_key()


def leaf_of(identity: Identity, signer: Identity | None = None) -> x509.Certificate:
    return certificate(issuer=identity.public, signer=(signer or identity).private_key, key=LEAF.public_key())


async def shut_out(stranger: Stranger, peers: Peers | None = None) -> BaseException:
    """Let the stranger try, knowing the selector; return what the callee made of it."""
    peers = peers or Peers("web")
    client, server = tcp_pair()
    await asyncio.get_running_loop().sock_sendall(client, preamble(peers.selector))
    with client:
        trying = asyncio.to_thread(refused, stranger, client)
        outcome, is_refused = await asyncio.gather(peers.accept(server), trying, return_exceptions=True)
    assert is_refused is True
    assert isinstance(outcome, P2PTunnelError), outcome
    assert peers.requests.empty()
    return outcome


# --- the control ----------------------------------------------------------------------------------------------------------


def test_a_stranger_with_the_right_keys_is_let_in() -> None:
    """Else nothing of what follows would say anything."""

    def greet(client: socket.socket, selector: bytes) -> Accept:
        tls = Stranger([leaf_of(CALLER)], LEAF).secure(client)
        theirs = x509.load_der_x509_certificate(bytes(tls.session.serverCertChain.x509List[0].bytes))
        leaves = (LEAF.public_key().public_bytes_raw(), theirs.public_key().public_bytes_raw())
        keys = (CALLER.public.raw, CALLEE.public.raw)
        signed = signed_bytes(Purpose.HELLO, *keys, *leaves, selector, selector, bytes(16))
        tls.write(encode(Hello(selector, selector, bytes(16), CALLER.sign(signed))))
        header = bytes(tls.read(max=HEADER.size, min=HEADER.size))
        count = payload_length(header)
        accept = decode(header + bytes(tls.read(max=count, min=count)))
        assert isinstance(accept, Accept)
        return accept

    async def scenario() -> None:
        peers = Peers("web")
        client, server = tcp_pair()
        await asyncio.get_running_loop().sock_sendall(client, preamble(peers.selector))
        with client:
            session, accept = await asyncio.gather(
                peers.accept(server), asyncio.to_thread(greet, client, peers.selector), return_exceptions=True
            )
        assert isinstance(session, Session), session
        assert isinstance(accept, Accept), accept
        assert accept.services == ("web",)
        await session.closed.wait()

    run(scenario())


# --- whom TLS shuts out -----------------------------------------------------------------------------------------------------


def middle() -> list[x509.Certificate]:
    """A true leaf that plays authority: it certifies another leaf."""
    own = new_key()
    key = PublicKey(own.public_key().public_bytes_raw())
    above = certificate(
        issuer=CALLER.public, signer=CALLER.private_key, subject=key.raw.hex(), key=own.public_key(), is_ca=True
    )
    return [certificate(issuer=key, signer=own, key=LEAF.public_key()), above]


def foreign() -> list[x509.Certificate]:
    """A chain that ends at an authority of its own, which calls itself by the admitted key."""
    authority = certificate(
        issuer=CALLER.public,
        signer=MALLORY.private_key,
        subject=CALLER.public.raw.hex(),
        key=MALLORY.private_key.public_key(),
        is_ca=True,
    )
    return [leaf_of(CALLER, MALLORY), authority]


@pytest.mark.parametrize(
    "chain",
    [
        lambda: [leaf_of(MALLORY)],
        lambda: [leaf_of(CALLER, MALLORY)],
        lambda: [leaf_of(MALLORY), leaf_of(CALLER)],
        foreign,
        middle,
    ],
    ids=["unknown key", "forged issuer", "a true one appended", "foreign authority", "own intermediate"],
)
def test_who_has_no_certificate_of_an_admitted_key_is_refused(chain: Callable[[], list[x509.Certificate]]) -> None:
    async def scenario() -> None:
        assert isinstance(await shut_out(Stranger(chain(), LEAF)), AuthenticationError)

    run(scenario())


def test_who_shows_no_certificate_is_refused() -> None:
    async def scenario() -> None:
        error = await shut_out(Stranger())
        assert isinstance(error.__cause__, ssl.SSLError)  # refused by TLS itself, before anything of ours is asked
        assert error.__cause__.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"

    run(scenario())


def test_a_true_certificate_without_its_key_is_worth_nothing() -> None:
    """Whoever saw it on another connection can show it; the signature over this very handshake cannot be made."""

    async def scenario() -> None:
        error = await shut_out(Stranger([leaf_of(CALLER)], new_key()))
        assert isinstance(error, AuthenticationError)
        assert isinstance(error.__cause__, ssl.SSLError)
        assert error.__cause__.reason == "BAD_SIGNATURE"

    run(scenario())


def test_a_true_leaf_without_its_identity_is_refused_by_the_greeting() -> None:
    """TLS lets it through; HELLO, which the stranger cannot sign, does not come."""

    async def scenario() -> None:
        await shut_out(Stranger([leaf_of(CALLER)], LEAF))

    run(scenario())


# --- downgrades -----------------------------------------------------------------------------------------------------------


def test_tls_1_2_is_refused() -> None:
    async def scenario() -> None:
        error = await shut_out(Stranger([leaf_of(CALLER)], LEAF, version=TLS_1_2))
        assert isinstance(error, ChannelLostError)
        assert "unsupported protocol" in str(error)

    run(scenario())


@pytest.mark.parametrize("alpn", [[], ["h2"], ["p2pt/0", "p2pt"]])
def test_without_our_protocol_inside_tls_nothing_is_said(alpn: list[str]) -> None:
    async def scenario() -> None:
        error = await shut_out(Stranger([leaf_of(CALLER)], LEAF, alpn=alpn))
        assert isinstance(error, AuthenticationError)
        assert "does not speak p2pt/1" in str(error)

    run(scenario())
