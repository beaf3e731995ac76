"""Two peers find each other through a server and talk over one encrypted stream; all in this process, on loopback.

python examples/hello_stream.py
"""

import asyncio
import tempfile
from pathlib import Path

from p2ptunnel import Peer, Profile, Rendezvous, Stream


async def shout(stream: Stream) -> None:
    """A service may be a function: it is given each stream that a peer opens."""
    async for part in stream:
        await stream.write(part.upper())


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        # A profile is a directory with a key and the peers it knows. The two would be on two machines.
        home, laptop = Profile(Path(directory, "home")), Profile(Path(directory, "laptop"))

        # Each pins the other's key, as `p2ptunnel id` and `p2ptunnel peers add` do. Tags are names; keys are identities.
        home.peers().add("laptop", laptop.identity().public)
        laptop.peers().add("home-nas", home.identity().public)

        async with Rendezvous(("127.0.0.1", 0)) as server:
            address = "{}:{}".format(*server.address)
            print(f"the rendezvous server is at {address}")
            async with (
                Peer("home-nas", rendezvous=address, profile=home) as at_home,
                at_home.serve({"shout": shout}, allow=["laptop"]),
                Peer("laptop", rendezvous=address, profile=laptop) as away,
                await away.connect("home-nas", "shout") as stream,
            ):
                print(f"connected to {stream.tag}: {stream.path.kind} {stream.path.transport}, {stream.path.why}")
                await stream.write(b"hello through the hole")
                await stream.write_eof()  # our direction ends; the answer still comes
                print((await stream.read()).decode())


asyncio.run(main())
