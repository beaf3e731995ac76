"""The programs as people start them: a server, a machine that serves, and one that comes to it, all on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import xml.etree.ElementTree as ET
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from p2ptunnel.identity.store import Profile
from tests.unit.cli.running import environment, program, started
from tests.unit.ssh.sshd import needs_openssh, running_sshd

pytestmark = pytest.mark.e2e


class Network:
    """A rendezvous server, `nas` that serves, `laptop` that may open some of it, `shed` and `cellar` that serve at times and
    know the laptop, `attic` that never serves, and `stranger` that nobody knows.
    """

    def __init__(self, directory: Path, rendezvous: str) -> None:
        self.directory = directory
        self.rendezvous = rendezvous

    def words(self, machine: str, *words: object) -> list[str]:
        """Return the words of a command on that machine."""
        return ["--profile", str(self.directory / machine), "--rendezvous", self.rendezvous, "--tag", machine, *map(str, words)]

    def run(self, machine: str, *words: object, input: str | None = "") -> subprocess.CompletedProcess[str]:
        """Run a command on that machine to its end."""
        argv = program(*self.words(machine, *words))
        return subprocess.run(argv, env=environment(), input=input, capture_output=True, text=True, timeout=15, check=False)

    def start(self, machine: str, *words: object) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        """Start a command on that machine."""
        return started(*self.words(machine, *words))


def echo_server(listener: socket.socket) -> None:
    """Answer each connection, once it has said everything, with the number of its bytes and its last line."""
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=answer, args=(client,), daemon=True).start()


def answer(client: socket.socket) -> None:
    with client, contextlib.suppress(OSError):
        count, last = 0, b""
        while data := client.recv(65536):
            count, last = count + len(data), data
        client.sendall(b"%d %s" % (count, last[-20:]))


@pytest.fixture(scope="module")
def target() -> Iterator[int]:
    """The port of the echo server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=echo_server, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture(scope="module")
def dead() -> Iterator[int]:
    """A port that nobody listens on."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture(scope="module")
def sshd_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path, str]]:
    """The port of an SSH server, the key file that opens it, and the user."""
    with running_sshd(tmp_path_factory.mktemp("sshd")) as sshd:
        yield sshd.address[1], sshd.user_key, sshd.user


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    directory = tmp_path_factory.mktemp("machines")
    with started("--json", "--profile", directory / "server", "rendezvous", "--listen", "127.0.0.1:0") as server:
        assert server.stdout is not None
        host, port = json.loads(server.stdout.readline())["address"]
        profiles = {name: Profile(directory / name) for name in ("nas", "shed", "cellar", "attic", "laptop", "stranger")}
        keys = {name: profile.identity().public for name, profile in profiles.items()}
        profiles["nas"].peers().add("laptop", keys["laptop"], ("echo", "dead"))
        profiles["shed"].peers().add("laptop", keys["laptop"], ("ssh",))
        profiles["stranger"].peers().add("nas", keys["nas"])
        profiles["cellar"].peers().add("laptop", keys["laptop"], ("echo",))
        for known in ("nas", "shed", "cellar", "attic"):
            profiles["laptop"].peers().add(known, keys[known])
        yield Network(directory, f"{host}:{port}")


@pytest.fixture(scope="module")
def serving(network: Network, target: int, dead: int) -> Iterator[subprocess.Popen[str]]:
    services = (f"echo={target}", f"dead={dead}", f"private={target}")
    with network.start("nas", "--json", "serve", *services) as process:
        yield process


@pytest.fixture(scope="module")
def served(serving: subprocess.Popen[str]) -> dict[str, Any]:
    """What `serve` said when it was up."""
    assert serving.stdout is not None
    told: dict[str, Any] = json.loads(serving.stdout.readline())
    return told


@contextlib.contextmanager
def forwarding(network: Network, *words: object) -> Generator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    with network.start("laptop", "--json", "forward", "nas", *words) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())


def carrying(network: Network) -> list[dict[str, Any]]:
    """Return the laptop's programs as soon as one of them has a stream."""
    while True:
        programs: list[dict[str, Any]] = json.loads(network.run("laptop", "--json", "status").stdout)["programs"]
        if any(connection["streams"] for program in programs for connection in program["connections"]):
            return programs


def test_serve_tells_what_as_whom_and_how_it_is_seen(served: dict[str, Any], network: Network) -> None:
    assert (served["schema"], served["event"], served["tag"]) == (1, "serving", "nas")
    assert served["services"] == ["echo", "dead", "private"]
    assert served["rendezvous"] == [network.rendezvous]
    assert served["observed"][0] == "127.0.0.1"


