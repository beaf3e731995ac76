"""The commands that read and write the profile, and send nothing: id, peers, known-hosts, ssh-config, status, completion."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from p2ptunnel.identity.capability import issue
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.store import Profile
from p2ptunnel.peer import Peer
from p2ptunnel.session.ping import PingReport, Pong
from p2ptunnel.types import Path as NetworkPath
from tests.unit.cli.running import call, environment, program
from tests.unit.ssh.test_knownhosts import ED, RSA

Capture = pytest.CaptureFixture[str]

PEERS_COMMANDS = {"add", "allow", "deny", "drop", "list", "rename", "revoke", "rm", "show", "ticket", "tickets", "use"}
ANSWERED = Pong(1, 0.031, NetworkPath(kind="direct", transport="tcp", local=("192.0.2.1", 1), remote=("192.0.2.2", 2)), None)
KEY = str(Identity.from_seed(bytes(32)).public)


def test_a_ping_that_waits_in_vain_for_a_direct_path_says_so(
    profile: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def relayed(peer: Peer, tag: str, **_: object) -> PingReport:
        return PingReport(tag, ())

    monkeypatch.setattr(Peer, "ping", relayed)
    flags = ("--timeout", "4", "--no-port-mapping", "--rendezvous", "127.0.0.1:9", "--no-lan")
    code, _, err = call(capsys, *flags, "ping", "nas", "--until-direct")
    assert (code, err) == (1, "still not direct after 4 s: p2ptunnel explain nas\n")


PING = ("--timeout", "4", "--no-port-mapping", "--rendezvous", "127.0.0.1:9", "--no-lan", "ping", "nas")


def test_a_ping_whose_connection_ends_says_why_and_has_failed(
    profile: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ended(peer: Peer, tag: str, **_: object) -> PingReport:
        return PingReport(tag, (ANSWERED, Pong(2, None)), "the peer has left")

    monkeypatch.setattr(Peer, "ping", ended)
    code, out, err = call(capsys, *PING)
    assert (code, err) == (1, "the connection ended: the peer has left\n")
    assert out.startswith("nas: 1 of 2 answered")


def test_a_ping_that_is_interrupted_sums_up(profile: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(peer: Peer, tag: str, *, tell: Callable[[Pong], None], **_: object) -> PingReport:
        tell(ANSWERED)
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(Peer, "ping", interrupted)
    code, out, _ = call(capsys, *PING)
    assert code == 130
    assert out.splitlines()[1:] == ["nas: 1 of 1 answered; 31.0, 31.0, 31.0 ms at least, on average, at most"]


def test_id_prints_the_line_that_peers_add_wants(profile: Path, capsys: Capture) -> None:
    key = Profile(profile).identity().public
    assert tuple(call(capsys, "id"))[:2] == (0, f"{key}\n")
    assert "no tag yet" in str(call(capsys, "id").err)
    assert tuple(call(capsys, "--tag", "nas", "id")) == (0, f"nas {key}\n", "")
    told = json.loads(call(capsys, "id", "--tag", "nas", "--json").out)
    assert told == {"schema": 1, "tag": "nas", "key": str(key), "fingerprint": key.fingerprint}


def test_id_never_shows_the_secret_half(profile: Path, capsys: Capture) -> None:
    call(capsys, "id")
    secret = (profile / "identity.key").read_text().splitlines()[1]
    shown = "".join(str(part) for words in (["id"], ["status"], ["--json", "id"]) for part in call(capsys, *words))
    assert secret[-40:] not in shown


def test_peers_come_and_go(capsys: Capture, profile: Path) -> None:
    assert call(capsys, "peers").err == "No peer is known yet: p2ptunnel pair\n"
    added = call(capsys, "peers", "add", "laptop", KEY, "--services", "ssh,8888")
    assert tuple(added) == (0, "laptop is known; it may open ssh, 8888\n", "")
    assert call(capsys, "peers", "deny", "laptop", "ssh").out == "laptop may open 8888\n"
    assert call(capsys, "peers", "allow", "laptop", "web", "jupyter").out == "laptop may open 8888, web, jupyter\n"
    head, row = call(capsys, "peers").out.splitlines()
    assert head.split() == ["PEER", "KEY", "MAY", "OPEN"]
    assert row.split(maxsplit=2) == ["laptop", KEY, "8888, web, jupyter"]
    listed = json.loads(call(capsys, "--json", "peers", "list").out)
    assert listed == {
        "schema": 1,
        "tag": "laptop",
        "key": KEY,
        "fingerprint": PublicKey.parse(KEY).fingerprint,
        "registered_as": "laptop",
        "services": ["8888", "web", "jupyter"],
        "until": {},
        "tickets": [],
    }
    assert Profile(profile).peers().get("laptop") is not None
    assert call(capsys, "peers", "rm", "laptop").out == "laptop is forgotten\n"
    assert Profile(profile).peers().get("laptop") is None


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["add", "nas", "p2p:short"], 2, "not a usable public key"),
        (["add", "NAS", KEY], 2, "'NAS' is not a tag"),
        (["add", "nas", KEY, "--services", "Web"], 2, "cannot read 'Web': 'Web' is not the name of a service"),
        (["add", "nas", KEY, "--services", "ssh=22"], 2, "cannot read 'ssh=22'"),
        (["allow", "nas", "web"], 2, "no peer is known here as 'nas'"),
        (["deny", "nas", "web"], 2, "no peer is known here as 'nas'"),
        (["rm", "nas"], 2, "no peer is known here as 'nas'"),
        (["show", "nas"], 2, "no peer is known here as 'nas'"),
        (["rename", "nas", "new"], 2, "no peer is known here as 'nas'"),
        (["allow", "nas", "web", "--until", "yesterday"], 2, "'yesterday' is no time"),
        (["ticket", "--services", "web", "--until", "1h", "--for", "nas"], 2, "no peer is known here as 'nas'"),
        (["ticket", "--services", "Web", "--until", "1h"], 2, "cannot read 'Web'"),
        (["ticket", "--services", ",", "--until", "1h"], 2, "an access ticket is for one service at least"),
        (["use", "p2pc1nonsense"], 2, "an access ticket"),
        (["use", "p2pt1abc"], 2, "that is a ticket for pairing, not an access ticket"),
        (["revoke", "nonsense"], 2, "that is no ticket and no name of one"),
        (["revoke", "0" * 32], 2, "no ticket of that name was made here"),
        (["drop", "0" * 32], 2, "no peer has given us a ticket of that name"),
        (["drop", "p2pc1abc"], 2, "that is no ticket and no name of one"),
    ],
)
def test_what_cannot_be_done_changes_nothing(words: list[str], code: int, text: str, capsys: Capture, profile: Path) -> None:
    result = call(capsys, "peers", *words)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith(f"p2ptunnel: {text}")
    assert Profile(profile).peers().all() == ()


def test_a_grant_is_shown_with_its_end(capsys: Capture, profile: Path) -> None:
    call(capsys, "peers", "add", "laptop", KEY, "--services", "ssh")
    allowed = call(capsys, "peers", "allow", "laptop", "web", "--until", "2099-01-31T18:00").out
    assert allowed == "laptop may open ssh, web (until 2099-01-31 18:00)\n"
    assert call(capsys, "peers").out.splitlines()[1].endswith("ssh, web (until 2099-01-31 18:00)")
    Profile(profile).peers().allow("laptop", "old", until=1_800_000_000.0 - 10**8)
    peer, head, ssh, web, old = call(capsys, "peers", "show", "laptop").out.splitlines()
    assert peer.split()[:3] == ["peer", "laptop", KEY]
    assert head.split() == ["MAY", "OPEN", "UNTIL"]
    assert (ssh.split(), web.split(), old.split()[0::3]) == (["ssh", "-"], ["web", "2099-01-31", "18:00"], ["old", "ended"])
    told = json.loads(call(capsys, "--json", "peers", "show", "laptop").out)
    assert (told["services"], sorted(told["until"])) == (["ssh", "web"], ["old", "web"])
    assert call(capsys, "peers", "allow", "laptop", "web").out == "laptop may open ssh, web\n"


def test_a_peer_is_renamed(capsys: Capture) -> None:
    call(capsys, "peers", "add", "laptop", KEY, "--services", "ssh")
    assert call(capsys, "peers", "rename", "laptop", "work").out == "laptop is work now\n"
    assert call(capsys, "peers", "show", "laptop").code == 2
    assert "it calls itself laptop, and is looked for by that name" in call(capsys, "peers", "show", "work").out.splitlines()
    assert "it may open nothing" not in call(capsys, "peers", "show", "work").out


def test_a_ticket_is_printed_kept_and_revoked(capsys: Capture, tmp_path: Path) -> None:
    home, laptop = ("--profile", tmp_path / "home"), ("--profile", tmp_path / "laptop")
    keys = {name: call(capsys, "--profile", tmp_path / name, "id").out.strip() for name in ("home", "laptop")}
    call(capsys, *home, "peers", "add", "laptop", keys["laptop"])
    call(capsys, *laptop, "peers", "add", "nas", keys["home"])
    made = call(capsys, *home, "peers", "ticket", "--services", "web,ssh", "--until", "2099-01-31T18:00", "--for", "laptop")
    ticket, name = made.out.strip(), made.err.split()[-1]
    assert made.err.startswith("for web, ssh until 2099-01-31 18:00; to end it before: p2ptunnel peers revoke ")
    kept = call(capsys, *laptop, "peers", "use", ticket)
    assert kept.out == "nas lets this machine open web, ssh until 2099-01-31 18:00\n"
    shown = call(capsys, *laptop, "peers", "show", "nas").out
    assert shown.splitlines()[-2].split() == ["GAVE", "US", "A", "TICKET", "FOR", "UNTIL", "NAME"]
    assert shown.splitlines()[-1].split() == ["web,", "ssh", "2099-01-31", "18:00", name]
    assert ticket[6:40] not in shown
    told = json.loads(call(capsys, *laptop, "--json", "peers", "show", "nas").out)
    assert [known["name"] for known in told["tickets"]] == [name]
    assert told["fingerprint"] == PublicKey.parse(keys["home"]).fingerprint
    listed = call(capsys, *home, "peers", "tickets").out.splitlines()
    assert listed[0].split() == ["NAME", "OPENS", "FOR", "UNTIL"]
    assert listed[1].split() == [name, "web,", "ssh", "laptop", "2099-01-31", "18:00"]
    assert "HAS OUR TICKET FOR" in call(capsys, *home, "peers", "show", "laptop").out
    assert call(capsys, *home, "peers", "revoke", name).out == f"{name} opens nothing any more\n"
    assert call(capsys, *home, "peers", "revoke", ticket).out == f"{name} opens nothing any more\n"
    assert Profile(tmp_path / "home").peers().is_revoked(name)
    assert call(capsys, *home, "peers", "tickets").out.splitlines()[1].split()[-1] == "revoked"
    [noted] = map(json.loads, call(capsys, *home, "--json", "peers", "tickets").out.splitlines())
    assert (noted["name"], noted["holder"], noted["fate"]) == (name, "laptop", "revoked")
    elsewhere = call(capsys, *laptop, "peers", "revoke", ticket)
    assert (elsewhere.code, ticket[6:40] in elsewhere.err) == (2, False)
    assert call(capsys, *laptop, "peers", "drop", name).out == "nas's ticket is forgotten\n"
    assert "GAVE US" not in call(capsys, *laptop, "peers", "show", "nas").out


def test_a_ticket_that_this_machine_cannot_use_is_refused_and_said_why(capsys: Capture, profile: Path) -> None:
    ended = datetime.fromtimestamp(1.7e9, UTC).astimezone()
    maker, other = Identity.from_seed(bytes(32)), Identity.from_seed(bytes([9]) * 32).public
    call(capsys, "peers", "add", "nas", KEY)
    ours = Profile(profile).identity()
    for ticket, text, hint in (
        (issue(ours, ("web",), 4e9), "this machine has made that ticket itself", "It is for the machine that you give it to."),
        (
            issue(maker, ("web",), 4e9, other),
            "that ticket is for another machine",
            "Ask for one for this machine's key: p2ptunnel id",
        ),
        (
            issue(maker, ("web",), 1.7e9),
            f"that ticket ended at {ended:%Y-%m-%d %H:%M}",
            "Ask for a new one there: p2ptunnel peers ticket",
        ),
    ):
        refused = call(capsys, "peers", "use", str(ticket))
        assert (refused.code, refused.err) == (2, f"p2ptunnel: {text}\nhint: {hint}\n")
    assert Profile(profile).peers().all()[0].tickets == ()
    unknown = call(capsys, "peers", "use", str(issue(Identity.generate(), ("web",), 4e9)))
    assert unknown.err.endswith("hint: Pair first with the machine that has made the ticket: p2ptunnel pair CODE\n")
    assert unknown.code == 2


def test_a_ticket_for_anybody_is_made_and_that_is_said(capsys: Capture) -> None:
    made = call(capsys, "peers", "ticket", "--services", "web", "--until", "2099-01-31")
    assert made.err.splitlines()[1] == (
        "any known peer that gets hold of it can use it; --for PEER makes one for that peer alone"
    )
    assert call(capsys, "peers", "tickets").out.splitlines()[1].split()[1:4] == ["web", "any", "2099-01-31"]


def test_without_a_ticket_it_is_said_how_to_make_one(capsys: Capture) -> None:
    assert tuple(call(capsys, "peers", "tickets")) == (0, "", "No ticket was made here: p2ptunnel peers ticket\n")


def test_a_ticket_may_stand_on_stdin(capsys: Capture, profile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticket = issue(Identity.from_seed(bytes(32)), ("web",), 4e9)
    call(capsys, "peers", "add", "nas", KEY)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{ticket}\n"))
    assert call(capsys, "peers", "use", "-").code == 0
    assert Profile(profile).peers().all()[0].tickets == (ticket,)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert call(capsys, "peers", "use", "-").err.startswith("p2ptunnel: no ticket stands on stdin\n")


def test_what_is_not_granted_is_not_denied_in_silence(capsys: Capture, profile: Path) -> None:
    call(capsys, "peers", "add", "laptop", KEY, "--services", "ssh,web")
    refused = call(capsys, "peers", "deny", "laptop", "web", "shh")
    assert (refused.code, refused.err) == (
        2,
        "p2ptunnel: laptop has no grant of shh here\nhint: It may open ssh, web; nothing was changed.\n",
    )
    assert Profile(profile).peers().all()[0].services == ("ssh", "web")


def test_a_key_has_one_name(capsys: Capture) -> None:
    call(capsys, "peers", "add", "laptop", KEY)
    refused = call(capsys, "peers", "add", "evil", KEY)
    assert (refused.code, refused.err) == (
        2,
        "p2ptunnel: that key is known here as laptop\nhint: To call it evil: p2ptunnel peers rename laptop evil\n",
    )


def test_a_peer_may_be_added_by_another_name_than_its_own(capsys: Capture, profile: Path) -> None:
    call(capsys, "peers", "add", "nas", KEY, "--registered-as", "home-nas")
    assert Profile(profile).peers().all()[0].wanted == "home-nas"


def test_who_cannot_be_forgotten_need_not_be_added(capsys: Capture) -> None:
    assert call(capsys, "peers", "rm", "nas").err.splitlines()[1:] == [
        "hint: `p2ptunnel peers` lists those that are known here."
    ]


def test_a_machine_is_no_peer_of_itself(capsys: Capture, profile: Path) -> None:
    own = str(Profile(profile).identity().public)
    result = call(capsys, "peers", "add", "me", own)
    assert result.err.splitlines() == [
        "p2ptunnel: that is the key of this very machine",
        "hint: `p2ptunnel id` on the other machine prints the one to add.",
    ]


def test_a_changed_key_is_refused(capsys: Capture) -> None:
    call(capsys, "peers", "add", "nas", KEY)
    other = str(Identity.generate().public)
    result = call(capsys, "peers", "add", "nas", other)
    assert (result.code, result.err) == (
        2,
        f"p2ptunnel: nas is known with another key, {KEY[:12]}…\n"
        "hint: Choose another name for this one; or forget the other: p2ptunnel peers rm nas\n",
    )


@pytest.fixture
def nas_with_keys(profile: Path) -> None:
    peers = Profile(profile).peers()
    peers.add("nas", Identity.generate().public)
    peers.set_ssh_host_keys("nas", "ssh", (ED, RSA))
    peers.set_ssh_host_keys("nas", "box", (RSA,))


@pytest.mark.usefixtures("nas_with_keys")
@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["nas.p2p"], [f"nas.p2p {ED}", f"nas.p2p {RSA}"]),
        (["nas"], [f"nas {ED}", f"nas {RSA}"]),
        (["[nas.p2p]:2222", "NAS.p2p"], [f"[nas.p2p]:2222 {ED}", f"[nas.p2p]:2222 {RSA}"]),
        (["alias", "nas.p2p"], [f"alias {ED}", f"alias {RSA}"]),
        (["--service", "box", "nas.p2p"], [f"nas.p2p {RSA}"]),
    ],
)
def test_ssh_is_given_the_told_keys_under_the_name_it_looks_for(words: list[str], lines: list[str], capsys: Capture) -> None:
    result = call(capsys, "known-hosts", *words)
    assert (result.code, result.out.splitlines(), result.err) == (0, lines, "")


@pytest.mark.usefixtures("nas_with_keys")
@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["pi.p2p"], 5, "no key is pinned for 'pi'"),
        (["--service", "other", "nas.p2p"], 1, "ssh to nas: it told no host key of its SSH server"),
    ],
)
def test_without_a_told_key_ssh_is_stopped_with_words(words: list[str], code: int, text: str, capsys: Capture) -> None:
    result = call(capsys, "known-hosts", *words)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith(f"p2ptunnel: {text}")


def test_the_stanza_finds_this_profile_again_from_anywhere(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(capsys, "--profile", "my profile", "ssh-config", "--rendezvous", "rv.example:7000", "--service", "box")
    path = tmp_path / "my profile"
    flags = f"-P -m p2ptunnel --profile '{path}' --rendezvous rv.example:7000"
    assert result.out.splitlines()[0] == "Host *.p2p"
    assert f"  ProxyCommand {sys.executable} {flags} pipe --host-keys %n box" in result.out.splitlines()
    assert "known-hosts --service box %H %n" in result.out
    assert json.loads(call(capsys, "--json", "ssh-config").out)["config"].startswith("Host *.p2p\n")


def fake_ssh(directory: Path, version: str) -> None:
    """Put a program called ssh before all others, which prints its arguments."""
    directory.mkdir()
    script = directory / "ssh"
    script.write_text(f'#!/bin/sh\n[ "$1" = -V ] && {{ echo "{version}" >&2; exit; }}\nprintf "%s\\n" "$@"\nexit 7\n')
    script.chmod(0o700)


def test_an_old_ssh_gets_a_file(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, profile: Path) -> None:
    fake_ssh(tmp_path / "bin", "OpenSSH_8.4p1 Debian-5")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    stanza = call(capsys, "ssh-config").out
    assert f'UserKnownHostsFile "{profile}/ssh_known_hosts"' in stanza
    assert f"pipe --known-hosts {profile}/ssh_known_hosts %n ssh" in stanza
    assert "KnownHostsCommand" not in stanza


@pytest.mark.parametrize("command", [["ssh", "nas"], ["ssh-config"]])
def test_without_ssh_it_is_said(command: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = call(capsys, *command)
    assert (result.code, result.err.splitlines()[0]) == (2, "p2ptunnel: no ssh program is installed here")


@pytest.mark.usefixtures("nas_with_keys")
def test_ssh_gets_our_options_then_what_follows_the_name_and_its_code_is_ours(tmp_path: Path) -> None:
    fake_ssh(tmp_path / "bin", "OpenSSH_9.2p1")
    words = ("--rendezvous", "a:1", "ssh", "pi@nas", "-v", "--tag", "-p", "22", "--", "echo", "a b")
    done = subprocess.run(
        program(*words),
        env=environment(PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        check=False,
    )
    arguments = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (7, "")
    assert arguments[0] == "-o"
    assert arguments[1].startswith("ProxyCommand=")
    assert arguments[arguments.index("pi@nas.p2p") + 1 :] == ["-v", "--tag", "-p", "22", "--", "echo", "a b"]


@pytest.mark.parametrize(
    ("destination", "code", "text"),
    [("pi@pi", 5, "no key is pinned for 'pi'"), ("pi@", 2, "'' is not a tag"), ("PI", 2, "'PI' is")],
)
def test_ssh_to_nobody_is_told_once(destination: str, code: int, text: str, capsys: Capture) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("OpenSSH's client is not installed")
    result = call(capsys, "ssh", destination, "uptime")
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith(f"p2ptunnel: {text}")


def test_status_answers_without_network(capsys: Capture, profile: Path) -> None:
    key = Profile(profile).identity().public
    call(capsys, "peers", "add", "laptop", KEY, "--services", "ssh")
    lines = call(capsys, "--tag", "nas", "status").out.splitlines()
    assert lines[0] == f"self    nas  {key}  {profile}"
    assert lines[1] == "server  none configured"
    assert lines[3].split() == ["laptop", KEY, "ssh"]
    told = json.loads(call(capsys, "--tag", "nas", "status", "--json").out)
    assert told == {
        "schema": 1,
        "self": {"tag": "nas", "key": str(key), "profile": str(profile)},
        "rendezvous": [],
        "peers": [{"tag": "laptop", "key": KEY, "services": ["ssh"]}],
        "programs": [],
    }
    assert call(capsys, "status", "--check").code == 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_script_calls_this_program(shell: str, capsys: Capture) -> None:
    if shell == "bash" and shutil.which("bash") is None:
        pytest.skip("bash is not installed; click asks it for its version")
    assert "_P2PTUNNEL_COMPLETE" in call(capsys, "completion", shell).out


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("p2ptunnel for", {"forward"}),
        ("p2ptunnel forward l", {"laptop"}),
        ("p2ptunnel peers ", PEERS_COMMANDS),
    ],
)
def test_tab_offers_commands_and_peers(line: str, offered: set[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    call(capsys, "peers", "add", "laptop", KEY)
    monkeypatch.setenv("_P2PTUNNEL_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    result = call(capsys)
    assert {row.partition(",")[2] for row in result.out.split()} == offered


def test_tab_says_nothing_about_a_profile_that_cannot_be_read(
    profile: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(capsys, "peers", "add", "laptop", KEY)
    (profile / "peers.toml").write_text("no toml")
    for name, value in {"_P2PTUNNEL_COMPLETE": "bash_complete", "COMP_WORDS": "p2ptunnel forward ", "COMP_CWORD": "2"}.items():
        monkeypatch.setenv(name, value)
    result = call(capsys)
    assert (result.code, result.out.strip(), result.err) == (0, "", "")
