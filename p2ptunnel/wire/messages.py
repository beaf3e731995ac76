"""Messages of the rendezvous wire, as values: bytes in, a message out, and back.  Rule: no state, no clock, no I/O.

A message is one JSON object of at most 1200 bytes whose `t` says which (docs/protocol/messages.md).  A request carries
`t > 0` and a `mid`, its answer `-t` and the same `mid`.  Member order on the wire is t, mid, ltag, token, code, em, extra.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct, field

from p2ptunnel.defaults import CANDIDATES_MAX, DATAGRAM_MAX_BYTES, DATAGRAM_MAX_DEPTH, MID_MAX
from p2ptunnel.types import Candidate
from p2ptunnel.wire.intent import COUNTER_END
from p2ptunnel.wire.redacted import Redacted

__all__ = [
    "ConkeyExtra",
    "ConnectAnswer",
    "ConnectAnswerExtra",
    "ConnectRequest",
    "ConnectRequestExtra",
    "ConsentAnswer",
    "ConsentCheck",
    "EpochExtra",
    "Heartbeat",
    "HeartbeatAnswer",
    "HoleAnswer",
    "HoleProbe",
    "Leave",
    "LeaveAnswer",
    "MalformedMessageError",
    "Message",
    "NatHints",
    "Observed",
    "OpenTcp",
    "OpenTcpAnswer",
    "OpenTcpExtra",
    "Opener",
    "PortRow",
    "ProbeExtra",
    "PunchAnswer",
    "PunchAnswerExtra",
    "PunchNotice",
    "PunchNoticeExtra",
    "PunchResult",
    "PunchResultAck",
    "PunchResultExtra",
    "ReflexiveAnswer",
    "ReflexiveProbe",
    "Register",
    "RegisterAnswer",
    "RegisterExtra",
    "RelayJoin",
    "RelayJoinAnswer",
    "RelayJoinExtra",
    "RelayOffer",
    "Signal",
    "SignalAnswer",
    "SignalExtra",
    "decode",
    "encode",
    "encode_padded",
    "message_number",
]

MessageId: TypeAlias = Annotated[int, Meta(ge=0, le=MID_MAX)]
Name: TypeAlias = Annotated[str, Meta(max_length=63)]
Token: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
Code: TypeAlias = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Text: TypeAlias = Annotated[str, Meta(max_length=512)]
Port: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
Host: TypeAlias = Annotated[str, Meta(max_length=64, pattern=r"\A[0-9A-Fa-f:.]*\Z")]  # numeric: it is shown, and sent to
Counter: TypeAlias = Annotated[int, Meta(ge=0, lt=COUNTER_END)]
Blob: TypeAlias = Annotated[str, Meta(max_length=512)]  # base64url or hex of something fixed


class MalformedMessageError(ValueError):
    """A datagram that is no message of ours: counted and dropped by whoever decodes, never answered."""


class _Wire(Redacted, frozen=True, kw_only=True, omit_defaults=True):
    """Parts of messages: unknown members are ignored, absent ones are not written."""


class _Base(Redacted, frozen=True, kw_only=True, tag_field="t"):
    """Messages: tagged by `t`; every member of theirs is written, an absent `em` or `extra` reads as null."""


# --- parts ------------------------------------------------------------------------------------------------------------


class PortRow(Struct, frozen=True, array_like=True):
    """`[last, delta, busy]`: a sequential NAT's next ports are `last` + k `delta`; `busy` if others take some in between."""

    last: Port
    delta: Annotated[int, Meta(ge=-32, le=32)]
    busy: bool = False


class NatHints(_Wire, frozen=True):
    """`extra.nat`: what a side believes of its own NAT; its intent binds it (`claims`), so a lie is its own (RFC 4787, 5382).

    tcp, udp: mapping class `eim`, `adm`, `seq`, `rnd` or `none`.  low: can send a SYN that dies on the way.
    rtt: round trip to the server in ms.  tcp_row, udp_row: where a `seq` stands.  so: its NAT lets a SYN in that meets one
    of ours.  open: strangers get in.  quic: it can do QUIC over the punched UDP port.  Null or absent: not known, or no.
    """

    tcp: Annotated[str, Meta(max_length=4)] = ""
    udp: Annotated[str, Meta(max_length=4)] = ""
    low: bool = False
    rtt: Annotated[int, Meta(ge=0, le=60_000)] = 0
    tcp_row: PortRow | None = None
    udp_row: PortRow | None = None
    crosses: bool | None = field(default=None, name="so")
    is_open: bool | None = field(default=None, name="open")
    quic: bool = False


