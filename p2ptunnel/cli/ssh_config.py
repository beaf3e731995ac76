"""`ssh-config`: what to put into ssh's configuration, so that ssh, scp, rsync and git reach peers by themselves."""

from __future__ import annotations

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.settings import Settings

__all__ = ["command"]


@click.command(
    "ssh-config",
    cls=Command,
    short_help="Print what makes ssh, scp, rsync and git reach peers.",
    examples=(
        "p2ptunnel ssh-config > ~/.ssh/p2ptunnel.conf",
        "sed -i '1i Include p2ptunnel.conf' ~/.ssh/config     its first line, since ssh takes the first value",
        "ssh pi@home-nas.p2p                                  scp, sftp, rsync and git too",
        "p2ptunnel ssh-config > here; scp -F here file home-nas.p2p:",
    ),
)
@click.option("--service", default="ssh", show_default=True, help="The service of the peers that is their SSH server.")
@click.pass_obj
def command(settings: Settings, service: str) -> None:
    """Print the stanza for ssh's configuration that takes `NAME.p2p` to the peer NAME.

    Global flags given here are written into it.
    """
    from p2ptunnel.cli.openssh import launcher
    from p2ptunnel.errors import ConfigError
    from p2ptunnel.ssh.openssh import ssh_config

    if settings.for_ssh_in_secret:
        raise ConfigError(
            "the server's join token would stand in ssh's command lines, where every user here can read it",
            'Write the server\'s line into config.toml: rendezvous = ["…"] under [peer].',
        )
    stanza = ssh_config(launcher(settings, service))
    settings.output.data(stanza.rstrip("\n"), config=stanza)
