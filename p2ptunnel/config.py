"""What the owner of a profile wrote into its `config.toml`, as frozen values.

The file is the owner's alone: the program reads it and never writes it.  Rule: whatever is not understood is an error that
names the file, the key and the nearest key that exists.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import re
import tomllib
from collections.abc import Generator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from p2ptunnel.defaults import CLOCK_MIN, RENDEZVOUS_PORT
from p2ptunnel.errors import ConfigError
from p2ptunnel.types import clean, parse_server, parse_tag

__all__ = ["CONFIG_FILE", "Config", "PeerConfig", "load_config", "parse_duration", "parse_until"]

CONFIG_FILE: Final = "config.toml"

_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|d)?", re.ASCII)
_UNITS: Final = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class PeerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`[peer]`: this machine among its peers.

    Attributes:
        tag: What others find it by.
        rendezvous: Its servers in order of preference, `host:port` or the whole line that the server's operator has given.
        resume_timeout: How long a lost connection is waited for: `"10m"`, or a number of seconds.
        lan: Whether pinned peers in the same network are found there, and find us, with no server.
    """

    tag: str | None = None
    rendezvous: tuple[str, ...] = ()
    resume_timeout: str | float | None = None
    lan: bool = True


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All tables of the file; what is left out has its default."""

    peer: PeerConfig = PeerConfig()


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
    """
    path = directory / CONFIG_FILE
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return Config()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}", "Check the file and the directory above it.") from error
    except ValueError as error:  # no UTF-8, no TOML
        raise ConfigError(f"{path}: {clean(str(error))}", "The file is written in TOML: toml.io.") from error
    return _understood(table, path)


def _understood(table: Mapping[str, Any], path: Path) -> Config:
    _check_keys(table, Config, path)
    try:
        config = msgspec.convert(_with_lists(table), Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path.name}: {clean(str(error))}", f"The file is {path}.") from error
    with _placed("tag", path):
        if config.peer.tag is not None:
            parse_tag(config.peer.tag)
    with _placed("rendezvous", path):
        for server in config.peer.rendezvous:
            parse_server(server, default_port=RENDEZVOUS_PORT)
    with _placed("resume_timeout", path):
        if config.peer.resume_timeout is not None:
            parse_duration(config.peer.resume_timeout)
    return config


@contextlib.contextmanager
def _placed(key: str, path: Path) -> Generator[None]:
    """Add to a mistake in a value where it stands."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{error}: `{key}` at peer in {path}", error.hint) from error


def _with_lists(table: Mapping[str, Any]) -> dict[str, Any]:
    """Take one server, written without brackets, for a list of one."""
    if not isinstance(table.get("peer"), dict):
        return dict(table)
    peer = cast("dict[str, Any]", table["peer"])
    if isinstance(server := peer.get("rendezvous"), str):
        peer = {**peer, "rendezvous": [server]}
    return {**table, "peer": peer}


def _check_keys(table: Mapping[str, Any], kind: type[msgspec.Struct], path: Path, where: str = "the top") -> None:
    """Refuse the first key of `table` that `kind` does not have, and look into the tables below."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, value in table.items():
        if key not in fields:
            raise ConfigError(f"unknown key `{clean(key)}` at {where} in {path.name}", _nearest(key, list(fields)))
        below = fields[key]
        if isinstance(value, dict) and isinstance(below, type) and issubclass(below, msgspec.Struct):
            _check_keys(cast("dict[str, Any]", value), below, path, key)


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"Did you mean `{near[0]}`?" if near else f"Known there: {', '.join(known)}."
