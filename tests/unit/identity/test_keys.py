"""Keys: their one spelling, the points that prove nothing, signatures, and that the secret half shows nowhere."""

from __future__ import annotations

import copy
import pickle
import traceback

import asyncssh
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.errors import InvalidKeyError
from p2ptunnel.identity.keys import SMALL_ORDER, Identity, PublicKey, Purpose, registration_payload, signed_bytes

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
SEED = bytes(range(32))
KEY = Identity.from_seed(SEED).public
RAW = bytes.fromhex("03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8")
TEXT = "p2p:aoqqpp7tzyil4hlq3umoos6atft6jvrqtosq2xy53sdgiesvgg4a"


# --- points of small order ----------------------------------------------------------------------------------------------


def add(p: tuple[int, int], q: tuple[int, int]) -> tuple[int, int]:
    """The sum of two points of the curve (RFC 8032 5.1.4, affine)."""
    (x1, y1), (x2, y2) = p, q
    product = D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P
    return x, y


def roots(square: int) -> list[int]:
    """The square roots modulo P."""
    root = pow(square, (P + 3) // 8, P)
    candidates = {root, root * pow(2, (P - 1) // 4, P) % P}
    return sorted({r for c in candidates for r in (c, -c % P) if r * r % P == square % P})


def points_at(y: int) -> list[tuple[int, int]]:
    return [(x, y) for x in roots((y * y - 1) * pow(D * y * y + 1, -1, P) % P)]


def small_order_ys() -> set[int]:
    """The y coordinates of the eight points that eight times themselves are the identity.

    Doubling twice from a point of order 8 gives order 2, whose y is -1; y of order 8 solves d*y^4 + 2*y^2 - 1 = 0.
    """
    found = {0, 1, P - 1}
    for squared in ((-1 + root) * pow(D, -1, P) % P for root in roots(1 + D)):
        found.update(roots(squared))
    return found


def test_the_table_of_small_order_is_complete() -> None:
    ys = small_order_ys()
    for y in ys:
        for point in points_at(y):
            double = add(point, point)
            fourfold = add(double, double)
            assert add(fourfold, fourfold) == (0, 1)
    assert sum(len(points_at(y)) for y in ys) == 8
    encodings = [number.to_bytes(32, "little") for y in ys for number in (y, y + P) if number < 2**255]
    assert {bytes([*raw[:31], raw[31] | sign]) for raw in encodings for sign in (0, 0x80)} == SMALL_ORDER
    assert len(SMALL_ORDER) == 14


@pytest.mark.parametrize("raw", sorted(SMALL_ORDER), ids=bytes.hex)
def test_a_key_of_small_order_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidKeyError, match="a point of small order proves nothing"):
        PublicKey.from_bytes(raw)


# --- spelling ---------------------------------------------------------------------------------------------------------


def test_a_key_has_this_text() -> None:
    assert KEY.raw == RAW
    assert str(KEY) == TEXT
    assert PublicKey.parse(TEXT) == KEY
    assert KEY.short == "aoqqpp7t"
    assert repr(KEY) == f"PublicKey({TEXT})"


def test_the_fingerprint_is_the_one_that_openssh_shows() -> None:
    openssh = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    line = Ed25519PublicKey.from_public_bytes(RAW).public_bytes(*openssh)
    assert asyncssh.import_public_key(line).get_fingerprint() == KEY.fingerprint


def asyncssh_key(seed: bytes) -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(seed)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())


@given(st.binary(min_size=32, max_size=32).filter(lambda raw: raw not in SMALL_ORDER))
def test_a_key_survives_its_text(raw: bytes) -> None:
    assert PublicKey.parse(str(PublicKey.from_bytes(raw))).raw == raw


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is not p2p: and 52 characters"),
        (TEXT[4:], "it is not p2p: and 52 characters"),
        (TEXT[:-1], "it is not p2p: and 52 characters"),
        (TEXT + "a", "it is not p2p: and 52 characters"),
        (TEXT + "\n", "it is not p2p: and 52 characters"),
        ("p2p:" + TEXT, "it is not p2p: and 52 characters"),
        (TEXT[:-1] + "ä", "it is not p2p: and 52 characters"),
        (TEXT[:-1] + "1", "it has a character that is not a-z or 2-7"),
        (TEXT[:-1] + "=", "it has a character that is not a-z or 2-7"),
        (TEXT[:-1] + "b", "it is not in the one spelling of this key"),
        ("p2p:" + TEXT[4:].upper(), "it is not in the one spelling of this key"),
    ],
)
def test_what_is_not_a_keys_text_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidKeyError) as error:
        PublicKey.parse(text)
    assert error.value.reason == reason


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_has_32_bytes(length: int) -> None:
    with pytest.raises(InvalidKeyError, match=f"{length} bytes, not 32"):
        PublicKey.from_bytes(bytes(length))


