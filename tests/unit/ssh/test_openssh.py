"""What OpenSSH is told, judged by OpenSSH itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from p2ptunnel.errors import ConfigError, InvalidSpecError, InvalidTagError
from p2ptunnel.ssh.openssh import Launcher, has_known_hosts_command, split_destination, ssh_command, ssh_config
from tests.unit.ssh.sshd import needs_openssh, running_sshd

LAUNCHER = Launcher(("--profile", "/home/me/my profile"), python="/usr/bin/python3")

EXPECTED = {
    "proxycommand": "/usr/bin/python3 -P -m p2ptunnel --profile '/home/me/my profile' pipe --host-keys %n ssh",
    "knownhostscommand": '/usr/bin/python3 -P -m p2ptunnel --profile "/home/me/my profile" known-hosts --service ssh %H %n',
    "userknownhostsfile": "none",
    "globalknownhostsfile": "/dev/null",
    "stricthostkeychecking": "true",
    "updatehostkeys": "false",
    "checkhostip": "no",
    "canonicalizehostname": "false",
    "serveraliveinterval": "0",
    "tcpkeepalive": "no",
}


def understood(*arguments: str) -> dict[str, str]:
    """Return what ssh makes of its arguments, by option."""
    result = subprocess.run(["ssh", "-G", "-T", *arguments], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return dict(line.split(" ", 1) for line in result.stdout.splitlines() if " " in line)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_text(ssh_config(LAUNCHER))
    return path


@needs_openssh
def test_ssh_understands_the_command_line() -> None:
    command = ssh_command("pi@nas", ("-p", "2222"), launcher=LAUNCHER)
    assert command[0] == "ssh"
    options = understood("-F", "none", *command[1:])
    assert {name: options[name] for name in EXPECTED} == EXPECTED
    assert (options["user"], options["hostname"], options["port"]) == ("pi", "nas.p2p", "2222")
    assert options["ciphers"].startswith("aes128-gcm@openssh.com,aes256-gcm@openssh.com,")


@needs_openssh
def test_ssh_understands_the_stanza_for_peers_and_leaves_other_hosts_alone(config: Path) -> None:
    options = understood("-F", str(config), "nas.p2p")
    assert {name: options[name] for name in EXPECTED} == EXPECTED
    other = understood("-F", str(config), "nas.example")
    assert "proxycommand" not in other
    assert "knownhostscommand" not in other


@needs_openssh
def test_ssh_gives_up_nothing_that_a_session_can_wait_for(tmp_path: Path) -> None:
    impatient = tmp_path / "impatient"
    impatient.write_text("Host *\n  ServerAliveInterval 15\n  ServerAliveCountMax 1\n  TCPKeepAlive yes\n")
    by_command = ssh_command("nas", ("-F", str(impatient)), launcher=Launcher(), ssh="ssh")
    included = tmp_path / "included"
    included.write_text(ssh_config(Launcher()) + impatient.read_text())
    for options in (understood(*by_command[1:]), understood("-F", str(included), "nas.p2p")):
        assert (options["serveraliveinterval"], options["tcpkeepalive"]) == ("0", "no")
    assert understood("-F", str(included), "elsewhere.example")["serveraliveinterval"] == "15"


@needs_openssh
def test_an_old_ssh_reads_a_file_instead_of_asking(tmp_path: Path) -> None:
    launcher = Launcher(python="/usr/bin/python3", known_hosts="/home/me/a 100% b/known")
    options = understood("-F", "none", *ssh_command("nas", launcher=launcher)[1:])
    assert "knownhostscommand" not in options
    assert options["userknownhostsfile"].replace("%%", "%") == "/home/me/a 100% b/known"
    assert options["proxycommand"].endswith("pipe --known-hosts '/home/me/a 100%% b/known' %n ssh")


SCRIPT = """#!/bin/sh
for word; do printf '<%s>' "$word" >> "{log}"; done; echo >> "{log}"
case "$*" in
*" pipe "*) exec "{python}" "{bridge}" {host} {port} ;;
*" known-hosts "*) while [ "$1" != ssh ]; do shift; done; echo "$2 {key}" ;;
esac
"""

BRIDGE = """
import os, socket, sys, threading
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def up():
    while data := os.read(0, 65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)
threading.Thread(target=up, daemon=True).start()
while data := sock.recv(65536):
    os.write(1, data)
