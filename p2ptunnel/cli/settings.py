"""The global flags, before or after the command, and what they come to together with the environment and config.toml.

Precedence: flag, then `P2PTUNNEL_*`, then config.toml, then the default; of two flags the one nearer to the end.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from p2ptunnel.cli.output import Output
from p2ptunnel.errors import ConfigError

if TYPE_CHECKING:
    from p2ptunnel.config import Config
    from p2ptunnel.identity.store import Profile
    from p2ptunnel.peer import Peer
    from p2ptunnel.trace import Sink, Tracer
    from p2ptunnel.types import Address, RelayUse

__all__ = ["Duration", "Settings", "global_options"]

_ENVIRONMENT: Final = "P2PTUNNEL_"


class Settings:
    """What holds for one run of the program: `flags` by their names, and what follows from them."""

    def __init__(self) -> None:
        self.flags: dict[str, Any] = {}

    def take(self, name: str, value: Any) -> None:
        """Note a flag that was given; -v counts up, of all others the last one holds."""
        self.flags[name] = self.flags.get(name, 0) + value if name == "verbose" else value

    @functools.cached_property
    def output(self) -> Output:
        """Where the command writes."""
        as_json, quiet = (bool(self.flags.get(name)) for name in ("json", "quiet"))
        color = self.flags.get("color", False if os.environ.get("NO_COLOR") else None)
        return Output(as_json=as_json, quiet=quiet, verbose=self.verbose, color=color)

    @property
    def verbose(self) -> int:
        """How often -v was given."""
        return int(self.flags.get("verbose", 0))

    @property
    def timeout(self) -> float | None:
        """Seconds for what the command waits for, None: its default."""
        return self.flags.get("timeout")

    @property
    def resume_timeout(self) -> float:
        """Seconds for which a lost connection is waited for.

        Raises:
            ConfigError: config.toml cannot be understood.
        """
        from p2ptunnel.config import parse_duration
        from p2ptunnel.defaults import RESUME_TIMEOUT

        text = self.flags.get("resume_timeout", self.config.peer.resume_timeout)
        return RESUME_TIMEOUT if text is None else parse_duration(text)

    @property
    def relay(self) -> RelayUse:
        """Whether connections may go over the server's relay.

        Raises:
            ConfigError: config.toml cannot be understood.
        """
        given: RelayUse = self.flags.get("relay") or self.config.peer.relay
        return given

    @functools.cached_property
    def profile(self) -> Profile:
        """The directory of the identity, its peers and its config.toml."""
        from p2ptunnel.identity.store import Profile

        return Profile(self.flags.get("profile"))

    @functools.cached_property
    def config(self) -> Config:
        """The profile's config.toml.

        Raises:
            ConfigError: It cannot be understood.
        """
        from p2ptunnel.config import load_config

        return load_config(self.profile.directory)

    @property
    def tag(self) -> str | None:
        """This machine's own tag.

        Raises:
            ConfigError: It is no tag, or config.toml cannot be understood.
        """
        from p2ptunnel.types import parse_tag

        tag = self.flags.get("tag") or self.config.peer.tag
        return None if tag is None else parse_tag(tag)

    @property
    def rendezvous(self) -> tuple[str, ...]:
        """The rendezvous servers, in order of preference.

        Raises:
            ConfigError: One is no address, or config.toml cannot be understood.
        """
        from p2ptunnel.defaults import RENDEZVOUS_PORT
        from p2ptunnel.types import parse_server

        servers = tuple(self.flags.get("rendezvous") or self.config.peer.rendezvous)
        for server in servers:
            parse_server(server, default_port=RENDEZVOUS_PORT)
        return servers

    @property
    def lan(self) -> bool:
        """Whether peers in the same network are found there, with no server.

        Raises:
            ConfigError: config.toml cannot be understood.
        """
        return bool(self.flags.get("lan", self.config.peer.lan))

    @property
    def port_mapping(self) -> bool:
        """Whether our router is asked for a way in while we serve.

        Raises:
            ConfigError: config.toml cannot be understood.
        """
        return bool(self.flags.get("port_mapping", self.config.peer.port_mapping))

    @property
    def for_ssh(self) -> tuple[str, ...]:
        """The flags that a program started by ssh needs again, to find what this one found."""
        given: list[str] = []
        for name in ("profile", "tag", "timeout", "resume_timeout", "relay", "trace"):
            if name in self.flags:
                given += [f"--{name.replace('_', '-')}", str(self.flags[name])]
        for server in () if self.for_ssh_in_secret else self.flags.get("rendezvous", ()):
            given += ["--rendezvous", server]
        if "lan" in self.flags:
            given.append("--lan" if self.flags["lan"] else "--no-lan")
        return (*given, *["-v"] * self.verbose)

    @property
    def for_ssh_in_secret(self) -> dict[str, str]:
        """What such a program needs in its environment: a join token on a command line could be read by every user here."""
        from p2ptunnel.defaults import RENDEZVOUS_PORT
        from p2ptunnel.types import parse_server

        servers = self.flags.get("rendezvous", ())
        has_token = any(parse_server(server, default_port=RENDEZVOUS_PORT).join_token for server in servers)
        return {f"{_ENVIRONMENT}RENDEZVOUS": " ".join(servers)} if has_token else {}

    def has_server(self, address: Address) -> bool:
        """Tell whether a server at this address is configured."""
        from p2ptunnel.defaults import RENDEZVOUS_PORT
        from p2ptunnel.types import parse_server

        return any(parse_server(server, default_port=RENDEZVOUS_PORT).address == address for server in self.rendezvous)

    def peer(self, tracer: Tracer, *, is_serving: bool = False, needs_server: bool = True) -> Peer:
        """Return this machine's peer, which has sent nothing yet.

        Raises:
            ConfigError: There is neither a server nor our own network to be used, or no tag to be found by.
        """
        from p2ptunnel.peer import Peer

        if needs_server and not (self.rendezvous or self.lan):
            hint = "--rendezvous HOST:PORT, P2PTUNNEL_RENDEZVOUS, or rendezvous under [peer] in config.toml."
            raise ConfigError("no rendezvous server is configured", hint)
        if is_serving and self.tag is None:
            hint = "--tag NAME, P2PTUNNEL_TAG, or tag under [peer] in config.toml."
            raise ConfigError("this machine has no tag that others could ask for", hint)
        return Peer(
            self.tag,
            rendezvous=self.rendezvous,
            profile=self.profile,
            relay=self.relay,
            lan=self.lan,
            port_mapping=self.port_mapping,
            resume_timeout=self.resume_timeout,
            tracer=tracer,
        )

    @contextlib.contextmanager
    def tracer(self) -> Generator[Tracer]:
        """Give the tracer that --trace and -vv ask for.

        Raises:
            ConfigError: The file cannot be written.
        """
        from p2ptunnel.trace import JsonLines, Tracer, log_sink

        with contextlib.ExitStack() as stack:
            tracer = Tracer()
            if path := self.flags.get("trace"):
                sink = JsonLines(stack.enter_context(_appending(path)))
                stack.callback(_take_off, tracer, sink)  # before the file is closed: something may end later than the command
                tracer.add(sink)
            if self.verbose > 1:
                _log_to_stderr()
                tracer.add(log_sink)
            yield tracer


def _appending(path: str) -> Any:
    try:
        return open(path, "a", encoding="utf-8")  # the caller's stack closes it
    except OSError as error:
        raise ConfigError(f"cannot write the trace to {path}: {error.strerror}") from error


def _take_off(tracer: Tracer, sink: Sink) -> None:
    with contextlib.suppress(ValueError):  # it could not be written to any more, and is gone already
        tracer.remove(sink)


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(format="%(relativeCreated)7.0f ms %(name)s: %(message)s", level=logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.INFO)
    logging.getLogger("asyncssh").setLevel(logging.INFO)


class Duration(click.ParamType[str]):
    """A duration, kept as it was written: it may be handed on to another program."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refuse what is none."""
        from p2ptunnel.config import parse_duration

        try:
            parse_duration(value)
        except ConfigError as error:
            self.fail(f"{error}. {error.hint}", param, ctx)
        return str(value)


