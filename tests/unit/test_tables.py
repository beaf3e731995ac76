"""What is wrong in a file that people write, in our words: no sentence of a library's comes through bare, whatever is in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.config import Config, load_config
from p2ptunnel.errors import ConfigError, StoreError
from p2ptunnel.identity import pinned
from p2ptunnel.tables import TableError, parse_toml

LINE: Final = "A line is `key = value`, `[table]`, or a remark behind #; text stands in quotes"
TWICE: Final = "A key, or a table, stands there for the second time: leave one of the two."


@pytest.mark.parametrize(
    ("data", "text", "hint"),
    [
        (b"[peer]\ntag = home-nas\n", "line 2 is no TOML: tag = home-nas", 'Text stands in quotes: tag = "home-nas".'),
        (b"[peer]\nlan = yes\n", "line 2 is no TOML: lan = yes", 'Text stands in quotes: lan = "yes".'),
        (b"[peer]\ntag\n", "line 2 is no TOML: tag", LINE),
        (b"tag: nas\n", "line 1 is no TOML: tag: nas", LINE),
        (b"[peer\n", "line 1 is no TOML: [peer", LINE),
        (b'[peer]\ntag = "nas\n', 'line 2 is no TOML: tag = "nas', LINE),
        (b'[peer]\ntag = "a"\ntag = "b"\n', 'line 3 is no TOML: tag = "b"', TWICE),
        (b"[peer]\n[peer]\n", "line 2 is no TOML: [peer]", TWICE),
        (b'[peer]\nrendezvous = ["a",\n', 'line 2 is no TOML: rendezvous = ["a",', LINE),
        (b"[peer]\nrendezvous = rv:7000#p2p:k#join:secret\n", "line 2 is no TOML: rendezvous = rv:7000…", "Text stands"),
        (b"x = " + b"9" * 5000, "a number or a list in it is too long to be read", LINE),
        (b"x = " + b"[" * 50_000, "a number or a list in it is too long to be read", LINE),
        (b"[peer]\n\xff\n", "line 2 is no text in UTF-8", "Save the file as UTF-8."),
        (b"tag = " + b"x" * 100, f"line 1 is no TOML: tag = {'x' * 54}…", "Text stands in quotes: tag = "),
    ],
)
def test_a_line_that_is_no_toml_is_named_and_shown(data: bytes, text: str, hint: str) -> None:
    with pytest.raises(TableError) as caught:
        parse_toml(data)
    assert str(caught.value) == text
    assert caught.value.hint.startswith(hint)
    assert "secret" not in f"{caught.value} {caught.value.hint}"


def test_a_mark_that_editors_put_first_is_no_mistake() -> None:
    assert parse_toml(b'\xef\xbb\xbf[peer]\ntag = "nas"\n') == {"peer": {"tag": "nas"}}


def told(directory: Path, data: bytes) -> ConfigError | None:
    """What is said of a config.toml; None: nothing is wrong."""
    path = directory / "config.toml"
    path.write_bytes(data)
    path.chmod(0o600)
    try:
        load_config(directory)
    except ConfigError as error:
        return error
    return None


def is_ours(error: ConfigError, *names: str) -> None:
    """Fail if an error says what a library has said, or not where."""
    said, cause = f"{error} {error.hint}", error.__cause__
    while cause is not None:
        if not isinstance(cause, (ConfigError, TableError)):
            sentence = re.split(r" \(at |: | - at ", str(cause))[0]
            assert sentence
            assert sentence not in said
        cause = cause.__cause__
    assert not re.search(r"\$\.|got `|Expected `|\(at (line|end)|Object (contains|missing)|Invalid (enum )?value", said)
    assert any(name in str(error) for name in names)
    assert error.hint


VALUES: Final = st.recursive(
    st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "nas", "auto", "10m", "1GiB/day", "rv:7000", "rv:7000#join:x", "#"])
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.datetimes()
    | st.dates()
    | st.times(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)
KEYS: Final = [
    (table.encode_name, field.encode_name)
    for table in msgspec.structs.fields(Config)
    for field in msgspec.structs.fields(table.type)
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile")


@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_of_any_key_is_taken_or_refused_in_our_words(directory: Path, key: tuple[str, str], value: Any) -> None:
    table, name = key
    error = told(directory, tomli_w.dumps({table: {name: value}}).encode())
    if error is not None:
        is_ours(error, "config.toml")
        assert name in str(error)
        assert table in str(error)


@given(table=st.dictionaries(st.sampled_from(["peer", "server", "pear", ""]), VALUES, max_size=2))
def test_any_tables_are_taken_or_refused_in_our_words(directory: Path, table: dict[str, Any]) -> None:
    error = told(directory, tomli_w.dumps(table).encode())
    if error is not None:
        is_ours(error, "config.toml")


GOOD: Final = (
    b'[peer]\ntag = "nas"\nrendezvous = ["rv:7000"]\nresume_timeout = "1m"\nlan = true # so\n[server]\nrelay_circuits = 3\n'
)


@given(
    at=st.integers(0, len(GOOD)),
    length=st.integers(0, 4),
    put=st.binary(max_size=4) | st.sampled_from([b'"', b"[", b"=", b"\n"]),
)
def test_a_file_damaged_anywhere_is_taken_or_refused_in_our_words(directory: Path, at: int, length: int, put: bytes) -> None:
    error = told(directory, GOOD[:at] + put + GOOD[at + length :])
    if error is not None:
        is_ours(error, "config.toml")


@given(
    data=st.builds(
        lambda key, value: tomli_w.dumps({"peers": {"nas": {"key": "p2p:x", key: value}}}).encode(),
        st.sampled_from(["key", "services", "since", "registered_as", "ssh_host_keys", "tickets", "servces"]),
        VALUES,
    )
    | st.binary(max_size=20)
)
def test_of_the_list_of_peers_too(data: bytes) -> None:
    try:
        pinned.parse(data, "/p/peers.toml")
    except StoreError as error:
        is_ours(error, "/p/peers.toml")
