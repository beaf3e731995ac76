"""A session's end: where its bytes stand, what is sent again, what is known twice, and what no peer can do to it."""

from __future__ import annotations

import random

import pytest

from p2ptunnel.defaults import ACK_EVERY_BYTES, ACTIVE_FOR, DEAD_ACTIVE, DORMANT_AFTER, RESUME_BUFFER_BYTES
from p2ptunnel.errors import LocalProtocolError, RemoteProtocolError
from p2ptunnel.protocol.link import ACTIVE, DORMANT, IDLE, Health
from p2ptunnel.protocol.resume import Endpoint, EndpointEvent, Forgotten, HealthChanged, Resumed
from p2ptunnel.wire.frames import (
    Ack,
    Data,
    Fin,
    Frame,
    FrameReader,
    GoAway,
    GoAwayCode,
    Open,
    Ping,
    Pong,
    Resume,
    decode,
    encode,
)

BLOCK = random.Random(1).randbytes(300_000)
NOW = 100.0


class Side:
    """One end, what it has received on its streams, and what else happened to it."""

    def __init__(self, *, caller: bool, resume_buffer: int = RESUME_BUFFER_BYTES) -> None:
        self.end = Endpoint(caller=caller, now=NOW, resume_buffer=resume_buffer)
        self.came = bytearray()
        self.happened: list[EndpointEvent] = []

    def output(self, link: int, most: int = 1 << 30) -> bytes:
        out = bytearray()
        while len(out) < most and (data := self.end.data_to_send(link, NOW)):
            out += data
        return bytes(out)

    def give(self, link: int, data: bytes) -> None:
        self.end.receive_data(link, memoryview(data), NOW)
        for event in self.end.events():
            if isinstance(event, Data):
                self.came += event.payload
                self.end.mux.consumed(event.stream_id, len(event.payload), NOW)
            elif isinstance(event, Open):
                self.end.mux.accept(event.stream_id)
            self.happened.append(event)

    def resumed(self) -> list[Resumed]:
        return [event for event in self.happened if isinstance(event, Resumed)]


def begun(resume_buffer: int = RESUME_BUFFER_BYTES) -> tuple[Side, Side, int]:
    """Two ends with one channel, number 1 on both, and a stream that is accepted."""
    caller, callee = Side(caller=True, resume_buffer=resume_buffer), Side(caller=False, resume_buffer=resume_buffer)
    assert (caller.end.begin(NOW), callee.end.begin(NOW)) == (1, 1)
    stream = caller.end.mux.open("web", NOW)
    converse(caller, callee, 1)
    return caller, callee, stream


def converse(caller: Side, callee: Side, link: int) -> None:
    """Carry everything over a channel that has the same number on both sides, until it is still."""
    while (there := caller.output(link)) + (back := callee.output(link)):
        callee.give(link, there)
        caller.give(link, back)


def another(caller: Side, callee: Side) -> tuple[int, bytes]:
    """Attach a channel on both sides; return its number and the caller's RESUME."""
    number = caller.end.attach(NOW)
    assert callee.end.attach(NOW) == number
    caller.end.resume(number)
    return number, caller.output(number)


def frames(data: bytes) -> list[Frame]:
    return list(FrameReader().feed(memoryview(data)))


# --- one channel --------------------------------------------------------------------------------------------------------


def test_the_first_channel_carries_everything_at_once() -> None:
    caller, callee, stream = begun()
    caller.end.mux.write(stream, memoryview(BLOCK))
    converse(caller, callee, 1)
    assert callee.came == BLOCK
    assert caller.end.links == callee.end.links == (1,)
    assert callee.end.received == caller.end._replay.end > len(BLOCK)


def test_every_quarter_megabyte_is_acknowledged_unasked_and_what_is_acknowledged_is_forgotten() -> None:
    caller, callee, stream = begun()
    caller.end.mux.write(stream, memoryview(BLOCK))
    callee.give(1, caller.output(1))
    assert caller.end.unacknowledged > ACK_EVERY_BYTES
    acks = [frame for frame in frames(callee.output(1)) if isinstance(frame, Ack)]
    assert [ack.received >= ACK_EVERY_BYTES for ack in acks] == [True]
    caller.give(1, encode(acks[0]))
    assert caller.end.unacknowledged < len(BLOCK) - ACK_EVERY_BYTES + 1000


