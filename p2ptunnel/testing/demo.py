"""The demonstration behind `make demo`: a real SSH session and a real port forward between two homes behind two NATs.

    python -m p2ptunnel.testing.demo [--delay 0.02] [--size 64] [--loopback]

Everything is real: two routers of nftables in a laboratory of network namespaces, an OpenSSH server behind one of them, a web
server beside it, and this package's own programs on each machine, talking through a rendezvous server between them.  Where no
laboratory can be built (not root, no nftables) the same runs on loopback, and says so.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import hashlib
import json
import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from p2ptunnel.testing.natlab import Host, Lab, capable
from p2ptunnel.testing.natlab.programs import end_program, start_program

__all__ = ["Machine", "Stage", "main", "start_server", "start_sshd"]

_HOME: Final = "home-nas"
_LAPTOP: Final = "laptop"
_PAGE: Final = "<h1>This page came from behind two NATs.</h1>\n"
_WAIT: Final = 20.0
_SSHD_PLACES: Final = "/usr/local/sbin:/usr/sbin:/sbin"

_INSTALL: Final = (
    "Debian, Ubuntu: apt install openssh-client openssh-server.  Fedora: dnf install openssh-clients openssh-server."
)

_STEPS: Final = {
    4: "caller asks the server for the callee",
    -4: "200: the callee is being asked",
    10: "server tells the callee who wants it",
    30: "callee opens its NAT (dies on the way); a SYN with low TTL left just before",
    -10: "200: callee answers, the port it opens",
    11: "server tells the caller where the callee is",
    -11: "caller: received; its SYN leaves at the same moment",
    31: "caller tries the hole",
    -31: "callee: the hole is open both ways",
}


class Machine:
    """Where programs run: a host of the laboratory, or this machine."""

    def __init__(self, name: str, directory: Path, host: Host | None) -> None:
        self.name = name
        self.directory = directory / name
        self.directory.mkdir()
        self._host = host

    @property
    def trace(self) -> Path:
        """The file in which its programs write what they do."""
        return self.directory / "trace.jsonl"

    def p2ptunnel(self, *arguments: str) -> list[str]:
        """Return the command line of our program with this machine's profile."""
        options = ["--profile", str(self.directory / "profile"), "--trace", str(self.trace), "--tag", self.name]
        options.append("--no-lan")  # two machines that are one would find each other without a hole
        return [sys.executable, "-m", "p2ptunnel", *options, *arguments]

    def start(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Start a program."""
        namespace = None if self._host is None else self._host.namespace
        program: subprocess.Popen[str] = start_program(namespace, argv, text=True, **options)
        return program

    def run(self, argv: Sequence[str], *, timeout: float = 40.0) -> str:
        """Run a program and return what it says on stdout.

        Raises:
            DemoError: It failed, or took longer than `timeout` seconds.
        """
        program = self.start(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            output, errors = program.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{' '.join(argv[-3:])} took longer than {timeout:g} s") from None
        finally:
            end_program(program)
        if program.returncode:
            raise DemoError(f"{' '.join(argv[-3:])} said: {errors.strip() or output.strip() or program.returncode}")
        return output

    def call(self, function: Callable[[], str]) -> str:
        """Call a function with this machine's network."""
        return function() if self._host is None else self._host.thread(function).result(_WAIT)


class DemoError(Exception):
    """A part of the demonstration did not do what it should."""


class Stage:
    """The machines, the programs that run on them, and what is printed."""

    def __init__(self, directory: Path, lab: Lab | None, delay: float) -> None:
        hosts: list[Host | None] = [None, None, None]
        if lab is not None:
            hosts = [lab.server, lab.site("pr", delay=delay, name="home").host, lab.site("pr", delay=delay, name="cafe").host]
        self.server_host = "127.0.0.1" if lab is None else lab.server.ip
        self.server, self.home, self.laptop = (
            Machine(name, directory, host) for name, host in zip(("server", _HOME, _LAPTOP), hosts, strict=True)
        )
        self.server_port = 0 if lab is None else 7000
        self.sshd_port, self.web_port = (_free_port(), _free_port()) if lab is None else (2222, 8080)
        self._programs: list[subprocess.Popen[str]] = []
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line with the seconds since the beginning."""
        print(f"{time.monotonic() - self._started:6.2f} s  {text}", flush=True)

    def start(self, machine: Machine, argv: Sequence[str], ready: Callable[[str], bool]) -> str:
        """Start a program that stays; return its first line on stdout that `ready` accepts.

        Raises:
            DemoError: It ended, or said nothing of the kind in 20 s.
        """
        log = (machine.directory / "log.txt").open("a")
        program = machine.start(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        log.close()
        self._programs.append(program)
        return _first_line(program, ready, machine)

    def close(self) -> None:
        """End the programs, in the reverse order of their start."""
        for program in reversed(self._programs):
            end_program(program)


def _first_line(program: subprocess.Popen[str], ready: Callable[[str], bool], machine: Machine) -> str:
    lines: queue.Queue[str | None] = queue.Queue()

    def read(stdout: Iterable[str]) -> None:
        with contextlib.suppress(ValueError):  # closed while it is read
            for line in stdout:
                lines.put(line)
        lines.put(None)

    assert program.stdout is not None
    threading.Thread(target=read, args=(program.stdout,), daemon=True).start()
    deadline = time.monotonic() + _WAIT
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=left)
            if line is None:
                break
            if ready(line):
                return line
    log = (machine.directory / "log.txt").read_text()
    raise DemoError(f"{machine.name} did not come up: {log.strip() or 'it said nothing'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; return 0 if everything did what it should."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--delay", type=float, default=0.02, metavar="S", help="one way, on each access line [0.02]")
    parser.add_argument("--size", type=int, default=64, metavar="MIB", help="of the file that scp copies [64]")
    parser.add_argument("--loopback", action="store_true", help="without a laboratory, on this machine alone")
    options = parser.parse_args(arguments)
    missing = _missing_programs()
    if missing:
        print(f"The demonstration needs OpenSSH, and {', '.join(missing)} is not installed here.\n{_INSTALL}", file=sys.stderr)
        return 2
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run("not asked for" if options.loopback else capable(), options.delay, options.size)
    except KeyboardInterrupt:  # by then everything has ended
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    """Take SIGTERM for Ctrl-C: both end what runs before we go."""
    raise KeyboardInterrupt


def _missing_programs() -> list[str]:
    missing = [name for name in ("ssh", "scp", "ssh-keygen") if shutil.which(name) is None]
    return missing if _sshd() else [*missing, "sshd"]


def _run(reason: str | None, delay: float, size_mib: int) -> int:
    """Play it, in a laboratory unless there is a `reason` against that; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="p2ptunnel-demo-") as directory, contextlib.ExitStack() as stack:
        lab = None if reason else stack.enter_context(Lab(server_delay=delay))
        stage = Stage(Path(directory), lab, delay)
        stack.callback(stage.close)
        _introduce(stage, reason, delay)
        try:
            _play(stage, size_mib)
        except (DemoError, OSError) as error:
            stage.say(f"FAILED: {error}")
            return 1
    return 0


