"""An asynchronous context manager that lives on a machine of the laboratory, on a loop and a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Final

from p2ptunnel.testing.natlab.host import Host

__all__ = ["living"]

_TIMEOUT: Final = 30.0


@contextlib.contextmanager
def living(host: Host, make: Callable[[], contextlib.AbstractAsyncContextManager[object]]) -> Generator[None]:
    """Have what `make` returns entered on `host` while the block lasts.

    Args:
        host: Where its sockets are.
        make: Called there, on its loop: `lambda: Rendezvous(address)`.

    Raises:
        TimeoutError: It was not entered or left in 30 s.
        BaseException: Whatever entering or leaving it raised.
    """
    ready: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def live() -> None:
        ended = asyncio.Event()
        async with make():
            ready.set_result((asyncio.get_running_loop(), ended))
            await ended.wait()

    def body() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            raise

    thread = host.thread(body)
    loop, ended = ready.result(_TIMEOUT)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.result(_TIMEOUT)
