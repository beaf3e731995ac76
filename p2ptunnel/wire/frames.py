"""Frames of a session, and the preamble of a TCP connection: bytes in, values out, and back (docs/protocol/frames.md).

Rule: a payload is a slice of the bytes that came in, never a copy; what is malformed is a RemoteProtocolError, nothing else.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

from msgspec import Struct

from p2ptunnel.defaults import CAPABILITY_MAX_BYTES, SERVICE_MAX_BYTES
from p2ptunnel.errors import LocalProtocolError, RemoteProtocolError
from p2ptunnel.types import clean

__all__ = [
    "FRAMES_VERSION",
    "HEADER",
    "PAYLOAD_MAX_BYTES",
    "PREAMBLE_BYTES",
    "SELECTOR_BYTES",
    "Accept",
    "Ack",
    "Capability",
    "Data",
    "Fin",
    "Frame",
    "FrameReader",
    "FrameType",
    "GoAway",
    "GoAwayCode",
    "Hello",
    "Open",
    "Opened",
    "Ping",
    "Pong",
    "Reset",
    "ResetCode",
    "Resume",
    "Waiting",
    "Window",
    "conkey_to_selector",
    "decode",
    "encode",
    "parse_preamble",
    "payload_length",
    "preamble",
    "selector_to_conkey",
]

FRAMES_VERSION: Final = 1
HEADER: Final = struct.Struct("!BBHI")  # type, flags (0), payload length, stream id (0: the session itself)
PAYLOAD_MAX_BYTES: Final = 65536 - HEADER.size  # no frame exceeds 64 KiB, so a small one never waits long
SELECTOR_BYTES: Final = 16
_MAGIC: Final = b"P2PT/1\r\n"
PREAMBLE_BYTES: Final = len(_MAGIC) + SELECTOR_BYTES
_REASON_MAX_BYTES: Final = 200


class FrameType(enum.IntEnum):
    """First byte of a frame."""

    HELLO = 1
    ACCEPT = 2
    OPEN = 3
    OPENED = 4
    DATA = 5
    FIN = 6
    RESET = 7
    WINDOW = 8
    PING = 9
    PONG = 10
    GOAWAY = 11
    ACK = 12
    RESUME = 13
    WAITING = 14
    CAPABILITY = 15


class ResetCode(enum.IntEnum):
    """Why a stream was reset; a receiver takes an unknown code for CANCELLED."""

    CLOSED = 0  # its sender has finished and reads no more
    CANCELLED = 1
    NOT_YOURS = 2  # no such service, or not for this peer: one answer
    TARGET_REFUSED = 3
    BUSY = 4
    INTERNAL = 5
    UNANSWERED = 6  # the owner was asked, and has not answered


class GoAwayCode(enum.IntEnum):
    """Why a session ends."""

    CLOSED = 0
    REVOKED = 1
    PROTOCOL = 2
    EXPIRED = 3  # whoever wants to resume it comes too late, or to a peer that was restarted


# --- values -----------------------------------------------------------------------------------------------------------


class Hello(Struct, frozen=True):
    """First frame of the caller: the identity's proof, bound to this TLS connection and attempt.

    `session` is the selector of the channel with which the session began; a new session begins where it is this one's own.
    """

    selector: bytes
    session: bytes
    nonce: bytes
    signature: bytes
    v: int = FRAMES_VERSION

    def __repr__(self) -> str:
        return f"Hello(v={self.v})"


class Accept(Struct, frozen=True):
    """First frame of the callee: its proof, and the services that the caller may open."""

    signature: bytes
    services: tuple[str, ...] = ()
    v: int = FRAMES_VERSION

    def __repr__(self) -> str:
        return f"Accept(v={self.v}, services={self.services})"


class Open(Struct, frozen=True):
    """A new stream to `service`; its opener can take `window` bytes. Data may follow at once."""

    stream_id: int
    window: int
    service: str
    interactive: bool = True


class Opened(Struct, frozen=True):
    """The stream is accepted, and its acceptor can take `window` bytes in all before more credit."""

    stream_id: int
    window: int


class Waiting(Struct, frozen=True):
    """The stream's acceptor asks its owner, which may take `patience` seconds."""

    stream_id: int
    patience: int


