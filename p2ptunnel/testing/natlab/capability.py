"""Whether this process can build laboratories, and if not, why not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from typing import Final

from p2ptunnel.testing.natlab.namespace import Namespace
from p2ptunnel.testing.natlab.tun import open_tun

__all__ = ["capable"]

_PROGRAMS: Final = {"nft": "nftables", "setpriv": "util-linux"}
_NAT: Final = "table ip probe {\n chain post {\n  type nat hook postrouting priority 100;\n  masquerade\n }\n}\n"


@cache
def capable() -> str | None:
    """Return None if laboratories can be built here, or the reason in words; asked once, then remembered."""
    if sys.platform != "linux":
        return f"network namespaces exist on Linux only, this is {sys.platform}"
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            return f"the program {program} is not on the PATH (package {package})"
    try:
        namespace = Namespace("probe")
    except OSError as error:
        return f"no network namespace can be made: {error} (be root, or run under `unshare -Urn`)"
    try:
        return _lacks_settings(namespace) or _lacks_tun(namespace) or _lacks_nat(namespace)
    finally:
        namespace.close()


def _lacks_settings(namespace: Namespace) -> str | None:
    try:
        for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            namespace.configure(key, 1)
    except OSError as error:
        return f"the kernel's network settings cannot be made: {error}"
    return None


def _lacks_tun(namespace: Namespace) -> str | None:
    try:
        with open_tun(namespace, "probe0"):
            return None
    except OSError as error:
        return f"no TUN device can be made: {error}"


def _lacks_nat(namespace: Namespace) -> str | None:
    with namespace.inside():
        result = subprocess.run(["nft", "-f", "-"], input=_NAT, capture_output=True, text=True, check=False)
    return f"nft cannot make a NAT: {result.stderr.strip()}" if result.returncode else None
