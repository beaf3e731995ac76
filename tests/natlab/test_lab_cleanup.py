"""Nothing is left: not after SIGKILL of a process with a whole laboratory, and not after a laboratory was closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.capability import capable

PATIENCE = 5.0
HOLDER = """
import os, sys, threading
from p2ptunnel.testing.natlab import Lab

with Lab(server_delay=0.001) as lab:
    sites = [lab.site(kind, delay=0.001) for kind in ("pr", "fc", "noSO", "dbl", "pub")]
    programs = [site.host.popen(["sleep", "1000"]) for site in sites]
    sites[0].host.thread(threading.Event().wait)
    machines = [lab.inet, lab.server, sites[0].router, *(site.host for site in sites)]
    print(*(os.fstat(machine.namespace.descriptor).st_ino for machine in machines))
    print(*(program.pid for program in programs), lab._plane._process.pid, flush=True)
    sys.stdin.read()
"""


def held_namespaces() -> set[str]:
    """Every network namespace that a process lives in or holds by a descriptor, or that is mounted."""
    found: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        for link in (process / "ns/net", *_descriptors(process)):
            try:
                target = os.readlink(link)
            except OSError:  # it has ended meanwhile
                continue
            if target.startswith("net:"):
                found.add(target)
    found.update(line.split()[3] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " net:[" in line)
    return found


def _descriptors(process: Path) -> list[Path]:
    try:
        return list((process / "fd").iterdir())
    except OSError:
        return []


def soon(is_true: Callable[[], bool]) -> bool:
    """Watch until it is true; the kernel tells nobody when a namespace ends."""
    deadline = time.monotonic() + PATIENCE
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"  # it has ended, and waits for whoever inherited it to notice


def test_nothing_is_left_after_sigkill() -> None:
    before = held_namespaces()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        inodes, pids = (list(map(int, holder.stdout.readline().split())) for _ in range(2))
        made = {f"net:[{inode}]" for inode in inodes}
        assert len(made) == 8
        assert made <= held_namespaces() - before
        assert not any(is_gone(pid) for pid in pids)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert soon(lambda: all(is_gone(pid) for pid in pids))
    assert soon(lambda: not made & held_namespaces())


def test_nothing_is_left_after_a_laboratory_was_closed() -> None:
    with Lab() as lab:
        sites = [lab.site(kind, delay=0.001) for kind in ("pr", "noSO", "pub")]
        machines = [lab.inet, lab.server, sites[0].router, *(site.host for site in sites)]
        made = {f"net:[{os.fstat(machine.namespace.descriptor).st_ino}]" for machine in machines}
        program, engine = sites[0].host.popen(["sleep", "1000"]), lab._plane._process
        assert engine is not None
        assert made <= held_namespaces()
    assert is_gone(program.pid)
    assert is_gone(engine.pid)
    assert not made & held_namespaces()
    lab.close()


def test_a_laboratory_that_could_not_be_built_leaves_nothing() -> None:
    before = held_namespaces()
    try:
        Lab(server_delay=-1.0)
    except ValueError:
        assert held_namespaces() == before
    else:
        raise AssertionError("it was built")


# --- where it cannot be built -------------------------------------------------------------------------------------------


def reason_under(*wrapper: str, **environment: str) -> str:
    """What `capable` says in a process under some wrapper."""
    code = "from p2ptunnel.testing.natlab import capable; print(capable())"
    clean = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    result = subprocess.run([*wrapper, sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_here_it_can_be_built() -> None:
    assert capable() is None


def test_whoever_may_not_make_namespaces_is_told_so() -> None:
    reason = reason_under("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--")
    assert reason.startswith("no network namespace can be made: [Errno 1] unshare: Operation not permitted (be root")


def test_a_missing_tun_device_is_named() -> None:
    hide = 'mount --bind /dev/null /dev/net/tun && exec "$@"'
    assert reason_under("unshare", "--mount", "sh", "-c", hide, "sh").startswith("no TUN device can be made: [Errno ")


def test_an_nft_that_cannot_translate_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "nft"
    broken.write_text("#!/bin/sh\necho 'Operation not supported' >&2\nexit 1\n")
    broken.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert reason_under(PATH=path) == "nft cannot make a NAT: Operation not supported"
