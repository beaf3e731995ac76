"""`rendezvous`: the server that introduces peers, and what its operator may do with its tags."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from p2ptunnel.cli.commands import Group
from p2ptunnel.cli.settings import Settings
from p2ptunnel.cli.table import table
from p2ptunnel.errors import ConfigError

if TYPE_CHECKING:
    from p2ptunnel.cli.output import Output
    from p2ptunnel.identity.keys import Identity
    from p2ptunnel.protocol.tags import TagRecord
    from p2ptunnel.server import Rendezvous
    from p2ptunnel.server.registry import SqliteTags
    from p2ptunnel.server.rendezvous import RelayStats
    from p2ptunnel.server.web import Web
    from p2ptunnel.trace import Sink, TraceEvent
    from p2ptunnel.types import Address

__all__ = [
    "Quota",
    "addresses_of",
    "command",
    "counts",
    "listen_option",
    "public_address",
    "relay_text",
    "server_identity",
    "tell_every",
    "tls_options",
    "web_of",
]

_F = TypeVar("_F", bound=Callable[..., Any])

_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104  # a server is there to be reached
_DIRECTORY: Final = "server"
_TAGS: Final = "tags.sqlite"
_HERE: Final = "here"


class Quota(click.ParamType[str]):
    """A quota, as it was written."""

    name = "quota"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what is none."""
        from p2ptunnel.config import parse_quota

        try:
            parse_quota(value)
        except ConfigError as error:
            self.fail(f"{error}. {error.hint}", param, ctx)
        return str(value)


def listen_option(transports: str) -> Callable[[_F], _F]:
    """Give a command the option that says where to serve."""
    return click.option(
        "--listen",
        metavar="[HOST]:PORT",
        multiple=True,
        default=(":7000",),
        show_default=True,
        help=f"{transports}; without a host over IPv4 and IPv6, else up to one address of each; port 0 picks one.",
    )


def tls_options(command: _F) -> _F:
    """Give a command the options of a TLS port."""
    of_cert = "PEM; without one, the server's own key shows who it is."
    command = click.option("--tls-key", metavar="FILE", help="The certificate's key, where it is not in the same file.")(
        command
    )
    command = click.option("--tls-cert", metavar="FILE", help=f"A certificate chain of the web's for it, {of_cert}")(command)
    return click.option(
        "--tls-port",
        metavar="PORT",
        type=click.IntRange(0, 65535),
        help="Serve TCP inside TLS and WebSocket as well, best on 443, for networks that let nothing else out.",
    )(command)


@click.group(
    "rendezvous",
    cls=Group,
    invoke_without_command=True,
    short_help="Run the server that introduces peers.",
    examples=(
        "p2ptunnel rendezvous",
        "p2ptunnel rendezvous --listen 192.0.2.7:7000 --alt-listen 192.0.2.7:7001 --alt-listen 192.0.2.8:7000",
        "p2ptunnel rendezvous --listen 192.0.2.7:7000 --listen [2001:db8::7]:7000",
        "p2ptunnel rendezvous --join-token-file join.token",
        "p2ptunnel rendezvous --relay-quota 10GiB/day",
        "p2ptunnel rendezvous --relay relay.example:7000#p2p:kd4w…",
        "p2ptunnel rendezvous --tls-port 443",
        "p2ptunnel rendezvous tags list",
    ),
)
@listen_option("UDP and TCP")
@click.option("--alt-listen", metavar="HOST:PORT", multiple=True, help="Where else to answer, so that peers learn their NAT.")
@click.option("--compat", type=click.Choice(["seed"]), help="Also serve programs of the founding protocol; weakens limits.")
@click.option(
    "--registry", type=click.Choice(["sqlite", "memory"]), default="sqlite", show_default=True, help="Where tags are kept."
)
@click.option("--join-token-file", metavar="FILE", help="Serve only who knows the token in it; made if it is missing.")
@click.option("--allow-keys", metavar="FILE", help="Serve only these public keys, one a line.")
@click.option(
    "--relay",
    metavar="[HOST:PORT#KEY]",
    multiple=True,
    is_flag=False,
    flag_value=_HERE,
    help="Also carry what peers find no direct path for, as it does by default; or have that relay do so, or several.",
)
@click.option("--no-relay", is_flag=True, help="Introduce peers only.")
@click.option("--relay-quota", metavar="SIZE", type=Quota(), help="Carried of one key in a day.  [default: 1GiB/day]")
@click.option("--relay-circuits", metavar="N", type=click.IntRange(min=1), help="Of one key at a time.  [default: 16]")
@tls_options
@click.option("--stats", metavar="S", type=click.FloatRange(min=1), help="Tell every S seconds how the server stands.")
@click.pass_context
def command(context: click.Context, /, **options: Any) -> None:
    """Run a rendezvous server until it is told to end.

    It introduces peers by their tags, and carries sealed what finds no direct path. It sees no byte of what they say to each
    other. Peers need to reach it over UDP and TCP.
    The second line that it prints is what they put into their configuration: with its key, no other server can pass for it.
    """
    if context.invoked_subcommand is None:
        from p2ptunnel.cli.running import run_until_stopped

        run_until_stopped(_serve(context.find_object(Settings) or Settings(), **options))


