"""`serve`: let known peers open services of this machine."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.settings import Settings

if TYPE_CHECKING:
    from p2ptunnel.identity.store import PeerStore
    from p2ptunnel.peer import Peer
    from p2ptunnel.tunnels.spec import ServeSpec
    from p2ptunnel.types import Tag

__all__ = ["command"]


@click.command(
    "serve",
    cls=Command,
    short_help="Let known peers open services of this machine.",
    examples=(
        "p2ptunnel serve ssh 8888",
        "p2ptunnel serve web=8080 db=10.0.0.5:5432 log=unix:/run/log.sock",
        "p2ptunnel serve ssh jupyter=8888 --allow laptop --allow phone=jupyter",
        "p2ptunnel serve box=ssh:10.0.0.5:22            the SSH server of another machine near this one",
        "p2ptunnel serve any --to 10.0.0.0/24:80,443 --to db.internal:5432",
        "p2ptunnel serve ssh --ask                      be asked about whoever wants it",
    ),
)
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True)
@click.option("--allow", metavar="PEER[=A,B]", multiple=True, help="Let a known peer open these, for this run only.")
@click.option("--until", metavar="TIME", help="When --allow ends: 2h, 7d, 2030-01-31, 2030-01-31T18:00.")
@click.option("--ask", is_flag=True, help="Ask here about every other known peer that wants one of these.")
@click.option("--to", metavar="NET:PORTS", multiple=True, help="What `any` reaches: 10.0.0.0/24:80,443 or db.internal:5432.")
@click.pass_obj
def command(
    settings: Settings, services: tuple[str, ...], allow: tuple[str, ...], until: str | None, ask: bool, to: tuple[str, ...]
) -> None:
    """Serve until told to end.

    SERVICE is a name and what it stands for: `ssh` (the SSH server on port 22), `8888` (that port of this machine),
    `web=8080`, `web=host:8080`, `db=unix:/path`, `box=ssh:host:22`.  `any` is whatever `--to` reaches: the peer names host
    and port, and each address that a name resolves to must be reached.

    Nobody may open anything by default: `p2ptunnel peers allow PEER SERVICE` lasts, `--allow` ends with this run.
    """
    from p2ptunnel.cli.running import run_until_stopped
    from p2ptunnel.config import parse_until
    from p2ptunnel.errors import ConfigError
    from p2ptunnel.tunnels.spec import parse_service

    if to and "any" not in services:
        raise ConfigError("--to says what the service `any` reaches, which is not served", "p2ptunnel serve any --to …")
    specs = [parse_service(f"any=any:{' '.join(to)}" if text == "any" and to else text) for text in services]
    names = [spec.name for spec in specs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{twice!r} is served twice", "Give one of them another name: other=8080.")
    if until is not None and not allow:
        hint = "p2ptunnel serve web --allow PEER --until 2h, or for a lasting grant: p2ptunnel peers allow PEER web --until 2h"
        raise ConfigError("--until says when --allow ends, and nobody is allowed", hint)
    end = None if until is None else parse_until(until, time.time())
    run_until_stopped(_serve(settings, {spec.name: spec for spec in specs}, _grants(allow, names), end, ask=ask))


def _grants(allow: tuple[str, ...], names: list[str]) -> dict[str, tuple[Tag, ...]]:
    """Return for each service the peers that --allow names."""
    from p2ptunnel.errors import ConfigError
    from p2ptunnel.types import parse_tag

    grants: dict[str, tuple[Tag, ...]] = dict.fromkeys(names, ())
    for text in allow:
        tag, equals, listed = text.partition("=")
        for name in listed.split(",") if equals else names:
            if name not in grants:
                raise ConfigError(f"--allow {text}: {name!r} is not served", f"Served are {', '.join(names)}.")
            grants[name] = (*grants[name], parse_tag(tag))
    return grants


async def _serve(
    settings: Settings,
    specs: Mapping[str, ServeSpec],
    grants: Mapping[str, tuple[Tag, ...]],
    until: datetime | None,
    *,
    ask: bool,
) -> None:
    from p2ptunnel.cli.ask import TerminalAsk
    from p2ptunnel.cli.connection import tell_connections
    from p2ptunnel.cli.living import telling_status
    from p2ptunnel.cli.talk import tell_limits, tell_streams, tell_visitors

    async with contextlib.AsyncExitStack() as stack:
        terminal = await stack.enter_async_context(TerminalAsk(settings.output)) if ask else None
        tracer = stack.enter_context(settings.tracer())
        tracer.add(tell_limits(settings.output))
        tracer.add((tell_streams if settings.verbose else tell_visitors)(settings.output))
        async with settings.peer(tracer, is_serving=True) as peer:
            events = peer.events()
            by_peers: dict[tuple[Tag, ...], dict[str, ServeSpec]] = defaultdict(dict)
            for name, spec in specs.items():
                by_peers[grants[name]][name] = spec
            for allowed, group in by_peers.items():
                await peer.serve(group, allow=allowed, until=until, ask=terminal.ask if terminal else None)
            _tell(settings, peer)
            if not ask:
                _tell_unreachable(settings, peer.peers, grants)
            async with telling_status(peer, settings, "serve"):
                await tell_connections(events, settings.output, patience=settings.resume_timeout)


def _tell(settings: Settings, peer: Peer) -> None:
    from p2ptunnel.types import format_address

    now = peer.snapshot()
    seen = format_address(now.observed) if now.observed else "no address"
    where = f"{seen} seen by {', '.join(now.rendezvous)}" if now.rendezvous else "in this network only: no server is configured"
    text = f"serving {', '.join(now.serving)} as {now.tag} ({where})"
    settings.output.data(
        text, event="serving", services=now.serving, tag=now.tag, observed=now.observed, rendezvous=now.rendezvous
    )


def _tell_unreachable(settings: Settings, store: PeerStore, grants: Mapping[str, tuple[Tag, ...]]) -> None:
    """Say which services nobody may open, since that is what a first run forgets."""
    granted = {service for peer in store.all() for service in peer.granted(time.time())}
    if idle := [name for name, tags in grants.items() if not tags and name not in granted]:
        settings.output.say(f"nobody may open {', '.join(idle)} yet: p2ptunnel peers allow PEER {' '.join(idle)}")
