"""The transition tables: every pair in them is made, every pair outside them is refused and changes nothing."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import pytest

from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.protocol import callee, caller, guessing, holes, portmap, registration
from p2ptunnel.protocol.callee import CalleeAgent, CalleeState, CalleeTrigger
from p2ptunnel.protocol.caller import CallerAgent, CallerState, CallerTrigger
from p2ptunnel.protocol.guessing import EasySide, EasyState, EasyTrigger
from p2ptunnel.protocol.holes import HardSide, HardState, HardTrigger
from p2ptunnel.protocol.portmap import PortMapClient, PortMapState, PortMapTrigger
from p2ptunnel.protocol.punch import LocalView
from p2ptunnel.protocol.registration import Registration, RegistrationState, RegistrationTrigger
from p2ptunnel.testing.simnet import Credentials
from tests.helpers.routers import ROUTER
from tests.unit.protocol.actors import CALLER, SERVER, VIEW, notice


def a_registration() -> Registration:
    return Registration("bob", SERVER, Credentials("key"), random.Random(1))


def a_caller() -> CallerAgent:
    return CallerAgent("alice", "bob", SERVER, LocalView(), random.Random(1), signer=None)


def a_callee() -> CalleeAgent:
    return CalleeAgent(notice(), CALLER, SERVER, VIEW, random.Random(1), udp_port=40002, signed=None)


def a_hard_side() -> HardSide:
    return HardSide(CALLER, 0.1)


def an_easy_side() -> EasySide:
    return EasySide(CALLER[0], 0.1, random.Random(1))


def a_port_map_client() -> PortMapClient:
    return PortMapClient(ROUTER, "192.168.1.2", 40002, random.Random(1))


Table = Mapping[tuple[Any, Any], Any]
MACHINES: list[tuple[Callable[[], Any], Table, type[enum.Enum], type[enum.Enum]]] = [
    (a_registration, registration.TRANSITIONS, RegistrationState, RegistrationTrigger),
    (a_caller, caller.TRANSITIONS, CallerState, CallerTrigger),
    (a_callee, callee.TRANSITIONS, CalleeState, CalleeTrigger),
    (a_hard_side, holes.TRANSITIONS, HardState, HardTrigger),
    (an_easy_side, guessing.TRANSITIONS, EasyState, EasyTrigger),
    (a_port_map_client, portmap.TRANSITIONS, PortMapState, PortMapTrigger),
]
PAIRS = [
    pytest.param(make, table, state, trigger, id=f"{states.__name__}-{state.name}-{trigger.name}")
    for make, table, states, triggers in MACHINES
    for state, trigger in product(states, triggers)
]


@pytest.mark.parametrize(("make", "table", "state", "trigger"), PAIRS)
def test_the_table_decides(make: Callable[[], Any], table: Table, state: enum.Enum, trigger: enum.Enum) -> None:
    machine = make()
    machine.state = state
    if (state, trigger) in table:
        machine._move(trigger)
        assert machine.state is table[state, trigger]
    else:
        with pytest.raises(LocalProtocolError, match=state.value):
            machine._move(trigger)
        assert machine.state is state


@pytest.mark.parametrize(("make", "table", "states", "triggers"), MACHINES)
def test_every_state_is_reached_and_every_trigger_used(
    make: Callable[[], Any], table: Table, states: type[enum.Enum], triggers: type[enum.Enum]
) -> None:
    assert make().state in states
    assert {*table.values(), make().state} == set(states)
    assert {trigger for _, trigger in table} == set(triggers)


@pytest.mark.parametrize(("make", "table", "states", "triggers"), MACHINES)
def test_an_end_has_no_way_out(
    make: Callable[[], Any], table: Table, states: type[enum.Enum], triggers: type[enum.Enum]
) -> None:
    ends = {
        state for state in states if not any(before is state and after is not state for (before, _), after in table.items())
    }
    assert {state.name for state in ends} <= {"LEFT", "CONNECTED", "FAILED", "CHOSEN", "OVER", "CLOSED"}
    assert ends
