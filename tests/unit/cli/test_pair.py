"""`pair` as people use it: one machine waits, another comes with what it was given."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.running import Result, environment, program, started

pytestmark = pytest.mark.e2e


class Network:
    """A server, and machines that know nobody; each has a profile of its own, and `home` a tag that nobody has had before."""

    def __init__(self, directory: Path, server: str) -> None:
        self.directory, self.server = directory, server
        self.home = f"home-{os.urandom(4).hex()}"

    def words(self, machine: str, *words: object, server: str | None = None) -> list[str]:
        own = ["--profile", str(self.directory / machine), "--tag", machine]
        return [*own, *(["--rendezvous", server or self.server] if server != "" else []), *map(str, words)]

    def run(self, machine: str, *words: object, server: str | None = None, stdin: str = "") -> Result:
        argv = program(*self.words(machine, *words, server=server))
        done = subprocess.run(argv, env=environment(), input=stdin, capture_output=True, text=True, timeout=15, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    @contextlib.contextmanager
    def inviting(self, *words: object) -> Generator[tuple[subprocess.Popen[str], dict[str, Any]]]:
        """A home machine that waits for a guest, and what it said first."""
        with started(*self.words(self.home, "--json", "pair", *words)) as process:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with started("--json", "--profile", tmp_path_factory.mktemp("server"), "rendezvous", "--listen", "127.0.0.1:0") as process:
        assert process.stdout is not None
        host, port = json.loads(process.stdout.readline())["address"]
        yield f"{host}:{port}"


@pytest.fixture
def network(tmp_path: Path, server: str) -> Network:
    return Network(tmp_path, server)


@contextlib.contextmanager
def lent_terminal() -> Generator[tuple[int, int]]:
    """The two ends of a terminal: ours, and a program's."""
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


def read_until(descriptor: int, wanted: bytes) -> bytes:
    """Read what a terminal shows until `wanted` is in it."""
    shown = b""
    while wanted not in shown:
        shown += os.read(descriptor, 4096)
    return shown


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line: dict[str, Any] = json.loads(process.stdout.readline())
    return line


# --- who was invited --------------------------------------------------------------------------------------------------


def test_a_code_and_a_ticket_are_printed_and_either_pairs(network: Network) -> None:
    with started(*network.words(network.home, "pair", "--services", "web", "--uses", "1")) as home:
        assert home.stdout is not None
        code, ticket = (home.stdout.readline().split() for _ in range(2))
        assert (code[0], ticket[0]) == ("code", "ticket")
        assert code[1].startswith(f"{network.home}-")
        assert ticket[1].startswith("p2pt1")
        guest = network.run("laptop", "pair", code[1])
        assert guest.out == f"{network.home} is paired; it may open nothing here. This machine may open web there\n"
        assert guest.err == f"next:  p2ptunnel forward {network.home} web\n"
        assert home.stdout.readline() == "laptop is paired; it may open web here\n"
        assert home.wait(timeout=10) == guest.code == 0
    assert "laptop" in network.run(network.home, "peers").out
    assert network.home in network.run("laptop", "peers").out


def test_with_json_each_step_is_an_object(network: Network) -> None:
    with network.inviting("--services", "ssh,web", "--as", "my-laptop", "--expires", "1h") as (home, invited):
        assert (invited["event"], invited["tag"], invited["expires"], invited["uses"]) == ("invited", network.home, 3600, 1)
        guest = network.run("laptop", "--json", "pair", "--as", "nas", invited["ticket"])
        host_side, guest_side = told(home), json.loads(guest.out)
        assert home.wait(timeout=10) == 0
    assert (host_side["event"], host_side["tag"], host_side["services"]) == ("paired", "my-laptop", ["ssh", "web"])
    assert (guest_side["event"], guest_side["tag"], guest_side["offered"]) == ("paired", "nas", ["ssh", "web"])
    assert guest.err == "next:  p2ptunnel ssh nas\n"


