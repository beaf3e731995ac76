"""`status`: who this machine is, whether its servers answer, which peers it knows, and how those stand that it talks to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click
import msgspec

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.output import in_words
from p2ptunnel.cli.settings import Settings
from p2ptunnel.cli.table import table
from p2ptunnel.defaults import WEB_PORT

if TYPE_CHECKING:
    from p2ptunnel.cli.living import Connection, Program
    from p2ptunnel.identity.store import PinnedPeer
    from p2ptunnel.traversal.netreport import WebReport
    from p2ptunnel.types import Address

__all__ = ["ServerStatus", "command"]

_TIMEOUT: Final = 2.0  # seconds; a person waits
_DOWN: Final = 3


class ServerStatus(msgspec.Struct, frozen=True):
    """One rendezvous server: round trip in seconds and the address it sees us at, or why it does not answer.

    Attributes:
        web: How it is reached on port 443; None: it answers over TCP on its own port, or nowhere.
        verdict: What that means, as `netcheck` says it; empty where it does not answer.
    """

    server: str
    rtt: float | None = None
    observed: Address | None = None
    problem: str = ""
    web: WebReport | None = None
    verdict: str = ""


@click.command(
    "status",
    cls=Command,
    short_help="Show this machine, its servers and the peers it knows.",
    examples=("p2ptunnel status", "p2ptunnel --json status", "p2ptunnel status --check"),
)
@click.option("--check", is_flag=True, help="End with 3 if no server answers that has the key given for it.")
@click.pass_obj
def command(settings: Settings, check: bool) -> int:
    """Show this machine's tag and key, its rendezvous servers, the peers it knows, and the connections of running programs.

    Without a configured server nothing is sent.
    """
    from p2ptunnel.cli.living import living

    servers = _ask_servers(settings) if settings.rendezvous else []
    key, peers = settings.profile.identity().public, settings.profile.peers().all()
    directory, programs = settings.profile.directory, living(settings.profile.directory)
    settings.output.data(
        "\n".join((_text(settings.tag, str(key), str(directory), servers, peers), *_connections(programs))),
        self={"tag": settings.tag, "key": str(key), "profile": str(directory)},
        rendezvous=msgspec.to_builtins(servers),
        peers=[{"tag": peer.tag, "key": str(peer.key), "services": peer.granted(time.time())} for peer in peers],
        programs=msgspec.to_builtins(programs),
    )
    return _DOWN if check and not any(server.rtt is not None for server in servers) else 0


def _ask_servers(settings: Settings) -> list[ServerStatus]:
    from p2ptunnel.cli.running import run

    answers = run(_ask_all(settings))
    if isinstance(answers, int):
        raise click.exceptions.Exit(answers)
    return answers


async def _ask_all(settings: Settings) -> list[ServerStatus]:
    import asyncio

    return await asyncio.gather(*(_ask(settings, server) for server in settings.rendezvous))


async def _ask(settings: Settings, server: str) -> ServerStatus:
    from p2ptunnel.defaults import RENDEZVOUS_PORT
    from p2ptunnel.errors import P2PTunnelError
    from p2ptunnel.peer import Peer
    from p2ptunnel.types import format_address, parse_server

    name = format_address(parse_server(server, default_port=RENDEZVOUS_PORT).address)  # without the token behind it
    try:
        async with Peer(settings.tag, rendezvous=server, profile=settings.profile, lan=False, port_mapping=False) as peer:
            report = await peer.netcheck(timeout=settings.timeout or _TIMEOUT, brief=True)
    except P2PTunnelError as error:
        return ServerStatus(name, problem=str(error))
    web = report.web if report.through_web else None
    observed = report.udp.observed or report.tcp.observed or (None if web is None else web.observed)
    return ServerStatus(name, report.rtt, observed, web=web, verdict=report.verdict)


def _text(tag: str | None, key: str, directory: str, servers: list[ServerStatus], peers: tuple[PinnedPeer, ...]) -> str:
    lines = [f"self    {tag or '(no tag)'}  {key}  {directory}"]
    lines += [f"server  {_server(server)}" for server in servers] or ["server  none configured"]
    if not peers:
        return "\n".join((*lines, "No peer is known yet: p2ptunnel pair"))
    rows = [(peer.tag, str(peer.key), ", ".join(peer.granted(time.time())) or "-") for peer in peers]
    return "\n".join((*lines, table(("PEER", "KEY", "MAY OPEN"), rows)))


def _connections(programs: list[Program]) -> list[str]:
    """Return a table of what the running programs are connected to; nothing without one."""
    rows = [
        (f"{program.command} ({program.pid})", *_connection(connection))
        for program in programs
        for connection in program.connections
    ]
    return [table(("PROGRAM", "PEER", "STATE", "PATH", "RTT", "LOSS", "STREAMS", "RESUMES"), rows)] if rows else []


def _connection(connection: Connection) -> tuple[str, ...]:
    path, since = connection.path, connection.suspended_for
    where = "-" if path is None else f"{path.kind} {path.transport} {path.place}"
    rtt = "-" if path is None or path.rtt is None else f"{path.rtt * 1000:.0f} ms"
    loss = "-" if path is None or path.loss is None else f"{path.loss:.1%}"
    state = connection.state if since is None else f"{connection.state} for {since:.0f} s"
    return connection.peer, state, where, rtt, loss, str(connection.streams), str(connection.resumes)


def _server(status: ServerStatus) -> str:
    from p2ptunnel.types import format_address

    if status.rtt is None or status.observed is None:
        return f"{status.server}  {in_words(status.problem).removeprefix(f'{status.server} ') or 'no answer'}"
    through = "" if status.web is None else f" through TCP port {WEB_PORT} ({status.web.words})"
    line = f"{status.server}  up, {status.rtt * 1000:.0f} ms{through}, sees us at {format_address(status.observed)}"
    return line if status.web is None else f"{line}\n{'':8}{status.verdict}"
