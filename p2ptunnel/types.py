"""Values that every layer speaks: addresses, tags, candidates, paths.  Rule: no state, no clock, no I/O."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final, Literal, NoReturn, TypeAlias

import msgspec

from p2ptunnel.errors import InvalidAddressError, InvalidTagError

__all__ = [
    "Address",
    "Candidate",
    "CandidateKind",
    "Path",
    "RelayUse",
    "Role",
    "ServerSpec",
    "Tag",
    "Transport",
    "clean",
    "format_address",
    "format_duration",
    "is_tag",
    "paired_tag",
    "pairing_tag",
    "parse_address",
    "parse_server",
    "parse_tag",
]

Address: TypeAlias = tuple[str, int]
"""`(host, port)`; the host is a numeric address wherever packets are concerned."""

Tag: TypeAlias = str
"""The name of a peer: a hint for the rendezvous server, never an identity."""

Transport: TypeAlias = Literal["tcp", "udp"]
CandidateKind: TypeAlias = Literal["host", "srflx", "mapped", "prflx", "relay"]

RelayUse: TypeAlias = Literal["auto", "never", "always"]
"""Whether connections go over the server's relay: until there is a direct path, not at all, or in any case."""

Role: TypeAlias = Literal["caller", "callee"]
"""Which end of a call."""

_SERVER_KEY: Final = re.compile(r"p2p:[a-z2-7]{52}")
_JOIN: Final = "join:"
_JOIN_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{16,64}")
_TAG: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_TAG_MAX: Final = 63
_PAIRING: Final = ".pair"
_CLEAN_LIMIT: Final = 200
_DURATION_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "min"))


class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """One address at which a peer may be reached (RFC 8445); on the wire `[kind, proto, host, port]`."""

    kind: CandidateKind
    proto: Transport
    host: Annotated[str, msgspec.Meta(max_length=64, pattern=r"\A[0-9A-Fa-f:.]*\Z")]
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]

    @property
    def address(self) -> Address:
        """The candidate's `(host, port)`."""
        return (self.host, self.port)


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """Where a channel runs.

    `rtt` is in seconds, `loss` the share of segments that had to be sent again lately, both None until measured; `why` says
    in words how the path came to be.
    """

    kind: Literal["lan", "direct", "relay"]
    transport: Literal["tcp", "quic"]
    local: Address
    remote: Address
    rtt: float | None = None
    loss: float | None = None
    why: str = ""

    @property
    def place(self) -> str:
        """The other end in words, with what leads to a relay that is not reached on its own port."""
        where = format_address(self.remote)
        through = self.why.partition(", through ")[2] if self.kind == "relay" else ""
        return f"{where} through {through}" if through else where


def is_tag(text: object) -> bool:
    """Tell whether `text` is a well-formed tag: 1 to 63 of `[a-z0-9._-]`, a letter or digit at both ends."""
    return isinstance(text, str) and _TAG.fullmatch(text) is not None


def parse_tag(text: str) -> Tag:
    """Return `text` if it is a tag.

    Raises:
        InvalidTagError: It is not; the text of the error shows it cleaned.
    """
    if not is_tag(text):
        raise InvalidTagError(clean(text))
    return text


def pairing_tag(tag: Tag) -> Tag:
    """Return the tag under which the machine called `tag` waits for guests.

    It is another than the one that it serves under, so that whoever serves stays as unreachable for strangers as ever, and a
    program that pairs needs to know nothing of one that serves.
    """
    return tag[: _TAG_MAX - len(_PAIRING)] + _PAIRING


def paired_tag(tag: Tag) -> Tag:
    """Return whose `pairing_tag` it is; empty if it is none, or so long that it may have been cut."""
    return tag.removesuffix(_PAIRING) if tag.endswith(_PAIRING) and len(tag) < _TAG_MAX else ""


def parse_address(text: str, *, default_port: int | None = None) -> Address:
    """Split `host:port`, `[v6]:port` or, with `default_port`, a bare host.

    Raises:
        InvalidAddressError: The text is none of these, or the port is not 0 to 65535.
    """
    host, port = text.strip(), ""
    if host.startswith("["):
        host, bracket, rest = host[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidAddressError(clean(text))
        port = rest[1:]
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    if not host or "/" in host or (not port and default_port is None):  # a URL is none
        raise InvalidAddressError(clean(text))
    if port and not (port.isascii() and port.isdigit() and int(port) <= 65535):
        raise InvalidAddressError(clean(text))
    return (host, int(port) if port else int(default_port or 0))


class ServerSpec(msgspec.Struct, frozen=True):
    """A rendezvous server as its operator hands it on: where it is, and what proves either side to the other.

    Attributes:
        address: `(host, port)`; the host may be a name.
        key: Its public key as text; empty: whoever answers there is believed.
        join_token: What a private server wants of its members; a secret, and in no text.
        name: The host as it was written, once `address` is numeric.
    """

    address: Address
    key: str = ""
    join_token: str = ""
    name: str = ""

    def __repr__(self) -> str:
        return f"ServerSpec({format_address(self.address)}{f', {self.key}' if self.key else ''})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a server is not pickled: its join token stays in one process")


def parse_server(text: str, *, default_port: int) -> ServerSpec:
    """Read `host:port`, `host:port#p2p:KEY` or `host:port#p2p:KEY#join:TOKEN`.

    Raises:
        InvalidAddressError: It is none of these; its text shows nothing behind the first `#`.
    """
    place, *marks = text.strip().split("#")
    address = parse_address(place, default_port=default_port)
    key, token = (*marks, "", "")[:2]
    if marks and _SERVER_KEY.fullmatch(key) is None:
        raise InvalidAddressError(f"{clean(place)}#…", "key")
    is_token = token.startswith(_JOIN) and _JOIN_TOKEN.fullmatch(token[len(_JOIN) :]) is not None
    if len(marks) > 2 or (token and not is_token):
        raise InvalidAddressError(f"{clean(place)}#…", "join token")
    return ServerSpec(address, key, token[len(_JOIN) :])


def format_address(address: Address) -> str:
    """Return `host:port`, with brackets around an IPv6 host."""
    host, port = address
    try:
        bracketed = ipaddress.ip_address(host).version == 6
    except ValueError:
        bracketed = ":" in host
    return f"[{host}]:{port}" if bracketed else f"{host}:{port}"


def format_duration(seconds: float) -> str:
    """Return it as people say it: `1.8 s`, `3 s`, `45 s`, `10 min`, `1.5 h`, `400 d`."""
    for unit, name in _DURATION_UNITS:
        if seconds >= unit:
            return f"{round(seconds / unit, 1):.10g} {name}"
    return f"{seconds:.2g} s"


_BLANKS: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # letters to Unicode, and nothing to the eye


def clean(text: object) -> str:
    """Make text from elsewhere fit to be shown: printable, one line, at most 200 characters.

    Applied where text enters from the wire, so that no later layer can forget it.
    """
    if not isinstance(text, str):
        return type(text).__name__
    shown = text[:_CLEAN_LIMIT]
    if shown.isprintable() and _BLANKS.isdisjoint(shown):
        return shown
    return "".join(c if c.isprintable() and c not in _BLANKS else _escape(c) for c in shown)[:_CLEAN_LIMIT]


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
