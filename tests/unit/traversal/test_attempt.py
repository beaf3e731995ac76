"""The sockets of one attempt: how often it sends what nobody answers, or refuses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator

import pytest

from p2ptunnel.protocol.punch import Dial
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.traversal import attempt as module
from p2ptunnel.traversal.attempt import AttemptSockets
from p2ptunnel.traversal.port import PunchPort, take_number
from p2ptunnel.types import Address, ServerSpec
from tests.helpers import run

TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def closed() -> Generator[Address]:
    """An address that answers every SYN by RST."""
    with socket.socket() as keeper:
        keeper.bind(("127.0.0.1", 0))
        yield keeper.getsockname()


async def reason_of(wanted: Dial) -> str:
    """Return how a dial ended, in words."""
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def on_event(event: TraceEvent) -> None:
        if event.name == "dial_ended":
            ended.set_result(str(event.facts["reason"]))

    tracer = Tracer(on_event)
    port = PunchPort(take_number("127.0.0.1", tracer), ServerSpec(("127.0.0.1", 7000)), tracer)
    with contextlib.closing(port):
        sockets = AttemptSockets(port, lambda *_: pytest.fail("it connected"), lambda _: None, tracer=tracer)
        sockets.take(wanted)
        try:
            return await ended
        finally:
            sockets.close()


def test_a_syn_that_is_refused_where_nobody_has_seen_the_peer_is_not_sent_again(closed: Address) -> None:
    assert run(reason_of(Dial(TOKEN, (closed,), low=False, patience=5.0, is_unseen=True))) == "Connection refused"


def test_where_the_server_has_seen_it_it_is(closed: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REDIALS_PER_PHASE", 2)
    assert run(reason_of(Dial(TOKEN, (closed,), low=False, patience=5.0))) == "Connection refused, 3 times"