"""


@needs_openssh
@pytest.mark.parametrize(
    "odd", ["plain", "a b", "quo\"te's", "per%cent %h", "dol$HOME", "back\\slash", 'two\\\\"', "semi;colon&", "ünï"]
)
def test_odd_paths_reach_us_unharmed_and_ssh_logs_in(tmp_path: Path, odd: str) -> None:
    directory = tmp_path / odd
    directory.mkdir()
    with running_sshd(tmp_path) as sshd:
        python, bridge, log = directory / "python", tmp_path / "bridge.py", tmp_path / "log"
        bridge.write_text(BRIDGE)
        host, port = sshd.address
        python.write_text(SCRIPT.format(log=log, python=sys.executable, bridge=bridge, host=host, port=port, key=sshd.host_key))
        python.chmod(0o700)
        launcher = Launcher(("--profile", str(directory)), python=str(python))
        command = ssh_command(f"{sshd.user}@nas.p2p", launcher=launcher)
        identity = ("-F", "none", "-i", str(sshd.user_key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes")
        done = subprocess.run([*command, *identity, "echo", "hello"], capture_output=True, text=True, timeout=15, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "hello\n", "")
        pipe, order, hostname = log.read_text().splitlines()
        flags = f"<-P><-m><p2ptunnel><--profile><{directory}>"
        assert pipe == f"{flags}<pipe><--host-keys><nas.p2p><ssh>"
        assert order == hostname == f"{flags}<known-hosts><--service><ssh><nas.p2p><nas.p2p>"


@needs_openssh
def test_another_host_key_than_the_told_one_ends_the_login(tmp_path: Path) -> None:
    with running_sshd(tmp_path) as sshd:
        python, bridge = tmp_path / "python", tmp_path / "bridge.py"
        bridge.write_text(BRIDGE)
        host, port = sshd.address
        wrong = (tmp_path / "user.pub").read_text().strip()
        python.write_text(SCRIPT.format(log="/dev/null", python=sys.executable, bridge=bridge, host=host, port=port, key=wrong))
        python.chmod(0o700)
        command = ssh_command(f"{sshd.user}@nas", ("-F", "none", "true"), launcher=Launcher(python=str(python)))
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False)
        assert done.returncode == 255
        assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr


@pytest.mark.parametrize(
    ("version", "knows"),
    [
        ("OpenSSH_9.2p1 Debian-2+deb12u10, OpenSSL 3.0.19 27 Jan 2026", True),
        ("OpenSSH_10.0p2, OpenSSL 3.5.0", True),
        ("OpenSSH_8.5p1", True),
        ("OpenSSH_8.4p1 Debian-5", False),
        ("OpenSSH_for_Windows_8.1p1, LibreSSL 3.0.2", False),
        ("OpenSSH_for_Windows_9.5p1, LibreSSL 3.8.2", True),
        ("OpenSSH_7.9p1", False),
        ("Dropbear v2022.83", True),
        ("", True),
    ],
)
def test_the_version_decides_how_ssh_learns_host_keys(version: str, knows: bool) -> None:
    assert has_known_hosts_command(version) is knows


@pytest.mark.parametrize("destination", ["NAS", "pi@", "pi@na s", "pi@-oProxyCommand=x", "", "-oProxyCommand=x", "pi@nas;x"])
def test_what_is_no_tag_never_reaches_ssh(destination: str) -> None:
    with pytest.raises(InvalidTagError):
        ssh_command(destination, launcher=LAUNCHER)


@pytest.mark.parametrize(
    "launcher",
    [
        Launcher(("--profile", "/home/${USER}")),
        Launcher(("--profile", "/home/a\nProxyCommand x")),
        Launcher(known_hosts='/home/quo"te'),
        Launcher(known_hosts="/home/${HOME}"),
        Launcher(known_hosts="/home/a\nb"),
    ],
)
def test_what_ssh_cannot_read_is_an_error_here(launcher: Launcher) -> None:
    with pytest.raises(ConfigError, match="cannot be written for ssh"):
        ssh_config(launcher)


@pytest.mark.parametrize(
    ("words", "destination", "rest"),
    [
        (("nas",), "nas", ()),
        (("pi@nas", "uptime", "-p"), "pi@nas", ("uptime", "-p")),
        (("-i", "key", "pi@nas", "uptime"), "pi@nas", ("-i", "key", "uptime")),
        (("-ikey", "-vv", "pi@nas"), "pi@nas", ("-ikey", "-vv")),
        (("-vvi", "key", "pi@nas"), "pi@nas", ("-vvi", "key")),
        (("-NL", "5432:db:5432", "nas", "-C"), "nas", ("-NL", "5432:db:5432", "-C")),
        (("-o", "User=pi", "-l", "root", "nas"), "nas", ("-o", "User=pi", "-l", "root")),
        (("-A", "--", "nas", "ls"), "nas", ("-A", "ls")),
    ],
)
def test_the_host_is_found_where_ssh_would_find_it(words: tuple[str, ...], destination: str, rest: tuple[str, ...]) -> None:
    assert split_destination(words) == (destination, rest)


@pytest.mark.parametrize("words", [("-i", "key"), ("-v",), ("-L", "1:2:3"), ("--",)])
def test_words_without_a_host_are_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidSpecError, match="it names no peer"):
        split_destination(words)
