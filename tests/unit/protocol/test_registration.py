"""Registration: what each answer, each silence and each wish of ours does in each state."""

from __future__ import annotations

import random

import pytest

from p2ptunnel.defaults import (
    COOKIELESS_PAD_BYTES,
    HEARTBEAT_MAX,
    HEARTBEAT_MIN,
    RECALL_MAX,
    RECALL_MIN,
    RECONNECT_CAP,
    RECONNECT_FIRST,
    RETRY_AFTER_MAX,
    TRANSACTION_TIMEOUT,
)
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.protocol.registration import (
    AddressChanged,
    Displaced,
    Left,
    Registered,
    Registration,
    RegistrationLost,
    RegistrationRefused,
    RegistrationState,
    ServerUnproven,
)
from p2ptunnel.testing.simnet import Credentials
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    Heartbeat,
    HeartbeatAnswer,
    Leave,
    LeaveAnswer,
    Message,
    Observed,
    Register,
    RegisterAnswer,
    RegisterExtra,
)
from tests.unit.protocol.actors import CALLEE, SERVER, STRANGER, event, only, sent, welcome

State = RegistrationState
MOVED: Address = ("198.51.100.99", 12345)


class Steady:
    """Entropy that always draws the middle."""

    def random(self) -> float:
        return 0.5

    def getrandbits(self, k: int, /) -> int:
        return 1 << (k - 1)


