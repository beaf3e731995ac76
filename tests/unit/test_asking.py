"""Questions to the owner: one a peer at a time, no answer is a no, and who is refused again and again is muted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from p2ptunnel import asking
from p2ptunnel.asking import AccessRequest, Answer, Approvals, AskCallback, Decision
from p2ptunnel.defaults import ASK_MUTE, ASK_PATIENCE, ASK_REFUSALS, ASK_STREAMS_MAX
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.events import AccessDecided, AccessRequested, PeerEvent
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.types import Path
from tests.helpers import run
from tests.helpers.peers import CALLEE, CALLER

LAPTOP, PHONE = CALLER.public, CALLEE.public
PATH = Path(kind="direct", transport="tcp", local=("192.0.2.1", 1), remote=("203.0.113.7", 2))


class Owner:
    """Somebody who is asked, and answers when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[PeerEvent] = []
        self.traced: list[TraceEvent] = []
        self.asked: asyncio.Queue[AccessRequest] = asyncio.Queue()
        self.answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self.waited: list[float] = []
        self.approvals = Approvals(self.events.append, Tracer(self.traced.append), lambda: self.now)

    async def decide(self, request: AccessRequest) -> Decision:
        self.asked.put_nowait(request)
        return await asyncio.shield(self.answer)

    def ask(self, service: str = "ssh", key: Any = LAPTOP, callback: AskCallback | None = None) -> asyncio.Future[Answer]:
        tag = "laptop" if key == LAPTOP else "phone"
        callback = callback or self.decide
        asking = self.approvals.ask(key, tag, service, PATH, callback, self.waited.append, grants=service)
        return asyncio.ensure_future(asking)

    async def say(self, decision: Decision, times: int = 1) -> list[Answer]:
        """Answer so many questions at once."""

        async def at_once(_: AccessRequest) -> Decision:
            return decision

        return [await self.ask(callback=at_once) for _ in range(times)]


