"""Every kind of NAT calls every other: real peers, a real server, real streams; the table of what connects, and how fast."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from p2ptunnel.abc import Stream
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.identity.store import Profile
from p2ptunnel.peer import Peer
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab.kinds import find_kind
from p2ptunnel.testing.natlab.lab import Lab
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.testing.natlab.site import Site
from p2ptunnel.types import Address, RelayUse

__all__ = ["DEFAULT_KINDS", "Attempt", "Cell", "add_arguments", "run", "run_matrix"]

DEFAULT_KINDS: Final = ("pub", "pubfw", "fc", "ar", "pr", "prR", "prO", "shift")
_PORT: Final = 7000
_CALL_TIMEOUT: Final = 15.0
_READY_TIMEOUT: Final = 30.0
_SAMPLE_BYTES: Final = 4096


class Attempt(msgspec.Struct, frozen=True):
    """One call: seconds from `connect` to a confirmed stream, or the error in words."""

    seconds: float
    path: str
    error: str = ""


class Cell(msgspec.Struct, frozen=True):
    """All calls of one ordered pair of kinds."""

    caller: str
    callee: str
    attempts: tuple[Attempt, ...]

    @property
    def direct(self) -> int:
        """How many ended in a direct TCP stream that carried its bytes."""
        return sum(attempt.path in {"direct tcp", "lan tcp"} for attempt in self.attempts)

    @property
    def median(self) -> float:
        """Seconds of the successful ones; infinite if there is none."""
        return statistics.median([a.seconds for a in self.attempts if not a.error] or [float("inf")])


def run_matrix(kinds: Sequence[str], *, attempts: int, delay: float, at_once: int = 4, relay: RelayUse = "never") -> list[Cell]:
    """Call from every kind to every kind, each with a site, a profile and a peer of its own.

    Args:
        kinds: Names of `KINDS`.
        attempts: For each ordered pair, one after the other, each with a fresh peer on the caller's side.
        delay: Seconds, one way, on every line, the server's included.
        at_once: How many callers are busy at the same time.
        relay: Whether the callers use it; else a call ends in a direct stream or not at all.

    Raises:
        ConfigError: There is no such kind.
        LaboratoryError: The laboratory cannot be built here.
    """
    for kind in kinds:
        find_kind(kind)
    with tempfile.TemporaryDirectory() as directory, Lab(server_delay=delay) as lab, contextlib.ExitStack() as stack:
        server = (lab.server.ip, _PORT)
        stack.enter_context(_server(lab, server))
        callees = {kind: lab.site(kind, delay=delay, name=f"callee-{kind}") for kind in kinds}
        callers = {kind: lab.site(kind, delay=delay, name=f"caller-{kind}") for kind in kinds}
        profiles = _Profiles(Path(directory), kinds)
        for kind, site in callees.items():
            stack.enter_context(_callee(site, profiles.callee(kind), _tag("callee", kind), server))
        free = threading.Semaphore(at_once)
        threads = [
            site.host.thread(_calls, kind, profiles.caller(kind), kinds, server, attempts, free, relay)
            for kind, site in callers.items()
        ]
        return [cell for thread in threads for cell in thread.result()]


def _tag(role: str, kind: str) -> str:
    return f"{role}-{kind.lower()}".replace("_", "-")


class _Profiles:
    """A profile for every caller and callee; all callees admit all callers."""

    def __init__(self, directory: Path, kinds: Sequence[str]) -> None:
        self._directory = directory
        for role, other in (("callee", "caller"), ("caller", "callee")):
            for kind in kinds:
                store = self._profile(role, kind).peers()
                for there in kinds:
                    key = self._profile(other, there).identity().public
                    store.add(_tag(other, there), key, ("echo",) if role == "callee" else ())

    def callee(self, kind: str) -> Profile:
        return self._profile("callee", kind)

    def caller(self, kind: str) -> Profile:
        return self._profile("caller", kind)

    def _profile(self, role: str, kind: str) -> Profile:
        return Profile(self._directory / f"{role}-{kind}")


@contextlib.contextmanager
def _server(lab: Lab, address: Address) -> Generator[None]:
    one, other = lab.server.ips
    observers = [(one, address[1] + 1), (other, address[1])]  # so that peers know how their NATs map
    with living(lab.server, lambda: Rendezvous(address, alt_listen=observers)):
        yield


@contextlib.contextmanager
def _callee(site: Site, profile: Profile, tag: str, server: Address) -> Generator[None]:
    async def echo(stream: Stream) -> None:
        async for part in stream:
            await stream.write(part)
        await stream.write_eof()

    @contextlib.asynccontextmanager
    async def serving() -> AsyncGenerator[None]:
        async with Peer(tag, rendezvous=f"{server[0]}:{server[1]}", profile=profile) as peer, peer.serve({"echo": echo}):
            yield

    with living(site.host, serving):
        yield


def _calls(
    kind: str,
    profile: Profile,
    kinds: Sequence[str],
    server: Address,
    attempts: int,
    free: threading.Semaphore,
    relay: RelayUse,
) -> list[Cell]:
    """Call every kind from one host; runs in a thread of that host."""
    cells: list[Cell] = []
    for there in kinds:
        with free:
            results = tuple(asyncio.run(_call(kind, profile, there, server, relay)) for _ in range(attempts))
        cells.append(Cell(kind, there, results))
    return cells


async def _call(kind: str, profile: Profile, there: str, server: Address, relay: RelayUse) -> Attempt:
    sample = os.urandom(_SAMPLE_BYTES)
    began = time.monotonic()
    try:
        at = f"{server[0]}:{server[1]}"
        async with Peer(_tag("caller", kind), rendezvous=at, profile=profile, relay=relay) as peer:
            began = time.monotonic()
            async with await peer.connect(_tag("callee", there), "echo", timeout=_CALL_TIMEOUT) as stream:
                seconds = time.monotonic() - began
                await stream.write(sample)
                await stream.write_eof()
                echoed = await stream.readexactly(_SAMPLE_BYTES)
                path = stream.path
    except (P2PTunnelError, OSError, asyncio.IncompleteReadError) as error:
        return Attempt(time.monotonic() - began, "", f"{type(error).__name__}: {error}")
    if echoed != sample:
        return Attempt(seconds, "", "the bytes that came back differ")
    return Attempt(seconds, f"{path.kind} {path.transport}")


# --- the command ------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `matrix`."""
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"kinds of NAT [{' '.join(DEFAULT_KINDS)}]")
    parser.add_argument("-n", "--attempts", type=int, default=10, help="calls of each ordered pair [10]")
    parser.add_argument(
        "-d", "--delay", type=float, action="append", metavar="S", help="one way, on each line; may be repeated [0 and 0.025]"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a cell instead of a table")


def run(arguments: argparse.Namespace) -> int:
    """Run the matrix and print it; 1 if a call did not end in a direct stream."""
    kinds = tuple(arguments.kinds or DEFAULT_KINDS)
    failed = 0
    for delay in arguments.delay or (0.0, 0.025):
        cells = run_matrix(kinds, attempts=arguments.attempts, delay=delay)
        failed += sum(cell.direct < len(cell.attempts) for cell in cells)
        if arguments.json:
            for cell in cells:
                print(json.dumps({"delay": delay, "direct": cell.direct, **msgspec.to_builtins(cell)}))
        else:
            print(_table(cells, kinds, delay))
    return 1 if failed else 0


def _milliseconds(seconds: float) -> str:
    return "-" if math.isinf(seconds) else f"{seconds * 1000:.0f}"


def _table(cells: Sequence[Cell], kinds: Sequence[str], delay: float) -> str:
    by_pair = {(cell.caller, cell.callee): cell for cell in cells}
    width = max(11, *(len(kind) + 1 for kind in kinds))
    lines = [f"One way {delay * 1000:g} ms a line.  Rows call columns: direct TCP streams of all calls, median ms."]
    lines.append("".join(text.rjust(width) for text in ("", *kinds)))
    for caller in kinds:
        shown = [by_pair[caller, callee] for callee in kinds]
        texts = [f"{cell.direct}/{len(cell.attempts)} {_milliseconds(cell.median)}" for cell in shown]
        lines.append("".join(text.rjust(width) for text in (caller, *texts)))
    total, direct = sum(len(cell.attempts) for cell in cells), sum(cell.direct for cell in cells)
    lines.append(f"{direct} of {total} calls ended in a direct TCP stream.")
    for cell in cells:
        lines += [f"  {cell.caller} -> {cell.callee}: {attempt.error}" for attempt in cell.attempts if attempt.error]
    return "\n".join(lines) + "\n"
