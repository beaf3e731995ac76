"""Sends a server's probes back: datagrams from its other addresses, and TCP connections from there.

Rule: nothing is ever said on such a connection, and half a second after it is up it is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from p2ptunnel.defaults import PROBE_BACK_PATIENCE, PROBES_BACK_MAX
from p2ptunnel.errors import DialError
from p2ptunnel.net.dial import dial
from p2ptunnel.net.sockets import reset_close
from p2ptunnel.net.udp import UdpSocket
from p2ptunnel.protocol.probing import ProbeBack
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import Observed, ReflexiveAnswer, decode, encode

__all__ = ["Prober"]

_TAKEN_WITHIN: Final = 0.5  # seconds
_dice: Final = random.SystemRandom()


class Prober:
    """The addresses from which one server probes back.

    Args:
        observers: Their UDP sockets, whose addresses are also dialled from; in the order in which -5 lists them.
        answer: Sends a line over a TCP connection, by its number.
    """

    def __init__(self, observers: Sequence[UdpSocket], answer: Callable[[int, bytes], None]) -> None:
        self._observers: Final = tuple(observers)
        self._answer: Final = answer
        self._dialing: Final[set[asyncio.Task[None]]] = set()

    def probe(self, wanted: ProbeBack) -> None:
        """Do what the broker wants."""
        if wanted.observer >= len(self._observers):  # the server is coming up
            return
        udp = self._observers[wanted.observer]
        if wanted.connection is None:
            udp.send(wanted.line, wanted.address)
        elif len(self._dialing) < PROBES_BACK_MAX:
            task = asyncio.create_task(self._dial(udp.address, wanted.address, wanted.connection, wanted.line))
            self._dialing.add(task)
            task.add_done_callback(self._dialing.discard)

    def close(self) -> None:
        """Dial no more."""
        for task in self._dialing:
            task.cancel()

    async def wait_closed(self) -> None:
        """Wait until every socket is closed."""
        await asyncio.gather(*self._dialing, return_exceptions=True)

    async def _dial(self, local: Address, asker: Address, connection: int, line: bytes) -> None:
        try:
            sock = await dial(local, asker, rng=_dice, patience=PROBE_BACK_PATIENCE, redials=0)
        except DialError as error:
            self._tell(connection, line, error.outcome)
            return
        try:
            self._tell(connection, line, "connected")
            await _until_taken(sock)
        finally:
            reset_close(sock)

    def _tell(self, connection: int, line: bytes, outcome: str) -> None:
        answer = decode(line)
        assert isinstance(answer, ReflexiveAnswer)  # our own
        extra = msgspec.structs.replace(answer.extra or Observed(), back=outcome)
        self._answer(connection, encode(msgspec.structs.replace(answer, extra=extra)))


async def _until_taken(sock: socket.socket) -> None:
    """Wait until the other end has closed it: reset at once, it would be gone before its owner hears of it."""
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(_TAKEN_WITHIN):
            await asyncio.get_running_loop().sock_recv(sock, 1)
