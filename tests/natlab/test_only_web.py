"""What is told where nothing is let out but TCP to port 443: the truth, by every command that asks the server."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest

from p2ptunnel.defaults import RENDEZVOUS_PORT
from p2ptunnel.testing.natlab import Host, Lab
from p2ptunnel.testing.natlab.faults import only_web
from p2ptunnel.testing.natlab.peers import rendezvous

pytestmark = pytest.mark.natlab
VERDICT: Final = "The server is reached on TCP port 443 only ({}): expect the relay with every peer outside this network."
PROXY: Final = """
import contextlib, socket, sys, threading

def copy(near, far):
    with contextlib.suppress(OSError):
        while part := near.recv(65536):
            far.sendall(part)
        far.shutdown(socket.SHUT_WR)

def serve(near):
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += near.recv(4096)
    host, port = head.split()[1].decode().rsplit(":", 1)
    far = socket.create_connection((host, int(port)))
    near.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n")
    threading.Thread(target=copy, args=(far, near), daemon=True).start()
    copy(near, far)

listener = socket.create_server((sys.argv[1], 3128))
print("up", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


class Office:
    """A machine behind a firewall for port 443 only, and a server that serves there too."""

    def __init__(self, host: Host, server: str, profile: Path) -> None:
        self._host: Final = host
        self._options: Final = ("--profile", str(profile), "--rendezvous", server, "--no-lan", "--no-port-mapping")
        self.server: Final = server.partition("#")[0]

    def say(self, *words: str, code: int = 0, **environment: str) -> str:
        """Run a command there; return what it said."""
        argv = ["env", *(f"{name}={value}" for name, value in environment.items()), sys.executable, "-m", "p2ptunnel"]
        done = self._host.run([*argv, *self._options, *words], check=False)
        assert done.returncode == code, done.stderr
        return done.stdout

    def told(self, *words: str, **environment: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.say("--json", *words, **environment))
        return told


@pytest.fixture
def office(natlab: Lab, tmp_path: Path) -> Generator[Office]:
    with rendezvous(natlab) as server:
        yield Office(natlab.site("pr", udp=False, only_port=443, delay=0.01).host, server, tmp_path)


def test_netcheck_says_by_what_the_server_is_reached(office: Office) -> None:
    lines = office.say("netcheck", "--timeout", "2").splitlines()
    assert lines[0].startswith(f"server:                 {office.server}, ")
    assert lines[0].endswith(" ms, through TCP port 443 (TLS)")
    [row] = [line.split() for line in lines if line.startswith("443 ")]
    assert row[2] == "TLS"
    assert "better: let UDP and TCP to the server's own port through the firewalls on the way" in lines
    assert lines[-1] == VERDICT.format("TLS")
    told = office.told("netcheck", "--timeout", "2")
    assert (told["udp"]["works"], told["tcp"]["works"], told["behind_nat"]) == (False, False, True)
    assert told["verdict"] == VERDICT.format("TLS")
    web = told["web"]
    assert (web["way"], web["proxy"], web["problem"]) == ("tls", None, "")
    assert 0.02 <= web["rtt"] == told["rtt"] < 1
    assert web["observed"][0].startswith("198.51.100.")


def test_status_and_doctor_say_that_it_is_up(office: Office) -> None:
    line, verdict = office.say("status", "--check").splitlines()[1:3]
    assert line.startswith(f"server  {office.server}  up, ")
    assert " ms through TCP port 443 (TLS), sees us at 198.51.100." in line
    assert verdict.strip() == VERDICT.format("TLS")
    [server] = office.told("status")["rendezvous"]
    assert (server["web"]["way"], server["problem"], server["verdict"]) == ("tls", "", VERDICT.format("TLS"))
    [check] = [check for check in office.told("doctor")["checks"] if check["check"] == "server"]
    assert check["verdict"] == "warn"
    assert check["text"].startswith(f"{office.server} answers in ")
    assert check["text"].endswith(f" ms; {VERDICT.format('TLS')}")
    assert check["fix"] == (
        f"Let UDP and TCP to port {RENDEZVOUS_PORT} of it through the firewalls on the way, for direct connections."
    )


@contextlib.contextmanager
def proxy(host: Host) -> Generator[str]:
    """An HTTP proxy on a machine."""
    program = host.popen([sys.executable, "-c", PROXY, host.ip], stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.readline() == "up\n"
    try:
        yield f"{host.ip}:3128"
    finally:
        program.kill()
        program.wait()
        program.stdout.close()


def test_through_a_proxy_the_proxy_is_named(natlab: Lab, tmp_path: Path) -> None:
    site = natlab.site("pr", hosts=2, delay=0.01)
    only_web(site)
    with rendezvous(natlab) as server, proxy(site.hosts[1]) as address:
        office = Office(site.host, server, tmp_path)
        by = f"TLS by the proxy {address}"
        [status] = office.told("status", https_proxy=f"http://user:secret@{address}")["rendezvous"]
        assert (status["web"]["way"], status["web"]["proxy"]) == ("tls", [site.hosts[1].ip, 3128])
        assert status["verdict"] == VERDICT.format(by)
        said = office.say("netcheck", "--brief", "--timeout", "2", https_proxy=f"http://user:secret@{address}")
        assert said.splitlines()[-1] == VERDICT.format(by)
        assert "secret" not in said


def test_where_nobody_answers_on_443_either_that_is_told(natlab: Lab, tmp_path: Path) -> None:
    office = Office(natlab.site("pr", udp=False, only_port=443).host, f"{natlab.server.ip}:7000", tmp_path)
    said = office.say("status", "--check", code=3)
    assert f"server  {office.server}  did not answer over UDP or TCP in 2 s" in said
