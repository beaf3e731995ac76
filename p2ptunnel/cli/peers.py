"""`peers`: the machines whose keys are known here, and what each may open."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from p2ptunnel.cli.commands import Group
from p2ptunnel.cli.complete import complete_tag
from p2ptunnel.cli.settings import Settings
from p2ptunnel.cli.table import table

if TYPE_CHECKING:
    from p2ptunnel.identity.store import PinnedPeer

__all__ = ["command"]


@click.group(
    "peers",
    cls=Group,
    short_help="Say who may connect, and what they may open.",
    invoke_without_command=True,
    examples=(
        "p2ptunnel peers                                    list them",
        "p2ptunnel peers add laptop p2p:k5xq7m2a… --services ssh,8888",
        "p2ptunnel peers allow laptop jupyter",
    ),
)
@click.pass_context
def command(context: click.Context) -> None:
    """List, add and remove the machines that are known here, and say what they may open.

    A peer is its key; the tag is what you call it. It may connect once it is known, and open nothing but what you allow.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_peers)


@command.command("list", examples=("p2ptunnel --json peers list",))
@click.pass_obj
def list_peers(settings: Settings) -> None:
    """List the known peers and what each may open."""
    peers = settings.profile.peers().all()
    if settings.output.as_json:
        for peer in peers:
            settings.output.data("", **_facts(peer))
        return
    if not peers:
        settings.output.say("No peer is known yet: p2ptunnel peers add TAG KEY")
        return
    rows = [(peer.tag, str(peer.key), ", ".join(peer.services) or "-") for peer in peers]
    settings.output.data(table(("PEER", "KEY", "MAY OPEN"), rows))


@command.command("add", examples=("p2ptunnel peers add laptop p2p:k5xq7m2a… --services ssh,8888",))
@click.argument("tag")
@click.argument("key")
@click.option("--services", metavar="A,B", default="", help="What the peer may open here.")
@click.pass_obj
def add_peer(settings: Settings, tag: str, key: str, services: str) -> None:
    """Pin KEY to TAG; `p2ptunnel id` on that machine prints both."""
    from p2ptunnel.errors import ConfigError
    from p2ptunnel.identity.keys import PublicKey

    names = _checked(part for part in services.split(",") if part)
    parsed = PublicKey.parse(key)
    if parsed == settings.profile.identity().public:
        raise ConfigError("that is the key of this very machine", "`p2ptunnel id` on the other machine prints the one to add.")
    peer = settings.profile.peers().add(tag, parsed, names)
    settings.output.data(f"{peer.tag} is known; it may open {', '.join(peer.services) or 'nothing'}", **_facts(peer))


@command.command("rm", examples=("p2ptunnel peers rm laptop",))
@click.argument("tag", shell_complete=complete_tag)
@click.pass_obj
def remove_peer(settings: Settings, tag: str) -> None:
    """Forget a peer: it can connect no more."""
    from p2ptunnel.errors import UnknownPeerError

    try:
        settings.profile.peers().remove(tag)
    except UnknownPeerError as error:
        error.hint = "`p2ptunnel peers` lists those that are known here."  # who wants to forget one does not want to add it
        raise
    settings.output.data(f"{tag} is forgotten", tag=tag)


@command.command("allow", examples=("p2ptunnel peers allow laptop ssh jupyter",))
@click.argument("tag", shell_complete=complete_tag)
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True)
@click.pass_obj
def allow(settings: Settings, tag: str, services: tuple[str, ...]) -> None:
    """Let a peer open these services here."""
    store = settings.profile.peers()
    for service in _checked(services):
        store.allow(tag, service)
    _tell_grants(settings, tag)


@command.command("deny", examples=("p2ptunnel peers deny laptop ssh",))
@click.argument("tag", shell_complete=complete_tag)
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True)
@click.pass_obj
def deny(settings: Settings, tag: str, services: tuple[str, ...]) -> None:
    """Take these services back from a peer."""
    store = settings.profile.peers()
    for service in services:
        store.deny(tag, service)
    _tell_grants(settings, tag)


def _checked(services: Iterable[str]) -> tuple[str, ...]:
    """Return the names of services; the store would take any text, but nobody could ask for it."""
    from p2ptunnel.tunnels.spec import parse_name

    return tuple(parse_name(service) for service in services)


def _tell_grants(settings: Settings, tag: str) -> None:
    peer = settings.profile.peers().get(tag)
    if peer is not None:  # else another process has just removed it
        settings.output.data(f"{tag} may open {', '.join(peer.services) or 'nothing'}", **_facts(peer))


def _facts(peer: PinnedPeer) -> dict[str, object]:
    return {"tag": peer.tag, "key": str(peer.key), "services": list(peer.services)}
