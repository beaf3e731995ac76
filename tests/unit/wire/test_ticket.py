"""Tickets."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.errors import InvalidCodeError, LocalProtocolError
from p2ptunnel.wire.ticket import Ticket, is_ticket, parse_ticket

TICKET = Ticket(("rv.example", 7000), "home-nas", bytes(range(32)), bytes(range(100, 116)))


def spelt(body: bytes) -> str:
    """A ticket of any body, with the checksum that it should have."""
    data = body + hashlib.sha256(body).digest()[:4]
    return "p2pt1" + base64.b32encode(data).decode().rstrip("=").lower()


def decoded(ticket: str) -> bytes:
    letters = ticket.removeprefix("p2pt1").upper()
    return base64.b32decode(letters + "=" * (-len(letters) % 8))


def body() -> bytes:
    """The body of the ticket of these tests."""
    return decoded(str(TICKET))[:-4]


def test_a_ticket_reads_back() -> None:
    assert parse_ticket(str(TICKET)) == TICKET
    with_key = Ticket(("2001:db8::7", 443), "a", bytes(32), bytes(16), bytes([9]) * 32)
    assert parse_ticket(str(with_key)) == with_key


def test_the_bytes_of_a_ticket_are_as_the_page_says() -> None:
    expected = bytes(32) + bytes(range(32)) + bytes(range(100, 116)) + b"\x0frv.example:7000" + b"\x08home-nas"
    assert body() == expected
    assert str(TICKET) == spelt(expected)


def test_a_ticket_survives_capitals_and_line_breaks() -> None:
    text = str(TICKET).upper()
    assert parse_ticket(f"  {text[:40]}\n {text[40:90]}\r\n{text[90:]} ") == TICKET
    assert is_ticket(f" {text[:3]}\n{text[3:]}")


def test_a_ticket_does_not_show_its_secret() -> None:
    assert repr(TICKET) == "Ticket(server=rv.example:7000, tag=home-nas)"


@given(st.integers(5, len(str(TICKET)) - 1), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567"))
def test_one_wrong_letter_is_noticed(place: int, letter: str) -> None:
    text = str(TICKET)
    damaged = text[:place] + letter + text[place + 1 :]
    if damaged == text:
        return
    with pytest.raises(InvalidCodeError) as caught:
        parse_ticket(damaged)
    assert damaged[5:20] not in f"{caught.value}{caught.value.hint}"


def test_a_letter_that_was_misread_is_told_as_that() -> None:
    text = str(TICKET)
    with pytest.raises(InvalidCodeError, match="its checksum does not fit"):
        parse_ticket(text[:80] + ("b" if text[80] != "b" else "c") + text[81:])


@given(st.integers(0, len(str(TICKET)) - 1))
def test_a_part_of_a_ticket_is_none(length: int) -> None:
    with pytest.raises(InvalidCodeError):
        parse_ticket(str(TICKET)[:length])


@given(st.text(max_size=300))
def test_whatever_is_typed_is_a_ticket_or_an_error_of_ours(text: str) -> None:
    for candidate in (text, "p2pt1" + text):
        with pytest.raises(InvalidCodeError):
            parse_ticket(candidate)


@given(st.binary(max_size=200))
def test_whatever_has_a_checksum_is_a_ticket_or_an_error_of_ours(data: bytes) -> None:
    try:
        ticket = parse_ticket(spelt(data))
    except InvalidCodeError:
        return
    assert str(ticket) == spelt(data)


@pytest.mark.parametrize(
    "made",
    [
        body()[:70],  # too short
        body() + b"x",  # more than there is
        body()[:-1],  # ends within the tag
        body()[:80] + b"\x0arv.example" + b"\x08home-nas",  # a server without a port
        body()[:80] + b"\x0frv.example:7000" + b"\x08Home-Nas",  # no tag
        body()[:80] + b"\x0frv\x1b[1mmple:7000" + b"\x08home-nas",  # a name that a terminal would obey
        body()[:80] + b"\x0frv\xff\xff\xff\xff\xff\xff\xff:7000\x20" + b"\x08home-nas",
    ],
)
def test_a_ticket_of_another_making_is_refused(made: bytes) -> None:
    with pytest.raises(InvalidCodeError):
        parse_ticket(spelt(made))


def test_a_second_spelling_is_refused() -> None:
    text = str(TICKET)
    others = [text[:-1] + letter for letter in "abcdefghijklmnopqrstuvwxyz234567" if letter != text[-1]]
    spare = [other for other in others if decoded(other) == decoded(text)]
    assert len(spare) == 7  # the last letter has three bits that mean nothing
    for other in spare:
        with pytest.raises(InvalidCodeError, match="one spelling"):
            parse_ticket(other)


@pytest.mark.parametrize(
    "ticket",
    [
        Ticket(("rv.example", 7000), "home-nas", bytes(31), bytes(16)),
        Ticket(("rv.example", 7000), "home-nas", bytes(32), bytes(15)),
        Ticket(("rv.example" * 30, 7000), "home-nas", bytes(32), bytes(16)),
    ],
)
def test_what_does_not_fit_is_our_own_mistake(ticket: Ticket) -> None:
    with pytest.raises(LocalProtocolError):
        str(ticket)
