"""The broker and who belongs where: tags and their keys, members of a private server, rates by source, a restart."""

from __future__ import annotations

import random

import pytest

from p2ptunnel.defaults import (
    CHALLENGES_PER_SECOND,
    COOKIELESS_PAD_BYTES,
    NEW_TAGS_PER_DAY,
    RECALLS_PER_SECOND,
    REGISTRATION_TTL,
    REGISTRATIONS_PER_MINUTE,
    REREGISTRATIONS_PER_MINUTE,
    RESTART_GRACE,
    SOURCE_DATAGRAMS_BURST,
    TAGS_OF_KEY_MAX,
)
from p2ptunnel.identity.judge import Judge, join_proof
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.registration import KeyCredentials
from p2ptunnel.protocol.broker import Broker, PeerLeft
from p2ptunnel.protocol.intent import CallSigner
from p2ptunnel.protocol.tags import TagBook, TagRecord
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectRequest,
    ConnectRequestExtra,
    HeartbeatAnswer,
    Register,
    RegisterAnswer,
    RegisterExtra,
    encode_padded,
)
from tests.unit.protocol.actors import CALLEE, CALLER, STRANGER, only, sent
from tests.unit.protocol.brokers import JAR, SECRET, broker, connect, heartbeat, leave, register, with_bob

ALICE, BOB, MALLORY, SERVER, EVIL = (Identity.from_seed(bytes([n]) * 32) for n in range(1, 6))
TOKEN = "the-token-of-the-family"


def code(server: Broker, question: bytes, source: Address, now: float = 0.0) -> int:
    server.receive_datagram(question, source, now)
    return only(RegisterAnswer, server.datagrams_to_send()).code


def real(judge: Judge) -> Broker:
    return Broker(SECRET, random.Random(3), judge)


def signed(
    identity: Identity = ALICE,
    *,
    tag: str = "nas",
    server_key: str = str(SERVER.public),
    token: str = "",
    previous: Identity | None = None,
    host: str = CALLEE[0],
) -> bytes:
    credentials = KeyCredentials(identity, tag, join_token=token, previous=previous)
    extra = credentials.register_extra(cookie=JAR.make(host, 0.0), server_key=server_key, at_least_ts=0)
    return encode_padded(Register(mid=1, ltag=tag, extra=extra), COOKIELESS_PAD_BYTES)


# --- tags -----------------------------------------------------------------------------------------------------------------


def test_a_tag_stays_its_keys_after_it_has_left() -> None:
    server, epoch = with_bob()
    server.receive_datagram(leave(epoch), CALLEE, 1.0)
    server.datagrams_to_send()
    assert code(server, register(key="other", ts=9, host=STRANGER[0], now=1.0), STRANGER, 1.0) == 409
    assert code(server, register(ts=2, host=STRANGER[0], now=1.0), STRANGER, 1.0) == 200


def test_an_old_registration_is_no_good_after_its_peer_has_left() -> None:
    server, epoch = with_bob()
    server.receive_datagram(leave(epoch), CALLEE, 1.0)
    server.datagrams_to_send()
    assert code(server, register(), CALLEE, 1.1) == 401
    assert server.registered == ()


def test_a_program_of_the_seed_gets_no_tag_that_a_key_owns_although_it_is_away() -> None:
    server, epoch = with_bob(compat_seed=True)
    server.receive_datagram(leave(epoch), CALLEE, 1.0)
    server.datagrams_to_send()
    server.receive_datagram(b'{"t":1,"mid":1,"ltag":"bob"}', STRANGER, 1.0)
    assert only(RegisterAnswer, server.datagrams_to_send()).code == 409


def test_a_freed_tag_goes_with_its_registration_to_whoever_comes_first() -> None:
    server, _ = with_bob()
    server.registrar.free("bob")
    assert server.events() == [PeerLeft("bob", "freed")]
    assert code(server, register(key="other", host=STRANGER[0]), STRANGER) == 200


def test_a_tag_is_handed_on_by_its_old_key_and_by_nobody_else() -> None:
    server = real(Judge(SERVER))
    assert code(server, signed(), CALLEE) == 200
    assert code(server, signed(BOB), CALLEE) == 409
    assert code(server, signed(BOB, previous=MALLORY), CALLEE) == 409
    assert code(server, signed(BOB, previous=ALICE), CALLEE) == 200
    assert code(server, signed(ALICE), CALLEE) == 409


