"""Networks as they are met: what connects there, how fast, and what a transfer feels when its path changes."""

from __future__ import annotations

from p2ptunnel.testing.natlab.scenarios.calls import run_calls
from p2ptunnel.testing.natlab.scenarios.networks import NETWORKS, Network
from p2ptunnel.testing.natlab.scenarios.report import Calls, Switch, Transfer, Warm, WarmCall
from p2ptunnel.testing.natlab.scenarios.transfer import run_transfer
from p2ptunnel.testing.natlab.scenarios.warm import run_warm

__all__ = ["NETWORKS", "Calls", "Network", "Switch", "Transfer", "Warm", "WarmCall", "run_calls", "run_transfer", "run_warm"]
