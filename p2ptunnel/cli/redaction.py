"""Takes out of a text what says who somebody is: names, addresses, keys, places on the disk.

Rule: what looks like an address or a key goes, known or not; what is known by name goes wherever it stands.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import ipaddress
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from p2ptunnel.cli.settings import Settings
from p2ptunnel.defaults import RENDEZVOUS_PORT
from p2ptunnel.errors import ConfigError
from p2ptunnel.types import parse_server

__all__ = ["redactor"]

_KEY: Final = re.compile(r"p2p:[a-z2-7]{8,}|\bSHA256:[A-Za-z0-9+/]+")
_ADDRESS: Final = re.compile(r"(?<![\w.])(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*)")


def redactor(settings: Settings) -> Callable[[str], str]:
    """Return a function that takes out what says who this machine and its peers are."""
    names = {name: word for name, word in _names(settings).items() if name}
    return functools.partial(_redacted, names)


def _redacted(names: dict[str, str], text: str) -> str:
    for name in sorted(names, key=len, reverse=True):  # a name may hold another one
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", f"<{names[name]}>", text)
    return _ADDRESS.sub(_without_address, _KEY.sub("<key>", text))


def _without_address(found: re.Match[str]) -> str:
    try:
        ipaddress.ip_address(found[0].rstrip("."))  # the dot of a sentence
    except ValueError:  # a time of day, a version
        return found[0]
    return "<address>"


def _names(settings: Settings) -> dict[str, str]:
    """Return everything that has a name here, each with the word that stands for it."""
    names = {str(settings.profile.directory): "profile", str(Path.home()): "home", socket.gethostname(): "machine"}
    with contextlib.suppress(OSError, KeyError):
        names[getpass.getuser()] = "user"
    with contextlib.suppress(ConfigError):
        names |= {peer.tag: f"peer {number}" for number, peer in enumerate(settings.profile.peers().all(), 1)}
    with contextlib.suppress(ConfigError):
        names[settings.tag or ""] = "tag"
    with contextlib.suppress(ConfigError):
        for number, server in enumerate(settings.rendezvous, 1):
            host, _ = parse_server(server, default_port=RENDEZVOUS_PORT).address
            names |= {server: f"server {number}", server.partition("#")[0]: f"server {number}", host: f"server {number}"}
    with contextlib.suppress(ConfigError):
        names[_own_short(settings)] = "key"
    return names


def _own_short(settings: Settings) -> str:
    path = settings.profile.directory / "identity.key"
    return settings.profile.identity().public.short if path.exists() else ""
