"""Real peers on machines of the laboratory: the server between them, those who wait, and whom each knows."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from pathlib import Path
from typing import Final, TypeAlias

from p2ptunnel.abc import Stream
from p2ptunnel.defaults import RENDEZVOUS_PORT, WEB_PORT
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import Profile
from p2ptunnel.peer import Peer
from p2ptunnel.server import Rendezvous
from p2ptunnel.server.web import Web
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.lab import Lab
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.types import format_address

__all__ = ["SERVICE", "Acquaintances", "Service", "echo", "rendezvous", "serving"]

SERVICE: Final = "laboratory"
"""What those who wait serve."""

Service: TypeAlias = Callable[[Stream], Awaitable[None]]


async def echo(stream: Stream) -> None:
    """Send back what comes."""
    async for part in stream:
        await stream.write(part)
    await stream.write_eof()


class Acquaintances:
    """A profile for each of some callers and callees; every caller may open the service of every callee.

    Args:
        directory: Where the profiles are.
        callers: Their tags.
        callees: Theirs.
    """

    def __init__(self, directory: Path, callers: Iterable[str], callees: Iterable[str]) -> None:
        self._directory = directory
        ours, theirs = tuple(callers), tuple(callees)
        keys = {tag: self.profile(tag).identity().public for tag in (*ours, *theirs)}
        for caller in ours:
            for callee in theirs:
                self.profile(caller).peers().add(callee, keys[callee], ())
                self.profile(callee).peers().add(caller, keys[caller], (SERVICE,))

    def profile(self, tag: str) -> Profile:
        """Return the profile of a tag."""
        return Profile(self._directory / tag)


@contextlib.contextmanager
def rendezvous(lab: Lab, *, is_ipv6: bool = False) -> Generator[str]:
    """Have a rendezvous server up while the block lasts, with a relay, and inside TLS on port 443 too; yields its line.

    Args:
        lab: Where.
        is_ipv6: Over IPv6, and with one address; over IPv4 it has two, so that it sees how NATs map.
    """
    first, second = lab.server.ips
    here = (lab.server.ip6 or "", RENDEZVOUS_PORT) if is_ipv6 else (first, RENDEZVOUS_PORT)
    others = () if is_ipv6 else ((first, RENDEZVOUS_PORT + 1), (second, RENDEZVOUS_PORT))
    identity = Identity.generate()
    web = Web((here[0], WEB_PORT))
    with living(lab.server, lambda: Rendezvous(here, alt_listen=others, identity=identity, web=web)):
        yield f"{format_address(here)}#{identity.public}"


@contextlib.contextmanager
def serving(
    host: Host, tag: str, profile: Profile, server: str | None, service: Service = echo, *, lan: bool = True
) -> Generator[None]:
    """Have a peer serve on a machine while the block lasts, with all that a call needs; without a server, in its own network.

    Raises:
        P2PTunnelError: It could not register, or a call would need what it does not have.
    """

    @contextlib.asynccontextmanager
    async def registered() -> AsyncGenerator[None]:
        async with Peer(tag, rendezvous=server, profile=profile, lan=lan) as peer, peer.serve({SERVICE: service}):
            await peer.ready()
            yield

    with living(host, registered):
        yield
