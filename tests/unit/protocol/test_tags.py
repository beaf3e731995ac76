"""The book of tags: the first key owns one, for as long as it is seen; and what there is to write of it."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import COOKIE_EPOCH, TAG_SEEN_EVERY, TAG_UNSEEN_DAYS, TAGS_OF_KEY_MAX
from p2ptunnel.protocol import tags as module
from p2ptunnel.protocol.tags import TagBook, TagRecord

DAY = 86_400.0
AT = ("198.51.100.7", 40001)


def record(tag: str = "nas", key: str = "alice", *, seen_at: float = 0.0) -> TagRecord:
    return TagRecord(tag, key, seen_at, AT, 7, 1)


def book(*records: TagRecord) -> TagBook:
    made = TagBook()
    made.load(records)
    return made


def test_a_tag_is_its_owners_while_it_is_away() -> None:
    tags = book()
    tags.register(record(), 0.0)
    tags.leave("nas")
    found = tags.record("nas", 29 * DAY)
    assert found is not None
    assert (found.key, found.address, found.epoch) == ("alice", None, 0)


def test_a_tag_that_was_not_seen_for_so_long_is_free() -> None:
    tags = book()
    tags.register(record(), 0.0)
    assert tags.record("nas", TAG_UNSEEN_DAYS * DAY) is not None
    assert tags.record("nas", TAG_UNSEEN_DAYS * DAY + 1) is None
    assert len(tags) == 0
    assert tags.changes()["nas"] is None


def test_a_heartbeat_keeps_a_tag_and_is_written_once_in_a_while() -> None:
    tags = book(record())
    tags.keep("nas", TAG_SEEN_EVERY - 1)
    tags.keep("nobody", 10.0)
    assert tags.changes() == {}
    tags.keep("nas", TAG_SEEN_EVERY + 1)
    assert list(tags.changes()) == ["nas"]
    assert tags.record("nas", TAG_UNSEEN_DAYS * DAY + TAG_SEEN_EVERY) is not None


def test_time_goes_on_over_a_restart() -> None:
    tags = book(record(seen_at=1_000_000.0))
    tags.since_1970 = 1_000_000.0 + 29 * DAY
    assert tags.record("nas", 0.0) is not None
    assert tags.record("nas", 2 * DAY) is None


def test_while_no_server_was_there_nobodys_tag_came_nearer_to_being_free() -> None:
    tags = TagBook()
    away = 40 * DAY  # of a machine that was off, or of a clock that has jumped
    tags.load([record(seen_at=1_000_000.0)], away=away)
    tags.since_1970 = 1_000_000.0 + away + DAY
    assert tags.record("nas", 0.0) is not None
    assert tags.changes() == {"nas": record(seen_at=1_000_000.0 + away)}
    assert tags.record("nas", 30 * DAY) is None


def test_the_counter_to_be_above_is_forgotten_with_the_cookies_of_its_time() -> None:
    tags = TagBook()
    tags.register(record(), 10.0)
    assert tags.floor("nas", 10.0 + 2 * COOKIE_EPOCH) == 1
    assert tags.floor("nas", 11.0 + 2 * COOKIE_EPOCH) == 0
    assert tags.floor("unknown", 10.0) == 0


def test_a_key_has_so_many_tags_and_no_more() -> None:
    tags = book()
    for n in range(TAGS_OF_KEY_MAX):
        assert not tags.is_full("alice", 0.0)
        tags.register(record(f"nas-{n}"), 0.0)
    assert tags.is_full("alice", 0.0)
    assert not tags.is_full("bob", 0.0)
    tags.free("nas-0")
    assert not tags.is_full("alice", 0.0)


def test_a_full_book_lets_go_of_what_is_free_and_of_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAGS_MAX", 2)
    tags = book(record("a"), record("b", seen_at=20 * DAY))
    assert tags.is_full("bob", 29 * DAY)
    assert not tags.is_full("bob", 31 * DAY)
    assert tags.record("b", 31 * DAY) is not None


def test_a_tag_that_changes_hands_counts_for_the_new_key() -> None:
    tags = book()
    for n in range(TAGS_OF_KEY_MAX):
        tags.register(record(f"nas-{n}"), 0.0)
    tags.register(record("nas-0", "bob"), 1.0)
    assert not tags.is_full("alice", 1.0)
    found = tags.record("nas-0", 1.0)
    assert found is not None
    assert found.key == "bob"


def test_changes_are_told_once_and_taken_back_where_they_could_not_be_written() -> None:
    tags = book(record("old"))
    tags.register(record("new"), 5.0)
    tags.free("old")
    changes = tags.changes()
    assert changes["old"] is None
    assert tags.changes() == {}
    tags.leave("new")
    tags.restore(changes)
    again = tags.changes()
    assert again["old"] is None
    assert again["new"] is not None
    assert again["new"].address is None  # the newer one counts


def test_what_nobody_owns_can_be_freed_and_left() -> None:
    tags = book()
    tags.free("nas")
    tags.leave("nas")
    assert tags.changes() == {}
