"""The profile of one identity on disk: its key, and the peers it knows.

Rule: what another process changed on disk holds at once here, and a file that cannot be read in full admits nobody.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from p2ptunnel.defaults import CAPABILITIES_MAX
from p2ptunnel.errors import ConfigError, KeyKnownError, NameTakenError, NoSuchPeerError, StoreError
from p2ptunnel.identity.capability import Capability
from p2ptunnel.identity.files import (
    OTHERS_READ_OR_WRITE,
    OTHERS_WRITE,
    exclusive,
    make_private_directory,
    read_private,
    write_private,
)
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.pinned import (
    UNTIL_MAX,
    Contents,
    IssuedTicket,
    Peers,
    PinnedPeer,
    parse,
    service_name,
    to_toml,
    with_services,
)
from p2ptunnel.types import Tag, clean, parse_tag

__all__ = ["IssuedTicket", "PeerStore", "PinnedPeer", "Profile", "as_last_read"]


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


_Version: TypeAlias = tuple[int, int, int] | None


_last_read_counts: Final = ContextVar("last_read_counts", default=False)


@contextlib.contextmanager
def as_last_read() -> Generator[None]:
    """Have stores answer, while the block lasts, from what they could read last where the file cannot be read now.

    It is for judging what runs already, which goes on, though no longer than it was granted.  Nothing new is let in by it.
    """
    token = _last_read_counts.set(True)
    try:
        yield
    finally:
        _last_read_counts.reset(token)


class PeerStore:
    """The pinned peers in one `peers.toml`; every question looks whether the file has changed.

    One key has one name here.  All methods raise StoreError when the file cannot be read, written or understood; its text
    names the place.
    """

    def __init__(self, path: Path) -> None:
        self._path: Final = path
        self._state: tuple[_Version, Contents] = (None, Contents({}, {}, {}))

    # --- who --------------------------------------------------------------------------------------------------------

    def add(
        self,
        tag: Tag,
        key: PublicKey,
        services: tuple[str, ...] = (),
        *,
        until: float | None = None,
        registered_as: Tag = "",
    ) -> PinnedPeer:
        """Pin `key` to `tag`, or grant a pinned peer more services.

        Args:
            tag: Its name here.
            key: What it proves.
            services: What it may open.
            until: When that ends, in seconds since 1970; None: never.
            registered_as: The tag under which the rendezvous server knows it; empty: as it is known, or else its name here.

        Raises:
            NameTakenError: The tag is pinned to another key; a PeerKeyChangedError as well.
            KeyKnownError: The key is pinned to another tag.
            InvalidTagError: It is no tag.
            InvalidSpecError: A service name is no name.
        """
        parse_tag(tag)
        with self._change() as peers:
            known = _with_key(peers, key)
            if known is not None and known.tag != tag:
                raise KeyKnownError(tag, known.tag)
            pinned = _named(known or _new(tag, key), tag, parse_tag(registered_as) if registered_as else "")
            return _put(peers, known, with_services(pinned, services, until))

    def pair(
        self,
        key: PublicKey,
        registered_as: Tag,
        services: tuple[str, ...] = (),
        *,
        name: Tag | None = None,
        ssh_host_keys: Mapping[str, tuple[str, ...]] | None = None,
    ) -> PinnedPeer:
        """Pin a machine that has just proved itself, in one write; who is known already keeps what it may open.

        Args:
            key: What it has proved.
            registered_as: What it calls itself.
            services: What it may open here.
            name: What to call it here; None: as it is called already, else as it calls itself.
            ssh_host_keys: What the SSH servers behind its services have, as `set_ssh_host_keys` keeps it.

        Raises:
            NameTakenError: Another machine has the name here; a PeerKeyChangedError as well.
            InvalidTagError: A tag is none.
            InvalidSpecError: A service name is no name.
        """
        with self._change() as peers:
            known, tag = _with_key(peers, key), parse_tag(_name_for(peers, key, registered_as, name))
            paired = _named(known or _new(tag, key), tag, parse_tag(registered_as))
            host_keys = MappingProxyType({**paired.ssh_host_keys, **(ssh_host_keys or {})})
            return _put(peers, known, with_services(replace(paired, ssh_host_keys=host_keys), services, None))

    def name_for(self, key: PublicKey, registered_as: Tag, *, name: Tag | None = None) -> Tag:
        """Return what `pair` would call a machine.

        Raises:
            NameTakenError: Another machine has the name here; a PeerKeyChangedError as well.
        """
        return _name_for(self._current(), key, registered_as, name)

    def remove(self, tag: Tag) -> None:
        """Forget the peer.

        Raises:
            NoSuchPeerError: It is not pinned; an UnknownPeerError as well.
        """
        with self._change() as peers:
            del peers[_known(peers, tag).tag]

    def rename(self, tag: Tag, new: Tag) -> None:
        """Call a peer by another tag here; its key, what it may open and the tag that we ask the server for stay.

        Raises:
            NoSuchPeerError: It is not pinned; an UnknownPeerError as well.
            InvalidTagError: The new tag is none.
            NameTakenError: Another peer has the new tag; a PeerKeyChangedError as well.
        """
        parse_tag(new)
        with self._change() as peers:
            pinned = _known(peers, tag)
            _put(peers, pinned, _named(pinned, new, pinned.wanted))

    # --- what each may open ---------------------------------------------------------------------------------------

    def allow(self, tag: Tag, service: str, *, until: float | None = None) -> None:
        """Let the peer open `service` here; what is said last holds, also of its end.

        Args:
            tag: Of the peer.
            service: What it may open.
            until: When that ends, in seconds since 1970; None: never.

        Raises:
            NoSuchPeerError: It is not pinned; an UnknownPeerError as well.
            InvalidSpecError: The service name is no name.
        """
        with self._change() as peers:
            peers[tag] = with_services(_known(peers, tag), (service,), until)

    def note_once(self, tag: Tag, service: str, now: float) -> None:
        """Note that the peer was let into `service` just now, and no longer: a grant that has ended, which `deny` takes away.

        Args:
            tag: Of the peer.
            service: What it was let into; what is noted or granted already stays as it is.
            now: Seconds since 1970.

        Raises:
            NoSuchPeerError: It is not pinned; an UnknownPeerError as well.
        """
        with self._change() as peers:
            pinned = _known(peers, tag)
            if service not in pinned.services:
                peers[tag] = with_services(pinned, (service,), now)

    def deny(self, tag: Tag, service: str) -> None:
        """Take `service` from the peer; it need not have had it.

        Raises:
            NoSuchPeerError: It is not pinned; an UnknownPeerError as well.
        """
        with self._change() as peers:
            pinned = _known(peers, tag)
            kept = tuple(name for name in pinned.services if name != service)
            until = {name: end for name, end in pinned.until.items() if name != service}
            peers[tag] = replace(pinned, services=kept, until=MappingProxyType(until))

    def set_ssh_host_keys(self, tag: Tag, service: str, keys: tuple[str, ...]) -> None:
        """Remember the host keys, lines of `type base64`, that the SSH server behind the peer's service has; none forgets.

        Raises:
            NoSuchPeerError: The peer is not pinned; an UnknownPeerError as well.
            InvalidSpecError: The service name is no name.
        """
        with self._change() as peers:
            pinned = _known(peers, tag)
            host_keys = {**pinned.ssh_host_keys, service_name(service): tuple(keys)}
            kept = MappingProxyType({name: lines for name, lines in host_keys.items() if lines})
            peers[tag] = replace(pinned, ssh_host_keys=kept)

    # --- access tickets -------------------------------------------------------------------------------------------

    def keep_ticket(self, ticket: Capability, now: float) -> PinnedPeer:
        """Keep what a pinned peer has signed for us, and forget of its tickets those that have ended.

        Raises:
            NoSuchPeerError: Its issuer is not pinned; an UnknownPeerError as well.
        """
        with self._change() as peers:
            issuer = _with_key(peers, ticket.issuer)
            if issuer is None:
                error = NoSuchPeerError(str(ticket.issuer))
                error.hint = "Pair first with the machine that has made the ticket: p2ptunnel pair CODE"
                raise error
            kept = [known for known in issuer.tickets if known.until > now and known.id != ticket.id]
            return _put(peers, issuer, replace(issuer, tickets=(*kept, ticket)[-CAPABILITIES_MAX:]))

    def drop_ticket(self, name: str) -> PinnedPeer:
        """Show a ticket that a peer gave us no more, and forget it; return whose it was.

        Raises:
            ConfigError: We have none of that name.
        """
        with self._change() as peers:
            for peer in peers.values():
                kept = tuple(ticket for ticket in peer.tickets if ticket.name != name)
                if kept != peer.tickets:
                    return _put(peers, peer, replace(peer, tickets=kept))
            raise ConfigError("no peer has given us a ticket of that name", "`p2ptunnel peers show PEER` lists a peer's.")

    def note_issued(self, ticket: Capability, now: float) -> None:
        """Note a ticket that we have made, though not what makes it one; those that have ended are forgotten."""
        with self._changing() as contents:
            contents.issued = {name: known for name, known in contents.issued.items() if known.until > now}
            contents.issued[ticket.name] = IssuedTicket(ticket.name, ticket.services, ticket.until, ticket.holder)

    def issued(self) -> tuple[IssuedTicket, ...]:
        """Return the tickets that we have made, those that were revoked among them, the oldest first."""
        return tuple(self._current_contents().issued.values())

    def revoke_ticket(self, name: str, until: float | None = None) -> None:
        """Let nobody use a ticket of ours any more; it is remembered for good, as no clock is sure enough to forget by.

        Args:
            name: Of the ticket.
            until: When it would have ended, in seconds since 1970; None: as it was noted when it was made.

        Raises:
            ConfigError: Its end is not known, as no ticket of that name was noted here.
        """
        with self._changing() as contents:
            noted = contents.issued.get(name)
            end = until if until is not None else noted.until if noted is not None else contents.revoked.get(name)
            if end is None:
                raise ConfigError("no ticket of that name was made here", "`p2ptunnel peers tickets` lists them.")
            contents.revoked[name] = min(end, UNTIL_MAX - 1)

    def is_revoked(self, name: str) -> bool:
        """Tell whether a ticket of ours was revoked."""
        return name in self._current_contents().revoked

    # --- questions ------------------------------------------------------------------------------------------------

    def get(self, tag: Tag) -> PinnedPeer | None:
        """Return the peer pinned under `tag`."""
        return self._current().get(tag)

    def by_key(self, key: PublicKey) -> PinnedPeer | None:
        """Return the peer that has `key`."""
        return _with_key(self._current(), key)

    def all(self) -> tuple[PinnedPeer, ...]:
        """Return every pinned peer, in the file's order."""
        return tuple(self._current().values())

    # --- inside ---------------------------------------------------------------------------------------------------

    def _current(self) -> Peers:
        return self._current_contents().peers

    def _current_contents(self) -> Contents:
        known, contents = self._state
        try:
            version = self._version_on_disk()
            if version != known:
                contents = self._load()
                self._state = (version, contents)  # in one step: two threads may ask at once
        except StoreError:
            if not _last_read_counts.get():
                raise
        return contents

    def _version_on_disk(self) -> _Version:
        try:
            status = self._path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(str(self._path), error.strerror or type(error).__name__) from error
        return (status.st_ino, status.st_size, status.st_mtime_ns)  # a rename brings another inode

    def _load(self) -> Contents:
        try:
            data = read_private(self._path, OTHERS_WRITE)
        except FileNotFoundError:
            return Contents({}, {}, {})
        return parse(data, str(self._path))

    @contextlib.contextmanager
    def _change(self) -> Generator[Peers]:
        """Give the peers as the disk has them, to be changed; they are written when the block ends without an error."""
        with self._changing() as contents:
            yield contents.peers

    @contextlib.contextmanager
    def _changing(self) -> Generator[Contents]:
        make_private_directory(self._path.parent)
        with exclusive(self._path.parent):
            contents = self._load()
            yield contents
            write_private(self._path, to_toml(contents))
            self._state = (self._version_on_disk(), contents)


