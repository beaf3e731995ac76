"""Peers and servers that know each other by key: pinned servers, private ones, and those that are somebody else."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncGenerator, Container
from pathlib import Path

import pytest

from p2ptunnel.errors import ServerKeyError, ServerPrivateError, TagInUseError
from p2ptunnel.events import ServerFound, ServerLost
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import Profile
from p2ptunnel.peer import Peer
from p2ptunnel.protocol import registration
from p2ptunnel.server import Rendezvous
from p2ptunnel.types import RelayUse, format_address
from tests.helpers import run
from tests.helpers.meeting import HELLO, HOME, LAPTOP, conversation, echo, introduce

SERVER, OTHER = (Identity.from_seed(bytes([n]) * 32) for n in (1, 2))
TOKEN = "the-token-of-the-family"


def line(server: Rendezvous, identity: Identity | None = SERVER, token: str = "") -> str:
    """What an operator hands on."""
    key = f"#{identity.public}" if identity else ""
    return f"{format_address(server.address)}{key}{f'#join:{token}' if token else ''}"


@contextlib.asynccontextmanager
async def served(token: str = "", members: Container[str] | None = None) -> AsyncGenerator[Rendezvous]:
    async with Rendezvous(("127.0.0.1", 0), identity=SERVER, join_token=token, members=members) as server:
        yield server


async def meet(directory: Path, home_line: str, laptop_line: str) -> bytes:
    """Serve on one peer and call from another; return what comes back."""
    async with (
        Peer(HOME, rendezvous=home_line, profile=directory / HOME) as home,
        Peer(LAPTOP, rendezvous=laptop_line, profile=directory / LAPTOP) as laptop,
    ):
        introduce(home, laptop, "echo")
        async with home.serve({"echo": echo}), await laptop.connect(HOME, "echo") as stream:
            return await conversation(stream)


@pytest.mark.parametrize(("at_home", "on_laptop"), [(SERVER, SERVER), (None, SERVER), (SERVER, None), (None, None)])
def test_who_has_the_servers_key_and_who_has_not_meet(
    tmp_path: Path, at_home: Identity | None, on_laptop: Identity | None
) -> None:
    async def main() -> None:
        async with served() as server:
            assert await meet(tmp_path, line(server, at_home), line(server, on_laptop)) == HELLO

    run(main())


def test_at_a_server_that_is_another_one_nobody_registers(tmp_path: Path) -> None:
    """T33: whoever answers at the address has to hold the key that was given for it."""

    async def main() -> None:
        async with served() as server, Peer(HOME, rendezvous=line(server, OTHER), profile=tmp_path) as home:
            with pytest.raises(ServerKeyError):
                await home.serve({"echo": echo})
            assert server.registered == ()

    run(main())


def test_a_server_without_a_key_is_none_for_whoever_has_one(tmp_path: Path) -> None:
    """Nobody is talked down."""

    async def main() -> None:
        async with (
            Rendezvous(("127.0.0.1", 0)) as server,
            Peer(HOME, rendezvous=line(server, SERVER), profile=tmp_path) as home,
        ):
            with pytest.raises(ServerKeyError):
                await home.serve({"echo": echo})
            assert server.registered == ()

    run(main())


def test_members_of_a_private_server_meet(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(TOKEN) as server:
            assert await meet(tmp_path, line(server, token=TOKEN), line(server, token=TOKEN)) == HELLO

    run(main())


def test_who_lacks_the_token_is_told_so_and_learns_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(TOKEN) as server:
            for text in (line(server), line(server, token="another-token-of-16")):
                async with Peer(LAPTOP, rendezvous=text, profile=tmp_path / LAPTOP) as stranger:
                    if stranger.peers.get(HOME) is None:
                        stranger.peers.add(HOME, OTHER.public)
                    with pytest.raises(ServerPrivateError):
                        await stranger.serve({"echo": echo})
                    with pytest.raises(ServerPrivateError):
                        await stranger.connect(HOME, "echo")
                    assert TOKEN not in repr(stranger) + repr(stranger.snapshot())
            assert server.registered == ()

    run(main())


@pytest.mark.parametrize("relay", ["auto", "never"])
def test_a_private_server_that_is_another_one_is_not_taken_for_one_that_refuses_us(tmp_path: Path, relay: RelayUse) -> None:
    async def main() -> None:
        async with served(TOKEN) as server:
            text = line(server, OTHER, TOKEN)
            async with Peer(LAPTOP, rendezvous=text, profile=tmp_path / LAPTOP, relay=relay) as laptop:
                laptop.peers.add(HOME, OTHER.public)
                with pytest.raises(ServerKeyError):
                    await laptop.serve({"echo": echo})
                with pytest.raises(ServerKeyError):
                    await laptop.connect(HOME, "echo")

    run(main())


def test_listed_keys_meet_and_others_are_kept_out(tmp_path: Path) -> None:
    members = {str(Profile(tmp_path / name).identity().public) for name in (HOME, LAPTOP)}

    async def main() -> None:
        async with served(members=members) as server:
            assert await meet(tmp_path, line(server), line(server)) == HELLO
            async with Peer("stranger", rendezvous=line(server), profile=tmp_path / "stranger") as stranger:
                stranger.peers.add(HOME, OTHER.public)
                with pytest.raises(ServerPrivateError):
                    await stranger.serve({"echo": echo})
                with pytest.raises(ServerPrivateError):
                    await stranger.connect(HOME, "echo")

    run(main())


def test_guests_pair_at_a_private_server(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            served(TOKEN) as server,
            Peer(HOME, rendezvous=line(server, token=TOKEN), profile=tmp_path / HOME) as home,
            Peer(LAPTOP, rendezvous=line(server, token=TOKEN), profile=tmp_path / LAPTOP) as laptop,
        ):
            invitation = await home.invite()
            try:
                pinned = await laptop.redeem(invitation.code)
            finally:
                await invitation.close()
            assert pinned.key == home.key

    run(main())


def test_a_tag_is_not_for_another_key_after_its_peer_has_gone(tmp_path: Path) -> None:
    async def main() -> None:
        async with served() as server:
            async with Peer(HOME, rendezvous=line(server), profile=tmp_path / HOME) as peer, peer.serve({"echo": echo}):
                assert server.registered == (HOME,)
            assert server.registered == ()
            async with Peer(HOME, rendezvous=line(server), profile=tmp_path / "thief") as thief:
                with pytest.raises(TagInUseError):
                    await thief.serve({"echo": echo})

    run(main())


def test_who_serves_is_told_of_another_program_with_a_copy_of_its_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "HEARTBEAT_MIN", 0.05)
    monkeypatch.setattr(registration, "HEARTBEAT_MAX", 0.1)
    Profile(tmp_path / HOME).identity()
    shutil.copytree(tmp_path / HOME, tmp_path / "copy")

    async def main() -> None:
        async with served() as server:
            home, copy = (Peer(HOME, rendezvous=line(server), profile=tmp_path / name) for name in (HOME, "copy"))
            async with home, copy, home.serve({"echo": echo}):
                events = home.events(ServerLost, ServerFound)
                async with copy.serve({"echo": echo}):
                    lost = await anext(events)
                    assert isinstance(lost, ServerLost)
                    assert lost.cause == f"another program has registered {HOME} by this machine's key; is its profile a copy?"
                    assert isinstance(await anext(events), ServerFound)

    run(main(), timeout=60)


def test_who_serves_is_told_when_the_server_goes_and_when_it_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "HEARTBEAT_MIN", 0.05)
    monkeypatch.setattr(registration, "HEARTBEAT_MAX", 0.1)

    async def main() -> None:
        async with served() as server:
            address, name = server.address, format_address(server.address)
            home = Peer(HOME, rendezvous=line(server), profile=tmp_path / HOME)
            async with home, home.serve({"echo": echo}):
                events = home.events(ServerLost, ServerFound)
                await server.close()
                lost = await anext(events)
                assert isinstance(lost, ServerLost)
                assert (lost.tag, lost.server, lost.cause) == (HOME, name, "no answer")
                async with Rendezvous(address, identity=SERVER):
                    found = await anext(events)
                    assert isinstance(found, ServerFound)
                    assert (found.tag, found.server) == (HOME, name)

    run(main(), timeout=60)
