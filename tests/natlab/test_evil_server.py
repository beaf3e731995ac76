"""What a third party gets when a rendezvous server lies: counted at its own machine, behind real NATs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator, Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from p2ptunnel import Peer, Profile
from p2ptunnel.abc import Stream
from p2ptunnel.errors import AuthenticationError, P2PTunnelError
from p2ptunnel.testing.natlab import Host, Lab
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.types import Candidate
from p2ptunnel.wire.messages import Message, PunchNotice, PunchResult
from tests.helpers.meeting import HELLO, conversation
from tests.security.evil import EVE, EvilRendezvous, called_by, misleading

pytestmark = pytest.mark.natlab
PORT = 40_000


class World:
    """Two peers behind NATs, the evil server between them, and a third party on the open internet."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self.server = EvilRendezvous((lab.server.ip, 7000))
        self.victim: Host = lab.site("pub").host
        self.handled = 0
        self._lab = lab
        self._there, self._here = lab.site("pr").host, lab.site("pr").host
        self.home, self._laptop = Profile(directory / "home"), Profile(directory / "laptop")
        self.home.peers().add("laptop", self._laptop.identity().public, ("echo",))
        self._laptop.peers().add("home-nas", self.home.identity().public)

    @contextlib.contextmanager
    def up(self) -> Generator[None]:
        """Have server and callee up while the block lasts."""
        with living(self._lab.server, lambda: self.server), living(self._there, self._serving):
            yield

    def call(self, *, require_direct: bool = False) -> bytes:
        """Call from the laptop, with a new peer."""
        return self._here.thread(asyncio.run, self._call(require_direct)).result(40)

    async def _call(self, require_direct: bool) -> bytes:
        async with (
            Peer("laptop", rendezvous=self._lab.server.ip, profile=self._laptop) as peer,
            await peer.connect("home-nas", "echo", timeout=12, require_direct=require_direct) as stream,
        ):
            return await conversation(stream)

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncGenerator[None]:
        async def echo(stream: Stream) -> None:
            self.handled += 1
            async for part in stream:
                await stream.write(part)
            await stream.write_eof()

        async with Peer("home-nas", rendezvous=self._lab.server.ip, profile=self.home) as peer, peer.serve({"echo": echo}):
            yield


@pytest.fixture
def world(natlab: Lab, tmp_path: Path) -> Generator[World]:
    found = World(natlab, tmp_path)
    with found.up():
        yield found


def test_redirected_replayed_and_invented_calls_send_it_nothing(natlab: Lab, world: World) -> None:
    victim = world.victim.ip
    lies = (Candidate("srflx", "tcp", victim, PORT), Candidate("srflx", "udp", victim, PORT))

    def notices(message: PunchNotice) -> Iterable[Message]:
        """The genuine one, and many that are aimed at the victim."""
        yield message
        here = replace(message.extra, host=victim, port=PORT)
        invented = called_by(EVE, world.home.identity().public, lies, here.nat)
        for n in range(50):
            for extra in (here, replace(here, cands=lies), replace(here, cands=lies, intent=invented)):
                yield replace(message, extra=replace(extra, token=f"{message.extra.token[:13]}{n}{extra.intent[-19:]}"))

    def aimed_at_both(message: Message) -> Iterable[Message]:
        match message:
            case PunchNotice():
                yield from notices(message)
            case PunchResult() if message.extra is not None:
                yield replace(message, extra=replace(message.extra, host=victim, port=PORT))
            case _:
                yield message

    with natlab.capture(world.victim, filter=f"ip and dst host {victim}") as got:
        assert world.call() == HELLO
        world.server.twist = aimed_at_both
        for _ in range(3):
            with pytest.raises(AuthenticationError):
                world.call()
    assert got.lines == []
    assert world.handled == 1


def test_a_server_that_shows_the_caller_a_wrong_address_of_its_own_gets_two_datagrams_sent_there(
    natlab: Lab, world: World
) -> None:
    """As much as can be sent for a signature over a lie: 53 bytes each, no SYN; a call of the laptop's owner is needed."""
    world.server.twist = misleading(world.victim.ip, PORT)
    with (
        natlab.capture(world.victim, filter=f"ip and dst host {world.victim.ip} and not icmp") as got,
        pytest.raises(P2PTunnelError),
    ):
        world.call(require_direct=True)
    datagrams = [line for line in got.lines if "UDP, length 53" in line]
    assert len(datagrams) == len(got.lines) == 2
    assert world.handled == 0
