"""What the shell offers on Tab: read from the profile's files, without network and without asyncio."""

from __future__ import annotations

import click

from p2ptunnel.errors import P2PTunnelError

__all__ = ["complete_tag"]


def complete_tag(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the pinned tags that begin with what is typed; none when the profile cannot be read, since Tab reports nothing."""
    from p2ptunnel.cli.settings import Settings

    try:
        peers = ctx.ensure_object(Settings).profile.peers().all()
    except P2PTunnelError:
        return []
    return [peer.tag for peer in peers if peer.tag.startswith(incomplete)]
