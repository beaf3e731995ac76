"""Structs that show themselves without what only the ends of an exchange should know."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

__all__ = ["Redacted"]

_SECRET: Final = frozenset({"token", "conkey", "cookie", "nonce", "sig", "intent", "join", "rekey", "sealed", "grant"})


class Redacted(Struct, frozen=True):
    """Its `repr` leaves out the fields that hold secrets, by their names."""

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in self.__struct_fields__ if name not in _SECRET)
        return f"{type(self).__name__}({', '.join(shown)})"
