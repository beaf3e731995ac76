"""A real router's daemon in the laboratory: miniupnpd speaks UPnP, NAT-PMP and PCP, and puts its mappings into nftables.

Its package has no configuration.  It answers only for outside addresses that are in no documentation range.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2ptunnel.testing.natlab import Lab, Site

__all__ = ["WAN", "Miniupnpd", "home", "require"]

WAN = "198.51.101.7"
"""Outside address for a site whose router is to grant anything: one that nobody has, in no range that the daemon refuses."""

_PROGRAMS = {"miniupnpd": "miniupnpd-nftables", "upnpc": "miniupnpc", "natpmpc": "natpmpc"}
_READY = ("HTTP listening on port", "Listening for NAT-PMP/PCP traffic on port")
_PATIENCE = 10.0

_TABLE = """
table inet miniupnpd {
 chain miniupnpd { }
 chain prerouting_miniupnpd { }
 chain postrouting_miniupnpd { }
 chain forward { type filter hook forward priority -10; policy accept; jump miniupnpd
 }
 chain prerouting { type nat hook prerouting priority -101; policy accept; jump prerouting_miniupnpd
 }
 chain postrouting { type nat hook postrouting priority 99; policy accept; jump postrouting_miniupnpd
 }
}
"""

_FORGET = "".join(f"flush chain inet miniupnpd {chain}\n" for chain in ("miniupnpd", "prerouting_miniupnpd"))

_SETTINGS = {
    "ext_ifname": "wan",
    "listening_ip": "lan",
    "port": "5000",
    "enable_upnp": "yes",
    "enable_natpmp": "yes",
    "min_lifetime": "10",
    "max_lifetime": "86400",
    "secure_mode": "yes",
    "system_uptime": "no",
    "uuid": "12345678-0000-0000-0000-000000001234",
    "upnp_table_name": "miniupnpd",
    "upnp_nat_table_name": "miniupnpd",
    "upnp_forward_chain": "miniupnpd",
    "upnp_nat_chain": "prerouting_miniupnpd",
    "upnp_nat_postrouting_chain": "postrouting_miniupnpd",
}


def require() -> None:
    """Skip the test where the daemon is not installed, or fail it if the laboratory is required."""
    missing = sorted(package for program, package in _PROGRAMS.items() if shutil.which(program, path=_path()) is None)
    if missing:
        reason = f"not installed: {', '.join(missing)}"
        if os.environ.get("P2PTUNNEL_REQUIRE_NATLAB") == "1":
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def home(lab: Lab, kind: str = "pr", hosts: int = 1, wan_address: str | None = WAN) -> Site:
    """A site whose router can run the daemon; multicasts of the LAN have a route."""
    site = lab.site(kind, hosts=hosts, wan_address=wan_address)
    site.router.nft(_TABLE)
    for machine, device in ((site.router, "lan"), *((host, "eth0") for host in site.hosts)):
        machine.namespace.netlink.add_route("224.0.0.0/4", device)
    return site


class Miniupnpd:
    """The daemon on a site's router, from `start` to `stop`."""

    def __init__(self, site: Site, directory: Path, *, allowed: str = "1024-65535", **settings: str) -> None:
        self._site = site
        self._file = directory / "miniupnpd.conf"
        self._pid = directory / "miniupnpd.pid"
        lines = [f"{name}={value}" for name, value in (_SETTINGS | settings).items()]
        lines += [f"allow {allowed} {site.lan} {allowed}", "deny 0-65535 0.0.0.0/0 0-65535"]
        self._file.write_text("\n".join([*lines, ""]), encoding="ascii")
        self._awaited = {
            line
            for line, setting in zip(_READY, ("enable_upnp", "enable_natpmp"), strict=True)
            if (_SETTINGS | settings)[setting] == "yes"
        }

    def start(self) -> None:
        """Start it, and wait until it listens."""
        program = shutil.which("miniupnpd", path=_path())
        assert program is not None
        command = [program, "-d", "-f", str(self._file), "-P", str(self._pid)]
        self._program = self._site.router.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._drain, args=(self._program, lines), daemon=True)
        self._reader.start()
        awaited = set(self._awaited)
        said: list[str] = []
        while awaited:
            try:
                said.append(lines.get(timeout=_PATIENCE))
            except queue.Empty:
                pytest.fail("miniupnpd does not start: " + "".join(said))
            awaited -= {line for line in awaited if line in said[-1]}

    @staticmethod
    def _drain(program: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
        assert program.stderr is not None
        for line in program.stderr:
            lines.put(line)

    def stop(self) -> None:
        """Stop it as a power cut does; what it has put into the kernel stays."""
        self._program.kill()
        self._program.wait(_PATIENCE)
        self._reader.join(_PATIENCE)
        assert self._program.stderr is not None
        self._program.stderr.close()

    @contextlib.contextmanager
    def running(self) -> Iterator[Miniupnpd]:
        """Run it inside the block."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def forget(self) -> None:
        """Take all that it has put into the kernel, as a reboot does."""
        self._site.router.nft(_FORGET)

    def rules(self) -> str:
        """What it has put into the kernel."""
        return self._site.router.run(["nft", "list", "table", "inet", "miniupnpd"]).stdout

    def listed(self) -> str:
        """What another UPnP client is told of its mappings."""
        description = f"http://{self._site.lan[1]}:{_SETTINGS['port']}/rootDesc.xml"  # else it searches for two seconds
        return self._site.host.run(["upnpc", "-u", description, "-l"], check=False).stdout