class Asked(Credentials):
    """Remembers above what it was to sign."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.floors: list[int] = []

    def register_extra(self, *, cookie: str, server_key: str, at_least_ts: int) -> RegisterExtra:
        self.floors.append(at_least_ts)
        return super().register_extra(cookie=cookie, server_key=server_key, at_least_ts=at_least_ts)


def idle() -> Registration:
    return Registration("bob", SERVER, Credentials("key"), random.Random(1))


def registering() -> tuple[Registration, Register]:
    machine = idle()
    machine.start(0.0)
    return machine, only(Register, machine.datagrams_to_send())


def registered(now: float = 0.0) -> Registration:
    machine, request = registering()
    machine.receive(welcome(request), SERVER, now)
    machine.events()
    return machine


def heartbeating() -> tuple[Registration, Heartbeat, float]:
    machine = registered()
    at = machine.next_deadline()
    assert at is not None
    machine.handle_timer(at)
    return machine, only(Heartbeat, machine.datagrams_to_send()), at


def waiting() -> Registration:
    machine, _ = registering()
    machine.handle_timer(TRANSACTION_TIMEOUT)
    return machine


def refused(code: int = 409) -> Registration:
    machine, request = registering()
    machine.receive(RegisterAnswer(mid=request.mid, code=code, em="no"), SERVER, 0.0)
    return machine


def leaving() -> tuple[Registration, Leave]:
    machine = registered()
    machine.leave(1.0)
    return machine, only(Leave, machine.datagrams_to_send())


def left() -> Registration:
    machine = idle()
    machine.leave(0.0)
    return machine


def in_state(state: RegistrationState) -> Registration:
    make = {
        State.IDLE: idle,
        State.REGISTERING: lambda: registering()[0],
        State.REGISTERED: registered,
        State.WAITING: waiting,
        State.REFUSED: refused,
        State.LEAVING: lambda: leaving()[0],
        State.LEFT: left,
    }
    machine = make[state]()
    assert machine.state is state
    machine.events()
    machine.datagrams_to_send()
    return machine


def challenge(mid: int, *, ts: int = 0, cookie: str = "fresh", key: str = "") -> RegisterAnswer:
    return RegisterAnswer(mid=mid, code=401, em="cookie", extra=Observed(host="h", port=1, cookie=cookie, ts=ts, key=key))


def is_quiet(machine: Registration) -> bool:
    return not machine.datagrams_to_send() and not machine.events()


# --- getting known --------------------------------------------------------------------------------------------------------


def test_it_begins_with_a_padded_request() -> None:
    machine = idle()
    machine.start(0.0)
    [datagram] = machine.datagrams_to_send()
    assert datagram.destination == SERVER
    assert len(datagram.data) == COOKIELESS_PAD_BYTES
    assert machine.state is State.REGISTERING


def test_a_challenge_is_met_with_its_cookie_and_the_servers_key() -> None:
    machine, request = registering()
    assert machine.receive(challenge(request.mid, key="server's"), SERVER, 0.1)
    again = only(Register, machine.datagrams_to_send())
    assert again.mid != request.mid
    assert again.extra is not None
    assert again.extra.cookie == "fresh"
    assert machine.cookie == "fresh"


def test_a_server_that_knows_a_later_signature_is_given_a_later_one_still() -> None:
    machine, request = registering()
    machine.receive(challenge(request.mid, ts=1_000_000), SERVER, 0.1)
    again = only(Register, machine.datagrams_to_send())
    assert again.extra is not None
    assert again.extra.ts > 1_000_000


def test_endless_challenges_end_as_a_refusal() -> None:
    machine, request = registering()
    for _ in range(3):
        machine.receive(challenge(request.mid), SERVER, 0.1)
        request = only(Register, machine.datagrams_to_send())
    machine.receive(challenge(request.mid), SERVER, 0.1)
    assert machine.state is State.REFUSED
    assert event(RegistrationRefused, machine.events()).code == 401


def test_being_accepted_tells_how_we_look_and_how_far_the_server_is() -> None:
    machine, request = registering()
    machine.receive(welcome(request), SERVER, 0.04)
    assert event(Registered, machine.events()) == Registered(CALLEE, pytest.approx(0.04))
    assert (machine.state, machine.observed, machine.cookie) == (State.REGISTERED, CALLEE, "cookie")
    deadline = machine.next_deadline()
    assert deadline is not None
    assert HEARTBEAT_MIN <= deadline - 0.04 <= HEARTBEAT_MAX


def test_a_repeated_request_measures_no_round_trip() -> None:
    machine, request = registering()
    machine.handle_timer(0.2)
    machine.receive(welcome(request), SERVER, 0.25)
    assert event(Registered, machine.events()).rtt is None


@pytest.mark.parametrize("code", [403, 409, 426, 429, 500, -1])
def test_a_refusal_is_told_and_tried_again_much_later(code: int) -> None:
    machine, request = registering()
    extra = Observed(retry_after=30.0) if code == 429 else None
    machine.receive(RegisterAnswer(mid=request.mid, code=code, em="no\n", extra=extra), SERVER, 0.0)
    wait = 30.0 if code == 429 else RECONNECT_CAP
    assert event(RegistrationRefused, machine.events()) == RegistrationRefused(code, "no\\x0a", wait)
    assert machine.next_deadline() == wait
    machine.handle_timer(wait)
    assert machine.state is State.REGISTERING
    assert only(Register, machine.datagrams_to_send())


def test_nobody_makes_it_wait_for_long() -> None:
    """H5: two forged answers kept a peer silent for a day."""
    machine, request = registering()
    machine.receive(RegisterAnswer(mid=request.mid, code=429, em="", extra=Observed(retry_after=86_400)), SERVER, 0.0)
    assert event(RegistrationRefused, machine.events()).retry_after == RETRY_AFTER_MAX
    assert machine.next_deadline() == RETRY_AFTER_MAX
    machine.network_changed(1.0)
    assert machine.next_deadline() == 1.0


def test_a_counter_that_an_answer_asks_for_is_signed_once() -> None:
    """H5: a forged one locked the peer out of its own tag."""
    credentials = Asked("key")
    machine = Registration("bob", SERVER, credentials, random.Random(1))
    machine.start(0.0)
    request = only(Register, machine.datagrams_to_send())
    challenge = Observed(cookie="cookie", ts=7)
    machine.receive(RegisterAnswer(mid=request.mid, code=401, em="", extra=challenge), SERVER, 0.0)
    machine.receive(welcome(only(Register, machine.datagrams_to_send())), SERVER, 0.0)
    at = machine.next_deadline()
    assert at is not None
    machine.handle_timer(at)
    beat = only(Heartbeat, machine.datagrams_to_send())
    machine.receive(HeartbeatAnswer(mid=beat.mid, code=401, em=""), SERVER, at)
    assert only(Register, machine.datagrams_to_send())
    assert credentials.floors == [0, 7, 0]


def test_a_welcome_without_an_address_is_none() -> None:
    machine, request = registering()
    machine.receive(RegisterAnswer(mid=request.mid, code=200, em=""), SERVER, 0.0)
    assert machine.state is State.REFUSED
    assert machine.observed is None


def test_silence_is_told_and_tried_again_ever_more_slowly() -> None:
    machine = Registration("bob", SERVER, Credentials("key"), Steady())
    machine.start(0.0)
    waits: list[float] = []
    while len(waits) < 14:
        at = machine.next_deadline()
        assert at is not None
        machine.handle_timer(at)
        waits += [lost.retry_in for lost in machine.events() if isinstance(lost, RegistrationLost)]
    assert waits[0] == pytest.approx(RECONNECT_FIRST / 2)
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(RECONNECT_CAP / 2)


@pytest.mark.bulk
def test_a_server_may_be_silent_for_weeks() -> None:
    machine = idle()
    machine.start(0.0)
    lost = 0
    while lost < 2000:
        at = machine.next_deadline()
        assert at is not None
        machine.handle_timer(at)
        machine.datagrams_to_send()
        lost += sum(isinstance(happened, RegistrationLost) for happened in machine.events())
    assert machine.state is State.WAITING


def test_the_waits_after_silence_are_spread_over_everything_below() -> None:
    waits: set[float] = set()
    for seed in range(30):
        machine = Registration("bob", SERVER, Credentials("key"), random.Random(seed))
        machine.start(0.0)
        machine.handle_timer(TRANSACTION_TIMEOUT)
        waits.add(event(RegistrationLost, machine.events()).retry_in)
    assert min(waits) < RECONNECT_FIRST / 4
    assert max(waits) > RECONNECT_FIRST * 3 / 4
    assert max(waits) <= RECONNECT_FIRST


def test_being_accepted_forgets_earlier_silence() -> None:
    machine = waiting()
    at = machine.next_deadline()
    assert at is not None
    machine.handle_timer(at)
    machine.receive(welcome(only(Register, machine.datagrams_to_send()[-1:])), SERVER, at)
    assert machine._failures == 0


# --- staying known --------------------------------------------------------------------------------------------------------


def test_a_heartbeat_names_the_epoch() -> None:
    _, heartbeat, at = heartbeating()
    assert heartbeat.extra.epoch == 5
    assert heartbeat.ltag == "bob"
    assert HEARTBEAT_MIN <= at <= HEARTBEAT_MAX


def answer(heartbeat: Heartbeat, *, code: int = 200, seen: Address = CALLEE, cookie: str = "next") -> HeartbeatAnswer:
    extra = Observed(host=seen[0], port=seen[1], cookie=cookie)
    return HeartbeatAnswer(mid=heartbeat.mid, code=code, em="", extra=extra)


def test_its_answer_brings_the_next_cookie_and_the_next_heartbeat() -> None:
    machine, heartbeat, at = heartbeating()
    machine.receive(answer(heartbeat), SERVER, at)
    assert machine.cookie == "next"
    assert is_quiet(machine)
    deadline = machine.next_deadline()
    assert deadline is not None
    assert HEARTBEAT_MIN <= deadline - at <= HEARTBEAT_MAX


def test_another_address_in_it_means_the_nat_has_rebound() -> None:
    machine, heartbeat, at = heartbeating()
    machine.receive(answer(heartbeat, seen=MOVED), SERVER, at)
    assert event(AddressChanged, machine.events()) == AddressChanged(CALLEE, MOVED)
    assert machine.observed == MOVED


def test_an_answer_without_an_address_changes_none() -> None:
    machine, heartbeat, at = heartbeating()
    machine.receive(HeartbeatAnswer(mid=heartbeat.mid, code=200, em=""), SERVER, at)
    assert is_quiet(machine)
    assert (machine.observed, machine.cookie, machine.state) == (CALLEE, "cookie", State.REGISTERED)
    assert machine.next_deadline() is not None


@pytest.mark.parametrize("code", [401, 404, 500])
def test_a_server_that_has_forgotten_us_is_told_again_at_once(code: int) -> None:
    machine, heartbeat, at = heartbeating()
    machine.receive(answer(heartbeat, code=code, cookie="other"), SERVER, at)
    assert machine.state is State.REGISTERING
    again = only(Register, machine.datagrams_to_send())
    assert again.extra is not None
    assert again.extra.cookie == "other"


def test_a_tag_that_was_registered_from_elsewhere_is_said_to_be_and_taken_back() -> None:
    machine, heartbeat, at = heartbeating()
    machine.receive(answer(heartbeat, code=409), SERVER, at)
    assert machine.state is State.REGISTERING
    assert event(Displaced, machine.events()) == Displaced()
    assert only(Register, machine.datagrams_to_send())


def test_a_silent_heartbeat_becomes_a_registration() -> None:
    machine, _, at = heartbeating()
    machine.handle_timer(at + TRANSACTION_TIMEOUT)
    assert machine.state is State.REGISTERING
    assert only(Register, machine.datagrams_to_send())


def test_being_registered_elsewhere_is_an_address_change() -> None:
    machine, _, at = heartbeating()
    machine.handle_timer(at + TRANSACTION_TIMEOUT)
    request = only(Register, machine.datagrams_to_send())
    machine.receive(welcome(request, observed=MOVED), SERVER, at + 6)
    assert event(AddressChanged, machine.events()) == AddressChanged(CALLEE, MOVED)


# --- wishes of ours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in State if state is not State.IDLE])
def test_it_is_started_once(state: RegistrationState) -> None:
    machine = in_state(state)
    with pytest.raises(LocalProtocolError, match=state.value):
        machine.start(50.0)
    assert machine.state is state
    assert is_quiet(machine)


@pytest.mark.parametrize("state", [State.IDLE, State.REGISTERING, State.WAITING, State.REFUSED])
def test_who_is_not_registered_leaves_without_a_word(state: RegistrationState) -> None:
    machine = in_state(state)
    machine.leave(50.0)
    assert machine.events() == [Left()]
    assert not machine.datagrams_to_send()
    assert machine.next_deadline() is None
    assert machine.state is State.LEFT


def test_who_is_registered_says_so() -> None:
    machine, message = leaving()
    assert message.extra.epoch == 5
    assert not machine.events()
    machine.receive(LeaveAnswer(mid=message.mid, code=200, em=""), SERVER, 1.1)
    assert machine.events() == [Left()]
    assert machine.state is State.LEFT
    assert machine.next_deadline() is None


def test_a_server_that_does_not_answer_is_left_after_a_second() -> None:
    machine, _ = leaving()
    machine.handle_timer(1.99)
    assert machine.state is State.LEAVING
    machine.handle_timer(2.0)
    assert machine.events() == [Left()]
    assert machine.next_deadline() is None


@pytest.mark.parametrize("state", [State.LEAVING, State.LEFT])
def test_leaving_twice_is_leaving_once(state: RegistrationState) -> None:
    machine = in_state(state)
    machine.leave(1.0)
    assert machine.state is state
    assert is_quiet(machine)


def test_a_changed_network_is_asked_about_at_once() -> None:
    machine = registered()
    machine.network_changed(3.0)
    assert only(Heartbeat, machine.datagrams_to_send())
    machine.network_changed(3.1)
    assert only(Heartbeat, machine.datagrams_to_send())
    assert len(machine._requester) == 1


@pytest.mark.parametrize("state", [State.WAITING, State.REFUSED])
def test_a_changed_network_ends_waiting(state: RegistrationState) -> None:
    machine = in_state(state)
    machine.events()
    machine.datagrams_to_send()
    machine.network_changed(5.0)
    assert machine.next_deadline() == 5.0
    machine.handle_timer(5.0)
    assert machine.state is State.REGISTERING


@pytest.mark.parametrize("state", [State.IDLE, State.REGISTERING, State.LEAVING, State.LEFT])
def test_a_changed_network_means_nothing_else(state: RegistrationState) -> None:
    machine = in_state(state)
    deadline = machine.next_deadline()
    machine.network_changed(0.5)
    assert (machine.state, machine.next_deadline()) == (state, deadline)
    assert is_quiet(machine)


# --- what does not belong ---------------------------------------------------------------------------------------------

FOREIGN: list[Message] = [
    RegisterAnswer(mid=1, code=200, em="", extra=Observed(host="192.0.2.9", port=9, cookie="evil", epoch=9)),
    RegisterAnswer(mid=1, code=401, em="", extra=Observed(cookie="evil", ts=2**62)),
    RegisterAnswer(mid=1, code=409, em=""),
    HeartbeatAnswer(mid=1, code=200, em="", extra=Observed(host="192.0.2.9", port=9, cookie="evil")),
    HeartbeatAnswer(mid=1, code=401, em=""),
    LeaveAnswer(mid=1, code=200, em=""),
]


@pytest.mark.parametrize("message", FOREIGN, ids=lambda message: f"{type(message).__name__}-{message.code}")
@pytest.mark.parametrize("state", State)
def test_an_answer_to_no_question_changes_nothing(state: RegistrationState, message: Message) -> None:
    machine = in_state(state)
    before = (machine.state, machine.observed, machine.cookie, machine.next_deadline())
    assert machine.receive(message, SERVER, 0.2)
    assert (machine.state, machine.observed, machine.cookie, machine.next_deadline()) == before
    assert is_quiet(machine)


def test_an_answer_from_elsewhere_changes_nothing() -> None:
    machine, request = registering()
    assert machine.receive(welcome(request), STRANGER, 0.1)
    assert machine.state is State.REGISTERING
    assert machine.dropped == {"unexpected answer": 1}
    machine.receive(welcome(request), SERVER, 0.1)
    assert machine.state is State.REGISTERED


def test_a_forged_leaving_answer_changes_nothing() -> None:
    machine, message = leaving()
    machine.receive(LeaveAnswer(mid=message.mid, code=200, em=""), STRANGER, 1.1)
    assert machine.state is State.LEAVING


def test_a_duplicated_answer_counts_once() -> None:
    machine, request = registering()
    machine.receive(welcome(request), SERVER, 0.1)
    machine.receive(welcome(request, observed=MOVED), SERVER, 0.1)
    assert machine.observed == CALLEE
    assert len(machine.events()) == 1


def test_the_answer_to_an_earlier_question_is_too_late() -> None:
    machine, request = registering()
    machine.receive(challenge(request.mid), SERVER, 0.1)
    machine.receive(welcome(request), SERVER, 0.2)
    assert machine.state is State.REGISTERING


def test_what_is_for_others_is_left_to_them() -> None:
    machine = registered()
    assert not machine.receive(ConnectAnswer(mid=1, code=200, em=""), SERVER, 0.1)
    assert not machine.dropped


def test_calling_the_timer_early_is_harmless() -> None:
    for state in State:
        machine = in_state(state)
        machine.handle_timer(0.0)
        assert machine.state is state
        assert not machine.events()


def test_its_requests_do_not_pile_up() -> None:
    machine = idle()
    machine.start(0.0)
    now = 0.0
    for _ in range(500):
        now = machine.next_deadline() or now
        machine.handle_timer(now)
        sent(machine.datagrams_to_send())
        machine.events()
        assert len(machine._requester) <= 1


# --- a server whose key was given -------------------------------------------------------------------------------------------


class Pinned(Credentials):
    """Credentials that were given the server's key, and believe answers that name it."""

    def __init__(self) -> None:
        super().__init__("key")
        self.server_key = "its key"

    def is_proven(self, answer: Observed) -> bool:
        return answer.sig == self.server_key


