"""Proof that every kind behaves as its name says: a prober that owns both ends asks each site, over UDP and TCP.

Each kind has one expected line, written by hand and not derived from the fields that make the kind.
"""

from __future__ import annotations

from p2ptunnel.testing.natlab.behaviour.expected import EXPECTED, Behaviour
from p2ptunnel.testing.natlab.behaviour.proof import Verdict, measure, prove

__all__ = ["EXPECTED", "Behaviour", "Verdict", "measure", "prove"]
