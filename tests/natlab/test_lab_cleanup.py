"""Nothing is left: not after SIGKILL of a process with a whole laboratory, and not after a laboratory was closed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from p2ptunnel.errors import ConfigError
from p2ptunnel.testing.natlab import Lab, namespace
from p2ptunnel.testing.natlab import lab as lab_module
from p2ptunnel.testing.natlab.capability import capable

PATIENCE = 5.0
SO_NETNS_COOKIE = 71
HOLDER = """
import os, socket, sys, threading
from p2ptunnel.testing.natlab import Lab

def cookie(machine):
    with machine.socket() as probe:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, 71, 8), sys.byteorder)

with Lab(server_delay=0.001) as lab:
    sites = [lab.site(kind, delay=0.001) for kind in ("pr", "fc", "noSO", "dbl", "pub")]
    programs = [site.host.popen(["sleep", "1000"]) for site in sites]
    sites[0].host.thread(threading.Event().wait)
    machines = [lab.inet, lab.server, sites[0].router, *(site.host for site in sites)]
    print(*map(cookie, machines))
    print(*(program.pid for program in programs), lab._plane._process.pid, flush=True)
    sys.stdin.read()
"""


def held_namespaces() -> set[int]:
    """The cookies of all network namespaces in which a process lives, or which one holds by a descriptor, or a mount.

    A cookie is never used twice; inode numbers are, and other laboratories may come and go meanwhile.
    """
    places: dict[str, str] = {}
    for process in Path("/proc").glob("[0-9]*"):
        for link in (process / "ns/net", *_descriptors(process)):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                target = os.readlink(link)
                if target.startswith("net:"):
                    places[target] = str(link)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " net:[" in line:
            places[line.split()[3]] = line.split()[4]
    return {cookie for place in places.values() if (cookie := cookie_at(place)) is not None}


def cookie_at(place: str) -> int | None:
    try:
        descriptor = os.open(place, os.O_RDONLY)
    except OSError:
        return None
    try:
        with namespace._away("setns", descriptor, namespace._CLONE_NEWNET), socket.socket() as probe:
            return cookie_of(probe)
    finally:
        os.close(descriptor)


def cookie_of(probe: socket.socket) -> int:
    return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)


def _descriptors(process: Path) -> list[Path]:
    try:
        return list((process / "fd").iterdir())
    except OSError:
        return []


def has_ended(process: int, seconds: float = 0) -> bool:
    """Wait for the end of the process behind a descriptor."""
    return bool(select.select([process], [], [], seconds)[0])


def test_nothing_is_left_after_sigkill() -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        made, pids = (set(map(int, holder.stdout.readline().split())) for _ in range(2))
        assert (len(made), len(pids)) == (8, 6)
        assert made <= held_namespaces()
        with contextlib.ExitStack() as watched:
            processes = [os.pidfd_open(pid) for pid in pids]
            for process in processes:
                watched.callback(os.close, process)
            assert not any(map(has_ended, processes))
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            assert all(has_ended(process, PATIENCE) for process in processes)
    assert not made & held_namespaces()


def test_nothing_is_left_after_a_laboratory_was_closed() -> None:
    with Lab() as lab:
        sites = [lab.site(kind, delay=0.001) for kind in ("pr", "noSO", "pub")]
        made: set[int] = set()
        for machine in (lab.inet, lab.server, sites[0].router, *(site.host for site in sites)):
            with machine.socket() as probe:
                made.add(cookie_of(probe))
        program, engine = sites[0].host.popen(["sleep", "1000"]), lab._plane._process
        assert engine is not None
        assert made <= held_namespaces()
    assert program.returncode == -signal.SIGKILL
    assert engine.returncode == 0
    assert not made & held_namespaces()
    lab.close()


def test_a_laboratory_that_could_not_be_built_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(ConfigError, match=r"no line can be like this: delay is not negative: -1\.0"):
        Lab(server_delay=-1.0)
    monkeypatch.setattr(lab_module, "_SERVER_ADDRESSES", ("203.0.113.1", "203.0.113.1"))
    with pytest.raises(FileExistsError):
        Lab(server_delay=0.001)
    assert sorted(os.listdir("/proc/self/fd")) == before


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


def test_settings_that_cannot_be_made_are_named() -> None:
    protect = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
    reason = reason_under("unshare", "--mount", "sh", "-c", protect, "sh")
    assert reason.startswith("the kernel's network settings cannot be made: [Errno 30] Read-only file system")


def test_an_nft_that_cannot_translate_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "nft"
    broken.write_text("#!/bin/sh\necho 'Operation not supported' >&2\nexit 1\n")
    broken.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert reason_under(PATH=path) == "nft cannot make a NAT: Operation not supported"
