"""Where a setting comes from: flag, environment, file, default, in this order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from p2ptunnel.cli.main import root
from p2ptunnel.cli.settings import Settings
from p2ptunnel.defaults import RESUME_TIMEOUT
from p2ptunnel.identity.keys import Identity
from p2ptunnel.trace import Tracer
from tests.unit.cli.running import call


def settings_of(*words: str) -> Settings:
    """Return what the words of a command come to."""
    settings = Settings()
    with root.make_context("p2ptunnel", list(words), obj=settings) as context:
        name, command, rest = root.resolve_command(context, [*context._protected_args, *context.args])
        assert name is not None
        assert command is not None
        command.make_context(name, rest, parent=context)
    return settings


def write_config(directory: Path, text: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.toml").write_text(text)


@pytest.mark.parametrize(
    ("words", "environment", "file", "tag"),
    [
        (["--tag", "flag"], "environment", "file", "flag"),
        ([], "environment", "file", "environment"),
        ([], "", "file", "file"),
        ([], "", "", None),
    ],
)
def test_a_flag_holds_before_the_environment_before_the_file(
    words: list[str], environment: str, file: str, tag: str | None, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("P2PTUNNEL_TAG", environment)
        monkeypatch.setenv("P2PTUNNEL_RENDEZVOUS", "a:1 b:2")
    write_config(profile, f'[peer]\ntag = "{file}"\nrendezvous = ["file:7000"]' if file else "")
    for settings in (settings_of(*words, "status"), settings_of("status", *words)):
        assert settings.tag == tag
        expected = ("a:1", "b:2") if environment else ("file:7000",) if file else ()
        assert settings.rendezvous == expected


@pytest.mark.parametrize(
    ("words", "environment", "file", "seconds"),
    [
        (["--resume-timeout", "90"], "10m", '"1h"', 90.0),
        ([], "10m", '"1h"', 600.0),
        ([], "", '"1h"', 3600.0),
        ([], "", "2.5", 2.5),
        (["--resume-timeout", "0"], "", '"1h"', 0.0),
        ([], "", "", RESUME_TIMEOUT),
    ],
)
def test_patience_is_written_with_a_unit_and_handed_on_to_ssh(
    words: list[str], environment: str, file: str, seconds: float | None, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("P2PTUNNEL_RESUME_TIMEOUT", environment)
    write_config(profile, f"[peer]\nresume_timeout = {file}" if file else "")
    settings = settings_of("status", *words)
    assert settings.resume_timeout == seconds
    handed_on = words or (["--resume-timeout", environment] if environment else [])
    assert list(settings.for_ssh)[2:] == handed_on  # behind --profile


@pytest.mark.parametrize(
    ("words", "environment", "file", "lan"),
    [
        ([], "", "", True),
        (["--no-lan"], "1", "true", False),
        (["--lan"], "0", "false", True),
        ([], "0", "true", False),
        ([], "1", "false", True),
        ([], "", "false", False),
    ],
)
def test_whether_the_own_network_is_used_can_be_said_and_is_handed_on_to_ssh(
    words: list[str], environment: str, file: str, lan: bool, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("P2PTUNNEL_LAN", environment)
    write_config(profile, f"[peer]\nlan = {file}" if file else "")
    settings = settings_of("status", *words)
    assert settings.lan is lan
    handed_on = words or ([{"1": "--lan", "0": "--no-lan"}[environment]] if environment else [])
    assert list(settings.for_ssh)[2:] == handed_on  # behind --profile
    peer = settings_of("--rendezvous", "127.0.0.1:1", "status", *words).peer(Tracer())
    assert peer._has_lan is lan


@pytest.mark.parametrize(
    ("words", "environment", "file", "is_mapping"),
    [
        ([], "", "", True),
        (["--no-port-mapping"], "1", "true", False),
        (["--port-mapping"], "0", "false", True),
        ([], "0", "true", False),
        ([], "", "false", False),
    ],
)
def test_whether_the_router_is_asked_can_be_said(
    words: list[str], environment: str, file: str, is_mapping: bool, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("P2PTUNNEL_PORT_MAPPING", environment)
    write_config(profile, f"[peer]\nport_mapping = {file}" if file else "")
    peer = settings_of("--rendezvous", "127.0.0.1:1", "status", *words).peer(Tracer())
    assert peer._is_mapping is is_mapping


def test_a_peer_is_as_patient_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    patience: list[float] = []

    def peer(*_: Any, resume_timeout: float, **__: Any) -> None:
        patience.append(resume_timeout)

    monkeypatch.setattr("p2ptunnel.peer.Peer", peer)
    for words in (["--resume-timeout", "0"], ["--resume-timeout", "2h"], []):
        settings_of("--rendezvous", "127.0.0.1:1", "status", *words).peer(Tracer())
    assert patience == [0, 7200, RESUME_TIMEOUT]


@pytest.mark.parametrize(
    ("words", "environment", "file", "relay"),
    [
        ([], "", "", "auto"),
        ([], "", '"always"', "always"),
        ([], "never", '"always"', "never"),
        (["--relay", "always"], "never", "", "always"),
    ],
)
def test_whether_the_relay_is_used_is_said_once_and_holds_for_the_peer_and_for_ssh(
    words: list[str], environment: str, file: str, relay: str, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment:
        monkeypatch.setenv("P2PTUNNEL_RELAY", environment)
    write_config(profile, f"[peer]\nrelay = {file}" if file else "")
    settings = settings_of("--rendezvous", "127.0.0.1:1", "status", *words)
    assert settings.relay == settings.peer(Tracer())._relay == relay
    handed_on = list(settings.for_ssh)
    assert ("--relay" in handed_on) == bool(words or environment)
    assert not words or handed_on[handed_on.index("--relay") + 1] == relay


def test_behind_rendezvous_the_same_word_is_about_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, "rendezvous", "--no-relay", "--relay", "--listen", "nowhere")
    assert "is not an address" in result.err


@pytest.mark.parametrize("value", ["", "x", "-1", "10 m", "10w", "nan", "inf", "1e3", "1m30s"])
def test_what_is_no_duration_is_misuse(value: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    result = call(capsys, "status", "--resume-timeout", value)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"p2ptunnel: Invalid value for '--resume-timeout': '{value}' is not a duration. Examples: 30s")
    monkeypatch.setenv("P2PTUNNEL_RESUME_TIMEOUT", value)
    if value:  # an empty variable is none
        result = call(capsys, "status")
        assert result.code == 2
        assert result.err.startswith(f"p2ptunnel: Invalid value for P2PTUNNEL_RESUME_TIMEOUT: '{value}' is not a duration.")


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--rendezvous", "a", "--rendezvous", "b", "status"], {"rendezvous": ("a", "b")}),
        (["--rendezvous", "a", "status", "--rendezvous", "b"], {"rendezvous": ("b",)}),
        (["-v", "status", "-vv"], {"verbose": 3}),
        (["--timeout", "1", "status", "--timeout", "2"], {"timeout": 2.0}),
        (["--json", "peers", "--quiet"], {"json": True, "quiet": True}),
        (["--no-color", "status", "--color"], {"color": True}),
        (["--profile", "/p", "status", "--trace", "/t"], {"profile": "/p", "trace": "/t"}),
        (["ssh", "--json", "nas", "-v", "--tag", "x"], {"json": True}),  # behind the name, flags are ssh's
        (["status"], {}),
    ],
)
def test_flags_stand_before_or_after_the_command(
    words: list[str], flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("P2PTUNNEL_PROFILE")
    assert settings_of(*words).flags == flags


def test_flags_stand_after_the_command_of_a_group_too(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--json", "peers", "list"], ["peers", "--json", "list"], ["peers", "list", "--json"]):
        assert tuple(call(capsys, *words)) == (0, "", "")


def test_what_ssh_hands_on_is_what_was_given_by_flags_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PTUNNEL_TIMEOUT", "3")
    settings = settings_of("--profile", "/p", "status", "--rendezvous", "a:1", "--rendezvous", "b:2", "-v")
    assert settings.for_ssh == ("--profile", "/p", "--timeout", "3.0", "--rendezvous", "a:1", "--rendezvous", "b:2", "-v")
    assert settings.for_ssh_in_secret == {}


def test_a_join_token_is_handed_on_in_no_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"a:1#{Identity.generate().public}#join:{'t' * 22}"
    for given in ("flag", "environment"):
        words = ["--rendezvous", line, "--rendezvous", "b:2"]
        if given == "environment":
            monkeypatch.setenv("P2PTUNNEL_RENDEZVOUS", f"{line} b:2")
            words = []
        settings = settings_of("--profile", "/p", *words, "status")
        assert settings.for_ssh == ("--profile", "/p")
        assert settings.for_ssh_in_secret == {"P2PTUNNEL_RENDEZVOUS": f"{line} b:2"}
        result = call(capsys, *words, "ssh-config")
        assert (result.code, result.out) == (2, "")
        assert "the server's join token would stand in ssh's command lines" in result.err
        assert "t" * 22 not in result.err


def test_what_status_says_of_a_private_server_holds_no_token(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"127.0.0.1:9#{Identity.generate().public}#join:{'t' * 22}"
    for words in (["status"], ["--json", "status"]):
        result = call(capsys, "--rendezvous", line, "--timeout", "0.1", *words)
        assert "127.0.0.1:9" in result.out
        assert "t" * 22 not in result.out + result.err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--no-lan", "serve", "8888"], "no rendezvous server is configured"),
        (["--no-lan", "forward", "nas", "8888"], "no rendezvous server is configured"),
        (["--rendezvous", "127.0.0.1:1", "serve", "8888"], "this machine has no tag that others could ask for"),
        (["--rendezvous", "127.0.0.1:1", "--tag", "NAS", "serve", "8888"], "'NAS' is not a tag"),
        (["--rendezvous", "a:x", "forward", "nas", "8888"], "'a:x' is not an address"),
        (["--rendezvous", "a:x", "status"], "'a:x' is not an address"),
        (
            ["--trace", "/dev/null/x", "--rendezvous", "a:1", "forward", "nas", "1"],
            "cannot write the trace to /dev/null/x: Not a directory",
        ),
    ],
)
def test_what_is_missing_is_said_before_a_packet_is_sent(
    words: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = call(capsys, *words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"p2ptunnel: {text}")


def test_the_file_is_read_in_the_profile_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(tmp_path / "other", '[peer]\ntag = "other"\n')
    assert json.loads(call(capsys, "--json", "--profile", tmp_path / "other", "id").out)["tag"] == "other"
    write_config(tmp_path / "other", '[peer]\ntga = "other"\n')
    result = call(capsys, "--profile", tmp_path / "other", "id")
    assert result.code == 2
    assert result.err == "p2ptunnel: unknown key `tga` at peer in config.toml\nhint: Did you mean `tag`?\n"


def test_what_ends_after_the_command_is_traced_nowhere_and_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings()
    settings.take("trace", str(tmp_path / "trace"))
    with settings.tracer() as tracer:
        tracer("session", "began")
    tracer("session", "ended")
    assert not tracer.is_active
    assert caplog.messages == []
    [line] = (tmp_path / "trace").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["event"] == "began"
