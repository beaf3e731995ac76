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
    from p2ptunnel.identity.capability import Capability
    from p2ptunnel.identity.store import IssuedTicket, PeerStore, PinnedPeer

__all__ = ["command"]

_TICKET_NAME: Final = re.compile(r"[0-9a-f]{32}")


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
        "p2ptunnel peers use -                              asks for a ticket, and does not show it",
    ),
)
@click.pass_context
def command(context: click.Context) -> None:
    """List, add and remove the machines that are known here, and say what they may open.

    A peer is its key; the tag is what you call it. It may connect once it is known, and open nothing but what you allow.
    """
    if context.invoked_subcommand is None:
        context.invoke(list_peers)


@command.command("list", short_help="List the known peers and what each may open.", examples=("p2ptunnel --json peers list",))
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


@command.command(
    "add",
    short_help="Pin a key to a tag; `p2ptunnel id` on that machine prints both.",
    examples=("p2ptunnel peers add laptop p2p:k5xq7m2a… --services ssh,8888",),
)
@click.argument("tag")
@click.argument("key")
@click.option("--services", metavar="A,B", default="", help="What the peer may open here.")
@click.option("--registered-as", metavar="NAME", default="", help="The tag that it has itself, if you call it otherwise.")
@click.pass_obj
def add_peer(settings: Settings, tag: str, key: str, services: str, registered_as: str) -> None:
    """Pin KEY to TAG; `p2ptunnel id` on that machine prints both."""
    from p2ptunnel.errors import ConfigError
    from p2ptunnel.identity.keys import PublicKey

    names = _checked(part for part in services.split(",") if part)
    parsed = PublicKey.parse(key)
    if parsed == settings.profile.identity().public:
        raise ConfigError("that is the key of this very machine", "`p2ptunnel id` on the other machine prints the one to add.")
    peer = settings.profile.peers().add(tag, parsed, names, registered_as=registered_as)
    settings.output.data(f"{peer.tag} is known; it may open {', '.join(_grants(peer)) or 'nothing'}", **_facts(peer))


@command.command(
    "show",
    short_help="Show a key, each grant with its end, and the tickets of both.",
    examples=("p2ptunnel peers show laptop",),
)
@click.argument("tag", shell_complete=complete_tag)
@click.pass_obj
def show_peer(settings: Settings, tag: str) -> None:
    """Show a peer's key, each grant with its end, the tickets that it gave us, and those that we made for it."""
    peer, store, now = _known(settings, tag), settings.profile.peers(), time.time()
    made = [issued for issued in store.issued() if issued.holder == peer.key]
    lines = [f"peer    {peer.tag}  {peer.key}  {peer.key.fingerprint}"]
    lines += [f"it calls itself {peer.registered_as}, and is looked for by that name"] if peer.registered_as else []
    rows = [(name, _end(peer.until.get(name)), "" if name in peer.granted(now) else "ended") for name in peer.services]
    lines.append(table(("MAY OPEN", "UNTIL", ""), rows) if rows else "it may open nothing")
    for head, tickets in (("GAVE US A TICKET FOR", peer.tickets), ("HAS OUR TICKET FOR", made)):
        told = [(", ".join(known.services), _end(known.until), known.name, _fate(store, known, now)) for known in tickets]
        lines += [table((head, "UNTIL", "NAME", ""), told)] if told else []
    settings.output.data("\n".join(lines), **_facts(peer), made=[_ticket_facts(known) for known in made])


@command.command("rm", short_help="Forget a peer: it can connect no more.", examples=("p2ptunnel peers rm laptop",))
@click.argument("tag", shell_complete=complete_tag)
@click.pass_obj
def remove_peer(settings: Settings, tag: str) -> None:
    """Forget a peer: it can connect no more."""
    settings.profile.peers().remove(tag)
    settings.output.data(f"{tag} is forgotten", tag=tag)


