"""The profile of one identity on disk: its key, and the peers it knows.

Rule: what another process changed on disk holds at once here, and a file that cannot be read in full admits nobody.
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Generator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

import msgspec
import tomli_w
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2ptunnel.defaults import SERVICE_MAX_BYTES
from p2ptunnel.errors import ConfigError, InvalidSpecError, PeerKeyChangedError, StoreError, UnknownPeerError
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


class PinnedPeer(msgspec.Struct, frozen=True):
    """A peer whose key is known here.

    `services` is what it may open on this machine; `ssh_host_keys` has, for each service of it that is an SSH server, the lines
    `type base64` that this server has proved.
    """

    tag: Tag
    key: PublicKey
    services: tuple[str, ...] = ()
    ssh_host_keys: Mapping[str, tuple[str, ...]] = msgspec.field(default_factory=lambda: MappingProxyType({}))


class _Entry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One peer as the file has it."""

    key: str
    services: tuple[str, ...] = ()
    ssh_host_keys: dict[str, tuple[str, ...]] = {}


class _File(msgspec.Struct, forbid_unknown_fields=True):
    peers: dict[str, _Entry] = {}


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


class PeerStore:
    """The pinned peers in one `peers.toml`; every question looks whether the file has changed.

    All methods raise StoreError when the file cannot be read, written or understood; its text names the place.
    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._state: tuple[_Version, _Peers] = (None, {})

    def add(self, tag: Tag, key: PublicKey, services: tuple[str, ...] = ()) -> PinnedPeer:
        """Pin `key` to `tag`, or grant a pinned peer more services.

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
            peers[tag] = _with_services(pinned, (*pinned.services, *map(_service_name, services)))
            return peers[tag]

    def remove(self, tag: Tag) -> None:
        """Forget the peer.

        Raises:
            UnknownPeerError: It is not pinned.
        """
        with self._change() as peers:
            del peers[_known(peers, tag).tag]

    def allow(self, tag: Tag, service: str) -> None:
        """Let the peer open `service` here; allowing twice is fine.

        Raises:
            UnknownPeerError: It is not pinned.
            InvalidSpecError: The service name is no name.
        """
        with self._change() as peers:
            pinned = _known(peers, tag)
            peers[tag] = _with_services(pinned, (*pinned.services, _service_name(service)))

    def deny(self, tag: Tag, service: str) -> None:
        """Take `service` from the peer; it need not have had it.

        Raises:
            UnknownPeerError: It is not pinned.
        """
        with self._change() as peers:
            pinned = _known(peers, tag)
            peers[tag] = _with_services(pinned, tuple(name for name in pinned.services if name != service))

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
        version = self._version_on_disk()
        known, peers = self._state
        if version != known:
            peers = self._load()
            self._state = (version, peers)  # in one step: two threads may ask at once
        return peers

    def _version_on_disk(self) -> _Version:
        try:
            status = self._path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(str(self._path), error.strerror or type(error).__name__) from error
        return (status.st_ino, status.st_size, status.st_mtime_ns)  # a rename brings another inode

    def _load(self) -> _Peers:
        try:
            data = read_private(self._path, OTHERS_WRITE)
        except FileNotFoundError:
            return {}
        try:
            file = msgspec.convert(tomllib.loads(data.decode("utf-8")), _File)
        except (ValueError, msgspec.ValidationError) as error:
            raise StoreError(str(self._path), clean(str(error)), "Mend the file by hand, or restore it.") from error
        return {tag: self._pinned(tag, entry) for tag, entry in file.peers.items()}

    def _pinned(self, tag: str, entry: _Entry) -> PinnedPeer:
        try:
            services = tuple(map(_service_name, entry.services))
            return PinnedPeer(parse_tag(tag), PublicKey.parse(entry.key), services, MappingProxyType(entry.ssh_host_keys))
        except ConfigError as error:
            raise StoreError(str(self._path), f"in peers.{clean(tag)}: {error}", error.hint) from error

    @contextlib.contextmanager
    def _change(self) -> Generator[_Peers]:
        """Give the peers as the disk has them, to be changed; they are written when the block ends without an error."""
        make_private_directory(self._path.parent)
        with exclusive(self._path.parent):
            peers = self._load()
            yield peers
            write_private(self._path, _to_toml(peers))
            self._state = (self._version_on_disk(), peers)


def _known(peers: _Peers, tag: Tag) -> PinnedPeer:
    if tag not in peers:
        raise UnknownPeerError(clean(tag))
    return peers[tag]


def _with_services(peer: PinnedPeer, services: tuple[str, ...]) -> PinnedPeer:
    return msgspec.structs.replace(peer, services=tuple(dict.fromkeys(services)))


def _service_name(name: str) -> str:
    if not 1 <= len(name.encode("utf-8", "surrogatepass")) <= SERVICE_MAX_BYTES or not name.isprintable():
        raise InvalidSpecError(
            clean(name), f"a service name has 1 to {SERVICE_MAX_BYTES} bytes, all printable", "Example: web."
        )
    return name


def _to_toml(peers: _Peers) -> bytes:
    entries = {tag: _Entry(str(peer.key), peer.services, dict(peer.ssh_host_keys)) for tag, peer in peers.items()}
    return tomli_w.dumps(msgspec.to_builtins(_File(entries))).encode("utf-8")
