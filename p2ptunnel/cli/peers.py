"""`peers`: the machines whose keys are known here, and what each may open."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from p2ptunnel.cli.commands import Group
from p2ptunnel.cli.complete import complete_tag
from p2ptunnel.cli.settings import Settings
from p2ptunnel.cli.table import table

if TYPE_CHECKING:
    from p2ptunnel.identity.store import PinnedPeer

__all__ = ["command"]

_TICKET_NAME: Final = re.compile(r"[0-9a-f]{32}")
_NEVER: Final = 253_402_300_799.0  # of a ticket that is known by its name alone, it is not known when it ends


@click.group(
    "peers",
    cls=Group,
    short_help="Say who may connect, and what they may open.",
    invoke_without_command=True,
    examples=(
        "p2ptunnel peers                                    list them",
        "p2ptunnel peers add laptop p2p:k5xq7m2a… --services ssh,8888",
        "p2ptunnel peers allow laptop jupyter --until 7d",
        "p2ptunnel peers ticket --services jupyter --until 7d --for laptop",
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
        settings.output.say("No peer is known yet: p2ptunnel pair")
        return
    rows = [(peer.tag, str(peer.key), ", ".join(_grants(peer)) or "-") for peer in peers]
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
    settings.output.data(f"{peer.tag} is known; it may open {', '.join(_grants(peer)) or 'nothing'}", **_facts(peer))


@command.command("show", examples=("p2ptunnel peers show laptop",))
@click.argument("tag", shell_complete=complete_tag)
@click.pass_obj
def show_peer(settings: Settings, tag: str) -> None:
    """Show a peer's key, each grant with its end, and the tickets that it gave us."""
    peer = _known(settings, tag)
    now = time.time()
    lines = [f"peer    {peer.tag}  {peer.key}  {peer.key.fingerprint}"]
    rows = [(name, _end(peer.until.get(name)), "" if name in peer.granted(now) else "ended") for name in peer.services]
    lines.append(table(("MAY OPEN", "UNTIL", ""), rows) if rows else "it may open nothing")
    given = [(", ".join(known.services), _end(known.until), "" if known.until > now else "ended") for known in peer.tickets]
    if given:
        lines.append(table(("GAVE US A TICKET FOR", "UNTIL", ""), given))
    settings.output.data("\n".join(lines), **_facts(peer))


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


@command.command("rename", examples=("p2ptunnel peers rename laptop work-laptop",))
@click.argument("tag", shell_complete=complete_tag)
@click.argument("new")
@click.pass_obj
def rename_peer(settings: Settings, tag: str, new: str) -> None:
    """Call a peer by another tag here; we then look for it under that tag, too."""
    settings.profile.peers().rename(tag, new)
    settings.output.data(f"{tag} is {new} now", **_facts(_known(settings, new)))


@command.command("allow", examples=("p2ptunnel peers allow laptop ssh jupyter",))
@click.argument("tag", shell_complete=complete_tag)
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True)
@click.option("--until", metavar="TIME", help="When that ends: 2h, 7d, 2030-01-31, 2030-01-31T18:00; else never.")
@click.pass_obj
def allow(settings: Settings, tag: str, services: tuple[str, ...], until: str | None) -> None:
    """Let a peer open these services here; said again, the new end holds."""
    end = None if until is None else _parsed(until).timestamp()
    store = settings.profile.peers()
    for service in _checked(services):
        store.allow(tag, service, until=end)
    _tell_grants(settings, tag)


@command.command("deny", examples=("p2ptunnel peers deny laptop ssh",))
@click.argument("tag", shell_complete=complete_tag)
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True)
@click.pass_obj
def deny(settings: Settings, tag: str, services: tuple[str, ...]) -> None:
    """Take these services back from a peer; its streams to them end within a second."""
    store = settings.profile.peers()
    for service in services:
        store.deny(tag, service)
    _tell_grants(settings, tag)


