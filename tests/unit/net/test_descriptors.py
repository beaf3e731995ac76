"""How many files may still be opened: so many fewer as are open; and a limit that is low is raised."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from p2ptunnel.net import descriptors
from p2ptunnel.net.descriptors import allow_descriptors, free_descriptors, spare_descriptors


def test_each_open_file_is_one_less() -> None:
    before = free_descriptors()
    assert before is not None
    with socket.socket(), socket.socket():
        assert free_descriptors() == before - 2
    assert free_descriptors() == before


def test_without_a_limit_nobody_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert free_descriptors() is None


def test_there_are_never_fewer_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 1))
    assert free_descriptors() == 0


def test_64_are_left_to_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, spare in [(None, 1024), (20_000, 19_936), (576, 512), (575, 511), (128, 64), (127, 0), (0, 0)]:
        monkeypatch.setattr(descriptors, "free_descriptors", lambda free=free: free)
        assert spare_descriptors() == spare


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((256, resource.RLIM_INFINITY), (1024, resource.RLIM_INFINITY)),
        ((256, 4096), (1024, 4096)),
        ((256, 512), (512, 512)),
        ((256, 256), None),
        ((1024, 1_048_576), None),
        ((20_000, 20_000), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_a_low_limit_is_raised_as_far_as_it_may_be_and_a_high_one_left_alone(
    before: tuple[int, int], after: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: before)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    allow_descriptors()
    assert limits == ([] if after is None else [after])


@pytest.mark.parametrize("error", [ValueError("not allowed to raise maximum limit"), OSError(22, "Invalid argument")])
def test_a_system_that_refuses_stays_as_it_is(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    allow_descriptors()


def test_a_peer_that_starts_raises_the_limit_of_its_process(tmp_path: Path) -> None:
    program = f"""
import asyncio, resource
from p2ptunnel import Peer
async def main():
    async with Peer("laptop", profile={str(tmp_path)!r}):
        print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 2048))
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "1024\n"
