"""The exchange under a spoken code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from p2ptunnel.errors import PairingError
from p2ptunnel.identity.exchange import CodeExchange
from p2ptunnel.identity.keys import SMALL_ORDER
from tests.helpers.pairing import GUEST, HOST, WORDS

P = 2**255 - 19
MALFORMED = {
    "empty": b"",
    "zero": bytes(32),
    "identity": b"\x01" + bytes(31),
    "low order": next(raw for raw in sorted(SMALL_ORDER) if raw[0] == 0x26),
    "not below p": (P + 2).to_bytes(32, "little"),
    "no point": b"\x02" + bytes(31),
    "wrong group": b"\x03" + bytes(31),
    "too long": bytes(33),
}


def exchange(words: str = WORDS, *, is_host: bool) -> CodeExchange:
    return CodeExchange(words, GUEST.public, HOST.public, is_host=is_host)


def test_the_same_words_and_keys_come_to_the_same() -> None:
    guest, host = exchange(is_host=False), exchange(is_host=True)
    assert guest.finish(host.element) == host.finish(guest.element)
    assert len(guest.element) == len(host.element) == 32


def test_other_words_come_to_something_else() -> None:
    guest, host = exchange(is_host=False), exchange("apple-river-zone", is_host=True)
    assert guest.finish(host.element) != host.finish(guest.element)


def test_other_keys_come_to_something_else() -> None:
    guest, host = exchange(is_host=False), CodeExchange(WORDS, HOST.public, HOST.public, is_host=True)
    assert guest.finish(host.element) != host.finish(guest.element)


@pytest.mark.parametrize("is_host", [True, False])
@pytest.mark.parametrize("element", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_element_fails_in_one_way(element: bytes, is_host: bool) -> None:
    with pytest.raises(PairingError, match="no such thing"):
        exchange(is_host=is_host).finish(element)


@pytest.mark.parametrize("change", [lambda raw: raw + b"x", lambda raw: raw[:-1]])
def test_a_right_element_of_another_length_fails_too(change: Callable[[bytes], bytes]) -> None:
    guest, host = exchange(is_host=False), exchange(is_host=True)
    with pytest.raises(PairingError, match="no such thing"):
        guest.finish(change(host.element))


@pytest.mark.parametrize("is_host", [True, False])
def test_our_own_element_reflected_fails_in_the_same_way(is_host: bool) -> None:
    side = exchange(is_host=is_host)
    with pytest.raises(PairingError, match="no such thing"):
        side.finish(side.element)


def test_an_exchange_is_finished_once() -> None:
    guest, host = exchange(is_host=False), exchange(is_host=True)
    guest.finish(host.element)
    with pytest.raises(PairingError):
        guest.finish(host.element)
