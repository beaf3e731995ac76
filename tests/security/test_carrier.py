"""T1: who carries the bytes, on the path or as a relay, can break the connection and can do nothing else with it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import secrets
from collections.abc import AsyncGenerator, Iterable

import pytest

from p2ptunnel.errors import ChannelLostError, P2PTunnelError, PeerKeyChangedError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.session.session import Session
from p2ptunnel.session.stream import SessionStream
from tests.helpers import run
from tests.helpers.peers import Peers
from tests.security.records import FROM_CALLEE, FROM_CALLER, Carrier, Meddle

SERVICE = "the-name-of-a-service"
MIB = 1 << 20
GREETING = 6
"""Records of each side that belong to handshake, HELLO and ACCEPT; what lies behind belongs to a stream."""


@contextlib.asynccontextmanager
async def carried(peers: Peers) -> AsyncGenerator[tuple[Carrier, Session, Session]]:
    """Two sessions that have come up over a carrier which has done nothing yet."""
    carrier = Carrier()
    try:
        caller, callee = await peers.meet((carrier.client, carrier.server))
        assert isinstance(caller, Session), caller
        assert isinstance(callee, Session), callee
        yield carrier, caller, callee
        await asyncio.gather(caller.close(grace=0), callee.close(grace=0))
    finally:
        await carrier.close()


async def all_of(stream: SessionStream, came: bytearray) -> None:
    async for part in stream:
        came += part


# --- reading ------------------------------------------------------------------------------------------------------------


def test_of_a_mebibyte_and_of_its_service_nothing_can_be_read_on_the_way() -> None:
    async def scenario() -> None:
        marker = secrets.token_bytes(1 << 10)
        peers = Peers(SERVICE)
        async with carried(peers) as (carrier, caller, _):
            ours, theirs = await peers.stream(caller, SERVICE)
            came = bytearray()
            reading = asyncio.ensure_future(all_of(theirs, came))
            await ours.write(marker * (MIB // len(marker)))
            await ours.write_eof()
            await reading
            assert came == marker * (MIB // len(marker))
            seen = bytes(carrier.seen[FROM_CALLER] + carrier.seen[FROM_CALLEE])
        assert len(seen) > MIB
        for secret in (*pieces(marker), *pieces(SERVICE.encode())):
            assert secret not in seen

    run(scenario())


def pieces(secret: bytes) -> Iterable[bytes]:
    """Every piece of 12 bytes, and every spelling of the whole in base64, whatever stands before it."""
    yield from (secret[start : start + 12] for start in range(0, len(secret) - 12, 12))
    yield from (base64.b64encode(bytes(shift) + secret)[4:24] for shift in range(3))
    yield secret.hex()[:24].encode()


# --- meddling -----------------------------------------------------------------------------------------------------------


def flipped(record: bytes, bit: int) -> bytes:
    place = bit % (len(record) * 8)
    changed = bytearray(record)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


@pytest.mark.timeout(60)
def test_a_hundred_flipped_bits_are_a_hundred_lost_channels_and_no_wrong_byte() -> None:
    """Bits of the header of a record included, except its version, which TLS 1.3 ignores and authenticates nevertheless."""
    dice = random.Random(1)

    async def attempt() -> None:
        bit, victim = dice.randrange(1 << 20), dice.randrange(3)

        def flip(direction: int, number: int, record: bytes) -> Iterable[bytes]:
            return (flipped(record, bit) if (direction, number) == (FROM_CALLER, first + victim) else record,)

        peers = Peers(SERVICE)
        async with carried(peers) as (carrier, caller, callee):
            ours, theirs = await peers.stream(caller, SERVICE)
            first, carrier.meddle = carrier.records[FROM_CALLER], flip
            await assert_broken(ours, theirs, callee)

    async def scenario() -> None:
        for _ in range(100):
            await attempt()

    run(scenario(), timeout=55)


async def assert_broken(ours: SessionStream, theirs: SessionStream, callee: Session) -> None:
    """Write; what comes out is a beginning of it and then an error, never the end."""
    sent, came = random.Random(2).randbytes(100_000), bytearray()
    reading = asyncio.ensure_future(all_of(theirs, came))
    with contextlib.suppress(P2PTunnelError):  # the writer may learn of it first
        await ours.write(sent)
        await ours.write_eof()
    with pytest.raises(ChannelLostError):
        async with asyncio.timeout(5):
            await reading
    assert sent.startswith(came)
    assert isinstance(callee.error, ChannelLostError)


def doubled(at: int) -> Meddle:
    return lambda direction, number, record: (record, record) if (direction, number) == (FROM_CALLER, at) else (record,)


def dropped(at: int) -> Meddle:
    return lambda direction, number, record: () if (direction, number) == (FROM_CALLER, at) else (record,)


def swapped(at: int) -> Meddle:
    held: list[bytes] = []

    def swap(direction: int, number: int, record: bytes) -> Iterable[bytes]:
        if (direction, number) == (FROM_CALLER, at):
            held.append(record)
            return ()
        return (record, held.pop()) if direction == FROM_CALLER and held else (record,)

    return swap


def preceded(at: int) -> Meddle:
    """An alert of one's own, in the clear: TLS would end by it, were it taken at its word."""
    goodbye = b"\x15\x03\x03\x00\x02\x01\x00"
    return lambda direction, number, record: (goodbye, record) if (direction, number) == (FROM_CALLER, at) else (record,)


