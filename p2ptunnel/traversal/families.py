"""Over which of two families a server answers: IPv4 goes first, and IPv6 a moment later beside it.

IPv4 goes first since peers meet over IPv6 beside it whatever the server sees, and most of them have both.  Source: RFC 8305.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from p2ptunnel.defaults import FAMILY_HEAD_START, FAMILY_PATIENCE
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.net.reflexive import observe_udp
from p2ptunnel.net.sockets import ANY_IPV4, ANY_IPV6, is_loopback, reset_close
from p2ptunnel.types import Address

__all__ = ["first_to_answer"]


async def first_to_answer(addresses: Sequence[Address]) -> Address:
    """Return the first of a server's numeric addresses that answers, over UDP or TCP; where none does, the first.

    Each is asked a moment after the one before, at once if that has said that it cannot be reached; 1.5 s in all.
    """
    asking: dict[asyncio.Task[bool], Address] = {}
    try:
        async with asyncio.timeout(FAMILY_PATIENCE):
            for address in addresses:
                asking[asyncio.create_task(_answers(address))] = address
                is_last = address == addresses[-1]
                if (found := await _first_of(asking, None if is_last else FAMILY_HEAD_START)) is not None:
                    return found
    except TimeoutError:
        pass
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return addresses[0]


async def _first_of(asking: dict[asyncio.Task[bool], Address], seconds: float | None) -> Address | None:
    """Wait until one answers, so long at most, None: as long as any may; return it."""
    loop = asyncio.get_running_loop()
    ends_at = None if seconds is None else loop.time() + seconds
    waiting = {task for task in asking if not task.done()}
    while waiting:
        left = None if ends_at is None else ends_at - loop.time()
        done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.result():
                return asking[task]
        if not done:
            break
    return None


async def _answers(address: Address) -> bool:
    """Tell whether a server answers there, over UDP or TCP."""
    tasks = [asyncio.create_task(ask(address)) for ask in (_answers_udp, _answers_tcp)]
    try:
        for ended in asyncio.as_completed(tasks):
            if await ended:
                return True
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return False


async def _answers_udp(address: Address) -> bool:
    anywhere = ANY_IPV6 if ":" in address[0] else ANY_IPV4
    try:
        await observe_udp((address[0] if is_loopback(address[0]) else anywhere, 0), address, timeout=FAMILY_PATIENCE)
    except (P2PTunnelError, OSError):
        return False
    return True


async def _answers_tcp(address: Address) -> bool:
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except OSError:
        return False
    finally:
        reset_close(sock)
    return True
