"""`pipe`: stdin and stdout as a stream to a service of a peer; what ssh runs as its ProxyCommand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.complete import complete_tag
from p2ptunnel.cli.settings import Settings

if TYPE_CHECKING:
    from p2ptunnel.peer import Peer

__all__ = ["command"]


@click.command(
    "pipe",
    cls=Command,
    short_help="Connect stdin and stdout to a service of a peer.",
    examples=(
        "echo hello | p2ptunnel pipe home-nas echo",
        "p2ptunnel pipe home-nas backup < disk.img",
        "ssh -o ProxyCommand='p2ptunnel pipe %n ssh' home-nas       `p2ptunnel ssh` does this and more",
    ),
)
@click.argument("tag", shell_complete=complete_tag)
@click.argument("service", default="default")
@click.option("--host-keys", is_flag=True, hidden=True, help="Ask for the SSH host keys of the service first.")
@click.option("--known-hosts", metavar="FILE", hidden=True, help="Write them to this file for an old ssh.")
@click.pass_obj
def command(settings: Settings, tag: str, service: str, host_keys: bool, known_hosts: str | None) -> int:
    """Connect stdin and stdout to SERVICE [default: default] of the peer TAG.

    End of input is passed on, and the answer is still read; the program ends when both directions have.
    """
    from p2ptunnel.cli.running import run
    from p2ptunnel.ssh.knownhosts import tag_of_host
    from p2ptunnel.tunnels.spec import parse_target
    from p2ptunnel.types import parse_tag

    wanted = parse_target(service)
    is_ssh = host_keys or known_hosts is not None or wanted == "ssh"
    return run(_pipe(settings, parse_tag(tag_of_host(tag)), wanted, is_ssh, known_hosts)) or 0


async def _pipe(settings: Settings, tag: str, service: str, is_ssh: bool, known_hosts: str | None) -> None:
    import asyncio

    from p2ptunnel.cli.connection import telling_beside
    from p2ptunnel.cli.living import telling_status
    from p2ptunnel.cli.stdio import carry_stdio
    from p2ptunnel.defaults import CONNECT_TIMEOUT

    with settings.tracer() as tracer:
        async with settings.peer(tracer) as peer, telling_beside(peer.events(), settings.output):
            opening = peer.connect(tag, service, timeout=settings.timeout or CONNECT_TIMEOUT)
            if is_ssh:
                stream, _ = await asyncio.gather(opening, _remember_host_keys(peer, tag, service, known_hosts))
            else:
                stream = await opening
            async with telling_status(peer, settings, "pipe"):
                await carry_stdio(stream)


async def _remember_host_keys(peer: Peer, tag: str, service: str, known_hosts: str | None) -> None:
    """Store what the peer tells of its SSH server, before ssh sees a byte of that.

    ssh asks `known-hosts` when the server has greeted it, and so not before the keys are there.
    """
    from p2ptunnel.ssh.hostkeys import fetch_host_keys

    keys = await fetch_host_keys(peer, tag, service)
    if keys and keys != _stored(peer, tag, service):
        peer.peers.set_ssh_host_keys(tag, service, keys)
    if known_hosts is not None:
        _write_known_hosts(peer, Path(known_hosts))


def _stored(peer: Peer, tag: str, service: str) -> tuple[str, ...] | None:
    pinned = peer.peers.get(tag)
    return None if pinned is None else pinned.ssh_host_keys.get(service)


def _write_known_hosts(peer: Peer, path: Path) -> None:
    from p2ptunnel.identity.files import write_private
    from p2ptunnel.ssh.knownhosts import known_hosts_file

    keys = {pinned.tag: [key for keys in pinned.ssh_host_keys.values() for key in keys] for pinned in peer.peers.all()}
    write_private(path, known_hosts_file(keys).encode("ascii"))
