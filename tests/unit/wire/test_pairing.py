"""Frames of a pairing."""

from __future__ import annotations

import contextlib
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.errors import LocalProtocolError, RemoteProtocolError
from p2ptunnel.wire.pairing import (
    PAIRING_HEADER,
    Done,
    Exchange,
    Paired,
    PairingFrame,
    Proof,
    ProofKind,
    Refused,
    RefusedCode,
    Reply,
    decode,
    encode,
    payload_length,
)

ELEMENT, PROOF = bytes(range(32)), bytes(range(32, 64))
FRAMES: list[tuple[PairingFrame, str]] = [
    (Exchange(ELEMENT), "010021" + "01" + ELEMENT.hex()),
    (Reply(ELEMENT), "020020" + ELEMENT.hex()),
    (Proof(ProofKind.TICKET, PROOF, "laptop"), "030028" + "0101" + PROOF.hex() + b"laptop".hex()),
    (Proof(ProofKind.CODE, PROOF, "a"), "030023" + "0102" + PROOF.hex() + b"a".hex()),
    (Paired(PROOF), "040021" + PROOF.hex() + "00"),
    (
        Paired(PROOF, MappingProxyType({"ssh": ("ssh-rsa AA", "ssh-dss BB"), "web": ()})),
        "040042"
        + PROOF.hex()
        + "02"
        + "03"
        + b"ssh".hex()
        + "0015"
        + b"ssh-rsa AA\nssh-dss BB".hex()
        + "03"
        + b"web".hex()
        + "0000",
    ),
    (Refused(RefusedCode.TOO_SOON), "05000102"),
    (Done(), "060000"),
]


@pytest.mark.parametrize(("frame", "wire"), FRAMES)
def test_a_frame_has_these_bytes(frame: PairingFrame, wire: str) -> None:
    assert encode(frame).hex() == wire
    assert decode(bytes.fromhex(wire)) == frame


@pytest.mark.parametrize("frame", [frame for frame, _ in FRAMES])
def test_no_frame_shows_what_it_proves(frame: PairingFrame) -> None:
    assert ELEMENT.hex()[:16] not in repr(frame)
    assert repr(PROOF)[2:20] not in repr(frame)
    assert repr(ELEMENT)[2:20] not in repr(frame)


@pytest.mark.parametrize(
    "wire",
    [
        "",
        "0600",
        "07000100",  # no such type
        "000000",
        "060001ff",  # a payload where none belongs
        "010020" + "00" * 32,  # short
        "010021" + "02" + "00" * 32,  # another version
        "030023" + "0103" + "00" * 32 + "61",  # a proof of no kind
        "030023" + "0101" + "00" * 32 + "2d",  # no tag
        "030022" + "0101" + "00" * 32,  # an empty one
        "030024" + "0201" + "00" * 32 + "6161",
        "040021" + "00" * 32 + "01",  # a service that is not there
        "040024" + "00" * 32 + "01" + "0361ff",
        "040025" + "00" * 32 + "01" + "01ff0000",  # no text
        "040025" + "00" * 32 + "01" + "010a0000",  # not printable
        "040024" + "00" * 32 + "01" + "000000",  # a name of no length
        "040025" + "00" * 32 + "00" + "01610000",  # more than it says
        "040029" + "00" * 32 + "02" + "01610000" * 2,  # twice the same
        "040026" + "00" * 32 + "01" + "01610001ff",  # keys that are no text
    ],
)
def test_what_is_no_frame_is_an_error_of_theirs(wire: str) -> None:
    with pytest.raises(RemoteProtocolError):
        decode(bytes.fromhex(wire))


@given(st.binary(max_size=120))
def test_whatever_comes_is_a_frame_or_an_error_of_theirs(data: bytes) -> None:
    try:
        frame = decode(data)
    except RemoteProtocolError:
        return
    assert encode(frame) == data


@given(st.sampled_from([encode(frame) for frame, _ in FRAMES]), st.data())
def test_one_damaged_byte_never_is_more_than_an_error_of_theirs(wire: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(wire) - 1))
    damaged = wire[:place] + bytes([data.draw(st.integers(0, 255))]) + wire[place + 1 :]
    try:
        frame = decode(damaged)
    except RemoteProtocolError:
        return
    assert encode(frame) == damaged


@given(st.binary(min_size=PAIRING_HEADER.size, max_size=PAIRING_HEADER.size))
def test_no_header_announces_more_than_32_kib(header: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        assert payload_length(header) <= 32 * 1024


@pytest.mark.parametrize(
    "frame",
    [Exchange(bytes(31)), Reply(b""), Proof(ProofKind.CODE, PROOF, ""), Paired(PROOF, {"x": ("y" * 40_000,)}), Paired(b"")],
)
def test_what_does_not_fit_is_our_own_mistake(frame: PairingFrame) -> None:
    with pytest.raises(LocalProtocolError):
        encode(frame)
