"""Two strangers pair over loopback; and what becomes of those who were not invited."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.errors import AuthenticationError, ChannelLostError, P2PTunnelError, PairingError, StoreError
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.tls import PAIRING_ALPN, callee_context, caller_context, leaf_key, prove
from p2ptunnel.protocol.pairing import Bond
from p2ptunnel.session import pairing as driver
from p2ptunnel.session.pairing import PairingChannel, Services, call_host
from p2ptunnel.session.session import connect_session, fresh_channel
from p2ptunnel.transports.tcp import read_preamble
from p2ptunnel.wire.frames import Ping, preamble
from p2ptunnel.wire.frames import encode as encode_session_frame
from p2ptunnel.wire.pairing import Exchange, Paired, Proof, ProofKind, Refused, RefusedCode
from tests.helpers import run
from tests.helpers.pairing import GUEST, HOST, SECRET, SSH_KEY, WORDS, Strangers
from tests.helpers.peers import new_pipe, tcp_pair
from tests.helpers.turns import cancel_at_each_turn
from tests.unit.identity.test_exchange import MALFORMED

MALLORY = Identity.from_seed(bytes([33]) * 32)
GIVEN = {"ticket": SECRET, "code": WORDS}
either = pytest.mark.parametrize("given_to_guest", GIVEN.values(), ids=GIVEN)


def meet(strangers: Strangers, given_to_guest: bytes | str) -> tuple[BaseException | None, BaseException | None]:
    return run(strangers.meet(given_to_guest))


# --- who was invited --------------------------------------------------------------------------------------------------


@either
def test_who_was_invited_is_stored_and_stores(given_to_guest: bytes | str) -> None:
    strangers = Strangers()
    assert meet(strangers, given_to_guest) == (None, None)
    assert strangers.guests == [(GUEST.public, "laptop")]
    assert strangers.hosts == [{"ssh": (SSH_KEY,), "web": ()}]


@either
def test_what_was_used_is_refused_the_second_time(given_to_guest: bytes | str) -> None:
    strangers = Strangers()
    meet(strangers, given_to_guest)
    guest, host = meet(strangers, given_to_guest)
    assert isinstance(guest, PairingError)
    assert guest.reason == "the code or ticket was wrong, used or too old"
    assert isinstance(host, PairingError)
    assert len(strangers.guests) == len(strangers.hosts) == 1


@either
def test_what_has_expired_is_refused(given_to_guest: bytes | str) -> None:
    strangers = Strangers(expires=0.0)
    guest, host = meet(strangers, given_to_guest)
    assert isinstance(guest, PairingError)
    assert isinstance(host, PairingError)
    assert host.reason == "the invitation is over"
    assert strangers.guests == strangers.hosts == []


@either
def test_the_names_of_the_others_are_not_given_away(given_to_guest: bytes | str) -> None:
    strangers = Strangers()
    strangers.taken = {"laptop"}
    guest, host = meet(strangers, given_to_guest)
    assert isinstance(guest, PairingError)
    assert guest.reason == "another machine is known there by our name"
    assert "--as NAME" in guest.hint
    assert isinstance(host, PairingError)
    assert "laptop" in host.reason
    assert strangers.hosts == []
    assert strangers.desk.uses_left == 1


def test_a_host_that_cannot_write_says_no_more_than_that() -> None:
    async def keep(key: PublicKey, tag: str) -> Services:
        raise StoreError("/secret/place", "No space left on device")

    strangers = Strangers()
    strangers.keep_guest = keep  # type: ignore[method-assign]
    guest, host = meet(strangers, SECRET)
    assert isinstance(guest, PairingError)
    assert "place" not in f"{guest}{guest.hint}"
    assert isinstance(host, PairingError)
    assert host.reason == "/secret/place: No space left on device"


def test_a_guest_that_cannot_write_raises_its_own_error() -> None:
    async def keep(services: Services) -> None:
        raise StoreError("peers.toml", "No space left on device")

    strangers = Strangers()
    strangers.keep_host = keep  # type: ignore[method-assign]
    guest, host = meet(strangers, SECRET)
    assert isinstance(guest, StoreError)
    assert host is None  # it has stored the guest, and cannot know
    assert strangers.guests == [(GUEST.public, "laptop")]


# --- who was not ------------------------------------------------------------------------------------------------------


def test_a_wrong_code_is_refused_and_burns_the_right_one() -> None:
    strangers = Strangers()
    guest, host = meet(strangers, "apple-river-zone")
    assert isinstance(guest, PairingError)
    assert isinstance(host, PairingError)
    assert host.reason == "it tried a wrong code"
    guest, _ = meet(strangers, WORDS)
    assert isinstance(guest, PairingError)
    assert strangers.guests == strangers.hosts == []


def test_a_wrong_ticket_is_refused_and_the_right_one_holds() -> None:
    strangers = Strangers()
    guest, host = meet(strangers, bytes(16))
    assert isinstance(guest, PairingError)
    assert isinstance(host, PairingError)
    assert host.reason == "it has a wrong ticket"
    assert meet(strangers, SECRET) == (None, None)


async def relayed(strangers: Strangers, given_to_guest: bytes | str) -> tuple[BaseException | None, BaseException | None]:
    """Have Mallory, for whose key the server has swapped both, hold both TLS connections and pass every frame on."""
    strangers.host_claimed = strangers.guest_claimed = MALLORY.public
    guest_end, left = tcp_pair()
    right, host_end = tcp_pair()
    selector = strangers.selector

    async def pass_on() -> None:
        async with impostor(left, MALLORY) as from_guest:
            to_host = await call_host(new_pipe(right), identity=MALLORY, host=HOST.public, selector=selector)
            try:
                with contextlib.suppress(P2PTunnelError):
                    while True:
                        to_host.write(await from_guest.read())
                        from_guest.write(await to_host.read())
            finally:
                to_host.abort()

    relaying = asyncio.create_task(pass_on())
    outcome = await asyncio.gather(
        strangers.call(guest_end, given_to_guest), strangers.receive(host_end), return_exceptions=True
    )
    await asyncio.gather(relaying, return_exceptions=True)
    guest, host = outcome
    return guest, host


@contextlib.asynccontextmanager
async def impostor(sock: socket.socket, identity: Identity, guest: PublicKey = GUEST.public) -> AsyncGenerator[PairingChannel]:
    """The end of a guest's channel, in the hands of somebody who has another key than its host."""
    selector = await read_preamble(sock)
    async with fresh_channel(new_pipe(sock), lambda: callee_context(identity, (guest,), PAIRING_ALPN), callee=True) as channel:
        await channel.handshake()
        proof = prove(channel.tls, identity.public, guest, alpn=PAIRING_ALPN)
        yield PairingChannel(channel, Bond(guest, identity.public, proof.leaf, leaf_key(identity), selector))
        channel.abort()