@pytest.mark.usefixtures("served")
def test_a_forward_carries_question_and_answer(network: Network, target: int) -> None:
    for spec in ("0:echo", f"0:127.0.0.1:{target}"):
        with forwarding(network, spec) as (_, told):
            assert told == {
                "schema": 1,
                "event": "listening",
                "address": ["127.0.0.1", told["address"][1]],
                "peer": "nas",
                "target": spec.removeprefix("0:"),
            }
            with socket.create_connection(tuple(told["address"])) as client:
                client.sendall(b"question")
                client.shutdown(socket.SHUT_WR)
                assert client.recv(100) == b"8 question"
                assert client.recv(100) == b""


@pytest.mark.usefixtures("served")
def test_status_shows_the_connections_of_the_programs_that_run(network: Network) -> None:
    forward = forwarding(network, "0:echo", "--relay", "never")  # no path but one, however slow this machine is
    with forward as (process, told), socket.create_connection(tuple(told["address"])) as client:
        client.sendall(b"x")
        [program] = carrying(network)
        assert (program["command"], program["pid"]) == ("forward", process.pid)
        [connection] = program["connections"]
        path = connection.pop("path")
        assert connection == {"peer": "nas", "state": "open", "streams": 1, "resumes": 0, "suspended_for": None}
        assert path["remote"][0] == "127.0.0.1"
        lines = network.run("laptop", "status").stdout.splitlines()
        assert lines[-2].split() == ["PROGRAM", "PEER", "STATE", "PATH", "RTT", "LOSS", "STREAMS", "RESUMES"]
        assert lines[-1].startswith(f"forward ({process.pid})  nas   open   lan tcp 127.0.0.1:")
        [other] = json.loads(network.run("nas", "--json", "status").stdout)["programs"]
        assert (other["command"], other["connections"][0]["peer"]) == ("serve", "laptop")
    assert json.loads(network.run("laptop", "--json", "status").stdout)["programs"] == []


def test_a_connection_that_is_lost_for_good_is_told_in_words_and_objects(network: Network, target: int) -> None:
    reader, writer = os.pipe()
    with (
        os.fdopen(reader) as said,
        os.fdopen(writer, "w") as stderr,
        network.start("cellar", "--json", "serve", f"echo={target}") as serving,
        started(
            *network.words("laptop", "--json", "--relay", "never", "--resume-timeout", "1", "forward", "cellar", "0:echo"),
            stderr=stderr,
        ) as forward,
    ):
        assert serving.stdout is not None
        assert forward.stdout is not None
        serving.stdout.readline()
        address = json.loads(forward.stdout.readline())["address"]
        with socket.create_connection(tuple(address)) as client:
            client.sendall(b"x")
            events = [json.loads(forward.stdout.readline())]
            carrying(network)
            serving.kill()
            while events[-1]["event"] != "session_expired":
                events.append(json.loads(forward.stdout.readline()))
            with pytest.raises(ConnectionResetError):
                client.recv(100)
        lost, expired = [event for event in events if event["event"] in {"channel_lost", "session_expired"}]
        assert {(event["schema"], event["peer"], event["session"]) for event in events} == {(1, "cellar", 1)}
        assert lost["patience"] == 1
        assert 1 <= expired["gap"] < 10
        cause = lost["cause"].rpartition("] ")[2]
        first = said.readline()
        if first.startswith("cellar: moved to"):  # from the relay, in time
            first = said.readline()
        assert first == f"cellar: connection lost ({cause}); waiting up to 1 s\n"
        assert said.readline().startswith("cellar: gave up after ")
        assert forward.poll() is None  # it goes on listening: the next client asks for the peer anew


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("spec", ["0:dead", "0:private", "0:nothing"])
def test_what_cannot_be_had_is_a_reset_and_the_forward_lives_on(spec: str, network: Network) -> None:
    with forwarding(network, spec) as (process, told):
        for _ in range(2):
            with socket.create_connection(tuple(told["address"])) as client, pytest.raises(ConnectionResetError):
                client.recv(100)
        assert process.poll() is None


def test_a_forward_listens_before_the_peer_is_there(network: Network) -> None:
    with forwarding(network, "0:echo") as (_, told), socket.create_connection(tuple(told["address"])):
        pass


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGHUP, 0), (signal.SIGINT, 130)])
def test_a_signal_closes_a_forward(number: int, code: int, network: Network) -> None:
    with forwarding(network, "0:echo") as (process, told):
        process.send_signal(number)
        assert process.wait(timeout=10) == code
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(tuple(told["address"]))


