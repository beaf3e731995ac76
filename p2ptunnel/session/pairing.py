"""Pairing over a pipe: TLS pinned to claimed keys, and inside it the proof that finds out whether the claims were true.

Rule: nothing is stored before the other side has proved what only an invited one, or only the inviting one, can.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import Final, TypeAlias

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import HANDSHAKE_TIMEOUT, PAIRING_PAUSE
from p2ptunnel.errors import (
    AuthenticationError,
    ChannelError,
    ChannelLostError,
    ConfigError,
    PairingError,
    PeerKeyChangedError,
    RemoteProtocolError,
)
from p2ptunnel.identity.exchange import CodeExchange
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.tls import PAIRING_ALPN, callee_context, caller_context, leaf_key, prove
from p2ptunnel.net.threads import in_thread
from p2ptunnel.protocol.pairing import Bond, Compute, Desk, GuestPairing, HostPairing, Keep, Say, Step
from p2ptunnel.session.channel import Channel
from p2ptunnel.session.greeting import preface
from p2ptunnel.session.session import fresh_channel
from p2ptunnel.types import Tag
from p2ptunnel.wire.pairing import (
    PAIRING_HEADER,
    PairingFrame,
    ProofKind,
    RefusedCode,
    decode,
    encode,
    payload_length,
)

__all__ = ["IMPOSTOR_HINT", "KeepGuest", "KeepHost", "PairingChannel", "Services", "be_guest", "call_host", "receive_guest"]

Services: TypeAlias = Mapping[str, tuple[str, ...]]
"""What a guest may open, and for each service that is an SSH server its host keys."""

KeepGuest: TypeAlias = Callable[[PublicKey, Tag], Awaitable[Services]]
"""Stores a guest that has proved itself; PeerKeyChangedError: its name is taken."""

KeepHost: TypeAlias = Callable[[Services], Awaitable[None]]

_CHANGED: Final = "whoever answered does not hold the key that it should"


class PairingChannel:
    """A channel on which pairing frames are legal and nothing else, with what ties proofs to it."""

    def __init__(self, channel: Channel, bond: Bond) -> None:
        self.bond: Final = bond
        self._channel: Final = channel

    async def read(self) -> PairingFrame:
        """Return the next frame.

        Raises:
            ChannelLostError: The connection broke, or the other side did not take our key.
            RemoteProtocolError: It is no pairing frame.
        """
        try:
            header = await self._channel.read_exactly(PAIRING_HEADER.size)
            return decode(header + await self._channel.read_exactly(payload_length(header)))
        except ssl.SSLError as error:
            raise ChannelLostError("the other side refused the channel") from error

    def write(self, frame: PairingFrame) -> None:
        """Send a frame."""
        self._channel.write(encode(frame))

    async def close(self) -> None:
        """Say goodbye, and wait until what was written is there; two seconds at most."""
        self._channel.close()
        await self._channel.gone.wait()

    def abort(self, reason: str = "") -> None:
        """Close at once."""
        self._channel.abort()


# --- the host ---------------------------------------------------------------------------------------------------------


async def receive_guest(
    pipe: Pipe, *, identity: Identity, guest: PublicKey, selector: bytes, desk: Desk, source: str, keep: KeepGuest
) -> None:
    """Take one guest at the desk, on a pipe whose preamble has been read; in at most 5 s.

    The pipe is spent, whatever happens.

    Args:
        pipe: From whoever knew the selector.
        identity: Ours.
        guest: The key that the guest claims.
        selector: 16 bytes, as the preamble had it.
        desk: Of the invitation.
        source: Where the guest comes from, as far as attempts are counted.
        keep: Stores the guest; what it raises of ours is told to the guest as a refusal.

    Raises:
        PairingError: It came to nothing; `reason` is for the host's owner.
        AuthenticationError: The guest did not prove the key that it claims.
        ChannelLostError: The connection broke before anything was tried.
        OSError: The pipe was broken before.
    """

    def context() -> ssl.SSLContext:
        return callee_context(identity, (guest,), PAIRING_ALPN)

    async with fresh_channel(pipe, context, callee=True) as channel:
        try:
            await channel.handshake()
        except ssl.SSLError as error:
            raise AuthenticationError("the guest did not prove the key that it claims, or does not take ours") from error
        proof = prove(channel.tls, identity.public, guest, alpn=PAIRING_ALPN)
        bond = Bond(guest, identity.public, proof.leaf, leaf_key(identity), selector)
        pairing = HostPairing(desk, bond, source)
        await _attend(pairing, PairingChannel(channel, bond), keep)
    if pairing.failure:
        raise PairingError(pairing.failure, "")


async def _attend(pairing: HostPairing, channel: PairingChannel, keep: KeepGuest) -> None:
    """Drive the host's side to its end."""
    try:
        while not pairing.is_over:
            pairing.receive(await channel.read(), time.monotonic())
            while steps := pairing.steps():
                for step in steps:
                    await _do_as_host(step, pairing, channel, keep)
        await channel.close()
    except (ChannelError, RemoteProtocolError):  # what that means for the attempt, `lost` knows
        channel.abort()
    finally:
        pairing.lost(time.monotonic())


