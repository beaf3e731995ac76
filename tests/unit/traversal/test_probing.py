"""Who gets in, asked of a real server on loopback, where everybody does; NATs are in tests/natlab."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest

from p2ptunnel.defaults import ARRIVALS_MAX
from p2ptunnel.protocol.nat import Habits, MappingClass
from p2ptunnel.protocol.probing import ProbesBack
from p2ptunnel.protocol.replies import Endpoint
from p2ptunnel.server import Rendezvous, probing
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal import probing as module
from p2ptunnel.traversal.lifetime import mapping_lifetime
from p2ptunnel.traversal.netreport import Lifetime
from p2ptunnel.traversal.port import Opener, take_number
from p2ptunnel.traversal.probing import (
    Crossing,
    Strangers,
    ask_habits,
    crosses,
    does_cross,
    filtering_udp,
    hairpins_tcp,
    hairpins_udp,
    strangers_tcp,
)
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import ProbeExtra, ReflexiveProbe
from tests.helpers import run
from tests.helpers.turns import cancel_at_each_turn, descriptors, settle
from tests.unit.traversal.wires import LOOPBACK, silent_server

OWN = frozenset({"127.0.0.1"})
ALTERNATIVES: tuple[Address, ...] = (LOOPBACK, ("127.0.0.2", 0))


@contextlib.asynccontextmanager
async def serving(*others: Address) -> AsyncGenerator[Address]:
    async with Rendezvous(LOOPBACK, alt_listen=others) as server:
        yield server.address


def ask(question: Callable[[Address], Awaitable[object]], *others: Address) -> object:
    async def main() -> object:
        async with serving(*others) as server:
            return await question(server)

    return run(main())


def test_on_loopback_everybody_gets_in() -> None:
    assert ask(filtering_udp, *ALTERNATIVES) == "endpoint-independent"
    assert ask(strangers_tcp, *ALTERNATIVES) == Strangers("endpoint-independent", "accept", is_open=True)


def test_a_server_with_one_address_cannot_tell() -> None:
    assert ask(filtering_udp) == "unknown"
    assert ask(strangers_tcp) == Strangers()
    assert ask(lambda server: crosses(server, 1)) == Crossing()


def test_a_server_with_two_ports_does_not_tell_hosts_apart() -> None:
    assert ask(filtering_udp, LOOPBACK) == "unknown"
    assert ask(strangers_tcp, LOOPBACK) == Strangers("unknown", "accept")


def test_a_syn_that_does_not_die_on_the_way_tells_nothing() -> None:
    assert ask(lambda server: crosses(server, 64), *ALTERNATIVES) == Crossing(has_died=False)


@pytest.mark.parametrize(
    ("strangers", "gets_in", "mapping", "expected"),
    [
        (Strangers("endpoint-independent", "accept", is_open=True), None, "unknown", True),
        (Strangers(is_open=True), False, "eim", True),
        (Strangers(is_open=False), True, "eim", True),
        (Strangers(is_open=False), False, "eim", False),
        (Strangers(is_open=False), None, "eim", None),
        (Strangers(is_open=False), True, "rnd", True),
        (Strangers(is_open=False), False, "rnd", None),
        (Strangers(is_open=False), False, "unknown", None),
        (Strangers(), False, "eim", False),
        (Strangers(), None, "eim", None),
    ],
)
def test_a_no_counts_only_of_a_nat_that_keeps_one_port(
    strangers: Strangers, gets_in: bool | None, mapping: MappingClass, expected: bool | None
) -> None:
    assert does_cross(strangers, Crossing(gets_in), mapping) is expected


def test_however_many_come_one_of_each_host_is_kept_and_of_few_hosts() -> None:
    hosts = [f"127.0.1.{last}" for last in range(1, ARRIVALS_MAX + 3)]

    async def main() -> None:
        number, came = take_number("127.0.0.1", Tracer()), list[socket.socket]()
        before = descriptors()
        with contextlib.ExitStack() as kept:
            for sock in number:
                kept.callback(sock.close)
            arrivals = kept.enter_context(module._Arrivals(number[0].address))
            for host in (host for host in hosts for _ in range(3)):
                came.append(socket.create_connection(number[0].address, source_address=(host, 0)))
                kept.enter_context(came[-1]).setblocking(False)
                await asyncio.sleep(0)
            with pytest.raises(ConnectionResetError):
                await asyncio.get_running_loop().sock_recv(came[-1], 1)
            assert descriptors() == before + 1 + len(came) + ARRIVALS_MAX  # 1: it listens
            assert [await arrivals.came_from(host) for host in (hosts[ARRIVALS_MAX - 1], hosts[-1])] == [True, False]

    run(main())


def test_where_strangers_get_in_one_probe_tells_all(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counting(monkeypatch)
    habits = ask(lambda server: ask_habits(server, "eim", Opener(64, 0.01)), *ALTERNATIVES)
    assert habits == Habits(crosses=True, is_open=True)
    assert asked == ["1"]


def test_where_they_do_not_two_do(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counting(monkeypatch)
    monkeypatch.setattr(module, "_let_dial", nobody_gets_in)
    habits = ask(lambda server: ask_habits(server, "eim", Opener(64, 0.01)), *ALTERNATIVES)
    assert habits == Habits(is_open=False, opens_low=False)  # the SYN that was to die on the way was taken by the server
    habits = ask(lambda server: ask_habits(server, "eim", Opener(64, 0.0)), *ALTERNATIVES)
    assert habits == Habits(is_open=False)  # it was we who did not know how far it would go
    assert ask(lambda server: ask_habits(server, "rnd", Opener(64, 0.01)), *ALTERNATIVES) == Habits(is_open=False)
    monkeypatch.setattr(module, "can_open_low", lambda: False)
    assert ask(lambda server: ask_habits(server, "eim", Opener(64, 0.01)), *ALTERNATIVES) == Habits(is_open=False)
    assert asked == []


@pytest.mark.parametrize(
    ("met", "expected", "times"),
    [
        ([True], True, 1),
        ([None], None, 1),
        ([False, False], False, 2),
        ([False, True], True, 2),
        ([False, None], None, 2),
    ],
)
def test_a_no_is_asked_for_twice(
    monkeypatch: pytest.MonkeyPatch, met: list[bool | None], expected: bool | None, times: int
) -> None:
    asked: list[int] = []

    async def told(_: Address, ttl: int) -> Crossing:
        asked.append(ttl)
        return Crossing(met[len(asked) - 1], has_died=True)

    monkeypatch.setattr(module, "_let_dial", nobody_gets_in)
    monkeypatch.setattr(module, "crosses", told)
    habits = ask(lambda server: ask_habits(server, "eim", Opener(2, 0.01)), *ALTERNATIVES)
    assert habits == Habits(crosses=expected, is_open=False, opens_low=True)
    assert asked == [2] * times


def test_a_server_with_one_address_tells_no_habits() -> None:
    assert not ask_habits_at().is_known
    assert not ask_habits_at(LOOPBACK).is_open


def ask_habits_at(*others: Address) -> Habits:
    habits = ask(lambda server: ask_habits(server, "unknown", Opener(1, 0.0)), *others)
    assert isinstance(habits, Habits)
    return habits


async def nobody_gets_in(*_: object, **__: object) -> Strangers:
    return Strangers(refusal="drop", is_open=False)


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which observers were asked to probe back."""
    asked: list[str] = []
    on_probe = ProbesBack.on_probe

    def counted(probes: ProbesBack, probe: ReflexiveProbe, extra: ProbeExtra, source: Endpoint, size: int, now: float) -> None:
        asked.append(extra.op)
        on_probe(probes, probe, extra, source, size, now)

    monkeypatch.setattr(ProbesBack, "on_probe", counted)
    return asked


