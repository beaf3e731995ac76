"""How long a NAT remembers a UDP port that is silent: several fall silent at once, each is tried after a time of its own.

Rule: whoever is asked to try is asked from another port, since a packet of the silent one would begin its time anew.
Source: RFC 4787 4.3, RFC 5780 4.6.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.net.reflexive import observe_udp
from p2ptunnel.net.sockets import ANY_IPV4
from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.net.watch import Watch
from p2ptunnel.protocol.machine import Event
from p2ptunnel.traversal.backquestion import BackQuestion, Over
from p2ptunnel.traversal.netreport import Lifetime
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import ProbeExtra

__all__ = ["mapping_lifetime"]

_PORTS: Final = 5
_REPEATS: Final = 2  # of each question: a source has few
_ON_ITS_WAY: Final = 0.3  # seconds that the last answer has


async def mapping_lifetime(server: Address, longest: float) -> Lifetime | None:
    """Watch for `longest` seconds; None: the server does not tell.

    Args:
        server: Numeric.
        longest: Seconds, > 0; a fifth of it is how exactly it is told.
    """
    waits = [longest * number / _PORTS for number in range(1, _PORTS + 1)]
    told = await asyncio.gather(*(_is_open_after(server, wait) for wait in waits))
    if None in told:
        return None
    shut = next((wait for wait, is_open in zip(waits, told, strict=True) if not is_open), None)
    return Lifetime(max((wait for wait in waits if shut is None or wait < shut), default=0.0), shut)


async def _is_open_after(server: Address, wait: float) -> bool | None:
    """Tell whether a port that has been silent for so long still lets the server in; None: nobody tells."""
    with contextlib.suppress(P2PTunnelError, OSError):
        silent = UdpSocket(("::" if ":" in server[0] else ANY_IPV4, 0))
        try:
            _, port = (await observe_udp(silent.address, server)).address
            await asyncio.sleep(wait)
            return await _lets_in(silent, server, port)
        finally:
            silent.close()
    return None


async def _lets_in(silent: UdpSocket, server: Address, port: int) -> bool | None:
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    over: asyncio.Future[bool] = loop.create_future()

    def on_readable() -> None:
        if any(source == server for _, source in silent.receive()):
            came.set()

    def on_event(event: Event) -> None:
        if isinstance(event, Over) and not over.done():
            over.set_result(event.is_told)

    watch = Watch(silent.socket, on_readable)
    question = BackQuestion(server, (ProbeExtra(to=port),), loop.time(), repeats=_REPEATS)
    asking = UdpSocket((silent.address[0], 0), shared=False)
    try:
        async with UdpDriver(question, asking, on_event, clock=loop.time) as driver:
            driver.wake()
            arriving = asyncio.create_task(came.wait())
            waiting: set[asyncio.Future[Any]] = {arriving, over}
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not arriving.done() and over.result():
                    await asyncio.wait({arriving}, timeout=_ON_ITS_WAY)
            finally:
                arriving.cancel()
        return True if came.is_set() else (False if over.done() and over.result() else None)
    finally:
        watch.stop()
        asking.close()
