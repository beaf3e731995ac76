"""T12, T13: what can be guessed: message ids, and the selectors of connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from p2ptunnel.defaults import MID_MAX
from p2ptunnel.protocol.machine import new_mid, new_secret
from p2ptunnel.protocol.transaction import Requester
from p2ptunnel.types import Address
from p2ptunnel.wire.frames import SELECTOR_BYTES, preamble
from tests.helpers import run
from tests.helpers.meeting import HELLO, HOME, Meeting, conversation, echo, meeting

SERVER: Address = ("192.0.2.1", 7000)
STATM = Path("/proc/self/statm")

# --- message ids --------------------------------------------------------------------------------------------------------


def test_a_million_message_ids_are_all_different() -> None:
    """Of 53 bits: two of a million meet once in 18 000 runs; of 32 bits they would meet in every one."""
    dice = random.SystemRandom()
    assert len({new_mid(dice) for _ in range(1_000_000)}) == 1_000_000
    assert max(new_mid(dice) for _ in range(1000)) > MID_MAX >> 8


def test_a_hundred_thousand_guesses_answer_nothing() -> None:
    dice, requester = random.Random(1), Requester(random.SystemRandom())
    mids = [new_mid(random.SystemRandom()) for _ in range(32)]
    for mid in mids:
        requester.send(1, mid, b"", SERVER, 0.0)
    assert not any(requester.answered(1, new_mid(dice), SERVER) for _ in range(100_000))
    assert len(requester) == len(mids)


@pytest.mark.parametrize(("t", "source"), [(1, ("192.0.2.2", 7000)), (1, ("192.0.2.1", 7001)), (4, SERVER)])
def test_a_known_message_id_answers_nothing_from_elsewhere_or_of_another_kind(t: int, source: Address) -> None:
    requester = Requester(random.SystemRandom())
    requester.send(1, 7, b"", SERVER, 0.0)
    assert requester.answered(t, 7, source) is None
    assert requester.answered(1, 7, SERVER) is not None


def test_tokens_and_conkeys_have_128_bits() -> None:
    secrets = {new_secret(random.SystemRandom()) for _ in range(10_000)}
    assert len(secrets) == 10_000
    assert {len(secret) for secret in secrets} == {32}


# --- selectors ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def at_home(directory: Path) -> AsyncGenerator[tuple[Meeting, Address]]:
    """The three, home serving; and the TCP address on which home waits for connections."""
    async with meeting(directory, "web") as there, there.home.serve({"web": echo}):
        registered = await there.home_events.told("Registered")
        host, port = registered.facts["observed"]  # type: ignore[misc]
        yield there, (host, port)


async def knock(address: Address, times: int) -> None:
    """Connect so often, each time with a selector of our own making, and wait to be cut off."""
    for _ in range(times):
        with contextlib.suppress(ConnectionError):
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(preamble(os.urandom(SELECTOR_BYTES)))
                assert await reader.read() == b"", "a stranger was told something"
            finally:
                writer.transport.abort()


def resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.timeout(60)
@pytest.mark.skipif(not STATM.exists(), reason="reads memory from /proc")
def test_ten_thousand_selectors_open_nothing_cost_no_memory_and_delay_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with at_home(tmp_path) as (there, address):
            await knock(address, 500)  # what is allocated once
            before = resident_bytes()
            flood = [asyncio.create_task(knock(address, 950)) for _ in range(10)]
            began = time.monotonic()
            async with await there.laptop.connect(HOME, "web") as stream:
                assert await conversation(stream) == HELLO
            took = time.monotonic() - began
            await asyncio.gather(*flood)
            assert took < 2
            assert resident_bytes() - before < 8 << 20
            refused = there.home_events.named("stranger_cut_off") + there.home_events.named("connection_refused")
            assert len(refused) >= 9_900  # of some the connection was gone before it was looked at
            assert len(there.home_events.named("stream_opened", "serving")) == 1

    run(scenario(), timeout=50)