class _Option(click.Option):
    """An option that is named in errors as it was given: by its flag, or by its variable."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return the name."""
        is_variable = ctx is not None and ctx.get_parameter_source(str(self.name)) is ParameterSource.ENVIRONMENT
        return str(self.envvar) if is_variable else super().get_error_hint(ctx)


def global_options(*, is_root: bool) -> list[click.Parameter]:
    """Return the global flags as options of one command; only the root's read the environment and stand in its help."""

    def option(*names: str, **attributes: Any) -> click.Option:
        name = names[0].lstrip("-").partition("/")[0].replace("-", "_")
        environment = f"{_ENVIRONMENT}{name.upper()}" if is_root else None
        own = f"global_{name}"  # commands have arguments that are called the same
        return _Option([*names, own], **attributes, envvar=environment, callback=_take, expose_value=False, hidden=not is_root)

    return [
        option("--profile", metavar="DIR", help="Where identity, peers and config.toml are."),
        option("--tag", metavar="NAME", help="This machine's own tag."),
        option("--rendezvous", metavar="HOST:PORT", multiple=True, help="A rendezvous server; may be repeated."),
        option("--lan/--no-lan", default=None, help="Find peers in the same network there, with no server (the default)."),
        option(
            "--port-mapping/--no-port-mapping", default=None, help="Ask the router for a way in while serving (the default)."
        ),
        option("--timeout", metavar="S", type=click.FloatRange(min=0, min_open=True), help="Seconds to wait for a peer."),
        option(
            "--resume-timeout", metavar="TIME", type=Duration(), help="How long a lost connection is waited for: 30s, 10m, 0."
        ),
        option(
            "--relay",
            type=click.Choice(["auto", "never", "always"]),
            help="Use the server's relay until there is a direct path, never, or always.",
        ),
        option("--json", is_flag=True, help="One JSON object a line on stdout."),
        option("--quiet", "-q", is_flag=True, help="No talk on stderr but errors."),
        option("--verbose", "-v", count=True, help="More talk; twice: everything."),
        option("--trace", metavar="FILE", help="Append every event to a file, as JSON lines."),
        option("--color/--no-color", default=None, help="Colours; else on terminals only (NO_COLOR)."),
    ]


def _take(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    name = str(parameter.name)
    if context.get_parameter_source(name) not in (None, ParameterSource.DEFAULT):
        context.ensure_object(Settings).take(name.removeprefix("global_"), value)