def _introduce(stage: Stage, reason: str | None, delay: float) -> None:
    if reason:
        stage.say(f"No laboratory ({reason}): everything runs on loopback, without NATs.")
    else:
        stage.say(
            f"Two homes, each behind a port-restricted NAT of the kernel, {delay * 1000:g} ms one way to the internet each."
        )


def _play(stage: Stage, size_mib: int) -> None:
    server = start_server(stage)
    user, key = start_sshd(stage)
    _start_web(stage)
    _pair(stage, server)
    serve = stage.home.p2ptunnel(
        "--rendezvous", server, "serve", f"ssh=ssh:127.0.0.1:{stage.sshd_port}", f"web={stage.web_port}"
    )
    stage.say(stage.start(stage.home, serve, lambda line: line.startswith("serving")).strip())
    _ssh(stage, server, user, key)
    _copy(stage, server, user, key, size_mib)
    _forward(stage, server)
    stage.say("Done: nothing was configured on either router, and the server saw none of it.")


def start_server(stage: Stage) -> str:
    """Start the rendezvous server; return its `host:port`."""
    argv = stage.server.p2ptunnel("rendezvous", "--listen", f"{stage.server_host}:{stage.server_port}")
    line = stage.start(stage.server, argv, lambda line: stage.server_host in line)
    address = next(word for word in line.replace(",", " ").split() if word.startswith(f"{stage.server_host}:"))
    stage.say(f"Rendezvous server on {address}.")
    return address


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def _sshd() -> str | None:
    return shutil.which("sshd", path=os.pathsep.join((os.environ.get("PATH", os.defpath), _SSHD_PLACES)))