def test_a_code_may_be_typed_in_words_cut_short_and_is_read_back(network: Network) -> None:
    with network.inviting() as (home, invited):
        *_, one, two, three = invited["code"].split("-")
        guest = network.run("laptop", "pair", network.home, one[:4], two.upper(), three[:4])
        assert guest.code == home.wait(timeout=10) == 0
    if invited["code"] != f"{network.home}-{one[:4]}-{two}-{three[:4]}":
        assert f"reading it as {invited['code']}" in guest.err


def test_a_ticket_does_not_send_a_machine_to_its_own_services(network: Network) -> None:
    with network.inviting() as (_, invited):
        ticket = invited["ticket"]
        guest = network.run("laptop", "pair", ticket[:50], ticket[50:], server="")
    assert guest.code == 5
    assert guest.err.splitlines() == [
        f"asking {network.server}, the server that the ticket names",
        f"p2ptunnel: pairing failed: the ticket sends this machine to {network.server}, a loopback address",
        f"hint: If you run a server there, name it yourself: --rendezvous {network.server}, "
        f"or Peer(rendezvous={network.server!r}).",
    ]


def test_a_ticket_may_be_read_from_stdin(network: Network) -> None:
    with network.inviting() as (home, invited):
        guest = network.run("laptop", "pair", "-", stdin=f"{invited['ticket']}\n")
        assert guest.code == home.wait(timeout=10) == 0


def test_a_code_that_is_typed_at_the_prompt_is_not_shown(network: Network) -> None:
    with network.inviting() as (home, invited), lent_terminal() as (ours, theirs):
        argv = program(*network.words("laptop", "pair", "-"))
        with subprocess.Popen(argv, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs) as guest:
            shown = read_until(ours, b"(what you type is not shown): ")
            os.write(ours, invited["code"].encode() + b"\n")
            shown += read_until(ours, b" is paired")
            assert guest.wait(10) == home.wait(timeout=10) == 0
    assert invited["code"].encode() not in shown


def test_who_pairs_again_keeps_its_name_and_may_be_given_another(network: Network) -> None:
    for flags, said in (
        (("--as", "nas"), f"nas (it calls itself {network.home}) is paired"),
        ((), f"nas (it calls itself {network.home}) is paired again, and keeps that name"),
        (("--as", "box"), f"nas (it calls itself {network.home}) is paired again, and called box from now on"),
    ):
        with network.inviting("--expires", "1h") as (home, invited):
            guest = network.run("laptop", "pair", *flags, invited["ticket"])
            assert home.wait(timeout=10) == 0
        assert guest.out == f"{said}; it may open nothing here. This machine may open nothing there\n"
    assert network.run("laptop", "peers").out.splitlines()[1].split()[0] == "box"


def test_a_second_invitation_is_refused_while_the_first_is_open(network: Network) -> None:
    with network.inviting() as (home, _):
        second = network.run(network.home, "pair")
    assert second.code == 2
    assert second.err == (
        f"p2ptunnel: another p2ptunnel pair (pid {home.pid}) runs here with the tag '{network.home}'\n"
        "hint: Its code and its ticket are good for this; or end it first.\n"
    )


def test_at_a_private_server_it_is_said_what_no_ticket_holds(tmp_path: Path) -> None:
    private = ("rendezvous", "--listen", "127.0.0.1:0", "--join-token-file", tmp_path / "token")
    with started("--json", "--profile", tmp_path / "server", *private) as process:
        spec = told(process)["spec"].partition("#join:")[0]
        token = (tmp_path / "token").read_text().strip()
        network = Network(tmp_path, f"{spec}#join:{token}")
        with started(*network.words(network.home, "pair"), stderr=subprocess.PIPE) as home:
            assert home.stdout is not None
            assert home.stderr is not None
            code = home.stdout.readline().split()[1]
            refused = network.run("stranger", "pair", code, server=spec)
            assert (refused.code, "it serves its members only" in refused.err) == (5, True)
            assert "host:port#p2p:…#join:…" in refused.err
            assert network.run("laptop", "pair", code).code == home.wait(timeout=10) == 0
            said = home.stderr.read()
    assert (
        "the server is private: the other machine needs its whole line first, host:port#p2p:…#join:…, in config.toml there\n"
    ) in said
    assert token not in said


