"""What people write for a forward and for a service, as frozen values and back: `parse(str(x)) == x`.

A forward names a *service* of the peer: `8888` asks for the service called "8888", `db:5432` for the service "db:5432",
which the peer maps onto whatever it serves under that name or for that very address (`find_service`).
Rule: no I/O here; a text that is not understood is an `InvalidSpecError` whose hint shows a form that is.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeAlias

import msgspec

from p2ptunnel.abc import Stream
from p2ptunnel.defaults import SERVICE_MAX_BYTES
from p2ptunnel.errors import InvalidSpecError
from p2ptunnel.tunnels.reach import Reach, covers, parse_reach
from p2ptunnel.types import Address, format_address

__all__ = [
    "EVERY_INTERFACE",
    "LOOPBACK",
    "ForwardSpec",
    "Handler",
    "ServeSpec",
    "Target",
    "find_destination",
    "find_service",
    "parse_forward",
    "parse_name",
    "parse_service",
    "parse_target",
    "service_for",
]

Handler: TypeAlias = Callable[[Stream], Awaitable[None]]
"""A service that is a function: it is given each stream, and the stream is closed when it returns."""

Target: TypeAlias = int | str | Handler
"""What a service may stand for: a port of this machine, `host:port`, `unix:/path`, `ssh`, `any:` and what may be reached, or a
function."""

LOOPBACK: Final = "127.0.0.1"
EVERY_INTERFACE: Final = "*"

_SSH_PORT: Final = 22
_UNIX_PATH_MAX_BYTES: Final = 107  # sockaddr_un.sun_path holds 108 with the NUL
_HOST_MAX: Final = 253  # RFC 1035 2.3.4

_COLON: Final = re.compile(r":(?![^\[]*\])")  # not the colons inside [v6]
_DIGITS: Final = re.compile(r"[0-9]+")
_PORT: Final = re.compile(r"0|[1-9][0-9]{0,4}")
_RANGE: Final = re.compile(r"[0-9]+-[0-9]+")
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")

_FORWARD_EXAMPLES: Final = "Examples: 8888, 9000:8888, web, 9000:web, 9000:host:80."
_SERVE_EXAMPLES: Final = "Examples: ssh, 8888, web=8080, web=127.0.0.1:8080, db=unix:/run/db.sock."
_ANY: Final = "any:"


class ForwardSpec(msgspec.Struct, frozen=True):
    """One local forward: `[bind:]port:service`, as `str` prints it.

    `listen` is where it listens here; port 0 picks a free one, host `*` is every interface. `service` is what the peer is
    asked for: a name, a port, or `host:port`.
    """

    listen: Address
    service: str

    def __str__(self) -> str:
        host, port = self.listen
        return f"{port}:{self.service}" if host == LOOPBACK else f"{format_address(self.listen)}:{self.service}"


class ServeSpec(msgspec.Struct, frozen=True):
    """One service: the name peers ask for and what it stands for, `name=target` as `str` prints it.

    `target` is `(host, port)`, or the path of a unix socket. `is_ssh` says that an SSH server is behind it, whose host
    keys are told to whoever may open the service.  With `reach` there is no target: peers ask for `host:port` themselves, and
    get what is reached.
    """

    name: str
    target: Address | str
    is_ssh: bool = False
    reach: tuple[Reach, ...] = ()

    def __str__(self) -> str:
        if self.reach:
            return f"{self.name}={_ANY}{' '.join(map(str, self.reach))}"
        if isinstance(self.target, str):
            return f"{self.name}=unix:{self.target}"
        kind = "ssh:" if self.is_ssh and self.name != "ssh" else ""
        return f"{self.name}={kind}{format_address(self.target)}"


def parse_forward(text: str) -> ForwardSpec:
    """Read a forward as people write it for `ssh -L`, or in one of the short forms.

    `[bind:]port:host:hostport`, `[bind:]port:service`, `8888` (the same port here), `db:5432` (the same port here),
    `web` (port 0). Bind is a numeric address, `localhost`, or `*`; IPv6 stands in brackets.

    Raises:
        InvalidSpecError: The text is none of these.
    """
    reader = _Reader(text)
    reader.refuse_later_forms()
    match _COLON.split(text):
        case [service] if _DIGITS.fullmatch(service):
            return ForwardSpec((LOOPBACK, reader.remote_port(service)), service)
        case [service]:
            return ForwardSpec((LOOPBACK, 0), reader.name(service))
        case [port, service] if _DIGITS.fullmatch(port):
            return ForwardSpec((LOOPBACK, reader.port(port)), reader.service(service))
        case [host, port]:
            there = reader.endpoint(host, port)
            return ForwardSpec((LOOPBACK, there[1]), format_address(there))
        case [port, host, host_port] if _DIGITS.fullmatch(port):
            return ForwardSpec((LOOPBACK, reader.port(port)), format_address(reader.endpoint(host, host_port)))
        case [bind, port, service]:
            return ForwardSpec((reader.bind(bind), reader.port(port)), reader.service(service))
        case [bind, port, host, host_port]:
            there = reader.endpoint(host, host_port)
            return ForwardSpec((reader.bind(bind), reader.port(port)), format_address(there))
        case _:
            raise reader.error("too many colons", "An IPv6 address stands in brackets: 9000:[2001:db8::1]:80.")


def parse_name(text: str) -> str:
    """Return the name of a service: a port, or 1 to 63 of `[a-z0-9._-]` with a letter or digit at both ends.

    Raises:
        InvalidSpecError: It is neither.
    """
    return _Reader(text, "Examples: ssh, 8888, jupyter.").service(text)


def parse_target(target: int | str) -> str:
    """Return the service that a forward's target asks the peer for: a name, a port, or `host:port`.

    Raises:
        InvalidSpecError: The target is none of these.
    """
    text = str(target)
    reader = _Reader(text, "Examples: 8888, web, db:5432.")
    if ":" in text:
        return format_address(reader.address(text))
    return reader.service(text)


def parse_service(text: str) -> ServeSpec:
    """Read a service as people write it: `ssh`, `8888`, `web=8080`, `web=host:8080`, `db=unix:/path`, `box=ssh:host:22`.

    `lan=any:10.0.0.0/24:80,443 db.internal:5432` is everything that these reach.

    Raises:
        InvalidSpecError: The text is none of these.
    """
    reader = _Reader(text, _SERVE_EXAMPLES)
    name, equals, target = text.partition("=")
    if not equals:
        name = target = text
        if text == "any" or text.startswith(_ANY):
            raise reader.error("it does not say what may be reached", "--to 10.0.0.0/24:80,443 --to db.internal:5432")
        if not (text == "ssh" or _DIGITS.fullmatch(text)):
            raise reader.nameless()
    name = reader.service(name)
    if target.startswith("unix:"):
        return ServeSpec(name, reader.unix_path(target.removeprefix("unix:")))
    if target.startswith(_ANY):
        reach = tuple(map(parse_reach, target.removeprefix(_ANY).split()))
        if not reach:
            raise reader.error("it does not say what may be reached", f"For instance {name}=any:10.0.0.0/24:80,443.")
        return ServeSpec(name, "", reach=reach)
    is_ssh = name == "ssh" or target == "ssh" or target.startswith("ssh:")
    return ServeSpec(name, reader.target(target), is_ssh)


def service_for(name: str, target: int | str) -> ServeSpec:
    """Return the service `name` for a target given from Python: a port, `host:port`, `unix:/path` or `ssh`.

    Raises:
        InvalidSpecError: The name or the target cannot be read.
    """
    return parse_service(f"{name}={target}")


def find_service(specs: Iterable[ServeSpec], asked: str) -> ServeSpec | None:
    """Return the service that a peer means by `asked`, or None.

    `asked` is a name, or the `host:port` that a service stands for. Give only those services that the asker may open, so
    that "not there" and "not yours" are one answer.
    """
    table = tuple(spec for spec in specs if not spec.reach)
    for spec in table:
        if spec.name == asked:
            return spec
    wanted = _destination(asked)
    return next((spec for spec in table if spec.target == wanted), None)


def find_destination(specs: Iterable[ServeSpec], asked: str) -> tuple[ServeSpec, Address] | None:
    """Return the service by which a peer may reach the `host:port` that it asks for, and that address, parsed once.

    A name may still resolve to what is not reached.  Give only those services that the asker may open.
    """
    wanted = _destination(asked)
    if wanted is None:
        return None
    return next(((spec, wanted) for spec in specs if covers(spec.reach, wanted)), None)


def _destination(asked: str) -> Address | None:
    try:
        return _Reader(asked).address(asked)
    except InvalidSpecError:
        return None


class _Reader:
    """Reads the parts of one text, and names the whole of it when a part is wrong."""

    def __init__(self, text: str, examples: str = _FORWARD_EXAMPLES) -> None:
        self._text = text
        self._examples = examples

    def error(self, reason: str, hint: str = "") -> InvalidSpecError:
        return InvalidSpecError(self._text, reason, hint or self._examples)

    def refuse_later_forms(self) -> None:
        """Name what other tools can and this version cannot, rather than calling it a bad port."""
        if self._text.endswith("/udp"):
            raise self.error("UDP is not forwarded by this version", "Without /udp it is a TCP forward.")
        if any(_RANGE.fullmatch(field) for field in self._text.split(":")):
            raise self.error("ranges of ports are not forwarded by this version", "Give each port as a SPEC of its own.")
        if "/" in self._text:
            raise self.error(
                "unix sockets are not forwarded by this version",
                "A socket of the peer can be served under a name there: p2ptunnel serve db=unix:/run/db.sock",
            )

    def nameless(self) -> InvalidSpecError:
        """Return what is wrong with a service that has no name."""
        text = self._text
        if text.endswith("/udp") or _RANGE.fullmatch(text) or text == "socks":
            return self.error("this version serves single TCP ports, unix sockets and ssh")
        if text.startswith("unix:") or ":" in text:
            return self.error("a service needs a name", f"Peers ask for it by name: web={text}")
        return self.error("it says neither port nor address", f"Say what it stands for: {text or 'web'}=8080")

    def port(self, text: str) -> int:
        if not _PORT.fullmatch(text) or int(text) > 65535:
            raise self.error(f"{text!r} is not a port (0 to 65535)" if text else "a port is missing")
        return int(text)

    def remote_port(self, text: str) -> int:
        port = self.port(text)
        if not port:
            raise self.error("port 0 is nobody's service; it stands only for a free port to listen on")
        return port

    def name(self, text: str) -> str:
        if _is_ip(text):
            raise self.error("an address needs a port", f"For instance {text}:80.")
        if not _NAME.fullmatch(text):
            lower = text.lower()
            meant = f"Did you mean {lower!r}?" if _NAME.fullmatch(lower) else ""
            raise self.error(f"{text!r} is not the name of a service" if text else "the name of a service is missing", meant)
        return text

    def service(self, text: str) -> str:
        return str(self.remote_port(text)) if _DIGITS.fullmatch(text) else self.name(text)

    def host(self, text: str) -> str:
        """Return the canonical text of a host: an address, or a name in lower case."""
        if text.startswith("[") and text.endswith("]"):
            return str(self._ipv6(text[1:-1]))
        host = text.lower()
        labels = host.removesuffix(".").split(".")
        if _DIGITS.fullmatch(labels[-1]) or labels[-1].startswith("0x"):  # 127.1 and 0x7f.1 are addresses to some resolvers
            return str(self._ipv4(host))
        if len(host) > _HOST_MAX or not all(_LABEL.fullmatch(label) for label in labels):
            raise self.error(f"{text!r} is not a host" if text else "a host is missing")
        return LOOPBACK if host == "localhost" else host  # one address, whatever a resolver says of it

    def endpoint(self, host: str, port: str) -> Address:
        if not _DIGITS.fullmatch(port):
            hint = "A host goes with a port, a served name without host: 9000:host:80, 9000:web."
            raise self.error(f"{port!r} is not a port" if port else "a port is missing", hint)
        address = (self.host(host), self.remote_port(port))
        if len(format_address(address)) > SERVICE_MAX_BYTES:
            raise self.error("the host is too long")
        return address

    def bind(self, text: str) -> str:
        """Return the address to listen on; never a name, so that what is exposed can be read off the text."""
        if text == EVERY_INTERFACE:
            return text
        if text.lower() == "localhost":
            return LOOPBACK
        if not text:
            raise self.error("an empty address to listen on", f"Every interface is written out: *{self._text}")
        if text.startswith("[") and text.endswith("]"):
            return str(self._ipv6(text[1:-1]))
        if not _is_ip(text):
            raise self.error(
                f"{text!r} is not an address to listen on",
                "Numeric, localhost or *; a host there follows the port here: 0:db:5432.",
            )
        return str(self._ipv4(text))

    def target(self, text: str) -> Address:
        """Return what a service stands for: `8888`, `host:port`, `ssh`, `ssh:2222`, `ssh:host:port`."""
        if text == "ssh":
            return (LOOPBACK, _SSH_PORT)
        text = text.removeprefix("ssh:")
        return self.address(text) if ":" in text else (LOOPBACK, self.remote_port(text))

    def address(self, text: str) -> Address:
        """Return what `host:port` means."""
        match _COLON.split(text):
            case [host, port]:
                return self.endpoint(host, port)
            case _:
                raise self.error("a target is host:port", "An IPv6 address stands in brackets: web=[2001:db8::1]:80.")

    def unix_path(self, path: str) -> str:
        if not path.startswith("/") or "\0" in path:
            raise self.error("the path of a unix socket is absolute", f"For instance unix:/run/{path.strip('/') or 'db.sock'}")
        if len(path.encode(errors="surrogateescape")) > _UNIX_PATH_MAX_BYTES:
            raise self.error(f"the path of a unix socket has at most {_UNIX_PATH_MAX_BYTES} bytes")
        return path

    def _ipv4(self, text: str) -> ipaddress.IPv4Address:
        try:
            return ipaddress.IPv4Address(text)
        except ValueError as error:
            raise self.error(f"{text!r} is not an IPv4 address") from error

    def _ipv6(self, text: str) -> ipaddress.IPv6Address:
        try:
            address = ipaddress.IPv6Address(text)
        except ValueError as error:
            raise self.error(f"{text!r} is not an IPv6 address") from error
        if address.scope_id is not None:
            raise self.error("an address with a zone means something on one machine only")
        return address


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
