"""Hypothesis strategies for the values of the wire, made from their types: a new message or member needs nothing here."""

from __future__ import annotations

import typing
from typing import Any

import msgspec
from hypothesis import strategies as st

from p2ptunnel.defaults import DATAGRAM_MAX_BYTES
from p2ptunnel.wire.messages import Message, encode

__all__ = ["anything", "every_kind", "messages"]

_LONGEST = 24  # characters of a text: long enough to be odd, short enough for 1200 bytes

every_kind: tuple[type[Message], ...] = typing.get_args(Message)


def messages() -> st.SearchStrategy[Message]:
    """Any message that fits into a datagram."""
    return st.sampled_from(every_kind).flatmap(_values_of).filter(lambda value: len(encode(value)) <= DATAGRAM_MAX_BYTES)


def anything() -> st.SearchStrategy[Any]:
    """Any JSON value, numbers that no integer type holds among them."""
    numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(min_value=2**64)
    return st.recursive(
        st.none() | st.booleans() | numbers | st.text(max_size=80),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    )


def _values_of(kind: Any) -> st.SearchStrategy[Any]:
    return _strategy(msgspec.inspect.type_info(kind))


def _strategy(kind: msgspec.inspect.Type) -> st.SearchStrategy[Any]:
    match kind:
        case msgspec.inspect.StructType():
            return st.builds(kind.cls, **{field.name: _strategy(field.type) for field in kind.fields})
        case msgspec.inspect.IntType(ge=low, le=high, lt=end):
            return st.integers(low, high if end is None else int(end) - 1)
        case msgspec.inspect.FloatType(ge=low, le=high):
            return st.floats(low, high, allow_nan=False)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.StrType(pattern=str()):
            return st.ip_addresses().map(str)  # the one pattern that there is: a numeric host
        case msgspec.inspect.StrType(min_length=shortest, max_length=longest):
            characters = st.characters(codec="utf-8")
            return st.text(characters, min_size=shortest or 0, max_size=min(longest or _LONGEST, _LONGEST))
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(_strategy(item), max_size=3).map(tuple)
        case msgspec.inspect.TupleType(item_types=types):
            return st.tuples(*map(_strategy, types))
        case msgspec.inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.UnionType(types=types):
            return st.one_of(*map(_strategy, types))
        case _:
            raise TypeError(f"no strategy for {kind}")
