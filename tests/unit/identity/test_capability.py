"""Access tickets: who can use which, and what is no ticket."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.defaults import CAPABILITIES_MAX, CAPABILITY_MAX_BYTES
from p2ptunnel.errors import ConfigError, InvalidCodeError, InvalidSpecError, UnknownPeerError
from p2ptunnel.identity.acl import AccessList
from p2ptunnel.identity.capability import Capability, issue, parse_capability
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import PeerStore

HOME, LAPTOP, PHONE = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
NOW = 1_893_499_200.0
ROOT = Path(__file__).parents[3]
[VECTOR] = json.loads((ROOT / "tests" / "vectors" / "frames.json").read_text(encoding="utf-8"))["access_ticket"]
PAGE = (ROOT / "docs" / "protocol" / "frames.md").read_text(encoding="utf-8")


@pytest.fixture
def store(tmp_path: Path) -> PeerStore:
    store = PeerStore(tmp_path / "peers.toml")
    store.add("laptop", LAPTOP.public)
    store.add("phone", PHONE.public)
    return store


class Home:
    """The access list of a machine whose clock the test sets."""

    def __init__(self, store: PeerStore) -> None:
        self.now = NOW
        self.access = AccessList(store, lambda: self.now, HOME.public)

    def after(self, ticket: Capability | bytes, holder: Identity = LAPTOP) -> tuple[str, ...]:
        """What a peer may open when it has shown the ticket."""
        self.access.show(holder.public, ticket if isinstance(ticket, bytes) else ticket.raw)
        return self.access.granted(holder.public)


# --- what holds -------------------------------------------------------------------------------------------------------


def test_a_ticket_opens_its_services_until_it_ends(store: PeerStore) -> None:
    home = Home(store)
    assert home.after(issue(HOME, ("web", "ssh"), NOW + 60)) == ("web", "ssh")
    assert not home.access.may_open(LAPTOP.public, "db")
    home.now = NOW + 60
    assert home.access.granted(LAPTOP.public) == ()


def test_a_ticket_adds_to_what_is_granted_otherwise(store: PeerStore) -> None:
    store.allow("laptop", "db")
    assert Home(store).after(issue(HOME, ("web", "db"), NOW + 60)) == ("db", "web")


def test_a_ticket_for_one_is_not_anothers(store: PeerStore) -> None:
    home, ticket = Home(store), issue(HOME, ("web",), NOW + 60, LAPTOP.public)
    assert home.after(ticket, PHONE) == ()
    assert home.after(ticket, LAPTOP) == ("web",)


def test_a_ticket_for_anybody_admits_nobody(store: PeerStore) -> None:
    home, ticket = Home(store), issue(HOME, ("web",), NOW + 60)
    assert home.after(ticket, PHONE) == ("web",)
    store.remove("phone")
    assert home.access.granted(PHONE.public) == ()
    assert PHONE.public not in home.access.admitted()


def test_a_revoked_ticket_opens_nothing_from_then_on(store: PeerStore, tmp_path: Path) -> None:
    home = Home(store)
    one, other = issue(HOME, ("web",), NOW + 60), issue(HOME, ("db",), NOW + 60)
    home.after(one)
    assert home.after(other) == ("web", "db")
    PeerStore(tmp_path / "peers.toml").revoke_ticket(one.name, one.until)  # another process
    assert home.access.granted(LAPTOP.public) == ("db",)
    assert home.after(one) == ("db",)


def test_what_was_revoked_is_not_forgotten_by_a_clock_that_is_ahead(
    store: PeerStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, ticket = Home(store), issue(HOME, ("web",), NOW + 60)
    store.revoke_ticket(ticket.name, ticket.until)
    monkeypatch.setattr("time.time", lambda: NOW + 10**9)
    store.revoke_ticket("bb" * 16, NOW + 120)
    assert PeerStore(tmp_path / "peers.toml").is_revoked(ticket.name)
    assert home.after(ticket) == ()  # the clock is right again


@pytest.mark.parametrize("until", [-1, 253_402_300_800 - 86_400, 2**64 - 1, float("inf"), float("nan")])
def test_no_ticket_is_issued_that_ends_when_nothing_can_be_written(until: float) -> None:
    with pytest.raises(ConfigError, match="cannot end at"):
        issue(HOME, ("web",), until)


@pytest.mark.parametrize("until", [253_402_300_800 - 86_400, 2**64 - 1])
def test_a_ticket_that_ends_after_all_that_can_be_written_is_none_and_can_be_revoked(
    store: PeerStore, tmp_path: Path, until: int
) -> None:
    blank = msgspec.structs.replace(issue(LAPTOP, ("web",), NOW), until=until)
    endless = msgspec.structs.replace(blank, signature=LAPTOP.sign(blank.signed_part))
    assert endless.is_genuine
    with pytest.raises(InvalidCodeError, match="9999"):
        parse_capability(str(endless))
    store.revoke_ticket(endless.name, endless.until)
    assert PeerStore(tmp_path / "peers.toml").is_revoked(endless.name)


def test_the_last_ticket_of_all_is_kept_and_revoked(store: PeerStore, tmp_path: Path) -> None:
    last = parse_capability(str(issue(LAPTOP, ("web",), 253_402_300_800 - 86_401)))
    store.keep_ticket(last, NOW)
    store.revoke_ticket(last.name, last.until)
    assert PeerStore(tmp_path / "peers.toml").all()[0].tickets == (last,)


def test_an_ended_ticket_opens_nothing_and_neither_does_one_by_an_unset_clock(store: PeerStore) -> None:
    home = Home(store)
    assert home.after(issue(HOME, ("web",), NOW)) == ()
    home.now = 100.0
    assert home.after(issue(HOME, ("web",), NOW + 60)) == ()


def test_a_ticket_of_another_machine_says_nothing_here(store: PeerStore) -> None:
    assert Home(store).after(issue(PHONE, ("web",), NOW + 60)) == ()
    own = AccessList(store)
    own.show(LAPTOP.public, issue(HOME, ("web",), NOW + 60).raw)
    assert own.granted(LAPTOP.public) == ()


def test_a_forged_ticket_opens_nothing(store: PeerStore) -> None:
    home = Home(store)
    ticket = issue(HOME, ("web",), NOW + 60, PHONE.public)
    forgeries = [
        msgspec.structs.replace(ticket, holder=LAPTOP.public),
        msgspec.structs.replace(ticket, holder=None),
        msgspec.structs.replace(ticket, services=("ssh",), holder=LAPTOP.public),
        msgspec.structs.replace(issue(PHONE, ("web",), NOW + 60), issuer=HOME.public),
        msgspec.structs.replace(issue(HOME, ("web",), NOW), until=int(NOW) + 999),
    ]
    for forgery in forgeries:
        assert home.after(forgery) == ()


@given(st.data())
def test_no_flipped_bit_leaves_a_ticket_genuine(data: st.DataObject) -> None:
    raw = bytearray(issue(HOME, ("web", "日記"), NOW + 60, LAPTOP.public).raw)
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[bit // 8] ^= 1 << bit % 8
    try:
        damaged = Capability.from_bytes(bytes(raw))
    except InvalidCodeError:
        return
    assert not damaged.is_genuine


@given(st.binary(max_size=400))
def test_any_bytes_are_a_ticket_or_a_typed_error(raw: bytes) -> None:
    try:
        ticket = Capability.from_bytes(b"\1" + raw)
    except InvalidCodeError:
        return
    assert ticket.raw == b"\1" + raw
    assert not ticket.is_genuine


def test_of_many_tickets_the_last_ones_count(store: PeerStore) -> None:
    home = Home(store)
    for number in range(CAPABILITIES_MAX + 1):
        home.after(issue(HOME, (f"s{number}",), NOW + 60))
    assert home.access.granted(LAPTOP.public) == tuple(f"s{number}" for number in range(1, CAPABILITIES_MAX + 1))


# --- the text ---------------------------------------------------------------------------------------------------------


def test_a_ticket_survives_its_text_and_line_breaks_in_it() -> None:
    ticket = issue(HOME, ("web",), NOW, LAPTOP.public)
    text = str(ticket)
    assert parse_capability(text) == ticket
    assert parse_capability(f"  {text[:40].upper()}\n{text[40:]} ") == ticket


@pytest.mark.parametrize(
    "text", ["", "p2pc1", "p2pt1aaaa", "p2pc1!!!!", "p2pc1é", str(issue(HOME, ("web",), NOW))[:-1], "p2pc1" + "a" * 300]
)
def test_what_is_no_ticket_is_a_typed_error_that_quotes_nothing(text: str) -> None:
    with pytest.raises(InvalidCodeError) as caught:
        parse_capability(text)
    assert not text[5:] or text[5:] not in f"{caught.value} {caught.value.hint}"


def test_its_repr_and_that_of_its_keeper_show_no_ticket(store: PeerStore) -> None:
    ticket = issue(LAPTOP, ("web",), NOW + 60)
    kept = store.keep_ticket(ticket, NOW)
    assert repr(ticket) == f"Capability({ticket.name}: web)"
    for secret in (str(ticket)[5:60], ticket.signature.hex(), repr(ticket.signature)[2:30]):
        assert secret not in repr(kept)


@pytest.mark.parametrize("services", [(), tuple(f"{number:0100}" for number in range(9))])
def test_a_ticket_is_for_as_many_services_as_fit(services: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        issue(HOME, services, NOW)
    assert len(issue(HOME, services[:8] or ("web",), NOW).raw) <= CAPABILITY_MAX_BYTES


@pytest.mark.parametrize("service", ["", "a\nb", "x" * 201, "\udcff"])
def test_a_service_of_a_ticket_is_a_name(service: str) -> None:
    with pytest.raises(InvalidSpecError):
        issue(HOME, (service,), NOW)


# --- what the holder keeps --------------------------------------------------------------------------------------------


def test_a_kept_ticket_is_its_issuers_and_lasts_until_it_ends(store: PeerStore, tmp_path: Path) -> None:
    old, new = issue(LAPTOP, ("web",), NOW + 1), issue(LAPTOP, ("db",), NOW + 60)
    store.keep_ticket(old, NOW)
    assert store.keep_ticket(old, NOW).tickets == (old,)
    assert store.keep_ticket(new, NOW).tickets == (old, new)
    assert PeerStore(tmp_path / "peers.toml").all() == store.all()
    assert store.keep_ticket(new, NOW + 2).tickets == (new,)
    with pytest.raises(UnknownPeerError):
        store.keep_ticket(issue(HOME, ("web",), NOW), NOW)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_ticket_of_the_page_is_these_bytes() -> None:
    ticket = parse_capability(VECTOR["text"])
    assert ticket.raw.hex() == VECTOR["ticket"]
    assert ticket.signed_part.hex() == VECTOR["signed"]
    assert Identity.from_seed(bytes.fromhex(VECTOR["issuer_seed"])).sign(ticket.signed_part) == ticket.signature
    assert (ticket.services, str(ticket.until), ticket.id.hex()) == (("ssh", "web"), VECTOR["until"], VECTOR["id"])
    for name, value in VECTOR.items():
        assert value in PAGE if name == "name" else f"| {name.replace('_', ' ')} | `{value}` |" in PAGE