class Capability(Struct, frozen=True):
    """What its sender has been granted beforehand, signed by its receiver; `ticket` is a secret, and opaque here."""

    ticket: bytes

    def __repr__(self) -> str:
        return f"Capability({len(self.ticket)} bytes)"


class Data(Struct, frozen=True):
    """Bytes of a stream; `payload` is a part of the fed buffer and dies with it."""

    stream_id: int
    payload: memoryview

    def __repr__(self) -> str:
        return f"Data(stream_id={self.stream_id}, {len(self.payload)} bytes)"


class Fin(Struct, frozen=True):
    """No more bytes in this direction."""

    stream_id: int


class Reset(Struct, frozen=True):
    """The stream is over in both directions."""

    stream_id: int
    code: int
    reason: str = ""


class Window(Struct, frozen=True):
    """Another `credit` bytes may be sent on the stream."""

    stream_id: int
    credit: int


class Ping(Struct, frozen=True):
    """Asks for a Pong with the same 8 bytes."""

    payload: bytes


class Pong(Struct, frozen=True):
    """Answers a Ping."""

    payload: bytes


class GoAway(Struct, frozen=True):
    """No new streams; the session ends when the open ones have."""

    code: int
    reason: str = ""


class Ack(Struct, frozen=True):
    """Every sequenced byte below the offset `received` has come."""

    received: int


class Resume(Struct, frozen=True):
    """The session goes on over this channel: its sender has `received` so much, and sends from `start` on what follows here.

    The answer repeats `number`.  The caller leaves `start` 0: it is what the answer says to have been received.
    """

    number: int
    received: int
    start: int = 0


Frame: TypeAlias = (
    Hello | Accept | Open | Opened | Data | Fin | Reset | Window | Ping | Pong | GoAway | Ack | Resume | Waiting | Capability
)


# --- the preamble -------------------------------------------------------------------------------------------------------


def preamble(selector: bytes) -> bytes:
    """Return the bytes that open a TCP connection to a peer, before TLS."""
    if len(selector) != SELECTOR_BYTES:
        raise LocalProtocolError(f"a selector of {len(selector)} bytes, not {SELECTOR_BYTES}")
    return _MAGIC + selector


def parse_preamble(data: bytes) -> bytes | None:
    """Return the selector of a preamble, or None while `data` is only its beginning.

    Raises:
        RemoteProtocolError: This is no preamble, and more bytes would not make it one.
    """
    if data[: len(_MAGIC)] != _MAGIC[: len(data)] or len(data) > PREAMBLE_BYTES:
        raise RemoteProtocolError("the connection does not begin with a preamble")
    return data[len(_MAGIC) :] if len(data) == PREAMBLE_BYTES else None


def selector_to_conkey(selector: bytes) -> str:
    """Return the selector as the `conkey` of a -32 message: 32 lower-case hex characters."""
    return selector.hex()


def conkey_to_selector(conkey: str, source: str = "the peer") -> bytes:
    """Return the selector that a `conkey` spells; `source` says whose it is.

    Raises:
        RemoteProtocolError: It spells none.
    """
    try:
        selector = bytes.fromhex(conkey)
    except ValueError:
        selector = b""
    if len(selector) != SELECTOR_BYTES or selector.hex() != conkey:
        raise RemoteProtocolError("a conkey that is not 32 hex characters", source)
    return selector


# --- frames to bytes ------------------------------------------------------------------------------------------------------

_HELLO: Final = struct.Struct("!B16s16s16s64s")
_ACCEPT: Final = struct.Struct("!B64s")
_OPEN: Final = struct.Struct("!IB")
_CREDIT: Final = struct.Struct("!I")
_CODE: Final = struct.Struct("!H")
_PATIENCE: Final = struct.Struct("!H")
_OFFSET: Final = struct.Struct("!Q")
_RESUME: Final = struct.Struct("!IQQ")