def asked(scenario: Callable[[Owner], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario(Owner())

    run(main())


def test_the_owner_is_asked_and_the_answer_is_told() -> None:
    async def scenario(owner: Owner) -> None:
        asking_now = owner.ask()
        request = await owner.asked.get()
        assert (request.tag, request.key, request.service, request.path) == ("laptop", LAPTOP, "ssh", PATH)
        assert str(request) == f"laptop (p2p:{LAPTOP.short}…) wants ssh via direct tcp 203.0.113.7"
        assert owner.waited == [ASK_PATIENCE]
        owner.answer.set_result("hour")
        assert await asking_now == Answer("hour", "owner")
        first, last = owner.events
        assert isinstance(first, AccessRequested)
        assert (first.tag, first.id, first.key, first.service, first.path) == ("laptop", request.id, str(LAPTOP), "ssh", PATH)
        assert isinstance(last, AccessDecided)
        assert (last.tag, last.id, last.service, last.decision, last.by) == ("laptop", request.id, "ssh", "hour", "owner")
        [decided] = owner.traced
        assert decided.facts == {"peer": "laptop", "id": request.id, "service": "ssh", "decision": "hour", "by": "owner"}

    asked(scenario)


def test_whoever_asks_for_the_same_meanwhile_shares_the_answer() -> None:
    async def scenario(owner: Owner) -> None:
        several = [owner.ask() for _ in range(3)]
        await owner.asked.get()
        owner.answer.set_result("once")
        assert await asyncio.gather(*several) == [Answer("once", "owner")] * 3
        assert owner.asked.empty()

    asked(scenario)


def test_so_many_streams_of_a_peer_wait_for_one_answer_and_no_more() -> None:
    async def scenario(owner: Owner) -> None:
        several = [owner.ask() for _ in range(ASK_STREAMS_MAX)]
        await owner.asked.get()
        assert await owner.ask() == Answer("no", "busy")
        owner.answer.set_result("once")
        assert await asyncio.gather(*several) == [Answer("once", "owner")] * ASK_STREAMS_MAX

    asked(scenario)


def test_one_question_stands_at_a_time() -> None:
    async def scenario(owner: Owner) -> None:
        first = owner.ask("ssh")
        await owner.asked.get()
        assert await owner.ask("web") == Answer("no", "busy")  # a peer asks for one thing
        others = owner.ask("web", PHONE)
        for _ in range(5):
            await asyncio.sleep(0)
        assert owner.asked.empty()  # it waits for its turn
        assert len(owner.events) == 1
        owner.answer.set_result("once")
        assert await first == await others == Answer("once", "owner")
        assert (await owner.asked.get()).service == "web"
        assert (await owner.ask("web")).decision == "once"

    asked(scenario)


def test_a_question_that_the_owner_has_never_seen_was_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else who keeps the owner busy could have others muted."""
    monkeypatch.setattr(asking, "ASK_PATIENCE", asking.ASK_TIMEOUT + 0.01)

    async def scenario(owner: Owner) -> None:
        standing = owner.ask(key=PHONE)
        await owner.asked.get()
        for _ in range(ASK_REFUSALS):
            assert await owner.ask() == Answer("no", "busy")
        owner.answer.set_result("once")
        await standing
        assert await owner.ask() == Answer("once", "owner")
        assert len(owner.events) == 4  # two questions, two decisions

    asked(scenario)


def test_no_answer_in_time_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ASK_TIMEOUT", 0.01)

    async def scenario(owner: Owner) -> None:
        assert await owner.ask() == Answer("no", "timeout")
        decided = owner.events[-1]
        assert isinstance(decided, AccessDecided)
        assert (decided.decision, decided.by) == ("no", "timeout")

    asked(scenario)


def test_who_is_refused_three_times_is_muted_for_a_while() -> None:
    async def scenario(owner: Owner) -> None:
        assert await owner.say("no", ASK_REFUSALS) == [Answer("no", "owner")] * ASK_REFUSALS
        count = len(owner.events)
        assert await owner.say("always") == [Answer("no", "muted")]
        assert len(owner.events) == count  # not even the event that a question would be
        assert owner.waited == [ASK_PATIENCE] * ASK_REFUSALS
        owner.now = ASK_MUTE - 0.1
        assert await owner.say("always") == [Answer("no", "muted")]
        assert [event.facts for event in owner.traced if event.name == "muted"] == [{"peer": "laptop", "seconds": ASK_MUTE}]
        owner.now = ASK_MUTE
        assert await owner.say("once") == [Answer("once", "owner")]

    asked(scenario)


def test_a_yes_begins_the_count_anew_and_others_are_not_muted() -> None:
    async def scenario(owner: Owner) -> None:
        await owner.say("no", ASK_REFUSALS - 1)
        await owner.say("once")
        await owner.say("no", ASK_REFUSALS - 1)
        assert await owner.say("once") == [Answer("once", "owner")]
        await owner.say("no", ASK_REFUSALS)
        other = owner.ask(key=PHONE)
        await owner.asked.get()
        owner.answer.set_result("once")
        assert (await other).decision == "once"

    asked(scenario)


def test_a_peer_that_goes_takes_its_question_with_it_and_has_used_it_up() -> None:
    async def scenario(owner: Owner) -> None:
        for _ in range(ASK_REFUSALS):
            going = owner.ask()
            await owner.asked.get()
            going.cancel()
            await asyncio.gather(going, return_exceptions=True)
        assert await owner.ask() == Answer("no", "muted")

    asked(scenario)


def test_a_question_that_never_began_blocks_no_other() -> None:
    async def scenario(owner: Owner) -> None:
        gone = owner.ask("ssh")
        await asyncio.sleep(0)  # it has asked for the question, which has not been put
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        other = owner.ask("web")
        await owner.asked.get()
        owner.answer.set_result("once")
        assert (await other).decision == "once"

    asked(scenario)


def test_a_callback_that_says_something_else_or_fails_grants_nothing() -> None:
    async def scenario(owner: Owner) -> None:
        async def strange(_: AccessRequest) -> Decision:
            return cast("Decision", "yes")

        async def failing(_: AccessRequest) -> Decision:
            raise ZeroDivisionError

        with pytest.raises(LocalProtocolError, match="an answer is one of once, hour, always, no, not 'yes'"):
            await owner.ask(callback=strange)
        with pytest.raises(ZeroDivisionError):
            await owner.ask(callback=failing)
        assert [event.decision for event in owner.events if isinstance(event, AccessDecided)] == ["no", "no"]

    asked(scenario)
