"""`id`: this machine's tag and public key, to be pinned elsewhere."""

from __future__ import annotations

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.settings import Settings

__all__ = ["command"]


@click.command(
    "id",
    cls=Command,
    short_help="Print this machine's tag and public key.",
    examples=(
        "p2ptunnel id                      home-nas p2p:k5xq7m2a…",
        "p2ptunnel peers add home-nas p2p:k5xq7m2a…          on the other machine",
    ),
)
@click.pass_obj
def command(settings: Settings) -> None:
    """Print this machine's tag and public key; the first call makes the key.

    The line is what `p2ptunnel peers add` wants on the other machine.
    """
    key = settings.profile.identity().public
    tag = settings.tag
    line = f"{tag} {key}" if tag else str(key)
    if not tag:
        settings.output.say(
            "This machine has no tag yet: before the key, `p2ptunnel peers add` there wants the name to call it by"
        )
    settings.output.data(line, tag=tag, key=str(key), fingerprint=key.fingerprint)
