"""`netcheck`: what this network does to packets, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.settings import Settings

if TYPE_CHECKING:
    from p2ptunnel.traversal.netcheck import NetReport, TransportReport

__all__ = ["command"]


@click.command(
    "netcheck",
    cls=Command,
    short_help="Find out what this network does to connections.",
    examples=("p2ptunnel netcheck", "p2ptunnel --json netcheck"),
)
@click.pass_obj
def command(settings: Settings) -> int:
    """Find out how this machine's NAT treats connections; the last line is the verdict.

    Two machines connect directly if at least one of their NATs behaves; run it on both.
    """
    from p2ptunnel.cli.running import run

    return run(_netcheck(settings)) or 0


async def _netcheck(settings: Settings) -> None:
    import msgspec

    with settings.tracer() as tracer:
        async with settings.peer(tracer) as peer:
            report = await peer.netcheck(**({} if settings.timeout is None else {"timeout": settings.timeout}))
    settings.output.data(_text(report), **msgspec.to_builtins(report, str_keys=True))


def _text(report: NetReport) -> str:
    from p2ptunnel.types import format_address

    rtt = "" if report.rtt is None else f" ({report.rtt * 1000:.0f} ms)"
    facts = {
        "server": f"{format_address(report.server)}{rtt}, {report.observers} of its addresses answered",
        "this machine": f"{format_address(report.local)}, {_yes_no(report.behind_nat, 'behind a NAT', 'no NAT')}",
        "UDP": _transport(report.udp),
        "TCP": _transport(report.tcp),
        "same port for both": _yes_no(report.tcp_port_equals_udp, "yes", "no"),
        "router": report.router or "not asked",
        "hops to leave our NATs": "not known" if report.opener_ttl is None else str(report.opener_ttl),
    }
    return "\n".join((*(f"{name + ':':<24}{value}" for name, value in facts.items()), report.verdict))


def _transport(report: TransportReport) -> str:
    from p2ptunnel.types import format_address

    if not report.works or report.observed is None:
        return "no answer"
    port = _yes_no(report.port_preserved, "keeps the port", "changes the port")
    return f"seen as {format_address(report.observed)}, mapping {report.mapping}, {port}"


def _yes_no(fact: bool | None, yes: str, no: str) -> str:
    return "not known" if fact is None else yes if fact else no
