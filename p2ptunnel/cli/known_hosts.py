"""`known-hosts`: what ssh runs as its KnownHostsCommand, twice a login.  Rule: it imports as little as it can."""

from __future__ import annotations

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.settings import Settings

__all__ = ["command"]


@click.command("known-hosts", cls=Command, hidden=True, examples=("p2ptunnel known-hosts home-nas.p2p",))
@click.argument("host")
@click.argument("name", required=False)
@click.option("--service", default="ssh", help="The service that is the SSH server.")
@click.pass_obj
def command(settings: Settings, host: str, name: str | None, service: str) -> None:
    """Print known_hosts lines for HOST, ssh's %H, with the keys that the peer NAME, ssh's %n, told over the channel.

    No key is an error: ssh would only say that verification failed.
    """
    from p2ptunnel.errors import SSHError, UnknownPeerError
    from p2ptunnel.ssh.knownhosts import known_hosts_lines, tag_of_host

    tag = tag_of_host(name or host)
    peer = settings.profile.peers().get(tag)
    if peer is None:
        raise UnknownPeerError(tag)
    keys = peer.ssh_host_keys.get(service)
    if not keys:
        raise SSHError(tag, "it told no host key of its SSH server", f"Is sshd running on {tag}, behind the service {service}?")
    lines = known_hosts_lines(host, keys)
    settings.output.data("\n".join(lines), lines=lines)
