"""The way out of a peer that is closed meanwhile: no port is opened, and none is left behind."""

from __future__ import annotations

import socket
from collections.abc import Generator
from pathlib import Path

import pytest

from p2ptunnel.abc import Pipe
from p2ptunnel.calling import _note_answer
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.store import Profile
from p2ptunnel.peer import Peer
from p2ptunnel.protocol import lan
from p2ptunnel.transports.raw import RawStream
from p2ptunnel.traversal.call import Conkey
from p2ptunnel.traversal.tries import Tries
from tests.helpers import run
from tests.helpers.meeting import HOME, meeting


@pytest.fixture
def dead() -> Generator[int]:
    """A port that nobody listens on."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield closed.getsockname()[1]


async def establish(pipe: Pipe, conkey: Conkey, _: PublicKey | None) -> RawStream:
    return await RawStream.over(pipe)


def test_who_is_closed_opens_no_port(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            calling = there.laptop._calling
            await there.laptop.close()
            before = len(there.laptop_events.all)
            with pytest.raises(LocalProtocolError, match="the peer has been closed"):
                await calling.call(HOME, establish, None, relay="never")
            assert there.laptop_events.all[before:] == []

    run(main())


def test_a_port_that_came_up_while_we_were_closed_is_closed(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            calling = there.laptop._calling
            port = await calling.open_spare()
            await there.laptop.close()
            with pytest.raises(LocalProtocolError, match="the peer has been closed"):
                await calling._attempt(port, HOME, establish, None, "auto", None, Tries())
            assert port._reserved.fileno() == -1

    run(main())


@pytest.mark.parametrize(
    ("over", "outcome", "reason"),
    [
        (("UDP", "TCP"), "answered", "how this machine looks from outside"),
        (("TCP",), "answered", "how this machine looks from outside, TCP alone"),
        ((), "silent", "no answer over either"),
    ],
)
def test_what_has_answered_is_what_is_told(over: tuple[str, ...], outcome: str, reason: str) -> None:
    looking = Tries().begin("server", "t=5, UDP and TCP")
    _note_answer(looking, over)
    assert (looking.now.outcome, looking.now.reason) == (outcome, reason)


def test_a_server_that_is_not_there_has_not_answered(tmp_path: Path, dead: int) -> None:
    async def main() -> None:
        profile = Profile(tmp_path)
        profile.peers().add(HOME, Identity.generate().public)
        server = f"127.0.0.1:{dead}"
        async with Peer("laptop", rendezvous=server, profile=profile, lan=False, port_mapping=False) as laptop:
            told = await laptop.explain(HOME)
        assert told.path is None
        assert {each.outcome for each in told.tries if each.way == "server"} <= {"silent", "failed"}

    run(main())


def test_an_attempt_without_a_server_is_explained_by_what_was_tried_near_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lan, "LAN_PATIENCE", 0.05)

    async def main() -> None:
        profile = Profile(tmp_path)
        profile.peers().add(HOME, Identity.generate().public)
        async with Peer("laptop", profile=profile, port_mapping=False) as laptop:
            told = await laptop.explain(HOME)
        [looked] = told.tries
        assert (looked.way, looked.outcome) == ("lan", "silent")
        assert told.verdict.startswith("'home-nas' is not to be found in this network")
        assert told.hint.startswith("Is `p2ptunnel serve` running on home-nas")

    run(main())
