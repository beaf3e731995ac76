"""Idle connections to a relay that the test plays: there before they are needed, replaced, and closed with their owner."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from p2ptunnel.net.web import WebLinks
from p2ptunnel.transports import spare as spares
from p2ptunnel.transports.spare import Spares
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import Observed, ReflexiveAnswer, ReflexiveProbe, decode, encode
from tests.helpers import run
from tests.helpers.lasting import until
from tests.helpers.turns import descriptors, settle


class Server:
    """One that answers t=5.

    Attributes:
        writers: Of every connection, in their order.
        asked: How often it was asked.
    """

    def __init__(self) -> None:
        self.writers: list[asyncio.StreamWriter] = []
        self.asked = 0
        self.answer = b""
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await reader.readuntil(b"\n"):
                probe = decode(line[:-1])
                assert isinstance(probe, ReflexiveProbe)
                self.asked += 1
                seen = Observed(host="192.0.2.1", port=5)
                writer.write(self.answer or encode(ReflexiveAnswer(mid=probe.mid, code=200, extra=seen)) + b"\n")
        self.ended.set()


@contextlib.asynccontextmanager
async def kept() -> AsyncGenerator[tuple[Spares, Server, Address]]:
    """The spares of a peer that keeps one to a server."""
    made, kept = Server(), Spares(WebLinks())
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    address: Address = server.sockets[0].getsockname()
    try:
        kept.keep(address)
        yield kept, made, address
    finally:
        await kept.close()
        server.close()
        for writer in made.writers:
            writer.transport.abort()


async def idle(kept: Spares, relay: Address) -> None:
    """Wait until there is one to be taken."""
    assert await kept.stand(relay) == ""


def test_one_is_there_before_it_is_needed_and_another_takes_its_place() -> None:
    async def main() -> None:
        async with kept() as (keeping, server, address):
            keeping.keep(address)  # twice is once
            assert keeping.take(address) is None
            await idle(keeping, address)
            taken = keeping.take(address)
            assert taken is not None
            assert taken.getsockname()[1] == server.writers[0].get_extra_info("peername")[1]
            assert keeping.take(address) is None
            await idle(keeping, address)
            assert len(server.writers) == 2
            server.writers[0].write(b"whatever comes is the taker's")
            assert await asyncio.get_running_loop().sock_recv(taken, 64) == b"whatever comes is the taker's"
            taken.close()

    run(main())


@pytest.mark.parametrize("word", [b"", b"something\n"])
def test_one_that_ends_or_speaks_is_not_given_away(word: bytes) -> None:
    async def main() -> None:
        async with kept() as (keeping, server, address):
            await idle(keeping, address)
            spare = keeping._spares[address]
            if word:
                server.writers[0].write(word)
            else:
                server.writers[0].close()
            await until(spare._changed.is_set)
            assert keeping.take(address) is None
            await until(lambda: len(server.writers) == 2)
            await idle(keeping, address)

    run(main())


def test_one_that_is_idle_asks_again_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "CONTROL_KEEPALIVE", 0.01)

    async def main() -> None:
        async with kept() as (_, server, __):
            await until(lambda: server.asked > 3)
            assert len(server.writers) == 1

    run(main())


def test_a_server_that_is_not_one_is_asked_ever_more_rarely() -> None:
    async def main() -> None:
        async with kept() as (keeping, server, address):
            server.answer = b"x" * 2000
            await until(lambda: len(server.writers) >= 2)
            assert keeping.take(address) is None

    run(main())


def test_who_waits_for_one_that_cannot_be_had_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "RELAY_SPARE_FAILURES", 1)

    async def main() -> None:
        async with kept() as (keeping, server, address):
            server.answer = b"{}\n"
            assert "something else than -5" in await keeping.stand(address)
            assert await keeping.stand(("127.0.0.1", 1)) == ""  # which is not kept

    run(main())


def test_who_waits_for_one_that_is_dropped_waits_no_more() -> None:
    async def main() -> None:
        async with kept() as (keeping, server, address):
            server.answer = b"x" * 2000
            waiting = asyncio.create_task(keeping.stand(address))
            await until(lambda: len(server.writers) >= 1)
            keeping.drop(address)
            assert await waiting == ""

    run(main())


def test_few_are_kept_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spares, "RELAY_SPARES_MAX", 2)

    async def main() -> None:
        async with kept() as (keeping, server, address):
            await idle(keeping, address)
            keeping.keep(("127.0.0.1", 1))
            keeping.keep(("127.0.0.1", 2))
            assert keeping.take(address) is None
            assert await server.ended.wait()
            keeping.drop(("127.0.0.1", 3))

    run(main())


def test_closed_it_leaves_nothing_and_takes_nothing_on() -> None:
    async def main() -> None:
        before, tasks = descriptors(), len(asyncio.all_tasks())
        async with kept() as (keeping, _, address):
            await idle(keeping, address)
            taken = keeping.take(address)
            await keeping.close()
            await keeping.close()
            keeping.keep(address)
            assert keeping.take(address) is None
            assert taken is not None
            assert taken.fileno() > 0  # it is another's
            taken.close()
        await settle(before, tasks)

    run(main())