@command.group(
    "tags", cls=Group, short_help="Who owns which tag at this server.", examples=("p2ptunnel rendezvous tags free old-nas",)
)
def tags() -> None:
    """Look at the tags that keys own here, and free them.

    The first key that registers a tag owns it until it has not been seen for 30 days.
    """


@tags.command("list", short_help="List the tags, and who owns each.", examples=("p2ptunnel rendezvous tags list",))
@click.pass_obj
def list_tags(settings: Settings) -> None:
    """List the tags that are owned, the longest unseen first.

    Not those under which machines wait for others to pair with; with --json these, too.
    """
    from p2ptunnel.types import paired_tag

    with _tags(settings) as store:
        records = store.records()
    if settings.output.as_json:
        for record in records:
            facts = {"tag": record.tag, "key": record.key, "seen_at": _seen(record), "address": record.address}
            settings.output.data("", event="tag", **facts)
        return
    if shown := [record for record in records if not paired_tag(record.tag)]:
        rows = [(record.tag, record.key, _seen(record), _where(record)) for record in shown]
        settings.output.data(table(("TAG", "KEY", "SEEN", "AT"), rows))
    else:
        settings.output.say("No key owns a tag here")


def _seen(record: TagRecord) -> str:
    import datetime

    return datetime.datetime.fromtimestamp(record.seen_at, datetime.UTC).isoformat(timespec="minutes")


def _where(record: TagRecord) -> str:
    from p2ptunnel.types import format_address

    return format_address(record.address) if record.address else "offline"


@tags.command(
    "free",
    short_help="Free a tag: the next key that registers it owns it.",
    examples=("p2ptunnel rendezvous tags free old-nas",),
)
@click.argument("tag")
@click.pass_obj
def free_tag(settings: Settings, tag: str) -> None:
    """Let another key have TAG, and pair under it; a server that runs hears of it within seconds.

    Stop the machine that has it first: it takes its tag again as soon as it registers.
    """
    from p2ptunnel.types import pairing_tag, parse_tag

    with _tags(settings) as store:
        freed = [store.free(owned) for owned in (parse_tag(tag), pairing_tag(tag))]
    if not any(freed):
        raise ConfigError(f"nobody owns the tag {tag!r} here", "p2ptunnel rendezvous tags list")
    settings.output.data(f"{tag} is free", event="freed", tag=tag)


@contextlib.contextmanager
def _tags(settings: Settings) -> Generator[SqliteTags]:
    store = _store(settings)
    try:
        yield store
    finally:
        store.close()


def _store(settings: Settings) -> SqliteTags:
    from p2ptunnel.server.registry import SqliteTags

    return SqliteTags(settings.profile.directory / _DIRECTORY / _TAGS)


async def _serve(
    settings: Settings,
    *,
    listen: tuple[str, ...],
    alt_listen: tuple[str, ...],
    compat: str | None,
    registry: str,
    join_token_file: str | None,
    allow_keys: str | None,
    relay: tuple[str, ...],
    no_relay: bool,
    relay_quota: str | None,
    relay_circuits: int | None,
    stats: float | None,
    **tls: Any,
) -> None:
    from p2ptunnel.config import parse_quota
    from p2ptunnel.defaults import RELAY_CIRCUITS_OF_KEY, RELAY_QUOTA_BYTES
    from p2ptunnel.server import Rendezvous
    from p2ptunnel.server.members import KeyList, join_token

    identity = server_identity(settings)
    at, also = addresses_of(listen)
    token = join_token(Path(join_token_file)) if join_token_file else ""
    written = settings.config.server
    quota = relay_quota or written.relay_quota
    elsewhere = tuple(text for text in relay if text != _HERE)
    with settings.tracer() as tracer:
        tracer.add(_tell_members(settings.output))
        members = KeyList(Path(allow_keys), tracer) if allow_keys else None
        server = Rendezvous(
            at,
            listen_also=also,
            alt_listen=[address_of(text) for text in alt_listen],
            compat_seed=compat == "seed",
            identity=identity,
            store=_store(settings) if registry == "sqlite" else None,
            join_token=token,
            members=members,
            relay=not no_relay and (written.relay or bool(relay)),
            relays=() if no_relay else elsewhere or (() if relay else written.relays),
            relay_quota_bytes=parse_quota(quota) if quota else RELAY_QUOTA_BYTES,
            relay_circuits=relay_circuits or written.relay_circuits or RELAY_CIRCUITS_OF_KEY,
            web=web_of(at, also, **tls),
            tracer=tracer,
        )
        async with server:
            _announce(settings, server, str(identity.public), token)
            try:
                await tell_every(stats, lambda: _tell(settings, server))
            finally:
                _tell(settings, server)


