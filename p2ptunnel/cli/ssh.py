"""`ssh`: the system's ssh, told how to reach a peer."""

from __future__ import annotations

import os
import subprocess
import sys

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.complete import complete_tag
from p2ptunnel.cli.settings import Settings

__all__ = ["command"]


@click.command(
    "ssh",
    cls=Command,
    short_help="Log in to a peer with the system's ssh.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    examples=(
        "p2ptunnel ssh home-nas",
        "p2ptunnel ssh pi@home-nas uptime",
        "p2ptunnel ssh -i key -L 8080:127.0.0.1:80 pi@home-nas     every option of ssh's, as for ssh",
    ),
)
@click.option("--service", default="ssh", show_default=True, help="The service of the peer that is its SSH server.")
@click.argument(
    "words",
    metavar="[SSH OPTION]... [USER@]TAG [SSH OPTION OR COMMAND]...",
    nargs=-1,
    required=True,
    type=click.UNPROCESSED,
    shell_complete=complete_tag,
)
@click.pass_obj
def command(settings: Settings, service: str, words: tuple[str, ...]) -> int:
    """Log in to the peer TAG with the system's ssh, which ends with its own exit code.

    Its host key is checked against what the peer told over the authenticated channel; no known_hosts file is touched and no
    question asked. The login itself is ssh's: your keys, its password prompt.
    """
    from p2ptunnel.cli.openssh import find_ssh, launcher
    from p2ptunnel.errors import UnknownPeerError
    from p2ptunnel.ssh.knownhosts import tag_of_host
    from p2ptunnel.ssh.openssh import split_destination, ssh_command
    from p2ptunnel.tunnels.spec import parse_name

    destination, arguments = split_destination(words)
    argv = ssh_command(destination, arguments, launcher=launcher(settings, parse_name(service)), ssh=find_ssh())
    tag = tag_of_host(destination.rpartition("@")[2])
    if settings.profile.peers().get(tag) is None:  # said here once, instead of by ssh and its two helpers
        raise UnknownPeerError(tag)
    os.environ.update(settings.for_ssh_in_secret)
    sys.stdout.flush()
    if os.name == "posix":
        os.execv(argv[0], argv)  # noqa: S606  # the point of it
    return subprocess.run(argv, check=False).returncode  # noqa: S603
