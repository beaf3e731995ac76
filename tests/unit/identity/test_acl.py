"""Access lists: nothing is granted by default, by tag or by a guess; what another process changes holds at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2ptunnel.errors import StoreError
from p2ptunnel.identity.acl import AccessList
from p2ptunnel.identity.capability import issue
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import PeerStore

LAPTOP, PHONE, STRANGER = (Identity.from_seed(bytes([n]) * 32).public for n in (1, 2, 3))


@pytest.fixture
def store(tmp_path: Path) -> PeerStore:
    return PeerStore(tmp_path / "peers.toml")


def test_by_default_nobody_is_admitted_and_nothing_granted(store: PeerStore) -> None:
    for access in (AccessList(), AccessList(store)):
        assert access.admitted() == ()
        assert access.granted(STRANGER) == ()
        assert not access.may_open(STRANGER, "ssh")


def test_a_pinned_peer_may_open_what_its_pin_says(store: PeerStore) -> None:
    access = AccessList(store)
    store.add("laptop", LAPTOP, ("ssh", "web"))
    store.add("phone", PHONE)
    assert access.granted(LAPTOP) == ("ssh", "web")
    assert access.may_open(LAPTOP, "web")
    assert not access.may_open(LAPTOP, "we")
    assert not access.may_open(PHONE, "web")
    assert access.admitted() == tuple(sorted([LAPTOP, PHONE]))


def test_grants_in_code_add_to_the_stores_and_are_taken_back_alone(store: PeerStore) -> None:
    access = AccessList(store)
    store.add("laptop", LAPTOP, ("ssh",))
    access.allow(LAPTOP, "web", "ssh")
    access.allow(PHONE)
    assert access.granted(LAPTOP) == ("ssh", "web")
    assert access.admitted() == tuple(sorted([LAPTOP, PHONE]))
    access.revoke(LAPTOP, "web", "never-granted")
    access.revoke(LAPTOP, "ssh")
    access.revoke(PHONE)
    access.revoke(STRANGER, "web")
    assert access.granted(LAPTOP) == ("ssh",)
    assert access.admitted() == (LAPTOP,)


def test_what_another_process_changes_holds_at_once(store: PeerStore, tmp_path: Path) -> None:
    access, elsewhere = AccessList(store), PeerStore(tmp_path / "peers.toml")
    assert access.admitted() == ()
    elsewhere.add("laptop", LAPTOP, ("ssh",))
    assert access.may_open(LAPTOP, "ssh")
    elsewhere.deny("laptop", "ssh")
    assert not access.may_open(LAPTOP, "ssh")
    elsewhere.remove("laptop")
    assert access.admitted() == ()


def test_a_list_that_cannot_be_read_admits_nobody(store: PeerStore, tmp_path: Path) -> None:
    store.add("laptop", LAPTOP, ("ssh",))
    access = AccessList(store)
    assert access.may_open(LAPTOP, "ssh")
    (tmp_path / "peers.toml").write_text("[peers.laptop\n")
    for ask in (access.admitted, lambda: access.may_open(LAPTOP, "ssh"), lambda: access.granted(LAPTOP)):
        with pytest.raises(StoreError):
            ask()


def test_a_peer_is_called_by_its_tag_or_by_the_beginning_of_its_key(store: PeerStore) -> None:
    store.add("laptop", LAPTOP)
    access = AccessList(store)
    assert access.name_of(LAPTOP) == "laptop"
    assert access.name_of(PHONE) == PHONE.short


def test_who_is_pinned_anew_has_shown_no_ticket(store: PeerStore) -> None:
    ours = Identity.from_seed(bytes([4]) * 32)
    access = AccessList(store, lambda: 1.9e9, ours.public)
    store.add("laptop", LAPTOP)
    access.show(LAPTOP, issue(ours, ("db",), 2e9).raw)
    access.show(LAPTOP, issue(ours, ("web",), 2e9).raw)
    store.rename("laptop", "work")
    assert access.granted(LAPTOP) == ("db", "web")
    store.remove("work")
    assert access.granted(LAPTOP) == ()
    store.add("work", LAPTOP)
    assert access.granted(LAPTOP) == ()
    access.show(LAPTOP, issue(ours, ("web",), 2e9).raw)
    assert access.granted(LAPTOP) == ("web",)


def test_a_ticket_that_is_shown_while_the_list_cannot_be_read_changes_nothing(store: PeerStore, tmp_path: Path) -> None:
    ours = Identity.from_seed(bytes([4]) * 32)
    access = AccessList(store, lambda: 1.9e9, ours.public)
    store.add("laptop", LAPTOP)
    good = (tmp_path / "peers.toml").read_text()
    (tmp_path / "peers.toml").write_text("[peers.laptop\n")
    access.show(LAPTOP, issue(ours, ("db",), 2e9).raw)
    (tmp_path / "peers.toml").write_text(good)
    assert access.granted(LAPTOP) == ()