async def _do_as_host(step: Step, pairing: HostPairing, channel: PairingChannel, keep: KeepGuest) -> None:
    match step:
        case Say(frame):
            channel.write(frame)
        case Compute(element, words):
            own, key = await in_thread(_exchanged, words, element, channel.bond)
            pairing.exchanged(own, key, time.monotonic())
        case Keep(tag):
            await _to_the_end(_store_guest(tag, pairing, channel, keep))


async def _store_guest(tag: Tag, pairing: HostPairing, channel: PairingChannel, keep: KeepGuest) -> None:
    try:
        pairing.kept(await keep(channel.bond.guest, tag))
    except PeerKeyChangedError as error:
        pairing.not_kept(RefusedCode.NAME_TAKEN, f"another machine is known here as {error.tag}")
    except ConfigError as error:
        pairing.not_kept(RefusedCode.NOT_STORED, str(error))


def _exchanged(words: str, element: bytes, bond: Bond) -> tuple[bytes, bytes | None]:
    """Return the host's element, and what the exchange came to; see `_finished`."""
    exchange = CodeExchange(words, bond.guest, bond.host, is_host=True)
    return exchange.element, _finished(exchange, element)


def _finished(exchange: CodeExchange, element: bytes) -> bytes | None:
    """Return what the exchange came to; None where the other side's element is none."""
    try:
        return exchange.finish(element)
    except PairingError:
        return None


async def _to_the_end(storing: Coroutine[object, object, None]) -> None:
    """Do what stores the other side, all of it; whoever cancels waits for that, and is heard afterwards.

    A thread that writes a file cannot be called back: forgotten, it would pin a key of which nobody knows.
    """
    task, cancelled = asyncio.ensure_future(storing), None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from task.exception()
    task.result()


# --- the guest --------------------------------------------------------------------------------------------------------


async def call_host(pipe: Pipe, *, identity: Identity, host: PublicKey, selector: bytes) -> PairingChannel:
    """Bring up a channel for pairing as the guest, pinned to the key that the host has or claims; in at most 5 s.

    The pipe is spent, whatever happens.

    Raises:
        PairingError: Whoever answered has another key.
        AuthenticationError: The key is our own, or another protocol is spoken inside TLS.
        ChannelLostError: The connection broke, or took too long.
        OSError: The pipe was broken before.
    """

    def context() -> ssl.SSLContext:
        if host == identity.public:
            raise AuthenticationError("the other side is this machine itself")
        return caller_context(identity, host, PAIRING_ALPN)

    async with fresh_channel(pipe, context, callee=False) as channel:
        try:
            await channel.handshake(preface(pipe.path, selector))
        except ssl.SSLError as error:
            if error.reason == "CERTIFICATE_VERIFY_FAILED":
                raise PairingError(_CHANGED, IMPOSTOR_HINT) from error
            raise ChannelLostError("the TLS handshake failed") from error
        proof = prove(channel.tls, identity.public, host, alpn=PAIRING_ALPN)
        return PairingChannel(channel, Bond(identity.public, host, leaf_key(identity), proof.leaf, selector))


