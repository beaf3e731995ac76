"""The command `rendezvous`: what it says, what it keeps, and what its operator may do with it."""

from __future__ import annotations

import errno
import json
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from p2ptunnel.cli.rendezvous import addresses_of
from p2ptunnel.errors import ConfigError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import Profile
from p2ptunnel.protocol.tags import TagRecord
from p2ptunnel.server.registry import SqliteTags
from p2ptunnel.types import pairing_tag, parse_server
from tests.unit.cli.running import call, started

KEY = str(Identity.from_seed(bytes(32)).public)


def kept(profile: Path, *records: TagRecord) -> None:
    store = SqliteTags(profile / "server" / "tags.sqlite")
    store.save({record.tag: record for record in records})
    store.close()


def test_it_says_where_it_is_and_which_line_its_peers_need(tmp_path: Path) -> None:
    token = tmp_path / "join"
    words = ("--json", "--profile", tmp_path, "rendezvous", "--listen", "127.0.0.1:0", "--join-token-file", token)
    with started(*words) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
    spec = parse_server(said["spec"], default_port=7000)
    assert said["event"] == "listening"
    assert list(spec.address) == said["address"]
    assert spec.key == said["key"] == str(Profile(tmp_path / "server").identity().public)
    assert spec.join_token == token.read_text(encoding="ascii").strip()


@pytest.mark.parametrize("command", ["rendezvous", "relay"])
def test_it_serves_both_families_unless_a_host_is_named(tmp_path: Path, command: str) -> None:
    words = ("--profile", tmp_path, command, "--listen", ":0", *(("--server", KEY) if command == "relay" else ()))
    with started(*words, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
    found = re.search(r" on 0\.0\.0\.0:(\d+) and \[::\]:(\d+), ", said)
    assert found is not None, said
    assert found[1] == found[2] != "0"


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ((":7000",), (("0.0.0.0", 7000), ("::", 7000))),
        (("192.0.2.7",), (("192.0.2.7", 7000), None)),
        (("192.0.2.7:7001", "[2001:db8::7]:7002"), (("192.0.2.7", 7001), ("2001:db8::7", 7002))),
        (("[::]:7000",), (("::", 7000), None)),
        (("::",), (("::", 7000), None)),
    ],
)
def test_it_listens_at_up_to_one_address_of_each_family(listen: tuple[str, ...], expected: object) -> None:
    assert addresses_of(listen) == expected


@pytest.mark.parametrize("listen", [("192.0.2.7", "192.0.2.8"), (":7000", "192.0.2.8"), (":7000", ":7001")])
def test_two_addresses_of_one_family_are_misuse(listen: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="addresses to listen on"):
        addresses_of(listen)


def test_a_machine_without_ipv6_serves_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(family: int, *_: object) -> object:
        raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")

    monkeypatch.setattr("socket.socket", without)
    assert addresses_of((":7000",)) == (("0.0.0.0", 7000), None)


def test_at_its_end_it_says_what_it_has_dropped(tmp_path: Path) -> None:
    words = ("--json", "--profile", tmp_path, "rendezvous", "--listen", "127.0.0.1:0", "--stats", "1")
    with started(*words) as process, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as junk:
        assert process.stdout is not None
        junk.sendto(b'{"t":99,"mid":1}', tuple(json.loads(process.stdout.readline())["address"]))
        assert json.loads(process.stdout.readline())["event"] == "stats"
        process.send_signal(signal.SIGTERM)
        last = [json.loads(text) for text in process.stdout][-1]
    assert last["event"] == "stats"
    assert last["dropped"] == {"malformed": 1}
    assert (last["online"], last["received"], last["connections"]) == (0, 1, 0)
    assert last["relay"] == {"circuits": 0, "carried_bytes": 0, "refused": {}, "ended": {}}


