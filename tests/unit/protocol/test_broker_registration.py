"""The broker and its registrations: who gets in, who stays, who replaces whom, and what a stranger is told."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import COOKIE_EPOCH, REGISTRATION_TTL
from p2ptunnel.protocol import registrar
from p2ptunnel.protocol.broker import Broker, PeerLeft, PeerRegistered
from p2ptunnel.types import Address
from p2ptunnel.wire.intent import COUNTER_END
from p2ptunnel.wire.messages import (
    HeartbeatAnswer,
    LeaveAnswer,
    ReflexiveAnswer,
    ReflexiveProbe,
    Register,
    RegisterAnswer,
    RegisterExtra,
    encode,
    encode_padded,
)
from tests.unit.protocol.actors import CALLEE, CALLER, STRANGER, notice, only, sent
from tests.unit.protocol.brokers import (
    JAR,
    Words,
    broker,
    connect,
    heartbeat,
    leave,
    lines,
    register,
    with_bob,
)

IPV6: Address = ("2001:db8:1111:2222:3333:4444:5555:6666", 65535)


def register_answer(server: Broker) -> RegisterAnswer:
    return only(RegisterAnswer, server.datagrams_to_send())


# --- strangers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("question", [register(cookie=""), connect(cookie=""), heartbeat(1), register(cookie="x" * 22)])
@pytest.mark.parametrize("source", [CALLEE, IPV6])
def test_a_stranger_gets_a_cookie_and_never_more_than_it_sent(question: bytes, source: Address) -> None:
    server = broker(server_key="")
    server.receive_datagram(question, source, 0.0)
    [datagram] = server.datagrams_to_send()
    assert datagram.destination == source
    assert len(datagram.data) <= len(question)
    assert b'"code":401' in datagram.data
    assert JAR.make(source[0], 0.0).encode() in datagram.data
    assert not server.events()
    assert server.next_deadline() is None  # nothing is kept


def test_a_stranger_who_asks_too_briefly_gets_nothing() -> None:
    server = broker()
    question = encode(Register(mid=1, ltag="bob", extra=RegisterExtra(v=1)))
    server.receive_datagram(question, CALLEE, 0.0)
    assert not server.datagrams_to_send()
    assert server.dropped == {"question shorter than the answer": 1}


def test_the_challenge_names_the_server_and_how_the_peer_looks() -> None:
    server = broker(server_key="server's key")
    server.receive_datagram(register(cookie=""), CALLEE, 0.0)
    answer = register_answer(server)
    assert answer.extra is not None
    assert (answer.code, answer.extra.key, answer.extra.host, answer.extra.port) == (401, "server's key", *CALLEE)


def test_over_tcp_a_signature_needs_the_cookie_of_that_address_as_well() -> None:
    """Else whoever once saw a registration could replay it there, from anywhere and for ever."""
    server = broker()
    for cookie in ("", JAR.make(STRANGER[0], 0.0)):
        server.receive_line(register(cookie=cookie), CALLEE, 7, 0.0)
        [answer] = lines(server, 7)
        assert isinstance(answer, RegisterAnswer)
        assert answer.code == 401
    server.receive_line(register(), CALLEE, 7, 0.0)
    [answer] = lines(server, 7)
    assert isinstance(answer, RegisterAnswer)
    assert answer.code == 200
    assert server.registered == ("bob",)


def test_a_cookie_is_good_from_every_port_of_its_host() -> None:
    server = broker()
    server.receive_datagram(register(), (CALLEE[0], 1), 0.0)
    assert register_answer(server).code == 200


@pytest.mark.parametrize("age", [0.0, COOKIE_EPOCH, 2 * COOKIE_EPOCH - 0.1])
def test_a_cookie_lives_for_two_epochs(age: float) -> None:
    server = broker()
    server.receive_datagram(register(now=0.0), CALLEE, age)
    assert register_answer(server).code == 200
    server.receive_datagram(register(now=0.0), CALLEE, 2 * COOKIE_EPOCH)
    assert register_answer(server).code == 401


# --- who gets in ----------------------------------------------------------------------------------------------------------


def test_a_registered_peer_learns_how_it_looks_and_for_how_long() -> None:
    server = broker()
    server.receive_datagram(register(mid=77), CALLEE, 0.0)
    answer = register_answer(server)
    assert answer.extra is not None
    assert (answer.mid, answer.code) == (77, 200)
    assert (answer.extra.host, answer.extra.port, answer.extra.ttl) == (*CALLEE, REGISTRATION_TTL)
    assert answer.extra.cookie == JAR.make(CALLEE[0], 0.0)
    assert answer.extra.epoch > 2**20
    assert server.events() == [PeerRegistered("bob", CALLEE)]


@pytest.mark.parametrize("tag", ["", "Bob", "-bob", "bob\n", "b b", "a" * 63 + "."])
def test_a_tag_that_is_none_is_dropped(tag: str) -> None:
    server = broker()
    server.receive_datagram(register(tag), CALLEE, 0.0)
    assert not server.datagrams_to_send()
    assert not server.registered


@pytest.mark.parametrize(
    "extra",
    [
        RegisterExtra(v=1, key="key", ts=1, sig="forged"),
        RegisterExtra(v=1, key="key", ts=1),
        RegisterExtra(v=1),
        RegisterExtra(key="key"),
        RegisterExtra(),
    ],
)
@pytest.mark.parametrize("compat_seed", [False, True])
def test_without_a_good_signature_nobody_gets_in(extra: RegisterExtra, compat_seed: bool) -> None:
    server = broker(compat_seed=compat_seed)
    shown = RegisterExtra(v=extra.v, key=extra.key, ts=extra.ts, sig=extra.sig, cookie=JAR.make(CALLEE[0], 0.0))
    server.receive_datagram(encode_padded(Register(mid=1, ltag="bob", extra=shown), 400), CALLEE, 0.0)
    is_seed_program = extra == RegisterExtra()
    expected = 401 if not is_seed_program else 200 if compat_seed else 403
    assert register_answer(server).code == expected
    assert server.registered == (("bob",) if is_seed_program and compat_seed else ())


def test_a_signature_for_another_server_is_no_good() -> None:
    server = broker(server_key="ours")
    server.receive_datagram(register(server_key="theirs"), CALLEE, 0.0)
    answer = register_answer(server)
    assert answer.extra is not None
    assert (answer.code, answer.extra.key, server.registered) == (401, "ours", ())


def test_another_key_does_not_get_the_tag() -> None:
    server, _ = with_bob()
    server.receive_datagram(register(key="other", host=STRANGER[0], ts=99), STRANGER, 0.0)
    assert register_answer(server).code == 409
    assert not server.events()


def test_the_newest_registration_of_a_key_wins() -> None:
    server, old_epoch = with_bob()
    server.receive_datagram(register(host=STRANGER[0], ts=2), STRANGER, 0.0)
    answer = register_answer(server)
    assert answer.extra is not None
    assert (answer.code, answer.extra.epoch != old_epoch) == (200, True)
    assert server.events() == [PeerLeft("bob", "replaced"), PeerRegistered("bob", STRANGER)]
    server.receive_datagram(heartbeat(old_epoch), CALLEE, 1.0)
    assert only(HeartbeatAnswer, server.datagrams_to_send()).code == 409


def test_a_repeated_registration_is_answered_alike() -> None:
    server, epoch = with_bob()
    server.receive_datagram(register(mid=9), CALLEE, 0.1)
    answer = register_answer(server)
    assert answer.extra is not None
    assert (answer.mid, answer.code, answer.extra.epoch) == (9, 200, epoch)
    assert not server.events()


@pytest.mark.parametrize(("ts", "source"), [(1, STRANGER), (1, (CALLEE[0], 9)), (0, CALLEE)])
def test_a_replayed_registration_changes_nothing(ts: int, source: Address) -> None:
    server, epoch = with_bob()
    server.receive_datagram(register(ts=ts, host=source[0]), source, 0.1)
    answer = register_answer(server)
    assert answer.extra is not None
    assert (answer.code, answer.extra.ts, answer.extra.epoch) == (401, 1, 0)  # what an owner with a lost counter needs
    assert server.dropped == {"registration replayed": 1}
    server.receive_datagram(heartbeat(epoch), CALLEE, 0.2)
    assert only(HeartbeatAnswer, server.datagrams_to_send()).code == 200


def test_a_high_counter_keeps_its_owner_out_for_no_longer_than_a_cookie_lives() -> None:
    """H5: what is signed is a cookie, too; once that is too old, no signature is needed to be above another."""
    server = broker()
    server.receive_datagram(register(ts=COUNTER_END - 1), CALLEE, 0.0)
    assert register_answer(server).code == 200
    cookie_life = 2 * COOKIE_EPOCH
    for now, code in ((cookie_life, 401), (cookie_life + 1, 200)):
        server.receive_datagram(register(ts=5, now=now), CALLEE, now)
        assert register_answer(server).code == code
    server.receive_datagram(register(ts=5, host=STRANGER[0], now=cookie_life + 1), STRANGER, cookie_life + 1)
    assert register_answer(server).code == 401  # and from then on that is the highest


def test_a_full_server_says_so_to_the_new_and_keeps_the_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registrar, "REGISTRATIONS_MAX", 1)
    server, _ = with_bob()
    server.receive_datagram(register("carol", host=STRANGER[0]), STRANGER, 0.0)
    answer = register_answer(server)
    assert answer.extra is not None
    assert (answer.code, answer.extra.retry_after > 0) == (429, True)
    server.receive_datagram(register(ts=2), CALLEE, 0.0)
    assert register_answer(server).code == 200


# --- who stays --------------------------------------------------------------------------------------------------------------


def test_a_heartbeat_prolongs_and_brings_the_next_cookie() -> None:
    server, epoch = with_bob()
    for now in (60.0, 120.0, 180.0):
        server.handle_timer(now)
        server.receive_datagram(heartbeat(epoch), CALLEE, now)
        answer = only(HeartbeatAnswer, server.datagrams_to_send())
        assert answer.extra is not None
        assert (answer.code, answer.extra.host, answer.extra.port) == (200, *CALLEE)
        assert answer.extra.cookie == JAR.make(CALLEE[0], now)
    assert server.registered == ("bob",)


@pytest.mark.parametrize("source", [STRANGER, (CALLEE[0], CALLEE[1] + 1)])
def test_a_heartbeat_from_another_address_must_register_again(source: Address) -> None:
    server, epoch = with_bob()
    server.receive_datagram(heartbeat(epoch), source, 1.0)
    assert only(HeartbeatAnswer, server.datagrams_to_send()).code == 401
    server.handle_timer(REGISTRATION_TTL)
    assert server.registered == ()


def test_a_heartbeat_with_a_guessed_epoch_prolongs_nothing() -> None:
    server, epoch = with_bob()
    server.receive_datagram(heartbeat(epoch ^ 1), CALLEE, 80.0)
    assert only(HeartbeatAnswer, server.datagrams_to_send()).code == 401
    server.handle_timer(REGISTRATION_TTL)
    assert server.registered == ()


def test_silence_ends_a_registration() -> None:
    server, _ = with_bob()
    server.handle_timer(REGISTRATION_TTL - 0.1)
    assert server.registered == ("bob",)
    server.handle_timer(REGISTRATION_TTL + 1)
    assert server.registered == ()
    assert server.events() == [PeerLeft("bob", "expired")]


def test_a_server_without_peers_wants_no_timer() -> None:
    server, epoch = with_bob()
    assert server.next_deadline() is not None
    server.receive_datagram(leave(epoch), CALLEE, 0.0)
    server.handle_timer(1.0)
    assert server.next_deadline() is None


def test_leaving_is_answered_and_at_once() -> None:
    server, epoch = with_bob()
    server.receive_datagram(leave(epoch), CALLEE, 1.0)
    assert only(LeaveAnswer, server.datagrams_to_send()).code == 200
    assert server.events() == [PeerLeft("bob", "left")]
    server.receive_datagram(leave(epoch), CALLEE, 1.1)
    assert only(LeaveAnswer, server.datagrams_to_send()).code == 200


@pytest.mark.parametrize("source", [STRANGER, (CALLEE[0], 9)])
def test_nobody_leaves_for_another(source: Address) -> None:
    server, epoch = with_bob()
    server.receive_datagram(leave(epoch), source, 1.0)
    server.receive_datagram(leave(epoch ^ 1), CALLEE, 1.0)
    assert server.registered == ("bob",)


def test_a_peer_on_tcp_is_gone_with_its_connection() -> None:
    server = broker()
    server.receive_line(register("bob"), CALLEE, 1, 0.0)
    server.receive_line(register("carol", host=STRANGER[0]), STRANGER, 2, 0.0)
    server.receive_datagram(register("dave", host=CALLER[0]), CALLER, 0.0)
    server.events()
    server.connection_closed(1)
    assert server.registered == ("carol", "dave")
    assert server.events() == [PeerLeft("bob", "left")]
    server.connection_closed(99)
    assert server.registered == ("carol", "dave")


@pytest.mark.bulk
def test_ten_thousand_forged_heartbeats_and_leaves_move_nothing() -> None:
    server, epoch = with_bob()
    for guess in range(5000):
        server.receive_datagram(heartbeat(guess), CALLEE, 0.5)
        server.receive_datagram(leave(epoch), ("192.0.2.77", guess), 0.5)
    server.datagrams_to_send()
    server.receive_datagram(heartbeat(epoch), CALLEE, 1.0)
    assert only(HeartbeatAnswer, server.datagrams_to_send()).code == 200


# --- other questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [CALLEE, IPV6])
def test_anybody_learns_how_it_looks(source: Address) -> None:
    server = broker()
    probe = ReflexiveProbe(mid=5)
    server.receive_line(encode(probe), source, 3, 0.0)
    [answer] = lines(server, 3)
    assert isinstance(answer, ReflexiveAnswer)
    assert answer.extra is not None
    assert (answer.mid, answer.extra.host, answer.extra.port) == (5, *source)


def test_over_udp_a_short_probe_gets_nothing() -> None:
    server = broker()
    server.receive_datagram(encode(ReflexiveProbe(mid=5)), CALLEE, 0.0)
    assert not server.datagrams_to_send()


def test_stun_is_answered_on_the_same_port() -> None:
    server = broker()
    server.receive_datagram(bytes.fromhex("000100002112a442") + bytes(12), CALLEE, 0.0)
    [datagram] = server.datagrams_to_send()
    assert datagram.data[:2] == b"\x01\x01"


@pytest.mark.parametrize("body", [b"", b"\xff", b"[]", b'{"t":99}', encode(RegisterAnswer(mid=1, code=200, em=""))])
def test_what_is_not_for_a_server_is_counted_and_never_answered(body: bytes) -> None:
    server, _ = with_bob()
    server.receive_datagram(body, STRANGER, 0.0)
    assert not server.datagrams_to_send()
    assert sum(server.dropped.values()) == 1


def test_the_tests_believe_only_what_names_all_it_signs() -> None:
    assert Words("s").is_signed("bob", RegisterExtra(key="k", sig="k signs bob at s"))
    assert not Words("s").is_signed("bob", RegisterExtra(key="k", sig="k signs carol at s"))


def test_a_notice_from_a_peer_is_no_notice() -> None:
    server, _ = with_bob()
    server.receive_datagram(encode(notice()), CALLEE, 0.0)
    assert server.dropped == {"not for a server": 1}
    assert not sent(server.datagrams_to_send())
