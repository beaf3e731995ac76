"""A rendezvous server as its operator runs it, in the laboratory, and what attackers and honest peers send to it."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeVar

import pytest

from p2ptunnel.defaults import COOKIELESS_PAD_BYTES, WIRE_VERSION
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.registration import KeyCredentials
from p2ptunnel.protocol.intent import CallSigner
from p2ptunnel.protocol.machine import new_mid
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.simnet.peers import SimCounter
from p2ptunnel.types import Address, Tag
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectRequest,
    ConnectRequestExtra,
    EpochExtra,
    Heartbeat,
    HeartbeatAnswer,
    MalformedMessageError,
    Message,
    PunchAnswer,
    PunchAnswerExtra,
    PunchNotice,
    PunchResult,
    PunchResultAck,
    Register,
    RegisterAnswer,
    decode,
    encode,
    encode_padded,
)

__all__ = ["FULL", "PORT", "Flood", "Honest", "Sent", "Server", "count_arrivals", "percentile"]

M = TypeVar("M", bound=Message)
PORT: Final = 7000
FULL: Final = os.environ.get("P2PTUNNEL_FULL_ATTACKS") == "1"
"""Whether attacks are as large as docs/security/attacks.md has them; otherwise they take a few seconds each."""

_dice: Final = random.SystemRandom()
_REPEAT: Final = 0.1
_PATIENCE: Final = 5.0


class Server:
    """The program `p2ptunnel rendezvous` on the laboratory's server; killed at the end of the block.

    Attributes:
        address: Where it serves.
        key: Its public key.
    """

    def __init__(self, lab: Lab, profile: Path, *arguments: str) -> None:
        self.address: Address = (lab.server.ip, PORT)
        self.key = ""
        self._lab = lab
        self._profile = profile
        self._arguments = arguments
        self._program: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "p2ptunnel", "--json", "--profile", str(self._profile), "rendezvous"]
        argv = [*command, "--listen", f"{self.address[0]}:{PORT}", *self._arguments]
        self._program = self._lab.server.popen(argv, stdout=subprocess.PIPE)
        assert self._program.stdout is not None
        self.key = json.loads(self._program.stdout.readline())["key"]
        return self

    def __exit__(self, *_: object) -> None:
        program, self._program = self._program, None
        if program is not None:
            program.kill()
            program.communicate()

    def stop(self) -> dict[str, Any]:
        """End it as its operator would; return the last thing that it says."""
        assert self._program is not None
        self._program.send_signal(signal.SIGTERM)
        output, _ = self._program.communicate(timeout=10)
        said: dict[str, Any] = json.loads(output.splitlines()[-1])
        return said

    def kill(self) -> None:
        """End it as a crash would."""
        self.__exit__()

    @property
    def rss_bytes(self) -> int:
        """What it has of the machine's memory."""
        return int(self._process("statm").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def cpu_seconds(self) -> float:
        """What it has had of the machine's time."""
        fields = self._process("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _process(self, file: str) -> str:
        assert self._program is not None
        return Path(f"/proc/{self._program.pid}/{file}").read_text(encoding="ascii")


class Sent(NamedTuple):
    """What a flood has sent, with IP and UDP headers."""

    packets: int
    bytes: int


class Flood:
    """Datagrams from a host of the laboratory, in a process of its own."""

    def __init__(
        self, host: Host, to: Address, *, rate: float, seconds: float, source: str = "any", payloads: Sequence[bytes] = ()
    ) -> None:
        with tempfile.NamedTemporaryFile("wb", suffix=".payloads", delete=False) as file:
            file.write(b"\n".join(payloads))
        self._file = Path(file.name)
        words = [_flooder(), source, to[0], str(to[1]), str(rate), str(seconds)]
        self._program = host.popen([*words, file.name] if payloads else words, stdout=subprocess.PIPE)
        assert self._program.stdout is not None
        assert self._program.stdout.readline() == "begun\n"

    def goes_on(self, seconds: float) -> bool:
        """Wait; return whether it is still going on then."""
        assert self._program.stdout is not None
        return not select.select([self._program.stdout], [], [], seconds)[0]

    def wait(self) -> Sent:
        """Wait for its end."""
        try:
            output, _ = self._program.communicate(timeout=120)
        finally:
            self._file.unlink(missing_ok=True)
        assert self._program.returncode == 0, output
        packets, sent_bytes = output.split()
        return Sent(int(packets), int(sent_bytes))


@cache
def _flooder() -> str:
    """Compile it; skip the test where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler to make 100 000 packets a second with")
    binary = Path(tempfile.mkdtemp(prefix="p2ptunnel-flood-")) / "flood"
    subprocess.run([compiler, "-O2", "-o", str(binary), str(Path(__file__).with_name("flood.c"))], check=True, timeout=60)
    return str(binary)


def count_arrivals(host: Host, source: str) -> Callable[[], Sent]:
    """Count what arrives at a host from an address from now on; the result tells how much it was so far."""
    host.nft(
        f"""table ip arrivals {{
            counter seen {{ }}
            chain in {{ type filter hook prerouting priority -300; ip saddr {source} counter name seen; }}
        }}"""
    )

    def so_far() -> Sent:
        listed = json.loads(host.run(["nft", "-j", "list", "counter", "ip", "arrivals", "seen"]).stdout)
        [counter] = [item["counter"] for item in listed["nftables"] if "counter" in item]
        return Sent(counter["packets"], counter["bytes"])

    return so_far


class Honest:
    """A peer as the wire document has it: one UDP socket that asks, repeats itself, and waits.

    Args:
        host: Where it lives.
        server: The rendezvous server.
    """

    def __init__(self, host: Host, server: Address) -> None:
        self.socket = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("0.0.0.0", 0))
        self.socket.settimeout(_REPEAT)
        self.cookie = ""
        self.epoch = 0
        self._server = server
        self._signer = CallSigner(Identity.generate(), SimCounter(), _dice, callee=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, question: bytes, kind: type[M]) -> M:
        """Ask until the answer comes.

        Raises:
            TimeoutError: It does not.
        """
        ends = time.monotonic() + _PATIENCE
        while time.monotonic() < ends:
            self.socket.sendto(question, self._server)
            answer = self._next(kind, time.monotonic() + _REPEAT)
            if answer is not None:
                return answer
        raise TimeoutError(kind.__name__)

    def _next(self, kind: type[M], until: float) -> M | None:
        while time.monotonic() < until:
            try:
                message = decode(self.socket.recv(2048))
            except (TimeoutError, MalformedMessageError):
                continue
            if isinstance(message, kind):
                return message
        return None

    def register(self, tag: Tag, identity: Identity) -> RegisterAnswer:
        """Register, with the 401 first; return the last answer."""
        credentials = KeyCredentials(identity, tag)
        server_key = ""
        for _ in range(3):
            extra = credentials.register_extra(cookie=self.cookie, server_key=server_key, at_least_ts=0)
            request = Register(mid=new_mid(_dice), ltag=tag, extra=extra)
            answer = self.ask(encode_padded(request, COOKIELESS_PAD_BYTES), RegisterAnswer)
            if answer.code != 401 or answer.extra is None:
                break
            self.cookie, server_key = answer.extra.cookie, answer.extra.key
        self.epoch = answer.extra.epoch if answer.extra else 0
        return answer

    def heartbeat(self, tag: Tag) -> HeartbeatAnswer:
        """Tell that we are still there."""
        request = Heartbeat(mid=new_mid(_dice), ltag=tag, extra=EpochExtra(epoch=self.epoch))
        return self.ask(encode_padded(request, COOKIELESS_PAD_BYTES), HeartbeatAnswer)

    def call(self, wanted: Tag) -> float:
        """Be introduced to a peer, with the 401 first where we have no cookie; return how many seconds it took."""
        began = time.monotonic()
        for _ in range(2):
            intent = self._signer.sign(())
            extra = ConnectRequestExtra(rtag=wanted, v=WIRE_VERSION, cookie=self.cookie, intent=intent)
            request = ConnectRequest(mid=new_mid(_dice), ltag="caller", extra=extra)
            answer = self.ask(encode_padded(request, COOKIELESS_PAD_BYTES), ConnectAnswer)
            if answer.code != 401 or answer.extra is None:
                break
            self.cookie = answer.extra.cookie
        assert answer.code == 200, answer
        result = self._next(PunchResult, time.monotonic() + _PATIENCE)
        assert result is not None
        assert result.code == 200
        self.socket.sendto(encode(PunchResultAck(mid=result.mid, token=result.token)), self._server)
        return time.monotonic() - began

    def answer_calls(self) -> None:
        """Say yes to every call, until the socket is closed."""
        while self.socket.fileno() >= 0:
            try:
                message = decode(self.socket.recv(2048))
            except (TimeoutError, MalformedMessageError):
                continue
            except OSError:
                return
            if isinstance(message, PunchNotice):
                extra = PunchAnswerExtra(port=1024, v=WIRE_VERSION)
                yes = PunchAnswer(mid=message.mid, token=message.extra.token, code=200, em="", extra=extra)
                self.socket.sendto(encode(yes), self._server)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of all do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]
