"""STUN Binding: the test vectors of RFC 5769, and what damage does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.wire.stun import (
    BindingRequest,
    BindingResponse,
    MalformedStunError,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    is_stun,
)

ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")

RFC_5769_IPV4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"  # SOFTWARE "test vector"
    "002000080001a147e112a643"  # XOR-MAPPED-ADDRESS
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"  # MESSAGE-INTEGRITY
    "80280004c07d4c96"  # FINGERPRINT
)
RFC_5769_IPV6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9"
    "00080014a382954e4be67bf11784c97c8292c275bfe3ed41"
    "80280004c8fb0b4c"
)

addresses = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))
ids = st.binary(min_size=12, max_size=12)


def bare(kind: int, attributes: bytes = b"") -> bytes:
    """A message of `kind` with these attributes."""
    return kind.to_bytes(2, "big") + len(attributes).to_bytes(2, "big") + bytes.fromhex("2112a442") + ID + attributes


def test_response_of_rfc_5769_over_ipv4_is_understood() -> None:
    assert decode_response(RFC_5769_IPV4) == BindingResponse(ID, ("192.0.2.1", 32853))


def test_response_of_rfc_5769_over_ipv6_is_understood() -> None:
    mapped = ("2001:db8:1234:5678:11:2233:4455:6677", 32853)
    assert decode_response(RFC_5769_IPV6) == BindingResponse(ID, mapped)


@pytest.mark.parametrize("vector", [RFC_5769_IPV4, RFC_5769_IPV6], ids=["IPv4", "IPv6"])
def test_fingerprint_finds_every_flipped_bit_of_the_header_and_the_address(vector: bytes) -> None:
    address = range(40, len(vector) - 8 - 24)
    fingerprint = range(len(vector) - 4, len(vector))
    for byte in (*range(20), *address, *fingerprint):
        for bit in range(8):
            damaged = bytearray(vector)
            damaged[byte] ^= 1 << bit
            with pytest.raises(MalformedStunError):
                decode_response(bytes(damaged))


def test_fingerprint_must_come_last() -> None:
    software = bytes.fromhex("8022000474657374")
    longer = RFC_5769_IPV4[:2] + (0x3C + len(software)).to_bytes(2, "big") + RFC_5769_IPV4[4:] + software
    with pytest.raises(MalformedStunError):
        decode_response(longer)


def test_request_has_these_bytes() -> None:
    assert encode_request(ID) == bytes.fromhex("000100182112a442b7e7a701bc34d686fa87dfae80220014") + (b"p2ptunnel           ")


def test_response_has_the_bytes_of_the_vector() -> None:
    encoded = encode_response(ID, ("192.0.2.1", 32853))
    assert encoded == bytes.fromhex("0101000c2112a442b7e7a701bc34d686fa87dfae002000080001a147e112a643")


def test_request_is_read_back() -> None:
    assert decode_request(encode_request(ID)) == BindingRequest(ID)


def test_request_of_twenty_bytes_is_legal() -> None:
    assert decode_request(bare(0x0001)) == BindingRequest(ID)


def test_request_without_twelve_bytes_of_id_is_not_made() -> None:
    with pytest.raises(ValueError, match="11 bytes"):
        encode_request(ID[:-1])


def test_request_that_asks_for_what_we_cannot_do_is_refused() -> None:
    change_request = bytes.fromhex("0003000400000006")  # answer from the other address and port
    with pytest.raises(MalformedStunError):
        decode_request(bare(0x0001, change_request))


def test_response_with_an_unknown_attribute_that_must_be_understood_is_refused() -> None:
    mapped = bytes.fromhex("002000080001a147e112a643")
    with pytest.raises(MalformedStunError):
        decode_response(bare(0x0101, mapped + bytes.fromhex("0777000400000000")))


def test_response_without_an_address_is_refused() -> None:
    with pytest.raises(MalformedStunError):
        decode_response(bare(0x0101))


def test_of_two_addresses_the_first_counts() -> None:
    first, second = bytes.fromhex("002000080001a147e112a643"), bytes.fromhex("002000080001ffffffffffff")
    assert decode_response(bare(0x0101, first + second)).mapped == ("192.0.2.1", 32853)


@pytest.mark.parametrize(
    "data",
    [b"", b'{"t":30}', bytes(20), bytes.fromhex("4001000021" + "12a442") + ID, encode_request(ID)[:19]],
    ids=["nothing", "JSON", "zeros", "top bits", "short"],
)
def test_other_datagrams_are_no_stun(data: bytes) -> None:
    assert not is_stun(data)


@given(ids, addresses)
def test_response_is_read_back(transaction_id: bytes, mapped: tuple[str, int]) -> None:
    decoded = decode_response(encode_response(transaction_id, mapped))
    assert decoded == BindingResponse(transaction_id, mapped)


@given(ids, addresses)
def test_no_answer_is_longer_than_its_question(transaction_id: bytes, mapped: tuple[str, int]) -> None:
    assert len(encode_response(transaction_id, mapped)) <= len(encode_request(transaction_id))


@given(st.one_of(st.binary(max_size=100), st.binary(max_size=60).map(lambda tail: bare(0x0101, tail))))
def test_damage_raises_nothing_else(data: bytes) -> None:
    for decode in (decode_request, decode_response):
        try:
            decode(data)
        except MalformedStunError:
            continue


@given(st.sampled_from([RFC_5769_IPV4, RFC_5769_IPV6]), st.data())
def test_every_truncation_is_noticed(vector: bytes, data: st.DataObject) -> None:
    with pytest.raises(MalformedStunError):
        decode_response(vector[: data.draw(st.integers(0, len(vector) - 1))])
