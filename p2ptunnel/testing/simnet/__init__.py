"""The network in memory: NATs, links and TCP's openings on one virtual clock, under the real machines.  No I/O, no asyncio.

What it models and what it does not is written in docs/protocol/machines.md.
"""

from p2ptunnel.testing.simnet.driver import Credentials, Driver, SimServer
from p2ptunnel.testing.simnet.kinds import KINDS, PUNCHABLE, Kind, find_kind
from p2ptunnel.testing.simnet.nat import Nat
from p2ptunnel.testing.simnet.network import Host, Network
from p2ptunnel.testing.simnet.peers import SimCallee, SimCaller
from p2ptunnel.testing.simnet.run import CALLEE, CALLER, SERVER, TAG, Call, Outcome, run_punch
from p2ptunnel.testing.simnet.segment import ACK, RST, SYN, SYN_ACK, Segment
from p2ptunnel.testing.simnet.side import Habits, Side
from p2ptunnel.testing.simnet.tcp import Owner, Socket, TcpStack

__all__ = [
    "ACK",
    "CALLEE",
    "CALLER",
    "KINDS",
    "PUNCHABLE",
    "RST",
    "SERVER",
    "SYN",
    "SYN_ACK",
    "TAG",
    "Call",
    "Credentials",
    "Driver",
    "Habits",
    "Host",
    "Kind",
    "Nat",
    "Network",
    "Outcome",
    "Owner",
    "Segment",
    "Side",
    "SimCallee",
    "SimCaller",
    "SimServer",
    "Socket",
    "TcpStack",
    "find_kind",
    "run_punch",
]
