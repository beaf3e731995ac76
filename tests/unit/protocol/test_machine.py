"""What every machine has in common: its boxes, its counts, its random numbers, and silence about secrets."""

from __future__ import annotations

import json
import random

from p2ptunnel.defaults import MID_MAX
from p2ptunnel.identity.keys import Identity
from p2ptunnel.protocol.callee import CallAnswered
from p2ptunnel.protocol.machine import Datagram, Event, MachineBase, new_mid, new_secret
from p2ptunnel.protocol.punch import AnswerProved
from p2ptunnel.wire.messages import Opener, encode


class Happened(Event, frozen=True):
    """Something with a secret."""

    what: str
    token: str


class Box(MachineBase):
    """A machine that does nothing by itself."""

    def put(self, datagram: Datagram, event: Event) -> None:
        self._datagrams.append(datagram)
        self._events.append(event)

    def take(self, data: bytes) -> object:
        return self._decode(data)


def test_what_is_handed_out_is_forgotten() -> None:
    box, datagram, event = Box(), Datagram(b"x", ("192.0.2.1", 1)), Happened("x", "t")
    box.put(datagram, event)
    assert (box.datagrams_to_send(), box.events()) == ([datagram], [event])
    assert (box.datagrams_to_send(), box.events()) == ([], [])


def test_what_cannot_be_read_is_counted() -> None:
    box = Box()
    assert box.take(encode(Opener())) == Opener()
    assert box.take(b"\xff") is None
    assert box.take(b"{}") is None
    assert box.dropped == {"malformed": 2}


def test_an_event_shows_all_but_its_secrets() -> None:
    event = Happened("x", "a secret")
    assert event.facts() == {"what": "x"}
    assert repr(event) == "Happened(what='x')"


def test_message_ids_fit_every_json_and_use_all_their_bits() -> None:
    ids = [new_mid(random.Random(seed)) for seed in range(200)]
    assert max(ids) <= MID_MAX
    assert max(ids) > MID_MAX // 2
    assert len(set(ids)) == len(ids)


def test_a_secret_is_32_hex_characters_with_leading_zeros() -> None:
    class Low:
        def random(self) -> float:
            return 0.0

        def getrandbits(self, k: int, /) -> int:
            assert k == 128
            return 1

    assert new_secret(Low()) == "0" * 31 + "1"


def test_what_is_told_of_an_event_is_json_with_keys_as_text() -> None:
    key = Identity.from_seed(bytes(32)).public
    for event in (
        AnswerProved(selector="00" * 16, key=key),
        CallAnswered("t" * 32, ("192.0.2.1", 7), is_seed_only=False, key=key),
    ):
        assert json.loads(json.dumps(event.facts()))["key"] == str(key)
