"""Keys and what they sign.  Rule: no clock, no file, no socket, and nothing secret in any text.

A peer is its Ed25519 public key.  The text form `p2p:` + 52 base32 characters is the key itself; fingerprints are for eyes.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import struct
from typing import Final, NoReturn, Self

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2ptunnel.errors import InvalidKeyError

__all__ = ["KEY_BYTES", "SIGNATURE_BYTES", "Identity", "PublicKey", "Purpose", "registration_payload", "signed_bytes"]

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_PREFIX: Final = "p2p:"
_TEXT_CHARACTERS: Final = 52
_TAG_BYTES: Final = 64

# Every encoding of a point of order 1, 2, 4 or 8: under such a key one constant signature fits every message, or every eighth.
# Five y coordinates and the two of them that stay below 2^255 with p added, each with either sign (RFC 8032 5.1.3).
_SMALL_ORDER_Y: Final = (
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
)
SMALL_ORDER: Final = frozenset(
    bytes((*raw[:31], raw[31] | sign)) for raw in map(bytes.fromhex, _SMALL_ORDER_Y) for sign in (0x00, 0x80)
)


class Purpose(bytes, enum.Enum):
    """What a signature or MAC is for: it opens the signed bytes, so that none passes for another."""

    INTENT = b"p2pt-intent-1"
    ANSWER = b"p2pt-answer-1"
    REGISTRATION = b"p2pt-reg-1"
    RELAY = b"p2pt-relay-1"
    HELLO = b"p2pt-hello-1"
    ACCEPT = b"p2pt-accept-1"
    PAIRING = b"p2pt-pair-1"
    TICKET = b"p2pt-ticket-1"
    CAPABILITY = b"p2pt-capability-1"
    REKEY = b"p2pt-rekey-1"
    SERVER = b"p2pt-server-1"
    JOIN = b"p2pt-join-1"
    MEMBER = b"p2pt-member-1"
    GRANT = b"p2pt-grant-1"


class PublicKey(msgspec.Struct, frozen=True, order=True):
    """A peer's Ed25519 public key: 32 bytes, hashable, ordered by its bytes.

    Raises:
        InvalidKeyError: Not 32 bytes, or one of the 14 encodings of a point of small order.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != KEY_BYTES:
            raise InvalidKeyError(f"{len(self.raw)} bytes, not {KEY_BYTES}")
        if self.raw in SMALL_ORDER:
            raise InvalidKeyError("a point of small order proves nothing")

    @classmethod
    def from_bytes(cls, raw: bytes | bytearray | memoryview) -> Self:
        """Return the key with these 32 bytes.

        Raises:
            InvalidKeyError: They are no usable key.
        """
        return cls(bytes(raw))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key that `text` spells: `p2p:` and 52 characters of lower-case base32, nothing around them.

        Raises:
            InvalidKeyError: It spells none.
        """
        body = text.removeprefix(_PREFIX)
        if body == text or len(body) != _TEXT_CHARACTERS or not body.isascii():
            raise InvalidKeyError(f"it is not {_PREFIX} and {_TEXT_CHARACTERS} characters")
        try:
            raw = base64.b32decode(body.upper() + "====")
        except ValueError as error:
            raise InvalidKeyError("it has a character that is not a-z or 2-7") from error
        key = cls(raw)
        if str(key) != text:  # upper case, or bits behind the last byte: one key has one spelling
            raise InvalidKeyError("it is not in the one spelling of this key")
        return key

    def __str__(self) -> str:
        return _PREFIX + base64.b32encode(self.raw).decode("ascii").rstrip("=").lower()

    def __repr__(self) -> str:
        return f"PublicKey({self})"

    @property
    def short(self) -> str:
        """The first 8 characters behind `p2p:`, for logs and tables; never compared."""
        return str(self)[len(_PREFIX) :][:8]

    @property
    def fingerprint(self) -> str:
        """`SHA256:…` as OpenSSH prints it for this key as an ssh-ed25519 key."""
        kind = b"ssh-ed25519"
        blob = struct.pack("!I", len(kind)) + kind + struct.pack("!I", KEY_BYTES) + self.raw
        return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Tell whether `signature` is by this key over `message`; a signature of a wrong length is not."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True


class Identity:
    """This machine's key pair.  It cannot be pickled or copied, and its repr shows the public half only."""

    __slots__ = ("__weakref__", "private_key", "public")

    private_key: Final[Ed25519PrivateKey]
    """For certificates and the key file; nothing else has use for it."""

    public: Final[PublicKey]

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self.private_key = private_key
        self.public = PublicKey(private_key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> Self:
        """Return a new identity from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """Return the identity of a 32-byte secret seed (RFC 8032 5.1.5).

        Raises:
            InvalidKeyError: The seed has another length.
        """
        if len(seed) != KEY_BYTES:
            raise InvalidKeyError(f"a seed of {len(seed)} bytes, not {KEY_BYTES}")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over `message`; begin the message with a `Purpose` (`signed_bytes`)."""
        return self.private_key.sign(message)

    def __repr__(self) -> str:
        return f"Identity({self.public})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an identity is not pickled or copied: its key stays in one place")


def signed_bytes(purpose: Purpose, *fields: bytes) -> bytes:
    """Return what is signed for `purpose`: its name, a zero byte, the fields; each field has a fixed width."""
    return b"".join((purpose.value, b"\0", *fields))


def registration_payload(server_key: bytes, tag: str, key: bytes, ts: int, nonce: bytes, cookie: bytes) -> bytes:
    """Return what a registration (t=1) signs.

    Args:
        server_key: 32 bytes; without it a server could have a client sign another server's cookie.
        tag: At most 64 bytes; padded with zeros.
        key: 32 bytes, the registering peer's.
        ts: The signer's counter, 0 to 2^64-1.
        nonce: 16 bytes.
        cookie: 16 bytes, as the server sent it.

    Raises:
        ValueError: A field is not of its width.

    Source: docs/explanation/security.md.
    """
    fields = (server_key, tag.encode("ascii").ljust(_TAG_BYTES, b"\0"), key, _counter(ts), nonce, cookie)
    widths = (KEY_BYTES, _TAG_BYTES, KEY_BYTES, 8, 16, 16)
    if tuple(map(len, fields)) != widths:
        raise ValueError(f"fields of {[len(field) for field in fields]} bytes, not {list(widths)}")
    return signed_bytes(Purpose.REGISTRATION, *fields)


def _counter(ts: int) -> bytes:
    if not 0 <= ts < 2**64:
        raise ValueError("a counter outside 0 to 2^64-1")
    return ts.to_bytes(8, "big")