def test_in_words_it_says_so_on_stderr(tmp_path: Path) -> None:
    words = ("--profile", tmp_path, "rendezvous", "--listen", "127.0.0.1:0")
    with (tmp_path / "err").open("w", encoding="utf-8") as err, started(*words, stderr=err) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("rendezvous server on 127.0.0.1:")
        assert process.stdout.readline().startswith("for its peers: --rendezvous '127.0.0.1:")
    said = (tmp_path / "err").read_text(encoding="utf-8")
    assert "dropped: nothing; relay: circuits 0, carried 0 bytes, refused: nothing; ended: nothing" in said


@pytest.mark.parametrize(
    ("written", "words", "expected"),
    [
        ("", [], {"relay": True, "relay_quota_bytes": 2**30, "relay_circuits": 16}),
        ("", ["--no-relay"], {"relay": False}),
        ("", ["--relay-quota", "10GiB/day", "--relay-circuits", "3"], {"relay_quota_bytes": 10 * 2**30, "relay_circuits": 3}),
        ("relay = false", [], {"relay": False}),
        ("relay = false", ["--relay"], {"relay": True}),
        (
            "",
            ["--relay", f"192.0.2.1:7000#{KEY}", "--relay", f"192.0.2.2#{KEY}"],
            {"relays": (f"192.0.2.1:7000#{KEY}", f"192.0.2.2#{KEY}")},
        ),
        (f'relays = ["192.0.2.1:7000#{KEY}"]', [], {"relay": True, "relays": (f"192.0.2.1:7000#{KEY}",)}),
        (f'relays = ["192.0.2.1:7000#{KEY}"]', ["--relay"], {"relay": True, "relays": ()}),
        (f'relays = ["192.0.2.1:7000#{KEY}"]', ["--no-relay"], {"relay": False, "relays": ()}),
        ('relay_quota = "2MiB"\nrelay_circuits = 2', [], {"relay_quota_bytes": 2**21, "relay_circuits": 2}),
        ('relay_quota = "2MiB"', ["--relay-quota", "1MiB"], {"relay_quota_bytes": 2**20}),
    ],
)
def test_the_relay_is_as_the_flags_say_and_else_as_the_file_does(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    written: str,
    words: list[str],
    expected: dict[str, object],
) -> None:
    def make(*_: object, **options: object) -> None:
        made.update(options)
        raise ConfigError("enough")

    made: dict[str, object] = {}
    monkeypatch.setattr("p2ptunnel.server.Rendezvous", make)
    (tmp_path / "config.toml").write_text(f"[server]\n{written}\n")
    assert call(capsys, "--profile", tmp_path, "rendezvous", "--registry", "memory", *words).code == 2
    assert {name: made[name] for name in expected} == expected


def test_a_relay_alone_says_where_it_is_and_what_its_server_needs(tmp_path: Path) -> None:
    words = ("--json", "--profile", tmp_path, "relay", "--listen", "127.0.0.1:0", "--server", KEY, "--stats", "1")
    with started(*words) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        assert json.loads(process.stdout.readline())["event"] == "stats"
        process.send_signal(signal.SIGTERM)
        last = [json.loads(text) for text in process.stdout][-1]
        assert process.wait() == 0
    spec = parse_server(said["spec"], default_port=0)
    assert (said["event"], list(spec.address), spec.key) == ("listening", said["address"], said["key"])
    assert spec.key == str(Profile(tmp_path / "server").identity().public)
    assert (last["connections"], last["dropped"], last["relay"]["circuits"]) == (0, {}, 0)


def test_in_words_a_relay_says_so_on_stderr(tmp_path: Path) -> None:
    words = ("--profile", tmp_path, "relay", "--listen", "127.0.0.1:0", "--server", KEY)
    with (tmp_path / "err").open("w", encoding="utf-8") as err, started(*words, stderr=err) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("relay on 127.0.0.1:")
        assert process.stdout.readline().startswith("for its rendezvous server: --relay '127.0.0.1:")
    said = (tmp_path / "err").read_text(encoding="utf-8")
    assert "TCP 0; dropped: nothing; circuits 0, carried 0 bytes, refused: nothing; ended: nothing" in said


