"""Commands and groups of commands as this program has them: global flags everywhere, examples in each help."""

from __future__ import annotations

import difflib
from typing import Any, Final

import click

from p2ptunnel.cli.settings import global_options

__all__ = ["Command", "Group"]

_GLOBAL: Final = "Global flags may stand here too: p2ptunnel --help"


class Command(click.Command):
    """A command that takes the global flags, and whose help ends with examples, one a line."""

    def __init__(self, *arguments: Any, examples: tuple[str, ...] = (), **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params += _beside(self.params, global_options(is_root=False))
        self._examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples and where the global flags are explained."""
        _write_examples(formatter, self._examples)
        formatter.write_paragraph()
        formatter.write_text(_GLOBAL)


class Group(click.Group):
    """A group of commands; the global flags may stand before and after its name."""

    command_class = Command

    def __init__(self, *arguments: Any, examples: tuple[str, ...] = (), is_root: bool = False, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params += _beside(self.params, global_options(is_root=is_root))
        self._examples = examples
        self._is_root = is_root

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        _write_examples(formatter, self._examples)
        if not self._is_root:
            formatter.write_paragraph()
            formatter.write_text(_GLOBAL)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a name that is none is answered with the nearest that is."""
        name = click.utils.make_str(args[0])
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            ctx.fail(f"No such command {name!r}.{f' Did you mean {near[0]!r}?' if near else ''}")
        return super().resolve_command(ctx, args)


def _beside(own: list[click.Parameter], flags: list[click.Parameter]) -> list[click.Parameter]:
    """Return the global flags but those whose name means something else behind this command."""
    taken = {name for parameter in own for name in parameter.opts}
    return [flag for flag in flags if not taken.intersection(flag.opts)]


def _write_examples(formatter: click.HelpFormatter, examples: tuple[str, ...]) -> None:
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(f"{'':{formatter.current_indent}}{example}\n")
