"""One call on the network in memory, from registration to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from p2ptunnel.protocol.caller import CallerState
from p2ptunnel.protocol.punch import CallFailed
from p2ptunnel.protocol.registration import RegistrationState
from p2ptunnel.testing.simnet.driver import SimServer
from p2ptunnel.testing.simnet.kinds import find_kind
from p2ptunnel.testing.simnet.network import Network
from p2ptunnel.testing.simnet.peers import SimCallee, SimCaller
from p2ptunnel.testing.simnet.side import Habits
from p2ptunnel.types import Address

__all__ = ["CALLEE", "CALLER", "SERVER", "TAG", "Call", "Outcome", "run_punch"]

SERVER: Final[Address] = ("203.0.113.1", 7000)
CALLER: Final[Address] = ("198.51.100.1", 40_001)
CALLEE: Final[Address] = ("198.51.100.2", 40_002)
TAG: Final = "callee"

_REGISTRATION_MAX: Final = 60.0  # seconds; under heavy loss a registration takes several tries
_CALL_MAX: Final = 60.0  # longer than every timer of a call together
_HABITS: Final = Habits()


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a call.

    Attributes:
        connected: The caller has a channel.
        agreed: The callee has the other end of the same connection; or, without a channel, nothing that the caller still holds.
        seconds: From the call's start to the caller's end of it.
        failure: Why there is no channel.
        datagrams: UDP passed both ways, too.
        packets: How many were sent, the registration's not counted.
        drops: How many of these ended on the way, by reason.
    """

    connected: bool
    agreed: bool
    seconds: float
    failure: CallFailed | None
    datagrams: bool
    packets: int
    drops: Mapping[str, int]


class Call:
    """A caller, a callee and their server, ready to go: for looking at more than the outcome.

    Attributes:
        network: Their internet.
        server: The rendezvous server.
        caller: Who calls.
        callee: Who is registered.
    """

    def __init__(
        self,
        network: Network,
        caller_kind: str,
        callee_kind: str,
        *,
        delay: float = 0.025,
        server_delay: float = 0.0,
        caller: Habits = _HABITS,
        callee: Habits = _HABITS,
        compat_seed: bool = False,
    ) -> None:
        """Connect all three; the arguments are those of `run_punch`, and whether the server serves seed-only programs.

        Raises:
            ConfigError: There is no such kind.
        """
        self.network = network
        calling = network.add(*CALLER, delay=delay, kind=find_kind(caller_kind))
        called = network.add(*CALLEE, delay=delay, kind=find_kind(callee_kind))
        self.server = SimServer(network, network.add(*SERVER, delay=server_delay), compat_seed=compat_seed)
        self.callee = SimCallee(network, called, SERVER, TAG, callee)
        self.caller = SimCaller(network, calling, SERVER, TAG, caller)

    def register(self) -> None:
        """Let the callee register, unless it is registered."""
        if not self._is_registered():
            self.callee.start()
            clock = self.network.clock
            clock.run_until(clock.now + _REGISTRATION_MAX, self._is_registered)

    def run(self) -> Outcome:
        """Register, call, and go on until both sides have come to an end."""
        self.register()
        network, clock = self.network, self.network.clock
        started, packets, drops = clock.now, network.packets, network.drops.copy()
        self.caller.start()
        clock.run_until(started + _CALL_MAX, self._is_over)
        ended = self.caller.ended_at
        return Outcome(
            connected=self.caller.agent.state is CallerState.CONNECTED,
            agreed=self._is_agreed(),
            seconds=clock.now - started if ended is None else ended - started,
            failure=self.caller.failure,
            datagrams=self.caller.has_hole,
            packets=network.packets - packets,
            drops=network.drops - drops,
        )

    def _is_registered(self) -> bool:
        return self.callee.port.registration.state is RegistrationState.REGISTERED

    def _is_over(self) -> bool:
        return self.caller.ended_at is not None and not self.callee.port.agents

    def _is_agreed(self) -> bool:
        ours, theirs = list(self.caller.chosen.values()), list(self.callee.chosen.values())
        if not ours:
            return not self.caller.sockets
        return bool(theirs) and (ours[0].peer, ours[0].number) == (theirs[0].number, theirs[0].peer)


def run_punch(
    caller_kind: str,
    callee_kind: str,
    *,
    seed: int,
    delay: float = 0.025,
    server_delay: float = 0.0,
    jitter: float = 0.0,
    loss: float = 0.0,
    duplicate: float = 0.0,
    reorder: float = 0.0,
    caller: Habits = _HABITS,
    callee: Habits = _HABITS,
) -> Outcome:
    """Let one side call the other across their NATs; the same arguments give the same outcome.

    Args:
        caller_kind: Name of the caller's kind of site.
        callee_kind: Name of the callee's.
        seed: Of everything random.
        delay: Seconds on each of the two peers' access links, one way.
        server_delay: The same on the server's.
        jitter: Seconds that a packet may take longer.
        loss: Share of packets that get lost.
        duplicate: Share that arrives twice.
        reorder: Share that is held back, so that later ones overtake it.
        caller: What the caller does otherwise than p2ptunnel does.
        callee: What the callee does.

    Raises:
        ConfigError: There is no such kind.
    """
    network = Network(seed=seed, jitter=jitter, loss=loss, duplicate=duplicate, reorder=reorder)
    return Call(network, caller_kind, callee_kind, delay=delay, server_delay=server_delay, caller=caller, callee=callee).run()
