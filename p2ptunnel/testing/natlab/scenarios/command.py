"""`scenarios`: calls in networks as they are met, and a transfer whose path changes under it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Generator
from typing import Final, TypeAlias

import msgspec

from p2ptunnel.testing.natlab.scenarios.calls import run_calls
from p2ptunnel.testing.natlab.scenarios.networks import NETWORKS, find_network
from p2ptunnel.testing.natlab.scenarios.report import Calls, Transfer, Warm
from p2ptunnel.testing.natlab.scenarios.transfer import run_transfer
from p2ptunnel.testing.natlab.scenarios.warm import run_warm

__all__ = ["NAMES", "Found", "add_arguments", "measure", "run"]

Found: TypeAlias = Calls | Warm | Transfer
"""What a scenario has found."""

USUAL_CALLS: Final = 20
WARM_CALLS: Final = 50
LOSSY_CALLS: Final = 200
"""Where chance decides, more are needed to tell of."""

_TRANSFER: Final = "transfer"
_WARM: Final = "warm"
NAMES: Final = (*NETWORKS, _WARM, _TRANSFER)
"""Every scenario, in the order in which they are run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `scenarios`."""
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help=f"which [{' '.join(NAMES)}]")
    counts = f"{LOSSY_CALLS} where packets are lost, {WARM_CALLS} warm ones, {USUAL_CALLS} elsewhere"
    parser.add_argument("-n", "--attempts", type=int, metavar="N", help=f"calls in each network [{counts}]")
    parser.add_argument("--at-once", type=int, default=8, metavar="N", help="calls beside each other [8]")
    parser.add_argument(
        "--patience", type=float, default=12.0, metavar="S", help="for a direct path to take over from the relay [12]"
    )
    parser.add_argument("--size", type=int, default=200, metavar="MB", help="of the transfer [200]")
    parser.add_argument("--json", action="store_true", help="one JSON object a scenario instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Run the scenarios and print each when it ends; 1 if a call failed, or the transfer did not do what it should."""
    found = list(measure(arguments))
    return 0 if all(one.is_good for one in found) else 1


def measure(arguments: argparse.Namespace) -> Generator[Found]:
    """Run the scenarios, and print each when it ends.

    Raises:
        ConfigError: There is no scenario of such a name; none was run.
    """
    for name in arguments.names:
        if name not in {_WARM, _TRANSFER}:
            find_network(name)
    for name in arguments.names:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{name} …", end="", file=sys.stderr, flush=True)
        found = _run(name, arguments)
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        print(_as_json(found) if arguments.json else f"{found}\n", flush=True)
        yield found


def _as_json(found: Found) -> str:
    figures = {} if isinstance(found, Transfer) else {"figures": found.figures}
    return json.dumps({"is_good": found.is_good, **figures, **msgspec.to_builtins(found)})


def _run(name: str, arguments: argparse.Namespace) -> Found:
    if name == _TRANSFER:
        return run_transfer(arguments.size * 1_000_000)
    if name == _WARM:
        return run_warm(attempts=arguments.attempts or WARM_CALLS, patience=arguments.patience)
    network = find_network(name)
    attempts = arguments.attempts or (LOSSY_CALLS if network.is_lossy else USUAL_CALLS)
    return run_calls(network, attempts=attempts, at_once=arguments.at_once, patience=arguments.patience)