def test_less_is_acknowledged_when_the_peer_asks_for_a_sign_of_life_and_only_once() -> None:
    caller, callee, stream = begun()
    caller.end.mux.write(stream, memoryview(b"hello"))
    converse(caller, callee, 1)
    assert caller.end.unacknowledged > 0
    callee.give(1, encode(Ping(b"12345678")))
    answer = frames(callee.output(1))
    assert answer == [Pong(b"12345678"), Ack(callee.end.received)]
    caller.give(1, encode(answer[1]))
    assert caller.end.is_settled
    callee.give(1, encode(Ping(b"12345678")))
    assert frames(callee.output(1)) == [Pong(b"12345678")]


def test_an_acknowledgement_can_be_asked_for_once() -> None:
    caller, callee, stream = begun()
    caller.end.mux.write(stream, memoryview(b"hello"))
    assert not caller.end.request_ack()  # it has not been sent yet
    callee.give(1, caller.output(1))
    assert caller.end.unacknowledged_of() == {stream: 5}
    assert caller.end.request_ack()
    assert not caller.end.request_ack()
    converse(caller, callee, 1)
    assert caller.end.is_settled
    assert caller.end.unacknowledged_of() == {}


def test_half_a_frame_is_not_acknowledged() -> None:
    caller, callee, stream = begun()
    caller.end.mux.write(stream, memoryview(b"hello"))
    data = caller.output(1)
    before = callee.end.received
    callee.give(1, data[:-2])
    assert callee.came == b"hel"
    assert callee.end.received == before + len(data) - 2
    number, question = another(caller, callee)
    callee.give(number, question)
    [answer] = frames(callee.output(number))
    assert isinstance(answer, Resume)
    assert answer.received == before


# --- from one channel to the next -----------------------------------------------------------------------------------------


def test_wherever_a_channel_breaks_the_next_one_goes_on_behind_the_last_byte() -> None:
    length = len(_batch_of_two_streams()[2])
    for cut in range(length + 1):
        caller, callee, batch = _batch_of_two_streams()
        callee.give(1, batch[:cut])
        for side in (caller, callee):
            side.end.detach(1)
        number, question = another(caller, callee)
        callee.give(number, question)
        converse(caller, callee, number)
        assert callee.came == b"first" + b"second", cut
        assert [type(event) for event in callee.happened].count(Fin) == 2
        assert callee.end.received == 32 + length  # 16 of OPEN each


def _batch_of_two_streams() -> tuple[Side, Side, bytes]:
    """Two ends, and what the caller sends next: two Data and two Fin frames, 43 bytes."""
    caller, callee, one = begun()
    two = caller.end.mux.open("web", NOW)
    converse(caller, callee, 1)
    for stream, block in ((one, b"first"), (two, b"second")):
        caller.end.mux.write(stream, memoryview(block))
        caller.end.mux.write_eof(stream)
    return caller, callee, caller.output(1)


def test_the_caller_has_its_bytes_again_from_the_callee() -> None:
    caller, callee, stream = begun()
    callee.end.mux.write(stream, memoryview(BLOCK[:100_000]))
    lost = callee.output(1)
    caller.give(1, lost[:50_000])
    number, question = another(caller, callee)
    callee.give(number, question)
    converse(caller, callee, number)
    assert caller.came == BLOCK[:100_000]
    [moved] = callee.resumed()
    assert moved.link == number
    assert 100_000 < moved.replayed_bytes <= len(lost) + 100


def test_only_the_caller_moves_the_session() -> None:
    _, callee, _ = begun()
    with pytest.raises(LocalProtocolError, match="the caller moves the session"):
        callee.end.resume(1)


