"""`relay`: a relay alone, for rendezvous servers on other machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.rendezvous import (
    Quota,
    addresses_of,
    counts,
    listen_option,
    public_address,
    relay_text,
    server_identity,
    tell_every,
    tls_options,
    web_of,
)
from p2ptunnel.cli.settings import Settings

if TYPE_CHECKING:
    from p2ptunnel.server.relaying import RelayServer

__all__ = ["command"]


@click.command(
    "relay",
    cls=Command,
    short_help="Run a relay alone, beside a rendezvous server elsewhere.",
    examples=(
        "p2ptunnel relay --server p2p:vr25itzwvfzlmeeqodia2floqar6cflnegyrm6ye6oojh3vfqjvq",
        "p2ptunnel relay --server p2p:vr25… --server p2p:kd4w… --relay-quota 10GiB/day",
    ),
)
@click.option("--server", metavar="KEY", multiple=True, required=True, help="The key of a rendezvous server; may be repeated.")
@listen_option("TCP")
@click.option("--relay-quota", metavar="SIZE", type=Quota(), help="Carried of one key in a day.  [default: 1GiB/day]")
@click.option("--relay-circuits", metavar="N", type=click.IntRange(min=1), help="Of one key at a time.  [default: 16]")
@tls_options
@click.option("--stats", metavar="S", type=click.FloatRange(min=1), help="Tell every S seconds how the relay stands.")
@click.pass_obj
def command(settings: Settings, /, **options: Any) -> None:
    """Carry sealed, until it is told to end, what peers of rendezvous servers elsewhere find no direct path for.

    It lets in only the two ends of a call that a server whose key is given has introduced and signed for, each of which signs
    for itself. The second line that it prints is what such a server is started with.
    """
    from p2ptunnel.cli.running import run_until_stopped

    run_until_stopped(_serve(settings, **options))


async def _serve(
    settings: Settings,
    *,
    server: tuple[str, ...],
    listen: tuple[str, ...],
    relay_quota: str | None,
    relay_circuits: int | None,
    stats: float | None,
    **tls: Any,
) -> None:
    from p2ptunnel.config import parse_quota
    from p2ptunnel.defaults import RELAY_CIRCUITS_OF_KEY, RELAY_QUOTA_BYTES
    from p2ptunnel.server.relaying import RelayServer

    written, identity = settings.config.server, server_identity(settings)
    at, also = addresses_of(listen)
    quota = relay_quota or written.relay_quota
    with settings.tracer() as tracer:
        relay = RelayServer(
            server,
            identity=identity,
            listen=at,
            listen_also=also,
            quota_bytes=parse_quota(quota) if quota else RELAY_QUOTA_BYTES,
            circuits=relay_circuits or written.relay_circuits or RELAY_CIRCUITS_OF_KEY,
            web=web_of(at, also, **tls),
            tracer=tracer,
        )
        async with relay:
            _announce(settings, relay, str(identity.public))
            try:
                await tell_every(stats, lambda: _tell(settings, relay))
            finally:
                _tell(settings, relay)


def _announce(settings: Settings, relay: RelayServer, key: str) -> None:
    """Say where the relay is, and the line by which a rendezvous server names it."""
    from p2ptunnel.types import format_address

    line = f"{public_address(relay.address)}#{key}"
    also = f", and on {format_address(relay.web_address)}, TLS" if relay.web_address else ""
    where = " and ".join(map(format_address, relay.addresses))
    text = f"relay on {where}, TCP{also}\nfor its rendezvous server: --relay '{line}'"
    tls = relay.web_address
    facts = {"address": relay.address, "addresses": relay.addresses, "tls_address": tls, "key": key, "spec": line}
    settings.output.data(text, event="listening", **facts)


def _tell(settings: Settings, relay: RelayServer) -> None:
    """Say how the relay stands."""
    import msgspec

    stats = relay.stats
    if settings.output.as_json:
        settings.output.data("", event="stats", **msgspec.to_builtins(stats))
    else:
        settings.output.say(f"TCP {stats.connections}; dropped: {counts(stats.dropped)}; {relay_text(stats.relay)}")