@either
def test_a_man_in_the_middle_with_the_right_code_and_both_keys_swapped_is_refused(given_to_guest: bytes | str) -> None:
    strangers = Strangers()
    guest, host = run(relayed(strangers, given_to_guest))
    assert isinstance(guest, PairingError)
    assert isinstance(host, PairingError)
    assert host.reason in {"it tried a wrong code", "it has a wrong ticket"}
    assert strangers.guests == strangers.hosts == []


def test_the_exchange_alone_would_let_the_man_in_the_middle_in_and_the_proof_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Keyless(driver.CodeExchange):
        """An exchange that does not know whose it is: both sides come to the same through the man in the middle."""

        def __init__(self, words: str, guest: PublicKey, host: PublicKey, *, is_host: bool) -> None:
            super().__init__(words, MALLORY.public, MALLORY.public, is_host=is_host)

    monkeypatch.setattr(driver, "CodeExchange", Keyless)
    assert meet(Strangers(), WORDS) == (None, None)
    strangers = Strangers()
    _, host = run(relayed(strangers, WORDS))
    assert isinstance(host, PairingError)
    assert strangers.guests == strangers.hosts == []


def test_a_ticket_is_shown_to_nobody_who_has_another_key_than_it_names() -> None:
    async def scenario() -> None:
        strangers = Strangers()
        strangers.host = MALLORY
        guest, host = await strangers.meet(SECRET)
        assert isinstance(guest, PairingError)
        assert guest.reason == "whoever answered does not hold the key that it should"
        assert isinstance(host, AuthenticationError | ChannelLostError)

    run(scenario())