def test_a_handing_on_that_names_the_old_key_without_its_signature_is_none() -> None:
    server = real(Judge(SERVER))
    assert code(server, signed(), CALLEE) == 200
    credentials = KeyCredentials(BOB, "nas", previous=MALLORY)
    extra = credentials.register_extra(cookie=JAR.make(CALLEE[0], 0.0), server_key=str(SERVER.public), at_least_ts=0)
    lying = RegisterExtra(
        v=1, key=extra.key, ts=extra.ts, nonce=extra.nonce, sig=extra.sig, cookie=extra.cookie, old_key=str(ALICE.public)
    )
    for rekey in ("", extra.rekey, extra.sig):
        body = RegisterExtra(**{name: getattr(lying, name) for name in lying.__struct_fields__} | {"rekey": rekey})
        assert code(server, encode_padded(Register(mid=1, ltag="nas", extra=body), COOKIELESS_PAD_BYTES), CALLEE) == 409


def test_a_key_has_so_many_tags_and_no_more() -> None:
    server = broker()
    codes = [
        code(server, register(f"t{n}", ts=n + 1, host=f"198.51.100.{n}"), (f"198.51.100.{n}", 1))
        for n in range(TAGS_OF_KEY_MAX + 1)
    ]
    assert codes == [200] * TAGS_OF_KEY_MAX + [429]


# --- a registration for one server is none for another ----------------------------------------------------------------


def test_a_registration_that_another_server_passes_on_is_refused() -> None:
    """T33: an evil server hands its client the cookie of a good one, and passes on what the client signs for it."""
    good = real(Judge(SERVER))
    evil = ("192.0.2.66", 7000)
    good.receive_datagram(encode_padded(Register(mid=1, ltag="nas", extra=RegisterExtra(v=1, key="p2p:x")), 240), evil, 0.0)
    challenge = only(RegisterAnswer, good.datagrams_to_send()).extra
    assert challenge is not None
    victim = KeyCredentials(ALICE, "nas")  # it was told the evil server's own key
    extra = victim.register_extra(cookie=challenge.cookie, server_key=str(EVIL.public), at_least_ts=0)
    assert code(good, encode_padded(Register(mid=2, ltag="nas", extra=extra), 240), evil) == 401
    assert good.registered == ()
    honest = victim.register_extra(cookie=challenge.cookie, server_key=str(SERVER.public), at_least_ts=0)
    assert code(good, encode_padded(Register(mid=3, ltag="nas", extra=honest), 240), evil) == 200  # what the pin is there for


def test_the_answer_proves_the_servers_key_to_this_registration() -> None:
    server = real(Judge(SERVER))
    ours, pinned_to_evil = (KeyCredentials(ALICE, "nas", server_key=str(key.public)) for key in (SERVER, EVIL))
    extra = ours.register_extra(cookie=JAR.make(CALLEE[0], 0.0), server_key=str(SERVER.public), at_least_ts=0)
    server.receive_datagram(encode_padded(Register(mid=1, ltag="nas", extra=extra), 240), CALLEE, 0.0)
    answer = only(RegisterAnswer, server.datagrams_to_send()).extra
    assert answer is not None
    assert ours.is_proven(answer)
    assert not pinned_to_evil.is_proven(answer)
    assert KeyCredentials(ALICE, "nas").is_proven(answer)  # no key was given: whoever answers is believed
    ours.register_extra(cookie=JAR.make(CALLEE[0], 0.0), server_key=str(SERVER.public), at_least_ts=0)
    assert not ours.is_proven(answer)  # it was for the one before


# --- private servers --------------------------------------------------------------------------------------------------


def test_who_does_not_know_the_join_token_is_told_so() -> None:
    server = real(Judge(SERVER, join_token=TOKEN))
    assert code(server, signed(), CALLEE) == 407
    assert code(server, signed(token="another-token-of-16"), CALLEE) == 407
    assert server.registered == ()
    assert code(server, signed(token=TOKEN), CALLEE) == 200