def test_forward_prints_where_to_where(network: Network) -> None:
    with network.start("laptop", "forward", "nas", "0:echo", "*:0:8888") as process:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        assert first.startswith("127.0.0.1:")
        assert first.endswith(" -> nas echo\n")
        assert second.endswith(" -> nas 8888\n")


def test_a_taken_port_is_1_and_says_how_to_go_on(network: Network, target: int) -> None:
    done = network.run("laptop", "forward", "nas", f"{target}:echo")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"p2ptunnel: 127.0.0.1:{target} is taken by another program\nhint: `p2ptunnel forward nas 0:echo` picks a free port.\n"
    )


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("said", ["", "x", "line\n" * 100_000], ids=["nothing", "little", "much"])
def test_pipe_carries_input_its_end_and_the_answer(said: str, network: Network) -> None:
    done = network.run("laptop", "pipe", "nas", "echo", input=said)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(said)} {said[-20:]}"


@pytest.mark.usefixtures("served")
def test_pipe_reads_files_and_null_and_takes_ssh_names(network: Network, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from a file")
    for path, expected in ((tmp_path / "file", "11 from a file"), (Path(os.devnull), "0 ")):
        with path.open() as file:
            argv = program(*network.words("laptop", "pipe", "NAS.p2p", "echo"))
            done = subprocess.run(argv, env=environment(), stdin=file, capture_output=True, text=True, timeout=15, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


@pytest.mark.usefixtures("served")
def test_pipe_whose_reader_went_away_ends_silently_with_141(network: Network) -> None:
    with network.start("laptop", "pipe", "nas", "echo") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        process.stdin.write("x")
        process.stdin.close()
        assert process.wait(timeout=10) == 141


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_closed_standard_streams_are_taken_for_empty_ones(closed: str, network: Network) -> None:
    argv = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *program(*network.words("laptop", "pipe", "nas", "echo"))]
    done = subprocess.run(argv, env=environment(), input="", capture_output=True, text=True, timeout=15, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "" if ">" in closed else "0 ", "")


@pytest.mark.usefixtures("served")
def test_pipe_to_a_full_disk_says_so(network: Network) -> None:
    with open("/dev/full", "w") as full:
        argv = program(*network.words("laptop", "pipe", "nas", "echo"))
        done = subprocess.run(
            argv, env=environment(), input="x", stdout=full, stderr=subprocess.PIPE, text=True, timeout=15, check=False
        )
    assert (done.returncode, done.stderr) == (1, "p2ptunnel: cannot write to stdout: No space left on device\n")


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("machine", "words", "code", "text", "hint"),
    [
        (
            "laptop",
            ["nas", "dead"],
            1,
            "'dead' on nas cannot be reached: connection refused",
            "nas is reached; start the program",
        ),
        ("laptop", ["nas", "jupiter"], 5, "nas does not serve 'jupiter' to this machine", "Served to you: echo, dead."),
        ("laptop", ["nas", "private"], 5, "nas does not serve 'private' to this machine", "Served to you: echo, dead."),
        ("laptop", ["shed", "echo"], 4, "no peer is registered as 'shed'", "`p2ptunnel serve` is running on shed"),
        ("stranger", ["nas", "echo"], 5, "nas does not know this machine's key", "`p2ptunnel pair` on nas prints a code"),
        ("laptop", ["who", "echo"], 5, "no key is pinned for 'who'", "p2ptunnel pair CODE"),
        ("laptop", ["nas", "a:b"], 2, "cannot read 'a:b': 'b' is not a port", "9000:host:80"),
    ],
)
def test_each_failure_of_pipe_has_its_text_and_code(
    machine: str, words: list[str], code: int, text: str, hint: str, network: Network
) -> None:
    done = network.run(machine, "pipe", *words)
    assert (done.returncode, done.stdout) == (code, "")
    first, second = done.stderr.splitlines()
    assert first == f"p2ptunnel: {text}"
    assert hint in second


def test_a_server_that_is_not_there_is_4(network: Network, dead: int) -> None:
    argv = program("--profile", network.directory / "laptop", "--rendezvous", f"127.0.0.1:{dead}", "pipe", "nas", "echo")
    done = subprocess.run(argv, env=environment(), input="", capture_output=True, text=True, timeout=15, check=False)
    assert done.returncode == 4
    assert done.stderr.startswith(f"p2ptunnel: 127.0.0.1:{dead} did not answer over UDP or TCP in ")
    assert done.stderr.endswith(
        f"hint: Is `p2ptunnel rendezvous` running there, and do its firewalls let in UDP and TCP to port {dead}?\n"
    )


