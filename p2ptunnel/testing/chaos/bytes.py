"""Bytes that no loss, doubling or exchange leaves unnoticed, and the threads that send and receive them at both ends."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from p2ptunnel.testing.chaos.flow import ChaosError, Flow, Ledger

__all__ = ["End", "Exchange", "chunks", "exchange", "socket_end"]

_CHUNK: Final = 16 * 1024
_READ: Final = 64 * 1024
_NUMBER: Final = 8


@dataclass(frozen=True, slots=True)
class End:
    """An application's end of a connection.

    Attributes:
        write: Hands over all of it, or raises OSError.
        read: Returns what there is, nothing at the end.
        finish: Says that nothing more will be written.
        abort: Lets whoever reads or writes fail at once.
    """

    write: Callable[[bytes], object]
    read: Callable[[], bytes]
    finish: Callable[[], object]
    abort: Callable[[], object]


def socket_end(sock: socket.socket) -> End:
    """Return the end that is a connected socket."""

    def abort() -> None:
        with contextlib.suppress(OSError):  # it has ended by itself
            sock.shutdown(socket.SHUT_RDWR)

    return End(sock.sendall, lambda: sock.recv(_READ), lambda: sock.shutdown(socket.SHUT_WR), abort)


def chunks(size_bytes: int, seed: int) -> Iterator[bytes]:
    """Yield bytes in pieces of 16 KiB, each with its number in front, so that no two are the same."""
    body = random.Random(seed).randbytes(_CHUNK - _NUMBER)
    for number, start in enumerate(range(0, size_bytes, _CHUNK)):
        yield (number.to_bytes(_NUMBER) + body)[: size_bytes - start]


@dataclass(frozen=True, slots=True)
class Exchange:
    """Two ends that send to each other at the same time.

    Attributes:
        up: From the caller.
        down: To the caller.
        finish: Waits so many seconds for the end of both; returns whether both came out as they went in; raises ChaosError.
    """

    up: Flow
    down: Flow
    finish: Callable[[float], bool]


@contextlib.contextmanager
def exchange(ledger: Ledger, ends: tuple[End, End], size_bytes: int, rate: float, seed: int) -> Generator[Exchange]:
    """Send so much each way while the block lasts.

    Args:
        ledger: Where errors go.
        ends: The caller's and the callee's.
        size_bytes: Each way.
        rate: Bytes per second each way at most, never caught up with; 0 for no limit.
        seed: Of the content.
    """
    near, far = ends
    up, down = ledger.flow("up", size_bytes), ledger.flow("down", size_bytes)
    workers = [
        _Worker(ledger, "up, sending", lambda: _send(up, near, rate, seed, ledger.over)),
        _Worker(ledger, "up, receiving", lambda: _receive(up, far)),
        _Worker(ledger, "down, sending", lambda: _send(down, far, rate, seed + 1, ledger.over)),
        _Worker(ledger, "down, receiving", lambda: _receive(down, near)),
    ]

    def finish(timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        try:
            digests = [worker.digest.result(max(0.0, deadline - time.monotonic())) for worker in workers]
        except (OSError, EOFError, ValueError) as error:  # a worker's, or no end in time
            raise ChaosError(ledger.errors[0] if ledger.errors else f"no end in {timeout:g} s") from error
        return digests[0] == digests[1] and digests[2] == digests[3]

    try:
        for worker in workers:
            worker.start()
        yield Exchange(up, down, finish)
    finally:
        ledger.over.set()
        for end in ends:
            end.abort()
        for worker in workers:
            worker.join()


class _Worker(threading.Thread):
    """One thread of the application; an error of its I/O goes to the ledger."""

    def __init__(self, ledger: Ledger, name: str, body: Callable[[], str]) -> None:
        super().__init__(name=f"chaos: {name}", daemon=True)
        self.digest: Final[Future[str]] = Future()
        self._ledger = ledger
        self._body = body

    def run(self) -> None:
        try:
            self.digest.set_result(self._body())
        except (OSError, EOFError, ValueError) as error:  # ValueError: a file that was closed meanwhile
            self._ledger.fail(f"{self.name.removeprefix('chaos: ')}: {error!r}")
            self.digest.set_exception(error)


def _send(flow: Flow, end: End, rate: float, seed: int, over: threading.Event) -> str:
    digest = hashlib.sha256()
    due = time.monotonic()
    for chunk in chunks(flow.size, seed):
        digest.update(chunk)
        flow.write(len(chunk))
        end.write(chunk)
        if rate:
            due = max(due + len(chunk) / rate, time.monotonic())
            over.wait(due - time.monotonic())
    end.finish()
    return digest.hexdigest()


def _receive(flow: Flow, end: End) -> str:
    digest = hashlib.sha256()
    while data := end.read():
        digest.update(data)
        flow.arrive(len(data))
    if flow.arrived != flow.size:
        raise EOFError(f"it ended after {flow.arrived} of {flow.size} bytes")
    return digest.hexdigest()