async def be_guest(channel: PairingChannel, tag: Tag, given: bytes | str, keep: KeepHost) -> None:
    """Prove to the host that we were invited, let it prove itself, and store it; the channel is spent.

    Args:
        channel: From `call_host`.
        tag: What we want to be called there.
        given: The secret of a ticket, or the words of a code.
        keep: Stores the host; whatever it raises is raised.

    Raises:
        PairingError: The code or ticket is not valid, the host is not the one that gave it, or it could not store us.
    """
    is_stored = False

    async def noted(services: Services) -> None:
        nonlocal is_stored
        await keep(services)
        is_stored = True

    try:
        await _prove(channel, tag, given, noted)
    except PairingError:
        if not is_stored:  # else we are paired, however the channel ended
            raise


async def _prove(channel: PairingChannel, tag: Tag, given: bytes | str, keep: KeepHost) -> None:
    async with _pairing_time(channel):
        exchange, bond = None, channel.bond
        if isinstance(given, str):
            exchange = await in_thread(CodeExchange, given, bond.guest, bond.host, is_host=False)
            pairing = GuestPairing(bond, tag, ProofKind.CODE, exchange.element)
        else:
            pairing = GuestPairing(bond, tag, ProofKind.TICKET, given)
        while not pairing.is_over:
            while steps := pairing.steps():
                for step in steps:
                    await _do_as_guest(step, pairing, channel, exchange, keep)
            if not pairing.is_over:
                pairing.receive(await channel.read())
        await channel.close()
    if pairing.is_impostor:
        raise PairingError(_NOT_INVITING, IMPOSTOR_HINT)
    if pairing.refusal is not None:
        raise PairingError(*_REFUSALS[pairing.refusal])


async def _do_as_guest(
    step: Step, pairing: GuestPairing, channel: PairingChannel, exchange: CodeExchange | None, keep: KeepHost
) -> None:
    match step:
        case Say(frame):
            channel.write(frame)
        case Compute(element):
            assert exchange is not None
            pairing.exchanged(await in_thread(_finished, exchange, element))
        case Keep(_, services):
            await _to_the_end(_store_host(services, pairing, keep))


async def _store_host(services: Services, pairing: GuestPairing, keep: KeepHost) -> None:
    await keep(services)
    pairing.kept()


@contextlib.asynccontextmanager
async def _pairing_time(channel: PairingChannel) -> AsyncGenerator[None]:
    """Give the time that a pairing may take; where the block fails, the channel is closed."""
    deadline = asyncio.timeout(HANDSHAKE_TIMEOUT)
    try:
        async with deadline:
            yield
    except (ChannelError, RemoteProtocolError) as error:
        channel.abort()
        raise PairingError("the other side broke off") from error
    except BaseException as error:
        channel.abort()
        if isinstance(error, TimeoutError) and deadline.expired():
            raise PairingError(f"the other side said nothing more for {HANDSHAKE_TIMEOUT:g} s") from error
        raise


_NOT_INVITING: Final = "whoever answered does not know the code or the ticket"
IMPOSTOR_HINT: Final = "Somebody may be in the middle. Ask for a new code, and compare keys: p2ptunnel pair --show"
_REFUSALS: Final = {
    RefusedCode.NOT_VALID: (
        "the code or ticket was wrong, used or too old",
        "Ask for the code that is shown there now; only if none is: p2ptunnel pair",
    ),
    RefusedCode.TOO_SOON: ("too soon after the last try", f"Wait {PAIRING_PAUSE:g} s, then ask for the code that holds now."),
    RefusedCode.NAME_TAKEN: (
        "another machine is known there by our name",
        "Choose another here by --tag, or have them say p2ptunnel pair --as NAME there.",
    ),
    RefusedCode.NOT_STORED: ("the other machine could not store our key", "It says there what is wrong."),
}