Candidates: TypeAlias = Annotated[tuple[Candidate, ...], Meta(max_length=CANDIDATES_MAX)]


class Observed(_Wire, frozen=True):
    """`extra` of the answers that tell how the asker looks from outside, and of refusals that bring a cookie."""

    host: Host = ""
    port: Port = 0
    ttl: Annotated[float, Meta(ge=0, le=86_400)] = 0
    epoch: MessageId = 0
    cookie: Blob = ""
    retry_after: Annotated[float, Meta(ge=0, le=86_400)] = 0
    ts: Counter = 0
    key: Blob = ""  # the server's public key, where it has one
    sig: Blob = ""  # by that key, in a -1 of 200: the server that was signed for is the one that answers
    other: Annotated[tuple[tuple[Host, Port], ...], Meta(max_length=4)] = ()  # where else this server observes (RFC 5780)
    back: Annotated[str, Meta(max_length=16)] = ""  # how its connection back to the asker ended, in one word


class RegisterExtra(_Wire, frozen=True):
    """Body of t=1.  `sig` is by `key` over the fixed layout of `identity.keys.registration_payload`."""

    v: Annotated[int, Meta(ge=0, le=1000)] = 0
    key: Blob = ""
    ts: Counter = 0
    nonce: Blob = ""
    sig: Blob = ""
    cookie: Blob = ""
    join: Blob = ""  # to a private server: proof of its join token
    old_key: Blob = ""  # whose tag this is so far, if `key` is to have it from now on
    rekey: Blob = ""  # by `old_key` over the same registration
    caps: tuple[Annotated[str, Meta(max_length=16)], ...] = ()
    pad: Text = ""


class EpochExtra(_Wire, frozen=True):
    """Body of t=2 and t=3: the epoch that the registration was answered with."""

    epoch: MessageId = 0
    pad: Text = ""


class ProbeExtra(_Wire, frozen=True):
    """Body of t=5; `op` asks for a probe back from another observer, by its number in `other`, `to` for one to another port."""

    op: Annotated[str, Meta(max_length=8)] = ""
    to: Port = 0  # of the host that asks
    cookie: Blob = ""
    pad: Text = ""


class ConnectRequestExtra(_Wire, frozen=True):
    """Body of t=4."""

    rtag: Name
    v: Annotated[int, Meta(ge=0, le=1000)] = 0
    cookie: Blob = ""
    join: Blob = ""  # to a private server: proof of its join token
    sig: Blob = ""  # by the intent's key over the cookie: the caller belongs to a server that serves listed keys only
    intent: Blob = ""
    cands: Candidates = ()
    nat: NatHints | None = None
    pad: Text = ""


class RelayOffer(_Wire, frozen=True):
    """`extra.relay`: the relay of this call, where it is not the server itself; `grant` is of `identity.grant`."""

    host: Host
    port: Port
    key: Blob
    grant: Blob


class ConnectAnswerExtra(_Wire, frozen=True):
    """Body of -4: the token on success, a cookie or a wait on refusal."""

    token: Annotated[str, Meta(max_length=64)] = ""
    host: Host = ""
    port: Port = 0
    cookie: Blob = ""
    key: Blob = ""  # the server's public key, where it has one
    retry_after: Annotated[float, Meta(ge=0, le=86_400)] = 0
    relay: RelayOffer | None = None


class PunchNoticeExtra(_Wire, frozen=True):
    """Body of t=10: the caller as the server sees it, and what the caller said of itself."""

    token: Token
    host: Host
    port: Port
    v: Annotated[int, Meta(ge=0, le=1000)] = 0
    intent: Blob = ""
    cands: Candidates = ()
    nat: NatHints | None = None
    relay: RelayOffer | None = None


class PunchAnswerExtra(_Wire, frozen=True):
    """Body of -10: the port the callee opens; ours adds candidates and hints."""

    port: Port
    v: Annotated[int, Meta(ge=0, le=1000)] = 0
    intent: Blob = ""
    cands: Candidates = ()
    nat: NatHints | None = None


class PunchResultExtra(_Wire, frozen=True):
    """Body of t=11: the callee as the server sees it."""

    host: Host
    port: Port
    v: Annotated[int, Meta(ge=0, le=1000)] = 0
    intent: Blob = ""
    cands: Candidates = ()
    nat: NatHints | None = None


class RelayJoinExtra(_Wire, frozen=True):
    """Body of t=6.  `sig` is by `key` over the fixed layout of `identity.judge.relay_payload`."""

    token: Token
    role: Annotated[str, Meta(max_length=8)]  # any text, so that one that is no `types.Role` is answered and not dropped
    key: Blob = ""
    sig: Blob = ""
    grant: Blob = ""  # to a relay that is not the server: as the server has given it


