"""T25: ends of a connection that nobody meant: forged FIN and RST, a thousand of them."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket

import pytest

from p2ptunnel.errors import ChannelLostError
from p2ptunnel.net.sockets import reset_close
from p2ptunnel.session.stream import SessionStream
from tests.helpers import run
from tests.helpers.lasting import Resuming, digest
from tests.helpers.peers import Peers, sessions, tcp_pair

TRIALS = 500
"""With FIN and as many with RST."""


class Relay:
    """Bytes from one connection to another, up to a place at which somebody who is no end ends them."""

    def __init__(self, *, by_reset: bool) -> None:
        self.client, near = tcp_pair()
        far, self.server = tcp_pair()
        self.ends = (near, far)
        self._by_reset = by_reset
        self._tasks = [asyncio.ensure_future(self._carry(near, far)), asyncio.ensure_future(self._carry(far, near))]

    async def _carry(self, source: socket.socket, target: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(source, 65536):
                await loop.sock_sendall(target, data)
        except OSError:
            pass

    async def strike(self) -> None:
        """End both connections now."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for end in self.ends:
            if self._by_reset:
                reset_close(end)
            else:
                end.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for end in self.ends:
            end.close()


async def read_on(stream: SessionStream, came: bytearray) -> None:
    """Read to the end; only a FIN within TLS is one."""
    async for part in stream:
        came += part


@pytest.mark.timeout(90)
@pytest.mark.parametrize("by_reset", [False, True], ids=["FIN", "RST"])
def test_five_hundred_forged_ends_are_no_end_of_a_stream(by_reset: bool) -> None:
    """Whatever has come by then is a beginning of what was sent, and behind it stands an error: never a short file."""

    async def attempt(dice: random.Random) -> None:
        peers, relay = Peers("file"), Relay(by_reset=by_reset)
        async with sessions(peers, (relay.client, relay.server)) as (caller, _):
            ours, theirs = await peers.stream(caller, "file")
            sent, came = dice.randbytes(dice.randrange(1, 4096)), bytearray()
            await ours.write(sent)
            if dice.random() < 0.5:
                came += await theirs.read()
            await relay.strike()
            with pytest.raises(ChannelLostError):
                await read_on(theirs, came)
            assert sent.startswith(came)
        relay.close()

    async def scenario() -> None:
        dice = random.Random(25)
        for _ in range(TRIALS):
            await attempt(dice)

    run(scenario(), timeout=80)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("by_reset", [False, True], ids=["FIN", "RST"])
def test_a_session_that_waits_goes_on_behind_every_forged_end(by_reset: bool) -> None:
    async def scenario() -> None:
        dice, peers = random.Random(26), Resuming("digest")
        peers.on_open = digest
        relays: list[Relay] = []

        async def redial(session: object) -> None:
            relays.append(Relay(by_reset=by_reset))
            await peers.rejoin(caller, (relays[-1].client, relays[-1].server))

        relays.append(Relay(by_reset=by_reset))
        async with sessions(peers, (relays[0].client, relays[0].server)) as (caller, _):
            caller.keep_up(lambda: redial(caller))
            stream, sent = await caller.open_confirmed("digest"), hashlib.sha256()
            for struck in range(20):
                block = dice.randbytes(dice.randrange(200_000))
                sent.update(block)
                await stream.write(block)
                await relays[-1].strike()
                await stream.write(b"+")
                sent.update(b"+")
                while caller.resumes <= struck:
                    await asyncio.sleep(0.001)
            await stream.write_eof()
            assert await stream.readexactly(32) == sent.digest()
        for sock in (*peers.ends, *(end for relay in relays for end in relay.ends)):
            sock.close()

    run(scenario(), timeout=50)
