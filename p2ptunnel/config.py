"""What the owner of a profile wrote into its `config.toml`, as frozen values.

The file is the owner's alone: the program reads it and never writes it.  Rule: whatever is not understood is an error that
names the file, the key and the nearest key that exists.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from collections.abc import Generator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias, cast

import msgspec

from p2ptunnel.defaults import CLOCK_MIN, RENDEZVOUS_PORT
from p2ptunnel.errors import ConfigError, InsecureKeyFileError
from p2ptunnel.tables import TableError, parse_toml, understood
from p2ptunnel.types import RelayUse, clean, parse_server, parse_tag

__all__ = ["CONFIG_FILE", "Config", "PeerConfig", "ServerConfig", "load_config", "parse_duration", "parse_quota", "parse_until"]

CONFIG_FILE: Final = "config.toml"

_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|d)?", re.ASCII)
_OTHERS_WRITE: Final = 0o022
_OTHERS_ENTER: Final = 0o011
_UNITS: Final = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_QUOTA: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(KiB|MiB|GiB|TiB)(?:/day)?", re.ASCII)
_SIZES: Final = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

_Servers: TypeAlias = Annotated[tuple[str, ...], msgspec.Meta(description="a list of servers, each in quotes")]


class PeerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[peer]`: this machine among its peers.

    Attributes:
        tag: What others find it by.
        rendezvous: Its servers in order of preference, `host:port` or the whole line that the server's operator has given.
        resume_timeout: How long a lost connection is waited for: `"10m"`, or a number of seconds.
        relay: Whether connections go over the server's relay: `"auto"`, `"never"` or `"always"`.
        lan: Whether pinned peers in the same network are found there, and find us, with no server.
        port_mapping: Whether our router is asked for a way in while we serve.
    """

    tag: Annotated[str | None, msgspec.Meta(description="a name in quotes")] = None
    rendezvous: _Servers = ()
    resume_timeout: Annotated[str | float | None, msgspec.Meta(description="a duration, or a number of seconds")] = None
    relay: Annotated[RelayUse, msgspec.Meta(description='"auto", "never" or "always"')] = "auto"
    lan: bool = True
    port_mapping: bool = True


class ServerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[server]`: the rendezvous server of this profile.

    Attributes:
        relay: Whether it also carries what peers have no direct path for.
        relays: Relays on other machines that do so in its place, each `host:port#p2p:KEY`.
        relay_quota: What one key may have carried in a day: `"1GiB/day"`.
        relay_circuits: Of one key at a time.
    """

    relay: bool = True
    relays: _Servers = ()
    relay_quota: Annotated[str | None, msgspec.Meta(description="a quota in quotes")] = None
    relay_circuits: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None, msgspec.Meta(description="a whole number, 1 or more")
    ] = None


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All tables of the file; what is left out has its default."""

    peer: PeerConfig = PeerConfig()
    server: ServerConfig = ServerConfig()


def parse_duration(value: str | float) -> float:
    """Return the seconds that `value` stands for: a number of them, or a number and one of s, m, h, d.

    Raises:
        ConfigError: It is no duration.
    """
    if isinstance(value, str):
        found = _DURATION.fullmatch(value)
        seconds = float(found[1]) * _UNITS[found[2]] if found else math.nan
    else:
        seconds = float(value)
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"{clean(str(value))!r} is not a duration", "Examples: 30s, 10m, 2h; 0 for none.")
    return seconds


def parse_quota(text: str) -> int:
    """Return the bytes that `text` stands for: a number and one of KiB, MiB, GiB, TiB, with `/day` or without.

    Raises:
        ConfigError: It is no such quota, or less than a byte.
    """
    found = _QUOTA.fullmatch(text)
    quota_bytes = int(float(found[1]) * _SIZES[found[2]]) if found else 0
    if not quota_bytes:
        raise ConfigError(f"{clean(text)!r} is not a quota", "Examples: 1GiB/day, 500MiB, 1.5TiB/day.")
    return quota_bytes


