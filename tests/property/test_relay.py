"""Whatever peers do at a relay and in which order: limits hold, nothing is lost count of, and everything ends."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.identity.judge import Judge
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.relay import relay_extra
from p2ptunnel.protocol.relay import Circuit, Relay
from p2ptunnel.types import Role
from p2ptunnel.wire.messages import RelayJoin, RelayJoinExtra

QUOTA = 1000
CIRCUITS = 2
DAY = 86_400.0
PEERS = tuple(Identity.from_seed(bytes([number]) * 32) for number in range(3))
ROLES: tuple[Role, ...] = ("caller", "callee")
PAIRS = tuple((caller, callee) for caller in range(3) for callee in range(3))
TOKENS = tuple(f"{number:032x}" for number in range(len(PAIRS)))
JOINS: dict[tuple[int, Role], RelayJoinExtra] = {
    (call, role): relay_extra(PEERS[PAIRS[call][end]], TOKENS[call], role)
    for call in range(len(PAIRS))
    for end, role in enumerate(ROLES)
}

joins = st.tuples(st.just("join"), st.sampled_from(list(JOINS)))
meetings = st.tuples(st.just("meet"), st.integers(0, len(PAIRS) - 1))
carries = st.tuples(st.just("carry"), st.integers(0, 5), st.integers(0, 2 * QUOTA))
stalls = st.tuples(st.just("stall"), st.integers(0, 5))
ends = st.tuples(st.just("end"), st.integers(0, 5))
waits = st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 3.0, 30.0, 130.0, DAY / 2]))
steps = st.lists(joins | meetings | carries | carries | stalls | ends | waits, max_size=60)


class World:
    """A relay, and what the test itself has counted."""

    def __init__(self) -> None:
        self.relay = Relay(Judge(), quota_bytes=QUOTA, circuits_of_key=CIRCUITS)
        self.now = 0.0
        self.keys: dict[int, set[str]] = {}
        self.carried: list[tuple[float, str, int]] = []
        self.over: Counter[int] = Counter()
        self.introduce()

    def introduce(self) -> None:
        for token, (caller, callee) in zip(TOKENS, PAIRS, strict=True):
            self.relay.introduce(token, str(PEERS[caller].public), str(PEERS[callee].public), self.now)

    def join(self, which: tuple[int, Role]) -> None:
        answer, circuit = self.relay.join(RelayJoin(mid=1, extra=JOINS[which]), f"198.51.100.{which[0]}", self.now)
        assert (answer.code == 200) is (circuit is not None)
        assert answer.code in {200, 404, 409, 429}
        if circuit is not None:
            self.keys.setdefault(circuit.number, set()).add(JOINS[which].key)

    def meet(self, call: int) -> None:
        for role in ROLES:
            self.join((call, role))

    def open(self, which: int) -> Circuit | None:
        found = [circuit for circuit in self.relay.circuits.values() if circuit.is_open]
        return found[which % len(found)] if found else None

    def carry(self, which: int, wanted: int) -> None:
        circuit = self.open(which)
        if circuit is not None and (count := min(wanted, self.relay.room(circuit, self.now))):
            self.relay.carried(circuit, count, self.now)
            self.carried += [(self.now, key, count) for key in self.keys[circuit.number]]

    def stall(self, which: int) -> None:
        circuit = self.open(which)
        if circuit is not None:
            self.relay.blocked(circuit, "callee", self.now)

    def end(self, which: int) -> None:
        circuit = self.open(which)
        if circuit is not None:
            self.over[self.relay.end(circuit, "both ends closed").circuit] += 1

    def wait(self, seconds: float) -> None:
        self.now += seconds
        for ended in self.relay.handle_timer(self.now):
            self.over[ended.circuit] += 1
        self.introduce()

    def check(self) -> None:
        of_key = Counter(key for number in self.relay.circuits for key in self.keys[number])
        assert all(count <= CIRCUITS for count in of_key.values())
        assert {key: account.circuits for key, account in self.relay._accounts.items() if account.circuits} == dict(of_key)
        assert set(self.over.values()) <= {1}
        assert not self.over.keys() & self.relay.circuits.keys()
        assert sum(self.relay.ended.values()) == len(self.over)
        for key in of_key:
            days = [(at, count) for at, owner, count in self.carried if owner == key]
            assert sum(count for at, count in days if at > self.now - DAY) <= 2 * QUOTA  # a day begins with its first circuit
            assert sum(count for at, count in days) <= QUOTA * (self.now // DAY + 2)


@given(steps)
def test_limits_hold_and_everything_ends(taken: list[tuple[str, *tuple[object, ...]]]) -> None:
    world = World()
    for name, *arguments in taken:
        getattr(world, name)(*arguments)
        world.check()
    for _ in range(4):
        world.wait(200.0)
    assert not world.relay.circuits
    assert not world.relay._of_block
    assert not world.relay._of_site
    assert world.relay.next_deadline() is None
