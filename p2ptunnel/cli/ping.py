"""`ping`: round trips to a peer, and over which path each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.complete import complete_tag
from p2ptunnel.cli.settings import Settings

if TYPE_CHECKING:
    from p2ptunnel.cli.output import Output
    from p2ptunnel.session.ping import PingReport, Pong
    from p2ptunnel.types import Path

__all__ = ["command"]

_MS: Final = 1000
_COUNT: Final = 4
_NO_ANSWER: Final = 1


@click.command(
    "ping",
    cls=Command,
    short_help="Measure round trips to a peer, and tell over which path.",
    examples=(
        "p2ptunnel ping home-nas",
        "p2ptunnel ping home-nas -c 10",
        "p2ptunnel ping home-nas --until-direct --timeout 60 && rsync ...",
    ),
)
@click.argument("tag", shell_complete=complete_tag)
@click.option("--count", "-c", metavar="N", type=click.IntRange(min=1), default=_COUNT, help="How many. [default: 4]")
@click.option("--until-direct", is_flag=True, help="End as soon as the connection needs no relay; --timeout S [default: 30].")
@click.pass_obj
def command(settings: Settings, tag: str, count: int, until_direct: bool) -> int:
    """Measure round trips to the peer TAG, a second apart, inside the connection that all else uses.

    Goes on where an answer is lost. Ends with 1 if nobody answered or the connection ended; with --until-direct if it was not
    direct in time.
    """
    from p2ptunnel.cli.running import run

    return run(_ping(settings, tag, count, until_direct))


async def _ping(settings: Settings, tag: str, count: int, until_direct: bool) -> int:
    import asyncio

    from p2ptunnel.cli.talk import Waiting
    from p2ptunnel.defaults import PING_TIMEOUT
    from p2ptunnel.session.ping import PingReport

    output = settings.output
    pongs: list[Pong] = []

    def tell(pong: Pong) -> None:
        pongs.append(pong)
        waiting.end()
        output.data(_line(tag, pong), event="pong", peer=tag, **_facts(pong))

    with settings.tracer() as tracer:
        async with settings.peer(tracer) as peer:
            timeout = settings.timeout or PING_TIMEOUT
            with Waiting(output, f"waiting for a connection to {tag}, {timeout:g} s at most") as waiting:
                try:
                    report = await peer.ping(tag, count=count, until_direct=until_direct, timeout=timeout, tell=tell)
                except asyncio.CancelledError:  # Ctrl-C
                    if pongs:
                        _sum_up(output, PingReport(tag, tuple(pongs)))
                    raise
    _sum_up(output, report)
    if report.error:
        output.say(f"the connection ended: {report.error}")
        return _NO_ANSWER
    if until_direct and not report.is_direct:
        output.say(f"still not direct after {timeout:g} s: p2ptunnel explain {tag}")
    return 0 if (report.is_direct if until_direct else report.rtts) else _NO_ANSWER


def _facts(pong: Pong) -> dict[str, object]:
    import msgspec

    facts: dict[str, object] = msgspec.to_builtins(pong)
    return facts


def _line(tag: str, pong: Pong) -> str:
    if pong.rtt is None or pong.path is None:
        return f"{tag}: {pong.number}: no answer"
    moved = f", moved there from {_where(pong.moved_from)}" if pong.moved_from is not None else ""
    return f"{tag}: {pong.number}: {pong.rtt * _MS:.1f} ms over {_where(pong.path)}{moved}"


def _where(path: Path) -> str:
    return f"{path.kind} {path.transport} {path.place}"


def _sum_up(output: Output, report: PingReport) -> None:
    rtts = [rtt * _MS for rtt in report.rtts]
    spread = f"; {min(rtts):.1f}, {sum(rtts) / len(rtts):.1f}, {max(rtts):.1f} ms at least, on average, at most" if rtts else ""
    output.data(
        f"{report.tag}: {len(rtts)} of {len(report.pongs)} answered{spread}",
        event="summary",
        peer=report.tag,
        asked=len(report.pongs),
        answered=len(rtts),
        rtts=report.rtts,
        is_direct=report.is_direct,
    )
