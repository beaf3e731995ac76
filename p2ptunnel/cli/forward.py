"""`forward`: ports of this machine that come out at services of a peer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.complete import complete_tag
from p2ptunnel.cli.settings import Settings

if TYPE_CHECKING:
    from p2ptunnel.tunnels.local import Forward
    from p2ptunnel.tunnels.spec import ForwardSpec

__all__ = ["command"]


@click.command(
    "forward",
    cls=Command,
    short_help="Forward local ports to services of a peer.",
    examples=(
        "p2ptunnel forward home-nas 8888                 127.0.0.1:8888 here is service 8888 there",
        "p2ptunnel forward home-nas 9000:jupyter 0:8080  port 0 picks a free one and prints it",
        "p2ptunnel forward home-nas 5432:db:5432         a host near home-nas that it serves",
        "p2ptunnel forward home-nas '*:8080:web'         for other machines too",
    ),
)
@click.argument("tag", shell_complete=complete_tag)
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@click.pass_obj
def command(settings: Settings, tag: str, specs: tuple[str, ...]) -> None:
    """Forward local ports to services of the peer TAG until told to end.

    SPEC is written as for `ssh -L`, `[bind:]port:host:hostport`, or shorter: `8888`, `9000:8888`, `jupyter`, `9000:jupyter`.
    Only this machine can use the port unless another address to listen on is written out.
    """
    from p2ptunnel.cli.running import run_until_stopped
    from p2ptunnel.tunnels.spec import parse_forward
    from p2ptunnel.types import parse_tag

    run_until_stopped(_forward(settings, parse_tag(tag), [parse_forward(spec) for spec in specs]))


async def _forward(settings: Settings, tag: str, specs: Sequence[ForwardSpec]) -> None:
    from p2ptunnel.cli.connection import tell_connections
    from p2ptunnel.cli.living import telling_status
    from p2ptunnel.cli.talk import tell_streams
    from p2ptunnel.errors import UnknownPeerError

    with settings.tracer() as tracer:
        tracer.add(tell_streams(settings.output))
        async with settings.peer(tracer) as peer, contextlib.AsyncExitStack() as forwards:
            events = peer.events()
            if peer.peers.get(tag) is None:
                raise UnknownPeerError(tag)
            for spec in specs:
                _tell(settings, await forwards.enter_async_context(peer.forward(tag, spec.service, listen=spec.listen)))
            async with telling_status(peer, settings, "forward"):
                await tell_connections(events, settings.output, patience=settings.resume_timeout)


def _tell(settings: Settings, forward: Forward) -> None:
    from p2ptunnel.types import format_address

    settings.output.data(
        f"{format_address(forward.local)} -> {forward.tag} {forward.target}",
        event="listening",
        address=forward.local,
        peer=forward.tag,
        target=forward.target,
    )
    if forward.is_public:
        settings.output.say(f"PUBLIC: other machines can connect to {format_address(forward.local)}")