def parse_until(text: str, now: float) -> datetime:
    """Return the moment that `text` means: `2h` or `7d` from now, or a date, or a date and a time.

    Without a time zone it is local time; a date alone is when that day begins.

    Args:
        text: What somebody wrote.
        now: Seconds since 1970.

    Raises:
        ConfigError: It is none of these, or is over; or this machine's clock was never set, so that nothing would end rightly.
    """
    if now < CLOCK_MIN:
        raise ConfigError("this machine's clock is not set", "Set it first: what is granted until a time ends by the clock.")
    hint = "Examples: 2h, 7d, 2030-01-31, 2030-01-31T18:00, 2030-01-31T18:00Z."
    try:
        if _DURATION.fullmatch(text):
            until = datetime.fromtimestamp(now + parse_duration(text)).astimezone()
        else:
            until = datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{clean(text)!r} is no time", hint) from error
    if until.timestamp() <= now:
        raise ConfigError(f"{clean(text)!r} is over already", hint)
    return until


def load_config(directory: Path) -> Config:
    """Read the `config.toml` of a profile's directory; without one, every key has its default.

    Raises:
        ConfigError: It cannot be read, is no TOML, or has a key or value that does not belong.
        InsecureKeyFileError: Somebody else could have written it.
    """
    path = directory / CONFIG_FILE
    try:
        data = _read(path)
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "Check the file and the directory above it.") from error
    try:
        table = parse_toml(data)
    except TableError as mistake:
        raise ConfigError(f"{path}: {mistake}", mistake.hint) from mistake
    return _understood(table, path)


def _read(path: Path) -> bytes:
    """Return the bytes of a file that names servers: nobody else must be able to write it, a link to a file of ours is fine.

    In a directory that only its owner enters, as a profile's is made, its own mode does not matter.
    """
    with path.open("rb") as file:
        if sys.platform != "win32":
            status = os.fstat(file.fileno())
            if status.st_uid not in {os.geteuid(), 0}:
                raise InsecureKeyFileError(str(path), "it belongs to another user", f"sudo chown {os.geteuid()} {path}")
            if status.st_mode & _OTHERS_WRITE and path.parent.stat().st_mode & _OTHERS_ENTER:
                raise InsecureKeyFileError(str(path), "others could change it", f"chmod go-w {path}")
        return file.read()


def _understood(table: Mapping[str, Any], path: Path) -> Config:
    try:
        config = understood(_with_lists(table), Config)
    except TableError as mistake:
        raise ConfigError(f"{mistake} in {path.name}", mistake.hint) from mistake
    with _placed("tag", path):
        if config.peer.tag is not None:
            parse_tag(config.peer.tag)
    with _placed("rendezvous", path):
        for server in config.peer.rendezvous:
            parse_server(server, default_port=RENDEZVOUS_PORT)
    with _placed("resume_timeout", path):
        if config.peer.resume_timeout is not None:
            parse_duration(config.peer.resume_timeout)
    with _placed("relays", path, table="server"):
        for relay in config.server.relays:
            parse_server(relay, default_port=RENDEZVOUS_PORT)
    with _placed("relay_quota", path, table="server"):
        if config.server.relay_quota is not None:
            parse_quota(config.server.relay_quota)
    return config


@contextlib.contextmanager
def _placed(key: str, path: Path, *, table: str = "peer") -> Generator[None]:
    """Add to a mistake in a value where it stands."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{error}: `{key}` at {table} in {path}", error.hint) from error


def _with_lists(table: Mapping[str, Any]) -> dict[str, Any]:
    """Take one server, written without brackets, for a list of one."""
    if not isinstance(table.get("peer"), dict):
        return dict(table)
    peer = cast("dict[str, Any]", table["peer"])
    if isinstance(server := peer.get("rendezvous"), str):
        peer = {**peer, "rendezvous": [server]}
    return {**table, "peer": peer}
