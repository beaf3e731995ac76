"""Grants that end, renaming, and what the file of peers says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2ptunnel.defaults import CLOCK_MIN
from p2ptunnel.errors import ConfigError, InvalidTagError, StoreError, UnknownPeerError
from p2ptunnel.identity.acl import AccessList
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import PeerStore

LAPTOP, PHONE = (Identity.from_seed(bytes([n]) * 32).public for n in (1, 2))
NOON = 1_893_499_200.0  # 2030-01-01 12:00 UTC


class Clock:
    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> PeerStore:
    store = PeerStore(tmp_path / "peers.toml")
    store.add("laptop", LAPTOP, ("ssh",))
    return store


def test_a_grant_ends_when_it_was_said_to(store: PeerStore) -> None:
    clock = Clock()
    access = AccessList(store, clock)
    store.allow("laptop", "web", until=NOON + 60)
    assert access.granted(LAPTOP) == ("ssh", "web")
    clock.now = NOON + 59.9
    assert access.may_open(LAPTOP, "web")
    clock.now = NOON + 60
    assert access.granted(LAPTOP) == ("ssh",)
    assert access.admitted() == (LAPTOP,)


def test_a_clock_that_was_never_set_grants_nothing_that_ends_and_everything_else(store: PeerStore) -> None:
    store.allow("laptop", "web", until=NOON)
    assert AccessList(store, Clock(0.0)).granted(LAPTOP) == ("ssh",)
    assert AccessList(store, Clock(CLOCK_MIN)).granted(LAPTOP) == ("ssh", "web")


def test_what_is_said_last_of_a_grant_holds(store: PeerStore) -> None:
    store.allow("laptop", "web", until=NOON)
    store.allow("laptop", "web", until=NOON - 100)
    [peer] = store.all()
    assert (peer.services, dict(peer.until)) == (("ssh", "web"), {"web": NOON - 100})
    store.allow("laptop", "web")
    assert dict(store.all()[0].until) == {}
    store.allow("laptop", "web", until=NOON)
    store.deny("laptop", "web")
    assert (store.all()[0].services, dict(store.all()[0].until)) == (("ssh",), {})


def test_grants_with_and_without_an_end_stand_in_one_list(store: PeerStore, tmp_path: Path) -> None:
    store.allow("laptop", "web", until=NOON)
    text = (tmp_path / "peers.toml").read_text()
    assert '"ssh",' in text
    assert 'name = "web", until = 2030-01-01 12:00:00+00:00' in text
    assert PeerStore(tmp_path / "peers.toml").all() == store.all()


@pytest.mark.parametrize("written", ["2030-01-01T12:00:00Z", "2030-01-01T13:00:00+01:00", "2030-01-01T12:00:00"])
def test_an_end_by_hand_is_read(tmp_path: Path, written: str) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(f'[peers.laptop]\nkey = "{LAPTOP}"\nservices = ["ssh", {{ name = "web", until = {written} }}]\n')
    assert dict(PeerStore(path).all()[0].until) == {"web": NOON}


@pytest.mark.parametrize(
    "grant", ['{ name = "web" }', '{ name = "web", until = 7 }', '{ nam = "web", until = 2030-01-01T00:00:00Z }']
)
def test_a_grant_that_cannot_be_read_is_no_grant_for_ever(tmp_path: Path, grant: str) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(f'[peers.laptop]\nkey = "{LAPTOP}"\nservices = [{grant}]\n')
    with pytest.raises(StoreError):
        PeerStore(path).all()


@pytest.mark.parametrize("until", [-1.0, 1e12, float("nan"), float("inf")])
def test_an_end_that_no_calendar_has_is_refused(store: PeerStore, until: float) -> None:
    with pytest.raises(ConfigError, match="a grant cannot end"):
        store.allow("laptop", "web", until=until)
    assert store.all()[0].services == ("ssh",)


def test_a_renamed_peer_keeps_its_key_and_grants_and_its_place(store: PeerStore) -> None:
    store.add("phone", PHONE)
    store.rename("laptop", "work")
    assert [(peer.tag, peer.key, peer.services) for peer in store.all()] == [("work", LAPTOP, ("ssh",)), ("phone", PHONE, ())]
    with pytest.raises(UnknownPeerError):
        store.rename("laptop", "other")
    with pytest.raises(ConfigError, match="phone is known with another key, p2p:"):
        store.rename("work", "phone")
    with pytest.raises(InvalidTagError):
        store.rename("work", "Work")
    assert store.get("work") is not None


def test_what_was_given_once_is_a_grant_that_has_ended_and_can_be_denied(store: PeerStore) -> None:
    store.note_once("laptop", "web", NOON)
    assert store.all()[0].services == ("ssh", "web")
    assert AccessList(store, Clock(NOON)).granted(LAPTOP) == ("ssh",)
    store.deny("laptop", "web")
    assert store.all()[0].services == ("ssh",)


def test_what_is_granted_stays_so_when_it_is_given_once(store: PeerStore) -> None:
    store.allow("laptop", "web", until=NOON + 60)
    for service in ("ssh", "web"):
        store.note_once("laptop", service, NOON)
    assert AccessList(store, Clock(NOON)).granted(LAPTOP) == ("ssh", "web")
