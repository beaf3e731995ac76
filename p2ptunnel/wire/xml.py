"""XML from strangers, as a tree of plain values: no document type, so no entity; no namespace; bounded in size and depth.

Rule: no state, no I/O.  Expat is told to stop at what we refuse, before it expands anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from xml.parsers import expat

import msgspec

from p2ptunnel.defaults import IGD_ANSWER_MAX_BYTES, IGD_DEPTH_MAX, IGD_ELEMENTS_MAX

__all__ = ["Element", "MalformedXmlError", "escape", "parse"]

_ESCAPES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class MalformedXmlError(ValueError):
    """A text that is no XML, or more than we read of it."""


class Element(msgspec.Struct):
    """One element: its name without a prefix, its text, what is in it."""

    name: str
    text: str = ""
    children: list[Element] = []

    def walk(self, name: str) -> Iterator[Element]:
        """Yield every element of that name, from this one on, in the order of the text."""
        if self.name == name:
            yield self
        for child in self.children:
            yield from child.walk(name)

    def value(self, name: str) -> str:
        """Return the text of the first element of that name, without space around it; empty if there is none."""
        found = next(self.walk(name), None)
        return "" if found is None else found.text.strip()


def parse(data: bytes) -> Element:
    """Return the outermost element.

    Raises:
        MalformedXmlError: It is no XML, has a document type, or is too much.
    """
    if len(data) > IGD_ANSWER_MAX_BYTES:
        raise MalformedXmlError(f"{len(data)} bytes")
    builder = _Builder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = builder.refuse_doctype
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.add_text
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # an encoding that nobody knows is a LookupError
        raise MalformedXmlError(str(error)) from error
    return builder.root.children[0]


def escape(text: str) -> str:
    """Return `text` as it stands between two tags."""
    return text.translate(_ESCAPES)


class _Builder:
    """Makes the tree as expat reads."""

    def __init__(self) -> None:
        self.root: Final = Element("")
        self._open = [self.root]
        self._count = 0

    def refuse_doctype(self, *_: object) -> None:
        raise MalformedXmlError("a document type")

    def start(self, name: str, _: dict[str, str]) -> None:
        self._count += 1
        if self._count > IGD_ELEMENTS_MAX or len(self._open) > IGD_DEPTH_MAX:
            raise MalformedXmlError("too many elements, or too deep")
        element = Element(name.rpartition(":")[2])
        self._open[-1].children.append(element)
        self._open.append(element)

    def end(self, _: str) -> None:
        self._open.pop()

    def add_text(self, text: str) -> None:
        self._open[-1].text += text
