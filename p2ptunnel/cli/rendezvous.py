"""`rendezvous`: the server that introduces peers to each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.settings import Settings

if TYPE_CHECKING:
    from p2ptunnel.types import Address

__all__ = ["command"]

_EVERYWHERE: Final = "0.0.0.0"  # noqa: S104  # a server is there to be reached


@click.command(
    "rendezvous",
    cls=Command,
    short_help="Run the server that introduces peers.",
    examples=(
        "p2ptunnel rendezvous",
        "p2ptunnel rendezvous --listen 192.0.2.7:7000 --alt-listen 192.0.2.7:7001 --alt-listen 192.0.2.8:7000",
        "p2ptunnel rendezvous --listen [2001:db8::7]:7000",
    ),
)
@click.option("--listen", metavar="[HOST]:PORT", default=":7000", show_default=True, help="UDP and TCP; port 0 picks one.")
@click.option("--alt-listen", metavar="HOST:PORT", multiple=True, help="Where else to answer, so that peers learn their NAT.")
@click.option("--compat", type=click.Choice(["seed"]), help="Also serve programs of the founding protocol; weakens limits.")
@click.pass_obj
def command(settings: Settings, listen: str, alt_listen: tuple[str, ...], compat: str | None) -> None:
    """Run a rendezvous server until it is told to end.

    It introduces peers by their tags and sees no byte of what they say to each other. Both peers need to reach it over UDP.
    """
    from p2ptunnel.cli.running import run_until_stopped

    options: dict[str, Any] = {"alt_listen": [_address(text) for text in alt_listen], "compat_seed": compat == "seed"}
    run_until_stopped(_serve(settings, _address(listen), options))


async def _serve(settings: Settings, listen: Address, options: dict[str, Any]) -> None:
    import asyncio

    from p2ptunnel.server import Rendezvous
    from p2ptunnel.types import format_address

    with settings.tracer() as tracer:
        async with Rendezvous(listen, tracer=tracer, **options) as server:
            address = format_address(server.address)
            settings.output.data(f"rendezvous server on {address}, UDP and TCP", event="listening", address=server.address)
            await asyncio.Event().wait()


def _address(text: str) -> Address:
    from p2ptunnel.defaults import RENDEZVOUS_PORT
    from p2ptunnel.types import parse_address

    return parse_address(f"{_EVERYWHERE}{text}" if text.startswith(":") else text, default_port=RENDEZVOUS_PORT)
