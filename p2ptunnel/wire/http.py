"""HTTP, as far as one question to a router needs it: a request as bytes, heads and sizes out of bytes.  Rule: no state."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

__all__ = ["HttpAnswer", "HttpHead", "MalformedHttpError", "head_fields", "parse_chunk_size", "parse_head", "request"]

_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: |\r?\n)")
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,6})[ \t]*(?:;[^\r\n]*)?\r\n")
_LENGTH: Final = re.compile(r"[0-9]{1,7}")


class MalformedHttpError(ValueError):
    """Bytes that are no answer of HTTP/1.x, or are more than we read."""


class HttpHead(msgspec.Struct, frozen=True):
    """What an answer begins with; `length` is None where the body ends with the connection, and where it comes in chunks."""

    status: int
    length: int | None
    is_chunked: bool


class HttpAnswer(msgspec.Struct, frozen=True):
    """An answer: its status and its body."""

    status: int
    body: bytes


def request(method: str, path: str, host: str, fields: Mapping[str, str], body: bytes = b"") -> bytes:
    """Return a request after which the connection ends; `path`, if a stranger named it, is without spaces and line breaks."""
    lines = {"Host": host, "User-Agent": "p2ptunnel UPnP/1.1", "Connection": "close", **fields}
    if body:
        lines["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def head_fields(head: bytes) -> dict[str, str]:
    """Return the fields of a head, by their names in small letters: of two alike the first; lines that are none are skipped."""
    fields: dict[str, str] = {}
    for line in head.decode("latin-1").split("\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def parse_head(head: bytes) -> HttpHead:
    """Return what the lines up to the first empty one say.

    Raises:
        MalformedHttpError: They begin no answer, or a length is none.
    """
    status = _STATUS.match(head)
    if status is None:
        raise MalformedHttpError("no status line of HTTP/1.x")
    fields = head_fields(head)
    is_chunked = fields.get("transfer-encoding", "").lower() == "chunked"
    length = fields.get("content-length")
    if length is not None and not _LENGTH.fullmatch(length):
        raise MalformedHttpError("a length that is none")
    return HttpHead(int(status[1]), None if is_chunked or length is None else int(length), is_chunked)


def parse_chunk_size(line: bytes) -> int:
    """Return how many bytes the chunk behind this line has.

    Raises:
        MalformedHttpError: It is no such line.
    """
    size = _SIZE.fullmatch(line)
    if size is None:
        raise MalformedHttpError("no size of a chunk")
    return int(size[1], 16)
