"""A rendezvous server inside a program of your own, and what happens at it while two peers meet.

    python examples/rendezvous_server.py

By itself: `p2ptunnel rendezvous`.
"""

import asyncio
import tempfile
from pathlib import Path

from p2ptunnel import Peer, Profile, Rendezvous, Stream, TraceEvent, Tracer


def show(event: TraceEvent) -> None:
    """Print what the server did. A sink is any function of an event; `JsonLines` writes them to a file."""
    facts = ", ".join(f"{name} {value}" for name, value in event.facts.items())
    print(f"  {event.name}: {facts}")


async def greet(stream: Stream) -> None:
    await stream.write(b"welcome")


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        home, laptop = Profile(Path(directory, "home")), Profile(Path(directory, "laptop"))
        home.peers().add("laptop", laptop.identity().public)
        laptop.peers().add("home-nas", home.identity().public)

        # A second port lets peers learn how their NAT maps; a public server listens on ("0.0.0.0", 7000).
        async with Rendezvous(("127.0.0.1", 0), alt_listen=[("127.0.0.1", 0)], tracer=Tracer(show)) as server:
            address = "{}:{}".format(*server.address)
            print(f"listening on {address}, UDP and TCP; it sees introductions, and no byte of what the peers say:")
            async with (
                Peer("home-nas", rendezvous=address, profile=home) as at_home,
                at_home.serve({"default": greet}, allow=["laptop"]),
                Peer("laptop", rendezvous=address, profile=laptop) as away,
                await away.connect("home-nas") as stream,
            ):
                print(f"registered: {', '.join(server.registered)}")
                print(f"the peer says: {(await stream.read()).decode()}")


asyncio.run(main())
