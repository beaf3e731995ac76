"""Pairs of machines in one network, of which one serves for as long as the scenario lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.identity.store import Profile
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.testing.natlab.lab import Lab
from p2ptunnel.testing.natlab.peers import Acquaintances, Service, echo, rendezvous, serving
from p2ptunnel.testing.natlab.scenarios.networks import Network

__all__ = ["Pair", "open_pair", "server_of"]


class Pair(NamedTuple):
    """A caller's machine and the tag of the one it calls; `problem` is why the latter cannot be called."""

    caller: Host
    caller_tag: str
    callee_tag: str
    profile: Profile
    problem: str


@contextlib.contextmanager
def server_of(network: Network, lab: Lab) -> Generator[str | None]:
    """Have the server of a network up while the block lasts; yields its line, None where there is none."""
    if network.server == "none":
        yield None
        return
    with rendezvous(lab, is_ipv6=network.server == "ipv6") as line:
        yield line


def open_pair(
    stack: contextlib.ExitStack,
    lab: Lab,
    network: Network,
    directory: Path,
    number: int,
    server: str | None,
    service: Service = echo,
) -> Pair:
    """Make two machines, and have a peer serve on one of them until the stack is closed."""
    caller, callee = network.places(lab)
    caller_tag, callee_tag = f"caller-{number}", f"callee-{number}"
    known = Acquaintances(directory, [caller_tag], [callee_tag])
    problem = ""
    try:
        stack.enter_context(serving(callee, callee_tag, known.profile(callee_tag), server, service))
    except P2PTunnelError as error:
        problem = f"the callee cannot be called: {error}"
    return Pair(caller, caller_tag, callee_tag, known.profile(caller_tag), problem)
