"""What `peers.toml` says, as values: the pinned peers, and the access tickets that this machine has made.

Rule: one key has one name; a file that says otherwise, or that cannot be read in full, says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Final, TypeAlias

import msgspec
import tomli_w

from p2ptunnel.defaults import CLOCK_MIN, SERVICE_MAX_BYTES
from p2ptunnel.errors import ConfigError, InvalidSpecError, StoreError
from p2ptunnel.identity.capability import Capability, parse_capability
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.tables import TableError, parse_toml, understood
from p2ptunnel.types import Tag, clean, parse_tag

__all__ = ["UNTIL_MAX", "Contents", "IssuedTicket", "Peers", "PinnedPeer", "parse", "service_name", "to_toml", "with_services"]

UNTIL_MAX: Final = 253_402_300_800.0  # the year 10000, which files cannot write


class PinnedPeer(msgspec.Struct, frozen=True):
    """A peer whose key is known here.

    Attributes:
        tag: Its name here.
        key: What it proves.
        services: What it may open on this machine; those in `until` only so long.
        ssh_host_keys: For each service of it that is an SSH server, the lines `type base64` that this server has proved.
        until: When grants end, in seconds since 1970.
        tickets: What it has signed for us, to be shown when we connect to it.
        registered_as: The tag under which the rendezvous server knows it; empty: its name here.
        since: When it was pinned, in seconds since 1970; 0: that was not noted.  Who is pinned anew is somebody new.
    """

    tag: Tag
    key: PublicKey
    services: tuple[str, ...] = ()
    ssh_host_keys: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=lambda: MappingProxyType({}))
    until: Mapping[str, float] = msgspec.field(default_factory=lambda: MappingProxyType({}))
    tickets: tuple[Capability, ...] = ()
    registered_as: Tag = ""
    since: float = 0.0

    @property
    def wanted(self) -> Tag:
        """The tag to ask the rendezvous server for."""
        return self.registered_as or self.tag

    def granted(self, now: float) -> tuple[str, ...]:
        """Return what it may open at a time in seconds since 1970; by a clock that was never set, nothing that ends."""
        return tuple(name for name in self.services if name not in self.until or CLOCK_MIN <= now < self.until[name])


class IssuedTicket(msgspec.Struct, frozen=True):
    """An access ticket that this machine has made, without what makes it one.

    Attributes:
        name: By which it is revoked.
        services: What it opens here.
        until: When it ends, in seconds since 1970.
        holder: Who alone can use it; None: any pinned peer.
    """

    name: str
    services: tuple[str, ...]
    until: float
    holder: PublicKey | None = None


Peers: TypeAlias = dict[Tag, PinnedPeer]


class Contents(msgspec.Struct):
    """What one file says: the peers, the tickets of ours, and when those of them would have ended that were revoked."""

    peers: Peers
    issued: dict[str, IssuedTicket]
    revoked: dict[str, float]


def with_services(peer: PinnedPeer, services: Iterable[str], until: float | None) -> PinnedPeer:
    """Return the peer with these services granted until then; what was said of them before no longer holds.

    Raises:
        InvalidSpecError: A service name is no name.
        ConfigError: No file can write when it ends.
    """
    names = tuple(map(service_name, services))
    if until is not None and not 0 <= until < UNTIL_MAX:
        raise ConfigError(f"a grant cannot end at {until:g} seconds since 1970")
    ends = {name: end for name, end in peer.until.items() if name not in names}
    if until is not None:
        ends |= dict.fromkeys(names, until)
    return msgspec.structs.replace(peer, services=tuple(dict.fromkeys((*peer.services, *names))), until=MappingProxyType(ends))


def service_name(name: str) -> str:
    """Return `name` if a service can be called so.

    Raises:
        InvalidSpecError: It cannot.
    """
    if not 1 <= len(name.encode("utf-8", "surrogatepass")) <= SERVICE_MAX_BYTES or not name.isprintable():
        raise InvalidSpecError(
            clean(name), f"a service name has 1 to {SERVICE_MAX_BYTES} bytes, all printable", "Example: web."
        )
    return name


# --- the file ---------------------------------------------------------------------------------------------------------


_SERVICES: Final = "a list of services, each a name in quotes or a table with `name` and `until`"


class _Grant(msgspec.Struct, forbid_unknown_fields=True):
    """A service with an end, as the file has it; one without is its name alone."""

    name: str
    until: datetime


class _Entry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One peer as the file has it."""

    key: str
    registered_as: str = ""
    since: datetime | None = None
    services: Annotated[tuple[str | _Grant, ...], msgspec.Meta(description=_SERVICES)] = ()
    ssh_host_keys: dict[str, tuple[str, ...]] = {}
    tickets: tuple[str, ...] = ()


