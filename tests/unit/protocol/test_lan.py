"""Two peers in one network, as machines: what was announced is tried, who knows the key is answered, and that is all."""

from __future__ import annotations

import random
from itertools import product

import pytest

from p2ptunnel.defaults import (
    LAN_CONKEY_TTL,
    LAN_CONKEYS_MAX,
    LAN_CONKEYS_OF_SOURCE_MAX,
    LAN_DATAGRAMS_BURST,
    LAN_MEETINGS_MAX,
    LAN_PATIENCE,
    LAN_PROBE_FIRST,
    LAN_PROBES,
    LAN_STAGGER,
    LAN_TARGETS_AT_ONCE,
    LAN_TARGETS_MAX,
)
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.protocol.lan import (
    TRANSITIONS,
    LanCaller,
    LanExhausted,
    LanPort,
    LanReached,
    LanTarget,
    LanTargetState,
    LanTargetTrigger,
)
from p2ptunnel.protocol.machine import Datagram
from p2ptunnel.types import Address
from p2ptunnel.wire.keyed import KeyedSender
from p2ptunnel.wire.lan import lan_keys
from p2ptunnel.wire.messages import (
    ConkeyExtra,
    HoleAnswer,
    HoleProbe,
    Message,
    OpenTcp,
    OpenTcpAnswer,
    OpenTcpExtra,
    decode,
    encode,
)

CALLEE = Identity.from_seed(b"callee".ljust(32)).public
EVE = Identity.from_seed(b"eve".ljust(32)).public
SALT, OTHER_SALT = b"s" * 16, b"t" * 16
HOME: Address = ("192.168.1.7", 40007)
LAPTOP: Address = ("192.168.1.9", 40009)
OTHER: Address = ("192.168.1.10", 40010)
NOW = 100.0
TOKEN, CONKEY = "ab" * 16, "cd" * 16


def a_caller(*near: Address, far: tuple[Address, ...] = (), salt: bytes = SALT) -> LanCaller:
    """A caller that has begun, and has found these."""
    caller = LanCaller(CALLEE, random.Random(1))
    caller.start(NOW)
    caller.found(salt, near, far, NOW)
    return caller


def a_port(**options: bool) -> LanPort:
    return LanPort(CALLEE, SALT, random.Random(2), **options)


def addresses(count: int, network: int = 1) -> tuple[Address, ...]:
    return tuple((f"10.0.{network}.{number}", 40000) for number in range(1, count + 1))


def messages(datagrams: list[Datagram]) -> list[Message]:
    return [decode(datagram.data) for datagram in datagrams]


def keyed(message: Message, *, key: bytes = CALLEE.raw, salt: bytes = SALT, token: str, to_caller: bool = True) -> bytes:
    keys = lan_keys(key, salt, token)
    return KeyedSender(keys.callee_mac if to_caller else keys.caller_mac).seal(encode(message))


def answer_to(question: Datagram, *, conkey: str = CONKEY, code: int = 200, key: bytes = CALLEE.raw) -> bytes:
    """What the callee answers to a datagram."""
    asked = decode(question.data)
    if isinstance(asked, HoleProbe):
        return keyed(HoleAnswer(mid=asked.mid, token=asked.token), key=key, token=asked.token)
    assert isinstance(asked, OpenTcp)
    extra = ConkeyExtra(conkey=conkey) if code == 200 else None
    return keyed(OpenTcpAnswer(mid=asked.mid, token=asked.token, code=code, em="", extra=extra), key=key, token=asked.token)


def reach(caller: LanCaller, now: float = NOW) -> list[LanReached]:
    """Answer everything that the caller asks, at once."""
    reached: list[LanReached] = []
    while asked := caller.datagrams_to_send():
        for datagram in asked:
            caller.receive_datagram(answer_to(datagram), datagram.destination, now)
        reached += [event for event in caller.events() if isinstance(event, LanReached)]
    return reached


def selector_of(caller: LanCaller) -> str:
    """What becomes of the conkey that `answer_to` gives, if one address was found."""
    [target] = caller.targets
    return target.keys.selector(CONKEY).hex()


def sends_until(caller: LanCaller, end: float) -> list[tuple[float, Address]]:
    """When the caller sends what to whom if nobody ever answers."""
    sent = [(NOW, datagram.destination) for datagram in caller.datagrams_to_send()]
    while (due := caller.next_deadline()) is not None and due <= end:
        caller.handle_timer(due)
        sent += [(due, datagram.destination) for datagram in caller.datagrams_to_send()]
    return sent