def encode(frame: Frame) -> bytes:
    """Return the bytes of one frame.

    Raises:
        LocalProtocolError: A field does not fit its place.
    """
    try:
        kind, stream_id, payload = _encoded(frame)
        return HEADER.pack(kind, 0, len(payload), stream_id) + payload
    except struct.error as error:
        raise LocalProtocolError(f"a {type(frame).__name__} frame that does not fit: {error}") from error


def _encoded(frame: Frame) -> tuple[FrameType, int, bytes | memoryview]:
    match frame:
        case Data(stream_id, payload):
            return FrameType.DATA, stream_id, payload
        case Window(stream_id, credit):
            return FrameType.WINDOW, stream_id, _CREDIT.pack(credit)
        case Open(stream_id, window, service, interactive):
            return FrameType.OPEN, stream_id, _OPEN.pack(window, 0 if interactive else 1) + _encode_service(service)
        case Opened(stream_id, window):
            return FrameType.OPENED, stream_id, _CREDIT.pack(window)
        case Fin(stream_id):
            return FrameType.FIN, stream_id, b""
        case Reset(stream_id, code, reason):
            return FrameType.RESET, stream_id, _CODE.pack(code) + _encode_reason(reason)
        case Ping(payload):
            return FrameType.PING, 0, payload
        case Pong(payload):
            return FrameType.PONG, 0, payload
        case GoAway(code, reason):
            return FrameType.GOAWAY, 0, _CODE.pack(code) + _encode_reason(reason)
        case Ack(received):
            return FrameType.ACK, 0, _OFFSET.pack(received)
        case Waiting(stream_id, patience):
            return FrameType.WAITING, stream_id, _PATIENCE.pack(patience)
        case Capability(ticket):
            return FrameType.CAPABILITY, 0, ticket
        case Resume(number, received, start):
            return FrameType.RESUME, 0, _RESUME.pack(number, received, start)
        case Hello(selector, session, nonce, signature, v):
            return FrameType.HELLO, 0, _HELLO.pack(v, selector, session, nonce, signature)
        case Accept(signature, services, v):
            return FrameType.ACCEPT, 0, _ACCEPT.pack(v, signature) + _encode_services(services)


def _encode_service(service: str) -> bytes:
    data = service.encode("utf-8", "surrogatepass")
    if not 1 <= len(data) <= SERVICE_MAX_BYTES or not service.isprintable():
        raise LocalProtocolError(f"a service name is 1 to {SERVICE_MAX_BYTES} printable bytes")
    return data


def _encode_services(services: tuple[str, ...]) -> bytes:
    names = b""
    for name in map(_encode_service, services):
        if _ACCEPT.size + len(names) + 1 + len(name) > PAYLOAD_MAX_BYTES:
            break  # the list serves error texts only; what may be opened is decided at OPEN
        names += bytes((len(name),)) + name
    return names


def _encode_reason(reason: str) -> bytes:
    whole = reason.encode("utf-8", "replace")
    return whole[:_REASON_MAX_BYTES].decode("utf-8", "ignore").encode("utf-8")


# --- bytes to frames ------------------------------------------------------------------------------------------------------


def payload_length(header: bytes) -> int:
    """Return how many bytes follow the 8 of a header.

    Raises:
        RemoteProtocolError: No frame begins so.
    """
    return _read_header(header)[1]


def decode(data: bytes) -> Frame:
    """Return the one frame that `data` is.

    Raises:
        RemoteProtocolError: It is none, or not one alone.
    """
    _, length, _ = _read_header(data.ljust(HEADER.size, b"\0"))
    frames = list(FrameReader().feed(memoryview(data)))
    if len(data) != HEADER.size + length or len(frames) != 1:
        raise RemoteProtocolError("bytes that are not one frame")
    return frames[0]


