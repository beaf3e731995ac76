"""What is secret is compared in a time that does not tell how much of a guess was right (as in T6, T13, T24, T28).

How long a comparison takes cannot be measured reliably here; that `hmac.compare_digest` makes it can be seen.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

import pytest

from p2ptunnel.identity.judge import Judge, join_proof
from p2ptunnel.identity.keys import Identity
from p2ptunnel.protocol.cookie import CookieJar
from p2ptunnel.protocol.pairing import Bond, Compute, Desk, GuestPairing, HostPairing
from p2ptunnel.wire.keyed import KeyedReceiver, KeyedSender
from p2ptunnel.wire.messages import ConnectRequestExtra, HoleProbe, encode
from p2ptunnel.wire.pairing import ELEMENT_BYTES, Exchange, Paired, Proof, ProofKind, Reply
from tests.helpers import run
from tests.helpers.peers import Peers, sessions

HOST = "192.0.2.7"
SECRET, KEY, ELEMENT = bytes(range(16)), bytes(range(32)), bytes(range(ELEMENT_BYTES))
GUEST, OWNER = (Identity.from_seed(bytes([number]) * 32).public for number in (31, 32))
BOND = Bond(GUEST, OWNER, bytes(32), bytes(32), bytes(16))


def cookie() -> bytes:
    jar = CookieJar(SECRET)
    shown = jar.make(HOST, 0.0)
    assert jar.is_valid(shown, HOST, 0.0)
    return shown.encode()


def mac_of_a_datagram() -> bytes:
    sealed = KeyedSender(KEY).seal(encode(HoleProbe(mid=1, token="t")))
    assert KeyedReceiver(KEY).open(sealed)
    return sealed[-25:-3]


def join_token() -> bytes:
    shown = CookieJar(SECRET).make(HOST, 0.0)
    proof = join_proof("a token of members", "", shown, b"a call")
    question = ConnectRequestExtra(rtag="nas", cookie=shown, intent="a call", join=proof)
    assert Judge(join_token="a token of members").is_calling_member(question)
    return proof.encode()


def desk() -> Desk:
    return Desk(SECRET, "three spoken words", expires_at=600.0, uses=1)


def proof_of_a_ticket() -> bytes:
    proof = BOND.ticket_proof(SECRET)
    HostPairing(desk(), BOND, HOST).receive(Proof(ProofKind.TICKET, proof, "laptop"), 0.0)
    return proof


def proof_of_a_code() -> bytes:
    pairing = HostPairing(desk(), BOND, HOST)
    pairing.receive(Exchange(ELEMENT), 0.0)
    assert isinstance(pairing.steps()[0], Compute)
    pairing.exchanged(ELEMENT, KEY, 0.0)
    proof = BOND.guest_proof(KEY, (ELEMENT, ELEMENT))
    pairing.receive(Proof(ProofKind.CODE, proof, "laptop"), 0.0)
    return proof


def proof_of_a_host() -> bytes:
    pairing = GuestPairing(BOND, "laptop", ProofKind.CODE, ELEMENT)
    pairing.receive(Reply(ELEMENT))
    pairing.exchanged(KEY)
    proof = BOND.host_proof(KEY, (ELEMENT, ELEMENT))
    pairing.receive(Paired(proof, {}))
    return proof


def selector_in_hello() -> bytes:
    peers = Peers()

    async def scenario() -> None:
        async with sessions(peers):
            pass

    run(scenario())
    return peers.selector


SECRETS = [
    cookie,
    mac_of_a_datagram,
    join_token,
    proof_of_a_ticket,
    proof_of_a_code,
    proof_of_a_host,
    selector_in_hello,
]


@pytest.mark.parametrize("check", SECRETS, ids=lambda check: check.__name__)
def test_a_secret_is_compared_in_a_time_that_tells_nothing(check: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def note(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", note)
    secret = check()
    assert (secret, secret) in compared
