"""The broker and who belongs where: tags and their keys, members of a private server, rates by source, a restart."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from p2ptunnel.defaults import (
    CALLS_BURST_OF_SOURCE,
    CHALLENGES_PER_SECOND,
    COOKIE_EPOCH,
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
from p2ptunnel.identity.keys import Identity, PublicKey
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
    PunchNotice,
    PunchResult,
    Register,
    RegisterAnswer,
    RegisterExtra,
    decode,
    encode_padded,
)
from tests.unit.protocol.actors import CALLEE, CALLER, STRANGER, only, sent
from tests.unit.protocol.brokers import JAR, SECRET, broker, connect, heartbeat, leave, register, with_bob, yes

ALICE, BOB, MALLORY, SERVER, EVIL = (Identity.from_seed(bytes([n]) * 32) for n in range(1, 6))
TOKEN = "the-token-of-the-family"
MEMBERS = frozenset({str(ALICE.public), str(BOB.public)})


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
    now: float = 0.0,
) -> bytes:
    credentials = KeyCredentials(identity, tag, join_token=token, previous=previous)
    extra = credentials.register_extra(cookie=JAR.make(host, now), server_key=server_key, at_least_ts=0)
    return encode_padded(Register(mid=1, ltag=tag, extra=extra), COOKIELESS_PAD_BYTES)


# --- tags -----------------------------------------------------------------------------------------------------------------


def test_a_tag_stays_its_keys_after_it_has_left() -> None:
    server, epoch = with_bob()
    server.receive_datagram(leave(epoch), CALLEE, 1.0)
    server.datagrams_to_send()
    assert code(server, register(key="other", ts=9, host=STRANGER[0], now=1.0), STRANGER, 1.0) == 409
    assert code(server, register(ts=2, host=STRANGER[0], now=1.0), STRANGER, 1.0) == 200


def test_where_a_machine_pairs_is_its_own_whoever_was_there_first() -> None:
    """M9: one registration of a stranger kept the owner of a tag from ever pairing."""
    server = broker()
    assert code(server, register("nas.pair", key="squatter", host=STRANGER[0]), STRANGER) == 200  # nobody owns nas yet
    assert code(server, register("nas"), CALLEE) == 200
    assert code(server, register("nas.pair", key="squatter", ts=2, host=STRANGER[0]), STRANGER) == 409
    assert code(server, register("nas.pair", key="other", host=STRANGER[0]), STRANGER) == 409
    assert code(server, register("nas.pair", ts=2), CALLEE) == 200
    assert server.registrar.online["nas.pair"].key == "key"
    assert code(server, register("nas.pair", key="squatter", ts=3, host=STRANGER[0]), STRANGER) == 409


def test_a_program_of_the_seed_does_not_get_it_either() -> None:
    server, _ = with_bob(compat_seed=True)
    assert code(server, b'{"t":1,"mid":1,"ltag":"bob.pair"}', STRANGER) == 409


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


def test_a_proof_for_another_server_another_address_or_another_call_is_none() -> None:
    judge = Judge(SERVER, join_token=TOKEN)
    cookie, server_key = JAR.make(CALLEE[0], 0.0), str(SERVER.public)
    proof = join_proof(TOKEN, server_key, cookie, b"a call")

    def is_joined(join: str, *, cookie: str = cookie, call: str = "a call") -> bool:
        return judge.is_calling_member(ConnectRequestExtra(rtag="nas", v=1, cookie=cookie, intent=call, join=join))

    assert is_joined(proof)
    assert not is_joined(proof, call="another call")
    assert not is_joined(join_proof(TOKEN, str(EVIL.public), cookie, b"a call"))
    assert not is_joined(join_proof(TOKEN, server_key, JAR.make(STRANGER[0], 0.0), b"a call"))
    assert not is_joined("")
    assert not is_joined("", cookie="")
    assert TOKEN not in proof


def test_of_a_members_proof_nobody_else_makes_a_membership() -> None:
    """H6: who sees a registration on its way, behind the same NAT or in front of it, cannot register its own key with that."""
    server = real(Judge(SERVER, join_token=TOKEN))
    harvested = decode(signed(token=TOKEN))
    own = decode(signed(MALLORY, tag="evil"))
    assert isinstance(harvested, Register)
    assert isinstance(own, Register)
    assert harvested.extra is not None
    assert own.extra is not None
    for extra in (
        replace(own.extra, join=harvested.extra.join),
        replace(own.extra, join=harvested.extra.join, nonce=harvested.extra.nonce),
    ):
        assert code(server, encode_padded(replace(own, extra=extra), COOKIELESS_PAD_BYTES), CALLEE) == 407
    assert called(server, call(MALLORY, join=harvested.extra.join, cookie=harvested.extra.cookie), CALLEE) == 407
    assert code(server, encode_padded(harvested, COOKIELESS_PAD_BYTES), CALLEE) == 200


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


def call(
    identity: Identity | None,
    *,
    wanted: str = "nas",
    join: str | None = None,
    cookie: str | None = None,
    server: Identity = SERVER,
    now: float = 0.0,
) -> bytes:
    """Return a t=4, signed by `identity`; `join` None proves that it knows the token."""
    shown = JAR.make(CALLER[0], now) if cookie is None else cookie
    extra = ConnectRequestExtra(rtag=wanted, v=1, cookie=shown, join=join or "")
    if identity is not None:
        signer = CallSigner(identity, Count(), random.SystemRandom(), callee=ALICE.public)
        intent = signer.sign(())
        proof = join_proof(TOKEN, str(SERVER.public), shown, intent.encode()) if join is None else join
        extra = replace(extra, intent=intent, sig=signer.vouch(intent, shown, str(server.public)), join=proof)
    return encode_padded(ConnectRequest(mid=random.getrandbits(40), ltag="laptop", extra=extra), COOKIELESS_PAD_BYTES)


def called(server: Broker, question: bytes, source: Address = CALLER, now: float = 0.0) -> int:
    server.receive_datagram(question, source, now)
    return next(message.code for message in _messages(server) if isinstance(message, ConnectAnswer))


def _messages(server: Broker) -> list[object]:
    return list(sent(server.datagrams_to_send()))


def test_a_listed_key_may_call_and_no_other() -> None:
    server = real(Judge(SERVER, members=MEMBERS))
    assert code(server, signed(ALICE), CALLEE) == 200
    assert called(server, call(None)) == 407
    assert called(server, call(MALLORY)) == 407
    assert called(server, call(BOB, server=EVIL)) == 407  # signed for another server
    assert called(server, call(BOB)) == 200


def test_a_members_call_is_good_from_its_address_only_and_not_for_long() -> None:
    """M1: what a member has signed once is no pass, for nobody and for no other tag."""
    server = real(Judge(SERVER, members=MEMBERS))
    assert code(server, signed(ALICE), CALLEE) == 200
    mine = decode(call(BOB))
    assert isinstance(mine, ConnectRequest)
    there = replace(mine, extra=replace(mine.extra, cookie=JAR.make(STRANGER[0], 0.0)))
    assert called(server, encode_padded(there, COOKIELESS_PAD_BYTES), STRANGER) == 407
    later = 3 * COOKIE_EPOCH
    assert code(server, signed(ALICE, now=later), CALLEE, later) == 200
    assert called(server, encode_padded(mine, COOKIELESS_PAD_BYTES), CALLER, later) == 401  # its cookie is too old
    again = replace(mine, mid=7, extra=replace(mine.extra, cookie=JAR.make(CALLER[0], later)))
    assert called(server, encode_padded(again, COOKIELESS_PAD_BYTES), CALLER, later) == 407


def test_who_is_listed_is_told_that_a_peer_is_offline_and_others_are_told_the_same_of_all() -> None:
    server = real(Judge(SERVER, members=MEMBERS))
    assert code(server, signed(ALICE), CALLEE) == 200
    assert called(server, call(BOB, wanted="not-there")) == 404
    forged = (
        call(BOB, server=EVIL),
        call(BOB, server=EVIL, wanted="not-there"),
        call(MALLORY),
        call(MALLORY, wanted="not-there"),
    )
    assert [called(server, question) for question in forged] == [407] * 4


def test_membership_is_one_signature_to_check_whoever_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """M1: the time of an answer tells no stranger who is online."""
    server = real(Judge(SERVER, members=MEMBERS))
    assert code(server, signed(ALICE), CALLEE) == 200
    checks: list[bytes] = []
    verify = PublicKey.verify

    def counted(key: PublicKey, signature: bytes, message: bytes) -> bool:
        checks.append(message)
        return verify(key, signature, message)

    monkeypatch.setattr(PublicKey, "verify", counted)
    for question in (call(BOB, server=EVIL), call(BOB, server=EVIL, wanted="not-there"), call(BOB)):
        called(server, question)
    assert len(checks) == 3


def test_calls_of_one_source_cost_so_many_checks_of_signatures_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    server = real(Judge(SERVER, members=MEMBERS))
    checks: list[bytes] = []

    def counted(key: PublicKey, signature: bytes, message: bytes) -> bool:
        checks.append(message)
        return False

    monkeypatch.setattr(PublicKey, "verify", counted)
    codes = [called(server, call(BOB)) for _ in range(int(CALLS_BURST_OF_SOURCE) + 10)]
    assert codes.count(429) == 10
    assert len(checks) == CALLS_BURST_OF_SOURCE


def test_a_key_that_is_taken_off_the_list_is_gone_at_its_next_heartbeat_and_is_called_by_nobody_before() -> None:
    members = set(MEMBERS)
    server = real(Judge(SERVER, members=members))
    server.receive_datagram(signed(ALICE), CALLEE, 0.0)
    registered = only(RegisterAnswer, server.datagrams_to_send()).extra
    assert registered is not None
    members.discard(str(ALICE.public))
    assert called(server, call(BOB)) == 404
    server.receive_datagram(heartbeat(registered.epoch, tag="nas"), CALLEE, 20.0)
    assert only(HeartbeatAnswer, server.datagrams_to_send()).code == 407
    assert server.registered == ()
    assert PeerLeft("nas", "unlisted") in server.events()


def test_who_has_had_a_tag_until_its_key_registered_from_elsewhere_is_told_so_and_nobody_else() -> None:
    server = real(Judge(SERVER))
    server.receive_datagram(signed(ALICE), CALLEE, 0.0)
    first = only(RegisterAnswer, server.datagrams_to_send()).extra
    assert first is not None

    def told(epoch: int) -> int:
        server.receive_datagram(heartbeat(epoch, tag="nas"), CALLEE, 20.0)
        return only(HeartbeatAnswer, server.datagrams_to_send()).code

    assert code(server, signed(ALICE, host=STRANGER[0]), STRANGER) == 200
    assert [told(first.epoch), told(first.epoch ^ 1), told(0)] == [409, 401, 401]
    assert server.registered == ("nas",)
    assert code(server, signed(BOB, previous=ALICE), CALLEE) == 200
    assert told(first.epoch) == 401  # what was handed on was not taken


def test_a_private_server_tells_strangers_not_even_who_is_online() -> None:
    server = real(Judge(SERVER, join_token=TOKEN))
    assert called(server, call(BOB, join="")) == 407  # nobody is there, which a member would be told
    assert called(server, call(BOB)) == 404
    assert called(server, call(BOB, cookie="")) == 401


def test_over_tcp_too_a_member_proves_itself_over_a_cookie() -> None:
    server = real(Judge(SERVER, join_token=TOKEN))
    server.receive_line(call(None, cookie=""), CALLER, 1, 0.0)
    [event] = server.events()
    assert b'"code":401' in event.line  # type: ignore[attr-defined]


# --- rates --------------------------------------------------------------------------------------------------------------


def test_what_a_stranger_sends_beyond_its_rate_is_not_answered() -> None:
    server = broker()
    for mid in range(50):
        server.receive_datagram(connect(cookie="", mid=mid), STRANGER, 0.0)
    server.receive_datagram(b"junk", STRANGER, 0.0)
    assert len(server.datagrams_to_send()) == SOURCE_DATAGRAMS_BURST
    assert server.dropped == {"source over its rate": 51 - SOURCE_DATAGRAMS_BURST}


def test_what_others_send_in_a_peers_name_keeps_nothing_of_its_own_away() -> None:
    """H1: 20 forged datagrams a second took any peer off the server."""
    server, epoch = with_bob()
    host = CALLEE[0]

    def junk() -> None:
        for port in range(50):
            server.receive_datagram(heartbeat(1, mid=port), (host, 50000 + port), 0.0)
            server.receive_datagram(connect(cookie="AAAAAAAAAAAAAAAAAAAAAA", mid=port), (host, 50000 + port), 0.0)
            server.receive_datagram(heartbeat(epoch, mid=port), (host, 50000 + port), 0.0)
        server.datagrams_to_send()
        assert server.dropped["source over its rate"] > 0

    junk()
    server.receive_datagram(heartbeat(epoch), CALLEE, 0.0)
    assert only(HeartbeatAnswer, server.datagrams_to_send()).code == 200
    server.receive_datagram(connect("nas", host=host), CALLEE, 0.0)
    assert only(ConnectAnswer, server.datagrams_to_send()).code == 404
    assert code(server, register(ts=2), (host, 7)) == 200  # its NAT has rebound
    server.receive_datagram(connect("bob"), CALLER, 0.0)
    [notice] = [message for message in _messages(server) if isinstance(message, PunchNotice)]
    junk()
    server.receive_datagram(yes(notice.mid, notice.extra.token), (host, 7), 0.0)
    assert only(PunchResult, server.datagrams_to_send()).code == 200
    server.receive_datagram(yes(notice.mid + 1, notice.extra.token), (host, 7), 0.0)
    server.receive_datagram(b"junk", CALLEE, 0.0)
    assert set(server.dropped) == {"source over its rate"}


def test_a_registered_peer_and_who_shows_a_cookie_have_no_such_rate() -> None:
    server, epoch = with_bob()
    for mid in range(200):
        server.receive_datagram(heartbeat(epoch, mid=mid), CALLEE, 0.0)
        server.receive_datagram(connect("nobody", mid=mid), CALLER, 0.0)
    assert len(server.datagrams_to_send()) == 400
    assert server.dropped == {}


@pytest.mark.bulk
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
