"""Files in TOML that people write: read, and what is wrong in one told in plain words, with its place.

Rule: no library's sentence is passed on, and nothing behind a `#` is shown: there stand tokens.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, TypeVar, cast, get_args, get_origin

import msgspec

from p2ptunnel.types import clean

__all__ = ["TableError", "parse_toml", "understood"]

T = TypeVar("T")

_AT: Final = re.compile(r"\(at line (\d+), column \d+\)")
_KEY: Final = re.compile(r'\s*(?:[A-Za-z0-9_.-]+|"[^"]*")\s*(=?)\s*(.*)')
_BARE: Final = re.compile(r"[^\s\"'\[{0-9+-]")
_SHOWN: Final = 60
_TOML: Final = 'A line is `key = value`, `[table]`, or a remark behind #; text stands in quotes: tag = "home-nas".'
_PLAIN: Final[dict[object, str]] = {
    str: "text in quotes",
    bool: "true or false",
    datetime: "a date and a time",
    tuple: "a list of texts, each in quotes",
}


class TableError(ValueError):
    """What is wrong, in words; `hint` is the next step."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


def parse_toml(data: bytes) -> dict[str, Any]:
    """Return the tables of a file.

    Raises:
        TableError: It is no TOML; the text names the line.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TableError(f"line {line} is no text in UTF-8", "Save the file as UTF-8.") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _no_toml(text, str(error)) from error
    except (ValueError, RecursionError) as error:
        raise TableError("a number or a list in it is too long to be read", _TOML) from error


def _no_toml(text: str, reason: str) -> TableError:
    """Return what is wrong with a text, given where the library has stopped."""
    found = _AT.search(reason)
    lines = text.splitlines()
    number = int(found[1]) if found else max(1, len(lines))
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    return TableError(f"line {number} is no TOML: {_short(line)}", _advice(line, reason))


def _advice(line: str, reason: str) -> str:
    if "overwrite" in reason or "twice" in reason:
        return "A key, or a table, stands there for the second time: leave one of the two."
    key = _KEY.fullmatch(line)
    if key and key[1] and _BARE.match(key[2]):
        return f'Text stands in quotes: {_short(line.partition("=")[0].strip())} = "{_short(key[2])}".'
    return _TOML


def understood(table: Mapping[str, Any], kind: type[T]) -> T:
    """Return a file's tables as a value of a Struct.

    What a key's value has to be is the `description` that its annotation has, else what its type is called.

    Args:
        table: As `parse_toml` returns it.
        kind: A Struct whose unknown keys are forbidden.

    Raises:
        TableError: A key is unknown or missing, or a value is not what it has to be; the text names the key and its table.
    """
    _check(table, kind, ())
    try:
        return msgspec.convert(table, kind)
    except (msgspec.ValidationError, OverflowError) as error:  # each part is right, and yet
        raise TableError("something in it is not what it has to be", _TOML) from error


def _check(value: object, kind: object, place: tuple[str, ...]) -> None:
    inner, expected = _described(kind)
    if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
        _check_struct(_table(value, place), inner, place)
    elif get_origin(inner) is dict:
        for key, each in _table(value, place).items():
            _check(each, get_args(inner)[1], (*place, key))
    else:
        try:
            msgspec.convert(value, cast("Any", kind))
        except (msgspec.ValidationError, OverflowError) as error:
            raise TableError(f"{_shown(value)} is not {expected}: {_named(place)}", _near_value(value, kind)) from error


def _check_struct(table: Mapping[str, Any], kind: type[msgspec.Struct], place: tuple[str, ...]) -> None:
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key not in fields:
            raise TableError(f"unknown key `{clean(key)}` at {_where(place)}", _nearest(key, list(fields)))
        _check(value, fields[key].type, (*place, key))
    for key, field in fields.items():
        if field.required and key not in table:
            raise TableError(f"`{key}` is missing at {_where(place)}", f"Write there: {key} = …")


def _table(value: object, place: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TableError(
            f"{_shown(value)} is not a table: {_named(place)}", f"Write [{'.'.join(map(clean, place))}], and its keys below."
        )
    return cast("dict[str, Any]", value)


def _described(kind: object) -> tuple[object, str]:
    """Return a type without what is noted beside it, and what a value of it is called."""
    noted = [note.description for note in getattr(kind, "__metadata__", ()) if isinstance(note, msgspec.Meta)]
    inner = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
    plain = next((_PLAIN[each] for each in (inner, get_origin(inner), *get_args(inner)) if each in _PLAIN), "what it has to be")
    return inner, next((note for note in noted if note), plain)


def _shown(value: object) -> str:
    """Return a value as the file has it, or what it is."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return repr(_short(value))
        case int() | float():
            return _short(
                f"{value:g}" if isinstance(value, float) else f"{value}" if abs(value) < 10**_SHOWN else "so long a number"
            )
        case list():
            odd = next((each for each in cast("list[object]", value) if not isinstance(each, str)), None)
            return "this list" if odd is None else f"a list with {_shown(odd)} in it"
        case dict():
            return "a table"
        case _:
            return "a date"


def _short(text: str) -> str:
    """Return the beginning of a text, and nothing of what stands behind a `#`: that may be a token."""
    begin, mark, _ = text.partition("#")
    return f"{clean(begin)[:_SHOWN]}{'…' if mark or len(begin) > _SHOWN else ''}"


def _named(place: tuple[str, ...]) -> str:
    return f"`{clean(place[-1])}` at {_where(place[:-1])}"


def _where(place: tuple[str, ...]) -> str:
    return ".".join(map(clean, place)) or "the top"


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"Did you mean `{near[0]}`?" if near else f"Known there: {', '.join(known)}."


def _near_value(value: object, kind: object) -> str:
    """Return what may have been meant, of a key whose values are a few words."""
    words = [word for word in get_args(_described(kind)[0]) if isinstance(word, str)]
    near = difflib.get_close_matches(str(value), words, n=1, cutoff=0.5)
    return f'Did you mean "{near[0]}"?' if near else _TOML if not words else f"Write one of: {', '.join(words)}."
