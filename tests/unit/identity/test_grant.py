"""Grants: what a relay believes of another machine's introductions, and what it does not."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from msgspec.structs import replace

from p2ptunnel.defaults import GRANT_SKEW, TOKEN_TTL
from p2ptunnel.identity.grant import Granted, Grants, Offers, is_granted
from p2ptunnel.identity.judge import from_base64, to_base64
from p2ptunnel.identity.keys import Identity
from p2ptunnel.wire.messages import RelayOffer

SERVER, RELAY, ALICE, BOB, EVE = (Identity.from_seed(bytes([number]) * 32) for number in range(5))
TOKEN = "0123456789abcdef" * 2
NOW = 1_800_000_000.0


@dataclasses.dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


def offered(server: Identity = SERVER, relay: Identity = RELAY) -> RelayOffer:
    offers = Offers(server, [(("192.0.2.7", 7000), str(relay.public))], Clock())
    made = offers.make(TOKEN, str(ALICE.public), str(BOB.public))
    assert made is not None
    return made


def read(grant: str, token: str = TOKEN, *, now: float = NOW, relay: Identity = RELAY) -> Granted | None:
    return Grants(relay.public, [EVE.public, SERVER.public], Clock(now)).read(token, grant)


def test_a_grant_names_the_two_keys_of_one_call_and_how_long_it_counts() -> None:
    offer = offered()
    assert (offer.host, offer.port, offer.key) == ("192.0.2.7", 7000, str(RELAY.public))
    granted = read(offer.grant)
    assert granted == Granted(str(ALICE.public), str(BOB.public), TOKEN_TTL + GRANT_SKEW)
    assert is_granted(offer, str(SERVER.public), TOKEN)


def test_it_is_for_this_call_this_relay_and_by_a_server_that_is_known() -> None:
    assert read(offered().grant, "another") is None
    assert read(offered().grant, relay=EVE) is None
    assert read(offered(server=ALICE).grant) is None
    assert read(offered(relay=EVE).grant) is None
    assert not is_granted(offered(), str(SERVER.public), "another")
    assert not is_granted(offered(), str(EVE.public), TOKEN)
    assert not is_granted(replace(offered(), key=str(EVE.public)), str(SERVER.public), TOKEN)
    assert not is_granted(replace(offered(), key="none"), str(SERVER.public), TOKEN)


@pytest.mark.parametrize("at", range(0, 136, 5))
def test_no_bit_of_it_can_be_changed(at: int) -> None:
    raw = bytearray(from_base64(offered().grant))
    assert len(raw) == 136
    raw[at] ^= 1
    assert read(to_base64(bytes(raw))) is None


@pytest.mark.parametrize("grant", ["", "AAAA", "x" * 512, "é", to_base64(bytes(136)), to_base64(bytes(137))])
def test_what_is_none_is_none(grant: str) -> None:
    assert read(grant) is None
    assert read(offered().grant, "é") is None
    assert read(offered().grant, "x" * 65) is None


def test_clocks_may_differ_by_so_much() -> None:
    grant = offered().grant
    assert read(grant, now=NOW + TOKEN_TTL + GRANT_SKEW - 1) is not None
    assert read(grant, now=NOW + TOKEN_TTL + GRANT_SKEW) is None
    assert read(grant, now=NOW - GRANT_SKEW) is not None
    assert read(grant, now=NOW - GRANT_SKEW - 1) is None


def test_a_call_without_two_keys_has_no_relay() -> None:
    offers = Offers(SERVER, [(("192.0.2.7", 7000), str(RELAY.public))], Clock())
    assert offers.make(TOKEN, "", str(BOB.public)) is None
    assert offers.make(TOKEN, str(ALICE.public), "") is None


def test_of_several_relays_each_has_its_share_and_names_become_numbers() -> None:
    async def resolve(host: str) -> tuple[str, ...]:
        return {"one.example": ("192.0.2.1",), "two.example": ("192.0.2.2", "2001:db8::2")}[host]

    offers = Offers(SERVER, [((f"{name}.example", 7), str(RELAY.public)) for name in ("one", "two")], Clock())
    asyncio.run(offers.look_up(resolve))
    tokens = [f"{number:032x}" for number in range(4)]
    hosts = {offer.host for token in tokens if (offer := offers.make(token, str(ALICE.public), str(BOB.public)))}
    assert hosts == {"192.0.2.1", "192.0.2.2"}


def test_each_end_of_a_call_is_sent_to_one_relay_over_its_own_family() -> None:
    async def resolve(_: str) -> tuple[str, ...]:
        return ("192.0.2.2", "2001:db8::2")

    offers = Offers(SERVER, [(("two.example", 7), str(RELAY.public))], Clock())
    asyncio.run(offers.look_up(resolve))
    offer = offers.make(TOKEN, str(ALICE.public), str(BOB.public))
    assert offer is not None
    ends = {host: offers.seen_from(offer, host) for host in ("198.51.100.1", "2001:db8::1")}
    assert [end.host for end in ends.values()] == ["192.0.2.2", "2001:db8::2"]
    assert {(end.port, end.key, end.grant) for end in ends.values()} == {(7, str(RELAY.public), offer.grant)}
    assert all(is_granted(end, str(SERVER.public), TOKEN) for end in ends.values())


def test_who_comes_over_a_family_that_the_relay_has_not_is_told_where_it_is() -> None:
    offers = Offers(SERVER, [(("192.0.2.7", 7000), str(RELAY.public))], Clock())
    offer = offers.make(TOKEN, str(ALICE.public), str(BOB.public))
    assert offer is not None
    assert offers.seen_from(offer, "2001:db8::1") == offer