def test_status_and_netcheck_ask_the_server(network: Network, dead: int) -> None:
    told = json.loads(network.run("laptop", "status", "--json").stdout)
    [server] = told["rendezvous"]
    assert server["server"] == network.rendezvous
    assert server["observed"][0] == "127.0.0.1"
    assert 0 < server["rtt"] < 5
    lost = network.run("laptop", "status", "--check", "--rendezvous", f"127.0.0.1:{dead}", "--timeout", "0.5")
    assert lost.returncode == 3
    assert f"server  127.0.0.1:{dead}  did not answer over UDP or TCP in 0.5 s" in lost.stdout
    lines = network.run("laptop", "netcheck").stdout.splitlines()
    assert lines[0].startswith(f"server:                 {network.rendezvous}, ")
    assert {"pub", "pr", "symR", "dbl"} <= {line.split()[0] for line in lines if line}
    assert lines[-1].startswith("No NAT")
    assert json.loads(network.run("laptop", "netcheck", "--json").stdout)["verdict"] == lines[-1]


def test_explain_tells_of_each_way_and_draws_it(network: Network, served: dict[str, Any], tmp_path: Path) -> None:
    picture = tmp_path / "nas.svg"
    done = network.run("laptop", "explain", served["tag"], "--svg", picture)
    assert (done.returncode, done.stderr) == (0, "")
    head, *ways, verdict = done.stdout.splitlines()
    assert head.split() == ["START", "END", "WAY", "KIND", "OUTCOME", "WHAT"]
    assert {"server", "TCP", "TLS"} <= {way.split()[4] for way in ways}
    assert verdict.startswith("nas: connected, lan tcp 127.0.0.1:")
    assert ET.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    told = json.loads(network.run("laptop", "--json", "explain", served["tag"]).stdout)
    assert told["schema"] == 1
    assert set(told["tries"][0]) >= {"way", "kind", "remote", "start_ms", "end_ms", "outcome", "reason", "next_step"}


def test_explain_of_a_peer_that_is_away_ends_with_4_and_says_what_to_do(network: Network) -> None:
    done = network.run("laptop", "explain", "attic")
    assert done.returncode == 4
    assert "no peer is registered as 'attic'\nnext: Check the tag" in done.stdout
    assert network.run("laptop", "explain", "attic", "--svg", "/nowhere/at/all.svg").returncode == 2


def test_ping_tells_each_round_trip_and_over_what(network: Network, served: dict[str, Any]) -> None:
    done = network.run("laptop", "ping", served["tag"], "-c", "1")
    assert (done.returncode, done.stderr) == (0, "")
    first, last = done.stdout.splitlines()
    assert re.fullmatch(r"nas: 1: [0-9.]+ ms over (lan|relay) tcp 127\.0\.0\.1:\d+", first)
    assert last.startswith("nas: 1 of 1 answered; ")


def test_ping_until_direct_ends_with_the_first_direct_answer(network: Network, served: dict[str, Any]) -> None:
    done = network.run("laptop", "--json", "ping", served["tag"], "--until-direct")
    assert done.returncode == 0
    *pongs, summary = map(json.loads, done.stdout.splitlines())
    assert [pong["event"] for pong in pongs] == ["pong"] * len(pongs)
    assert pongs[-1]["path"]["kind"] == "lan"
    assert (summary["event"], summary["is_direct"], summary["answered"]) == ("summary", True, len(pongs))


def test_ping_of_a_peer_that_is_away_ends_as_every_call(network: Network) -> None:
    assert network.run("laptop", "ping", "attic").returncode == 4


def test_a_name_that_another_key_owns_is_refused(network: Network, served: dict[str, Any]) -> None:
    done = network.run("stranger", "--tag", served["tag"], "serve", "8888")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == (
        "p2ptunnel: the tag 'nas' belongs to another key\n"
        "hint: Choose another tag; or the server's operator frees it: p2ptunnel rendezvous tags free nas\n"
    )


def test_serve_says_with_v_which_streams_come_and_go(network: Network, target: int, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        started(
            *network.words("shed", "serve", "-v", f"echo={target}", "--allow", "laptop=echo"),
            stderr=stderr,
        ) as serving,
    ):
        assert serving.stdout is not None
        assert serving.stdout.readline().startswith("serving echo as shed (127.0.0.1:")
        assert network.run("laptop", "--relay", "never", "pipe", "shed", "echo", input="x").stdout == "1 x"
        serving.terminate()
        assert serving.wait(timeout=10) == 0
    first, *lines = log.read_text().splitlines()
    assert first.startswith("laptop: connected over 127.0.0.1:")
    assert lines == ["laptop opened echo", "laptop is done with echo"]