@pytest.mark.parametrize("make", [doubled, dropped, swapped, preceded])
@pytest.mark.parametrize("later", [0, 1, 3])
def test_a_record_that_is_repeated_withheld_moved_or_made_up_breaks_the_channel(make, later: int) -> None:
    async def scenario() -> None:
        peers = Peers(SERVICE)
        async with carried(peers) as (carrier, caller, callee):
            ours, theirs = await peers.stream(caller, SERVICE)
            carrier.meddle = make(carrier.records[FROM_CALLER] + later)
            await assert_broken(ours, theirs, callee)

    run(scenario())


def test_a_connection_that_the_carrier_ends_is_no_end_of_a_stream() -> None:
    async def scenario() -> None:
        peers = Peers(SERVICE)
        async with carried(peers) as (carrier, caller, callee):
            ours, theirs = await peers.stream(caller, SERVICE)
            closing = asyncio.ensure_future(assert_broken(ours, theirs, callee))
            while carrier.records[FROM_CALLER] < GREETING:
                await asyncio.sleep(0)
            await carrier.close()
            await closing

    run(scenario())


# --- two sessions at one carrier ------------------------------------------------------------------------------------------


def test_a_record_of_another_session_of_the_same_two_peers_breaks_the_channel() -> None:
    async def scenario() -> None:
        peers = Peers(SERVICE)
        stolen: list[bytes] = []

        def steal(direction: int, _number: int, record: bytes) -> Iterable[bytes]:
            if direction == FROM_CALLER:
                stolen.append(record)
            return (record,)

        async with carried(peers) as (first, one, _), carried(peers) as (second, other, callee):
            ours, theirs = await peers.stream(one, SERVICE)
            first.meddle = steal
            await ours.write(b"pay 1 to mallory")
            assert await theirs.read() == b"pay 1 to mallory"
            ours, theirs = await peers.stream(other, SERVICE)
            await second.inject(FROM_CALLER, stolen[-1])
            await assert_broken(ours, theirs, callee)

    run(scenario())


def test_a_recorded_connection_that_is_played_again_opens_nothing() -> None:
    """Every byte of the caller's, preamble to HELLO and beyond, sent to the same callee once more."""

    async def scenario() -> None:
        peers = Peers(SERVICE)
        async with carried(peers) as (carrier, caller, _):
            await peers.stream(caller, SERVICE)
            said = bytes(carrier.seen[FROM_CALLER])
        again = Carrier()
        try:
            accepting = asyncio.ensure_future(peers.accept(again.server))
            await asyncio.get_running_loop().sock_sendall(again.client, said)
            with pytest.raises(ChannelLostError, match="TLS handshake failed: decryption failed or bad record mac"):
                await accepting
            assert peers.requests.empty()
        finally:
            again.client.close()
            await again.close()

    run(scenario())


def test_a_connection_that_is_redirected_to_another_peer_is_refused_there() -> None:
    """The carrier leads the caller to another peer, who admits it and holds a true key, but not the pinned one."""

    async def scenario() -> None:
        peers = Peers(SERVICE)
        peers.callee = Identity.generate()
        caller, callee = await peers.meet()
        assert isinstance(caller, PeerKeyChangedError)
        assert not isinstance(callee, Session)
        assert peers.requests.empty()

    run(scenario())
