"""Which ports a sequential NAT will take next, how many of them are tried in which round, and in which order.

Between what was observed and our SYN, others behind the same NAT may have taken ports.  Against a NAT that keeps its port this
costs a wider window and no more.  Between two sequential NATs it would cost the meeting: our k-th SYN leaves from our k-th
port, and must be for the very port from which the other side's SYN to that port leaves.  If others have taken i ports on one
side and j on the other, then SYNs meet of which one aims i + j further than it counts.  So one of the two sides, the caller,
aims at every second port: its k-th SYN is k - 1 further, and makes up for as many taken ports.

Rule: values in, values out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from p2ptunnel.addresses import port_refusal
from p2ptunnel.defaults import PREDICTED_BUSY, PREDICTED_MAX, PREDICTED_TCP, PREDICTED_UDP, PREDICTED_UNSEALED
from p2ptunnel.protocol.nat import PORT_FIRST, PORT_RANGE
from p2ptunnel.types import Transport
from p2ptunnel.wire.messages import PortRow

__all__ = ["predict", "steps", "window"]

_FIRST_WINDOW: Final[dict[Transport, int]] = {"tcp": PREDICTED_TCP, "udp": PREDICTED_UDP}


def predict(row: PortRow, ahead: Iterable[int]) -> tuple[int, ...]:
    """Return the ports that a NAT takes so many steps ahead, in this order, each once.

    After 65535 comes 1024, and before 1024 comes 65535.  Where no probe may go is left out.
    """
    offset = row.last - PORT_FIRST
    ports = (PORT_FIRST + (offset + step * row.delta) % PORT_RANGE for step in ahead)
    return tuple(port for port in dict.fromkeys(ports) if port_refusal(port) is None)


def steps(count: int, *, is_staggered: bool) -> range:
    """Return how many steps on the k-th of `count` SYNs aims: k, or 2k - 1 on the side that makes up for taken ports."""
    return range(1, 2 * count, 2) if is_staggered else range(1, count + 1)


def window(transport: Transport, round_number: int, *, is_busy: bool, is_sealed: bool) -> int:
    """Return how many ports ahead to try, 5 to 32.

    Args:
        transport: Of the flows.
        round_number: From 0; each failure doubles the window, since more flows of others come in between than was thought.
        is_busy: The NAT was seen to give ports to others in between.
        is_sealed: The peer has told where its NAT stands under the attempt's key; hints, as old as the call, buy 5 packets.
    """
    first = max(PREDICTED_BUSY if is_busy else 0, _FIRST_WINDOW[transport])
    wanted = min(first << min(round_number, 8), PREDICTED_MAX)
    return wanted if is_sealed else min(wanted, PREDICTED_UNSEALED)
