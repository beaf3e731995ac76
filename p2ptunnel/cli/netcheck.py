"""`netcheck`: what this network does to packets, and what follows from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.settings import Duration, Settings
from p2ptunnel.cli.table import table
from p2ptunnel.defaults import WEB_PORT

if TYPE_CHECKING:
    from p2ptunnel.traversal.netreport import Lifetime, NetReport, TransportReport, WebReport

__all__ = ["command"]

_TIMEOUT: Final = 5.0
_MS: Final = 1000
_STRANGERS: Final = {
    "accept": "gets in",
    "drop": "gets no answer",
    "reset": "is refused by RST",
    "unknown": "not known",
}
_CARRIERS: Final = {"tcp": "TCP", "quic": "QUIC", "relay": "relay", "none": "nothing"}


@click.command(
    "netcheck",
    cls=Command,
    short_help="Find out what this network does to connections.",
    examples=(
        "p2ptunnel netcheck",
        "p2ptunnel --json netcheck",
        "p2ptunnel netcheck --watch 2m",
        "p2ptunnel --json netcheck | jq -r '.expectations[] | [.kind, .carrier] | @tsv'",
    ),
)
@click.option("--brief", is_flag=True, help="Only how this machine looks from outside.")
@click.option("--watch", metavar="TIME", type=Duration(), help="Also find out how long the NAT remembers a silent port: 2m.")
@click.pass_obj
def command(settings: Settings, brief: bool, watch: str | None) -> int:
    """Find out how this machine's NAT treats connections, and what to expect of peers; the last line is the verdict.

    Takes two seconds, everything being asked at once; about five where UDP is blocked, or the router says nothing.
    Two machines connect directly if at least one of their NATs behaves; run it on both. How much
    it finds out depends on the server: give it a second port and a second address.
    """
    from p2ptunnel.cli.running import run

    return run(_netcheck(settings, brief, watch)) or 0


async def _netcheck(settings: Settings, brief: bool, watch: str | None) -> None:
    import msgspec

    from p2ptunnel.config import parse_duration

    seconds = 0.0 if watch is None else parse_duration(watch)
    with settings.tracer() as tracer:
        async with settings.peer(tracer) as peer:
            report = await peer.netcheck(timeout=settings.timeout or _TIMEOUT, brief=brief, watch=seconds)
    settings.output.data(_text(report), **msgspec.to_builtins(report, str_keys=True))


def _text(report: NetReport) -> str:
    tables = [_facts(report), _transports(report), *([_expectations(report)] if report.expectations else [])]
    last = [*(f"better: {each}" for each in report.improve), report.verdict]
    return "\n\n".join((*tables, "\n".join(last)))


def _facts(report: NetReport) -> str:
    from p2ptunnel.types import format_address

    facts = {
        "server": f"{format_address(report.server)}, {_rtt(report.rtt)}, {_reached(report)}",
        "this machine": f"{format_address(report.local)}, {_yes_no(report.behind_nat, 'behind a NAT', 'no NAT')}",
        "another NAT above": _because(_yes_no(report.double_nat), report.double_nat_why),
        "simultaneous open": _yes_no(report.simultaneous_open, "gets through", "is refused"),
        "a stranger's SYN": _STRANGERS[report.strangers],
        "same port for both": _yes_no(report.tcp_port_equals_udp),
        "hops to leave our NATs": "not known" if report.opener_ttl is None else str(report.opener_ttl),
        "a SYN may die there": _yes_no(report.can_open_low, "yes", "no, this system does not let it"),
        "router": "not asked, or silent" if report.port_mapping is None else report.port_mapping.text,
        "IPv4, IPv6": f"{_rtt(report.ipv4)}, {_rtt(report.ipv6)}{' (this machine has it)' if report.has_ipv6 else ''}",
        **({} if report.udp_lifetime is None else {"silent ports": _lifetime(report.udp_lifetime)}),
        "largest packet": "not known" if report.mtu is None else f"{report.mtu} bytes",
        "open files": "no limit" if report.descriptors is None else f"{report.descriptors} at most",
    }
    return "\n".join(f"{name + ':':<24}{value}" for name, value in facts.items())


def _transports(report: NetReport) -> str:
    rows = [(name, *_transport(way)) for name, way in (("UDP", report.udp), ("TCP", report.tcp))]
    if report.web is not None:
        rows.append((str(WEB_PORT), *_web(report.web)))
    return table(("OVER", "SEEN AS", "MAPPING", "FILTERING", "SAME PORT", "HAIRPIN"), rows)


def _transport(report: TransportReport) -> tuple[str, str, str, str, str]:
    from p2ptunnel.types import format_address

    if not report.works or report.observed is None:
        return (_because("no answer", report.problem), "-", "-", "-", "-")
    filtering = "not known" if report.filtering == "unknown" else report.filtering
    seen, same = format_address(report.observed), _yes_no(report.port_preserved)
    return seen, report.mapping, filtering, same, _yes_no(report.hairpin)


def _web(report: WebReport) -> tuple[str, str, str, str, str]:
    from p2ptunnel.types import format_address

    if report.observed is None:
        return (_because("no answer", report.problem), "-", "-", "-", "-")
    return (f"{format_address(report.observed)}, {report.words}", "-", "-", "-", "-")


def _reached(report: NetReport) -> str:
    if by := report.through_web:
        return f"through TCP port {WEB_PORT} ({by})" + (", and over UDP" if report.udp.works else "")
    return f"{report.observers} of its addresses answered"


def _expectations(report: NetReport) -> str:
    rows = [(each.kind, _CARRIERS[each.carrier], each.how, each.words) for each in report.expectations]
    return table(("PEER", "EXPECT", "BY", "WHOSE NAT"), rows)


def _lifetime(seen: Lifetime) -> str:
    from p2ptunnel.types import format_duration

    if seen.below is None:
        return f"are remembered for {format_duration(seen.at_least)} and more"
    return f"are remembered for {format_duration(seen.at_least)} to {format_duration(seen.below)}"


def _rtt(seconds: float | None) -> str:
    return "not reached" if seconds is None else f"{seconds * _MS:.0f} ms"


def _because(fact: str, why: str) -> str:
    return f"{fact}: {why}" if why else fact


def _yes_no(fact: bool | None, yes: str = "yes", no: str = "no") -> str:
    return "not known" if fact is None else yes if fact else no