class SignalExtra(_Wire, frozen=True):
    """Body of t=12: what one peer of a token tells the other; sealed end to end (`wire.signal`), at most 1 KiB."""

    token: Token
    sealed: Annotated[str, Meta(max_length=1024)]


class OpenTcpExtra(_Wire, frozen=True):
    """Body of t=32; `op` 1 opens one TCP connection."""

    op: Annotated[int, Meta(ge=0, le=1000)]
    pad: Text = ""


class ConkeyExtra(_Wire, frozen=True):
    """Body of -32: the key of that one TCP connection."""

    conkey: Annotated[str, Meta(max_length=64)] = ""  # empty in a refusal, whose `extra` has nothing but its MAC


# --- the seed's messages ----------------------------------------------------------------------------------------------


class ConnectRequest(_Base, frozen=True, tag=4):
    """t=4, caller to server: I (`ltag`) want `extra.rtag`."""

    mid: MessageId
    ltag: Name
    extra: ConnectRequestExtra


class ConnectAnswer(_Base, frozen=True, tag=-4):
    """-4, server to caller: 200 the callee is being asked, 404 it is not there, 401 a cookie is needed."""

    mid: MessageId
    code: Code
    em: Text | None = None
    extra: ConnectAnswerExtra | None = None


class PunchNotice(_Base, frozen=True, tag=10):
    """t=10, server to callee: this caller, as seen from outside, wants you."""

    mid: MessageId
    extra: PunchNoticeExtra


class PunchAnswer(_Base, frozen=True, tag=-10):
    """-10, callee to server: yes or no, and the port I open."""

    mid: MessageId
    token: Token
    code: Code
    em: Text | None = None
    extra: PunchAnswerExtra | None = None


class PunchResult(_Base, frozen=True, tag=11):
    """t=11, server to caller: the callee's answer and its public address."""

    mid: MessageId
    token: Token
    code: Code
    em: Text | None = None
    extra: PunchResultExtra | None = None


class PunchResultAck(_Base, frozen=True, tag=-11):
    """-11, caller to server: received."""

    mid: MessageId
    token: Token


class Opener(_Base, frozen=True, tag=30):
    """t=30, callee to caller: opens the callee's NAT; may well be dropped on the way; no answer."""


class HoleProbe(_Base, frozen=True, tag=31):
    """t=31, caller to callee: try the hole; later the heartbeat of the open hole."""

    mid: MessageId
    token: Token


class HoleAnswer(_Base, frozen=True, tag=-31):
    """-31, callee to caller: the hole is open both ways."""

    mid: MessageId
    token: Token


class OpenTcp(_Base, frozen=True, tag=32):
    """t=32, caller to callee: open TCP for me."""

    mid: MessageId
    token: Token
    extra: OpenTcpExtra


class OpenTcpAnswer(_Base, frozen=True, tag=-32):
    """-32, callee to caller: listening; `extra.conkey` is the key of that one connection."""

    mid: MessageId
    token: Token
    code: Code
    em: Text | None = None
    extra: ConkeyExtra | None = None


# --- extensions -------------------------------------------------------------------------------------------------------


class Register(_Base, frozen=True, tag=1):
    """t=1, peer to server: I am `ltag`."""

    mid: MessageId
    ltag: Name
    extra: RegisterExtra | None = None


class RegisterAnswer(_Base, frozen=True, tag=-1):
    """-1: 200 with the address as seen, ttl, epoch and cookie; 401 with a cookie; 409 another key owns the tag."""

    mid: MessageId
    code: Code
    em: Text | None = None
    extra: Observed | None = None


class Heartbeat(_Base, frozen=True, tag=2):
    """t=2, peer to server: still here."""

    mid: MessageId
    ltag: Name
    extra: EpochExtra


class HeartbeatAnswer(_Base, frozen=True, tag=-2):
    """-2: the address as seen now and the current cookie; 401: register again."""

    mid: MessageId
    code: Code
    em: Text | None = None
    extra: Observed | None = None


class Leave(_Base, frozen=True, tag=3):
    """t=3, peer to server: I go."""

    mid: MessageId
    ltag: Name
    extra: EpochExtra


class LeaveAnswer(_Base, frozen=True, tag=-3):
    """-3: gone."""

    mid: MessageId
    code: Code
    em: Text | None = None
    extra: None = None


class ReflexiveProbe(_Base, frozen=True, tag=5):
    """t=5, anyone to server, over UDP and TCP: what do I look like from there?"""

    mid: MessageId
    extra: ProbeExtra | None = None


