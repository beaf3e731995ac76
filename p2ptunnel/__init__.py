"""Connects two machines by name wherever they are, and runs tunnels over the connection."""

from p2ptunnel._version import __version__

__all__ = ["__version__"]
