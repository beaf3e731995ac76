"""Keyed datagrams: what is genuine is let through once; anything else never, and the message stays what it was."""

from __future__ import annotations

import json
import random

import pytest

from p2ptunnel.wire.keyed import KeyedReceiver, KeyedSender, ReplayWindow
from p2ptunnel.wire.messages import (
    ConkeyExtra,
    HoleAnswer,
    HoleProbe,
    Message,
    Opener,
    OpenTcp,
    OpenTcpAnswer,
    OpenTcpExtra,
    decode,
    encode,
)

KEY, OTHER = bytes(range(32)), bytes(32)
TOKEN = "8f14e45fceea167a5a36dedd4bea2543"
MESSAGES: list[Message] = [
    Opener(),
    HoleProbe(mid=1, token=TOKEN),
    HoleAnswer(mid=1, token=TOKEN),
    OpenTcp(mid=2, token=TOKEN, extra=OpenTcpExtra(op=1)),
    OpenTcpAnswer(mid=2, token=TOKEN, code=200, em="", extra=ConkeyExtra(conkey="c9" * 16)),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_keyed_message_is_genuine_and_reads_as_it_did(message: Message) -> None:
    datagram = KeyedSender(KEY).seal(encode(message))
    assert KeyedReceiver(KEY).open(datagram)
    assert decode(datagram) == message
    assert list(json.loads(datagram)["extra"])[-2:] == ["s", "m"]
    assert len(datagram) <= len(encode(message)) + 45


def test_a_refusal_without_a_body_gets_one() -> None:
    datagram = KeyedSender(KEY).seal(encode(OpenTcpAnswer(mid=2, token=TOKEN, code=403, em='"extra":null}')))
    assert KeyedReceiver(KEY).open(datagram)
    answer = decode(datagram)
    assert isinstance(answer, OpenTcpAnswer)
    assert (answer.code, answer.em, answer.extra) == (403, '"extra":null}', ConkeyExtra())


def test_an_opener_has_53_bytes() -> None:
    assert len(KeyedSender(KEY).seal(encode(Opener()))) == 53


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_without_the_key_nothing_is_genuine(message: Message) -> None:
    receiver = KeyedReceiver(KEY)
    for datagram in (encode(message), KeyedSender(OTHER).seal(encode(message)), b"", b'"}}', b"x" * 25):
        assert not receiver.open(datagram)
        assert not receiver.is_replay


def test_one_changed_byte_is_enough() -> None:
    datagram = KeyedSender(KEY).seal(encode(MESSAGES[4]))
    for at in range(len(datagram)):
        for bit in (1, 0x20, 0x80):
            damaged = datagram[:at] + bytes([datagram[at] ^ bit]) + datagram[at + 1 :]
            assert not KeyedReceiver(KEY).open(damaged), at


def test_the_other_spellings_of_a_mac_are_not_taken() -> None:
    datagram = KeyedSender(KEY).seal(encode(Opener()))
    last = datagram[-4:-3]
    for other in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_":
        if bytes([other]) != last:
            assert not KeyedReceiver(KEY).open(datagram[:-4] + bytes([other]) + datagram[-3:])


def test_what_came_before_is_a_replay_and_a_repetition_is_not() -> None:
    sender, receiver = KeyedSender(KEY), KeyedReceiver(KEY)
    first, again = sender.seal(encode(Opener())), sender.seal(encode(Opener()))
    assert receiver.open(first)
    for _ in range(3):
        assert not receiver.open(first)
        assert receiver.is_replay
    assert receiver.open(again)


def test_what_does_not_count_moves_no_window() -> None:
    receiver = KeyedReceiver(KEY)
    far = KeyedSender(OTHER)
    for _ in range(200):
        assert not receiver.open(far.seal(encode(Opener())))
    assert receiver.open(KeyedSender(KEY).seal(encode(Opener())))


def test_the_window_lets_each_counter_through_once_in_any_order() -> None:
    dice = random.Random(1)
    for _ in range(200):
        window = ReplayWindow()
        taken: set[int] = set()
        highest = 0
        for _ in range(300):
            counter = max(1, highest + dice.randrange(-70, 8))
            assert window.take(counter) is (counter not in taken and counter > highest - 64)
            highest = max(highest, counter)
            taken.add(counter)


def test_a_leap_forgets_all_that_was_before() -> None:
    window = ReplayWindow()
    assert window.take(5)
    assert window.take(10**15)
    assert not window.take(10**15 - 64)
    assert window.take(10**15 - 63)
    assert not window.take(5)
