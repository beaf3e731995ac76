"""Every kind of NAT calls every other: real peers, a real server, real streams; what connects, over what, and how fast."""

from __future__ import annotations

from p2ptunnel.testing.natlab.attempt import Attempt
from p2ptunnel.testing.natlab.matrix.cells import Cell, Matrix
from p2ptunnel.testing.natlab.matrix.run import diagonal, run_matrix

__all__ = ["Attempt", "Cell", "Matrix", "diagonal", "run_matrix"]
