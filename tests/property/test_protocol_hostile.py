"""Caller, callee and broker between which anything may happen: nothing raises, everything ends, both sides agree."""

from __future__ import annotations

import random
from itertools import count

from hypothesis import example, given
from hypothesis import strategies as st

from p2ptunnel.identity.judge import Judge
from p2ptunnel.protocol.broker import Broker
from p2ptunnel.protocol.callee import CalleePort, CalleeState
from p2ptunnel.protocol.caller import CallerAgent, CallerState
from p2ptunnel.protocol.machine import Event, Machine
from p2ptunnel.protocol.punch import Dial, LocalView, Nominate, PunchStarted, StopDialing
from p2ptunnel.protocol.registration import Registration, RegistrationState
from p2ptunnel.testing.simnet import KINDS, Credentials, Habits, run_punch
from p2ptunnel.types import Address, Candidate
from p2ptunnel.wire.messages import MalformedMessageError, PunchNotice, RegisterExtra, decode
from tests.unit.protocol.actors import judge, signer

SERVER: Address = ("203.0.113.1", 7000)
CALLER: Address = ("198.51.100.1", 40001)
CALLEE: Address = ("198.51.100.2", 40002)
STRANGER: Address = ("192.0.2.66", 6666)
ADDRESSES = (SERVER, CALLER, CALLEE)
TRANSACTION = 10.0  # seconds in which every question under way is answered or given up


class _Believing(Judge):
    def is_signed(self, tag: str, extra: RegisterExtra) -> bool:
        return extra.sig == f"by {extra.key}"


def _let_in(_: PunchNotice) -> None:
    """Screen nobody."""


class World:
    """Three machines, the datagrams between them in somebody's hands, and the sockets that they ask for."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        views = {host: LocalView((Candidate("srflx", "tcp", host, 50002),), 0.05, can_open_low=True) for host, _ in ADDRESSES}
        self.now = 0.0
        self.broker = Broker(b"a secret of sixteen bytes or more", rng, _Believing())
        self.port = CalleePort("bob", SERVER, Credentials("key"), rng, udp_port=CALLEE[1], screen=_let_in, judge=judge())
        self.port.view = views[CALLEE[0]]
        self.caller = CallerAgent("alice", "bob", SERVER, views[CALLER[0]], rng, signer=signer())
        self.machines: dict[Address, Machine] = {SERVER: self.broker, CALLER: self.caller, CALLEE: self.port}
        self.flying: list[tuple[bytes, Address, Address]] = []
        self.nominated: Nominate | None = None
        self.chosen: set[str] = set()
        self.dialling: set[str] = set()
        self._connections = count(1)

    def collect(self) -> None:
        """Take what the machines want done."""
        for address, machine in self.machines.items():
            for event in machine.events():
                self._note(address, event)
            self.flying += [(datagram.data, address, datagram.destination) for datagram in machine.datagrams_to_send()]

    def _note(self, address: Address, event: Event) -> None:
        match event:
            case PunchStarted():
                self.dialling.add(f"{address} {event.token}")
            case Dial():
                assert event.patience > 0
                assert f"{address} {event.token}" in self.dialling  # nothing is dialled after StopDialing
            case StopDialing():
                self.dialling.discard(f"{address} {event.token}")
                self.nominated = None if address == CALLER else self.nominated
            case Nominate():
                assert self.nominated is None  # one at a time
                self.nominated = event
            case _:
                pass

    def deliver(self, flight: tuple[bytes, Address, Address]) -> None:
        """Let one datagram arrive."""
        data, source, destination = flight
        if destination in self.machines:
            self.machines[destination].receive_datagram(data, source, self.now)
        self.collect()

    def timer(self, address: Address) -> None:
        """Go to a machine's deadline, if it has one, and call its timer."""
        at = self.machines[address].next_deadline()
        self.now = max(self.now, at or self.now)
        self.machines[address].handle_timer(self.now)
        self.collect()

    def connect(self) -> None:
        """Bring up a TCP connection at the caller."""
        self.caller.connection_up(next(self._connections), self.now)
        self.collect()

    def answer_nomination(self, *, accept: bool) -> None:
        """Let the callee judge the nominated connection; then, if it comes back, the caller."""
        if self.nominated is None:
            return
        nominated, self.nominated = self.nominated, None
        agents = [agent for agent in self.port.agents if agent.state is CalleeState.OPENED]
        agent = next((agent for agent in agents if agent.conkey == nominated.conkey), None)
        if agent is not None and accept:
            agent.channel_accepted(nominated.connection)
            self.chosen.add(agent.token)
            self.caller.channel_up(self.now)
        else:
            self.caller.channel_failed(self.now)
        self.collect()

    def let_time_pass(self, seconds: float) -> None:
        """Run all timers, losing every datagram."""
        until = self.now + seconds
        while True:
            self.flying.clear()
            due = [(at, address) for address, machine in self.machines.items() if (at := machine.next_deadline()) is not None]
            if not due or min(due)[0] > until:
                self.now = until
                return
            self.timer(min(due)[1])


