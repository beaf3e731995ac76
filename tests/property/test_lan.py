"""Peers in one network, whatever arrives: nothing raises, nobody is reached who does not know the key, and loss only delays."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.defaults import LAN_PROBES, LAN_TARGETS_MAX
from p2ptunnel.identity.keys import Identity
from p2ptunnel.protocol.lan import LanCaller, LanExhausted, LanPort, LanReached
from p2ptunnel.types import Address
from p2ptunnel.wire.lan import decode_mark, encode_mark, make_mark

CALLEE = Identity.from_seed(b"callee".ljust(32)).public
SALT = b"s" * 16
HOME: Address = ("192.168.1.7", 40007)
LAPTOP: Address = ("192.168.1.9", 40009)
hosts = st.ip_addresses().map(str)
ports = st.integers(0, 65535)


@given(st.dictionaries(st.binary(max_size=3), st.none() | st.binary(max_size=40)))
def test_any_record_is_a_mark_or_none(pairs: dict[bytes, bytes | None]) -> None:
    mark = decode_mark(pairs)
    assert mark is None or {name.encode(): text for name, text in encode_mark(mark).items()}.items() <= pairs.items()


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16), st.integers(0, 127))
def test_a_damaged_mark_is_of_nobody(key: bytes, salt: bytes, bit: int) -> None:
    mark = make_mark(key, salt)
    digest = (int.from_bytes(mark.digest, "big") ^ 1 << bit).to_bytes(16, "big")
    assert mark.is_of(key)
    assert not type(mark)(salt, digest).is_of(key)


@given(st.lists(st.tuples(st.binary(max_size=300), hosts, ports), max_size=20))
def test_no_datagram_raises_or_is_answered(datagrams: list[tuple[bytes, str, int]]) -> None:
    port = LanPort(CALLEE, SALT, random.Random(1))
    caller = LanCaller(CALLEE, random.Random(1))
    caller.start(0.0)
    caller.found(SALT, (HOME,), (), 0.0)
    caller.datagrams_to_send()
    for data, host, number in datagrams:
        port.receive_datagram(data, (host, number), 0.0)
        caller.receive_datagram(data, (host, number), 0.0)
    assert port.datagrams_to_send() == []
    assert caller.datagrams_to_send() == []
    assert caller.events() == []


@given(st.data())
def test_an_exchange_with_one_byte_damaged_reaches_nobody(data: st.DataObject) -> None:
    caller, port = LanCaller(CALLEE, random.Random(1)), LanPort(CALLEE, SALT, random.Random(2))
    caller.start(0.0)
    caller.found(SALT, (HOME,), (), 0.0)
    [question] = caller.datagrams_to_send()
    at = data.draw(st.integers(0, len(question.data) - 1))
    damaged = bytearray(question.data)
    damaged[at] ^= data.draw(st.integers(1, 255))
    port.receive_datagram(bytes(damaged), LAPTOP, 0.0)
    assert port.datagrams_to_send() == []
    port.receive_datagram(question.data, LAPTOP, 0.0)
    [answer] = port.datagrams_to_send()
    at = data.draw(st.integers(0, len(answer.data) - 1))
    damaged = bytearray(answer.data)
    damaged[at] ^= data.draw(st.integers(1, 255))
    caller.receive_datagram(bytes(damaged), HOME, 0.0)
    assert caller.datagrams_to_send() == []


@given(seed=st.integers(0, 2**32), loss=st.floats(0, 1), dead=st.integers(0, 40))
def test_over_a_lossy_network_the_peer_is_reached_or_the_call_ends(seed: int, loss: float, dead: int) -> None:
    """Real exchanges of the two machines, each datagram lost at random: no call stands still, none sends too much."""
    dice = random.Random(seed)
    caller, port = LanCaller(CALLEE, random.Random(seed + 1)), LanPort(CALLEE, SALT, random.Random(seed + 2))
    now, sent = 0.0, 0
    caller.start(now)
    for number in range(dead):
        caller.found(bytes([number]) * 16, ((f"10.0.0.{number}", 4000 + number),), (), now)
    caller.found(SALT, (HOME,), (), now)
    while True:
        for question in caller.datagrams_to_send():
            sent += 1
            if question.destination == HOME and dice.random() >= loss:
                port.receive_datagram(question.data, LAPTOP, now)
        for answer in port.datagrams_to_send():
            if dice.random() >= loss:
                caller.receive_datagram(answer.data, HOME, now + 0.001)
        events = caller.events()
        if events:
            break
        waits = caller.next_deadline()
        assert waits is not None
        now = max(now, waits)
        caller.handle_timer(now)
    assert isinstance(events[0], LanReached | LanExhausted)
    if isinstance(events[0], LanReached):
        assert port.matches(bytes.fromhex(events[0].selector), LAPTOP[0], now)
    else:
        assert loss > 0
    assert now < 6
    assert sent <= (LAN_TARGETS_MAX + 1) * LAN_PROBES
