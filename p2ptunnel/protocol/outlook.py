"""What to expect of each kind of NAT at the other end, given what our own does.  Rule: values in, values out.

The kinds are those of the laboratory, in plain words; what becomes of a pair is decided by the table that calls decide by.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from p2ptunnel.defaults import BIRTHDAY_HOLES, DESCRIPTORS, DESCRIPTORS_BESIDE
from p2ptunnel.protocol.strategy import Method, choose, shape_of
from p2ptunnel.wire.messages import NatHints, PortRow

__all__ = ["Carrier", "Expectation", "expect"]

Carrier: TypeAlias = Literal["tcp", "quic", "relay", "none"]
"""Over what two peers end up: a direct TCP connection, QUIC over a punched UDP port, the server's relay, nothing."""


class Expectation(msgspec.Struct, frozen=True, kw_only=True):
    """What a call between us and a peer of one kind comes to.

    Attributes:
        kind: Its name in the laboratory.
        words: What it is.
        carrier: Over what it runs in the end.
        how: How the two get through to each other.
        improve: What on our side would make it better; empty where nothing needs to be.
    """

    kind: str
    words: str
    carrier: Carrier
    how: str
    improve: str = ""


_EIM: Final = NatHints(tcp="eim", udp="eim", low=True, crosses=True, is_open=False)
_KINDS: Final[tuple[tuple[str, str, NatHints], ...]] = (
    ("pub", "is none: a public address", msgspec.structs.replace(_EIM, is_open=True)),
    ("pubfw", "has a firewall and no NAT", _EIM),
    ("fc", "lets everybody in through a mapping (full cone)", msgspec.structs.replace(_EIM, is_open=True)),
    ("ar", "lets in hosts that it has sent to", msgspec.structs.replace(_EIM, is_open=True)),
    ("pr", "ignores strangers, as most home routers do", _EIM),
    ("prR", "refuses strangers by RST", _EIM),
    ("prO", "has no firewall of its own", _EIM),
    ("shift", "shows other ports than ours", _EIM),
    ("symR", "takes a random port for each destination", msgspec.structs.replace(_EIM, tcp="rnd", udp="rnd")),
    (
        "symS",
        "takes the next port for each destination",
        msgspec.structs.replace(_EIM, tcp="seq", udp="seq", tcp_row=PortRow(40_000, 1), udp_row=PortRow(20_000, 1)),
    ),
    ("noU", "blocks UDP", msgspec.structs.replace(_EIM, udp="none")),
    ("noSO", "refuses simultaneous open", msgspec.structs.replace(_EIM, crosses=False)),
    ("dbl", "stands below another NAT", _EIM),
)
_HOW: Final = {
    Method.CONNECT: "a plain connection",
    Method.PUNCH: "hole punching",
    Method.PREDICT: "punching the ports that come next",
    Method.BIRTHDAY: "many holes, many guesses: a second or two",
}
_ASK_ROUTER: Final = "turn on UPnP, NAT-PMP or PCP in the router"


def expect(own: NatHints, *, descriptors: int | None, has_mapping: bool) -> tuple[Expectation, ...]:
    """Return what to expect of each kind.

    Args:
        own: What is known of our own NATs.
        descriptors: How many files this process may have open; None: no limit.
        has_mapping: Our router lets others in when it is asked, so that we count as open.
    """
    ours = msgspec.structs.replace(own, is_open=True) if has_mapping else own
    return tuple(_expect(ours, name, words, theirs, descriptors) for name, words, theirs in _KINDS)


def _expect(own: NatHints, name: str, words: str, theirs: NatHints, descriptors: int | None) -> Expectation:
    over_tcp = choose("tcp", "caller", own, theirs)
    if over_tcp.method is not Method.NONE and not over_tcp.is_doubted:
        improve = _files(descriptors) if over_tcp.method is Method.BIRTHDAY else ""
        return Expectation(kind=name, words=words, carrier="tcp", how=_HOW[over_tcp.method], improve=improve)
    over_udp = choose("udp", "caller", own, theirs)
    if over_udp.method is not Method.NONE:
        return Expectation(kind=name, words=words, carrier="quic", how=_HOW[over_udp.method], improve=_ASK_ROUTER)
    improve = _ASK_ROUTER if shape_of(own, "tcp") != "open" else ""
    return Expectation(kind=name, words=words, carrier="relay", how="the server carries it", improve=improve)


def _files(descriptors: int | None) -> str:
    """Return what a birthday lacks, if it does."""
    if descriptors is None or descriptors >= BIRTHDAY_HOLES + DESCRIPTORS_BESIDE:
        return ""
    few = f"{descriptors} are too few for the {BIRTHDAY_HOLES} sockets that this takes"
    return f"allow more open files: {few} (ulimit -n {DESCRIPTORS})"
