"""TUN devices: packets that a kernel sends into one are read from its descriptor, and the other way round."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Generator
from typing import Final

from p2ptunnel.testing.natlab.namespace import Namespace

__all__ = ["open_tun"]

_TUN_SET_IFF: Final = 0x400454CA
_TUN_SET_PERSIST: Final = 0x400454CB
_LAYER_THREE: Final = 0x0001
_NO_PACKET_INFORMATION: Final = 0x1000


@contextlib.contextmanager
def open_tun(namespace: Namespace, device: str) -> Generator[int, None, None]:
    """Make a TUN device in a namespace; its descriptor is open, and does not block, while the block lasts.

    The device ends with the namespace: were it to end with its descriptor, closing each one would take some 20 ms.

    Raises:
        OSError: `/dev/net/tun` is missing or may not be opened.
    """
    with namespace.inside():
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUN_SET_IFF, struct.pack("=16sH22x", device.encode(), _LAYER_THREE | _NO_PACKET_INFORMATION))
        fcntl.ioctl(descriptor, _TUN_SET_PERSIST, 1)
        yield descriptor
    finally:
        os.close(descriptor)