@command.command(
    "rename", short_help="Call a peer by another tag here.", examples=("p2ptunnel peers rename laptop work-laptop",)
)
@click.argument("tag", shell_complete=complete_tag)
@click.argument("new")
@click.pass_obj
def rename_peer(settings: Settings, tag: str, new: str) -> None:
    """Call a peer by another tag here; we still look for it under the one that it has itself."""
    settings.profile.peers().rename(tag, new)
    settings.output.data(f"{tag} is {new} now", **_facts(_known(settings, new)))


@command.command(
    "allow",
    short_help="Let a peer open services here; said again, the new end holds.",
    examples=("p2ptunnel peers allow laptop ssh jupyter",),
)
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


@command.command(
    "deny", short_help="Take services back; streams to them end within a second.", examples=("p2ptunnel peers deny laptop ssh",)
)
@click.argument("tag", shell_complete=complete_tag)
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True)
@click.pass_obj
def deny(settings: Settings, tag: str, services: tuple[str, ...]) -> None:
    """Take these services back from a peer; its streams to them end within a second."""
    from p2ptunnel.errors import ConfigError
    from p2ptunnel.types import clean

    store, peer = settings.profile.peers(), _known(settings, tag)
    if unknown := [clean(name) for name in services if name not in peer.services]:  # a slip would leave open what it meant
        hint = f"It may open {', '.join(_grants(peer)) or 'nothing'}; nothing was changed."
        raise ConfigError(f"{tag} has no grant of {', '.join(unknown)} here", hint)
    for service in services:
        store.deny(tag, service)
    _tell_grants(settings, tag)


@command.command(
    "ticket",
    short_help="Print an access ticket, by which known peers open services.",
    examples=("p2ptunnel peers ticket --services ssh,web --until 7d --for laptop",),
)
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
    settings.profile.peers().note_issued(made, time.time())
    settings.output.data(str(made), ticket=str(made), **_ticket_facts(made))
    settings.output.say(
        f"for {', '.join(names)} until {_end(made.until)}; to end it before: p2ptunnel peers revoke {made.name}"
    )
    if key is None:
        settings.output.say("any known peer that gets hold of it can use it; --for PEER makes one for that peer alone")


@command.command("tickets", short_help="List the access tickets that were made here.", examples=("p2ptunnel peers tickets",))
@click.pass_obj
def list_tickets(settings: Settings) -> None:
    """List the access tickets that were made here; the tickets themselves are not kept."""
    store, now = settings.profile.peers(), time.time()
    if settings.output.as_json:
        for issued in store.issued():
            settings.output.data("", **_ticket_facts(issued), holder=_holder(store, issued), fate=_fate(store, issued, now))
        return
    rows = [
        (known.name, ", ".join(known.services), _holder(store, known) or "any", _end(known.until), _fate(store, known, now))
        for known in store.issued()
    ]
    if not rows:
        settings.output.say("No ticket was made here: p2ptunnel peers ticket")
        return
    settings.output.data(table(("NAME", "OPENS", "FOR", "UNTIL", ""), rows))


@command.command(
    "use", short_help="Keep an access ticket of a peer, and show it there.", examples=("p2ptunnel peers use p2pc1ah…",)
)
@click.argument("words", metavar="TICKET|-", nargs=-1, required=True)
@click.pass_obj
def use_ticket(settings: Settings, words: tuple[str, ...]) -> None:
    """Keep an access ticket of a known peer, and show it whenever this machine connects there.

    `-` reads it from stdin, and from a terminal without showing it: a command line can be read by every user here.
    """
    from p2ptunnel.cli.given import given
    from p2ptunnel.identity.capability import parse_capability, require_usable

    kept = parse_capability(given(words, "ticket"))
    require_usable(kept, settings.profile.identity().public, time.time())
    peer = settings.profile.peers().keep_ticket(kept, time.time())
    told = f"{peer.tag} lets this machine open {', '.join(kept.services)} until {_end(kept.until)}"
    settings.output.data(told, tag=peer.tag, **_ticket_facts(kept))