def test_what_an_old_channel_still_delivers_counts_and_comes_once() -> None:
    caller, callee, stream = begun()
    caller.end.mux.write(stream, memoryview(BLOCK[:200_000]))
    late = caller.output(1)
    number, question = another(caller, callee)
    callee.give(number, question)
    caller.give(number, callee.output(number))
    again = caller.output(number)
    for at in range(0, len(late), 10_000):
        callee.give(1, late[at : at + 10_000])
        callee.give(number, again[at // 2 : at // 2 + 5_000])
    callee.give(number, again[(at // 2) + 5_000 :])
    assert callee.came == BLOCK[:200_000]


def test_acknowledgements_that_overtake_the_new_channel_leave_nothing_out_on_it() -> None:
    """The old channel brings everything while the new one has hardly begun to send it again."""
    caller, callee, stream = begun()
    callee.end.mux.write(stream, memoryview(BLOCK[:200_000]))
    late = callee.output(1)
    number, question = another(caller, callee)
    callee.give(number, question)
    answer = callee.output(number, most=1)
    caller.give(1, late)  # everything, before the answer
    caller.give(number, answer)
    caller.give(number, encode(Ping(bytes(8))))
    callee.give(number, caller.output(number))
    assert callee.end.unacknowledged > 0  # it is still to be sent on this channel
    converse(caller, callee, number)
    assert caller.came == BLOCK[:200_000]
    callee.end.request_ack()
    converse(caller, callee, number)
    assert callee.end.is_settled


def test_an_acknowledgement_that_was_lost_with_its_channel_is_told_again() -> None:
    caller, callee, stream = begun()
    callee.end.mux.write(stream, memoryview(b"hello"))
    late = callee.output(1)
    number, question = another(caller, callee)
    callee.give(number, question)
    answer = callee.output(number, most=1)
    caller.give(1, late + encode(Ping(bytes(8))))
    caller.output(1)  # the acknowledgement, lost
    caller.give(number, answer)
    callee.end.request_ack()
    converse(caller, callee, number)
    assert callee.end.is_settled


def test_a_resume_that_fails_takes_no_acknowledgement_with_it() -> None:
    caller, callee, stream = begun()
    callee.end.mux.write(stream, memoryview(b"hello"))
    caller.give(1, callee.output(1))
    number, _ = another(caller, callee)  # it says what has come, and is lost
    caller.end.detach(number)
    callee.end.request_ack()
    converse(caller, callee, 1)
    assert callee.end.is_settled


def test_a_resume_behind_an_acknowledgement_that_went_elsewhere_starts_where_that_ended() -> None:
    caller, callee, stream = begun()
    callee.end.mux.write(stream, memoryview(BLOCK[:200_000]))
    number, question = another(caller, callee)
    caller.give(1, callee.output(1))
    caller.give(1, encode(Ping(bytes(8))))
    callee.give(1, caller.output(1))
    assert callee.end.unacknowledged == 0
    callee.give(number, question)
    converse(caller, callee, number)
    callee.end.mux.write(stream, memoryview(b"more"))
    converse(caller, callee, number)
    assert caller.came == BLOCK[:200_000] + b"more"
    assert callee.resumed()[0].replayed_bytes == 0


# --- races of RESUME --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newer_first", [False, True])
@pytest.mark.parametrize("answers_reversed", [False, True])
def test_two_resumes_may_cross_in_any_order(newer_first: bool, answers_reversed: bool) -> None:
    caller, callee, stream = begun()
    for side in (caller, callee):
        side.end.mux.write(stream, memoryview(BLOCK[:50_000]))
        side.output(1)  # lost
    questions = [another(caller, callee), another(caller, callee)]
    for number, question in reversed(questions) if newer_first else questions:
        callee.give(number, question)
    output = {number: callee.output(number) for number, _ in questions}
    order = [number for number, _ in questions]
    for number in reversed(order) if answers_reversed else order:
        caller.give(number, output[number])
    for _ in range(5):
        for number in order:
            converse(caller, callee, number)
    assert caller.came == callee.came == BLOCK[:50_000]
    assert caller.end.active == callee.end.active == order[1]


def test_an_old_answer_moves_nothing_but_what_comes_behind_it_is_read() -> None:
    caller, callee, stream = begun()
    callee.end.mux.write(stream, memoryview(b"hello"))
    callee.output(1)  # lost
    first, question = another(caller, callee)
    callee.give(first, question)
    old = callee.output(first)  # the answer, and hello
    second, question = another(caller, callee)
    callee.give(second, question)
    caller.give(second, callee.output(second, most=1))
    assert caller.end.active == second
    caller.give(first, old)
    assert caller.end.active == second
    assert caller.came == b"hello"
    converse(caller, callee, second)
    assert caller.came == b"hello"


def test_an_answer_to_the_first_of_two_questions_is_taken_until_the_second_is_answered() -> None:
    caller, callee, stream = begun()
    first, question = another(caller, callee)
    another(caller, callee)  # never comes up
    callee.give(first, question)
    caller.end.mux.write(stream, memoryview(b"hello"))
    converse(caller, callee, first)
    assert caller.end.active == callee.end.active == first
    assert callee.came == b"hello"


def test_an_older_resume_is_no_news_to_the_callee() -> None:
    caller, callee, _ = begun()
    first, old = another(caller, callee)
    second, question = another(caller, callee)
    callee.give(second, question)
    callee.give(first, old)
    assert callee.end.active == second
    assert callee.output(first) == b""
    assert len(callee.resumed()) == 1


def test_a_dead_channel_is_written_nothing_and_goes_on_when_it_lives_again() -> None:
    caller, callee, stream = begun()
    caller.end.handle_timer(NOW + 1, lambda _: None)
    caller.end.handle_timer(NOW + 1 + DEAD_ACTIVE, lambda _: None)
    assert caller.end.events()[-1] == HealthChanged(1, Health.DEAD)
    asked = caller.output(1)
    caller.end.mux.write(stream, memoryview(b"hello"))
    assert caller.output(1) == b""
    callee.give(1, asked)
    caller.give(1, callee.output(1))
    assert caller.happened[-1] == HealthChanged(1, Health.UP)
    converse(caller, callee, 1)
    assert callee.came == b"hello"


def test_a_channel_that_lives_again_beside_a_resume_that_was_not_answered_goes_on() -> None:
    caller, callee, stream = begun()
    number, question = another(caller, callee)
    caller.end.mux.write(stream, memoryview(b"over the old one"))
    converse(caller, callee, 1)
    assert callee.came == b"over the old one"
    callee.give(number, question)
    caller.end.mux.write(stream, memoryview(b", then the new one"))
    converse(caller, callee, number)
    assert callee.came == b"over the old one, then the new one"


def test_a_peer_that_has_forgotten_the_session_says_so() -> None:
    caller, callee, _ = begun()
    number, _ = another(caller, callee)
    caller.give(number, encode(GoAway(GoAwayCode.EXPIRED, "restarted")))
    assert caller.happened[-1] == Forgotten(number, "restarted")


def test_bytes_of_a_channel_that_was_forgotten_are_nothing() -> None:
    caller, callee, stream = begun()
    caller.end.mux.write(stream, memoryview(b"hello"))
    data = caller.output(1)
    callee.end.detach(1)
    callee.end.detach(1)
    callee.give(1, data)
    assert callee.came == b""
    assert callee.output(1) == b""
    assert callee.end.active is None


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.bulk
@pytest.mark.parametrize("resume_buffer", [1500, 100_000, 1_000_000])
def test_without_acknowledgements_no_more_is_kept_than_was_said_and_the_writer_waits(resume_buffer: int) -> None:
    caller, callee, stream = begun(resume_buffer)
    caller.end.mux._streams[stream].credit = 1 << 30
    block = memoryview(bytes(4_000_000))
    caller.end.mux.write(stream, block)
    sent = caller.output(1)
    assert resume_buffer - 1024 <= caller.end.unacknowledged <= resume_buffer
    assert not caller.end.mux.is_drained(stream)
    assert sum(len(piece.data) for piece in caller.end._replay._pieces) <= resume_buffer + 2 * (1 << 18)
    assert frames(sent)[-1] == Ping(bytes(8))  # it asks for an acknowledgement at once, and once
    assert caller.output(1) == b""
    callee.end.mux._streams[stream].room = 1 << 30
    callee.give(1, sent)
    converse(caller, callee, 1)
    assert len(callee.came) == len(block)


def test_a_full_buffer_is_emptied_also_while_the_peer_is_never_silent() -> None:
    """PINGs are sent into silence only; a peer that sends all the time leaves none."""
    caller, callee, stream = begun(2000)
    caller.end.mux.write(stream, memoryview(BLOCK[:100_000]))
    callee.end.mux.write(stream, memoryview(BLOCK[:100_000]))
    converse(caller, callee, 1)  # no time passes, no timer is asked
    assert caller.came == callee.came == BLOCK[:100_000]


def test_a_full_buffer_is_emptied_on_the_next_channel_where_the_question_was_lost_with_the_last() -> None:
    caller, callee, stream = begun(2000)
    caller.end.mux.write(stream, memoryview(BLOCK[:100_000]))
    caller.output(1)  # a full buffer and the question, lost
    number, question = another(caller, callee)
    callee.give(number, question)
    converse(caller, callee, number)  # no time passes
    assert callee.came == BLOCK[:100_000]


def test_without_a_channel_the_streams_wait() -> None:
    caller, callee, stream = begun()
    for side in (caller, callee):
        side.end.detach(1)
    caller.end.mux.write(stream, memoryview(BLOCK))
    assert caller.output(1) == b""
    assert not caller.end.mux.is_drained(stream)
    assert not caller.end.is_settled
    assert not caller.end.request_ack()
    number, question = another(caller, callee)
    callee.give(number, question)
    converse(caller, callee, number)
    assert callee.came == BLOCK


# --- what no peer may do ------------------------------------------------------------------------------------------------


def _violation(side: Side, link: int, data: bytes) -> str:
    with pytest.raises(RemoteProtocolError) as error:
        side.give(link, data)
    return error.value.problem


def test_a_gap_is_a_violation_and_nothing_behind_it_is_handed_on() -> None:
    for next_frame in (encode(Data(1, memoryview(b"world"))), encode(Fin(1))):
        caller, callee, _ = begun()
        number, question = another(caller, callee)
        callee.give(number, question)
        callee.output(number)
        caller.give(number, encode(Resume(1, callee.end.received, caller.end.received + 1)))
        assert _violation(caller, number, next_frame) == "a gap in the sequence"
        assert caller.came == b""


@pytest.mark.parametrize("behind", [1, 1 << 40])
def test_nothing_is_acknowledged_that_was_never_sent(behind: int) -> None:
    caller, callee, _ = begun()
    assert "never sent" in _violation(caller, 1, encode(Ack(caller.end._replay.end + behind)))
    number = callee.end.attach(NOW)
    assert "never sent" in _violation(callee, number, encode(Resume(1, callee.end._replay.end + behind)))
    assert callee.end.active == 1


def test_what_was_acknowledged_is_not_sent_again() -> None:
    caller, callee, stream = begun()
    caller.end.mux.write(stream, memoryview(b"hello"))
    callee.give(1, caller.output(1))
    caller.end.request_ack()
    converse(caller, callee, 1)
    number, _ = another(caller, callee)
    assert "wants again" in _violation(caller, number, encode(Resume(1, 0, caller.end.received)))


@pytest.mark.parametrize("frame", [Data(1, memoryview(b"x")), Fin(1), Open(2, 1 << 18, "web"), GoAway(GoAwayCode.CLOSED)])
def test_a_channel_that_the_session_has_not_moved_to_carries_nothing_of_it(frame: Frame) -> None:
    caller, callee, _ = begun()
    for side in (caller, callee):
        number = side.end.attach(NOW)
        assert "has not moved to" in _violation(side, number, encode(frame))


def test_an_answer_that_nobody_asked_for_is_a_violation() -> None:
    caller, callee, _ = begun()
    number, _ = another(caller, callee)
    for link, answer in ((1, Resume(1, 0, 0)), (number, Resume(2, 0, 0))):
        assert "not asked" in _violation(caller, link, encode(answer))


def test_who_acknowledges_half_a_frame_breaks_nothing_here() -> None:
    caller, _, stream = begun(1 << 20)
    caller.end.mux._streams[stream].credit = 1 << 30
    caller.end.mux.write(stream, memoryview(bytes(900_000)))
    caller.output(1)
    for offset in range((1 << 18) - 60, 1 << 18):  # up to the end of a piece of the buffer
        caller.give(1, encode(Ack(offset)))
        assert caller.end.unacknowledged_of().get(stream, 0) >= 0
        caller.output(1)


# --- time -------------------------------------------------------------------------------------------------------------


def test_a_session_is_watched_the_less_closely_the_less_happens() -> None:
    caller, callee, stream = begun()
    caller.end.request_ack()
    assert caller.end.pace(NOW + 1000) is ACTIVE  # something is not acknowledged
    converse(caller, callee, 1)
    assert caller.end.pace(NOW + ACTIVE_FOR - 0.1) is ACTIVE
    assert caller.end.pace(NOW + ACTIVE_FOR + 0.1) is IDLE
    assert caller.end.pace(NOW + 1000) is IDLE
    caller.end.mux.reset(stream, 1)
    caller.output(1)
    caller.end._on_ack(caller.end._replay.end)
    assert caller.end.pace(NOW + 1000 + DORMANT_AFTER - 0.1) is IDLE
    assert caller.end.pace(NOW + 1000 + DORMANT_AFTER + 0.1) is DORMANT


def test_every_channel_is_asked_when_the_network_may_have_changed() -> None:
    caller, callee, _ = begun()
    number, _ = another(caller, callee)
    caller.end.probe(NOW)
    for link in (1, number):
        assert [type(frame) for frame in frames(caller.output(link))] == [Ping]


def test_silence_is_that_of_the_channel_that_was_heard_last() -> None:
    caller, _, _ = begun()
    caller.end.attach(NOW + 3)
    assert caller.end.silence(NOW + 5) == 2
    caller.end.forgive(1)
    assert caller.end.silence(NOW + 5) == 1
    for number in caller.end.links:
        caller.end.detach(number)
    assert caller.end.silence(NOW + 5) == 0
    assert caller.end.next_deadline(NOW) == float("inf")


def test_a_resume_reads_as_it_was_written() -> None:
    caller, callee, _ = begun()
    _, question = another(caller, callee)
    assert decode(question) == Resume(1, caller.end.received, 0)
