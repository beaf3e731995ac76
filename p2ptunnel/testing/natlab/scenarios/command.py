"""`scenarios`: calls in networks as they are met, and a transfer whose path changes under it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Final

import msgspec

from p2ptunnel.testing.natlab.scenarios.calls import run_calls
from p2ptunnel.testing.natlab.scenarios.networks import NETWORKS, find_network
from p2ptunnel.testing.natlab.scenarios.report import Calls, Transfer
from p2ptunnel.testing.natlab.scenarios.transfer import run_transfer

__all__ = ["add_arguments", "run"]

_TRANSFER: Final = "transfer"
_NAMES: Final = (*NETWORKS, _TRANSFER)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `scenarios`."""
    parser.add_argument("names", nargs="*", default=_NAMES, metavar="NAME", help=f"which [{' '.join(_NAMES)}]")
    parser.add_argument("-n", "--attempts", type=int, default=20, metavar="N", help="calls in each network [20]")
    parser.add_argument("--at-once", type=int, default=8, metavar="N", help="pairs of peers that call beside each other [8]")
    parser.add_argument(
        "--patience", type=float, default=8.0, metavar="S", help="for a direct path to take over from the relay [8]"
    )
    parser.add_argument("--size", type=int, default=200, metavar="MB", help="of the transfer [200]")
    parser.add_argument("--json", action="store_true", help="one JSON object a scenario instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Run the scenarios and print each when it ends; 1 if a call failed, or the transfer did not do what it should."""
    for name in arguments.names:
        if name != _TRANSFER:
            find_network(name)
    is_good = True
    for name in arguments.names:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{name} …", end="", file=sys.stderr, flush=True)
        found = _run(name, arguments)
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        is_good &= found.is_good
        print(
            json.dumps({"is_good": found.is_good, **msgspec.to_builtins(found)}) if arguments.json else f"{found}\n", flush=True
        )
    return 0 if is_good else 1


def _run(name: str, arguments: argparse.Namespace) -> Calls | Transfer:
    if name == _TRANSFER:
        return run_transfer(arguments.size * 1_000_000)
    network = find_network(name)
    return run_calls(network, attempts=arguments.attempts, at_once=arguments.at_once, patience=arguments.patience)
