"""The counter of signed calls: it only grows, whatever becomes of its file, its process and the clock."""

from __future__ import annotations

import logging
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2ptunnel.defaults import COUNTER_STEP
from p2ptunnel.errors import StoreError
from p2ptunnel.identity import counter as module
from p2ptunnel.identity.counter import ProfileCounter

NOW = 1_767_225_600_000_000


class Clock:
    def __init__(self, now: int = NOW) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def test_it_looks_like_microseconds_and_grows_when_the_clock_does_not(tmp_path: Path) -> None:
    clock = Clock()
    counter = ProfileCounter(tmp_path / "counter", clock)
    counter.reserve()
    assert [counter.next(), counter.next()] == [NOW, NOW + 1]
    clock.now -= 10**12
    assert counter.next() == NOW + 2
    clock.now = NOW + 10**6
    assert counter.next() == NOW + 10**6


def test_it_is_above_what_is_asked_for(tmp_path: Path) -> None:
    counter = ProfileCounter(tmp_path / "counter", Clock())
    assert counter.next(NOW + 5) == NOW + 6
    assert counter.next() == NOW + 7


@pytest.mark.parametrize("now", [NOW, 0, NOW - 10**15])
def test_after_a_restart_it_goes_on_above_all_whatever_the_clock_says(tmp_path: Path, now: int) -> None:
    path = tmp_path / "profile" / "counter"
    used = 0
    for _ in range(5):
        counter = ProfileCounter(path, Clock(NOW if not used else now))
        counter.reserve()
        values = [counter.next() for _ in range(100)]
        assert values[0] > used
        assert values == sorted(set(values))
        used = values[-1]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_process_that_was_killed_has_used_nothing_that_its_successor_uses(tmp_path: Path) -> None:
    clock = Clock(0)
    first = ProfileCounter(tmp_path / "counter", clock)
    first.reserve()
    used = [first.next() for _ in range(COUNTER_STEP // 1000)]
    second = ProfileCounter(tmp_path / "counter", clock)
    second.reserve()
    assert second.next() > used[-1]


def test_processes_share_no_value_and_none_takes_back_what_another_has_taken(tmp_path: Path) -> None:
    path, clock = tmp_path / "counter", Clock(0)
    counters = [ProfileCounter(path, clock) for _ in range(4)]
    values: list[int] = []
    saved = 0
    for _ in range(3):
        for counter in counters:
            counter.reserve()
            assert int(path.read_text()) >= saved
            saved = int(path.read_text())
            values += [counter.next() for _ in range(50)]
            values.append(counter.next(values[-1] + COUNTER_STEP))  # most of what it has taken
    assert len(set(values)) == len(values)


def test_what_could_not_be_saved_is_skipped_at_the_next_start(tmp_path: Path) -> None:
    first = ProfileCounter(tmp_path / "counter", Clock(0))
    first.reserve()
    used = first.next(int((tmp_path / "counter").read_text()) + 100)  # a callee has seen more; then the process was killed
    second = ProfileCounter(tmp_path / "counter", Clock(0))
    second.reserve()
    assert second.next() > used


def test_within_a_second_the_disk_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, writes = Clock(), 0
    write = module.write_private

    def counted(path: Path, data: bytes) -> None:
        nonlocal writes
        writes += 1
        write(path, data)

    monkeypatch.setattr(module, "write_private", counted)
    counter = ProfileCounter(tmp_path / "counter", clock)
    for _ in range(1000):
        counter.reserve()
        counter.next()
        clock.now += 1000
    assert writes == 1
    clock.now += 2 * COUNTER_STEP
    counter.reserve()
    assert writes == 2


def test_what_is_used_has_been_saved_before(tmp_path: Path) -> None:
    clock = Clock()
    counter = ProfileCounter(tmp_path / "counter", clock)
    for pause in (0, 10, COUNTER_STEP - 1, COUNTER_STEP, 10 * COUNTER_STEP):
        clock.now += pause
        counter.reserve()
        assert counter.next() < int((tmp_path / "counter").read_text())


def test_a_disk_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise StoreError(str(path), "No space left on device")

    path, clock = tmp_path / "counter", Clock(0)
    first = ProfileCounter(path, clock)
    first.reserve()
    used = first.next()
    monkeypatch.setattr(module, "write_private", full)
    second = ProfileCounter(path, clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            second.reserve()
            assert second.next() > used
            used = second.next()
    assert [record.getMessage() for record in caplog.records] == [
        f"the counter of signed calls cannot be saved: {path}: No space left on device"
    ]


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-5", b"9" * 30, b"%d" % 2**62, b"%d" % 2**63, "\u0665".encode(), b"\xff"]
)
def test_nonsense_in_the_file_counts_as_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "counter"
    path.write_bytes(content)
    path.chmod(0o600)
    counter = ProfileCounter(path, Clock())
    counter.reserve()
    assert counter.next() == NOW


def test_threads_may_reserve_at_once(tmp_path: Path) -> None:
    counter = ProfileCounter(tmp_path / "counter", Clock())
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(counter.reserve) for _ in range(50)]:
            future.result()
    assert counter.next() == NOW