class FrameReader:
    """Cuts the bytes of one pipe into frames, however they arrive.

    A Data frame that the end of a buffer cuts comes in parts, so that no payload is ever held back or moved; of the other
    frames at most one, incomplete, is kept here.

    Attributes:
        offset: Of the sequenced bytes, where the next one will be; set it where they begin at another than 0.
        frame_start: The offset at which the sequenced frame begins that came last, or whose parts are coming.
    """

    def __init__(self) -> None:
        self.offset = 0
        self.frame_start = 0
        self._held: Final = bytearray()  # the beginning of a header or of a frame other than DATA
        self._needed = HEADER.size  # bytes that the held beginning must have before it can be looked at
        self._stream_id = 0  # of the DATA frame under way
        self._missing = 0  # bytes of its payload still to come

    @property
    def is_between_frames(self) -> bool:
        """Whether the last sequenced frame came whole."""
        return not self._missing

    def feed(self, data: memoryview) -> Iterator[Frame]:
        """Yield the frames, and parts of Data frames, in `data`; run it to its end before `data` is reused.

        Raises:
            RemoteProtocolError: The bytes are no frame; nothing that comes after them can be read.
        """
        while data:
            if self._missing:
                payload, data = data[: self._missing], data[self._missing :]
                self._missing -= len(payload)
                self.offset += len(payload)
                yield Data(self._stream_id, payload)
            elif self._held or len(data) < HEADER.size:
                data = self._hold(data)
                if len(self._held) == self._needed and (frame := self._release()):
                    yield frame
            else:
                data, frame = self._next(data)
                if frame:
                    yield frame

    def _next(self, data: memoryview) -> tuple[memoryview, Frame | None]:
        """Read the frame with which `data` begins; return the rest, and the frame if it is whole and no DATA."""
        kind, length, stream_id = _read_header(data)
        rest = data[HEADER.size :]
        if kind == FrameType.DATA:
            self._stream_id, self._missing = stream_id, length
            self._advance(HEADER.size)
            return rest, None
        if len(rest) < length:
            self._needed = HEADER.size + length
            return self._hold(data), None
        if kind not in _OF_THE_CHANNEL:
            self._advance(HEADER.size + length)
        return rest[length:], _DECODERS[kind](stream_id, rest[:length])

    def _advance(self, count: int) -> None:
        self.frame_start = self.offset
        self.offset += count

    def _hold(self, data: memoryview) -> memoryview:
        """Keep what the incomplete frame lacks, as far as `data` has it; return the rest."""
        lacking = self._needed - len(self._held)
        self._held.extend(data[:lacking])
        return data[lacking:]

    def _release(self) -> Frame | None:
        """Look at a held beginning that has all it needed: a header that asks for more, or a frame."""
        kind, length, _ = _read_header(self._held)
        if kind != FrameType.DATA and len(self._held) < HEADER.size + length:
            self._needed = HEADER.size + length
            return None
        whole = memoryview(bytes(self._held))
        self._held.clear()
        self._needed = HEADER.size
        return self._next(whole)[1]


def _read_header(data: memoryview | bytearray | bytes) -> tuple[int, int, int]:
    """Return type, payload length and stream id of a header that is legal by itself."""
    kind, flags, length, stream_id = HEADER.unpack_from(data)
    shortest, longest = _LENGTHS.get(kind, (1, 0))
    if flags or not shortest <= length <= longest or (stream_id == 0) != (kind in _WITHOUT_STREAM):
        raise RemoteProtocolError(f"no frame has type {kind}, flags {flags}, length {length}, stream {stream_id}")
    return kind, length, stream_id


def _decode_hello(_: int, payload: memoryview) -> Hello:
    v, selector, session, nonce, signature = _HELLO.unpack(payload)
    return Hello(selector, session, nonce, signature, v)


def _decode_accept(_: int, payload: memoryview) -> Accept:
    v, signature = _ACCEPT.unpack_from(payload)
    services: list[str] = []
    at = _ACCEPT.size
    while at < len(payload):
        end = at + 1 + payload[at]
        services.append(_decode_service(payload[at + 1 : end]))
        at = end
    if at != len(payload):
        raise RemoteProtocolError("a service name longer than its frame")
    return Accept(signature, tuple(services), v)


