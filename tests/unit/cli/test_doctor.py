"""`doctor` on healthy and on broken machines, and what it writes for others to read."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import ssl
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from p2ptunnel.cli import examination
from p2ptunnel.cli.examination import Finding, examine, examine_servers, examine_sshd, sshd_settings
from p2ptunnel.cli.redaction import redactor
from p2ptunnel.cli.settings import Settings
from p2ptunnel.errors import BindError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import Profile
from p2ptunnel.server import Rendezvous
from tests.helpers import run
from tests.unit.cli.running import call

Capture = pytest.CaptureFixture[str]
KEY = Identity.from_seed(bytes(32)).public
TOKEN = "t" * 22
only_posix = pytest.mark.skipif(sys.platform == "win32", reason="access lists rule there")


def found(profile: Path, check: str) -> list[Finding]:
    return [finding for finding in examine(Profile(profile)) if finding.check == check]


def worst(profile: Path, check: str) -> Finding:
    return min(found(profile, check), key=lambda finding: ("fail", "warn", "ok").index(finding.verdict))


@pytest.fixture
def healthy(profile: Path) -> Path:
    """A profile in use."""
    Profile(profile).identity()
    Profile(profile).peers().add("laptop", KEY, ("ssh",))
    (profile / "config.toml").write_text('[peer]\ntag = "home-nas"\n')
    (profile / "config.toml").chmod(0o600)
    return profile


# --- what it finds --------------------------------------------------------------------------------------------------------


def test_a_machine_that_was_never_used_is_fine_and_stays_untouched(profile: Path) -> None:
    findings = examine(Profile(profile))
    assert [finding for finding in findings if finding.verdict == "fail"] == []
    assert found(profile, "identity") == [Finding("identity", "ok", "no key yet; the first command makes one")]
    assert not profile.exists()


def test_a_profile_in_use_is_described(healthy: Path) -> None:
    short = Profile(healthy).identity().public.short
    assert worst(healthy, "profile").text == f"{healthy} is its owner's alone"
    assert worst(healthy, "identity").text == f"the key is {short}, and only its owner can read it"
    assert worst(healthy, "peers").text == "1 known, 1 of them may open services here"
    assert worst(healthy, "config").text == "config.toml is understood"


BROKEN: dict[str, tuple[Callable[[Path], object], str, str, str]] = {
    "a key that others can read": (
        lambda at: (at / "identity.key").chmod(0o644),
        "identity",
        "identity.key: its mode is 0644: others could read or replace it",
        "chmod 600 ",
    ),
    "a key that is a link": (
        lambda at: ((at / "identity.key").rename(at / "k"), (at / "identity.key").symlink_to(at / "k")),
        "identity",
        "it is a symbolic link",
        "put the file itself in place of the link: mv ",
    ),
    "a link to nowhere for a key": (
        lambda at: ((at / "identity.key").unlink(), (at / "identity.key").symlink_to(at / "nowhere")),
        "identity",
        "it is a symbolic link",
        "put the file itself in place of the link: mv ",
    ),
    "a damaged key": (
        lambda at: (at / "identity.key").write_text("no key"),
        "identity",
        "it is not an unencrypted PKCS8 key",
        "Restore the file from a backup",
    ),
    "a directory that others can write": (lambda at: at.chmod(0o777), "profile", "mode 0777", "chmod 700 "),
    "a copy of the key that others can read": (
        lambda at: ((at / "old.key").write_bytes((at / "identity.key").read_bytes()), (at / "old.key").chmod(0o644)),
        "profile",
        "old.key has mode 0644",
        "chmod 600 ",
    ),
    "peers that others can write": (lambda at: (at / "peers.toml").chmod(0o666), "peers", "its mode is 0666", "chmod 600 "),
    "peers that are no TOML": (
        lambda at: (at / "peers.toml").write_text("[["),
        "peers",
        "peers.toml: line 1 is no TOML: [[",
        "A line is ",
    ),
    "a configuration that is not understood": (
        lambda at: (at / "config.toml").write_text("[pear]"),
        "config",
        "unknown key `pear`",
        "Did you mean `peer`?",
    ),
    "a configuration that others can write": (
        lambda at: (at / "config.toml").chmod(0o666),
        "config",
        "its mode is 0666",
        "chmod 600 ",
    ),
}


@only_posix
@pytest.mark.parametrize(("damage", "check", "text", "fix"), BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_named_with_its_fix(
    healthy: Path, capsys: Capture, damage: Callable[[Path], object], check: str, text: str, fix: str
) -> None:
    damage(healthy)
    finding = worst(healthy, check)
    assert finding.verdict == "fail"
    assert text in finding.text
    assert finding.fix.startswith(fix)
    result = call(capsys, "doctor")
    assert result.code == 1
    assert f"fail  {check:<12} {finding.text}\n{'':19}{finding.fix}" in result.out
    healthy.chmod(0o700)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="only root can give files away")
def test_a_profile_of_another_user_is_named(healthy: Path) -> None:
    os.chown(healthy, 12345, 12345)
    finding = worst(healthy, "profile")
    assert (finding.verdict, finding.fix) == ("fail", f"sudo chown 0 {healthy}")


def test_a_profile_that_is_no_directory_is_named(profile: Path) -> None:
    profile.write_text("")
    assert worst(profile, "profile").text == f"{profile} is no directory"
    assert {finding.check for finding in examine(Profile(profile)) if finding.verdict == "fail"} >= {"peers", "config"}


@pytest.mark.parametrize(
    ("version", "verdict", "faults"),
    [
        ((3, 11, 4), "warn", "CVE-2024-0397, CVE-2023-40217"),
        ((3, 11, 8), "warn", "CVE-2024-0397"),
        ((3, 11, 9), "ok", ""),
        ((3, 12, 2), "warn", "CVE-2024-0397"),
        ((3, 12, 3), "ok", ""),
        ((3, 13, 0), "ok", ""),
    ],
)
def test_pythons_with_faults_in_ssl_are_told(
    version: tuple[int, int, int], verdict: str, faults: str, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (*version, "final", 0))
    finding = worst(profile, "python")
    assert finding.verdict == verdict
    assert (f"({faults})" in finding.text) == bool(faults)
    assert any("142352" in finding.text for finding in found(profile, "python")) == (version < (3, 13))


@pytest.mark.parametrize(
    ("attribute", "value", "verdict"), [("HAS_TLSv1_3", False, "fail"), ("OPENSSL_VERSION_INFO", (1, 1, 1), "warn")]
)
def test_an_old_openssl_is_told(
    attribute: str, value: object, verdict: str, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssl, attribute, value)
    assert worst(profile, "openssl").verdict == verdict


def test_a_tls_that_cannot_pin_is_told(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> ssl.SSLContext:
        raise ssl.SSLError("no such algorithm")

    assert worst(profile, "tls").verdict == "ok"
    monkeypatch.setattr(examination, "callee_context", refuse)
    assert worst(profile, "tls").verdict == "fail"


def test_a_clock_before_the_release_is_told(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worst(profile, "clock").verdict == "ok"
    monkeypatch.setattr(time, "time", lambda: 3600.0)
    finding = worst(profile, "clock")
    assert finding.verdict == "warn"
    assert "the clock says 1970-01-01" in finding.text


def test_a_machine_without_ssh_is_told(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert worst(profile, "ssh").fix == "Install OpenSSH's client."


@pytest.mark.parametrize(
    ("says", "text"), [("OpenSSH_9.2p1", "OpenSSH_9.2p1"), ("OpenSSH_8.4p1", "given the pinned host keys in a file")]
)
@only_posix
def test_the_version_of_ssh_is_told(
    says: str, text: str, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ssh"
    program.write_text(f"#!/bin/sh\necho {says} >&2\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert text in worst(profile, "ssh").text


def test_a_machine_on_which_no_port_can_be_had_is_told(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> object:
        raise BindError("0.0.0.0:0", "Operation not permitted")

    monkeypatch.setattr("p2ptunnel.traversal.port.take_number", refuse)
    assert worst(profile, "ports").verdict == "fail"


@only_posix
def test_few_descriptors_are_told(profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 4096))
    assert worst(profile, "descriptors").fix == "ulimit -n 4096"


# --- sshd -----------------------------------------------------------------------------------------------------------------


def test_the_first_of_two_values_holds_and_those_of_a_match_do_not(tmp_path: Path) -> None:
    (tmp_path / "sshd_config.d").mkdir()
    (tmp_path / "sshd_config.d" / "10.conf").write_text("clientaliveinterval 30\n")
    config = tmp_path / "sshd_config"
    config.write_text(
        "# comment\nPort=22\nInclude sshd_config.d/*.conf\nClientAliveInterval 0\nMatch User x\nClientAliveCountMax 9\n"
    )
    assert sshd_settings(config) == {"port": "22", "clientaliveinterval": "30"}
    config.write_text("ClientAliveInterval 0\n" + config.read_text())
    assert sshd_settings(config)["clientaliveinterval"] == "0"
    config.write_text(f"Include {tmp_path}/sshd_config.d/*.conf\n")
    assert sshd_settings(config)["clientaliveinterval"] == "30"


def test_an_sshd_that_ends_silent_connections_is_told(tmp_path: Path) -> None:
    config = tmp_path / "sshd_config"
    assert [finding.text for finding in examine_sshd(config)] == ["there is no SSH server here"]
    config.write_text("UseDNS no\n")
    assert [finding.verdict for finding in examine_sshd(config)] == ["ok"]
    config.write_text("ClientAliveInterval 15\nClientAliveCountMax 2\n")
    [finding] = examine_sshd(config)
    assert finding.verdict == "warn"
    assert finding.text.startswith("it ends a connection that is silent for 2 times 15 (ClientAliveInterval)")
    config.write_bytes(b"\xff\xfe")
    assert [finding.fix for finding in examine_sshd(config)] == ["sudo sshd -T | grep -i clientaliveinterval"]


# --- the server -------------------------------------------------------------------------------------------------------------


def test_only_servers_of_the_configuration_are_asked() -> None:
    async def scenario() -> None:
        [finding] = await examine_servers((), 1.0)
        assert (finding.check, finding.verdict) == ("server", "warn")
        assert finding.text == "none is configured, so only peers in this network can be found"
        async with Rendezvous(("127.0.0.1", 0)) as server:
            [finding] = await examine_servers((f"127.0.0.1:{server.address[1]}",), 1.0)
        assert finding.verdict in {"ok", "warn"}, finding
        assert "127.0.0.1" in finding.text

    run(scenario())


def test_a_server_that_does_not_serve_this_machine_is_no_good_server(healthy: Path) -> None:
    async def scenario() -> None:
        own, other = Identity.generate(), Identity.generate()
        async with Rendezvous(("127.0.0.1", 0), identity=own, join_token=TOKEN) as server:
            place = f"127.0.0.1:{server.address[1]}"

            async def asked(line: str) -> Finding:
                [finding] = await examine_servers((line,), 1.0, Profile(healthy))
                return finding

            good = await asked(f"{place}#{own.public}#join:{TOKEN}")
            assert (good.verdict, "and serves this machine" in good.text) == ("ok", True), good
            assert server.registered == ()
            stranger = await asked(f"{place}#{own.public}")
            assert (stranger.verdict, "serves its members only" in stranger.text) == ("fail", True), stranger
            wrong = await asked(f"{place}#{other.public}#join:{TOKEN}")
            assert wrong.verdict == "fail"
            assert TOKEN not in f"{good}{stranger}{wrong}"

    run(scenario())


def test_a_server_that_does_not_answer_is_told() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        [finding] = asyncio.run(examine_servers((f"127.0.0.1:{silent.getsockname()[1]}",), 0.2))
    assert finding.verdict == "fail"
    assert "did not answer" in finding.text
    assert finding.fix


# --- what it says -------------------------------------------------------------------------------------------------------------


def test_each_line_is_a_verdict_and_json_says_the_same(healthy: Path, capsys: Capture) -> None:
    result = call(capsys, "doctor")
    assert result.code == 0
    assert all(re.match(r"(ok|warn|fail) +\w+ +\S|                   \S", line) for line in result.out.splitlines())
    told = json.loads(call(capsys, "--json", "doctor").out)
    assert set(told) == {"schema", "verdict", "checks"}
    assert told["verdict"] in {"ok", "warn"}
    assert {check["check"] for check in told["checks"]} >= {"profile", "identity", "peers", "python", "tls", "clock", "server"}
    assert all(check["fix"] for check in told["checks"] if check["verdict"] != "ok")


def test_a_bundle_names_nobody(healthy: Path, capsys: Capture, tmp_path: Path) -> None:
    server = "rv-of-somebody.invalid:7000"
    (healthy / "old.key").write_text("")
    (healthy / "old.key").chmod(0o644)
    (healthy / "config.toml").write_text(
        f'[peer]\ntag = "home-nas"\nrendezvous = ["{server}#{KEY}#join:{TOKEN}", "192.0.2.77:7000", "[2001:db8::77]:7"]\n'
    )
    bundle = tmp_path / "report.json"
    call(capsys, "--timeout", "0.2", "doctor", "--bundle", bundle)
    text = bundle.read_text()
    names = ["rv-of-somebody", "192.0.2.77", "2001:db8", "home-nas", "laptop", str(healthy), str(tmp_path), str(Path.home())]
    identity = Profile(healthy).identity()
    secret = identity.private_key.private_bytes_raw()
    names += [str(identity.public), identity.public.short, str(KEY), secret.hex(), socket.gethostname()]
    assert [name for name in names if re.search(rf"(?<![\w-]){re.escape(name)}", text)] == []
    told = json.loads(text)
    assert set(told) == {"schema", "p2ptunnel", "checks"}
    assert any("<profile>/old.key has mode 0644" in check["text"] for check in told["checks"])
    assert any("<server 1>" in check["text"] for check in told["checks"])
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("192.0.2.1:7000 did not answer", "<address>:7000 did not answer"),
        ("[2001:db8::1]:7000, 2001:db8::2 and ::1.", "[<address>]:7000, <address> and <address>"),
        ("seen at ::ffff:192.0.2.1 at 12:30:15", "seen at <address> at 12:30:15"),
        ("OpenSSL 3.0.19 of 12:30", "OpenSSL 3.0.19 of 12:30"),
        (f"the key {KEY} is short", "the key <key> is short"),
        ("laptop-2 is not laptop", "laptop-2 is not <peer 1>"),
        ("home-nas at home-nas", "<tag> at <tag>"),
    ],
)
def test_what_names_somebody_is_taken_out_and_nothing_else(text: str, shown: str, healthy: Path) -> None:
    settings = Settings()
    settings.take("profile", str(healthy))
    assert redactor(settings)(text).rstrip(".") == shown


def test_a_bundle_replaces_no_file(healthy: Path, capsys: Capture, tmp_path: Path) -> None:
    bundle = tmp_path / "report.json"
    bundle.write_text("precious")
    result = call(capsys, "doctor", "--bundle", bundle)
    assert (result.code, bundle.read_text()) == (2, "precious")
    assert f"cannot write {bundle}: File exists" in result.err