def test_keys_compare_and_hash_by_their_bytes() -> None:
    low, high = PublicKey(b"\x02" * 32), PublicKey(b"\x03" * 32)
    assert low < high
    assert len({low, PublicKey.from_bytes(bytearray(b"\x02" * 32)), high}) == 2


# --- signatures -------------------------------------------------------------------------------------------------------


def test_a_signature_is_checked_over_every_bit() -> None:
    identity = Identity.generate()
    signature = identity.sign(b"message")
    assert identity.public.verify(signature, b"message")
    assert not identity.public.verify(signature, b"messagf")
    assert not KEY.verify(signature, b"message")
    for place in range(64):
        flipped = bytes(byte ^ (1 if at == place else 0) for at, byte in enumerate(signature))
        assert not identity.public.verify(flipped, b"message")
    for wrong in (b"", signature[:-1], signature + b"x"):
        assert not identity.public.verify(wrong, b"message")


def test_no_purpose_begins_another() -> None:
    openings = [signed_bytes(purpose) for purpose in Purpose]
    assert len(openings) == len(Purpose.__members__)  # two names of one value would be one member
    assert all(one is other or not one.startswith(other) for one in openings for other in openings)
    assert signed_bytes(Purpose.HELLO, b"a", b"b") == b"p2pt-hello-1\0ab"


def test_a_registration_signs_fields_of_fixed_width() -> None:
    payload = registration_payload(b"S" * 32, "home-nas", b"K" * 32, 258, b"N" * 16, b"C" * 16)
    expected = b"p2pt-reg-1\0" + b"S" * 32 + b"home-nas" + bytes(56) + b"K" * 32 + bytes([0] * 6 + [1, 2]) + b"N" * 16
    assert payload == expected + b"C" * 16


@pytest.mark.parametrize(
    "fields",
    [
        (b"S" * 31, "x", b"K" * 32, 1, b"N" * 16, b"C" * 16),
        (b"S" * 32, "x" * 65, b"K" * 32, 1, b"N" * 16, b"C" * 16),
        (b"S" * 32, "x", b"K" * 33, 1, b"N" * 16, b"C" * 16),
        (b"S" * 32, "x", b"K" * 32, -1, b"N" * 16, b"C" * 16),
        (b"S" * 32, "x", b"K" * 32, 2**64, b"N" * 16, b"C" * 16),
        (b"S" * 32, "x", b"K" * 32, 1, b"N" * 15, b"C" * 16),
        (b"S" * 32, "x", b"K" * 32, 1, b"N" * 16, b""),
    ],
)
def test_a_registration_field_of_another_width_is_refused(fields: tuple[bytes, str, bytes, int, bytes, bytes]) -> None:
    with pytest.raises(ValueError, match=r"fields of|a counter outside"):
        registration_payload(*fields)


# --- the secret half --------------------------------------------------------------------------------------------------


def test_an_identity_shows_its_public_half_only() -> None:
    identity = Identity.from_seed(SEED)
    assert repr(identity) == f"Identity({TEXT})"
    assert str(identity) == repr(identity)


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_an_identity_is_neither_pickled_nor_copied(duplicate: object) -> None:
    assert callable(duplicate)
    with pytest.raises(TypeError, match="not pickled or copied") as error:
        duplicate(Identity.from_seed(SEED))
    assert SEED.hex() not in "".join(traceback.format_exception(error.value))


def test_a_seed_of_another_length_is_refused_and_not_shown() -> None:
    with pytest.raises(InvalidKeyError) as error:
        Identity.from_seed(b"secret")
    assert str(error.value) == "not a usable public key: a seed of 6 bytes, not 32"