@either
def test_a_host_that_does_not_know_what_it_gave_is_an_impostor(given_to_guest: bytes | str) -> None:
    async def answer(sock: socket.socket) -> None:
        async with impostor(sock, MALLORY) as channel:
            frame = await channel.read()
            if isinstance(frame, Exchange):
                channel.write(driver.decode(b"\x02\x00\x20" + CODE_ELEMENT))
                await channel.read()
            channel.write(Paired(bytes(32)))
            with contextlib.suppress(P2PTunnelError):
                await channel.read()

    async def scenario() -> None:
        strangers = Strangers()
        strangers.host_claimed = MALLORY.public
        guest_end, other_end = tcp_pair()
        answering = asyncio.create_task(answer(other_end))
        with pytest.raises(PairingError, match="does not know the code or the ticket"):
            await strangers.call(guest_end, given_to_guest)
        await answering
        assert strangers.hosts == []

    run(scenario())


CODE_ELEMENT = driver.CodeExchange(WORDS, GUEST.public, MALLORY.public, is_host=True).element


def test_a_guest_that_does_not_hold_the_key_it_claims_is_cut_off() -> None:
    strangers = Strangers()
    strangers.guest_claimed = MALLORY.public
    guest, host = meet(strangers, SECRET)
    assert isinstance(guest, PairingError)
    assert isinstance(host, AuthenticationError)
    assert strangers.guests == strangers.hosts == []


@either
def test_a_machine_does_not_pair_with_itself(given_to_guest: bytes | str) -> None:
    strangers = Strangers()
    strangers.guest, strangers.guest_claimed = HOST, HOST.public
    guest, host = meet(strangers, given_to_guest)
    assert isinstance(guest, AuthenticationError)
    assert guest.reason == "the other side is this machine itself"
    assert isinstance(host, P2PTunnelError | OSError)
    assert strangers.guests == strangers.hosts == []


def test_a_host_refuses_its_own_key_even_of_a_guest_that_does_not() -> None:
    async def scenario() -> None:
        strangers = Strangers()
        strangers.guest_claimed = HOST.public
        twin = Identity.from_seed(bytes([32]) * 32)  # the same machine, by a program that does not look
        client, server = tcp_pair()
        receiving = asyncio.create_task(strangers.receive(server))
        async with fresh_channel(
            new_pipe(client), lambda: caller_context(twin, HOST.public, PAIRING_ALPN), callee=False
        ) as channel:
            await channel.handshake(preamble(strangers.selector))
            with pytest.raises(ssl.SSLError):
                await channel.read_exactly(1)
            channel.abort()
        with pytest.raises(AuthenticationError):
            await receiving

    run(scenario())


def test_a_proof_for_another_attempt_is_refused() -> None:
    async def scenario() -> None:
        strangers = Strangers()
        client, server = tcp_pair()
        guest, host = await asyncio.gather(
            strangers.call(client, SECRET), strangers.receive(server, bytes(16)), return_exceptions=True
        )
        assert isinstance(guest, PairingError)
        assert isinstance(host, PairingError)

    run(scenario())


# --- other protocols, and none ----------------------------------------------------------------------------------------


def test_a_session_is_not_begun_where_guests_are_received() -> None:
    async def scenario() -> None:
        strangers = Strangers()
        client, server = tcp_pair()
        receiving = asyncio.create_task(strangers.receive(server))
        with pytest.raises(P2PTunnelError):
            await connect_session(
                new_pipe(client), identity=GUEST, tag="home-nas", peer_key=HOST.public, selector=strangers.selector
            )
        with pytest.raises(AuthenticationError, match=PAIRING_ALPN):
            await receiving

    run(scenario())