def test_a_proof_for_another_server_or_of_another_address_is_none() -> None:
    server = real(Judge(SERVER, join_token=TOKEN))
    judge = Judge(SERVER, join_token=TOKEN)
    cookie = JAR.make(CALLEE[0], 0.0)
    assert judge.is_joined(join_proof(TOKEN, str(SERVER.public), cookie), cookie)
    assert not judge.is_joined(join_proof(TOKEN, str(EVIL.public), cookie), cookie)
    assert not judge.is_joined(join_proof(TOKEN, str(SERVER.public), JAR.make(STRANGER[0], 0.0)), cookie)
    assert not judge.is_joined("", cookie)
    assert not judge.is_joined("", "")
    assert TOKEN not in join_proof(TOKEN, str(SERVER.public), cookie)
    assert server.registered == ()


def test_only_listed_keys_are_served() -> None:
    server = real(Judge(SERVER, members={str(ALICE.public)}))
    assert code(server, signed(BOB, tag="laptop"), CALLEE) == 407
    assert code(server, signed(ALICE), CALLEE) == 200


class Count:
    def __init__(self) -> None:
        self.last = 0

    def next(self, at_least: int = 0) -> int:
        self.last = max(self.last, at_least) + 1
        return self.last


def call(identity: Identity | None, callee: Identity = ALICE, *, join: str = "", cookie: str | None = None) -> bytes:
    intent = ""
    if identity is not None:
        intent = CallSigner(identity, Count(), random.SystemRandom(), callee=callee.public).sign(())
    shown = JAR.make(CALLER[0], 0.0) if cookie is None else cookie
    extra = ConnectRequestExtra(rtag="nas", v=1, cookie=shown, intent=intent, join=join)
    return encode_padded(ConnectRequest(mid=random.getrandbits(40), ltag="laptop", extra=extra), COOKIELESS_PAD_BYTES)


def called(server: Broker, question: bytes) -> int:
    server.receive_datagram(question, CALLER, 0.0)
    return next(message.code for message in _messages(server) if isinstance(message, ConnectAnswer))


def _messages(server: Broker) -> list[object]:
    return list(sent(server.datagrams_to_send()))


def test_a_listed_key_may_call_and_no_other() -> None:
    server = real(Judge(SERVER, members={str(ALICE.public), str(BOB.public)}))
    assert code(server, signed(ALICE), CALLEE) == 200
    assert called(server, call(None)) == 407
    assert called(server, call(MALLORY)) == 407
    assert called(server, call(BOB, MALLORY)) == 407  # a call of his to somebody else, caught and sent again
    assert called(server, call(BOB)) == 200


def test_a_private_server_tells_strangers_not_even_who_is_online() -> None:
    server = real(Judge(SERVER, join_token=TOKEN))
    assert called(server, call(None)) == 407  # nobody is there, which a member would be told
    cookie = JAR.make(CALLER[0], 0.0)
    proof = join_proof(TOKEN, str(SERVER.public), cookie)
    assert called(server, call(None, join=proof)) == 404
    assert called(server, call(None, join=proof, cookie="")) == 401


def test_over_tcp_too_a_member_proves_itself_over_a_cookie() -> None:
    server = real(Judge(SERVER, join_token=TOKEN))
    server.receive_line(call(None, cookie=""), CALLER, 1, 0.0)
    [event] = server.events()
    assert b'"code":401' in event.line  # type: ignore[attr-defined]


# --- rates --------------------------------------------------------------------------------------------------------------


def test_what_a_stranger_sends_beyond_its_rate_is_not_even_decoded() -> None:
    server = broker()
    for mid in range(50):
        server.receive_datagram(connect(cookie="", mid=mid), STRANGER, 0.0)
    server.receive_datagram(b"junk", STRANGER, 0.0)
    assert len(server.datagrams_to_send()) == SOURCE_DATAGRAMS_BURST
    assert server.dropped == {"source over its rate": 51 - SOURCE_DATAGRAMS_BURST}


def test_a_registered_peer_and_who_shows_a_cookie_have_no_such_rate() -> None:
    server, epoch = with_bob()
    for mid in range(200):
        server.receive_datagram(heartbeat(epoch, mid=mid), CALLEE, 0.0)
        server.receive_datagram(connect("nobody", mid=mid), CALLER, 0.0)
    assert len(server.datagrams_to_send()) == 400
    assert server.dropped == {}


