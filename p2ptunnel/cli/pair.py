"""`pair`: let a machine in that is not known here yet, or be let in by one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.settings import Duration, Settings

if TYPE_CHECKING:
    from p2ptunnel.events import Events
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
    ),
)
@click.argument("words", metavar="[CODE|TICKET]", nargs=-1, shell_complete=complete_code)
@click.option("--as", "name", metavar="NAME", help="What to call the other machine here.")
@click.option("--services", metavar="A,B", default="", help="What the other machine may open here.")
@click.option("--expires", metavar="TIME", type=Duration(), default="10m", show_default=True, help="How long to wait.")
@click.option("--uses", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="For how many machines.")
@click.option("--qr/--no-qr", default=None, help="The ticket as a QR code; else on terminals only.")
@click.option("--show", is_flag=True, help="Also show the beginnings of both keys, to be compared by voice.")
@click.pass_obj
def command(
    settings: Settings,
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

    With a code or a ticket: prove to the machine that gave it that we have it, and pin its key.
    """
    from p2ptunnel.cli.running import run
    from p2ptunnel.config import parse_duration

    names = tuple(part for part in services.split(",") if part)
    if words:
        return run(_redeem(settings, " ".join(words), names, name, show=show))
    shows_qr = sys.stderr.isatty() if qr is None else qr
    return run(_invite(settings, names, name, parse_duration(expires), uses, shows_qr=shows_qr, show=show))


async def _invite(
    settings: Settings, services: tuple[str, ...], name: str | None, expires: float, uses: int, *, shows_qr: bool, show: bool
) -> int:
    import asyncio

    from p2ptunnel.events import PairingFailed

    with settings.tracer() as tracer:
        async with settings.peer(tracer, is_serving=True) as peer:
            failures = peer.events(PairingFailed)
            async with await peer.invite(services=services, expires=expires, uses=uses, name=name) as invitation:
                _tell_invitation(settings, invitation, expires, uses, shows_qr=shows_qr)
                telling = asyncio.create_task(_tell_failures(settings, failures, invitation))
                try:
                    for _ in range(uses):
                        _tell_paired(settings, await invitation.paired(), str(peer.key), show=show)
                finally:
                    failures.close()
                    await telling
    return 0


async def _redeem(settings: Settings, text: str, services: tuple[str, ...], name: str | None, *, show: bool) -> int:
    from p2ptunnel.defaults import CONNECT_TIMEOUT
    from p2ptunnel.events import Paired
    from p2ptunnel.pairing import server_of
    from p2ptunnel.types import format_address
    from p2ptunnel.wire.ticket import is_ticket, parse_ticket
    from p2ptunnel.wire.words import parse_code

    needs_server = not settings.rendezvous
    if is_ticket(text):
        server = server_of(parse_ticket(text))
        if needs_server:
            key = f"#{server.key}" if server.key else ""
            settings.take("rendezvous", (format_address(server.address) + key,))
    elif (code := str(parse_code(text))) != "-".join(text.lower().split()):
        settings.output.say(f"reading it as {code}")
    with settings.tracer() as tracer:
        async with settings.peer(tracer) as peer:
            events = peer.events(Paired)
            pinned = await peer.redeem(text, services=services, name=name, timeout=settings.timeout or CONNECT_TIMEOUT)
            event = await anext(events)
            assert isinstance(event, Paired)
            _tell_paired(settings, pinned, str(peer.key), show=show, offered=event.offered)
    if needs_server:
        settings.output.say(f'to reach it, put this under [peer] in config.toml: rendezvous = "{settings.rendezvous[0]}"')
    return 0


def _tell_invitation(settings: Settings, invitation: Invitation, expires: float, uses: int, *, shows_qr: bool) -> None:
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
    settings.output.say(f"on the other machine, within {expires / 60:.3g} min:  p2ptunnel pair {invitation.code}")


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
    settings: Settings, peer: PinnedPeer, own_key: str, *, show: bool, offered: tuple[str, ...] | None = None
) -> None:
    """Say who is paired; to a guest also what it may do now."""
    here, there = (", ".join(services) or "nothing" for services in (peer.services, offered or ()))
    text = f"{peer.tag} is paired; it may open {here} here"
    facts = {"tag": peer.tag, "key": str(peer.key), "services": list(peer.services)}
    if offered is not None:
        text += f", and this machine {there} there"
        facts["offered"] = list(offered)
    settings.output.data(text, event="paired", **facts)
    if offered and "ssh" in offered:
        settings.output.say(f"next:  p2ptunnel ssh {peer.tag}")
    if show:
        settings.output.say(
            f"keys: ours {own_key[4:12]}, {peer.tag}'s {peer.key.short}; they are the same there if nobody cheats"
        )