async def hostile(strangers: Strangers, *frames: bytes) -> tuple[bytes, BaseException | None]:
    """Be a guest that says what it likes; return what the host answered, and what it raised."""
    client, server = tcp_pair()
    receiving = asyncio.create_task(strangers.receive(server))
    guest = await call_host(new_pipe(client), identity=GUEST, host=HOST.public, selector=strangers.selector)
    answered = b""
    try:
        for frame in frames:
            guest._channel.write(frame)
        with contextlib.suppress(P2PTunnelError):
            while True:
                answered += driver.encode(await guest.read())
    finally:
        guest.abort()
    await asyncio.wait([receiving])
    return answered, receiving.exception()


@pytest.mark.parametrize("element", [raw for raw in MALFORMED.values() if len(raw) == 32], ids=lambda raw: raw.hex()[:8])
def test_a_malformed_element_is_refused_like_a_wrong_code(element: bytes) -> None:
    strangers = Strangers()
    answered, error = run(hostile(strangers, driver.encode(Exchange(element))))
    assert driver.decode(answered) == Refused(RefusedCode.NOT_VALID)
    assert isinstance(error, PairingError)
    assert strangers.desk.words is None


def test_our_own_element_reflected_is_refused() -> None:
    strangers = Strangers()
    proof = Proof(ProofKind.CODE, bytes(32), "laptop")
    answered, error = run(hostile(strangers, driver.encode(Exchange(CODE_ELEMENT)), driver.encode(proof)))
    assert answered.endswith(driver.encode(Refused(RefusedCode.NOT_VALID)))
    assert isinstance(error, PairingError)


def test_a_frame_of_a_session_is_no_frame_here() -> None:
    strangers = Strangers()
    answered, error = run(hostile(strangers, encode_session_frame(Ping(bytes(8)))))
    assert answered == b""
    assert isinstance(error, PairingError)
    assert strangers.desk.words == WORDS


@given(st.binary(min_size=3, max_size=200))
def test_whatever_a_guest_sends_the_host_ends_in_an_error_of_ours(data: bytes) -> None:
    strangers = Strangers()
    _, error = run(hostile(strangers, data, bytes(40_000)))
    assert isinstance(error, PairingError)
    assert strangers.guests == []
    assert strangers.desk.uses_left == 1


# --- time, and being cancelled ----------------------------------------------------------------------------------------


def test_a_host_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        strangers = Strangers()
        strangers.host_claimed = MALLORY.public
        guest_end, other_end = tcp_pair()
        asked = asyncio.Event()

        async def silent() -> None:
            async with impostor(other_end, MALLORY) as channel:
                with contextlib.suppress(P2PTunnelError):
                    while await channel.read():
                        asked.set()

        answering = asyncio.create_task(silent())
        monkeypatch.setattr(driver, "HANDSHAKE_TIMEOUT", 0.05)
        with pytest.raises(PairingError, match="said nothing more"):
            await strangers.call(guest_end, SECRET)
        await answering
        assert asked.is_set()

    run(scenario())


def test_a_guest_that_has_stored_the_host_is_paired_however_late_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slowly(services: Services) -> None:
        await asyncio.sleep(0.8)
        strangers.hosts.append(services)

    monkeypatch.setattr(driver, "HANDSHAKE_TIMEOUT", 0.6)
    strangers = Strangers()
    strangers.keep_host = slowly  # type: ignore[method-assign]
    guest, _ = meet(strangers, SECRET)
    assert guest is None
    assert len(strangers.guests) == len(strangers.hosts) == 1


@either
def test_cancelling_leaves_nothing_whenever_it_comes(given_to_guest: bytes | str) -> None:
    async def both() -> None:
        strangers = Strangers()
        client, server = tcp_pair()
        receiving = asyncio.create_task(strangers.receive(server))
        try:
            await strangers.call(client, given_to_guest)
        finally:
            client.close()
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
            server.close()

    async def nothing(_: None) -> None:
        pass

    turns = run(cancel_at_each_turn(both, nothing), timeout=60)
    assert turns > 5
