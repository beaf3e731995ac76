"""Two homes behind one provider's NAT that sends nothing back inside: the way in that the callee's own router keeps.

That router's outside address is private or shared, and most often somebody else's to whoever is elsewhere.  No server sees it,
so nobody vouches for it but the peer that names it.  Rule: it is told only to whom the server sees at our own address, and
counts only if the server sees its peer at ours; kind `mapped`, TCP, private ranges, none of our own networks, two at most, and
three SYNs each; whoever dials leaves out what is not on the way to the server.  Source: RFC 6598; docs/explanation/nat.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Final

from p2ptunnel.addresses import IPAddress, canonical, probe_refusal, scope_of
from p2ptunnel.defaults import INSIDE_CANDIDATES_MAX, SYN_REPEAT
from p2ptunnel.errors import InvalidAddressError
from p2ptunnel.types import Address, Candidate

__all__ = ["INSIDE_PATIENCE", "inside_targets", "is_inside", "is_same_outside"]

INSIDE_PATIENCE: Final = 2.5 * SYN_REPEAT  # seconds: kernels have sent three SYNs by then


def is_inside(host: str) -> bool:
    """Tell whether a numeric host is an IPv4 address that more than one network has."""
    address = _parsed(host)
    return address is not None and address.version == 4 and scope_of(address) == "private"


def is_same_outside(peer: str, ours: Iterable[Candidate]) -> bool:
    """Tell whether the server sees a peer at the IPv4 address at which it sees us: one NAT is before both.

    Args:
        peer: The host at which it sees the peer.
        ours: Our candidates.
    """
    address = _parsed(peer)
    seen = {_parsed(candidate.host) for candidate in ours if candidate.kind == "srflx"}
    return address is not None and address.version == 4 and address in seen


def inside_targets(
    theirs: tuple[Candidate, ...], ours: Iterable[Candidate], peer: Address, networks: Iterable[str]
) -> tuple[Address, ...]:
    """Return where to send SYNs to a peer that is behind the same outermost NAT as we; nowhere, if it is not.

    In our own networks a peer is found otherwise (`lan`), not by its word: what answers there may trust its neighbours.

    Args:
        theirs: The peer's candidates, signed.
        ours: Our own.
        peer: Where the server sees it, as `aim` returned it.
        networks: Our own, as text.
    """
    if not is_same_outside(peer[0], ours):
        return ()
    near = tuple(map(ip_network, networks))
    targets: list[Address] = []
    for candidate in theirs:
        address = _parsed(candidate.host)
        if address is None or (candidate.kind, candidate.proto) != ("mapped", "tcp") or not is_inside(candidate.host):
            continue
        is_refused = probe_refusal(address, candidate.port, is_admitted=True) is not None
        if not is_refused and str(address) != peer[0] and not any(address in network for network in near):
            targets.append((str(address), candidate.port))
    return tuple(dict.fromkeys(targets))[:INSIDE_CANDIDATES_MAX]


def _parsed(host: str) -> IPAddress | None:
    try:
        return canonical(host)
    except InvalidAddressError:
        return None