# --- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "trigger"), list(product(LanTargetState, LanTargetTrigger)))
def test_an_address_makes_the_transitions_of_the_table_and_no_others(state: LanTargetState, trigger: LanTargetTrigger) -> None:
    target = LanTarget(HOME, TOKEN, lan_keys(CALLEE.raw, SALT, TOKEN), state)
    if (state, trigger) in TRANSITIONS:
        target.move(trigger)
        assert target.state is TRANSITIONS[state, trigger]
        return
    with pytest.raises(LocalProtocolError, match=f"an address that is {state.value} takes no"):
        target.move(trigger)
    assert target.state is state


# --- the caller -------------------------------------------------------------------------------------------------------


def test_a_peer_that_answers_is_reached_in_two_questions() -> None:
    caller = a_caller(HOME)
    assert reach(caller) == [LanReached(HOME, selector_of(caller), 0.0)]
    assert caller.next_deadline() is None
    assert [target.state for target in caller.targets] == [LanTargetState.REACHED]


def test_an_address_that_is_silent_gets_three_probes_and_no_more() -> None:
    caller = a_caller(HOME)
    sent = sends_until(caller, NOW + LAN_PATIENCE)
    assert [at - NOW for at, _ in sent] == pytest.approx([0, LAN_PROBE_FIRST, 3 * LAN_PROBE_FIRST])
    assert len(sent) == LAN_PROBES
    assert caller.events() == [LanExhausted()]


def test_each_of_the_probes_is_keyed_and_the_same_question() -> None:
    caller = a_caller(HOME)
    questions = [*caller.datagrams_to_send()]
    while (due := caller.next_deadline()) is not None and due < NOW + LAN_PATIENCE:
        caller.handle_timer(due)
        questions += caller.datagrams_to_send()
    asked = [decode(question.data) for question in questions]
    assert len({(message.mid, message.token) for message in asked if isinstance(message, HoleProbe)}) == 1
    port = a_port()
    for question in questions:
        port.receive_datagram(question.data, LAPTOP, NOW)
    assert len(port.datagrams_to_send()) == LAN_PROBES


def test_no_more_than_sixteen_addresses_are_probed_at_a_time() -> None:
    caller = a_caller(*addresses(16))
    caller.found(OTHER_SALT, addresses(16, 2), (), NOW)
    first = {datagram.destination for datagram in caller.datagrams_to_send()}
    assert first == set(addresses(LAN_TARGETS_AT_ONCE))


def test_thirty_two_dead_addresses_cost_less_than_two_seconds() -> None:
    caller = a_caller(*addresses(16))
    caller.found(OTHER_SALT, addresses(16, 2), (), NOW)
    sent = sends_until(caller, NOW + LAN_PATIENCE)
    assert len(sent) == 32 * LAN_PROBES
    assert sent[-1][0] - NOW < 2
    assert caller.events() == [LanExhausted()]


def test_of_one_service_sixteen_addresses_count_those_on_link_first() -> None:
    caller = a_caller(*addresses(10), far=addresses(20, 2))
    destinations = [datagram.destination for datagram in caller.datagrams_to_send()]
    assert destinations == [*addresses(10), *addresses(6, 2)]


def test_addresses_on_link_go_before_others_that_wait() -> None:
    caller = a_caller(far=addresses(16))
    caller.datagrams_to_send()
    caller.found(OTHER_SALT, (HOME,), addresses(4, 2), NOW)
    sent = sends_until(caller, NOW + 1)
    assert next(address for _, address in sent if address not in addresses(16)) == HOME