def _known(peers: Peers, tag: Tag) -> PinnedPeer:
    if tag not in peers:
        raise NoSuchPeerError(clean(tag))
    return peers[tag]


def _with_key(peers: Peers, key: PublicKey) -> PinnedPeer | None:
    return next((peer for peer in peers.values() if peer.key == key), None)


def _name_for(peers: Peers, key: PublicKey, registered_as: Tag, name: Tag | None) -> Tag:
    known = _with_key(peers, key)
    tag = name or (known.tag if known else registered_as)
    _require_free(peers, tag, key)
    return tag


def _require_free(peers: Peers, tag: Tag, key: PublicKey) -> None:
    if (other := peers.get(tag)) is not None and other.key != key:
        raise NameTakenError(tag, str(other.key))


def _new(tag: Tag, key: PublicKey) -> PinnedPeer:
    return PinnedPeer(tag, key, since=datetime.now(UTC).timestamp())  # as exact as the file can write it


def _named(peer: PinnedPeer, tag: Tag, registered_as: Tag) -> PinnedPeer:
    """Return the peer with a name here, and with the tag to ask the server for; empty: as before."""
    wanted = registered_as or peer.wanted
    return replace(peer, tag=tag, registered_as="" if wanted == tag else wanted)


def _put(peers: Peers, before: PinnedPeer | None, peer: PinnedPeer) -> PinnedPeer:
    """Put a peer where it was, perhaps by another name, or behind all others; return it."""
    _require_free(peers, peer.tag, peer.key)
    entries = [peer if known is before else known for known in peers.values()]
    if before is None:
        entries.append(peer)
    peers.clear()
    peers.update((entry.tag, entry) for entry in entries)
    return peer
