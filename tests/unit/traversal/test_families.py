"""Over which family a server answers, on loopback: who is asked first, who is waited for, and that nothing stays open."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Generator

import pytest

from p2ptunnel.server import Rendezvous
from p2ptunnel.traversal import families as module
from p2ptunnel.traversal.families import first_to_answer
from p2ptunnel.types import Address
from tests.helpers import run
from tests.helpers.turns import descriptors, settle

LOOPBACK: tuple[Address, Address] = (("127.0.0.1", 0), ("::1", 0))


@pytest.fixture
def silent() -> Generator[Address]:
    """An address at which UDP is never answered, nor TCP: the queue of its listener is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address: Address = listener.getsockname()
        stack.enter_context(socket.create_connection(address))
        deaf = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        deaf.bind(address)
        yield address


def test_ipv4_is_used_where_both_answer() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK[0], listen_also=LOOPBACK[1]) as server:
            for addresses in (server.addresses, server.addresses[::-1]):
                assert await first_to_answer(addresses) == addresses[0]

    run(main())


def test_silence_over_the_first_is_not_waited_for(silent: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAMILY_HEAD_START", 0.05)

    async def main() -> None:
        before = descriptors()
        async with Rendezvous(LOOPBACK[1]) as server:
            began = time.monotonic()
            assert await first_to_answer((silent, server.address)) == server.address
            assert 0.05 <= time.monotonic() - began < 1
        await settle(before)

    run(main())


def test_a_family_that_says_at_once_that_it_leads_nowhere_costs_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no(_: Address) -> bool:
        return False

    async def yes(address: Address) -> bool:
        return ":" in address[0]

    monkeypatch.setattr(module, "FAMILY_HEAD_START", 60.0)
    monkeypatch.setattr(module, "FAMILY_PATIENCE", 60.0)
    monkeypatch.setattr(module, "_answers_udp", no)
    monkeypatch.setattr(module, "_answers_tcp", yes)
    assert run(first_to_answer((("127.0.0.1", 1), ("::1", 1)))) == ("::1", 1)


def test_where_nobody_answers_it_is_the_first(silent: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAMILY_PATIENCE", 0.1)
    monkeypatch.setattr(module, "FAMILY_HEAD_START", 0.01)

    async def main() -> None:
        before = descriptors()
        assert await first_to_answer((silent, ("::1", silent[1]))) == silent
        await settle(before)

    run(main())


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_one_transport_that_answers_is_enough(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: Address) -> bool:
        await asyncio.Event().wait()
        return False

    monkeypatch.setattr(module, "_answers_tcp" if transport == "udp" else "_answers_udp", never)

    async def main() -> None:
        async with Rendezvous(LOOPBACK[1]) as server:
            assert await module._answers(server.address)

    run(main())


def test_cancelled_it_leaves_nothing(silent: Address) -> None:
    async def main() -> None:
        before = descriptors()
        asking = asyncio.create_task(first_to_answer((silent, silent)))
        while descriptors() == before:
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await settle(before)

    run(main())
