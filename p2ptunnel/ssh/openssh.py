"""The system's OpenSSH over streams: what to tell it, on its command line or in its configuration file.

ssh starts `p2ptunnel pipe` for the bytes and `p2ptunnel known-hosts` for the host keys, touches no known_hosts file and asks
no question.  Rule: whatever ends up in a command that ssh splits or hands to a shell is quoted here, for that reader.

Source: ssh_config(5), KnownHostsCommand, ProxyCommand, TOKENS; measured with OpenSSH 9.2.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from typing import Final

import msgspec

from p2ptunnel.errors import ConfigError, InvalidSpecError
from p2ptunnel.ssh.knownhosts import HOST_SUFFIX
from p2ptunnel.types import parse_tag

__all__ = ["Launcher", "has_known_hosts_command", "split_destination", "ssh_command", "ssh_config", "ssh_options"]

_FLAGS_WITH_ARGUMENT: Final = frozenset("BbcDEeFIiJLlmOoPpQRSWw")  # ssh(1); what follows one of these is not the host

_KNOWN_HOSTS_COMMAND_SINCE: Final = (8, 5)
_VERSION: Final = re.compile(r"OpenSSH_(?:for_Windows_)?([0-9]+)\.([0-9]+)")

_FIXED: Final = (
    ("StrictHostKeyChecking", "yes"),
    ("GlobalKnownHostsFile", "/dev/null"),
    ("UpdateHostKeys", "no"),
    ("CheckHostIP", "no"),
    ("CanonicalizeHostname", "no"),
    ("ServerAliveInterval", "0"),  # ssh would give up what the session below can wait for
    ("TCPKeepAlive", "no"),
    ("Ciphers", "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"),  # a third of the default's CPU, and the channel is sealed
)


class Launcher(msgspec.Struct, frozen=True):
    """How ssh starts this program again.

    Args:
        flags: Global flags of the command line to hand on, such as `("--profile", "/path")`.
        python: The absolute path of the interpreter.
        service: The service of the peer that is its SSH server.
        known_hosts: For an ssh without KnownHostsCommand (before 8.5): the file that `pipe` writes the host keys to, and
            that ssh reads; None for a later one.
    """

    flags: tuple[str, ...] = ()
    python: str = sys.executable
    service: str = "ssh"
    known_hosts: str | None = None

    def command(self, *arguments: str) -> list[str]:
        """Return the argument vector that runs us; -P keeps a directory's own `p2ptunnel` from being run in our place."""
        return [self.python, "-P", "-m", "p2ptunnel", *self.flags, *arguments]


def ssh_options(launcher: Launcher) -> list[tuple[str, str]]:
    """Return the options, name and value, that take ssh to a peer.

    Raises:
        ConfigError: A path cannot be written in ssh's configuration.
    """
    if launcher.known_hosts is None:
        command = launcher.command("known-hosts", "--service", launcher.service)
        keys = [("KnownHostsCommand", f"{_for_ssh(command)} %H %n"), ("UserKnownHostsFile", "none")]
        pipe = launcher.command("pipe", "--host-keys")
    else:
        keys = [("UserKnownHostsFile", _for_old_ssh(launcher.known_hosts))]
        pipe = launcher.command("pipe", "--known-hosts", launcher.known_hosts)
    return [("ProxyCommand", f"{_for_shell(pipe)} %n {launcher.service}"), *keys, *_FIXED]


def split_destination(words: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Find the host among what people write behind `ssh`, where ssh itself would find it.

    Args:
        words: `-i key pi@home-nas -v uptime`.

    Returns:
        The destination, and all other words in their order: ssh takes its options behind the host as well.

    Raises:
        InvalidSpecError: No host is among them.
    """
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "-":
        if words[at] == "--":
            break
        flags = words[at][1:]
        first = next((place for place, flag in enumerate(flags) if flag in _FLAGS_WITH_ARGUMENT), None)
        at += 2 if first == len(flags) - 1 else 1
    before = tuple(words[:at])
    if at < len(words) and words[at] == "--":
        at += 1
    if at >= len(words):
        raise InvalidSpecError(" ".join(words), "it names no peer", "For instance: p2ptunnel ssh -i key pi@home-nas uptime")
    return words[at], (*before, *words[at + 1 :])


def ssh_command(destination: str, arguments: Sequence[str] = (), *, launcher: Launcher, ssh: str = "ssh") -> list[str]:
    """Return the argument vector of an ssh that logs in to a peer.

    Args:
        destination: `tag` or `user@tag`, with or without `.p2p`.
        arguments: Handed to ssh as they are: its options, and the command to run there.
        launcher: How ssh starts this program.
        ssh: The program.

    Raises:
        InvalidTagError: The destination names no tag.
        ConfigError: A path cannot be written in ssh's configuration.
    """
    user, at, host = destination.rpartition("@")
    tag = parse_tag(host.removesuffix(HOST_SUFFIX))
    options = [part for name, value in ssh_options(launcher) for part in ("-o", f"{name}={value}")]
    return [ssh, *options, f"{user}{at}{tag}{HOST_SUFFIX}", *arguments]


def ssh_config(launcher: Launcher) -> str:
    """Return the stanza for a configuration file of ssh; it belongs above everything else there, since the first value wins.

    Raises:
        ConfigError: A path cannot be written in ssh's configuration.
    """
    return "\n".join((f"Host *{HOST_SUFFIX}", *(f"  {name} {value}" for name, value in ssh_options(launcher)), ""))


def has_known_hosts_command(version: str) -> bool:
    """Tell from what `ssh -V` prints whether this ssh knows KnownHostsCommand; an unknown program is taken for a new one."""
    found = _VERSION.search(version)
    return found is None or (int(found[1]), int(found[2])) >= _KNOWN_HOSTS_COMMAND_SINCE


def _for_shell(command: Sequence[str]) -> str:
    """Quote for the user's shell, which runs ProxyCommand after ssh has expanded its percent tokens."""
    return shlex.join(map(_one_line, command)).replace("%", "%%")


def _for_ssh(command: Sequence[str]) -> str:
    """Quote for ssh itself, which splits KnownHostsCommand, then expands tokens and `${…}` in all words but the first."""
    program, *arguments = command
    for word in arguments:
        if "${" in word:
            raise ConfigError(f"{word!r} cannot be written for ssh, which would expand ${{…}}", "Use a path without ${.")
    return " ".join((_quoted(program), *(_quoted(word.replace("%", "%%")) for word in arguments)))


def _quoted(word: str) -> str:
    """Return the word, in double quotes if it needs any."""
    if shlex.quote(_one_line(word)) == word:
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _for_old_ssh(path: str) -> str:
    """Quote a path for an ssh that knows double quotes, and nothing to escape them with."""
    if '"' in path or "${" in path:
        raise ConfigError(f"{path!r} cannot be written for ssh", 'Use a path without " and ${.')
    return f'"{_one_line(path).replace("%", "%%")}"'


def _one_line(word: str) -> str:
    if "\n" in word or "\r" in word:
        raise ConfigError(f"{word!r} cannot be written for ssh: it has a line break", "Use a path without line breaks.")
    return word
