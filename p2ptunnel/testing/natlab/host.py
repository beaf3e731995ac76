"""A machine of the laboratory: whatever is made through it lives in its network."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Generic, Literal, ParamSpec, TypeVar, overload

from p2ptunnel.errors import ConfigError, LaboratoryError
from p2ptunnel.testing.natlab.namespace import Namespace
from p2ptunnel.testing.natlab.programs import end_program, start_program

__all__ = ["Host", "HostThread"]

P = ParamSpec("P")
T = TypeVar("T")


class HostThread(threading.Thread, Generic[T]):
    """A thread that lives in the network of a host; so do the threads and programs it starts."""

    def __init__(self, host: Host, body: Callable[[], T]) -> None:
        super().__init__(name=f"natlab-{host.name}", daemon=True)
        self._namespace = host.namespace
        self._body = body
        self._outcome: Future[T] = Future()

    def run(self) -> None:
        """Enter the network and run the body; what it returns or raises waits for `result`."""
        try:
            self._namespace.enter()
            self._outcome.set_result(self._body())
        except BaseException as error:  # noqa: BLE001 - a thread's root: `result` raises it where somebody listens
            self._outcome.set_exception(error)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the end and return what the body returned.

        Args:
            timeout: Seconds; None waits for ever.

        Raises:
            TimeoutError: It still runs.
            BaseException: Whatever the body raised.
        """
        outcome = self._outcome.result(timeout)
        self.join(timeout)
        return outcome


class Host:
    """A machine: a client behind a router, a router, the server, or the internet between them.

    Attributes:
        name: For messages.
        ips: Its IPv4 addresses, the first one being `ip`; none on a machine with IPv6 only.
        ip6: Its global IPv6 address, or None.
        namespace: Its network.
    """

    def __init__(self, name: str, *ips: str, ip6: str | None = None) -> None:
        self.name = name
        self.ips = list(ips)
        self.ip6 = ip6
        self.namespace = Namespace(name)
        self.namespace.netlink.set_up("lo")
        self._programs: list[subprocess.Popen[Any]] = []

    def __repr__(self) -> str:
        return f"<Host {self.name} {', '.join([*self.ips, *([self.ip6] if self.ip6 else [])])}>"

    @property
    def ip(self) -> str:
        """Its first IPv4 address.

        Raises:
            ConfigError: It has none.
        """
        if not self.ips:
            raise ConfigError(f"{self.name} has IPv6 addresses only")
        return self.ips[0]

    def inside(self) -> contextlib.AbstractContextManager[None]:
        """Have the calling thread in this network inside the block, which must not await."""
        return self.namespace.inside()

    def socket(
        self,
        family: socket.AddressFamily = socket.AF_INET,
        type: socket.SocketKind = socket.SOCK_STREAM,
        proto: int = 0,
    ) -> socket.socket:
        """Return a socket of this network; any thread and any event loop may use it."""
        with self.inside():
            return socket.socket(family, type, proto)

    @overload
    def popen(self, argv: Sequence[str], *, text: Literal[True] = True, **options: Any) -> subprocess.Popen[str]: ...

    @overload
    def popen(self, argv: Sequence[str], *, text: Literal[False], **options: Any) -> subprocess.Popen[bytes]: ...

    def popen(self, argv: Sequence[str], *, text: bool = True, **options: Any) -> subprocess.Popen[Any]:
        """Start a program here; it is killed when the laboratory closes, or when this process ends, however it ends.

        Args:
            argv: The program and its arguments.
            text: Whether pipes carry text.
            **options: For `subprocess.Popen`.
        """
        program = start_program(self.namespace, argv, text=text, **options)
        self._programs.append(program)
        return program

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        timeout: float | None = 60,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end and return its status, output and errors.

        Args:
            argv: The program and its arguments.
            input: What it reads; None for nothing.
            timeout: Seconds; None waits for ever.
            check: Whether a status other than 0 raises.
            env: Its environment; None for ours.

        Raises:
            subprocess.CalledProcessError: Its status was not 0.
            subprocess.TimeoutExpired: It took longer, and has been killed.
        """
        stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
        pipe = subprocess.PIPE
        program = start_program(self.namespace, argv, text=True, stdin=stdin, stdout=pipe, stderr=pipe, env=env)
        try:
            output, errors = program.communicate(input, timeout)
        finally:
            end_program(program)
        if check and program.returncode:
            raise subprocess.CalledProcessError(program.returncode, list(argv), output, errors)
        return subprocess.CompletedProcess(list(argv), program.returncode, output, errors)

    def thread(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> HostThread[T]:
        """Run a function in a new thread that lives here, for example `asyncio.run` with a whole program."""
        thread = HostThread(self, lambda: function(*args, **kwargs))
        thread.start()
        return thread

    def nft(self, rules: str) -> None:
        """Apply nftables commands here, all or none.

        Raises:
            LaboratoryError: nft refuses them, or is missing.
        """
        result = self.run(["nft", "-f", "-"], input=rules, check=False)
        if result.returncode:
            raise LaboratoryError(f"nft on {self.name} says {result.stderr.strip()}")

    def close(self) -> None:
        """Kill its programs and let go of its network; closing twice is fine."""
        for program in self._programs:
            end_program(program)
        self._programs.clear()
        self.namespace.close()
