"""The laboratory's side of the data plane: starts the engine's process and sends it commands."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from p2ptunnel.errors import ConfigError, LaboratoryError
from p2ptunnel.testing.natlab.engine.link import LinkSettings
from p2ptunnel.testing.natlab.engine.table import NatSettings

__all__ = ["DataPlane", "Traffic", "Way"]

Way: TypeAlias = Literal["up", "down"]

_REPLY_BYTES: Final = 1 << 16
_PATIENCE: Final = 10.0
"""Seconds that the engine may take to answer, or to end."""
_START: Final = "import sys; sys.path.append(sys.argv[1]); from engine.process import main; main(*map(int, sys.argv[2:]))"


@dataclasses.dataclass(frozen=True, slots=True)
class Traffic:
    """What the data plane has done for one site since it was made.

    Attributes:
        sent_up: Packets towards the internet that its link took.
        lost_up: Packets that it lost.
        sent_down: As `sent_up`, towards the site.
        lost_down: As `lost_up`, towards the site.
        mappings: How many its NAT has now; for a kernel router, how many connections are tracked.
        refused: Packets that its user-space NAT refused, by reason.
    """

    sent_up: int = 0
    lost_up: int = 0
    sent_down: int = 0
    lost_down: int = 0
    mappings: int = 0
    refused: Mapping[str, int] = dataclasses.field(default_factory=dict[str, int])


class DataPlane:
    """One engine process, started by the first command.

    Descriptors are copied into the engine: whoever opened them may close them.  Every method raises LaboratoryError if
    the engine refuses the command or is gone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def add_link(self, name: str, settings: LinkSettings, upper: int, lower: int) -> None:
        """Join two TUN devices by a link."""
        self._command("add_link", (upper, lower), name=name, settings=dataclasses.asdict(settings))

    def add_nat(
        self, name: str, settings: NatSettings, link: LinkSettings, *, upper: int | None = None, upstream: str | None = None
    ) -> None:
        """Make a NAT, its link ending in a TUN device, or behind another NAT."""
        descriptors = () if upper is None else (upper,)
        rules, wire = dataclasses.asdict(settings), dataclasses.asdict(link)
        self._command("add_nat", descriptors, name=name, settings=rules, link=wire, upstream=upstream)

    def add_host(self, nat: str, address: str, descriptor: int) -> None:
        """Put a TUN device behind a NAT."""
        self._command("add_host", (descriptor,), nat=nat, address=address)

    def add_router(self, nat: str, address: str, descriptor: int, name: str, settings: LinkSettings) -> None:
        """Put a TUN device behind a NAT, with a link between them."""
        wire = dataclasses.asdict(settings)
        self._command("add_router", (descriptor,), nat=nat, address=address, name=name, settings=wire)

    def change_link(self, name: str, ways: Sequence[Way], changes: Mapping[str, Any]) -> None:
        """Change how a link treats the packets to come.

        Raises:
            ConfigError: There is no such setting, or its value is out of range.
        """
        try:
            dataclasses.replace(LinkSettings(), **changes)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"not a change of a link: {error}") from error
        self._command("change_link", name=name, directions=list(ways), changes=dict(changes))

    def flush(self, name: str) -> None:
        """Let a NAT forget its mappings."""
        self._command("flush", name=name)

    def map_port(self, name: str, protocol: int, outside_port: int, address: str, port: int) -> None:
        """Add a static mapping to a NAT."""
        self._command("map_port", name=name, protocol=protocol, outside_port=outside_port, address=address, port=port)

    def stats(self, name: str) -> Traffic:
        """Return what a link and a NAT have done."""
        counts = self._command("stats", name=name)
        (sent_up, lost_up), (sent_down, lost_down) = counts["up"], counts["down"]
        return Traffic(sent_up, lost_up, sent_down, lost_down, counts["mappings"], counts["refused"])

    def close(self) -> None:
        """End the process; closing twice is fine."""
        with self._lock:
            if self._control is not None:
                self._control.close()
            if self._process is not None:
                _wait(self._process)
            self._control = self._process = None

    def _command(self, op: str, descriptors: Iterable[int] = (), **arguments: Any) -> dict[str, Any]:
        with self._lock:
            reply = self._exchange(json.dumps({"op": op, **arguments}).encode(), list(descriptors))
        if "error" in reply:
            raise LaboratoryError(f"the data plane cannot {op}: {reply['error']}")
        return reply

    def _exchange(self, command: bytes, descriptors: list[int]) -> dict[str, Any]:
        control = self._control or self._start()
        try:
            socket.send_fds(control, [command], descriptors)
            reply: dict[str, Any] = json.loads(control.recv(_REPLY_BYTES) or b'{"error": "it has ended"}')
        except OSError as error:
            raise LaboratoryError(f"the data plane is gone: {error}") from error
        return reply

    def _start(self) -> socket.socket:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            arguments = [str(Path(__file__).parent), str(theirs.fileno()), str(os.getpid())]
            # -I and -S: nothing but the standard library, so that it is up in milliseconds.
            program = [sys.executable, "-I", "-S", "-c", _START, *arguments]
            # A process group of its own, so that Ctrl-C ends the laboratory in order and not this process first.
            self._process = subprocess.Popen(program, pass_fds=[theirs.fileno()], process_group=0)
        self._control.settimeout(_PATIENCE)
        return self._control


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that has been told to end; kill it if it does not."""
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
