"""Chaos: applications that move bytes through this package's programs while the path under them is destroyed, again and again.

`python -m p2ptunnel.testing.chaos --help` runs it.  Everything is real: routers, programs, sockets, ssh; see `world`.
"""
