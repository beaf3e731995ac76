"""The rig in real namespaces: what it sees of programs, and that it leaves none; and one whole run."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from bench.contest import FAR, SINK_PORT, BenchError
from bench.results import METRICS, Report
from bench.rig import Rig

pytestmark = [pytest.mark.natlab, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[3]
BURN = "import time, json\nwhile time.process_time() < 0.3: pass\nprint(json.dumps('burnt'), flush=True)\ntime.sleep(60)"
PARENT = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])"
DEAF = "import socket; s = socket.create_server(('', 7001))\nwhile True: s.accept()[0].close()"
SESSION = "import subprocess, sys\nsubprocess.run(['sleep', '60'], start_new_session=True)"


def has_ended(process: int) -> bool:
    """Wait a while for the end of the process behind a descriptor."""
    return bool(select.select([process], [], [], 5)[0])


def test_cpu_and_memory_are_the_sides_own_and_include_children() -> None:
    with Rig(30) as rig:
        assert rig.near.start([sys.executable, "-c", PARENT]).line() == '"burnt"'
        rig.near.start([sys.executable, "-c", BURN], counts=False).line()
        assert 0.29 <= rig.near.cpu_seconds() < 0.55
        assert rig.far.cpu_seconds() == rig.far.memory_kib() == 0
        assert rig.near.memory_kib() > 1000


def test_the_near_side_reaches_the_sink_of_the_far_one_by_the_cable() -> None:
    with Rig(30) as rig:
        rig.sink()
        near = rig.near.start([sys.executable, "-m", "bench.probe", "near", FAR, str(SINK_PORT)])
        assert near.ask("bulk", seconds=0.01)["bytes"] > 0
        assert near.ask("echo", count=5, seconds=5)["echo_p50"] > 0


def test_the_reason_is_what_a_program_said_last() -> None:
    with Rig(30) as rig:
        refusing = rig.far.start([sys.executable, "-c", "import sys; sys.exit('no room in the inn')"])
        with pytest.raises(BenchError, match=r"^no room in the inn$"):
            rig.far.wait_for_port(SINK_PORT, refusing)


def test_a_work_that_fails_gives_the_reason_of_the_near_side() -> None:
    with Rig(30) as rig:
        rig.far.wait_for_port(SINK_PORT, rig.far.start([sys.executable, "-c", DEAF]))
        near = rig.near.start([sys.executable, "-m", "bench.probe", "near", FAR, str(SINK_PORT)])
        with pytest.raises(BenchError, match=r"^(EOFError|ConnectionResetError|BrokenPipeError): "):
            near.ask("echo", count=1, seconds=1)


def test_a_line_that_is_no_answer_is_a_reason() -> None:
    with Rig(30) as rig, pytest.raises(BenchError, match=r"^said 'Hello!' where its figures should be$"):
        rig.near.start(["echo", "Hello!"]).ask("echo", count=1, seconds=1)


def test_time_is_limited_for_a_program_that_says_nothing_and_one_that_does_not_listen() -> None:
    with Rig(0.3) as rig:
        silent = rig.far.start(["sleep", "60"])
        with pytest.raises(BenchError, match="time limit"):
            silent.line()
        with pytest.raises(BenchError, match="time limit"):
            rig.far.wait_for_port(SINK_PORT, silent)


def test_a_program_and_its_child_in_another_session_end_with_the_rig() -> None:
    with Rig(30) as rig:
        program = rig.far.start([sys.executable, "-c", SESSION])
        while len(pids := program.pids) < 2:
            program.check()
            rig.remaining()
        with contextlib.ExitStack() as watched:
            processes = [os.pidfd_open(pid) for pid in pids]
            for process in processes:
                watched.callback(os.close, process)
            rig.close()
            assert all(map(has_ended, processes))
    assert not rig.directory.exists()


def test_who_may_not_make_namespaces_is_told_to_be_root() -> None:
    argv = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--", sys.executable, "-m", "bench", "--quick"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("bench: no network namespaces can be made: ")
    assert done.stderr.endswith("(be root)\n")


def test_a_quick_run_measures_everything(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    argv = [sys.executable, "-m", "bench", "--quick", "--rounds", "1", "--only", "ours,asyncio", "--json", str(file)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = Report.load(file)
    assert [(result.name, result.kind) for result in report.results] == [
        ("ours", "forward"),
        ("ours", "stream"),
        ("asyncio", "forward"),
        ("asyncio", "stream"),
    ]
    for result in report.results:
        assert result.trouble == []
        keys = {key for metric in METRICS for key in metric.keys}
        assert set(result.rounds[0]) == keys - ({"connect"} if result.kind == "forward" else set())
        assert result.rounds[0]["throughput"] > 10
    assert "| p2ptunnel forward" in done.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