class _Issued(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One ticket of ours as the file has it."""

    services: tuple[str, ...]
    until: datetime
    holder: str = ""


class _File(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    peers: dict[str, _Entry] = {}
    issued: dict[str, _Issued] = {}
    revoked: dict[str, datetime] = {}


def parse(data: bytes, path: str) -> Contents:
    """Return what a file says.

    Args:
        data: Its bytes.
        path: Its place, for errors.

    Raises:
        StoreError: It says nothing that holds; the text names the place in it.
    """
    try:
        file = understood(parse_toml(data), _File)
    except TableError as mistake:
        raise StoreError(path, str(mistake), f"{mistake.hint} Mend the file by hand, or restore it.") from mistake
    peers = {tag: _pinned(tag, entry, path) for tag, entry in file.peers.items()}
    _require_one_name(peers.values(), path)
    issued = {name: _issued(name, entry, path) for name, entry in file.issued.items()}
    return Contents(peers, issued, {name: _seconds(end) for name, end in file.revoked.items()})


def to_toml(contents: Contents) -> bytes:
    """Return the bytes of a file that says the same."""
    peers = {tag: _to_entry(peer) for tag, peer in contents.peers.items()}
    issued = {
        name: _Issued(ticket.services, _moment(ticket.until), str(ticket.holder) if ticket.holder else "")
        for name, ticket in contents.issued.items()
    }
    file = _File(peers, issued, {name: _moment(end) for name, end in contents.revoked.items()})
    return tomli_w.dumps(msgspec.to_builtins(file, builtin_types=(datetime,))).encode("utf-8")


def _pinned(tag: str, entry: _Entry, path: str) -> PinnedPeer:
    try:
        return _from_entry(parse_tag(tag), entry)
    except ConfigError as error:
        raise StoreError(path, f"in peers.{clean(tag)}: {error}", error.hint) from error


def _from_entry(tag: Tag, entry: _Entry) -> PinnedPeer:
    peer = PinnedPeer(
        tag,
        PublicKey.parse(entry.key),
        ssh_host_keys=MappingProxyType(entry.ssh_host_keys),
        tickets=tuple(map(parse_capability, entry.tickets)),
        registered_as=parse_tag(entry.registered_as) if entry.registered_as else "",
        since=_seconds(entry.since) if entry.since else 0.0,
    )
    for grant in entry.services:
        name, until = (grant, None) if isinstance(grant, str) else (grant.name, _seconds(grant.until))
        peer = with_services(peer, (name,), until)
    return peer


def _require_one_name(peers: Iterable[PinnedPeer], path: str) -> None:
    """Refuse a key that has two names: who takes one of them away would believe that the machine is gone."""
    names: dict[PublicKey, Tag] = {}
    for peer in peers:
        if (other := names.setdefault(peer.key, peer.tag)) != peer.tag:
            raise StoreError(
                path, f"peers.{other} and peers.{peer.tag} have the same key", "Delete one of the two: one key, one name."
            )


def _issued(name: str, entry: _Issued, path: str) -> IssuedTicket:
    try:
        holder = PublicKey.parse(entry.holder) if entry.holder else None
    except ConfigError as error:
        raise StoreError(path, f"in issued.{clean(name)}: {error}", error.hint) from error
    return IssuedTicket(name, entry.services, _seconds(entry.until), holder)


def _to_entry(peer: PinnedPeer) -> _Entry:
    ends = {name: _moment(end) for name, end in peer.until.items()}
    grants = tuple(_Grant(name, ends[name]) if name in ends else name for name in peer.services)
    since = _moment(peer.since) if peer.since else None
    return _Entry(str(peer.key), peer.registered_as, since, grants, dict(peer.ssh_host_keys), tuple(map(str, peer.tickets)))


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _seconds(moment: datetime) -> float:
    """Return seconds since 1970; a time without a zone is taken for UTC, as the program writes it."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