@pytest.mark.parametrize("words", [(), ("--server", "nobody"), ("--server", KEY, "--relay-quota", "none")])
def test_a_relay_that_could_not_serve_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert call(capsys, "--profile", tmp_path, "relay", "--listen", "127.0.0.1:0", *words).code == 2


def test_tags_are_listed_the_longest_unseen_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    kept(tmp_path, TagRecord("nas", KEY, now, ("198.51.100.7", 40001), 1), TagRecord("old", KEY, now - 86_400))
    code, out, _ = call(capsys, "--profile", tmp_path, "rendezvous", "tags", "list")
    assert code == 0
    head, old, nas = str(out).splitlines()
    assert head.split() == ["TAG", "KEY", "SEEN", "AT"]
    assert old.startswith(f"old  {KEY}  ")
    assert old.endswith("offline")
    assert nas.endswith("198.51.100.7:40001")
    assert [head.index("AT"), old.index("offline")] == [nas.index("198.51.100.7")] * 2
    _, out, _ = call(capsys, "--json", "--profile", tmp_path, "rendezvous", "tags", "list")
    assert [json.loads(text)["tag"] for text in str(out).splitlines()] == ["old", "nas"]


def test_tags_under_which_machines_wait_to_be_paired_are_listed_for_programs_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(tmp_path, TagRecord(pairing_tag("nas"), KEY, time.time()))
    assert call(capsys, "--profile", tmp_path, "rendezvous", "tags", "list").out == ""
    _, out, _ = call(capsys, "--json", "--profile", tmp_path, "rendezvous", "tags", "list")
    assert json.loads(str(out))["tag"] == "nas.pair"


def test_with_a_tag_the_one_is_freed_that_its_machine_pairs_under(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept(tmp_path, TagRecord(pairing_tag("nas"), KEY, time.time()))
    assert call(capsys, "--profile", tmp_path, "rendezvous", "tags", "free", "nas").out == "nas is free\n"
    assert call(capsys, "--profile", tmp_path, "--json", "rendezvous", "tags", "list").out == ""


def test_a_tag_is_freed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept(tmp_path, TagRecord("nas", KEY, time.time()))
    assert tuple(call(capsys, "--profile", tmp_path, "rendezvous", "tags", "free", "nas")) == (0, "nas is free\n", "")
    code, out, err = call(capsys, "--profile", tmp_path, "rendezvous", "tags", "free", "nas")
    assert (code, out) == (2, "")
    assert "nobody owns the tag 'nas' here" in str(err)


@pytest.mark.parametrize(
    "words",
    [
        ("tags", "free", "No Tag"),
        ("tags", "burn"),
        ("--registry", "redis"),
        ("--relay-quota", "1GB"),
        ("--relay-circuits", "0"),
    ],
)
def test_what_makes_no_sense_is_misuse(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert call(capsys, "--profile", tmp_path, "rendezvous", *words).code == 2


def test_a_list_of_keys_that_becomes_garbage_is_told_and_holds_as_it_was(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n", encoding="ascii")
    words = ("--profile", tmp_path, "rendezvous", "--listen", "127.0.0.1:0", "--allow-keys", keys, "--stats", "1")
    with started(*words, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        keys.write_text("nonsense\n", encoding="ascii")
        told = next(line for line in process.stderr if "the list holds as it was" in line)
        assert "'nonsense' is no key" in told
        stats = next(line for line in process.stderr if "members as they were" in line)
        assert "'nonsense' is no key" in stats
        keys.write_text(f"{KEY}\n", encoding="ascii")
        assert next(line for line in process.stderr if line.startswith("the list of members is read again"))


def test_a_list_of_keys_that_is_missing_lets_no_server_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--profile", tmp_path, "rendezvous", "--listen", "127.0.0.1:0", "--allow-keys", tmp_path / "none")
    code, _, err = call(capsys, *words)
    assert code == 2
    assert "there is no such file" in str(err)