def test_without_a_nat_there_is_no_hairpin_to_tell_of() -> None:
    assert ask(lambda server: hairpins_udp(server, OWN)) is None
    assert ask(lambda server: hairpins_tcp(server, OWN)) is None


def test_what_one_sends_to_its_own_outside_address_comes_back_where_nothing_is_between() -> None:
    assert ask(lambda server: hairpins_udp(server, frozenset())) is True
    assert ask(lambda server: hairpins_tcp(server, frozenset())) is True


def test_a_server_that_refuses_is_no_no(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(probes: ProbesBack, probe: object, extra: object, source: object, size: int, now: float) -> None:
        probes._refuse(probe, 429, "too many probes", source, size)  # type: ignore[arg-type]

    monkeypatch.setattr(ProbesBack, "on_probe", refuse)
    assert ask(filtering_udp, *ALTERNATIVES) == "unknown"
    assert ask(strangers_tcp, *ALTERNATIVES) == Strangers()


def test_a_server_that_is_silent_tells_nothing() -> None:
    async def main() -> None:
        with silent_server() as server:
            async with asyncio.timeout(0.3):
                await filtering_udp(server)

    with pytest.raises(TimeoutError):
        run(main())


@pytest.mark.parametrize(
    "question",
    [
        filtering_udp,
        strangers_tcp,
        lambda server: ask_habits(server, "eim", Opener(64, 0.01)),
        lambda server: crosses(server, 64),
        lambda server: hairpins_udp(server, frozenset()),
        lambda server: hairpins_tcp(server, frozenset()),
        lambda server: mapping_lifetime(server, 0.01),
    ],
    ids=["filtering", "strangers", "habits", "crossing", "hairpin-udp", "hairpin-tcp", "lifetime"],
)
def test_cancelling_leaves_nothing(question: Callable[[Address], Awaitable[object]]) -> None:
    async def main() -> None:
        async with serving(*ALTERNATIVES) as server:

            async def work() -> object:
                return await question(server)

            async def undo(_: object) -> None:
                return

            assert await cancel_at_each_turn(work, undo) > 3

    run(main())


def test_a_server_that_is_closed_while_it_dials_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dialling = asyncio.Event()

    async def dial_for_ever(*_: object, **__: object) -> None:
        dialling.set()
        await asyncio.Event().wait()

    async def main() -> None:
        monkeypatch.setattr(probing, "dial", dial_for_ever)
        before, tasks = descriptors(), len(asyncio.all_tasks())
        async with serving(*ALTERNATIVES) as server:
            asking = asyncio.create_task(strangers_tcp(server))
            await dialling.wait()
        assert await asking == Strangers()
        await settle(before, tasks)

    run(main())


def test_no_other_program_gets_a_port_that_is_dialled_from() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK, alt_listen=[LOOPBACK]) as server:
            other = server._observer.others[0]
            with socket.socket() as thief, pytest.raises(OSError, match="in use"):
                thief.bind(other)

    run(main())


def test_where_nothing_is_between_a_silent_port_is_not_forgotten() -> None:
    assert ask(lambda server: mapping_lifetime(server, 0.5)) == Lifetime(0.5, None)


def test_who_is_refused_does_not_know_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProbesBack, "_is_none", lambda *_: "no such thing")
    assert ask(lambda server: mapping_lifetime(server, 0.1)) is None


@pytest.mark.parametrize(
    ("outcome", "seconds", "met"),
    [
        ("connected", 0.3, True),
        ("connected", 1.2, None),  # our SYN has left once more, and may have got through
        ("refused", 0.3, False),
        ("silent", 3.0, False),
        ("", 3.0, None),
    ],
)
def test_whether_syns_have_met_is_told_by_the_servers_one_in_the_first_second(
    outcome: str, seconds: float, met: bool | None
) -> None:
    assert module.has_met(outcome, seconds) is met
