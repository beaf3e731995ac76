"""The program: finds the command, runs it, and turns its errors into words and an exit code.

Rule: importing this module imports no command; each is loaded when it is chosen, so that `known-hosts` costs no more than it
must.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click
from click.shell_completion import shell_complete

from p2ptunnel._version import __version__
from p2ptunnel.cli.commands import Group
from p2ptunnel.cli.output import ReaderGoneError, hush_stdout, occupy_standard_descriptors
from p2ptunnel.cli.settings import Settings
from p2ptunnel.errors import (
    AccessDeniedError,
    AccessRevokedError,
    AuthenticationError,
    ConfigError,
    InvitationExpiredError,
    P2PTunnelError,
    RendezvousError,
    ServerPrivateError,
    TagInUseError,
    TraversalError,
)

__all__ = ["COMMANDS", "COMPLETE_VARIABLE", "exit_code", "main", "root"]

COMMANDS: Final = (
    "pair",
    "serve",
    "forward",
    "ssh",
    "ssh-config",
    "pipe",
    "status",
    "ping",
    "explain",
    "netcheck",
    "doctor",
    "id",
    "peers",
    "rendezvous",
    "relay",
    "completion",
    "known-hosts",
)

COMPLETE_VARIABLE: Final = "_P2PTUNNEL_COMPLETE"
"""The environment variable by which a shell's completion script asks this program."""

DONE, FAILED, MISUSE, RETRY, DENIED, ALONE, INTERRUPTED, READER_GONE = 0, 1, 2, 4, 5, 6, 130, 141

_EXIT_CODES: Final = (
    (InvitationExpiredError, ALONE),
    (ConfigError, MISUSE),
    (AuthenticationError, DENIED),
    (AccessDeniedError, DENIED),
    (AccessRevokedError, DENIED),
    (TagInUseError, DENIED),
    (ServerPrivateError, DENIED),
    (RendezvousError, RETRY),
    (TraversalError, RETRY),
)
"""The first class that fits decides; every other failure is 1."""


class _Root(Group):
    """The commands of this package, each in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"p2ptunnel.cli.{cmd_name.replace('-', '_')}").command
        return command


@click.group(
    cls=_Root,
    is_root=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples=(
        "p2ptunnel rendezvous                                        on a machine that both can reach",
        "p2ptunnel --rendezvous rv.example:7000 --tag home-nas pair --services ssh,8888",
        "p2ptunnel --rendezvous rv.example:7000 pair home-nas-apple-river-zoo",
        "p2ptunnel --rendezvous rv.example:7000 --tag home-nas serve ssh 8888",
        "p2ptunnel --rendezvous rv.example:7000 forward home-nas 8888",
        "p2ptunnel --rendezvous rv.example:7000 ssh pi@home-nas",
    ),
)
@click.version_option(__version__, prog_name="p2ptunnel", message="%(prog)s %(version)s")
def root() -> None:
    """Connect two machines by name, wherever they are, and run tunnels over the connection."""


def exit_code(error: P2PTunnelError) -> int:
    """Return what the process ends with because of `error`."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), FAILED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Args:
        arguments: Without the program's name; None: those of this process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    settings = Settings()
    occupy_standard_descriptors()
    try:
        if instruction := os.environ.get(COMPLETE_VARIABLE):
            return shell_complete(root, {"obj": settings}, "p2ptunnel", COMPLETE_VARIABLE, instruction)
        return _run(words, settings)
    except ReaderGoneError:
        hush_stdout()
        return READER_GONE


def _run(words: list[str], settings: Settings) -> int:
    try:
        with _parsed(words, settings) as context:
            result: Any = root.invoke(context)
            return result if isinstance(result, int) else DONE
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        settings.output.say(error.format_message())
        return MISUSE
    except click.ClickException as error:
        if "--json" in words:  # a parser that gave up has not told us
            settings.flags["json"] = True
        settings.output.problem(error.format_message(), _usage_hint(error), kind="UsageError", layer="cli", code=400)
        return MISUSE
    except P2PTunnelError as error:
        settings.output.failure(error)
        return exit_code(error)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED


def _parsed(words: list[str], settings: Settings) -> click.Context:
    """Read the words; `--help` and `--version` print in here."""
    try:
        return root.make_context("p2ptunnel", words, obj=settings)
    except BrokenPipeError as error:
        raise ReaderGoneError from error


def _usage_hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"{context.command_path} --help" if context else "p2ptunnel --help"
