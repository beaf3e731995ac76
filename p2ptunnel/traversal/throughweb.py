"""Whether the server is reached through what only lets the web through, as a call would reach it.

Rule: the server's own port has a head start; where it answers in that, nothing is sent to the other one.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import suppress
from functools import partial
from typing import Final

from p2ptunnel.defaults import WEB_HEAD_START, WEB_PORT
from p2ptunnel.errors import P2PTunnelError, RendezvousTimeoutError
from p2ptunnel.net.reflexive import TcpControl
from p2ptunnel.net.web import WebLinks, WebRoute, proxy_towards
from p2ptunnel.traversal.netreport import WebReport
from p2ptunnel.traversal.ways import Ways
from p2ptunnel.types import ServerSpec, format_address

__all__ = ["answers_soon", "through_web"]

_LEAST: Final = 0.5
"""Seconds for a way whose turn comes late."""


async def answers_soon(own_port: asyncio.Future[bool], timeout: float) -> bool:
    """Tell whether the server's own port answers over TCP before its head start is over.

    Args:
        own_port: Whether it answers, once that is known; it is not cancelled.
        timeout: Seconds for all that is asked: a quarter of it is the longest head start.
    """
    with suppress(TimeoutError):
        return await asyncio.wait_for(asyncio.shield(own_port), min(WEB_HEAD_START, timeout / 4))
    return False


async def through_web(server: ServerSpec, own_port: asyncio.Future[bool], timeout: float) -> WebReport | None:
    """Ask through TLS and WebSocket, as `Ways` does, how we look; None where the server's own port answers.

    Args:
        server: Its address is numeric.
        own_port: As `answers_soon`.
        timeout: Seconds, > 0, for all of it, the head start included.
    """
    over = asyncio.get_running_loop().time() + timeout
    if await answers_soon(own_port, timeout):
        return None
    links = WebLinks()
    try:
        return await _asked(server, links, over, timeout)
    finally:
        await links.close()


async def _asked(server: ServerSpec, links: WebLinks, over: float, patience: float) -> WebReport:
    problems: dict[str, str] = {}
    there = (server.address[0], WEB_PORT)

    async def open_(route: WebRoute | None) -> TcpControl:
        timeout = max(_LEAST, over - asyncio.get_running_loop().time())
        if route is None:  # its turn is over
            raise RendezvousTimeoutError(format_address(server.address), timeout, "TCP")
        try:
            return await TcpControl.open(0, there, timeout, connect=partial(links.connect, route))
        except RendezvousTimeoutError as error:
            problems[route.way] = str(RendezvousTimeoutError(error.server, max(_LEAST, patience), "TLS"))
            raise
        except P2PTunnelError as error:
            problems[route.way] = str(error)
            raise
        except OSError as error:
            problems[route.way] = _reason(error)
            raise

    try:
        control, route = await Ways(links).first(server, open_)
    except (P2PTunnelError, OSError):
        return WebReport(problem=problems["tls"])
    seen = WebReport(None if route is None else route.way, proxy_towards(server), control.observed, control.rtt)
    await control.close()
    return seen


def _reason(error: OSError) -> str:
    """Return what the system says: asyncio has put an address in its place, and TLS has no number of the system's."""
    if isinstance(error, ssl.SSLError) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)
