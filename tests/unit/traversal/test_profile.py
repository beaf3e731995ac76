"""What is made of what observers have seen: where TCP leads to nobody but the server it is not counted on, if that matters."""

from __future__ import annotations

import random

import pytest

from p2ptunnel.errors import RendezvousTimeoutError
from p2ptunnel.net.reflexive import Observation, TcpControl
from p2ptunnel.protocol.nat import NatProfile
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal import profile as module
from p2ptunnel.traversal.profile import observe_over_udp, observe_profile
from p2ptunnel.types import Address
from tests.helpers import run

HOST = "198.51.100.7"
LOCAL: Address = ("192.168.1.17", 41_000)
FIRST: Address = ("203.0.113.1", 7000)
SECOND: Address = ("203.0.113.1", 7001)
THIRD: Address = ("203.0.113.2", 7000)
OTHERS = (SECOND, THIRD)
SAME = dict.fromkeys((FIRST, SECOND, THIRD), 50_000)
RANDOM = {FIRST: 50_000, SECOND: 20_017, THIRD: 61_234}
BY_ADDRESS = {FIRST: 50_000, SECOND: 50_000, THIRD: 61_234}
SEQUENTIAL = {FIRST: 50_000, SECOND: 50_001, THIRD: 50_002}


class Observers:
    """What they see of our port, over each transport; where nothing stands nobody answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tcp: dict[Address, int], udp: dict[Address, int]) -> None:
        self.tcp = tcp
        self.udp = udp
        self.asked: list[Address] = []
        """Over TCP."""
        monkeypatch.setattr(module, "observe_tcp", self._observe_tcp)
        monkeypatch.setattr(module, "observe_udp", self._observe_udp)

    async def _observe_tcp(self, _port: int, server: Address, *, timeout: float) -> Observation:
        self.asked.append(server)
        return self._observation(self.tcp, server, timeout)

    async def _observe_udp(self, _local: Address, server: Address, *, timeout: float) -> Observation:
        return self._observation(self.udp, server, timeout)

    @staticmethod
    def _observation(seen: dict[Address, int], server: Address, timeout: float) -> Observation:
        if server not in seen:
            raise RendezvousTimeoutError(str(server), timeout)
        return Observation((HOST, seen[server]), OTHERS, 0.05)

    def profile(self) -> tuple[NatProfile, tuple[int, ...]]:
        async def main() -> tuple[NatProfile, tuple[int, ...]]:
            control = TcpControl(FIRST, None, None, random.Random(1), Tracer())
            control.observed, control.others, control.rtt = (HOST, self.tcp[FIRST]), OTHERS, 0.05
            return await observe_profile(LOCAL, control)

        return run(main())


def only(seen: dict[Address, int], *observers: Address) -> dict[Address, int]:
    return {observer: seen[observer] for observer in observers}


@pytest.mark.parametrize(("seen", "kind"), [(SAME, "eim"), (RANDOM, "rnd"), (BY_ADDRESS, "adm"), (SEQUENTIAL, "seq")])
def test_what_all_have_seen_is_classified(monkeypatch: pytest.MonkeyPatch, seen: dict[Address, int], kind: str) -> None:
    observers = Observers(monkeypatch, seen, seen)
    nat, ports = observers.profile()
    assert (nat.tcp.kind, nat.udp.kind) == (kind, kind)
    assert ports == tuple(seen.values())
    assert observers.asked == [SECOND, THIRD]


@pytest.mark.parametrize("udp", [RANDOM, BY_ADDRESS])
@pytest.mark.parametrize("by", [(FIRST,), (FIRST, SECOND)])
def test_where_tcp_gets_to_the_servers_address_only_it_leads_to_no_peer(
    monkeypatch: pytest.MonkeyPatch, udp: dict[Address, int], by: tuple[Address, ...]
) -> None:
    observers = Observers(monkeypatch, only(RANDOM, *by), udp)
    assert observers.profile()[0].tcp.kind == "none"
    assert observers.asked == [SECOND, THIRD, THIRD]  # it may have been lost on the way


def test_one_that_answers_when_it_is_asked_again_was_lost_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    observers = Observers(monkeypatch, only(RANDOM, FIRST, SECOND), RANDOM)
    first = observers._observe_tcp

    async def answers_later(port: int, server: Address, *, timeout: float) -> Observation:
        if server in observers.asked:
            observers.tcp = RANDOM
        return await first(port, server, timeout=timeout)

    monkeypatch.setattr(module, "observe_tcp", answers_later)
    assert observers.profile()[0].tcp.kind == "rnd"


@pytest.mark.parametrize("udp", [SAME, SEQUENTIAL, only(RANDOM, FIRST, SECOND), {}])
def test_else_tcp_is_tried_whatever_an_observer_does_not_say(monkeypatch: pytest.MonkeyPatch, udp: dict[Address, int]) -> None:
    observers = Observers(monkeypatch, only(RANDOM, FIRST), udp)
    assert observers.profile()[0].tcp.kind == "unknown"


@pytest.mark.parametrize(
    ("udp", "over_tcp", "over_udp"),
    [(RANDOM, "none", "rnd"), (BY_ADDRESS, "none", "adm"), (SAME, "unknown", "eim"), ({}, "unknown", "unknown")],
)
def test_where_the_server_is_not_reached_straight_over_tcp_udp_is_looked_at_alone(
    monkeypatch: pytest.MonkeyPatch, udp: dict[Address, int], over_tcp: str, over_udp: str
) -> None:
    observers = Observers(monkeypatch, {}, udp)
    nat = run(observe_over_udp(LOCAL, FIRST, OTHERS, 0.05))
    assert (nat.tcp.kind, nat.udp.kind) == (over_tcp, over_udp)
    assert observers.asked == []


def test_a_server_with_one_address_only_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    Observers(monkeypatch, {}, RANDOM)
    assert run(observe_over_udp(LOCAL, FIRST, (), 0.05)) == NatProfile(udp=NatProfile().udp)
