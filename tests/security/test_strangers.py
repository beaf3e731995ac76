"""T2, T22, T31: the handshake against a TLS stack of another make, which does what OpenSSL's own ends would never do."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509

from p2ptunnel.errors import AuthenticationError, ChannelLostError, P2PTunnelError
from p2ptunnel.identity.keys import Identity, PublicKey, Purpose, signed_bytes
from p2ptunnel.session.session import Session
from p2ptunnel.wire.frames import HEADER, Accept, Frame, Hello, Ping, Pong, decode, encode, payload_length, preamble
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


def greet(client: socket.socket, selector: bytes) -> tuple[Any, Accept]:
    """Open a session as an admitted caller does, with TLS of another make; blocks."""
    tls = Stranger([leaf_of(CALLER)], LEAF).secure(client)
    theirs = x509.load_der_x509_certificate(bytes(tls.session.serverCertChain.x509List[0].bytes))
    leaves = (LEAF.public_key().public_bytes_raw(), theirs.public_key().public_bytes_raw())
    keys = (CALLER.public.raw, CALLEE.public.raw)
    signed = signed_bytes(Purpose.HELLO, *keys, *leaves, selector, selector, bytes(16))
    tls.write(encode(Hello(selector, selector, bytes(16), CALLER.sign(signed))))
    accept = read_frame(tls)
    assert isinstance(accept, Accept)
    return tls, accept


def read_frame(tls: Any) -> Frame:
    header = bytes(tls.read(max=HEADER.size, min=HEADER.size))
    count = payload_length(header)
    return decode(header + bytes(tls.read(max=count, min=count)))


async def let_in(peers: Peers, buffer_bytes: int | None = None) -> tuple[Session, Any, Accept, socket.socket]:
    """Return the session with a stranger that has the right keys, and its side of it."""
    client, server = tcp_pair(buffer_bytes)
    await asyncio.get_running_loop().sock_sendall(client, preamble(peers.selector))
    session, (tls, accept) = await asyncio.gather(peers.accept(server), asyncio.to_thread(greet, client, peers.selector))
    return session, tls, accept, client


# --- the control ----------------------------------------------------------------------------------------------------------


def test_a_stranger_with_the_right_keys_is_let_in() -> None:
    """Else nothing of what follows would say anything."""

    async def scenario() -> None:
        session, _, accept, client = await let_in(Peers("web"))
        client.close()
        assert accept.services == ("web",)
        await session.closed.wait()

    run(scenario())


# --- new keys -------------------------------------------------------------------------------------------------------------


def ask_for_new_keys(tls: Any, times: int) -> None:
    """Send so many KeyUpdates (RFC 8446, 4.6.3) at once, each of which wants one in return; blocks."""
    tls.sock.buffer_writes = True
    for _ in range(times):
        for _ in tls.send_keyupdate_request(1):
            pass
    tls.sock.flush()
    tls.sock.buffer_writes = False


def test_a_peer_may_ask_for_new_keys() -> None:
    async def scenario() -> None:
        session, tls, _, client = await let_in(Peers("web"))
        with client:
            await asyncio.to_thread(ask_for_new_keys, tls, 3)
            await asyncio.to_thread(tls.write, encode(Ping(bytes(8))))
            while not isinstance(frame := await asyncio.to_thread(read_frame, tls), Pong):
                assert isinstance(frame, Ping)  # it looks whether we are there, too
            session.abort()

    run(scenario())


def test_who_asks_for_one_new_key_after_the_other_loses_the_channel() -> None:
    """Each costs us as much as a handshake's keys, and none of them is a byte that a limit of the session would count."""

    async def scenario() -> None:
        session, tls, _, client = await let_in(Peers("web"))
        with client:
            await asyncio.to_thread(ask_for_new_keys, tls, 1000)
            await session.closed.wait()
        assert "one new TLS key after the other" in str(session.error)

    run(scenario())


def test_who_reads_none_of_the_new_keys_loses_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    """TLS answers by itself, past everything that keeps a session from writing to who does not read."""
    monkeypatch.setattr("p2ptunnel.session.channel._UNREAD_MAX_BYTES", 16 * 1024)
    monkeypatch.setattr("p2ptunnel.session.channel._ANSWERS_MAX_BYTES", 1 << 20)

    async def scenario() -> None:
        session, tls, _, client = await let_in(Peers("web"), 4096)
        with client:
            while not session.closed.is_set():
                await asyncio.to_thread(ask_for_new_keys, tls, 500)
        assert "does not read what TLS answers" in str(session.error)

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
