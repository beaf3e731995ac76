"""`pair`: let a machine in that is not known here yet, or be let in by one."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.settings import Duration, Settings

if TYPE_CHECKING:
    from p2ptunnel.events import Events, Paired
    from p2ptunnel.identity.store import PinnedPeer
    from p2ptunnel.pairing import Invitation

__all__ = ["command", "complete_code"]


def complete_code(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the codes that what is typed could become by its next word; none before there is a tag."""
    from p2ptunnel.wire.words import complete_word

    before, hyphen, word = incomplete.rpartition("-")
    return [f"{before}-{whole}" for whole in complete_word(word)] if hyphen and word else []


@click.command(
    "pair",
    cls=Command,
    short_help="Let another machine in, or be let in, by a code or a ticket.",
    examples=(
        "p2ptunnel pair --services ssh                   here: prints a code and a ticket, and waits",
        "p2ptunnel pair home-nas-apple-river-zoo         there: what was said here",
        "p2ptunnel pair p2pt1aaaa…                       or what was pasted",
        "p2ptunnel pair -                                asks for it: what stands above, every user here can read",
    ),
)
@click.argument("words", metavar="[CODE|TICKET|-]", nargs=-1, shell_complete=complete_code)
@click.option(
    "--as", "name", metavar="NAME", help="What to call the other machine here; else as before, or as it calls itself."
)
@click.option("--services", metavar="A,B", default="", help="What the other machine may open here.")
@click.option("--expires", metavar="TIME", type=Duration(), default="10m", show_default=True, help="How long to wait.")
@click.option("--uses", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="For how many machines.")
@click.option("--qr/--no-qr", default=None, help="The ticket as a QR code; else on terminals only.")
@click.option("--show", is_flag=True, help="Also show the beginnings of both keys, to be compared by voice.")
@click.pass_context
def command(
    context: click.Context,
    words: tuple[str, ...],
    name: str | None,
    services: str,
    expires: str,
    uses: int,
    qr: bool | None,
    show: bool,
) -> int:
    """Make two machines known to each other; no key is carried by hand.

    Without an argument: print a code and a ticket, wait for the other machine, and pin its key. Say the code by voice, or
    send the ticket by a way that nobody else can read. Who has either is let in, once.

    With a code or a ticket: prove to the machine that gave it that we have it, and pin its key. `-` reads it from stdin, and
    from a terminal without showing it.
    """
    from p2ptunnel.cli.given import given
    from p2ptunnel.cli.running import run

    settings, names = context.find_object(Settings), tuple(part for part in services.split(",") if part)
    assert settings is not None
    if words:
        _refuse_invitation_flags(context)
        return run(_redeem(settings, given(words, "code or ticket"), names, name, show=show))
    shows_qr = sys.stderr.isatty() if qr is None else qr
    return run(_invite(settings, names, name, _lifetime(expires), uses, shows_qr=shows_qr, show=show))


def _refuse_invitation_flags(context: click.Context) -> None:
    """Refuse what would be silent beside a code: it is the other machine that invites."""
    from p2ptunnel.errors import ConfigError

    flags = {"expires": "--expires", "uses": "--uses", "qr": "--qr"}
    if flag := next((flags[name] for name in flags if context.get_parameter_source(name) is ParameterSource.COMMANDLINE), None):
        raise ConfigError(
            f"{flag} is for the machine that invites", "Beside a code or a ticket go --as, --services and --show."
        )


def _lifetime(expires: str) -> float:
    from p2ptunnel.config import parse_duration
    from p2ptunnel.errors import ConfigError

    seconds = parse_duration(expires)
    if not seconds:
        raise ConfigError("an invitation that lasts no time lets nobody in", "Examples: --expires 10m, --expires 1h.")
    return seconds


async def _invite(
    settings: Settings, services: tuple[str, ...], name: str | None, expires: float, uses: int, *, shows_qr: bool, show: bool
) -> int:
    import asyncio

    from p2ptunnel.events import Paired, PairingFailed

    with settings.tracer() as tracer:
        async with settings.peer(tracer, is_serving=True) as peer:
            failures, guests = peer.events(PairingFailed), peer.events(Paired)
            async with await peer.invite(services=services, expires=expires, uses=uses, name=name) as invitation:
                _tell_invitation(settings, invitation, expires, uses, shows_qr=shows_qr)
                _tell_membership(settings)
                telling = asyncio.create_task(_tell_failures(settings, failures, invitation))
                try:
                    for _ in range(uses):
                        guest, event = await invitation.paired(), await anext(guests)
                        assert isinstance(event, Paired)
                        _tell_paired(settings, guest, event, str(peer.key), show=show)
                finally:
                    failures.close()
                    await telling
    return 0


