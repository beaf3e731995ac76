"""Applications that the destruction of their path does not reach; and that the programs which prove it would notice."""

from __future__ import annotations

import collections
import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from p2ptunnel.testing.chaos.__main__ import parse
from p2ptunnel.testing.chaos.bytes import End, chunks, exchange, socket_end
from p2ptunnel.testing.chaos.faults import KINDS, plan
from p2ptunnel.testing.chaos.flow import ChaosError, Ledger
from p2ptunnel.testing.chaos.report import Recovery, Report, percentile

MIB = 1 << 20
COMMAND = (sys.executable, "-m", "p2ptunnel.testing.chaos")


def chaos(directory: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Run it; return its status and its report."""
    file = directory / "report.json"
    done = subprocess.run([*COMMAND, "--json", str(file), *options], capture_output=True, text=True, timeout=280, check=False)
    assert file.exists(), done.stdout + done.stderr
    print(done.stdout, done.stderr)  # shown with a failure
    return done.returncode, json.loads(file.read_text())


@pytest.mark.timeout(300)
def test_an_upload_and_a_download_survive_every_kind_of_fault(tmp_path: Path) -> None:
    status, report = chaos(tmp_path, "--size", str(24 * MIB), "--kills", "5", "--rate", "3000000")
    assert [recovery["kind"] for recovery in report["recoveries"]] == list(KINDS)
    assert (status, report["is_equal"], report["errors"]) == (0, True, [])


@pytest.mark.parametrize("workload", ["forward", "pipe", "ssh"])
def test_without_a_fault_everything_arrives(tmp_path: Path, workload: str) -> None:
    status, report = chaos(tmp_path, "--workload", workload, "--size", str(2 * MIB), "--kills", "0")
    assert (status, report["is_equal"], report["errors"], report["recoveries"]) == (0, True, [], [])


def test_ssh_and_scp_live_through_a_cut(tmp_path: Path) -> None:
    status, report = chaos(tmp_path, "--workload", "ssh", "--size", str(2 * MIB), "--kills", "1", "--rate", "1000000")
    assert (status, report["is_equal"], report["errors"]) == (0, True, [])
    [recovery] = report["recoveries"]
    assert recovery["kind"] == "cut"
    assert 0 < recovery["seconds"] < 15
    assert report["seconds"] > KINDS["cut"].seconds + recovery["seconds"]


def test_interrupted_it_leaves_no_file(tmp_path: Path) -> None:
    argv = [*COMMAND, "--keep", str(tmp_path / "kept"), "--size", str(1000 * MIB), "--rate", "1000000"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert "forward: 1048576000 bytes, 20 faults" in program.stdout.readline()
        program.send_signal(signal.SIGTERM)
        _, errors = program.communicate(timeout=30)
    assert (program.returncode, errors) == (130, "interrupted\n")
    assert not [entry for entry in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _read(entry)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--kinds", "kill,fire", "there is no kind 'fire'"),
        ("--size", "1", "--size"),
        ("--size", "2T", "'2T' is no size"),
        ("--rate", "-1", "--rate is 0 or more"),
        ("--delay", "nan", "--delay is 0 or more"),
        ("--json", "/nowhere/report.json", "there is no directory /nowhere"),
        ("--keep", str(Path(__file__).parent), "is not an empty directory"),
        ("--keep", __file__, "is not an empty directory"),
    ],
)
def test_misuse_is_told(option: str, value: str, said: str) -> None:
    done = subprocess.run([*COMMAND, option, value], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(("text", "size"), [("2", 2), ("3K", 3072), ("200M", 200 * MIB), ("1G", 1024 * MIB)])
def test_a_size_may_be_written_with_a_unit(text: str, size: int) -> None:
    assert parse(["--size", text]).size == size


def test_faults_come_evenly_and_in_turn_on_sides_of_the_seed() -> None:
    faults = list(plan(20, 1, tuple(KINDS)))
    assert [fault.number for fault in faults] == list(range(1, 21))
    assert [fault.after for fault in faults] == [number / 21 for number in range(1, 21)]
    assert collections.Counter(fault.kind for fault in faults) == dict.fromkeys(KINDS, 4)
    assert {fault.side for fault in faults} == {0, 1}
    assert faults == list(plan(20, 1, tuple(KINDS))) != list(plan(20, 2, tuple(KINDS)))


def test_every_chunk_is_another_one() -> None:
    size = 10 * 16 * 1024 + 100
    made = list(chunks(size, seed=1))
    assert sum(map(len, made)) == size
    assert len(set(made)) == 11
    assert b"".join(chunks(size, seed=2)) != b"".join(made)


@contextlib.contextmanager
def wire() -> Generator[tuple[End, End, socket.socket, socket.socket]]:
    """Two ends of a connection, and their sockets."""
    near, far = socket.socketpair()
    with near, far:
        yield socket_end(near), socket_end(far), near, far


def test_an_exchange_ends_when_all_has_arrived_both_ways() -> None:
    ledger = Ledger()
    with wire() as (near, far, *_), exchange(ledger, (near, far), MIB, 0, 1) as both:
        assert both.finish(10)
        assert (both.up.written, both.up.arrived) == (both.down.written, both.down.arrived) == (MIB, MIB)
    assert ledger.errors == []


@pytest.mark.parametrize("change", ["swap", "double", "flip"])
def test_bytes_that_are_not_those_sent_are_noticed(change: str) -> None:
    """Only the content differs: the length is kept, and no error is seen."""
    held: list[bytes] = []
    with wire() as (near, far, *_):

        def write(data: bytes) -> None:
            held.append(data)
            if len(held) == 64:
                mangled = {
                    "swap": [held[1], held[0], *held[2:]],
                    "double": [held[0], held[0], *held[2:]],
                    "flip": [*held[:-1], held[-1][:-1] + bytes([held[-1][-1] ^ 1])],
                }
                near.write(b"".join(mangled[change]))

        mangling = End(write, near.read, near.finish, near.abort)
        with exchange(Ledger(), (mangling, far), MIB, 0, 1) as both:
            assert not both.finish(10)


def test_an_early_end_is_an_error() -> None:
    ledger = Ledger()
    with wire() as (near, far, *_):
        closing = End(lambda data: None, near.read, near.finish, near.abort)
        with (
            exchange(ledger, (closing, far), MIB, 0, 1) as both,
            pytest.raises(ChaosError, match="it ended after 0 of 1048576"),
        ):
            both.finish(10)
    assert ledger.errors == ["up, receiving: EOFError('it ended after 0 of 1048576 bytes')"]


def test_a_reset_is_an_error_and_ends_the_waiting() -> None:
    ledger = Ledger()
    with wire() as (near, far, _, sock), exchange(ledger, (near, far), MIB, 100_000, 1) as both:
        both.up.wait_beyond(0, 10)
        sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(ChaosError, match=r"up, .*|down, .*"):
            both.up.wait_beyond(MIB - 1, 10)
    assert ledger.errors


def test_silence_is_an_error() -> None:
    flow = Ledger().flow("up", 100)
    flow.write(100)
    flow.arrive(7)
    assert flow.wait_beyond(6, 10) > 0
    with pytest.raises(ChaosError, match=r"up: nothing arrived for 0\.05 s, after 7 of 100"):
        flow.wait_beyond(7, 0.05)


def test_arrivals_renew_the_patience_and_the_end_is_enough() -> None:
    flow = Ledger().flow("up", 3)
    arriving = threading.Thread(target=lambda: [flow.arrive(1) for _ in range(3)])
    arriving.start()
    assert flow.wait_beyond(99, 10) > 0
    arriving.join()


def report(**changes: Any) -> Report:
    recoveries = [Recovery(number, "kill" if number % 2 else "cut", "home", number / 10, 0) for number in range(1, 21)]
    values: dict[str, Any] = {
        "workload": "forward",
        "size_bytes": MIB,
        "seed": 1,
        "delay": 0.02,
        "seconds": 12.0,
        "is_equal": True,
        "errors": [],
        "recoveries": recoveries,
        "planned": 20,
    }
    return Report(**{**values, **changes})


def test_a_report_sums_up_each_kind_and_all() -> None:
    summaries = report().summaries()
    assert summaries["all"] == {"count": 20, "p50": 1.0, "p95": 1.9, "max": 2.0}
    assert summaries["kill"] == {"count": 10, "p50": 0.9, "p95": 1.9, "max": 1.9}
    assert "cut      10 recoveries  p50 1.00 s  p95 2.00 s  max 2.00 s" in str(report())
    assert "20 of 20 faults survived\nsha256 equal; errors: none" in str(report())


@pytest.mark.parametrize("change", [{"is_equal": False}, {"errors": ["up, receiving: reset"]}, {"planned": 21}])
def test_a_report_is_good_only_if_nothing_went_wrong(change: dict[str, Any]) -> None:
    assert report().is_good
    assert not report(**change).is_good


def test_a_percentile_is_one_of_the_values() -> None:
    assert [percentile([3.0, 1.0, 2.0], share) for share in (0, 0.5, 0.95, 1)] == [1.0, 2.0, 3.0, 3.0]
