"""The sockets of one attempt: what its agent asks for, done on its port.

Rule: whoever makes one closes it, and then waits until nothing of it runs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from p2ptunnel.defaults import PUNCH_TIMEOUT, REDIALS_PER_PHASE
from p2ptunnel.errors import BindError
from p2ptunnel.net.burst import Burst
from p2ptunnel.net.holes import UdpHoles
from p2ptunnel.net.interfaces import leave_alike
from p2ptunnel.net.tcp import Dialer, DialRecord, How, Listener
from p2ptunnel.net.udp import UdpSocket
from p2ptunnel.protocol.birthday import BirthdayEnded, OpenHoles, SendProbes
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.punch import Dial, ObserveRow, StopDialing, TakePort
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.quicport import QuicPort
from p2ptunnel.traversal.port import PunchPort
from p2ptunnel.types import Address

__all__ = ["AttemptSockets"]


class NextRound(NamedTuple):
    """What an attempt needs for a second round.

    open_port: Opens the port that it has, if it can.
    on_accepted: Gets each connection that comes in there.
    on_taken: Told of the port when it is ready.
    on_burnt: Told that the port of the first round turned out to be another program's.
    """

    open_port: Callable[[], Awaitable[PunchPort | None]]
    on_accepted: Callable[[socket.socket, Address], None]
    on_taken: Callable[[PunchPort], None]
    on_burnt: Callable[[], None]

    def __repr__(self) -> str:
        return "NextRound(…)"  # functions that know the token show it


class _Later(NamedTuple):
    """A second round under way, on a port of its own."""

    port: PunchPort
    listeners: tuple[Listener, ...]
    dialer: Dialer


class AttemptSockets:
    """Dials, holes and guesses of one attempt, on the port that it punches, and on another one in a second round.

    Args:
        port: Whose number they share; it stays the caller's.
        on_connected: Gets each connection that comes up, to own it.
        on_row: Told which port our NAT gave last, if the agent asks; None: nobody knows.
        later: What a second round needs; None: there is none.
        on_hole: Gets what comes to a hole over UDP: the number of the hole, the datagram, and from where; None: there are none.
        tracer: Told what becomes of them.
    """

    def __init__(
        self,
        port: PunchPort,
        on_connected: Callable[[socket.socket, Address, How], None],
        on_row: Callable[[int | None], None],
        later: NextRound | None = None,
        *,
        on_hole: Callable[[int, bytes, Address], None] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._port: Final = port
        self._on_hole: Final = on_hole
        self._holes: UdpHoles | None = None
        self._on_row: Final = on_row
        self._on_connected: Final = on_connected
        self._next: Final = later
        self._trace: Final = tracer or Tracer()
        self._later: _Later | None = None
        self._taking: asyncio.Task[None] | None = None
        self._dialer: Final = Dialer(port.address, on_connected, on_failed=self._on_failed, tracer=tracer)
        self._burst: Final = Burst(port.address, on_connected, tracer=tracer)
        self._observing: asyncio.Task[None] | None = None

    @property
    def records(self) -> tuple[DialRecord, ...]:
        """One for each dial of a phase; those of a birthday are too many to be told one by one."""
        return (*self._dialer.records, *(() if self._later is None else self._later.dialer.records))

    @property
    def has_other(self) -> bool:
        """Whether a second round has a port of its own."""
        return self._later is not None

    def take(self, event: Event) -> None:
        """Do what an event asks for, if it is about sockets."""
        match event:
            case Dial() if event.round == 0:
                self._dial(self._dialer, self._port, event)
            case Dial() if self._later is not None:
                self._dial(self._later.dialer, self._later.port, event)
            case TakePort() if self._next is not None and self._taking is None:
                self._taking = asyncio.create_task(self._take_port(self._next))
            case OpenHoles(transport="udp"):
                self._open_udp_holes(event.holes)
            case SendProbes(transport="udp"):
                pass  # its datagrams leave with those of the agent
            case OpenHoles():
                ttl = self._ttl(low=event.low)
                self._burst.open_holes(len(event.holes), event.target, low_ttl=ttl, patience=PUNCH_TIMEOUT)
            case SendProbes():
                self._burst.probe(event.host, event.ports, patience=event.patience)
            case ObserveRow():
                self._observing = asyncio.create_task(self._observe())
            case BirthdayEnded():
                self._close_birthday()
            case StopDialing():
                self.close()
            case _:
                pass

    def close(self) -> None:
        """Reset what is under way; connections handed over stay.  Closing twice is fine."""
        self._dialer.close()
        self._close_birthday()
        for task in (self._observing, self._taking):
            if task is not None:
                task.cancel()
        if self._later is not None:
            self._later.dialer.close()
            for listener in self._later.listeners:
                listener.close()
            self._later.port.close()

    def hole(self, number: int) -> UdpSocket | None:
        """Return the socket of a hole over UDP, None if it is not open."""
        return None if self._holes is None else self._holes.socket(number)

    def quic_at(self, number: int) -> QuicPort | None:
        """Return what expects or begins connections by QUIC at a hole, from now on; None if that is not open.

        A connection that stands when the holes are closed has the socket to itself.
        """
        udp = self.hole(number)
        if self._holes is None or udp is None:
            return None
        quic = QuicPort(udp, tracer=self._trace)
        self._holes.share(number, quic)
        return quic

    async def wait_closed(self) -> None:
        """Wait until nothing of it runs, after `close`."""
        tasks = (task for task in (self._observing, self._taking) if task is not None)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take_port(self, wanted: NextRound) -> None:
        port = await wanted.open_port()
        if port is None:
            return
        try:
            listeners = port.listen(wanted.on_accepted, is_limited=False)
        except BindError as error:  # a foreign socket has the number
            self._trace("traversal", "no_other_port", reason=str(error))
            port.close()
            return
        self._later = _Later(port, listeners, Dialer(port.address, self._on_connected, tracer=self._trace))
        self._trace("traversal", "second_round", port=port.address[1])
        wanted.on_taken(port)

    def _on_failed(self, record: DialRecord) -> None:
        if record.outcome == "burnt" and self._next is not None:
            self._next.on_burnt()

    def _dial(self, dialer: Dialer, port: PunchPort, wanted: Dial) -> None:
        if wanted.is_beside:
            dialer.add(_as_far(wanted.targets, port.server[0]), patience=wanted.patience)
            return
        opener = port.opener(wanted.targets[0][0] if wanted.targets else "")
        dialer.start(
            wanted.targets,
            low_ttl=opener.ttl if wanted.low else None,
            hop_rtt=opener.rtt,
            patience=wanted.patience,
            is_added=wanted.is_added,
            redials=0 if wanted.is_unseen and not wanted.low else REDIALS_PER_PHASE,
        )

    def _open_udp_holes(self, numbers: range) -> None:
        if self._on_hole is None:
            return
        if self._holes is None:
            self._holes = UdpHoles(self._port.address[0], self._port.udp.opener_ttl, self._on_hole, tracer=self._trace)
        self._holes.open(numbers)

    def _close_birthday(self) -> None:
        self._burst.close()
        if self._holes is not None:
            self._holes.close()

    def _ttl(self, *, low: bool) -> int | None:
        return self._port.udp.opener_ttl if low else None

    async def _observe(self) -> None:
        self._on_row(await self._port.observe_row())


def _as_far(targets: tuple[Address, ...], server: str) -> tuple[Address, ...]:
    """Return those to which our packets leave as to the server: what is in a VPN of ours is not behind the NAT before us."""
    return tuple(target for target in targets if leave_alike(target[0], server))
