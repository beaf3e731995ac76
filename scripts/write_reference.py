"""Writes the parts of the documentation that are made from the code; `python -m scripts.write_reference`, or `make fmt`.

A page keeps its own text and has a place `<!-- NAME: ... -->` … `<!-- end -->`; only what stands between is replaced.  A
test compares, so that a page cannot fall behind.
"""

from __future__ import annotations

import ast
import enum
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import click

from p2ptunnel import defaults, errors
from p2ptunnel.cli.main import root
from p2ptunnel.protocol import callee, caller, guessing, holes, lan, pairing, portmap, registration

__all__ = ["PARTS", "outdated", "write"]

ROOT: Final = Path(__file__).resolve().parent.parent
WIDTH: Final = 100


def vectors() -> Iterator[str]:
    """Every vector of the wire: its name, how it is made, its bytes."""
    table = json.loads((ROOT / "tests" / "vectors" / "messages.json").read_text(encoding="utf-8"))
    yield "### Written and read\n"
    yield from map(_vector, table["exact"])
    yield "### Only read\n\nOurs would write the same message otherwise.\n"
    yield from map(_vector, table["decode_only"])


def _vector(vector: dict[str, str]) -> str:
    return f"**{vector['name']}**\n\n```python\n{vector['python']}\n```\n\n```json\n{vector['wire'].strip()}\n```\n"


def machines() -> Iterator[str]:
    """The tables that the state machines run on."""
    for title, table in (
        ("Caller, one call", caller.TRANSITIONS),
        ("Callee, one answered call", callee.TRANSITIONS),
        ("Own network, one announced address", lan.TRANSITIONS),
        ("Registration", registration.TRANSITIONS),
        ("Birthday, the hard side", holes.TRANSITIONS),
        ("Birthday, the easy side", guessing.TRANSITIONS),
        ("Pairing, the host with one guest", pairing.HOST_TRANSITIONS),
        ("Pairing, the guest", pairing.GUEST_TRANSITIONS),
        ("Port mapping by PCP and NAT-PMP", portmap.TRANSITIONS),
    ):
        yield f"## {title}\n\n{_transitions(table.items())}"


def _transitions(table: Iterable[tuple[tuple[enum.Enum, enum.Enum], enum.Enum]]) -> str:
    rows = [f"| {before.value} | {trigger.value} | {after.value} |" for (before, trigger), after in table]
    return "\n".join(["| state | when | next |", "| --- | --- | --- |", *rows, ""])


def tunables() -> Iterator[str]:
    """Each constant of `p2ptunnel.defaults`, with the comment that stands behind it."""
    for line in inspect.getsource(defaults).splitlines():
        if heading := re.fullmatch(r"# --- (.+?) -+", line):
            yield f"\n## {heading[1].capitalize()}\n\n| name | value | why |\n| --- | --- | --- |"
        elif constant := re.fullmatch(r"([A-Z_0-9]+): Final = (.+?)(?:  # (.+))?", line):
            yield f"| `{constant[1]}` | {_value(constant[2])} | {constant[3] or ''} |"


def _value(expression: str) -> str:
    try:
        return f"{ast.literal_eval(expression):g}" if "." in expression else f"{ast.literal_eval(expression)}"
    except ValueError:
        return f"`{expression}`"


def error_tree() -> Iterator[str]:
    """Every error, where it stands in the tree, and what it means."""
    yield "| error | is a | layer | code | meaning |\n| --- | --- | --- | --- | --- |"
    for name, kind in vars(errors).items():
        if name in errors.__all__:
            above = ", ".join(f"`{base.__name__}`" for base in kind.__bases__)
            meaning = (inspect.getdoc(kind) or "").partition("\n")[0]
            yield f"| `{name}` | {above} | {kind.layer} | {kind.code} | {meaning} |"


def command_line() -> Iterator[str]:
    """The help of every command, as the program prints it."""
    settings: dict[str, Any] = {**root.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    yield from _help(root, click.Context(root, info_name="p2ptunnel", **settings))


def _help(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            if not inner.hidden:
                yield from _help(inner, click.Context(inner, parent=context, info_name=name))


PARTS: Final[dict[str, tuple[str, Callable[[], Iterator[str]]]]] = {
    "vectors": ("docs/protocol/messages.md", vectors),
    "machines": ("docs/protocol/machines.md", machines),
    "tunables": ("docs/reference/tunables.md", tunables),
    "errors": ("docs/reference/errors.md", error_tree),
    "commands": ("docs/reference/cli.md", command_line),
}
"""Name of a part: the page it stands in, and what makes it."""


def _pages(part: str) -> tuple[Path, str, str]:
    """Return a part's page, its text as it is, and its text as it should be."""
    name, make = PARTS[part]
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    place = re.compile(rf"(<!-- {part}: [^>]*-->\n).*?(?=<!-- end -->)", re.DOTALL)
    made = "\n".join(make()).strip("\n")
    renewed, places = place.subn(lambda match: f"{match[1]}\n{made}\n\n", text)
    assert places == 1, f"{name} has {places} places for {part}"
    return page, text, renewed


def outdated(part: str) -> bool:
    """Tell whether the page of a part has fallen behind the code."""
    _, text, renewed = _pages(part)
    return text != renewed


def write() -> None:
    """Renew every part."""
    for part in PARTS:
        page, text, renewed = _pages(part)
        if text != renewed:
            page.write_text(renewed, encoding="utf-8")


if __name__ == "__main__":
    write()