ACTIONS = st.one_of(
    st.tuples(st.just("deliver"), st.integers(0, 50)),
    st.tuples(st.just("deliver"), st.integers(0, 50)),  # more often than the rest, so that calls get somewhere
    st.tuples(st.just("duplicate"), st.integers(0, 50)),
    st.tuples(st.just("drop"), st.integers(0, 50)),
    st.tuples(st.just("damage"), st.integers(0, 10_000)),
    st.tuples(st.just("forge"), st.integers(0, 50)),
    st.tuples(st.just("timer"), st.integers(0, 2)),
    st.tuples(st.just("connect"), st.just(0)),
    st.tuples(st.just("accept"), st.just(0)),
    st.tuples(st.just("refuse"), st.just(0)),
    st.tuples(st.just("wait"), st.integers(1, 3000)),
    st.tuples(st.just("noise"), st.integers(0, 2), st.binary(max_size=60)),
)


def act(world: World, action: tuple[object, ...]) -> None:
    """Do what the adversary has chosen."""
    match action:
        case ("deliver", int(n)) if world.flying:
            world.deliver(world.flying.pop(n % len(world.flying)))
        case ("duplicate", int(n)) if world.flying:
            world.deliver(world.flying[n % len(world.flying)])
        case ("drop", int(n)) if world.flying:
            del world.flying[n % len(world.flying)]
        case ("damage", int(n)) if world.flying:
            data, source, destination = world.flying[n % len(world.flying)]
            at = n % len(data)
            world.deliver((data[:at] + bytes([data[at] ^ (1 + n % 255)]) + data[at + 1 :], source, destination))
        case ("forge", int(n)) if world.flying:
            data, _, destination = world.flying[n % len(world.flying)]
            world.deliver((data, STRANGER, destination))
        case ("timer", int(n)):
            world.timer(ADDRESSES[n])
        case ("connect", _):
            world.connect()
        case ("accept", _):
            world.answer_nomination(accept=True)
        case ("refuse", _):
            world.answer_nomination(accept=False)
        case ("wait", int(milliseconds)):
            world.now += milliseconds / 1000
        case ("noise", int(n), bytes(noise)):
            world.deliver((noise, ADDRESSES[(n + 1) % 3], ADDRESSES[n]))
        case _:
            pass


def check_end(world: World) -> None:
    """Let everything come to its end, and look at what is left."""
    world.let_time_pass(3 * TRANSACTION)
    assert world.caller.state in {CallerState.CONNECTED, CallerState.FAILED}
    assert (world.caller.state is CallerState.CONNECTED) is (world.caller.token in world.chosen)
    assert world.caller.next_deadline() is None
    assert len(world.caller._requester) == 0
    assert not world.port.agents
    assert not world.dialling
    assert len(world.port.registration._requester) <= 1
    world.let_time_pass(12 * TRANSACTION)
    assert world.broker.attempts == 0
    assert len(world.broker._replies.requester) == 0
    assert world.broker.registered == ()  # nobody has heard of the callee for long
    assert world.broker.next_deadline() is None


GOOD_CALL = [("deliver", 0)] * 4 + [("deliver", 0)] * 14 + [("connect", 0), ("accept", 0)]


@given(st.integers(0, 2**32), st.booleans(), st.lists(ACTIONS, max_size=80))
@example(seed=1, is_registered=False, actions=GOOD_CALL)
def test_whatever_happens_nothing_raises_and_everything_ends(
    seed: int, is_registered: bool, actions: list[tuple[object, ...]]
) -> None:
    world = World(seed)
    world.port.registration.start(world.now)
    world.collect()
    for _ in range(4 if is_registered else 0):
        world.deliver(world.flying.pop(0))
    world.caller.start(world.now)
    world.collect()
    for action in actions:
        act(world, action)
    check_end(world)


