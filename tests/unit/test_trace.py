"""One stream of events, and the sinks it goes to."""

from __future__ import annotations

import io
import json
import logging

import pytest

from p2ptunnel.trace import JsonLines, TraceEvent, Tracer, log_sink


def test_an_event_carries_its_time_layer_name_and_facts() -> None:
    seen: list[TraceEvent] = []
    Tracer(seen.append, clock=lambda: 10.5)("punch", "hole opened", remote="192.0.2.1:7", rtt=0.03)
    assert seen == [TraceEvent(10.5, "punch", "hole opened", {"remote": "192.0.2.1:7", "rtt": 0.03})]


def test_every_sink_gets_every_event_in_order() -> None:
    first: list[TraceEvent] = []
    second: list[TraceEvent] = []
    tracer = Tracer(first.append, second.append)
    tracer("net", "bound")
    tracer("net", "closed")
    assert [event.name for event in first] == ["bound", "closed"]
    assert first == second


def test_without_a_sink_not_even_the_clock_is_read() -> None:
    def clock() -> float:
        raise AssertionError("read")

    Tracer(clock=clock)("net", "bound")


def test_a_sink_added_later_gets_later_events() -> None:
    seen: list[TraceEvent] = []
    tracer = Tracer()
    tracer("net", "before")
    tracer.add(seen.append)
    tracer("net", "after")
    assert [event.name for event in seen] == ["after"]


def test_a_removed_sink_gets_nothing_more() -> None:
    seen: list[TraceEvent] = []
    tracer = Tracer(seen.append)
    tracer.remove(seen.append)
    tracer("net", "bound")
    assert seen == []


def test_removing_a_sink_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="not in list"):
        Tracer().remove(log_sink)


def test_a_sink_may_remove_itself_while_it_is_called() -> None:
    seen: list[str] = []

    def once(event: TraceEvent) -> None:
        seen.append(event.name)
        tracer.remove(once)

    tracer = Tracer(once, lambda event: seen.append(f"also {event.name}"))
    tracer("net", "bound")
    tracer("net", "closed")
    assert seen == ["bound", "also bound", "also closed"]


def test_json_lines_are_one_object_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1767225600.0)
    file = io.StringIO()
    tracer = Tracer(JsonLines(file), clock=lambda: 1.5)
    tracer("net", "bound", address="127.0.0.1:7")
    tracer("net", "said", text="two\nlines")
    first, second = file.getvalue().splitlines()
    assert json.loads(first) == {"time": 1767225600.0, "at": 1.5, "layer": "net", "event": "bound", "address": "127.0.0.1:7"}
    assert json.loads(second)["text"] == "two\nlines"


def test_json_lines_reach_a_reader_at_once() -> None:
    class Slow(io.StringIO):
        """A file that tells what has been flushed."""

        flushed = ""

        def flush(self) -> None:
            self.flushed = self.getvalue()

    file = Slow()
    Tracer(JsonLines(file))("net", "bound")
    assert json.loads(file.flushed)["event"] == "bound"


def test_the_log_has_a_logger_a_layer(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "p2ptunnel"):
        Tracer(log_sink)("punch", "hole opened", remote="192.0.2.1:7", rtt=0.03)
    assert caplog.record_tuples == [("p2ptunnel.punch", logging.DEBUG, "hole opened remote=192.0.2.1:7 rtt=0.03")]


def test_nothing_is_formatted_for_a_log_that_is_off(caplog: pytest.LogCaptureFixture) -> None:
    class Unprintable:
        """Fails when it is formatted."""

        def __str__(self) -> str:
            raise AssertionError("formatted")

    with caplog.at_level(logging.INFO, "p2ptunnel"):
        Tracer(log_sink)("punch", "hole opened", what=Unprintable())
    assert caplog.records == []
