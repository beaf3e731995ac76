"""Watch what happens to a connection whose other end stands still for a while: events are told, and the stream goes on.

    python examples/watch_connection.py

The other end is a program of its own here, so that it can be stopped as Ctrl-Z would; pull a cable to see more.
"""

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE
from pathlib import Path

from p2ptunnel import ChannelLost, ChannelOpened, Peer, Profile, Rendezvous, SessionResumed, SessionStalled, Stream


async def shout(stream: Stream) -> None:
    async for part in stream:
        await stream.write(part.upper())


async def home(address: str, profile: str) -> None:
    async with Peer("home-nas", rendezvous=address, profile=profile) as peer, peer.serve({"shout": shout}, allow="laptop"):
        print("serving", flush=True)
        await asyncio.Event().wait()


async def watch(peer: Peer) -> None:
    async for event in peer.events():  # all of them; `peer.events(ChannelLost, SessionResumed)` are two kinds
        match event:
            case ChannelOpened(tag=tag, path=path):
                print(f"{tag}: a {path.kind} path over {path.transport}")
            case ChannelLost(cause=cause, patience=patience):
                print(f"lost: {cause}; waiting {patience:.0f} s for another")
            case SessionResumed(replayed_bytes=count):
                print(f"it goes on; {count} bytes had to be sent again")
            case _:
                print(type(event).__name__)


async def laptop(address: str, profile: Profile, other: int) -> None:
    async with Peer("laptop", rendezvous=address, profile=profile) as peer:
        watching = asyncio.create_task(watch(peer))
        trouble = peer.events(SessionStalled, ChannelLost)
        async with await peer.connect("home-nas", "shout") as stream:
            os.kill(other, signal.SIGSTOP)
            await stream.write(b"are you there?")
            await anext(trouble)
            print(f"{stream.stats.unacknowledged} bytes are under way, and it is {peer.snapshot().peers[0].state}")
            os.kill(other, signal.SIGCONT)
            print((await stream.read()).decode())
    await watching  # the events end with the peer


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        at_home, away = Profile(Path(directory, "home")), Profile(Path(directory, "laptop"))
        at_home.peers().add("laptop", away.identity().public)
        away.peers().add("home-nas", at_home.identity().public)
        async with Rendezvous(("127.0.0.1", 0)) as server:
            address = "{}:{}".format(*server.address)
            words = (__file__, address, str(at_home.directory))
            other = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=PIPE)
            try:
                assert other.stdout is not None
                await other.stdout.readline()
                await laptop(address, away, other.pid)
            finally:
                other.kill()
                await other.communicate()


asyncio.run(home(*sys.argv[1:]) if sys.argv[1:] else main())