@given(st.integers(0, 2**32), st.lists(ACTIONS, max_size=60))
def test_once_the_network_is_good_again_a_call_that_lives_connects(seed: int, actions: list[tuple[object, ...]]) -> None:
    world = World(seed)
    world.port.registration.start(world.now)
    world.collect()
    for _ in range(4):
        world.deliver(world.flying.pop(0))
    world.caller.start(world.now)
    world.collect()
    for action in actions:
        if action[0] not in {"damage", "wait", "timer"}:  # damage may make a refusal of a yes; the others use time up
            act(world, action)
    for _ in range(400):
        if world.caller.state in {CallerState.CONNECTED, CallerState.FAILED}:
            break
        if world.flying:
            world.deliver(world.flying.pop(0))
        elif world.nominated is not None:
            world.answer_nomination(accept=True)
        elif world.caller.state is CallerState.PUNCHING and world.caller._conkey is not None:
            world.connect()
        else:
            world.timer(min(ADDRESSES, key=lambda address: world.machines[address].next_deadline() or 1e9))
    assert world.caller.state is CallerState.CONNECTED
    check_end(world)


@given(st.integers(0, 2**32), st.lists(ACTIONS, max_size=60))
def test_a_peer_is_registered_again_as_soon_as_its_server_answers(seed: int, actions: list[tuple[object, ...]]) -> None:
    world = World(seed)
    registration: Registration = world.port.registration
    registration.start(world.now)
    world.collect()
    for action in actions:
        act(world, action)
    world.now += 1.0
    for _ in range(300):
        if registration.state is RegistrationState.REGISTERED and not world.flying:
            break
        if world.flying:
            world.deliver(world.flying.pop(0))
        else:
            world.timer(CALLEE)
    assert registration.state is RegistrationState.REGISTERED
    assert "bob" in world.broker.registered


@given(st.binary(max_size=1300), st.sampled_from(ADDRESSES), st.sampled_from((*ADDRESSES, STRANGER)), st.floats(0, 1e6))
def test_no_datagram_makes_a_machine_raise_or_answer_with_more(
    data: bytes, target: Address, source: Address, now: float
) -> None:
    world = World(1)
    world.machines[target].receive_datagram(data, source, now)
    answers = world.machines[target].datagrams_to_send()
    try:
        decode(data)
    except MalformedMessageError:
        assert not answers or data[:1] in {b"\x00", b"\x01"}  # STUN
    assert sum(len(answer.data) for answer in answers) <= max(len(data), 32)


HABITS = st.builds(
    Habits,
    can_open_low=st.booleans(),
    ttl_error=st.sampled_from([-1, 0, 1, 62]),
    random_redials=st.booleans(),
    tells_tcp_port=st.booleans(),
    keeps_answered=st.booleans(),
    phases=st.integers(0, 3),
    redials=st.integers(0, 6),
)


@given(
    kinds=st.tuples(st.sampled_from(list(KINDS)), st.sampled_from(list(KINDS))),
    seed=st.integers(0, 2**32),
    delay=st.sampled_from([0.0, 0.001, 0.025, 0.1, 0.4]),
    server_delay=st.sampled_from([0.0, 0.05]),
    loss=st.sampled_from([0.0, 0.1, 0.3, 0.9]),
    duplicate=st.sampled_from([0.0, 0.3, 1.0]),
    reorder=st.sampled_from([0.0, 0.5]),
    jitter=st.sampled_from([0.0, 0.1]),
    caller=HABITS,
    callee=HABITS,
)
def test_on_any_network_with_any_habits_both_sides_come_to_one_end(
    kinds: tuple[str, str],
    seed: int,
    delay: float,
    server_delay: float,
    loss: float,
    duplicate: float,
    reorder: float,
    jitter: float,
    caller: Habits,
    callee: Habits,
) -> None:
    outcome = run_punch(
        *kinds,
        seed=seed,
        delay=delay,
        server_delay=server_delay,
        loss=loss,
        duplicate=duplicate,
        reorder=reorder,
        jitter=jitter,
        caller=caller,
        callee=callee,
    )
    assert outcome.connected is (outcome.failure is None)
    assert outcome.agreed