@command.command(
    "drop",
    short_help="Forget an access ticket that a peer gave this machine.",
    examples=("p2ptunnel peers drop 505152535455565758595a5b5c5d5e5f",),
)
@click.argument("name", metavar="NAME")
@click.pass_obj
def drop_ticket(settings: Settings, name: str) -> None:
    """Forget an access ticket that a peer gave this machine; `peers show PEER` lists their names."""
    peer = settings.profile.peers().drop_ticket(_ticket_name(name))
    settings.output.data(f"{peer.tag}'s ticket is forgotten", tag=peer.tag, name=name)


@command.command(
    "revoke",
    short_help="End an access ticket of this machine.",
    examples=("p2ptunnel peers revoke 505152535455565758595a5b5c5d5e5f",),
)
@click.argument("words", metavar="TICKET|NAME|-", nargs=-1, required=True)
@click.pass_obj
def revoke_ticket(settings: Settings, words: tuple[str, ...]) -> None:
    """End an access ticket of this machine: the ticket itself, or its name, which `peers tickets` lists."""
    from p2ptunnel.cli.given import given
    from p2ptunnel.errors import InvalidCodeError
    from p2ptunnel.identity.capability import is_capability, parse_capability

    text, store = given(words, "ticket"), settings.profile.peers()
    if is_capability(text):
        ticket = parse_capability(text)
        if ticket.issuer != settings.profile.identity().public:
            raise InvalidCodeError("another machine's ticket", "Only the machine that made a ticket can revoke it.")
        name = ticket.name
        store.revoke_ticket(name, ticket.until)
    else:
        name = _ticket_name(text)
        store.revoke_ticket(name)
    settings.output.data(f"{name} opens nothing any more", name=name)


def _ticket_name(text: str) -> str:
    """Return the name of a ticket; not quoted where it is none: it may be the ticket, damaged."""
    from p2ptunnel.errors import InvalidCodeError

    name = text.strip().lower()
    if not _TICKET_NAME.fullmatch(name):
        raise InvalidCodeError("that is no ticket and no name of one", "Give the ticket, or its name of 32 hex digits.")
    return name


def _checked(services: Iterable[str]) -> tuple[str, ...]:
    """Return the names of services; the store would take any text, but nobody could ask for it."""
    from p2ptunnel.tunnels.spec import parse_name

    return tuple(parse_name(service) for service in services)


def _parsed(until: str) -> datetime:
    from p2ptunnel.config import parse_until

    return parse_until(until, time.time())


def _known(settings: Settings, tag: str) -> PinnedPeer:
    from p2ptunnel.errors import NoSuchPeerError
    from p2ptunnel.types import clean

    peer = settings.profile.peers().get(tag)
    if peer is None:
        raise NoSuchPeerError(clean(tag))
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
    return {
        "tag": peer.tag,
        "key": str(peer.key),
        "fingerprint": peer.key.fingerprint,
        "registered_as": peer.wanted,
        "services": list(peer.granted(time.time())),
        "until": {name: _iso(end) for name, end in peer.until.items()},
        "tickets": [_ticket_facts(ticket) for ticket in peer.tickets],
    }


def _ticket_facts(ticket: Capability | IssuedTicket) -> dict[str, object]:
    return {"name": ticket.name, "services": list(ticket.services), "until": _iso(ticket.until)}


def _fate(store: PeerStore, ticket: Capability | IssuedTicket, now: float) -> str:
    """Return why a ticket opens nothing any more; empty while it does."""
    return "revoked" if store.is_revoked(ticket.name) else "ended" if ticket.until <= now else ""


def _holder(store: PeerStore, ticket: IssuedTicket) -> str | None:
    """Return who alone can use a ticket, by name if it is known here; None: any known peer."""
    if ticket.holder is None:
        return None
    peer = store.by_key(ticket.holder)
    return peer.tag if peer else str(ticket.holder)