def start_sshd(stage: Stage) -> tuple[str, Path]:
    """Start OpenSSH's server on the home machine; return who may log in, and the key to do so."""
    directory = stage.home.directory
    host_key, user_key = directory / "host_key", stage.laptop.directory / "id_ed25519"
    for path in (host_key, user_key):
        stage.home.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "demo", "-f", str(path)])
    authorized = directory / "authorized_keys"
    shutil.copy(user_key.with_suffix(".pub"), authorized)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where its unprivileged half lives; packages make it at boot
    config = directory / "sshd_config"
    config.write_text(
        f"Port {stage.sshd_port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nAuthorizedKeysFile {authorized}\n"
        f"PidFile {directory / 'sshd.pid'}\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        "PermitRootLogin yes\nSubsystem sftp internal-sftp\n"
    )
    sshd = _sshd()
    assert sshd is not None
    argv = ["sh", "-c", 'echo starting; exec "$0" "$@"', sshd, "-D", "-e", "-f", str(config)]
    stage.start(stage.home, argv, lambda line: line.startswith("starting"))
    _wait_for_port(stage.home, stage.sshd_port)
    stage.say(f"{_HOME}: OpenSSH server on 127.0.0.1:{stage.sshd_port}, nowhere else.")
    return getpass.getuser(), user_key


def _start_web(stage: Stage) -> None:
    site = stage.home.directory / "site"
    site.mkdir()
    (site / "index.html").write_text(_PAGE)
    program = (
        "import functools, http.server as h\n"
        f"H = functools.partial(h.SimpleHTTPRequestHandler, directory={str(site)!r})\n"
        f"s = h.ThreadingHTTPServer(('127.0.0.1', {stage.web_port}), H)\n"
        "print('up', flush=True)\n"
        "s.serve_forever()\n"
    )
    stage.start(stage.home, [sys.executable, "-c", program], lambda line: line.startswith("up"))
    stage.say(f"{_HOME}: web server on 127.0.0.1:{stage.web_port}.")


def _wait_for_port(machine: Machine, port: int) -> None:
    program = (
        "import socket, time\n"
        "for _ in range(200):\n"
        "    try:\n"
        f"        socket.create_connection(('127.0.0.1', {port}), 1).close()\n"
        "        break\n"
        "    except OSError:\n"
        "        time.sleep(0.05)\n"
        "else:\n"
        "    raise SystemExit('nobody listens')\n"
    )
    machine.run([sys.executable, "-c", program])


def _pair(stage: Stage, server: str) -> None:
    """Make the two known to each other by a spoken code: the only introduction that there is."""
    inviting = stage.home.p2ptunnel("--rendezvous", server, "--json", "pair", "--services", "ssh,web")
    code = json.loads(stage.start(stage.home, inviting, lambda line: "invited" in line))["code"]
    since = time.monotonic()
    host = json.loads(stage.laptop.run(stage.laptop.p2ptunnel("--rendezvous", server, "--json", "pair", code)))
    stage.say(
        f"{_HOME}: `p2ptunnel pair` says {code}\n          {_LAPTOP}: `p2ptunnel pair {code}` has pinned "
        f"{host['key'][:12]}… and may open {' and '.join(host['offered'])} there   ({time.monotonic() - since:.2f} s)"
    )