@command.command("ticket", examples=("p2ptunnel peers ticket --services ssh,web --until 7d --for laptop",))
@click.option("--services", metavar="A,B", required=True, help="What the ticket opens here.")
@click.option("--until", metavar="TIME", required=True, help="When it ends: 2h, 7d, 2030-01-31, 2030-01-31T18:00.")
@click.option(
    "--for", "holder", metavar="TAG", shell_complete=complete_tag, help="The only peer that can use it; else any can."
)
@click.pass_obj
def ticket(settings: Settings, services: str, until: str, holder: str | None) -> None:
    """Print an access ticket: who is known here and shows it may open these services until then.

    It admits nobody: its holder must be known here as well. On the other machine: p2ptunnel peers use TICKET.
    """
    from p2ptunnel.identity.capability import issue

    key = None if holder is None else _known(settings, holder).key
    names = _checked(part for part in services.split(",") if part)
    made = issue(settings.profile.identity(), names, _parsed(until).timestamp(), key)
    settings.output.data(str(made), ticket=str(made), name=made.name, services=list(made.services), until=_iso(made.until))
    settings.output.say(
        f"for {', '.join(names)} until {_end(made.until)}; to end it before: p2ptunnel peers revoke {made.name}"
    )


@command.command("use", examples=("p2ptunnel peers use p2pc1ah…",))
@click.argument("text", metavar="TICKET")
@click.pass_obj
def use_ticket(settings: Settings, text: str) -> None:
    """Keep an access ticket of a known peer, and show it whenever this machine connects there."""
    from p2ptunnel.identity.capability import parse_capability

    kept = parse_capability(text)
    peer = settings.profile.peers().keep_ticket(kept, time.time())
    told = f"{peer.tag} lets this machine open {', '.join(kept.services)} until {_end(kept.until)}"
    settings.output.data(told, tag=peer.tag, services=list(kept.services), until=_iso(kept.until))


@command.command("revoke", examples=("p2ptunnel peers revoke 505152535455565758595a5b5c5d5e5f",))
@click.argument("text", metavar="TICKET|NAME")
@click.pass_obj
def revoke_ticket(settings: Settings, text: str) -> None:
    """End an access ticket of this machine: the ticket itself, or the name that was told with it."""
    from p2ptunnel.errors import InvalidCodeError
    from p2ptunnel.identity.capability import parse_capability

    if _TICKET_NAME.fullmatch(text):
        name, until = text, _NEVER
    else:
        given = parse_capability(text)
        if given.issuer != settings.profile.identity().public:
            raise InvalidCodeError("another machine's ticket", "Only the machine that made a ticket can revoke it.")
        name, until = given.name, float(given.until)
    settings.profile.peers().revoke_ticket(name, until)
    settings.output.data(f"{name} opens nothing any more", name=name)


def _checked(services: Iterable[str]) -> tuple[str, ...]:
    """Return the names of services; the store would take any text, but nobody could ask for it."""
    from p2ptunnel.tunnels.spec import parse_name

    return tuple(parse_name(service) for service in services)


def _parsed(until: str) -> datetime:
    from p2ptunnel.config import parse_until

    return parse_until(until, time.time())


def _known(settings: Settings, tag: str) -> PinnedPeer:
    from p2ptunnel.errors import UnknownPeerError
    from p2ptunnel.types import clean

    peer = settings.profile.peers().get(tag)
    if peer is None:
        raise UnknownPeerError(clean(tag))
    return peer


def _tell_grants(settings: Settings, tag: str) -> None:
    peer = settings.profile.peers().get(tag)
    if peer is not None:  # else another process has just removed it
        settings.output.data(f"{tag} may open {', '.join(_grants(peer)) or 'nothing'}", **_facts(peer))


def _grants(peer: PinnedPeer) -> list[str]:
    """Return what a peer may open now, each with its end if it has one."""
    ends = {name: f" (until {_end(end)})" for name, end in peer.until.items()}
    return [f"{name}{ends.get(name, '')}" for name in peer.granted(time.time())]


def _end(until: float | None) -> str:
    return "-" if until is None else datetime.fromtimestamp(until, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def _iso(until: float) -> str:
    return datetime.fromtimestamp(until, UTC).isoformat()


def _facts(peer: PinnedPeer) -> dict[str, object]:
    until = {name: _iso(end) for name, end in peer.until.items()}
    return {"tag": peer.tag, "key": str(peer.key), "services": list(peer.granted(time.time())), "until": until}
