"""`completion`: what makes a shell offer commands, flags and tags on Tab."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.settings import Settings

__all__ = ["command"]


@click.command(
    "completion",
    cls=Command,
    short_help="Print a completion script for a shell.",
    examples=(
        "p2ptunnel completion bash > ~/.local/share/bash-completion/completions/p2ptunnel",
        "p2ptunnel completion zsh > ~/.zfunc/_p2ptunnel",
        "p2ptunnel completion fish > ~/.config/fish/completions/p2ptunnel.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    """Print the completion script for a shell."""
    from p2ptunnel.cli.main import COMPLETE_VARIABLE

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(context.find_root().command, {}, "p2ptunnel", COMPLETE_VARIABLE).source()
    context.ensure_object(Settings).output.data(script, shell=shell, script=script)
