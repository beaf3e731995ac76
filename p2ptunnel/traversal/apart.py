"""One call that is answered from a port of its own, since the registered one is burnt for its caller.

Rule: it has everything of its own, and nothing of it outlives the call but the connection that was chosen.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.protocol.callee import CalleeAgent
from p2ptunnel.protocol.machine import Event, Hole
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.quicport import QuicPort
from p2ptunnel.traversal.port import PunchPort
from p2ptunnel.traversal.quic import QuicAnswers
from p2ptunnel.types import Address

__all__ = ["CallApart"]


class CallApart:
    """Runs one call's agent on its port.

    Args:
        port: Taken over, and closed by `close`.
        agent: Of the call.
        on_event: Gets what it reports.
        on_accepted: Gets each connection that comes in.
        hole_of: Returns the socket of a hole of its birthday.
        tracer: Told what happens.

    Attributes:
        port: As it was given.
        quic: What expects the caller there by QUIC.

    Raises:
        BindError: The port cannot be listened on.
    """

    def __init__(
        self,
        port: PunchPort,
        agent: CalleeAgent,
        on_event: Callable[[Event], None],
        on_accepted: Callable[[socket.socket, Address], None],
        hole_of: Callable[[Hole], UdpSocket | None],
        tracer: Tracer,
    ) -> None:
        self.port: Final = port
        quic = QuicPort(port.udp, tracer=tracer)
        self.quic: Final = QuicAnswers(quic, tracer)
        self._listeners: Final = port.listen(on_accepted, is_limited=False)
        self._driver: Final = UdpDriver(agent, port.udp, on_event, aside=quic)
        self._driver.hole_of = hole_of
        port.serve(self._driver)

    def start(self) -> None:
        """Do what the agent wants done from now on."""
        self._driver.start()

    def wake(self) -> None:
        """Do what it wants done since somebody has called it."""
        self._driver.wake()

    def close(self) -> None:
        """Close every socket of the port; closing twice is fine."""
        for listener in self._listeners:
            listener.close()
        self.quic.cancel()
        self._driver.close()
        self.port.close()
