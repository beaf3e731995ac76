"""A peer that others find: it is registered once at a time, and a worn port is replaced by another."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from p2ptunnel.errors import ConfigError
from p2ptunnel.events import PathSuspected
from p2ptunnel.peer import Peer
from p2ptunnel.traversal.answer import AnsweringPort
from p2ptunnel.types import ServerSpec
from tests.helpers import run


class Port(AnsweringPort):
    """What a peer knows of a port that answers calls."""

    tag = "home"
    observed = None
    is_worn = True
    admit_raw = None

    def __init__(self) -> None:
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    def abort(self) -> None:
        self.is_open = False


class Servers:
    """Makes a port when it may, or raises `error`."""

    specs = (ServerSpec(("127.0.0.1", 7000)),)

    def __init__(self) -> None:
        self.ports: list[Port] = []
        self.may_go = asyncio.Event()
        self.error: Exception | None = None

    async def first(self, use: object) -> Port:
        await self.may_go.wait()
        if self.error is not None:
            raise self.error
        self.ports.append(Port())
        return self.ports[-1]


async def wearing(directory: Path) -> tuple[Peer, Servers, Port]:
    """A peer that serves, and is replacing its worn port."""
    peer, servers, worn = Peer("home", rendezvous="127.0.0.1:9", profile=directory), Servers(), Port()
    await peer.start()
    object.__setattr__(peer._reachable, "_servers", servers)
    peer._up.answering, peer._up.answered_for = worn, 1  # type: ignore[assignment]
    peer._on_session_event(PathSuspected(tag="laptop"))
    await asyncio.sleep(0)
    return peer, servers, worn


async def replaced(peer: Peer) -> None:
    """Wait until the port is replaced, or is not."""
    assert peer._up.replacing is not None
    await peer._up.replacing


def test_a_worn_port_is_replaced_by_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        peer, servers, worn = await wearing(tmp_path)
        servers.may_go.set()
        await replaced(peer)
        assert (peer._up.answering, worn.is_open) == (servers.ports[0], False)
        await peer.close()
        assert not servers.ports[0].is_open

    run(scenario())


@pytest.mark.parametrize("error", [ConfigError("no server"), OSError(24, "too many open files")], ids=repr)
def test_a_worn_port_is_kept_where_there_is_no_other(tmp_path: Path, error: Exception) -> None:
    async def scenario() -> None:
        peer, servers, worn = await wearing(tmp_path)
        servers.error = error
        servers.may_go.set()
        await replaced(peer)
        assert (peer._up.answering, peer._up.replacing, worn.is_open) == (worn, None, True)
        await peer.close()

    run(scenario())


def test_a_port_that_was_to_replace_one_is_not_left_behind(tmp_path: Path) -> None:
    """The last service ends and another begins while a worn port is being replaced."""

    async def scenario() -> None:
        peer, servers, worn = await wearing(tmp_path)
        replacing = peer._up.replacing
        assert replacing is not None
        _, registering = await asyncio.gather(peer._up.leave(), begin(peer))
        servers.may_go.set()
        await registering
        await asyncio.gather(replacing, return_exceptions=True)
        assert not worn.is_open
        assert len(servers.ports) == 1
        await peer.close()
        assert not servers.ports[0].is_open

    async def begin(peer: Peer) -> asyncio.Task[object]:
        return asyncio.create_task(peer._reachable.register("home"))

    run(scenario())