class ReflexiveAnswer(_Base, frozen=True, tag=-5):
    """-5: the asker's host and port as seen."""

    mid: MessageId
    code: Code
    em: Text | None = None
    extra: Observed | None = None


class RelayJoin(_Base, frozen=True, tag=6):
    """t=6, peer to server over TCP: join the relay for this token."""

    mid: MessageId
    extra: RelayJoinExtra


class RelayJoinAnswer(_Base, frozen=True, tag=-6):
    """-6: joined; the bytes that follow are the other end's."""

    mid: MessageId
    code: Code
    em: Text | None = None
    extra: Observed | None = None


class Signal(_Base, frozen=True, tag=12):
    """t=12, peer to peer through the server: signalling of a token."""

    mid: MessageId
    extra: SignalExtra


class SignalAnswer(_Base, frozen=True, tag=-12):
    """-12: handed on."""

    mid: MessageId
    code: Code
    em: Text | None = None
    extra: None = None


class ConsentCheck(_Base, frozen=True, tag=33):
    """t=33, peer to peer: consent check and measurement of an open path (RFC 7675)."""

    mid: MessageId
    token: Token


class ConsentAnswer(_Base, frozen=True, tag=-33):
    """-33: the path is open."""

    mid: MessageId
    token: Token


Message: TypeAlias = (
    Register
    | RegisterAnswer
    | Heartbeat
    | HeartbeatAnswer
    | Leave
    | LeaveAnswer
    | ConnectRequest
    | ConnectAnswer
    | ReflexiveProbe
    | ReflexiveAnswer
    | RelayJoin
    | RelayJoinAnswer
    | PunchNotice
    | PunchAnswer
    | PunchResult
    | PunchResultAck
    | Signal
    | SignalAnswer
    | Opener
    | HoleProbe
    | HoleAnswer
    | OpenTcp
    | OpenTcpAnswer
    | ConsentCheck
    | ConsentAnswer
)

_NUMBER: Final = re.compile(rb'\{"t":\s*(-?[0-9]{1,3})\b')
_DECODER: Final[msgspec.json.Decoder[Message]] = msgspec.json.Decoder(Message)
_ENCODER: Final = msgspec.json.Encoder()
_STRINGS: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?')  # never backtracks: linear on any input
_ONE_KIND: Final = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"{}[]"))


def encode(message: Message) -> bytes:
    """Return the message as one JSON object, without a line end."""
    return _ENCODER.encode(message)


def decode(data: bytes | bytearray | memoryview) -> Message:
    """Return the message in `data`: one datagram, or one line of a TCP connection.

    Raises:
        MalformedMessageError: Too long, too deep, no UTF-8, no object, unknown `t`, a member missing or of a wrong type.
            Nothing else is ever raised, whatever the bytes.

    Source: wire document W1, W2.
    """
    raw = bytes(data)
    if len(raw) > DATAGRAM_MAX_BYTES:
        raise MalformedMessageError(f"{len(raw)} bytes, more than {DATAGRAM_MAX_BYTES}")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedMessageError("not UTF-8") from None
    if _is_too_deep(raw):
        raise MalformedMessageError(f"nested deeper than {DATAGRAM_MAX_DEPTH} levels")
    try:
        return _DECODER.decode(raw)
    except (msgspec.MsgspecError, ValueError) as error:
        raise MalformedMessageError(str(error)) from None


def message_number(data: bytes) -> int | None:
    """Return the `t` of a message of ours without decoding it, for a trace; None if it does not begin with one."""
    match = _NUMBER.match(data)
    return int(match[1]) if match else None


def _is_too_deep(raw: bytes) -> bool:
    if raw.count(b"{") + raw.count(b"[") <= DATAGRAM_MAX_DEPTH:  # most messages; costs no scan
        return False
    brackets = _STRINGS.sub(b"", raw).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(DATAGRAM_MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")  # takes the innermost level away
    return bool(brackets)


def encode_padded(message: Register | Heartbeat | Leave | ReflexiveProbe | ConnectRequest | OpenTcp, size_bytes: int) -> bytes:
    """Return the message with `extra.pad` so long that it has at least `size_bytes`.

    Who is asked answers whom it does not know yet only with less than it was sent: nobody can use it to amplify.
    """
    data = encode(message)
    missing = size_bytes - len(data)
    extra = message.extra
    if missing <= 0 or extra is None:
        return data
    return encode(
        msgspec.structs.replace(message, extra=msgspec.structs.replace(extra, pad=" " * max(missing - _PAD_MEMBER, 1)))
    )


_PAD_MEMBER: Final = len(b',"pad":""')
