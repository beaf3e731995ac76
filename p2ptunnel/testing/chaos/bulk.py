"""Bulk transfers, half of the bytes each way at the same time: by a port forward, and by `pipe`."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import subprocess
from collections.abc import Generator
from dataclasses import replace
from typing import Final

from p2ptunnel.testing.chaos.bytes import End, exchange, socket_end
from p2ptunnel.testing.chaos.flow import ChaosError, Ledger, wait_for_program
from p2ptunnel.testing.chaos.workload import Load, Running
from p2ptunnel.testing.chaos.world import SINK, SINK_PORT, World
from p2ptunnel.testing.natlab.programs import end_program

__all__ = ["forward", "pipe"]

_PATIENCE: Final = 30.0
_READ: Final = 64 * 1024


@contextlib.contextmanager
def forward(world: World, ledger: Ledger, load: Load) -> Generator[Running]:
    """Have a client of `p2ptunnel forward` and the service behind it send to each other."""
    laptop = world.stage.laptop
    argv = world.p2ptunnel(laptop, "--json", "forward", world.tag, f"0:{SINK}")
    line = world.stage.start(laptop, argv, lambda line: "listening" in line)
    with _sink(world) as sink, world.cafe.host.socket() as client:
        client.settimeout(_PATIENCE)
        client.connect(("127.0.0.1", json.loads(line)["address"][1]))
        client.settimeout(None)
        with _bulk(sink, ledger, load, socket_end(client)) as running:
            yield running


@contextlib.contextmanager
def pipe(world: World, ledger: Ledger, load: Load) -> Generator[Running]:
    """Have whoever writes to and reads from `p2ptunnel pipe` and the service behind it send to each other."""
    laptop = world.stage.laptop
    with _sink(world) as sink, (laptop.directory / "pipe.txt").open("wb") as log:
        argv = world.p2ptunnel(laptop, "pipe", world.tag, SINK)
        program = world.cafe.host.popen(argv, text=False, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        try:
            with _bulk(sink, ledger, load, _program_end(program)) as running:

                def finish(timeout: float) -> bool:
                    return running.finish(timeout) and wait_for_program(program, "pipe", timeout) == 0

                yield replace(running, finish=finish)
        finally:
            end_program(program)


@contextlib.contextmanager
def _sink(world: World) -> Generator[socket.socket]:
    """Listen for what the peer at home opens for the caller."""
    with world.home.host.socket() as listener:
        listener.settimeout(_PATIENCE)
        listener.bind(("127.0.0.1", SINK_PORT))
        listener.listen()
        yield listener


@contextlib.contextmanager
def _bulk(sink: socket.socket, ledger: Ledger, load: Load, near: End) -> Generator[Running]:
    """Accept at home what has been opened, and send both ways."""
    try:
        far, _ = sink.accept()
    except TimeoutError as error:
        raise ChaosError(f"no stream came up in {_PATIENCE:g} s") from error
    half = load.size_bytes // 2
    with far, exchange(ledger, (near, socket_end(far)), half, load.rate / 2, load.seed) as both:
        yield Running(both.up, (both.up, both.down), both.finish)


def _program_end(program: subprocess.Popen[bytes]) -> End:
    """Return the end that is a program's input and output."""
    to, out = program.stdin, program.stdout
    assert isinstance(to, io.BufferedWriter)
    assert isinstance(out, io.BufferedReader)

    def write(data: bytes) -> None:
        to.write(data)
        to.flush()

    return End(write, lambda: out.read1(_READ), to.close, program.kill)