def test_serve_says_what_nobody_may_open(network: Network, target: int) -> None:
    argv = program(*network.words("stranger", "--tag", "idle", "serve", f"web={target}"))
    with subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert process.stderr.readline() == "nobody may open web yet: p2ptunnel peers allow PEER web\n"
        process.terminate()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["8888", "8888=9999"], "'8888' is served twice"),
        (["8888", "--allow", "laptop=web"], "--allow laptop=web: 'web' is not served"),
        (["8888", "--allow", "LAPTOP"], "'LAPTOP' is not a tag"),
        (["jupyter"], "cannot read 'jupyter': it says neither port nor address"),
        (["any"], "cannot read 'any': it does not say what may be reached"),
        (["8888", "--to", "10.0.0.0/8:80"], "--to says what the service `any` reaches, which is not served"),
        (["any", "--to", "10.0.0.1/8:80"], "cannot read '10.0.0.1/8:80'"),
        (["8888", "--allow", "laptop", "--until", "yesterday"], "'yesterday' is no time"),
        (["8888", "--until", "2h"], "--until says when --allow ends, and nobody is allowed\nhint: p2ptunnel serve web --allow"),
        (["8888", "--ask"], "--ask needs a terminal to ask on"),
    ],
)
def test_what_serve_cannot_do_is_2(words: list[str], text: str, network: Network) -> None:
    done = network.run("nas", "serve", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"p2ptunnel: {text}")


@pytest.mark.usefixtures("served")
def test_any_is_what_to_reaches(network: Network, target: int) -> None:
    words = ("serve", "any", "--to", f"127.0.0.1:{target}", "--allow", "laptop", "--until", "1h")
    gate, laptop = (Profile(network.directory / name) for name in ("gate", "laptop"))
    gate.peers().add("laptop", laptop.identity().public)
    laptop.peers().add("gate", gate.identity().public)
    with network.start("gate", *words) as serving:
        assert serving.stdout is not None
        serving.stdout.readline()
        done = network.run("laptop", "pipe", "gate", f"127.0.0.1:{target}", input="through any")
        assert (done.returncode, done.stdout, done.stderr) == (0, "11 through any", "")
        done = network.run("laptop", "pipe", "gate", "127.0.0.1:9")
        assert (done.returncode, done.stdout) == (5, "")


def test_a_second_serve_says_which_process_has_the_tag(network: Network, target: int) -> None:
    with network.start("gate", "serve", f"echo={target}") as first:
        assert first.stdout is not None
        first.stdout.readline()
        second = network.run("gate", "serve", f"other={target}")
        assert (second.returncode, second.stdout) == (2, "")
        assert second.stderr == (
            f"p2ptunnel: another p2ptunnel serve (pid {first.pid}) runs here with the tag 'gate'\n"
            "hint: One program serves several: p2ptunnel serve ssh 8888. Or end the other one first.\n"
        )


def test_a_peer_that_is_not_known_cannot_be_allowed(network: Network) -> None:
    done = network.run("nas", "serve", "8888", "--allow", "nobody")
    assert done.returncode == 2
    assert done.stderr.startswith("p2ptunnel: no peer is known here as 'nobody'\nhint: `p2ptunnel peers` lists those ")


@needs_openssh
def test_ssh_and_scp_log_in_and_pin_the_host_key(network: Network, sshd_port: tuple[int, Path, str], tmp_path: Path) -> None:
    port, key, user = sshd_port
    login = ("-i", str(key), "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes")
    with network.start("shed", "serve", f"ssh={port}") as serving:
        assert serving.stdout is not None
        serving.stdout.readline()
        done = network.run("laptop", "ssh", f"{user}@shed", "-F", "none", *login, "cat; exit 7", input="through ssh")
        assert (done.returncode, done.stdout, done.stderr) == (7, "through ssh", "")
        pinned = Profile(network.directory / "laptop").peers().get("shed")
        assert pinned is not None
        assert pinned.ssh_host_keys["ssh"] == (" ".join(key.with_name("host.pub").read_text().split()[:2]),)
        config = tmp_path / "config"
        config.write_text(network.run("laptop", "ssh-config").stdout)
        source, copy = tmp_path / "source", tmp_path / "copy"
        source.write_bytes(os.urandom(1 << 20))
        argv = ["scp", "-q", "-F", str(config), *login, str(source), f"{user}@shed.p2p:{copy}"]
        copied = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=15, check=False)
        assert (copied.returncode, copied.stderr) == (0, "")
        assert copy.read_bytes() == source.read_bytes()
