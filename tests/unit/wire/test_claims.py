"""What an intent binds: every candidate and every hint, whole, and no spelling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import convert
from msgspec.structs import replace

from p2ptunnel.types import Candidate
from p2ptunnel.wire.claims import hash_claims
from p2ptunnel.wire.intent import MalformedIntentError
from p2ptunnel.wire.messages import NatHints, PortRow

ROOT = Path(__file__).parents[3]
VECTORS = json.loads((ROOT / "tests" / "vectors" / "intents.json").read_text(encoding="utf-8"))["claims"]
HERE = Candidate("srflx", "tcp", "203.0.113.9", 52114)
HINTS = NatHints(tcp="seq", udp="eim", low=True, rtt=31, tcp_row=PortRow(41022, -2), crosses=True, is_open=False)

OTHERS = [
    (),
    (HERE, HERE),
    (replace(HERE, kind="mapped"),),
    (replace(HERE, proto="udp"),),
    (replace(HERE, host="203.0.113.8"),),
    (replace(HERE, host="::ffff:203.0.113.9"),),
    (replace(HERE, port=52115),),
]
OTHER_HINTS = [
    None,
    replace(HINTS, tcp="rnd"),
    replace(HINTS, tcp="", udp="seq"),
    replace(HINTS, udp="rnd"),
    replace(HINTS, low=False),
    replace(HINTS, rtt=32),
    replace(HINTS, tcp_row=None),
    replace(HINTS, tcp_row=PortRow(41023, -2)),
    replace(HINTS, tcp_row=PortRow(41022, 2)),
    replace(HINTS, tcp_row=PortRow(41022, -2, busy=True)),
    replace(HINTS, tcp_row=None, udp_row=PortRow(41022, -2)),
    replace(HINTS, crosses=False),
    replace(HINTS, crosses=None),
    replace(HINTS, is_open=True),
    replace(HINTS, is_open=None),
    replace(HINTS, quic=True),
]


@pytest.mark.parametrize("candidates", OTHERS, ids=range(len(OTHERS)))
def test_whatever_changes_in_a_candidate_changes_the_hash(candidates: tuple[Candidate, ...]) -> None:
    assert len(hash_claims(candidates)) == 16
    assert hash_claims(candidates) != hash_claims((HERE,))


def test_order_counts_and_spelling_does_not() -> None:
    there = Candidate("host", "udp", "2001:db8::1", 5)
    assert hash_claims((HERE, there)) != hash_claims((there, HERE))
    assert hash_claims((replace(there, host="2001:DB8:0::0001"),)) == hash_claims((there,))


@pytest.mark.parametrize("hints", OTHER_HINTS, ids=range(len(OTHER_HINTS)))
def test_whatever_changes_in_a_hint_changes_the_hash(hints: NatHints | None) -> None:
    assert hash_claims((HERE,), hints) != hash_claims((HERE,), HINTS)


def test_every_hint_is_among_those_that_were_changed() -> None:
    changed = {name for other in OTHER_HINTS[1:] for name in HINTS.__struct_fields__ if differs(other, name)}
    assert changed == set(HINTS.__struct_fields__)


def differs(other: NatHints | None, name: str) -> bool:
    return getattr(other, name) != getattr(HINTS, name)


def test_hints_that_say_nothing_are_none() -> None:
    assert hash_claims((HERE,), NatHints()) == hash_claims((HERE,))


@pytest.mark.parametrize("host", ["", "localhost", "127.1", "0x7f.0.0.1", "2130706433", "1.2.3.4 ", "fe80::1%eth0"])
def test_what_is_no_numeric_address_cannot_be_bound(host: str) -> None:
    with pytest.raises(MalformedIntentError):
        hash_claims((replace(HERE, host=host),))


@pytest.mark.parametrize("vector", VECTORS, ids=range(len(VECTORS)))
def test_the_bytes_are_those_of_the_vectors(vector: dict[str, Any]) -> None:
    candidates = tuple(Candidate(*row) for row in vector["cands"])
    assert hash_claims(candidates, convert(vector["nat"], NatHints)).hex() == vector["hash"]
    assert vector["hash"] in (ROOT / "docs" / "protocol" / "intents.md").read_text(encoding="utf-8")
