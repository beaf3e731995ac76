"""Network namespaces without names: a descriptor holds each one, so the kernel removes it when this process is gone.

With the last descriptor go its interfaces, routes, rules and connection tracking, after SIGKILL too.  `unshare` and
`setns` act on the calling *thread*; a socket belongs for ever to the namespace its thread was in when it was made.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Generator
from functools import cached_property
from pathlib import Path
from typing import Final

from p2ptunnel.testing.natlab.netlink import Netlink

__all__ = ["Namespace"]

_CLONE_NEWNET: Final = 0x40000000
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """One network namespace, alive until `close`.

    Args:
        name: For messages; the kernel does not know it.

    Raises:
        OSError: This process may not make one.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        with _away("unshare", _CLONE_NEWNET):
            self.descriptor = _own_namespace()

    def __repr__(self) -> str:
        return f"<Namespace {self.name}>"

    def enter(self) -> None:
        """Move the calling thread here for good; for threads made for it."""
        _call("setns", self.descriptor, _CLONE_NEWNET)

    @contextlib.contextmanager
    def inside(self) -> Generator[None, None, None]:
        """Have the calling thread here inside the block, which must not await."""
        with _away("setns", self.descriptor, _CLONE_NEWNET):
            yield

    @cached_property
    def netlink(self) -> Netlink:
        """The client that configures this namespace."""
        with self.inside():
            return Netlink(self.name)

    def configure(self, key: str, value: object, *, optional: bool = False) -> None:
        """Write a kernel setting below `/proc/sys/net`; `key` is its path there.

        With `optional` nothing happens where there is no such setting, because its module is not loaded.
        """
        path = Path("/proc/sys/net", key)
        with self.inside():
            if not optional or path.exists():
                path.write_text(str(value), encoding="ascii")

    def setting(self, key: str) -> str:
        """Read a kernel setting below `/proc/sys/net`."""
        with self.inside():
            return Path("/proc/sys/net", key).read_text(encoding="ascii").strip()

    def close(self) -> None:
        """Let go of it; it ends when no socket and no program is left in it.  Closing twice is fine."""
        if "netlink" in self.__dict__:
            self.netlink.close()
            del self.netlink
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@contextlib.contextmanager
def _away(function: str, *arguments: int) -> Generator[None, None, None]:
    """Move the calling thread by one call, and back at the end."""
    home = _own_namespace()
    try:
        _call(function, *arguments)
        try:
            yield
        finally:
            _call("setns", home, _CLONE_NEWNET)
    finally:
        os.close(home)


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _call(function: str, *arguments: int) -> None:
    """Call into the C library: `os.setns` and `os.unshare` exist from Python 3.12 on only."""
    if getattr(_libc, function)(*arguments):
        error = ctypes.get_errno()
        raise OSError(error, f"{function}: {os.strerror(error)}")
