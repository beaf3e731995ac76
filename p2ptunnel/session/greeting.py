"""HELLO and ACCEPT: the proofs by which a channel comes up.  Rule: nobody is told more than that it worked, or did not.

TLS proves the leaves only, and in TLS 1.3 the caller finishes before the callee has judged it.  So each side signs, with its
identity key, both identities, both leaves, the selector and a nonce (docs/explanation/security.md).
"""

from __future__ import annotations

import hmac
import os
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import msgspec

from p2ptunnel.errors import (
    AuthenticationError,
    ChannelError,
    ChannelLostError,
    PeerKeyChangedError,
    PeerRefusedError,
    RemoteProtocolError,
)
from p2ptunnel.identity.acl import Access
from p2ptunnel.identity.keys import Identity, PublicKey, Purpose, signed_bytes
from p2ptunnel.identity.tls import Proof, leaf_key, prove
from p2ptunnel.session.channel import Channel
from p2ptunnel.types import Path, Tag
from p2ptunnel.wire.frames import FRAMES_VERSION, Accept, Hello, encode, preamble

__all__ = ["Selector", "greet", "preface", "selected", "shake", "welcome"]

Selector: TypeAlias = bytes | Callable[[], Awaitable[bytes]]
"""16 bytes that name the attempt; over the relay they may become known during the handshake only."""

_NONCE_BYTES: Final = 16

# OpenSSL's words for a failure that is about who somebody is, and not about the bytes
_KEY_REASONS: Final = frozenset({"CERTIFICATE_VERIFY_FAILED", "BAD_SIGNATURE", "PEER_DID_NOT_RETURN_A_CERTIFICATE"})
_REFUSAL_REASONS: Final = frozenset({"TLSV1_ALERT_UNKNOWN_CA", "SSLV3_ALERT_BAD_CERTIFICATE", "TLSV1_ALERT_DECRYPT_ERROR"})


class _Transcript(msgspec.Struct, frozen=True):
    """What both signatures cover."""

    caller: Proof
    callee: Proof
    selector: bytes
    session: bytes
    nonce: bytes

    def bytes_for(self, purpose: Purpose) -> bytes:
        """Return the bytes to sign for HELLO or ACCEPT."""
        keys = (self.caller.key.raw, self.callee.key.raw, self.caller.leaf, self.callee.leaf)
        return signed_bytes(purpose, *keys, self.selector, self.session, self.nonce)

    def __repr__(self) -> str:
        return f"_Transcript({self.caller.key.short} to {self.callee.key.short})"


def preface(path: Path, selector: bytes) -> bytes:
    """Return what goes ahead of TLS on a fresh connection; nothing over the relay, where the token has selected the peer."""
    return b"" if path.kind == "relay" else preamble(selector)


async def selected(channel: Channel, tag: Tag, peer_key: PublicKey, path: Path, selector: Selector) -> bytes:
    """Finish TLS as `shake`, and return the selector, which has to be known before only where it goes ahead of TLS."""
    known = selector if isinstance(selector, bytes) else b"" if path.kind == "relay" else await selector()
    await shake(channel, tag, peer_key, preface(path, known))
    return known or (selector if isinstance(selector, bytes) else await selector())


async def shake(channel: Channel, tag: Tag, peer_key: PublicKey, first: bytes) -> None:
    """Finish TLS as the caller, who is known to the callee by then, and the callee to us.

    Args:
        channel: Fresh.
        tag: The peer's name, for errors.
        peer_key: The only key that is accepted.
        first: From `preface`.

    Raises:
        PeerKeyChangedError: The other side did not prove `peer_key`.
        ChannelLostError: The connection broke, or what is there speaks no TLS.
        RemoteProtocolError: More came than a handshake is.
    """
    try:
        await channel.handshake(first)
    except ssl.SSLError as error:
        if error.reason in _KEY_REASONS:
            raise PeerKeyChangedError(tag, str(peer_key)) from error
        raise ChannelLostError(_failure(error)) from error