def pinned() -> tuple[Registration, Register]:
    machine = Registration("bob", SERVER, Pinned(), random.Random(1))
    machine.start(0.0)
    return machine, only(Register, machine.datagrams_to_send())


def accepted(mid: int, *, sig: str = "its key") -> RegisterAnswer:
    return RegisterAnswer(mid=mid, code=200, em="", extra=Observed(host="h", port=1, epoch=5, sig=sig))


def test_with_a_key_only_that_server_is_signed_for() -> None:
    machine, request = pinned()
    machine.receive(challenge(request.mid, key="its key"), SERVER, 0.1)
    machine.receive(accepted(only(Register, machine.datagrams_to_send()).mid), SERVER, 0.2)
    assert machine.state is State.REGISTERED


@pytest.mark.parametrize("key", ["", "another key"])
def test_a_challenge_in_another_name_or_in_none_is_not_signed(key: str) -> None:
    """Nobody is talked down to a server without a key."""
    machine, request = pinned()
    machine.receive(challenge(request.mid, key=key), SERVER, 0.1)
    assert not machine.datagrams_to_send()
    assert event(ServerUnproven, machine.events())
    assert machine.state is State.REFUSED
    assert machine.server_key == "its key"


@pytest.mark.parametrize("sig", ["", "another key"])
def test_an_acceptance_without_proof_is_none(sig: str) -> None:
    machine, request = pinned()
    machine.receive(accepted(request.mid, sig=sig), SERVER, 0.1)
    assert event(ServerUnproven, machine.events())
    assert machine.observed is None


