"""Whom a private server serves: files that say so, and what is wrong with them."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from p2ptunnel.errors import ConfigError, InsecureKeyFileError, StoreError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.server.members import KeyList, join_token
from p2ptunnel.trace import TraceEvent, Tracer

ALICE, BOB = (str(Identity.generate().public) for _ in range(2))


def listed(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


def test_a_token_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "join"
    token = join_token(path)
    assert len(token) == 22
    assert join_token(path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_token_may_be_written_by_hand(tmp_path: Path) -> None:
    assert join_token(listed(tmp_path / "join", "a-word-of-16-or-more\n")) == "a-word-of-16-or-more"


@pytest.mark.parametrize("text", ["", "short", "with a space in the midst", "x" * 65, "umlauts-äöüäöüäöü"])
def test_a_file_without_a_token_is_refused_and_not_quoted(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        join_token(listed(tmp_path / "join", text))
    assert not text or text not in str(caught.value)


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = listed(tmp_path / "join", "a-word-of-16-or-more")
    path.chmod(0o644)
    with pytest.raises(InsecureKeyFileError):
        join_token(path)


def test_keys_stand_one_a_line_with_remarks(tmp_path: Path) -> None:
    keys = KeyList(listed(tmp_path / "keys", f"# of the family\n{ALICE}  # alice\n\n"))
    assert ALICE in keys
    assert BOB not in keys
    assert "" not in keys


def test_a_changed_list_holds_at_once(tmp_path: Path) -> None:
    path = listed(tmp_path / "keys", ALICE)
    keys = KeyList(path)
    assert BOB not in keys
    listed(path, f"{ALICE}\n{BOB}\n")
    assert BOB in keys


@pytest.mark.parametrize("damage", ["p2p:nonsense", "\0"])
def test_a_list_that_cannot_be_read_any_more_lists_whom_it_listed_last_and_says_so(tmp_path: Path, damage: str) -> None:
    events: list[TraceEvent] = []
    path = listed(tmp_path / "keys", ALICE)
    keys = KeyList(path, Tracer(events.append))
    assert keys.problem == ""
    listed(path, f"{BOB}\n{damage}\n")
    assert ALICE in keys
    assert BOB not in keys
    assert "is no key" in keys.problem
    listed(path, f"{BOB}\n")
    assert keys.problem == ""
    assert ALICE not in keys
    assert [event.name for event in events] == ["unreadable", "readable"]


def test_a_list_that_is_gone_lists_whom_it_listed_last(tmp_path: Path) -> None:
    path = listed(tmp_path / "keys", ALICE)
    keys = KeyList(path)
    path.unlink()
    assert ALICE in keys
    assert "there is no such file" in keys.problem


def test_what_is_wrong_at_the_start_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"):
        KeyList(tmp_path / "keys")
    with pytest.raises(ConfigError, match="is no key"):
        KeyList(listed(tmp_path / "keys", "p2p:nonsense"))
    (tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="no text"):
        KeyList(tmp_path / "keys")
    (tmp_path / "keys").chmod(0o666)
    with pytest.raises(InsecureKeyFileError):
        KeyList(tmp_path / "keys")
