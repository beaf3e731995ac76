"""The profile of one identity on disk: its key, and the peers it knows.

Rule: what another process changed on disk holds at once here, and a file that cannot be read in full admits nobody.
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Generator, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

import msgspec
import tomli_w
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2ptunnel.defaults import CAPABILITIES_MAX, CLOCK_MIN, SERVICE_MAX_BYTES
from p2ptunnel.errors import ConfigError, InvalidSpecError, PeerKeyChangedError, StoreError, UnknownPeerError
from p2ptunnel.identity.capability import Capability, parse_capability
from p2ptunnel.identity.files import (
    OTHERS_READ_OR_WRITE,
    OTHERS_WRITE,
    exclusive,
    make_private_directory,
    read_private,
    write_private,
)
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.types import Tag, clean, parse_tag

__all__ = ["PeerStore", "PinnedPeer", "Profile"]


_UNTIL_MAX: Final = 253_402_300_800.0  # the year 10000, which files cannot write


class PinnedPeer(msgspec.Struct, frozen=True):
    """A peer whose key is known here.

    Attributes:
        tag: Its name here.
        key: What it proves.
        services: What it may open on this machine; those in `until` only so long.
        ssh_host_keys: For each service of it that is an SSH server, the lines `type base64` that this server has proved.
        until: When grants end, in seconds since 1970.
        tickets: What it has signed for us, to be shown when we connect to it.
    """

    tag: Tag
    key: PublicKey
    services: tuple[str, ...] = ()
    ssh_host_keys: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=lambda: MappingProxyType({}))
    until: Mapping[str, float] = msgspec.field(default_factory=lambda: MappingProxyType({}))
    tickets: tuple[Capability, ...] = ()

    def granted(self, now: float) -> tuple[str, ...]:
        """Return what it may open at a time in seconds since 1970; by a clock that was never set, nothing that ends."""
        return tuple(name for name in self.services if name not in self.until or CLOCK_MIN <= now < self.until[name])


class _Grant(msgspec.Struct, forbid_unknown_fields=True):
    """A service with an end, as the file has it; one without is its name alone."""

    name: str
    until: datetime


class _Entry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One peer as the file has it."""

    key: str
    services: tuple[str | _Grant, ...] = ()
    ssh_host_keys: dict[str, tuple[str, ...]] = {}
    tickets: tuple[str, ...] = ()


