"""How the NATs before a port map it, seen by all observers of one server.

Where TCP gets to nobody but the server, or only through the web, it leads to no peer, and is not to be counted on.

Rule: over each transport the questions leave in one order, from the port in question, so that a sequential NAT shows its steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from p2ptunnel.defaults import PHASE_MIN
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.net.reflexive import Observation, TcpControl, observe_tcp, observe_udp
from p2ptunnel.protocol.nat import Mapping, NatProfile, classify
from p2ptunnel.types import Address

__all__ = ["observe_over_udp", "observe_profile"]

_PATIENCE: Final = 4  # round trips, for a handshake and a question: one observer that is out of reach holds up nobody for long


async def observe_profile(local: Address, control: TcpControl) -> tuple[NatProfile, tuple[int, ...]]:
    """Return what the NATs do to a port, and the outside ports that it was seen to have over TCP, the last one last.

    Args:
        local: The port's address.
        control: Its standing connection, which tells how the first observer sees it, and where the others are.
    """
    first = control.server
    second = next((other for other in control.others if other[0] == first[0]), None)
    third = next((other for other in control.others if other[0] != first[0]), None)
    patience = max(PHASE_MIN, _PATIENCE * control.rtt)
    over_tcp = partial(observe_tcp, local[1], timeout=patience)
    asked = (first, second, third) if control.others else (None, None, None)
    over_udp = [_seen_by(at, partial(observe_udp, local, timeout=patience)) for at in asked]
    by_others = [_seen_by(at, over_tcp) for at in (second, third)]
    tcp_2, tcp_3, *udp = await asyncio.gather(*by_others, *over_udp)
    tcp = (control.observed, tcp_2, tcp_3)
    nat = NatProfile(tcp=_mapping(*tcp), udp=_mapping(*udp))
    if _is_hard(nat.udp) and udp[2] is not None and tcp_3 is None and await _seen_by(third, over_tcp) is None:
        nat = NatProfile(tcp=Mapping("none"), udp=nat.udp)
    return nat, tuple(address[1] for address in tcp if address is not None)


async def observe_over_udp(local: Address, server: Address, others: tuple[Address, ...], rtt: float) -> NatProfile:
    """Return what the NATs do to a port from which TCP leads to no peer.

    Args:
        local: The port's address.
        server: The first observer.
        others: Where the others are.
        rtt: Seconds to the first one and back.
    """
    second = next((other for other in others if other[0] == server[0]), None)
    third = next((other for other in others if other[0] != server[0]), None)
    patience = max(PHASE_MIN, _PATIENCE * rtt)
    asked = (server, second, third) if others else (None, None, None)
    seen = await asyncio.gather(*(_seen_by(at, partial(observe_udp, local, timeout=patience)) for at in asked))
    udp = _mapping(*seen)
    return NatProfile(tcp=Mapping("none" if _is_hard(udp) else "unknown"), udp=udp)


def _is_hard(mapping: Mapping) -> bool:
    """Tell whether nobody can know the next port: else TCP is tried whatever others say, since that costs little."""
    return mapping.kind in {"adm", "rnd"}


async def _seen_by(observer: Address | None, ask: Callable[[Address], Awaitable[Observation]]) -> Address | None:
    """Return what one observer sees, None if there is none or it does not say."""
    if observer is None:
        return None
    try:
        return (await ask(observer)).address
    except (P2PTunnelError, OSError):
        return None


def _mapping(first: Address | None, second: Address | None, third: Address | None) -> Mapping:
    mapping = classify(first, second, third, asked_third=third is not None)
    return Mapping("unknown") if mapping.kind == "none" else mapping  # it was asked too briefly to know that
