"""What config.toml may say, and how a mistake in it is named."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from p2ptunnel.config import Config, PeerConfig, ServerConfig, load_config, parse_duration, parse_quota, parse_until
from p2ptunnel.errors import ConfigError, InsecureKeyFileError


def loaded(directory: Path, text: str) -> Config:
    (directory / "config.toml").write_text(text)
    return load_config(directory)


def test_without_a_file_every_key_has_its_default(tmp_path: Path) -> None:
    assert load_config(tmp_path) == load_config(tmp_path / "nowhere") == Config(PeerConfig(None, ()))


def test_every_key_is_read(tmp_path: Path) -> None:
    text = '[peer]\ntag = "home-nas"\nrendezvous = ["rv.example:7000", "[2001:db8::1]:7001", "rv2.example"]\n'
    text += 'resume_timeout = "2h"\nrelay = "never"\nlan = false\nport_mapping = false\n'
    servers = ("rv.example:7000", "[2001:db8::1]:7001", "rv2.example")
    text += '[server]\nrelay = false\nrelay_quota = "10GiB/day"\nrelay_circuits = 4\n'
    server = ServerConfig(relay=False, relay_quota="10GiB/day", relay_circuits=4)
    assert loaded(tmp_path, text) == Config(
        PeerConfig("home-nas", servers, "2h", "never", lan=False, port_mapping=False), server
    )


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("[peer]\ntga = 1", "unknown key `tga` at peer in config.toml", "Did you mean `tag`?"),
        ("[peer]\nrendezvos = []", "unknown key `rendezvos` at peer in config.toml", "Did you mean `rendezvous`?"),
        (
            "[peer]\nxyzzy = 1",
            "unknown key `xyzzy` at peer in config.toml",
            "Known there: tag, rendezvous, resume_timeout, relay, lan, port_mapping.",
        ),
        ("[pear]\n", "unknown key `pear` at the top in config.toml", "Did you mean `peer`?"),
        (
            '[peer]\n"a\\u001b[31mb" = 1',
            "unknown key `a\\x1b[31mb` at peer in config.toml",
            "Known there: tag, rendezvous, resume_timeout, relay, lan, port_mapping.",
        ),
        ("[peer]\ntag = 1", "1 is not a name in quotes: `tag` at peer in config.toml", "A line is "),
        ("peer = 1", "1 is not a table: `peer` at the top in config.toml", "Write [peer], and its keys below."),
        ('[peer]\ntag = "NAS"', "'NAS' is not a tag: `tag` at peer in FILE", "A tag has 1 to 63"),
        ("[peer]\nresume_timeuot = 1", "unknown key `resume_timeuot` at peer in config.toml", "Did you mean `resume_timeout`?"),
        ('[peer]\nresume_timeout = "soon"', "'soon' is not a duration: `resume_timeout` at peer in FILE", "Examples: 30s"),
        ("[peer]\nresume_timeout = -1", "'-1.0' is not a duration: `resume_timeout` at peer in FILE", "Examples: 30s"),
        ("[peer]\nresume_timeout = inf", "'inf' is not a duration: `resume_timeout` at peer in FILE", "Examples: 30s"),
        (
            '[peer]\nrelay = "no"',
            """'no' is not "auto", "never" or "always": `relay` at peer in config.toml""",
            "Write one of: auto, never, always.",
        ),
        (
            '[peer]\nrelay = "nevr"',
            """'nevr' is not "auto", "never" or "always": `relay` at peer in config.toml""",
            'Did you mean "never"?',
        ),
        ("[peer]\nlan = 1", "1 is not true or false: `lan` at peer in config.toml", "A line is "),
        ('[peer]\nlan = "true"', "'true' is not true or false: `lan` at peer in config.toml", "A line is "),
        (
            '[peer]\nrendezvous = ["rv:7000", 7000]',
            "a list with 7000 in it is not a list of servers, each in quotes: `rendezvous` at peer in config.toml",
            "A line is ",
        ),
        (
            '[server]\nrelays = "rv:7000#p2p:k#join:secret"',
            "'rv:7000…' is not a list of servers, each in quotes: `relays` at server in config.toml",
            "A line is ",
        ),
        ("[peer]\ntag = 2030-01-01", "a date is not a name in quotes: `tag` at peer in config.toml", "A line is "),
        ("[peer.tag]", "a table is not a name in quotes: `tag` at peer in config.toml", "A line is "),
        (
            "[peer]\nresume_timeout = true",
            "true is not a duration, or a number of seconds: `resume_timeout` at peer in config.toml",
            "A line is ",
        ),
        (
            "[server]\nrelay_circuits = 1.5",
            "1.5 is not a whole number, 1 or more: `relay_circuits` at server in config.toml",
            "A",
        ),
        ('[server]\nrelay_quota = "1GB"', "'1GB' is not a quota: `relay_quota` at server in FILE", "Examples: 1GiB/day"),
        (
            "[server]\nrelay_circuit = 1",
            "unknown key `relay_circuit` at server in config.toml",
            "Did you mean `relay_circuits`?",
        ),
        (
            "[server]\nrelay_circuits = 0",
            "0 is not a whole number, 1 or more: `relay_circuits` at server in config.toml",
            "A line is ",
        ),
        ('[peer]\nrendezvous = ["a:b"]', "'a:b' is not an address: `rendezvous` at peer in FILE", "Write host:port"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, problem: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    assert str(caught.value) == problem.replace("FILE", str(tmp_path / "config.toml"))
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), ("45", 45), ("30s", 30), ("1.5m", 90), ("2h", 7200), ("7d", 604_800), (600, 600), (0.5, 0.5)],
)
def test_a_duration_is_a_number_with_a_unit_or_seconds(value: str | float, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize("value", ["", "-1", "1 s", "1w", "m", "nan", "inf", "٣s", -1, float("nan"), float("inf")])
def test_anything_else_is_no_duration(value: str | float) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        parse_duration(value)


@pytest.mark.parametrize(
    ("text", "quota_bytes"),
    [("1GiB/day", 2**30), ("1 GiB/day", 2**30), ("500MiB", 500 * 2**20), ("0.5KiB/day", 512), ("1.5TiB", 3 * 2**39)],
)
def test_a_quota_is_a_number_with_a_unit(text: str, quota_bytes: int) -> None:
    assert parse_quota(text) == quota_bytes


@pytest.mark.parametrize(
    "text", ["", "1", "1GB", "-1GiB", "0GiB", "0.0001KiB", "1GiB/h", "GiB", "1e3KiB", "1GiB/day\n", "9" * 99]
)
def test_anything_else_is_no_quota(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a quota") as caught:
        parse_quota(text)
    assert caught.value.hint == "Examples: 1GiB/day, 500MiB, 1.5TiB/day."


@pytest.mark.parametrize("data", [b"[peer\n", b"tag = \n", b"\xff\xfe", b"[peer]\ntag = 'a'\ntag = 'b'"])
def test_what_is_no_toml_is_told_with_its_path(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_others_could_change_is_refused_unless_they_cannot_get_there(tmp_path: Path) -> None:
    """L5: it names the servers, and what is on them is believed."""
    path = tmp_path / "config.toml"
    path.write_text('[peer]\ntag = "laptop"\n')
    path.chmod(0o664)
    tmp_path.chmod(0o700)
    assert load_config(tmp_path).peer.tag == "laptop"
    tmp_path.chmod(0o755)
    with pytest.raises(InsecureKeyFileError, match="others could change it") as error:
        load_config(tmp_path)
    assert error.value.hint == f"chmod go-w {path}"
    path.chmod(0o644)
    assert load_config(tmp_path).peer.tag == "laptop"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of somebody else")
def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("")
    os.chown(path, 65534, -1)
    with pytest.raises(InsecureKeyFileError, match="belongs to another user"):
        load_config(tmp_path)


def test_a_file_that_cannot_be_read_is_told_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(ConfigError, match=r"config\.toml: Is a directory"):
        load_config(tmp_path)


# --- when a grant ends --------------------------------------------------------------------------------------------------

NOON = 1_893_499_200.0  # 2030-01-01 12:00 UTC


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", NOON + 7200),
        ("90", NOON + 90),
        ("7d", NOON + 604_800),
        ("2030-01-01T12:00:01Z", NOON + 1),
        ("2030-01-01T14:00+01:00", NOON + 3600),
        ("2030-01-02", NOON + 9 * 3600),
        ("2030-01-01T18:00", NOON + 3 * 3600),
    ],
)
def test_a_time_is_read_from_now_or_by_the_calendar(text: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "<+03>-3")  # three hours east: what has no zone is local
    time.tzset()
    try:
        assert parse_until(text, NOON).timestamp() == seconds
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "text", ["", "soon", "0", "2030-01-01T12:00:00Z", "2029-12-31", "2030-13-01", "9999999d", "7w", "-1h", "inf"]
)
def test_what_is_no_time_or_over_is_named(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_until(text, NOON)
    assert caught.value.hint.startswith("Examples: 2h, 7d, 2030-01-31")


def test_nothing_ends_by_a_clock_that_was_never_set() -> None:
    with pytest.raises(ConfigError, match="this machine's clock is not set"):
        parse_until("2h", 1000.0)