async def _redeem(settings: Settings, text: str, services: tuple[str, ...], name: str | None, *, show: bool) -> int:
    from p2ptunnel.defaults import CONNECT_TIMEOUT
    from p2ptunnel.events import Paired
    from p2ptunnel.pairing import parse_given, server_of
    from p2ptunnel.types import format_address
    from p2ptunnel.wire.ticket import Ticket

    invited = parse_given(text)
    server = server_of(invited) if isinstance(invited, Ticket) else None
    is_new = server is not None and not settings.has_server(server.address)
    if server is not None and is_new:
        settings.output.say(f"asking {format_address(server.address)}, the server that the ticket names")
    elif server is None and (code := str(invited)) != "-".join(text.lower().split()):
        settings.output.say(f"reading it as {code}")
    with settings.tracer() as tracer:
        async with settings.peer(tracer, needs_server=server is None) as peer:
            events = peer.events(Paired)
            pinned = await peer.redeem(text, services=services, name=name, timeout=settings.timeout or CONNECT_TIMEOUT)
            event = await anext(events)
            assert isinstance(event, Paired)
            _tell_paired(settings, pinned, event, str(peer.key), show=show, is_guest=True)
    if server is not None and is_new:
        _tell_server(settings, format_address(server.address) + (f"#{server.key}" if server.key else ""))
    return 0


def _tell_server(settings: Settings, server: str) -> None:
    """Say how to reach a peer later, whose server is none of ours yet."""
    text = json.dumps(server, ensure_ascii=False)  # which TOML reads as well, whatever the ticket has for a name
    if settings.rendezvous:
        settings.output.say(f"to reach it, add this to `rendezvous` under [peer] in config.toml: {text}")
    else:
        settings.output.say(f"to reach it, put this under [peer] in config.toml: rendezvous = {text}")


def _tell_membership(settings: Settings) -> None:
    """Say what neither a code nor a ticket holds: what a private server wants of its members."""
    from p2ptunnel.defaults import RENDEZVOUS_PORT
    from p2ptunnel.types import parse_server

    if any(parse_server(server, default_port=RENDEZVOUS_PORT).join_token for server in settings.rendezvous):
        settings.output.say(
            "the server is private: the other machine needs its whole line first, host:port#p2p:…#join:…, in config.toml there"
        )


def _tell_invitation(settings: Settings, invitation: Invitation, expires: float, uses: int, *, shows_qr: bool) -> None:
    from p2ptunnel.types import format_duration

    if shows_qr:
        settings.output.say(invitation.qr())
    settings.output.data(
        f"code    {invitation.code}\nticket  {invitation.ticket}",
        event="invited",
        tag=invitation.tag,
        code=invitation.code,
        ticket=invitation.ticket,
        expires=expires,
        uses=uses,
    )
    settings.output.say(f"on the other machine, within {format_duration(expires)}:  p2ptunnel pair {invitation.code}")


async def _tell_failures(settings: Settings, failures: Events, invitation: Invitation) -> None:
    from p2ptunnel.events import PairingFailed

    async for event in failures:
        if isinstance(event, PairingFailed):
            code = invitation.code if invitation.is_open else None
            settings.output.say(f"{event.source} could not pair: {event.reason}")
            settings.output.data(
                f"code    {code}" if code else "no code holds any more",
                event="pairing_failed",
                source=event.source,
                reason=event.reason,
                code=code,
            )


def _tell_paired(
    settings: Settings, peer: PinnedPeer, event: Paired, own_key: str, *, show: bool, is_guest: bool = False
) -> None:
    """Say who is paired; to a guest also what it may do now."""
    here, there = (", ".join(services) or "nothing" for services in (peer.services, event.offered))
    text = f"{_now_called(peer, event.known_as)}; it may open {here} here"
    facts = {
        "tag": peer.tag,
        "key": str(peer.key),
        "services": list(peer.services),
        "known_as": event.known_as,
        "registered_as": peer.wanted,
    }
    if is_guest:
        text += f". This machine may open {there} there"
        facts["offered"] = list(event.offered)
    settings.output.data(text, event="paired", **facts)
    settings.output.say(_next_step(peer.tag, event.offered))
    if show:
        settings.output.say(
            f"keys: ours {own_key[4:12]}, {peer.tag}'s {peer.key.short}; they are the same there if nobody cheats"
        )


def _now_called(peer: PinnedPeer, known_as: str) -> str:
    """Return who is paired, and by which name from now on: one key has one name here, whatever it calls itself."""
    own = f" (it calls itself {peer.registered_as})" if peer.registered_as else ""
    if not known_as:
        return f"{peer.tag}{own} is paired"
    if known_as == peer.tag:
        return f"{peer.tag}{own} is paired again, and keeps that name"
    return f"{known_as}{own} is paired again, and called {peer.tag} from now on"


def _next_step(tag: str, offered: tuple[str, ...]) -> str:
    """Return the command that opens what is offered; empty where there is nothing, or `any`, which needs a target."""
    if "ssh" in offered:
        return f"next:  p2ptunnel ssh {tag}"
    service = next((name for name in offered if name != "any"), None)
    return f"next:  p2ptunnel forward {tag} {service}" if service else ""