class _File(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    peers: dict[str, _Entry] = {}
    revoked: dict[str, datetime] = {}


class Profile:
    """A directory with one identity and its peers.

    Args:
        directory: None: `$P2PTUNNEL_PROFILE`, else `$XDG_CONFIG_HOME/p2ptunnel`, else `~/.config/p2ptunnel`.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None) -> None:
        self.directory: Final = Path(directory) if directory is not None else _default_directory()

    def identity(self) -> Identity:
        """Return the identity of this profile; the first call on a machine makes it.

        Raises:
            InsecureKeyFileError: Somebody else could read or replace the key; the hint names the command that mends it.
            StoreError: The file cannot be read, written, or is no Ed25519 key.
        """
        path = self.directory / "identity.key"
        make_private_directory(self.directory)
        try:
            return _load_identity(path)
        except FileNotFoundError:
            return self._make_identity(path)

    def peers(self) -> PeerStore:
        """Return the peers of this profile; nothing is read or made before they are asked for."""
        return PeerStore(self.directory / "peers.toml")

    def _make_identity(self, path: Path) -> Identity:
        with exclusive(self.directory):
            try:
                return _load_identity(path)  # another process was faster
            except FileNotFoundError:
                identity = Identity.generate()
                write_private(path, _to_pem(identity))
                return identity


def _default_directory() -> Path:
    if profile := os.environ.get("P2PTUNNEL_PROFILE"):
        return Path(profile).expanduser()
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "p2ptunnel"


def _to_pem(identity: Identity) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return identity.private_key.private_bytes(encoding, form, serialization.NoEncryption())


def _load_identity(path: Path) -> Identity:
    data = read_private(path, OTHERS_READ_OR_WRITE)
    hint = "Restore the file from a backup; or move it away, and a new identity is made that peers must admit anew."
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # its text could quote the file
        raise StoreError(str(path), "it is not an unencrypted PKCS8 key", hint) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError(str(path), "it is not an Ed25519 key", hint)
    return Identity(key)


_Peers: TypeAlias = dict[Tag, PinnedPeer]
_Version: TypeAlias = tuple[int, int, int] | None


class _Contents(msgspec.Struct):
    """What one file says: the peers, and when those tickets of ours would have ended that were revoked."""

    peers: _Peers
    revoked: dict[str, float]


class PeerStore:
    """The pinned peers in one `peers.toml`; every question looks whether the file has changed.

    All methods raise StoreError when the file cannot be read, written or understood; its text names the place.
    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._state: tuple[_Version, _Contents] = (None, _Contents({}, {}))

    def add(self, tag: Tag, key: PublicKey, services: tuple[str, ...] = (), *, until: float | None = None) -> PinnedPeer:
        """Pin `key` to `tag`, or grant a pinned peer more services.

        Args:
            tag: Its name here.
            key: What it proves.
            services: What it may open.
            until: When that ends, in seconds since 1970; None: never.

        Raises:
            PeerKeyChangedError: The tag is pinned to another key.
            InvalidTagError: It is no tag.
            InvalidSpecError: A service name is no name.
        """
        parse_tag(tag)
        with self._change() as peers:
            pinned = peers.get(tag, PinnedPeer(tag, key))
            if pinned.key != key:
                raise PeerKeyChangedError(tag, str(pinned.key))
            peers[tag] = _with_services(pinned, services, until)
            return peers[tag]

    def remove(self, tag: Tag) -> None:
        """Forget the peer.

        Raises:
            UnknownPeerError: It is not pinned.
        """
        with self._change() as peers:
            del peers[_known(peers, tag).tag]

    def rename(self, tag: Tag, new: Tag) -> None:
        """Call a peer by another tag; its key and what it may open stay.

        Raises:
            UnknownPeerError: It is not pinned.
            InvalidTagError: The new tag is none.
            ConfigError: Another peer has the new tag.
        """
        parse_tag(new)
        with self._change() as peers:
            pinned = _known(peers, tag)
            if new in peers:
                raise ConfigError(f"another peer is called {new!r} already", "`p2ptunnel peers` lists them all.")
            renamed = msgspec.structs.replace(pinned, tag=new)
            entries = [renamed if peer is pinned else peer for peer in peers.values()]
            peers.clear()
            peers.update((peer.tag, peer) for peer in entries)

    def allow(self, tag: Tag, service: str, *, until: float | None = None) -> None:
        """Let the peer open `service` here; what is said last holds, also of its end.

        Args:
            tag: Of the peer.
            service: What it may open.
            until: When that ends, in seconds since 1970; None: never.

        Raises:
            UnknownPeerError: It is not pinned.
            InvalidSpecError: The service name is no name.
        """
        with self._change() as peers:
            peers[tag] = _with_services(_known(peers, tag), (service,), until)

    def deny(self, tag: Tag, service: str) -> None:
        """Take `service` from the peer; it need not have had it.

        Raises:
            UnknownPeerError: It is not pinned.
        """
        with self._change() as peers:
            pinned = _known(peers, tag)
            kept = tuple(name for name in pinned.services if name != service)
            until = {name: end for name, end in pinned.until.items() if name != service}
            peers[tag] = msgspec.structs.replace(pinned, services=kept, until=MappingProxyType(until))

    def set_ssh_host_keys(self, tag: Tag, service: str, keys: tuple[str, ...]) -> None:
        """Remember the host keys, lines of `type base64`, that the SSH server behind the peer's service has; none forgets.

        Raises:
            UnknownPeerError: The peer is not pinned.
            InvalidSpecError: The service name is no name.
        """
        with self._change() as peers:
            pinned = _known(peers, tag)
            host_keys = {**pinned.ssh_host_keys, _service_name(service): tuple(keys)}
            kept = MappingProxyType({name: lines for name, lines in host_keys.items() if lines})
            peers[tag] = msgspec.structs.replace(pinned, ssh_host_keys=kept)

    def keep_ticket(self, ticket: Capability, now: float) -> PinnedPeer:
        """Keep what a pinned peer has signed for us, and forget of its tickets those that have ended.

        Raises:
            UnknownPeerError: Its issuer is not pinned.
        """
        with self._change() as peers:
            issuer = next((peer for peer in peers.values() if peer.key == ticket.issuer), None)
            if issuer is None:
                raise UnknownPeerError(str(ticket.issuer))
            kept = [known for known in issuer.tickets if known.until > now and known.id != ticket.id]
            tickets = (*kept, ticket)[-CAPABILITIES_MAX:]
            peers[issuer.tag] = msgspec.structs.replace(issuer, tickets=tickets)
            return peers[issuer.tag]

    def revoke_ticket(self, name: str, until: float) -> None:
        """Let nobody use a ticket of ours any more; it is remembered for good, as no clock is sure enough to forget by.

        Args:
            name: Of the ticket.
            until: When it would have ended, in seconds since 1970.
        """
        with self._changing() as contents:
            contents.revoked[name] = min(until, _UNTIL_MAX - 1)

    def is_revoked(self, name: str) -> bool:
        """Tell whether a ticket of ours was revoked."""
        return name in self._current_contents().revoked

    def get(self, tag: Tag) -> PinnedPeer | None:
        """Return the peer pinned under `tag`."""
        return self._current().get(tag)

    def by_key(self, key: PublicKey) -> PinnedPeer | None:
        """Return the first peer that has `key`."""
        return next((peer for peer in self._current().values() if peer.key == key), None)

    def all(self) -> tuple[PinnedPeer, ...]:
        """Return every pinned peer, in the file's order."""
        return tuple(self._current().values())

    def _current(self) -> _Peers:
        return self._current_contents().peers

    def _current_contents(self) -> _Contents:
        version = self._version_on_disk()
        known, contents = self._state
        if version != known:
            contents = self._load()
            self._state = (version, contents)  # in one step: two threads may ask at once
        return contents

    def _version_on_disk(self) -> _Version:
        try:
            status = self._path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(str(self._path), error.strerror or type(error).__name__) from error
        return (status.st_ino, status.st_size, status.st_mtime_ns)  # a rename brings another inode

    def _load(self) -> _Contents:
        try:
            data = read_private(self._path, OTHERS_WRITE)
        except FileNotFoundError:
            return _Contents({}, {})
        try:
            file = msgspec.convert(tomllib.loads(data.decode("utf-8")), _File)
        except (ValueError, msgspec.ValidationError) as error:
            raise StoreError(str(self._path), clean(str(error)), "Mend the file by hand, or restore it.") from error
        peers = {tag: self._pinned(tag, entry) for tag, entry in file.peers.items()}
        return _Contents(peers, {name: _seconds(end) for name, end in file.revoked.items()})

    def _pinned(self, tag: str, entry: _Entry) -> PinnedPeer:
        try:
            return _from_entry(parse_tag(tag), entry)
        except ConfigError as error:
            raise StoreError(str(self._path), f"in peers.{clean(tag)}: {error}", error.hint) from error

    @contextlib.contextmanager
    def _change(self) -> Generator[_Peers]:
        """Give the peers as the disk has them, to be changed; they are written when the block ends without an error."""
        with self._changing() as contents:
            yield contents.peers

    @contextlib.contextmanager
    def _changing(self) -> Generator[_Contents]:
        make_private_directory(self._path.parent)
        with exclusive(self._path.parent):
            contents = self._load()
            yield contents
            write_private(self._path, _to_toml(contents))
            self._state = (self._version_on_disk(), contents)


def _known(peers: _Peers, tag: Tag) -> PinnedPeer:
    if tag not in peers:
        raise UnknownPeerError(clean(tag))
    return peers[tag]


def _with_services(peer: PinnedPeer, services: Iterable[str], until: float | None) -> PinnedPeer:
    """Return the peer with these services granted until then; what was said of them before no longer holds."""
    names = tuple(map(_service_name, services))
    if until is not None and not 0 <= until < _UNTIL_MAX:
        raise ConfigError(f"a grant cannot end at {until:g} seconds since 1970")
    ends = {name: end for name, end in peer.until.items() if name not in names}
    if until is not None:
        ends |= dict.fromkeys(names, until)
    return msgspec.structs.replace(peer, services=tuple(dict.fromkeys((*peer.services, *names))), until=MappingProxyType(ends))


def _from_entry(tag: Tag, entry: _Entry) -> PinnedPeer:
    tickets = tuple(map(parse_capability, entry.tickets))
    peer = PinnedPeer(tag, PublicKey.parse(entry.key), (), MappingProxyType(entry.ssh_host_keys), tickets=tickets)
    for grant in entry.services:
        name, until = (grant, None) if isinstance(grant, str) else (grant.name, _seconds(grant.until))
        peer = _with_services(peer, (name,), until)
    return peer


def _seconds(moment: datetime) -> float:
    """Return seconds since 1970; a time without a zone is taken for UTC, as the program writes it."""
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _service_name(name: str) -> str:
    if not 1 <= len(name.encode("utf-8", "surrogatepass")) <= SERVICE_MAX_BYTES or not name.isprintable():
        raise InvalidSpecError(
            clean(name), f"a service name has 1 to {SERVICE_MAX_BYTES} bytes, all printable", "Example: web."
        )
    return name


def _to_toml(contents: _Contents) -> bytes:
    entries = {tag: _to_entry(peer) for tag, peer in contents.peers.items()}
    revoked = {name: datetime.fromtimestamp(end, UTC) for name, end in contents.revoked.items()}
    return tomli_w.dumps(msgspec.to_builtins(_File(entries, revoked), builtin_types=(datetime,))).encode("utf-8")


def _to_entry(peer: PinnedPeer) -> _Entry:
    ends = {name: datetime.fromtimestamp(end, UTC) for name, end in peer.until.items()}
    grants = tuple(_Grant(name, ends[name]) if name in ends else name for name in peer.services)
    return _Entry(str(peer.key), grants, dict(peer.ssh_host_keys), tuple(map(str, peer.tickets)))
