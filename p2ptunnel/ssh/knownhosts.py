"""Host keys as text: taken apart when they come from elsewhere, put together as known_hosts lines for ssh.

Rule: a line from a peer reaches neither ssh nor a file before `parse_host_keys` has taken it apart; ssh would believe the
markers, patterns and other hosts' names in it.  This module is imported at every ssh login and stays light.

Source: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT; RFC 4253 6.6.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import struct
from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["HOST_SUFFIX", "host_keys_service", "known_hosts_file", "known_hosts_lines", "parse_host_keys", "tag_of_host"]

HOST_SUFFIX: Final = ".p2p"
"""What follows the tag in the host names given to ssh."""

_PREFIX: Final = "ssh-host-keys/"
_TYPES: Final = frozenset(
    {
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ecdsa-sha2-nistp256@openssh.com",
        "sk-ssh-ed25519@openssh.com",
        "ssh-ed25519",
        "ssh-rsa",
    }
)


def host_keys_service(service: str) -> str:
    """Return the reserved service that tells the host keys of the SSH server behind `service`."""
    return _PREFIX + service


def tag_of_host(host: str) -> str:
    """Return the tag in a host name as ssh gives it: `home-nas.p2p`, `Home-NAS`, `[home-nas.p2p]:2222`."""
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    return host.lower().removesuffix(HOST_SUFFIX)


def parse_host_keys(text: str) -> tuple[str, ...]:
    """Return the host keys in `text` as lines of `type base64`, each once.

    Reads key files, known_hosts lines without markers, what `ssh-keyscan` prints and what a peer tells; whatever is not a key
    of a known type is left out.
    """
    keys = (_key(line.split()) for line in text.splitlines())
    return tuple(dict.fromkeys(key for key in keys if key))


def known_hosts_lines(host: str, keys: Iterable[str]) -> tuple[str, ...]:
    """Return known_hosts lines that vouch for `host`, the very text that ssh looks for, with these keys."""
    return tuple(f"{host} {key}" for key in keys)


def known_hosts_file(keys_by_tag: Mapping[str, Iterable[str]]) -> str:
    """Return a whole known_hosts file, for an ssh that cannot ask a command: every tag with its suffix, on any port."""
    named = ((f"{tag}{HOST_SUFFIX},[{tag}{HOST_SUFFIX}]:*", keys) for tag, keys in keys_by_tag.items())
    return "".join(f"{line}\n" for host, keys in named for line in known_hosts_lines(host, keys))


def _key(words: list[str]) -> str | None:
    """Return `type base64` from the words of a line: `type base64 …` or `host type base64 …`."""
    for kind, blob in itertools.pairwise(words[:3]):
        if kind in _TYPES and _is_blob(blob, kind):
            return f"{kind} {blob}"
    return None


def _is_blob(text: str, kind: str) -> bool:
    """Tell whether `text` is base64 of a key that calls itself `kind`."""
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return blob.startswith(struct.pack("!I", len(kind)) + kind.encode("ascii"))