def _decode_open(stream_id: int, payload: memoryview) -> Open:
    window, priority = _OPEN.unpack_from(payload)
    return Open(stream_id, window, _decode_service(payload[_OPEN.size :]), interactive=priority == 0)


def _decode_service(data: memoryview) -> str:
    try:
        service = str(data, "utf-8")
    except UnicodeDecodeError:
        service = ""
    if not service or len(data) > SERVICE_MAX_BYTES or not service.isprintable():
        raise RemoteProtocolError(f"a service name that is not 1 to {SERVICE_MAX_BYTES} printable bytes")
    return service


def _decode_reason(payload: memoryview) -> tuple[int, str]:
    (code,) = _CODE.unpack_from(payload)
    return code, clean(str(payload[_CODE.size :], "utf-8", "replace"))


_DECODERS: Final[dict[int, Callable[[int, memoryview], Frame]]] = {
    FrameType.HELLO: _decode_hello,
    FrameType.ACCEPT: _decode_accept,
    FrameType.OPEN: _decode_open,
    FrameType.OPENED: lambda stream_id, payload: Opened(stream_id, *_CREDIT.unpack(payload)),
    FrameType.FIN: lambda stream_id, _: Fin(stream_id),
    FrameType.RESET: lambda stream_id, payload: Reset(stream_id, *_decode_reason(payload)),
    FrameType.WINDOW: lambda stream_id, payload: Window(stream_id, *_CREDIT.unpack(payload)),
    FrameType.PING: lambda _, payload: Ping(bytes(payload)),
    FrameType.PONG: lambda _, payload: Pong(bytes(payload)),
    FrameType.GOAWAY: lambda _, payload: GoAway(*_decode_reason(payload)),
    FrameType.ACK: lambda _, payload: Ack(*_OFFSET.unpack(payload)),
    FrameType.RESUME: lambda _, payload: Resume(*_RESUME.unpack(payload)),
    FrameType.WAITING: lambda stream_id, payload: Waiting(stream_id, *_PATIENCE.unpack(payload)),
    FrameType.CAPABILITY: lambda _, payload: Capability(bytes(payload)),
}

_LENGTHS: Final[dict[int, tuple[int, int]]] = {
    FrameType.HELLO: (_HELLO.size, _HELLO.size),
    FrameType.ACCEPT: (_ACCEPT.size, PAYLOAD_MAX_BYTES),
    FrameType.OPEN: (_OPEN.size + 1, _OPEN.size + SERVICE_MAX_BYTES),
    FrameType.OPENED: (_CREDIT.size, _CREDIT.size),
    FrameType.DATA: (1, PAYLOAD_MAX_BYTES),
    FrameType.FIN: (0, 0),
    FrameType.RESET: (_CODE.size, _CODE.size + _REASON_MAX_BYTES),
    FrameType.WINDOW: (_CREDIT.size, _CREDIT.size),
    FrameType.PING: (8, 8),
    FrameType.PONG: (8, 8),
    FrameType.GOAWAY: (_CODE.size, _CODE.size + _REASON_MAX_BYTES),
    FrameType.ACK: (_OFFSET.size, _OFFSET.size),
    FrameType.RESUME: (_RESUME.size, _RESUME.size),
    FrameType.WAITING: (_PATIENCE.size, _PATIENCE.size),
    FrameType.CAPABILITY: (1, CAPABILITY_MAX_BYTES),
}

_OF_THE_CHANNEL: Final = frozenset(
    {FrameType.HELLO, FrameType.ACCEPT, FrameType.PING, FrameType.PONG, FrameType.ACK, FrameType.RESUME}
)
"""What concerns one channel and is not sent again on the next; all other frames are sequenced."""
_WITHOUT_STREAM: Final = _OF_THE_CHANNEL | {FrameType.GOAWAY, FrameType.CAPABILITY}