def web_of(
    listen: Address, also: Address | None, *, tls_port: int | None, tls_cert: str | None, tls_key: str | None
) -> Web | None:
    """Return where to serve inside TLS, None: nowhere; at the same hosts as without.

    Raises:
        ConfigError: There is a certificate and no port for it, or a key and no certificate.
    """
    from p2ptunnel.server.web import Web

    if (tls_cert and tls_port is None) or (tls_key and not tls_cert):
        raise ConfigError("part of what TLS needs is missing", "--tls-port 443 --tls-cert FILE [--tls-key FILE]")
    if tls_port is None:
        return None
    beside = None if also is None else (also[0], tls_port)
    return Web((listen[0], tls_port), tls_cert or "", tls_key or "", beside)


def server_identity(settings: Settings) -> Identity:
    """Return the key of the servers of this profile, made on the first start of one."""
    from p2ptunnel.identity.store import Profile

    return Profile(settings.profile.directory / _DIRECTORY).identity()


def _tell_members(output: Output) -> Sink:
    """Return a sink that says when the list of members cannot be read, and when it can again."""

    def tell(event: TraceEvent) -> None:
        if event.layer == "members":
            is_lost = event.name == "unreadable"
            output.say(f"{event.facts['reason']}; the list holds as it was" if is_lost else "the list of members is read again")

    return tell


async def tell_every(seconds: float | None, tell: Callable[[], None]) -> None:
    """Say every so many seconds, None: never, how a server stands; ends with the program."""
    import asyncio

    if seconds is None:
        await asyncio.Event().wait()
        return
    while True:
        await asyncio.sleep(seconds)
        tell()


def _announce(settings: Settings, server: Rendezvous, key: str, token: str) -> None:
    """Say where the server is, and the line that peers configure: the one place that shows the token."""
    from p2ptunnel.types import format_address

    line = f"{public_address(server.address)}#{key}{f'#join:{token}' if token else ''}"
    also = f", and on {format_address(server.web_address)}, TLS" if server.web_address else ""
    where = " and ".join(map(format_address, server.addresses))
    text = f"rendezvous server on {where}, UDP and TCP{also}\nfor its peers: --rendezvous '{line}'"
    tls = server.web_address
    facts = {"address": server.address, "addresses": server.addresses, "tls_address": tls, "key": key, "spec": line}
    settings.output.data(text, event="listening", **facts)


def public_address(address: Address) -> str:
    """Return where others reach a server, as text; what it is called outside, only its operator knows."""
    from p2ptunnel.types import format_address

    return format_address(("HOST" if address[0] in _EVERYWHERE else address[0], address[1]))


def _tell(settings: Settings, server: Rendezvous) -> None:
    """Say how the server stands."""
    import msgspec

    stats = server.stats
    text = (
        f"online {stats.online}, tags {stats.tags}, introducing {stats.attempts}, TCP {stats.connections}, "
        f"UDP received {stats.received} sent {stats.sent}; dropped: {counts(stats.dropped)}"
    )
    if stats.relay is not None:
        text += f"; relay: {relay_text(stats.relay)}"
    if stats.members:
        text += f"; members as they were: {stats.members}"
    if settings.output.as_json:
        settings.output.data("", event="stats", **msgspec.to_builtins(stats))
    else:
        settings.output.say(text)


def relay_text(stats: RelayStats) -> str:
    """Return how a relay stands, in words."""
    return (
        f"circuits {stats.circuits}, carried {stats.carried_bytes} bytes, "
        f"refused: {counts(stats.refused)}; ended: {counts(stats.ended)}"
    )


def counts(by_reason: dict[str, int]) -> str:
    """Return counts in words."""
    return ", ".join(f"{why} {count}" for why, count in sorted(by_reason.items())) or "nothing"


def address_of(text: str) -> Address:
    """Return where to listen, as `--alt-listen` has it: everywhere over IPv4, if there is no host."""
    from p2ptunnel.defaults import RENDEZVOUS_PORT
    from p2ptunnel.types import parse_address

    return parse_address(f"{_EVERYWHERE[0]}{text}" if _has_no_host(text) else text, default_port=RENDEZVOUS_PORT)


def addresses_of(listen: tuple[str, ...]) -> tuple[Address, Address | None]:
    """Return where to listen, as `--listen` has it, and where else over the other family: everywhere, if there is no host.

    Raises:
        ConfigError: There are two addresses of one family.
        InvalidAddressError: One is none.
    """
    from p2ptunnel.server.listening import everywhere, families_refusal

    found = [
        address
        for text in listen
        for address in (everywhere(address_of(text)[1]) if _has_no_host(text) else (address_of(text),))
    ]
    if refusal := families_refusal(found):
        raise ConfigError(refusal, "One of each family: --listen 192.0.2.7:7000 --listen [2001:db8::7]:7000")
    first, *also = found
    return first, also[0] if also else None


def _has_no_host(text: str) -> bool:
    return text.startswith(":") and not text.startswith("::")
