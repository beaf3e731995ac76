"""Blocking calls off the loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from p2ptunnel.net.threads import in_thread
from tests.helpers import run

HANGING = """
import asyncio, threading
from p2ptunnel.net.threads import in_thread
async def main():
    try:
        async with asyncio.timeout(0.05):
            await in_thread(threading.Event().wait)
    except TimeoutError:
        print("gave up")
asyncio.run(main())
"""


def test_result_comes_back() -> None:
    assert run(in_thread(divmod, 7, 2)) == (3, 1)


def test_error_comes_back() -> None:
    with pytest.raises(ZeroDivisionError):
        run(in_thread(divmod, 7, 0))


def test_loop_runs_on_meanwhile() -> None:
    async def main() -> None:
        leave = threading.Event()
        waiting = asyncio.create_task(in_thread(leave.wait))
        await asyncio.sleep(0)
        leave.set()
        assert await waiting

    run(main())


def test_result_that_nobody_waits_for_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        leave = threading.Event()
        waiting = asyncio.create_task(in_thread(leave.wait))
        await asyncio.sleep(0)
        [thread] = [thread for thread in threading.enumerate() if thread.name == "p2ptunnel-wait"]
        waiting.cancel()
        leave.set()
        await asyncio.to_thread(thread.join)
        assert waiting.cancelled()

    run(main())
    assert caplog.messages == []


def test_hanging_call_does_not_keep_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=15, check=True)
    assert done.stdout == "gave up\n"
