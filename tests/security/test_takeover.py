"""T4: a server that has forgotten everything gives a tag to whoever comes first; who calls by a pinned key notices."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from p2ptunnel.abc import Stream
from p2ptunnel.errors import PeerKeyChangedError, TagInUseError
from p2ptunnel.peer import Peer
from p2ptunnel.server import Rendezvous
from p2ptunnel.types import Address, format_address
from tests.helpers import run
from tests.helpers.meeting import HELLO, HOME, LAPTOP, Events, conversation, echo, introduce


@contextlib.asynccontextmanager
async def forgetful_server(address: Address = ("127.0.0.1", 0)) -> AsyncGenerator[Rendezvous]:
    """A server without a store: its tags end with it."""
    async with Rendezvous(address) as server:
        yield server


def test_after_the_server_forgot_a_tag_its_old_callers_are_told_of_another_key_and_send_nothing(tmp_path: Path) -> None:
    taken: list[Stream] = []

    async def take(stream: Stream) -> None:
        taken.append(stream)

    async def main() -> None:
        events = Events()
        async with contextlib.AsyncExitStack() as stack:
            server = await stack.enter_async_context(forgetful_server())
            where = format_address(server.address)
            laptop = Peer(LAPTOP, rendezvous=where, profile=tmp_path / LAPTOP, tracer=events.tracer)
            impostor = Peer(HOME, rendezvous=where, profile=tmp_path / "impostor")
            await stack.enter_async_context(laptop)
            await stack.enter_async_context(impostor)
            async with Peer(HOME, rendezvous=where, profile=tmp_path / HOME) as home:
                introduce(home, laptop, "echo")
                impostor.peers.add(LAPTOP, laptop.key, ("echo",))
                async with home.serve({"echo": echo}), await laptop.connect(HOME, "echo") as stream:
                    assert await conversation(stream) == HELLO
                    with pytest.raises(TagInUseError):
                        await impostor.serve({"echo": take})
            await server.close()
            punched = len(events.named("PunchStarted"))
            async with forgetful_server(server_address(where)), impostor.serve({"echo": take}):
                with pytest.raises(PeerKeyChangedError):
                    await laptop.connect(HOME, "echo")
            assert len(events.named("PunchStarted")) == punched  # not one packet to the impostor
            assert taken == []

    run(main(), timeout=20)


def server_address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)