def _ssh(stage: Stage, server: str, user: str, key: Path) -> None:
    since, asked_at = time.monotonic(), time.time()
    command = stage.laptop.p2ptunnel("--rendezvous", server, "ssh", f"{user}@{_HOME}", "-i", str(key), "uname", "-a")
    output = stage.laptop.run(command)
    took = time.monotonic() - since
    _show_steps(stage, asked_at)
    stage.say(f"ssh {user}@{_HOME} uname -a   ({took:.2f} s with login)\n          {output.strip()}")


def _copy(stage: Stage, server: str, user: str, key: Path, size_mib: int) -> None:
    config = stage.laptop.directory / "ssh_config"
    config.write_text(stage.laptop.run(stage.laptop.p2ptunnel("--rendezvous", server, "ssh-config")))
    sent, arrived = stage.laptop.directory / "photos.tar", stage.home.directory / "photos.tar"
    with sent.open("wb") as file:
        for _ in range(size_mib):
            file.write(secrets.token_bytes(1 << 20))
    since = time.monotonic()
    target = f"{user}@{_HOME}.p2p:{arrived}"
    stage.laptop.run(["scp", "-q", "-F", str(config), "-i", str(key), str(sent), target])
    took = time.monotonic() - since
    digests = [_sha256(path) for path in (sent, arrived)]
    if digests[0] != digests[1]:
        raise DemoError(f"sha256 differs: {digests[0]} sent, {digests[1]} arrived")
    stage.say(f"scp of {size_mib} MiB in {took:.2f} s with login; sha256 equal on both sides: {digests[0][:16]}…")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forward(stage: Stage, server: str) -> None:
    argv = stage.laptop.p2ptunnel("--rendezvous", server, "--json", "forward", _HOME, "0:web")
    line = stage.start(stage.laptop, argv, lambda line: "listening" in line)
    port = json.loads(line)["address"][1]
    url = f"http://127.0.0.1:{port}/"

    def fetch() -> str:
        with urllib.request.urlopen(url, timeout=_WAIT) as page:
            text: str = page.read().decode()
        return text

    page = stage.laptop.call(fetch)
    if page != _PAGE:
        raise DemoError(f"the page is not the one that was served: {page[:80]!r}")
    stage.say(f"{url} here is service web of {_HOME}:\n          {page.strip()}")


def _show_steps(stage: Stage, since: float) -> None:
    """Print the founding protocol's messages of the first call since then, each when it left, and how TCP came up."""
    events = sorted((event for event in _events(stage) if event["time"] >= since), key=lambda event: event["time"])
    asked = next((event for event in events if event["event"] == "sent" and event.get("t") == 4), None)
    if asked is None:
        raise DemoError("no call is in the traces")
    shown: set[int] = set()
    events.remove(asked)
    for event in (asked, *events):  # first: without a network between them the server may write down its answer sooner
        at = max(event["time"] - asked["time"], 0) * 1000
        if _is_step(event, shown):
            shown.add(event["t"])
            print(f"            {at:7.1f} ms  t={event['t']:<4} {_STEPS[event['t']]}")
        elif event["event"] == "connection_up" and event["machine"] == _LAPTOP:
            print(f"            {at:7.1f} ms  TCP    connected to {event['remote']} ({event['how']})")
        elif event["layer"] == "session" and event["event"] == "up" and event["machine"] == _LAPTOP:
            print(f"            {at:7.1f} ms  TLS    both keys proved, {_HOME} has let us in")
            break


def _is_step(event: dict[str, Any], shown: set[int]) -> bool:
    """Tell whether an event is the next message to show; a -4 before t=10 is a 401 that asks for the cookie."""
    number = event.get("t")
    return event["event"] == "sent" and number in _STEPS and number not in shown and (number != -4 or 10 in shown)


def _events(stage: Stage) -> Generator[dict[str, Any]]:
    for machine in (stage.server, stage.home, stage.laptop):
        if machine.trace.exists():
            for line in machine.trace.read_text().splitlines():
                yield {**json.loads(line), "machine": machine.name}


if __name__ == "__main__":
    sys.exit(main())
