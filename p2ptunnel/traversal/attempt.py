"""The sockets of one attempt: what its agent asks for, done on its port.

Rule: whoever makes one closes it, and then waits until nothing of it runs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from p2ptunnel.defaults import PUNCH_TIMEOUT, REDIALS_PER_PHASE
from p2ptunnel.net.burst import Burst
from p2ptunnel.net.tcp import Dialer, DialRecord, How
from p2ptunnel.protocol.birthday import BirthdayEnded, OpenHoles, SendProbes
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.punch import Dial, ObserveRow, StopDialing
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.port import PunchPort
from p2ptunnel.types import Address

__all__ = ["AttemptSockets"]


class AttemptSockets:
    """Dials, holes and guesses of one attempt, on the port that it punches.

    Args:
        port: Whose number they share; it stays the caller's.
        on_connected: Gets each connection that comes up, to own it.
        on_row: Told which port our NAT gave last, if the agent asks; None: nobody knows.
        tracer: Told what becomes of them.
    """

    def __init__(
        self,
        port: PunchPort,
        on_connected: Callable[[socket.socket, Address, How], None],
        on_row: Callable[[int | None], None],
        *,
        tracer: Tracer | None = None,
    ) -> None:
        self._port: Final = port
        self._on_row: Final = on_row
        self._dialer: Final = Dialer(port.address, on_connected, tracer=tracer)
        self._burst: Final = Burst(port.address, on_connected, tracer=tracer)
        self._observing: asyncio.Task[None] | None = None

    @property
    def records(self) -> tuple[DialRecord, ...]:
        """One for each dial of a phase; those of a birthday are too many to be told one by one."""
        return self._dialer.records

    def take(self, event: Event) -> None:
        """Do what an event asks for, if it is about sockets."""
        match event:
            case Dial():
                self._dial(event)
            case OpenHoles():
                ttl = self._ttl(low=event.low)
                self._burst.open_holes(len(event.holes), event.target, low_ttl=ttl, patience=PUNCH_TIMEOUT)
            case SendProbes():
                self._burst.probe(event.host, event.ports, patience=event.patience)
            case ObserveRow():
                self._observing = asyncio.create_task(self._observe())
            case BirthdayEnded():
                self._burst.close()
            case StopDialing():
                self.close()
            case _:
                pass

    def close(self) -> None:
        """Reset what is under way; connections handed over stay.  Closing twice is fine."""
        self._dialer.close()
        self._burst.close()
        if self._observing is not None:
            self._observing.cancel()

    async def wait_closed(self) -> None:
        """Wait until nothing of it runs, after `close`."""
        if self._observing is not None:
            await asyncio.gather(self._observing, return_exceptions=True)

    def _dial(self, wanted: Dial) -> None:
        if wanted.is_beside:
            self._dialer.add(wanted.targets, patience=wanted.patience)
            return
        opener = self._port.opener(wanted.targets[0][0] if wanted.targets else "")
        self._dialer.start(
            wanted.targets,
            low_ttl=opener.ttl if wanted.low else None,
            hop_rtt=opener.rtt,
            patience=wanted.patience,
            redials=0 if wanted.is_unseen and not wanted.low else REDIALS_PER_PHASE,
        )

    def _ttl(self, *, low: bool) -> int | None:
        return self._port.udp.opener_ttl if low else None

    async def _observe(self) -> None:
        self._on_row(await self._port.observe_row())
