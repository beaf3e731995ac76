"""`explain`: every way to a peer that is tried, when, how it ended, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.complete import complete_tag
from p2ptunnel.cli.settings import Settings

if TYPE_CHECKING:
    from p2ptunnel.traversal.explain import Explanation

__all__ = ["command"]

_NOT_CONNECTED: Final = 4
"""As for every failure that trying again may mend."""


@click.command(
    "explain",
    cls=Command,
    short_help="Try every way to a peer, and tell how each one went.",
    examples=(
        "p2ptunnel explain home-nas",
        "p2ptunnel explain home-nas --svg home-nas.svg",
        "p2ptunnel --json explain home-nas",
    ),
)
@click.argument("tag", shell_complete=complete_tag)
@click.option("--svg", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Also draw it into a file.")
@click.pass_obj
def command(settings: Settings, tag: str, svg: Path | None) -> int:
    """Make an attempt to reach the peer TAG, and tell what was tried, when, and how it ended; no service is opened.

    Ends with 4 if nothing came up.
    """
    from p2ptunnel.cli.running import run

    return run(_explain(settings, tag, svg))


async def _explain(settings: Settings, tag: str, svg: Path | None) -> int:
    import msgspec

    from p2ptunnel.cli.talk import Waiting
    from p2ptunnel.defaults import CONNECT_TIMEOUT

    with settings.tracer() as tracer:
        async with settings.peer(tracer) as peer:
            timeout = settings.timeout or CONNECT_TIMEOUT
            with Waiting(settings.output, f"trying every way to {tag}, {timeout:g} s at most"):
                explanation = await peer.explain(tag, timeout=timeout)
    if svg is not None:
        _write(svg, explanation)
    settings.output.data(str(explanation), verdict=explanation.verdict, **msgspec.to_builtins(explanation))
    return 0 if explanation.path is not None else _NOT_CONNECTED


def _write(file: Path, explanation: Explanation) -> None:
    from p2ptunnel.errors import ConfigError

    try:
        file.write_text(explanation.svg(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}", "Name another file.") from error
