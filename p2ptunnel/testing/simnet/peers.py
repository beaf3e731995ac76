"""The two sides of a call, with the real machines.

A channel is simulated by two payloads on the nominated connection: the conkey one way, the acceptance back.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from p2ptunnel.defaults import PREAMBLE_TIMEOUT
from p2ptunnel.identity.keys import Identity
from p2ptunnel.protocol.callee import AnswerApart, CalleeAgent, CalleePort, CalleeState, OtherPort
from p2ptunnel.protocol.caller import CallerAgent
from p2ptunnel.protocol.detour import OpenQuic
from p2ptunnel.protocol.intent import CallSigner, IntentJudge
from p2ptunnel.protocol.machine import Event, Hole
from p2ptunnel.protocol.punch import CallFailed, ConnectionChosen, HoleOpened, LocalView, Nominate
from p2ptunnel.protocol.rounds import Rounds
from p2ptunnel.testing.simnet.driver import Credentials
from p2ptunnel.testing.simnet.network import Host, Network
from p2ptunnel.testing.simnet.side import Habits, Side, look_around
from p2ptunnel.testing.simnet.tcp import Socket
from p2ptunnel.types import Address, Tag
from p2ptunnel.wire.messages import PunchNotice

__all__ = ["CALLEE_IDENTITY", "CALLER_IDENTITY", "SimCallee", "SimCaller", "SimCounter"]

CALLER_IDENTITY: Final = Identity.from_seed(b"caller".ljust(32))
CALLEE_IDENTITY: Final = Identity.from_seed(b"callee".ljust(32))
_ACCEPTED: Final = "accepted"
_REPEAT: Final = 0.3  # seconds beyond a round trip: what was written to a connection and got no answer is written again


class SimCounter:
    """The counter of signed calls, in memory."""

    def __init__(self) -> None:
        self._last = 0

    def next(self, at_least: int = 0) -> int:
        """Return a value above all before, and above `at_least`."""
        self._last = max(self._last, at_least) + 1
        return self._last


_counter: Final = SimCounter()  # all callers have one key


class SimCaller(Side):
    """The calling side.

    Attributes:
        agent: The real one.
        failure: Why the call failed, None unless it has.
        ended_at: When it ended, one way or the other.
        has_hole: UDP passes both ways.
        quic: What was to be begun by QUIC, which is not simulated; None: nothing.
        quic_at: When.
    """

    def __init__(
        self,
        network: Network,
        host: Host,
        server: Address,
        wanted: Tag,
        habits: Habits,
        *,
        rounds: Rounds | None = None,
        port: int | None = None,
    ) -> None:
        """Look around; `start` calls, from another `port` of the host if one is given."""
        view = look_around(network, host, server, habits, port)
        signer = CallSigner(CALLER_IDENTITY, _counter, network.random, callee=CALLEE_IDENTITY.public)
        birthdays = self.birthdays(habits)
        self.agent = CallerAgent(
            "caller",
            wanted,
            server,
            view,
            network.random,
            signer=signer,
            birthdays=birthdays,
            rounds=rounds,
            port=host.port if port is None else port,
        )
        self.failure: CallFailed | None = None
        self.ended_at: float | None = None
        self.has_hole = False
        self.quic: OpenQuic | None = None
        self.quic_at: float | None = None
        self._nominated: int | None = None
        super().__init__(self.agent, network, host, server, habits, port)

    def start(self) -> None:
        """Call."""
        self.agent.start(self._clock.now)
        self.flush()

    def socket_up(self, socket: Socket) -> None:
        """Tell the agent, which decides whether it counts."""
        self.agent.connection_up(socket.number, self._clock.now)
        self.flush()

    def socket_down(self, socket: Socket) -> None:
        """Tell the agent, if it counts on this connection."""
        super().socket_down(socket)
        self._give_up(socket.number)

    def row_seen(self, token: str, port: int) -> None:
        """Tell the agent."""
        self.agent.observed(port, self._clock.now)
        self.flush()

    def at_hole(self, hole: Hole, data: bytes, source: Address) -> None:
        """Tell the agent."""
        self.agent.receive_at_hole(hole, data, source, self._clock.now)
        self.flush()

    def port_taken(self, token: str, number: int, view: LocalView) -> None:
        """Tell the agent."""
        self.agent.port_taken(number, view.candidates, self._clock.now)
        self.flush()

    def received(self, socket: Socket, payload: str) -> None:
        """Take the acceptance: the channel is up."""
        if socket.number == self._nominated and payload == _ACCEPTED:
            self._nominated = None
            self.chosen[self.agent.token] = socket
            self.agent.channel_up(self._clock.now)
            self.flush()

    def _handle(self, event: Event) -> None:
        super()._handle(event)
        match event:
            case Nominate():
                self._nominate(event)
            case CallFailed():
                self.failure, self.ended_at, self._nominated = event, self._clock.now, None
            case HoleOpened():
                self.has_hole = True
            case OpenQuic():
                self.quic, self.quic_at = event, self._clock.now
            case ConnectionChosen():
                self.ended_at = self._clock.now
            case _:
                pass

    def _nominate(self, event: Nominate) -> None:
        self._nominated = event.connection
        socket = next((socket for socket in self.sockets if socket.number == event.connection), None)
        if socket is None:  # it was reset while it waited for its turn
            self._clock.call_later(0.0, self._give_up, event.connection)
        else:
            self._clock.call_later(PREAMBLE_TIMEOUT, self._give_up, event.connection)
            self._write(socket, event.conkey)

    def _write(self, socket: Socket, conkey: str) -> None:
        if socket.number == self._nominated:
            self.stack_of(socket).send(socket, conkey)
            self._clock.call_later(_REPEAT + 4 * self.host.delay, self._write, socket, conkey)

    def _give_up(self, number: int) -> None:
        if number == self._nominated:
            self._nominated = None
            for socket in self.sockets:
                if socket.number == number:
                    self.stack_of(socket).reset(socket)
            self.agent.channel_failed(self._clock.now)
            self.flush()


class Answering(Side):
    """What answers calls on one port."""

    @property
    def agents(self) -> tuple[CalleeAgent, ...]:
        """The calls under way there."""
        return ()

    def socket_up(self, socket: Socket) -> None:
        """Tell the agents that it may be for."""
        for agent in self._agents_from(socket):
            agent.connection_up()

    def socket_down(self, socket: Socket) -> None:
        """Tell them that it was not, if it had been up."""
        super().socket_down(socket)
        if socket.state == "established":
            for agent in self._agents_from(socket):
                agent.connection_failed(self._clock.now)
            self.flush()

    def row_seen(self, token: str, port: int) -> None:
        """Tell the agent of that call."""
        for agent in (agent for agent in self.agents if agent.token == token):
            agent.observed(port, self._clock.now)
            self.flush()

    def at_hole(self, hole: Hole, data: bytes, source: Address) -> None:
        """Tell the agent of that call."""
        for agent in (agent for agent in self.agents if agent.token == hole.token):
            agent.receive_at_hole(hole, data, source, self._clock.now)
            self.flush()

    def port_taken(self, token: str, number: int, view: LocalView) -> None:
        """Tell the agent of that call."""
        for agent in (agent for agent in self.agents if agent.token == token):
            agent.port_taken(number, view.candidates, self._clock.now)
            self.flush()

    def received(self, socket: Socket, payload: str) -> None:
        """Take a conkey: accept the channel that it stands for, or close; a repeated one is answered alike."""
        if socket not in self.chosen.values():
            agent = self._agent_of(payload)
            if agent is None:
                self.stack_of(socket).reset(socket)
                return
            self.chosen[agent.token] = socket
            agent.channel_accepted(socket.number)
            self.flush()
        self.stack_of(socket).send(socket, _ACCEPTED)

    def _agents_from(self, socket: Socket) -> list[CalleeAgent]:
        return [agent for agent in self.agents if agent.caller[0] == socket.remote[0]]

    def _agent_of(self, conkey: str) -> CalleeAgent | None:
        opened = (agent for agent in self.agents if agent.state is CalleeState.OPENED)
        return next((agent for agent in opened if agent.conkey == conkey), None)


class SimApart(Answering):
    """One call that is answered from a port of its own."""

    def __init__(self, agent: CalleeAgent, network: Network, host: Host, server: Address, habits: Habits, port: int) -> None:
        """Take what arrives at that port."""
        self._agent = agent
        super().__init__(agent, network, host, server, habits, port)

    @property
    def agents(self) -> tuple[CalleeAgent, ...]:
        """The one call."""
        return (self._agent,)


class SimCallee(Answering):
    """The called side.

    Attributes:
        port: The real machine.
        apart: What has answered calls from ports of their own.
    """

    def __init__(
        self,
        network: Network,
        host: Host,
        server: Address,
        tag: Tag,
        habits: Habits,
        *,
        rounds: Rounds | None = None,
        others: Iterable[int] = (),
    ) -> None:
        """Look around; `start` registers.  `others` are ports from which to answer where the host's own is burnt."""
        judge = IntentJudge(CALLEE_IDENTITY, network.random, is_admitted=CALLER_IDENTITY.public.__eq__)
        self.port = CalleePort(
            tag,
            server,
            Credentials("callee's key"),
            network.random,
            udp_port=host.port,
            screen=_let_in,
            judge=judge,
            birthdays=self.birthdays(habits),
            rounds=rounds,
            has_others=bool(ports := tuple(others)),
        )
        self.apart: list[SimApart] = []
        self._others = iter(ports)
        self.port.view = look_around(network, host, server, habits)
        super().__init__(self.port, network, host, server, habits)

    def start(self) -> None:
        """Register."""
        self.port.registration.start(self._clock.now)
        self.flush()

    @property
    def agents(self) -> tuple[CalleeAgent, ...]:
        """The calls under way on this port."""
        return tuple(agent for agent in self.port.agents if not agent.is_apart)

    def _handle(self, event: Event) -> None:
        if isinstance(event, AnswerApart):
            self._answer_apart(event.token)
        else:
            super()._handle(event)

    def _answer_apart(self, token: str) -> None:
        number = next(self._others, None)
        view = look_around(self.network, self.host, self._server, self._habits, number)
        other = None if number is None else OtherPort(view, number)
        agent = self.port.answer_apart(token, other, self._clock.now)
        if agent is not None and number is not None:
            self.apart.append(SimApart(agent, self.network, self.host, self._server, self._habits, number))
            self.apart[-1].flush()


def _let_in(notice: PunchNotice) -> None:
    """Screen nobody: who calls is proved in the channel."""