def test_strangers_from_everywhere_get_so_many_answers_a_second_and_peers_theirs_all_the_same() -> None:
    server, epoch = with_bob()
    for n in range(int(CHALLENGES_PER_SECOND) + 500):
        server.receive_datagram(connect(cookie=""), (f"10.0.{n >> 8}.{n & 255}", 1), 0.0)
    assert len(server.datagrams_to_send()) == CHALLENGES_PER_SECOND
    assert server.dropped == {"too many strangers": 500}
    server.receive_datagram(heartbeat(epoch), CALLEE, 0.0)
    server.receive_datagram(connect("nobody"), CALLER, 0.0)
    assert len(server.datagrams_to_send()) == 2


def test_registrations_of_one_source_are_so_many_a_minute_good_or_bad() -> None:
    server = broker()
    codes = [code(server, register(f"t{n % 7}", key=f"k{n}", ts=1), CALLEE, 0.0) for n in range(40)]
    assert codes[int(REGISTRATIONS_PER_MINUTE) :] == [429] * 10
    assert set(codes[: int(REGISTRATIONS_PER_MINUTE)]) == {200, 409}
    assert code(server, register("other", key="k", host=STRANGER[0]), STRANGER, 0.0) == 200


def test_peers_behind_one_nat_come_back_together_although_they_are_more() -> None:
    server = broker()
    now = 0.0
    for n in range(50):
        assert code(server, register(f"t{n}", key=f"k{n}", now=now), CALLEE, now) == 200
        now += 3
    codes = [code(server, register(f"t{n}", key=f"k{n}", ts=2, now=now), CALLEE, now) for n in range(50)]
    assert codes == [200] * 50
    again = [code(server, register("t0", key="k0", ts=3 + n, now=now), CALLEE, now) for n in range(50)]
    assert again.count(200) == REREGISTRATIONS_PER_MINUTE - 1 + REGISTRATIONS_PER_MINUTE


def test_a_source_gets_so_many_new_tags_a_day() -> None:
    server = broker()
    now, codes = 0.0, []
    for n in range(int(NEW_TAGS_PER_DAY) + 20):
        codes.append(code(server, register(f"t{n}", key=f"k{n}", now=now), CALLEE, now))
        now += 2.01
    assert codes.count(200) == pytest.approx(NEW_TAGS_PER_DAY + 2, abs=2)
    assert codes[-1] == 429


# --- restart ------------------------------------------------------------------------------------------------------------


def restarted(records: int) -> Broker:
    tags = TagBook()
    known = [TagRecord(f"t{n}", "key", 0.0, (f"198.51.{n // 250}.{n % 250}", 1), n + 1, 1) for n in range(records)]
    tags.load(known)
    server = broker(tags=tags)
    server.registrar.recall(known, 0.0)
    return server


def test_a_restarted_server_recalls_its_peers_a_few_at_a_time() -> None:
    server = restarted(1200)
    recalled: list[int] = []
    while (at := server.next_deadline()) is not None:
        server.handle_timer(at)
        answers = [message for message in _messages(server) if isinstance(message, HeartbeatAnswer)]
        assert all(answer.code == 401 for answer in answers)
        recalled += [answer.extra.epoch for answer in answers if answer.extra]
        if at < 1:
            assert len(recalled) <= RECALLS_PER_SECOND + 10
    assert sorted(recalled) == list(range(1, 1201))


def test_a_peer_of_before_the_restart_is_not_yet_there_rather_than_offline() -> None:
    server = restarted(2)
    for tag, now, expected in (("t0", 0.5, 429), ("unknown", 0.5, 404), ("t0", RESTART_GRACE, 404)):
        server.receive_datagram(connect(tag, now=now, mid=int(now * 10) + len(tag)), CALLER, now)
        [answer] = [message for message in _messages(server) if isinstance(message, ConnectAnswer)]
        assert answer.code == expected
    assert code(server, register("t1", ts=2, now=1.0), CALLEE, 1.0) == 200
    assert not server.registrar.is_awaited("t1", 1.0)


def test_who_was_registered_over_tcp_is_not_recalled() -> None:
    server = broker()
    server.receive_line(register(), CALLEE, 1, 0.0)
    record = server.registrar.tags.record("bob", 0.0)
    assert record is not None
    assert record.address is None


def test_a_registration_that_ends_is_noted() -> None:
    server, _ = with_bob()
    record = server.registrar.tags.record("bob", 0.0)
    assert record is not None
    assert record.address == CALLEE
    server.handle_timer(REGISTRATION_TTL + 1)
    record = server.registrar.tags.record("bob", 0.0)
    assert record is not None
    assert record.address is None