async def greet(
    channel: Channel,
    identity: Identity,
    tag: Tag,
    peer_key: PublicKey,
    selector: bytes,
    *,
    session: bytes = b"",
    behind: bytes = b"",
) -> tuple[str, ...]:
    """Say HELLO, and wait for ACCEPT; return the services that the callee grants us.

    Args:
        channel: From `shake`.
        identity: Ours.
        tag: The peer's name, for errors.
        peer_key: The only key that is accepted.
        selector: 16 bytes: of this attempt.
        session: The session that goes on over this channel; empty for a new one.
        behind: Frames that follow HELLO at once.

    Raises:
        PeerKeyChangedError: The other side did not prove `peer_key`.
        PeerRefusedError: It did, and does not admit our key.
        AuthenticationError: It speaks another protocol inside TLS.
        ChannelLostError: The connection broke, or what is there speaks no TLS.
        RemoteProtocolError: It broke the protocol, or speaks another version of it.
    """
    own = Proof(identity.public, leaf_key(identity))
    proof = prove(channel.tls, identity.public, peer_key)
    transcript = _Transcript(own, proof, selector, session or selector, os.urandom(_NONCE_BYTES))
    signature = identity.sign(transcript.bytes_for(Purpose.HELLO))
    channel.write(encode(Hello(selector, transcript.session, transcript.nonce, signature)) + behind)
    try:
        answer = await channel.read_frame()
    except (ssl.SSLError, ChannelError) as error:  # an alert, or the end: the callee has judged us
        raise PeerRefusedError(tag) from error
    if not isinstance(answer, Accept) or answer.v != FRAMES_VERSION:
        raise RemoteProtocolError("no ACCEPT of our version")
    if not peer_key.verify(answer.signature, transcript.bytes_for(Purpose.ACCEPT)):
        raise PeerKeyChangedError(tag, str(peer_key))
    return answer.services


async def welcome(channel: Channel, identity: Identity, access: Access, selector: bytes) -> tuple[PublicKey, bytes]:
    """Bring the channel up as the callee; return the caller's key, which is admitted, and the session that it is for.

    A session of another channel's selector is one that began there.

    Raises:
        AuthenticationError: The caller proved no key that is admitted, or does not take ours.
        ChannelLostError: The connection broke, or what is there speaks no TLS.
        RemoteProtocolError: It broke the protocol, or speaks another version of it.
        StoreError: Who is admitted cannot be read.
    """
    try:
        await channel.handshake()
        proof = prove(channel.tls, identity.public)
        hello = await channel.read_frame()
    except ssl.SSLError as error:
        if error.reason in _KEY_REASONS:
            raise AuthenticationError("the caller proved no key that is admitted here") from error
        if error.reason in _REFUSAL_REASONS:
            raise AuthenticationError("the caller expected another key than this machine's") from error
        raise ChannelLostError(_failure(error)) from error
    if not isinstance(hello, Hello) or hello.v != FRAMES_VERSION:
        raise RemoteProtocolError("no HELLO of our version", "the caller")
    transcript = _Transcript(proof, Proof(identity.public, leaf_key(identity)), hello.selector, hello.session, hello.nonce)
    if not hmac.compare_digest(hello.selector, selector):
        raise AuthenticationError("the caller's HELLO is for another attempt")
    if not proof.key.verify(hello.signature, transcript.bytes_for(Purpose.HELLO)):
        raise AuthenticationError("the caller holds a leaf, but not the identity that it names")
    if proof.key not in access.admitted():  # it may have been taken from the list meanwhile
        raise AuthenticationError("the caller is no longer admitted here")
    signature = identity.sign(transcript.bytes_for(Purpose.ACCEPT))
    channel.write(encode(Accept(signature, access.granted(proof.key))))
    return proof.key, hello.session


def _failure(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLEOFError):
        return "the connection ended in the TLS handshake"
    return f"the TLS handshake failed: {(error.reason or type(error).__name__).lower().replace('_', ' ')}"