def test_how_long_it_is_good_is_said_as_people_say_it(network: Network) -> None:
    for expires, text in (("400d", "400 d"), ("90s", "1.5 min"), ("3s", "3 s")):
        with started(*network.words(network.home, "pair", "--expires", expires), stderr=subprocess.PIPE) as home:
            assert home.stdout is not None
            assert home.stderr is not None
            home.stdout.readline()
            home.terminate()
            assert f"on the other machine, within {text}:  p2ptunnel pair " in home.stderr.read()


def test_both_show_the_same_beginnings_of_keys(network: Network) -> None:
    with started(*network.words(network.home, "pair", "--show"), stderr=subprocess.PIPE) as home:
        assert home.stdout is not None
        assert home.stderr is not None
        guest = network.run("laptop", "pair", "--show", home.stdout.readline().split()[1])
        assert home.wait(timeout=10) == 0
        shown = home.stderr.read()
    keys = {machine: network.run(machine, "id").out.split()[1][4:12] for machine in (network.home, "laptop")}
    assert f"keys: ours {keys[network.home]}, laptop's {keys['laptop']}" in shown
    assert f"keys: ours {keys['laptop']}, {network.home}'s {keys[network.home]}" in guest.err


def test_the_qr_code_is_shown_when_it_is_asked_for_and_not_to_a_file_by_itself(network: Network) -> None:
    for flags, is_shown in (((), False), (("--qr",), True), (("--no-qr",), False)):
        with started(*network.words(network.home, "pair", *flags), stderr=subprocess.PIPE) as home:
            assert home.stdout is not None
            assert home.stderr is not None
            home.stdout.readline()
            home.terminate()
            assert ("█" in home.stderr.read()) is is_shown


# --- who was not ------------------------------------------------------------------------------------------------------


def test_a_wrong_code_is_5_and_the_host_shows_from_where_it_came_and_the_code_that_holds_now(network: Network) -> None:
    with network.inviting() as (home, invited):
        wrong = "able-able-able" if not invited["code"].endswith("able-able-able") else "zoo-zoo-zoo"
        guest = network.run("laptop", "--json", "pair", f"{network.home}-{wrong}")
        failed = told(home)
    assert guest.code == 5
    assert json.loads(guest.out)["error"]["type"] == "PairingError"
    assert guest.err == (
        "p2ptunnel: pairing failed: the code or ticket was wrong, used or too old\n"
        "hint: Ask for the code that is shown there now; only if none is: p2ptunnel pair\n"
    )
    assert failed["event"] == "pairing_failed"
    assert failed["reason"] == "it tried a wrong code"
    assert failed["source"].startswith("127.0.0.1:")
    assert failed["code"] not in {None, invited["code"]}


def test_nobody_who_comes_is_6(network: Network) -> None:
    result = network.run(network.home, "pair", "--expires", "0.2s")
    assert result.code == 6
    assert result.err.endswith(
        "p2ptunnel: pairing failed: nobody came in 0.2 s\nhint: `p2ptunnel pair` makes a new invitation.\n"
    )


def test_nobody_who_waits_is_4(network: Network) -> None:
    result = network.run("laptop", "pair", f"{network.home}-able-able-able")
    assert result.code == 4
    assert result.err == (
        f"p2ptunnel: no peer is registered as '{network.home}'\n"
        f"hint: Check the name, and that `p2ptunnel pair` still waits on {network.home}.\n"
    )


def test_a_signal_closes_the_invitation(network: Network) -> None:
    with network.inviting() as (home, invited):
        home.send_signal(signal.SIGTERM)
        assert home.wait(timeout=10) == 143
    assert network.run("laptop", "pair", invited["code"]).code == 4
