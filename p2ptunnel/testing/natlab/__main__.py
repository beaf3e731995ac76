"""`python -m p2ptunnel.testing.natlab COMMAND`; each command is a module with `add_arguments` and `run`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

from p2ptunnel.errors import P2PTunnelError

__all__ = ["main"]

COMMANDS: Final = {
    "behaviour": ("p2ptunnel.testing.natlab.behaviour.command", "prove that every kind of NAT behaves as its name says"),
    "matrix": ("p2ptunnel.testing.natlab.matrix.command", "let every kind of NAT call every other, and print what connects"),
    "scenarios": ("p2ptunnel.testing.natlab.scenarios.command", "networks as they are met: what connects there, and how fast"),
}
"""The module of each command, and what it does in a few words."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 done, 1 it failed, 2 misuse, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m p2ptunnel.testing.natlab", description="A laboratory of real NATs.")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module_name, summary) in COMMANDS.items():
        module = importlib.import_module(module_name)
        command = subparsers.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except P2PTunnelError as error:
        print(f"natlab: {error}\nhint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
