"""Real peers on machines of the laboratory: the server between them, those who wait, and whom each knows."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator, Iterable
from pathlib import Path
from typing import Final

from p2ptunnel.abc import Stream
from p2ptunnel.identity.store import Profile
from p2ptunnel.peer import Peer
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.lab import Lab
from p2ptunnel.testing.natlab.living import living

__all__ = ["SERVICE", "Acquaintances", "echoing", "rendezvous"]

SERVICE: Final = "echo"
"""What those who wait serve: it sends back what comes."""

_PORT: Final = 7000


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
def rendezvous(lab: Lab) -> Generator[str]:
    """Have a rendezvous server up while the block lasts, with a relay and three places to observe from; yields `host:port`."""
    first, second = lab.server.ips
    with living(lab.server, lambda: Rendezvous((first, _PORT), alt_listen=((first, _PORT + 1), (second, _PORT)))):
        yield f"{first}:{_PORT}"


@contextlib.contextmanager
def echoing(host: Host, tag: str, profile: Profile, server: str) -> Generator[None]:
    """Have a peer serve on a machine while the block lasts.

    Raises:
        P2PTunnelError: It could not register.
    """

    @contextlib.asynccontextmanager
    async def serving() -> AsyncGenerator[None]:
        async with Peer(tag, rendezvous=server, profile=profile) as peer, peer.serve({SERVICE: _echo}):
            yield

    with living(host, serving):
        yield


async def _echo(stream: Stream) -> None:
    async for part in stream:
        await stream.write(part)
    await stream.write_eof()