def test_the_right_server_is_looked_for_again_after_a_while() -> None:
    machine, request = pinned()
    machine.receive(accepted(request.mid, sig=""), SERVER, 0.1)
    at = machine.next_deadline()
    assert at == pytest.approx(0.1 + RECONNECT_CAP)
    machine.handle_timer(0.1 + RECONNECT_CAP)
    machine.receive(accepted(only(Register, machine.datagrams_to_send()).mid), SERVER, 20.0)
    assert machine.state is State.REGISTERED


# --- a server that was restarted --------------------------------------------------------------------------------------------


def recall(machine: Registration, *, epoch: int | None = None, code: int = 401, source: Address = SERVER) -> None:
    known = machine._epoch if epoch is None else epoch
    machine.receive(HeartbeatAnswer(mid=0, code=code, em="register again", extra=Observed(epoch=known)), source, 1.0)


def test_a_recall_is_followed_after_a_moment_of_ones_own() -> None:
    machine = registered()
    recall(machine)
    at = machine.next_deadline()
    assert at is not None
    assert 1.0 + RECALL_MIN <= at <= 1.0 + RECALL_MAX
    assert is_quiet(machine)
    machine.handle_timer(at)
    assert machine.state is State.REGISTERING
    machine.receive(welcome(only(Register, machine.datagrams_to_send())), SERVER, at)
    assert machine.state is State.REGISTERED
    later = machine.next_deadline()
    assert later is not None
    machine.handle_timer(later)
    assert only(Heartbeat, machine.datagrams_to_send())  # once


def test_a_repeated_recall_changes_nothing() -> None:
    machine = registered()
    recall(machine)
    at = machine.next_deadline()
    recall(machine)
    assert machine.next_deadline() == at


@pytest.mark.parametrize(
    ("epoch", "code", "source"), [(99, 401, SERVER), (0, 401, SERVER), (None, 200, SERVER), (None, 401, STRANGER)]
)
def test_a_forged_recall_is_none(epoch: int | None, code: int, source: Address) -> None:
    machine = registered()
    before = machine.next_deadline()
    recall(machine, epoch=epoch, code=code, source=source)
    assert machine.next_deadline() == before
    assert machine.dropped == {"unexpected answer": 1}


def test_a_recall_is_overtaken_by_news_of_the_network() -> None:
    machine = registered()
    recall(machine)
    machine.network_changed(1.1)
    beat = only(Heartbeat, machine.datagrams_to_send())
    machine.receive(HeartbeatAnswer(mid=beat.mid, code=401, em="", extra=Observed(cookie="c")), SERVER, 1.2)
    assert machine.state is State.REGISTERING
