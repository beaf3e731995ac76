"""Tags on a disk: what is written is read again, by the server and by its operator at the same time."""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2ptunnel.errors import InsecureKeyFileError, StoreError
from p2ptunnel.protocol.tags import TagRecord
from p2ptunnel.server.registry import SqliteTags

NAS = TagRecord("nas", "p2p:alice", 1_700_000_000.5, ("198.51.100.7", 40001), 2**53 - 1, 2**62)
LAPTOP = TagRecord("laptop", "p2p:bob", 1_600_000_000.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server" / "tags.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteTags]:
    store = SqliteTags(path)
    yield store
    store.close()


def test_an_empty_store_has_nothing_and_was_never_saved(store: SqliteTags) -> None:
    assert store.load() == ([], 0.0)


def test_what_was_saved_is_there_after_a_restart_the_longest_unseen_first(store: SqliteTags, path: Path) -> None:
    before = time.time()
    assert store.save({"nas": NAS, "laptop": LAPTOP}) == frozenset()
    store.close()
    store.close()
    again = SqliteTags(path)
    records, saved_at = again.load()
    again.close()
    assert records == [LAPTOP, NAS]
    assert before <= saved_at <= time.time()


def test_a_change_replaces_and_a_free_tag_goes(store: SqliteTags) -> None:
    store.save({"nas": NAS, "laptop": LAPTOP})
    moved = TagRecord("nas", "p2p:alice", 1_700_000_009.0)
    store.save({"nas": moved, "laptop": None, "never": None})
    assert store.load()[0] == [moved]


def test_an_operator_frees_a_tag_beside_a_server_that_runs(store: SqliteTags, path: Path) -> None:
    store.save({"nas": NAS})
    operator = SqliteTags(path)
    assert operator.free("nas")
    assert not operator.free("nas")
    assert operator.records() == []
    operator.close()
    assert store.save({"nas": NAS, "laptop": LAPTOP}) == {"nas"}  # what the server was about to write of it is out of date
    assert store.load()[0] == [LAPTOP]
    assert store.save({"nas": NAS}) == frozenset()
    assert NAS in store.load()[0]


def test_only_its_owner_can_read_it(store: SqliteTags, path: Path) -> None:
    store.save({"nas": NAS})
    assert [stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()] == [0o600] * len(list(path.parent.iterdir()))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_what_was_freed_while_no_server_ran_is_not_taken_from_its_next_owner(store: SqliteTags, path: Path) -> None:
    """M5: the server applied it five seconds after its start."""
    store.save({"nas": NAS})
    assert store.free("nas")
    store.close()
    server = SqliteTags(path)
    assert server.load()[0] == []
    assert server.save({"nas": NAS}) == frozenset()
    assert server.records() == [NAS]
    server.close()


@pytest.mark.parametrize("mode", [0o602, 0o620, 0o604, 0o640])
def test_a_file_that_others_could_read_or_write_is_refused(store: SqliteTags, path: Path, mode: int) -> None:
    """L5: who writes it says who owns which tag."""
    store.save({"nas": NAS})
    store.close()
    path.chmod(mode)
    for use in (store.load, store.records, lambda: store.save({}), lambda: store.free("nas")):
        with pytest.raises(InsecureKeyFileError, match=r"tags\.sqlite"):
            use()


def test_a_file_that_is_none_is_an_error_with_its_name(store: SqliteTags, path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"not a database at all" * 100)
    path.chmod(0o600)
    with pytest.raises(StoreError, match=r"tags\.sqlite"):
        store.load()


def test_a_link_is_not_followed(store: SqliteTags, path: Path, tmp_path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError):
        store.load()
    assert not (tmp_path / "elsewhere").exists()
