"""Links beside the one in use: how seldom they are asked for a sign of life, and how the session comes back to them."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import DEAD_DORMANT, PING_ACTIVE, PING_STANDBY
from p2ptunnel.errors import RemoteProtocolError
from p2ptunnel.protocol.link import Health
from p2ptunnel.protocol.resume import Endpoint, Resumed
from p2ptunnel.wire.frames import Resume, encode

NOW = 100.0


def caller(links: int) -> Endpoint:
    """A caller's end that has this many links, the first of which is active."""
    end = Endpoint(caller=True, now=NOW)
    assert end.begin(NOW) == 1
    for _ in range(1, links):
        end.attach(NOW)
    for number in end.links:
        end.data_to_send(number, NOW)
    return end


def asked_after(end: Endpoint, number: int) -> float:
    """Seconds of silence after which a link is asked for a sign of life, by a clock that goes on in steps of 0.1 s."""
    for tenth in range(300):
        end.handle_timer(NOW + tenth / 10, lambda _: None)
        if end.data_to_send(number, NOW + tenth / 10):
            return tenth / 10
    raise AssertionError("never")


def test_a_standby_is_asked_every_fifteen_seconds_or_so_and_no_five_in_step() -> None:
    asked = [asked_after(caller(7), number) for number in range(2, 7)]
    assert min(asked) == pytest.approx(0.8 * PING_STANDBY, abs=0.11)
    assert max(asked) == pytest.approx(1.2 * PING_STANDBY, abs=0.11)
    assert len(set(asked)) == 5


def test_the_active_link_and_one_that_is_watched_and_one_that_is_moved_to_are_asked_as_ever() -> None:
    end = caller(3)
    assert asked_after(end, 1) == pytest.approx(PING_ACTIVE, abs=0.11)
    end = caller(3)
    end.watched = 3
    assert asked_after(end, 3) == pytest.approx(PING_ACTIVE, abs=0.11)
    end = caller(3)
    end.resume(2)
    end.data_to_send(2, NOW)
    assert asked_after(end, 2) == pytest.approx(PING_ACTIVE, abs=0.11)


def test_a_standby_is_given_up_as_late_as_a_dormant_channel() -> None:
    end = caller(2)
    end.link(2).ping(NOW)
    seconds = 0.0
    while end.link(2).health is not Health.DEAD:
        seconds += 0.5
        end.handle_timer(NOW + seconds, lambda _: None)
    assert DEAD_DORMANT - 1.2 * PING_STANDBY <= seconds <= DEAD_DORMANT - 0.8 * PING_STANDBY + 0.5


def answered(end: Endpoint, link: int, number: int) -> list[int]:
    """Let the callee answer a RESUME; return to which links the session has moved by that."""
    end.receive_data(link, memoryview(encode(Resume(number, 0, 0))), NOW)
    return [event.link for event in end.events() if isinstance(event, Resumed)]


def test_it_comes_back_to_a_link_that_it_has_left() -> None:
    end = caller(2)
    for number, link in enumerate((2, 1, 2, 1), 1):
        end.resume(link)
        assert end.heading == link
        assert answered(end, link, number) == [link]
        assert end.active == end.heading == end.carrier == link


def test_asked_again_on_one_link_only_the_last_answer_moves_the_session() -> None:
    end = caller(2)
    end.resume(2)
    end.resume(2)
    assert answered(end, 2, 1) == []
    assert (end.active, end.heading) == (1, 2)
    assert answered(end, 2, 2) == [2]


@pytest.mark.parametrize("numbers", [(2, 1), (2, 2), (1, 1), (3,)])
def test_an_answer_may_be_left_out_but_none_comes_twice_or_unasked(numbers: tuple[int, ...]) -> None:
    end = caller(2)
    end.resume(2)
    end.resume(2)
    *good, bad = numbers
    for number in good:
        answered(end, 2, number)
    with pytest.raises(RemoteProtocolError, match="not asked"):
        answered(end, 2, bad)


def test_nothing_of_ours_goes_over_the_link_in_use_behind_a_question_on_it() -> None:
    end = caller(1)
    stream = end.mux.open("web", NOW)
    end.resume(1)
    question = bytes(end.data_to_send(1, NOW))
    assert question == encode(Resume(1, 0))
    assert not end.data_to_send(1, NOW)
    assert (end.active, end.carrier) == (None, 1)
    answered(end, 1, 1)
    assert bytes(end.data_to_send(1, NOW)).find(b"web") > 0
    assert stream == 1


def test_a_link_that_ends_before_it_answered_has_the_peer_asked_back() -> None:
    end = caller(2)
    end.resume(2)
    end.detach(2)
    assert bytes(end.data_to_send(1, NOW)) == encode(Resume(2, 0))
    assert answered(end, 1, 2) == [1]


def test_a_standby_that_ends_changes_nothing() -> None:
    end = caller(3)
    end.resume(2)
    end.detach(3)
    assert end.heading == 2
    answered(end, 2, 1)
    end.data_to_send(2, NOW)
    end.detach(1)
    assert not end.data_to_send(2, NOW)
    assert end.active == 2