def test_of_one_call_sixty_four_addresses_count() -> None:
    caller = a_caller()
    for number in range(500):
        caller.found(bytes([number % 256, number // 256]) * 8, ((f"10.1.{number // 200}.{number % 200 + 1}", 40000),), (), NOW)
    assert len(sends_until(caller, NOW + 60)) == LAN_TARGETS_MAX * LAN_PROBES
    assert caller.dropped["too many addresses"] == 500 - LAN_TARGETS_MAX


def test_an_address_that_is_announced_again_is_probed_once() -> None:
    caller = a_caller(HOME)
    caller.found(SALT, (HOME,), (), NOW)
    assert len(caller.datagrams_to_send()) == 1


def test_an_address_that_was_silent_is_probed_anew_when_it_is_announced_again() -> None:
    caller = a_caller(HOME)
    sends_until(caller, NOW + 1)
    caller.found(SALT, (HOME,), (), NOW + 1)
    assert len(reach(caller, NOW + 1)) == 1


def test_what_is_announced_over_and_over_is_not_probed_for_ever() -> None:
    caller = a_caller(HOME)
    sent = len(sends_until(caller, NOW + 1))
    for number in range(1000):
        caller.found(SALT, (HOME,), (), NOW + 1 + number)
        sent += len(caller.datagrams_to_send())
        while (due := caller.next_deadline()) is not None and due < NOW + 2 + number:
            caller.handle_timer(due)
            sent += len(caller.datagrams_to_send())
    assert sent == LAN_TARGETS_MAX * LAN_PROBES


def test_one_mark_at_another_address_is_another_question() -> None:
    """Somebody has copied the peer's record: what it is asked tells it nothing that the peer would take."""
    caller = a_caller(HOME)
    caller.found(SALT, (OTHER,), (), NOW)
    tokens = {message.token for message in messages(caller.datagrams_to_send()) if isinstance(message, HoleProbe)}
    assert len(tokens) == 2


@pytest.mark.parametrize("key", [EVE.raw, bytes(32)])
def test_an_answer_by_who_does_not_know_the_key_is_dropped(key: bytes) -> None:
    caller = a_caller(HOME)
    [question] = caller.datagrams_to_send()
    caller.receive_datagram(answer_to(question, key=key), HOME, NOW)
    assert caller.dropped["not keyed"] == 1
    assert [target.state for target in caller.targets] == [LanTargetState.PROBING]


def test_our_own_question_sent_back_is_no_answer() -> None:
    caller = a_caller(HOME)
    [question] = caller.datagrams_to_send()
    caller.receive_datagram(question.data, HOME, NOW)
    assert caller.dropped["unexpected message"] == 1


def test_an_answer_that_nobody_asked_for_is_dropped() -> None:
    caller = a_caller(HOME)
    [question] = caller.datagrams_to_send()
    asked = decode(question.data)
    assert isinstance(asked, HoleProbe)
    for mid, token in ((asked.mid + 1, asked.token), (asked.mid, TOKEN)):
        caller.receive_datagram(keyed(HoleAnswer(mid=mid, token=token), token=token), HOME, NOW)
    conkey = OpenTcpAnswer(mid=asked.mid, token=asked.token, code=200, extra=ConkeyExtra(conkey=CONKEY))
    caller.receive_datagram(keyed(conkey, token=asked.token), HOME, NOW)
    assert caller.dropped["unasked"] == 3
    assert caller.events() == []


def test_an_answer_is_taken_once() -> None:
    caller = a_caller(HOME)
    [question] = caller.datagrams_to_send()
    for _ in range(3):
        caller.receive_datagram(answer_to(question), HOME, NOW)
    assert len(caller.datagrams_to_send()) == 1
    assert caller.dropped["unasked"] == 2


@pytest.mark.parametrize("source", [OTHER, (HOME[0], OTHER[1])])
def test_nobody_answers_for_another_address(source: Address) -> None:
    """What is at that address may be a service of somebody else's, which would be sent what belongs here."""
    caller = a_caller(HOME)
    [question] = caller.datagrams_to_send()
    caller.receive_datagram(answer_to(question), source, NOW)
    assert caller.dropped == {"unasked": 1}
    caller.receive_datagram(answer_to(question), HOME, NOW)
    [question] = caller.datagrams_to_send()
    caller.receive_datagram(answer_to(question), source, NOW)
    assert caller.events() == []
    assert caller.dropped == {"unasked": 2}


@pytest.mark.parametrize("conkey", [b"\r\nFLUSHALL\r\n--\r\n".hex(), CONKEY, "no hex", "\u20ac" * 64])
def test_who_gives_the_conkey_does_not_choose_what_is_sent(conkey: str) -> None:
    """Behind the magic, which ends a line, it would be a command to a service that reads lines."""
    selectors: set[str] = set()
    for seed in range(2):
        caller = LanCaller(CALLEE, random.Random(seed))
        caller.start(NOW)
        caller.found(SALT, (HOME,), (), NOW)
        for _ in range(2):
            [question] = caller.datagrams_to_send()
            caller.receive_datagram(answer_to(question, conkey=conkey), HOME, NOW)
        selectors |= {event.selector for event in caller.events() if isinstance(event, LanReached)}
    assert len(selectors) == 2
    assert conkey not in selectors
    assert {len(bytes.fromhex(selector)) for selector in selectors} == {16}


def test_the_round_trip_is_measured() -> None:
    caller = a_caller(HOME)
    for now in (NOW + 0.003, NOW + 0.007):
        [question] = caller.datagrams_to_send()
        caller.receive_datagram(answer_to(question), HOME, now)
    assert caller.events() == [LanReached(HOME, selector_of(caller), pytest.approx(0.004))]


def test_a_round_trip_of_a_repeated_question_is_not_known() -> None:
    caller = a_caller(HOME)
    [question] = caller.datagrams_to_send()
    caller.handle_timer(NOW + LAN_PROBE_FIRST)
    caller.datagrams_to_send()
    caller.receive_datagram(answer_to(question), HOME, NOW + 0.15)
    assert [target.rtt for target in caller.targets] == [None]


def test_the_first_that_answers_is_asked_for_a_connection_and_the_next_only_when_it_is_slow() -> None:
    caller = a_caller(HOME, OTHER)
    assert [event.address for event in reach(caller)] == [HOME]
    assert caller.next_deadline() == NOW + LAN_STAGGER
    caller.handle_timer(NOW + LAN_STAGGER)
    assert [event.address for event in reach(caller)] == [OTHER]


def test_the_next_is_asked_at_once_when_a_meeting_fails() -> None:
    caller = a_caller(HOME, OTHER)
    reach(caller)
    caller.meeting_failed(HOME, NOW + 0.2)
    assert [event.address for event in reach(caller)] == [OTHER]


def test_a_no_and_silence_let_the_next_one_try() -> None:
    for code in (400, 0):
        caller = a_caller(HOME, OTHER)
        for question in caller.datagrams_to_send():
            caller.receive_datagram(answer_to(question), question.destination, NOW)
        [asked] = caller.datagrams_to_send()
        assert asked.destination == HOME
        if code:
            caller.receive_datagram(answer_to(asked, code=code), HOME, NOW)
        times = sends_until(caller, NOW + LAN_STAGGER)
        assert times[-1][1] == OTHER


def test_no_more_than_four_meetings_are_under_way() -> None:
    caller = a_caller(*addresses(10))
    reached, now = reach(caller), NOW
    while (due := caller.next_deadline()) is not None and due < NOW + 60:
        now = due
        caller.handle_timer(now)
        reached += reach(caller, now)
    assert len(reached) == LAN_MEETINGS_MAX
    caller.meeting_failed(reached[0].address, now)
    assert len(reach(caller, now)) == 1


def test_while_a_meeting_is_under_way_the_call_is_not_over() -> None:
    caller = a_caller(HOME)
    reach(caller)
    caller.handle_timer(NOW + 10 * LAN_PATIENCE)
    assert caller.events() == []
    caller.meeting_failed(HOME, NOW + 10 * LAN_PATIENCE)
    assert caller.events() == [LanExhausted()]


def test_with_nobody_found_the_call_is_over_after_a_while_and_says_so_once() -> None:
    caller = a_caller()
    assert caller.next_deadline() == NOW + LAN_PATIENCE
    for _ in range(2):
        caller.handle_timer(NOW + LAN_PATIENCE)
    assert caller.events() == [LanExhausted()]


def test_nothing_secret_is_shown() -> None:
    caller = a_caller(HOME)
    [reached] = reach(caller)
    assert reached.selector not in repr(reached)
    assert "selector" not in reached.facts()
    [target] = caller.targets
    assert target.token not in repr(target)


# --- the callee -------------------------------------------------------------------------------------------------------


def probe(mid: int = 1, token: str = TOKEN, **options: bytes) -> bytes:
    return keyed(HoleProbe(mid=mid, token=token), token=token, to_caller=False, **options)


def asks(mid: int = 2, token: str = TOKEN, op: int = 1, pad: str = " " * 60) -> bytes:
    return keyed(OpenTcp(mid=mid, token=token, extra=OpenTcpExtra(op=op, pad=pad)), token=token, to_caller=False)


def conkey_of(port: LanPort, source: Address = LAPTOP, now: float = NOW, mid: int = 2) -> str:
    """Ask for a conkey, and return it."""
    port.receive_datagram(asks(mid), source, now)
    [answer] = messages(port.datagrams_to_send())
    assert isinstance(answer, OpenTcpAnswer)
    assert answer.extra is not None
    return answer.extra.conkey


def selector(conkey: str) -> bytes:
    return lan_keys(CALLEE.raw, SALT, TOKEN).selector(conkey)


def test_who_knows_the_key_is_answered_at_its_address() -> None:
    port = a_port()
    port.receive_datagram(probe(), LAPTOP, NOW)
    [answer] = port.datagrams_to_send()
    assert answer.destination == LAPTOP
    assert decode(answer.data) == HoleAnswer(mid=1, token=TOKEN)


@pytest.mark.parametrize("options", [{"key": EVE.raw}, {"key": bytes(32)}, {"salt": OTHER_SALT}])
def test_who_does_not_know_the_key_or_the_mark_hears_nothing(options: dict[str, bytes]) -> None:
    port = a_port()
    port.receive_datagram(probe(**options), LAPTOP, NOW)
    assert port.datagrams_to_send() == []
    assert port.dropped["not keyed"] == 1


def test_a_question_that_is_not_keyed_is_not_answered() -> None:
    port = a_port()
    for message in (HoleProbe(mid=1, token=TOKEN), OpenTcp(mid=1, token=TOKEN, extra=OpenTcpExtra(op=1))):
        port.receive_datagram(encode(message), LAPTOP, NOW)
    assert port.datagrams_to_send() == []
    assert port.next_deadline() is None


@pytest.mark.parametrize("host", ["203.0.113.9", "8.8.8.8", "127.0.0.1", "0.0.0.0", "224.0.0.1", "2001:db8::9", "a name"])
def test_nobody_outside_networks_like_ours_is_answered(host: str) -> None:
    port = a_port()
    port.receive_datagram(probe(), (host, 40000), NOW)
    assert port.datagrams_to_send() == []


@pytest.mark.parametrize("host", ["10.0.0.9", "172.16.0.9", "192.168.0.9", "169.254.0.9", "100.64.0.9", "fd00::9"])
def test_neighbours_are_answered(host: str) -> None:
    port = a_port()
    port.receive_datagram(probe(), (host, 40000), NOW)
    assert len(port.datagrams_to_send()) == 1


def test_loopback_is_answered_in_tests_only() -> None:
    port = a_port(on_loopback=True)
    port.receive_datagram(probe(), ("127.0.0.1", 40000), NOW)
    assert len(port.datagrams_to_send()) == 1


@pytest.mark.parametrize("token", ["a", TOKEN, "b" * 64])
def test_no_answer_is_longer_than_its_question_but_for_the_minus(token: str) -> None:
    """Who knows our key can ask in the name of a host that has not."""
    port = a_port()
    for number in range(100):
        question = asks(token=token, pad=" " * number)
        for asked in (question, probe(token=token), asks(token=token, op=7, pad=" " * number)):
            port.receive_datagram(asked, (f"10.0.0.{number}", 40000), NOW)
            assert all(len(answer.data) <= len(asked) + 1 for answer in port.datagrams_to_send())
    assert 0 < port.dropped["shorter than its answer"] < 200


def test_what_a_caller_asks_is_long_enough_for_each_answer() -> None:
    caller = a_caller(HOME)
    port = a_port()
    for _ in range(2):
        [question] = caller.datagrams_to_send()
        port.receive_datagram(question.data, LAPTOP, NOW)
        [answer] = port.datagrams_to_send()
        caller.receive_datagram(answer.data, HOME, NOW)
    assert len(caller.events()) == 1


@pytest.mark.parametrize(("number", "answers"), [(0, 0), (53, 0), (1023, 0), (1024, 1), (1900, 0), (5353, 0), (65535, 1)])
def test_nobody_is_answered_at_the_port_of_a_service(number: int, answers: int) -> None:
    port = a_port()
    port.receive_datagram(probe(), (LAPTOP[0], number), NOW)
    assert len(port.datagrams_to_send()) == answers
    assert port.dropped["from the port of a service"] == 1 - answers


def test_a_source_that_floods_is_not_read_and_nobody_else_suffers() -> None:
    port = a_port()
    for _ in range(10_000):
        port.receive_datagram(probe(), LAPTOP, NOW)
    assert len(port.datagrams_to_send()) == LAN_DATAGRAMS_BURST
    port.receive_datagram(probe(), OTHER, NOW)
    assert len(port.datagrams_to_send()) == 1
    assert port.dropped["too many"] == 10_000 - LAN_DATAGRAMS_BURST


def test_other_messages_are_dropped() -> None:
    port = a_port()
    for data in (b"", b"{", encode(HoleAnswer(mid=1, token=TOKEN)), b"\xff" * 1200, b"[" * 4000):
        port.receive_datagram(data, LAPTOP, NOW)
    assert port.datagrams_to_send() == []


def test_a_conkey_is_good_for_its_host_and_for_ten_seconds() -> None:
    port = a_port()
    conkey = conkey_of(port)
    assert port.matches(selector(conkey), LAPTOP[0], NOW)
    assert not port.matches(selector(conkey), OTHER[0], NOW)
    assert not port.matches(bytes(16), LAPTOP[0], NOW)
    assert not port.matches(bytes.fromhex(conkey), LAPTOP[0], NOW)
    assert port.matches(selector(conkey), LAPTOP[0], NOW + LAN_CONKEY_TTL - 0.01)
    assert not port.matches(selector(conkey), LAPTOP[0], NOW + LAN_CONKEY_TTL)


def test_a_conkey_that_was_only_seen_is_still_good_and_a_spent_one_is_not() -> None:
    port = a_port()
    conkey = conkey_of(port)
    for _ in range(3):
        assert port.matches(selector(conkey), LAPTOP[0], NOW)
    port.spend(selector(conkey))
    assert not port.matches(selector(conkey), LAPTOP[0], NOW)
    assert port.waiting_for(LAPTOP[0], NOW) == 0


def test_a_repeated_request_gets_the_same_conkey_and_another_one_another() -> None:
    port = a_port()
    assert conkey_of(port) == conkey_of(port)
    assert conkey_of(port) != conkey_of(port, mid=3)
    assert port.waiting_for(LAPTOP[0], NOW) == 2


def test_a_request_replayed_from_elsewhere_gives_its_conkey_to_nobody() -> None:
    port = a_port()
    conkey = conkey_of(port)
    assert conkey_of(port, OTHER) != conkey
    assert not port.matches(selector(conkey), OTHER[0], NOW)


def test_conkeys_are_bounded_by_host_and_in_all() -> None:
    port = a_port()
    conkeys = [conkey_of(port, mid=mid) for mid in range(20)]
    assert port.waiting_for(LAPTOP[0], NOW) == LAN_CONKEYS_OF_SOURCE_MAX
    good = [conkey for conkey in conkeys if port.matches(selector(conkey), LAPTOP[0], NOW)]
    assert good == conkeys[-LAN_CONKEYS_OF_SOURCE_MAX:]
    for host, mid in product(range(100), range(3)):
        port.receive_datagram(asks(mid), (f"10.0.0.{host}", 40000), NOW)
    assert len(port.datagrams_to_send()) == LAN_CONKEYS_MAX - LAN_CONKEYS_OF_SOURCE_MAX
    assert port.dropped["too many conkeys"] == 300 - LAN_CONKEYS_MAX + LAN_CONKEYS_OF_SOURCE_MAX
    port.handle_timer(NOW + LAN_CONKEY_TTL)
    assert port.next_deadline() is None
    conkey_of(port, now=NOW + LAN_CONKEY_TTL)


def test_an_unknown_op_is_refused() -> None:
    port = a_port()
    port.receive_datagram(asks(op=7), LAPTOP, NOW)
    assert messages(port.datagrams_to_send()) == [
        OpenTcpAnswer(mid=2, token=TOKEN, code=400, em="unknown op", extra=ConkeyExtra())
    ]


def test_under_a_new_salt_the_old_one_counts_no_more() -> None:
    port = a_port()
    port.salt = OTHER_SALT
    port.receive_datagram(probe(), LAPTOP, NOW)
    assert port.datagrams_to_send() == []
    port.receive_datagram(probe(salt=OTHER_SALT), LAPTOP, NOW)
    assert len(port.datagrams_to_send()) == 1
