"""A TCP segment, as far as opening a connection needs one."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["ACK", "RST", "SYN", "SYN_ACK", "Segment"]

SYN: Final = 0
SYN_ACK: Final = 1
ACK: Final = 2
RST: Final = 3


class Segment(msgspec.Struct, frozen=True, gc=False):
    """One segment.

    Sequence numbers stand for whole connections, not for bytes: `seq` is the sender's initial number, `ack` the one it has
    seen of the other side, 0 for none.  `payload` is what an application would read from it.
    """

    kind: int
    seq: int
    ack: int = 0
    payload: str = ""
