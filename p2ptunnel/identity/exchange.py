"""The exchange under a spoken code: SPAKE2 between two claimed keys.  Rule: whatever it is fed, it fails in one way.

The library (`spake2`, Ed25519 group) takes 10 ms of CPU a side and is not constant-time, which is why a code lives once and
is burnt before anything here is called (docs/explanation/security.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final, cast

from p2ptunnel.errors import PairingError
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.wire.pairing import ELEMENT_BYTES

__all__ = ["CodeExchange"]

_GUEST_SIDE, _HOST_SIDE = b"A", b"B"
_NO_ELEMENT: Final = "the other side's part of the exchange is no such thing"


class CodeExchange:
    """One side of one exchange; blocking, so called in a thread.

    Args:
        words: Of the spoken code.
        guest: The key that the guest claims.
        host: The key that the host claims.
        is_host: Which side we are.

    Attributes:
        element: 32 bytes for the other side.
    """

    def __init__(self, words: str, guest: PublicKey, host: PublicKey, *, is_host: bool) -> None:
        library: Any = importlib.import_module("spake2")  # no types; and nobody else needs to wait for its tables
        make = cast("Callable[..., Any]", library.SPAKE2_B if is_host else library.SPAKE2_A)
        self._side: Final = make(words.encode("ascii"), idA=guest.raw, idB=host.raw)
        self._other: Final = _GUEST_SIDE if is_host else _HOST_SIDE
        self.element: Final = cast("bytes", self._side.start())[1:]

    def finish(self, element: bytes) -> bytes:
        """Return the 32 bytes that both sides come to if they had the same words and keys.

        Raises:
            PairingError: The other side's element is none: the identity, of low order, of another group, our own.
        """
        if len(element) != ELEMENT_BYTES:  # which the library would take
            raise PairingError(_NO_ELEMENT)
        try:
            return cast("bytes", self._side.finish(self._other + element))
        except Exception as error:  # it raises ValueErrors, AssertionErrors and its own: all mean the same
            raise PairingError(_NO_ELEMENT) from error
