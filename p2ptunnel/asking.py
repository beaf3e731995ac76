"""The owner is asked whether a peer may open a service: one question at a time, and no answer is a no.

Rule: only a pinned peer can make a question appear, and who is refused again and again cannot for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeAlias, cast, get_args

import msgspec

from p2ptunnel.defaults import ASK_MUTE, ASK_PATIENCE, ASK_REFUSALS, ASK_STREAMS_MAX, ASK_TIMEOUT
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.events import AccessDecided, AccessRequested, PeerEvent
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.shared import Shared
from p2ptunnel.types import Path, Tag

__all__ = ["AccessRequest", "Answer", "Approvals", "AskCallback", "Decision"]

Decision: TypeAlias = Literal["once", "hour", "always", "no"]
"""`once`: what waits now, until it ends; `hour`, `always`: the service is granted.  `p2ptunnel peers deny` takes each back."""

_ids: Final = itertools.count(1)


class AccessRequest(msgspec.Struct, frozen=True):
    """A pinned peer asks for a service that it is not granted.

    `str` says it in one line, all of it fit to be shown.

    Attributes:
        id: A number of this process.
        tag: The peer's name here.
        key: What it has proved.
        service: What it asks for: the name that is served, and behind it what it means where that may be many things.
        path: Where its connection runs.
        grants: The service that `hour` and `always` grant, all of it.
    """

    id: int
    tag: Tag
    key: PublicKey
    service: str
    path: Path
    grants: str

    def __str__(self) -> str:
        where = f"{self.path.kind} {self.path.transport} {self.path.remote[0]}"
        whole = "" if self.grants == self.service else f"; an hour or always means all of {self.grants}"
        return f"{self.tag} (p2p:{self.key.short}…) wants {self.service} via {where}{whole}"


AskCallback: TypeAlias = Callable[[AccessRequest], Awaitable[Decision]]
"""Asks somebody; it is cancelled when nobody has answered in time, or when the peer has gone."""


class Answer(msgspec.Struct, frozen=True):
    """What came of a question.

    `by` says whose word it is: the owner's; nobody's, in time; or that it was not the time to ask: the peer is muted, or asks
    for something else or too much already, or the owner was asked by others.
    """

    decision: Decision
    by: Literal["owner", "timeout", "muted", "busy"]


class Approvals:
    """Asks, and remembers who was refused.

    Args:
        tell: Gets the events.
        tracer: Gets every decision.
        clock: Monotonic seconds.
    """

    def __init__(self, tell: Callable[[PeerEvent], None], tracer: Tracer, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._trace = tracer
        self._clock = clock
        self._turn: Final = asyncio.Lock()  # a late answer must not be the next question's
        self._asking: Final[dict[PublicKey, str]] = {}
        self._waiting: Final[Counter[PublicKey]] = Counter()  # streams that wait for the answer
        self._questions: Final[Shared[PublicKey, Answer]] = Shared()
        self._refusals: Final[dict[PublicKey, int]] = {}  # in a row; of pinned peers only, so it stays small
        self._muted_until: Final[dict[PublicKey, float]] = {}

    async def ask(
        self,
        key: PublicKey,
        tag: Tag,
        service: str,
        path: Path,
        callback: AskCallback,
        waiting: Callable[[float], None],
        *,
        grants: str,
    ) -> Answer:
        """Ask whether the peer may open the service; whoever asks for the same meanwhile shares the answer.

        Args:
            key: The peer's.
            tag: Its name here.
            service: What it asks for.
            path: Where its connection runs.
            callback: Asks the owner.
            waiting: Called with the seconds that an answer may take, if there is a question.
            grants: The service that it would be granted for longer than this.

        Raises:
            LocalProtocolError: The callback answered something else than a Decision.
            Exception: Whatever the callback raises.
        """
        if self._clock() < self._muted_until.get(key, 0.0):
            return Answer("no", "muted")
        if self._asking.setdefault(key, service) != service or self._waiting[key] >= ASK_STREAMS_MAX:
            return Answer("no", "busy")
        self._waiting[key] += 1
        try:
            waiting(ASK_PATIENCE)
            return await self._questions.join(
                key, lambda: self._put_in_turn(AccessRequest(next(_ids), tag, key, service, path, grants), callback)
            )
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key], self._asking[key]

    async def _put_in_turn(self, request: AccessRequest, callback: AskCallback) -> Answer:
        """Put one question when no other stands; one that the owner has never seen is none that was refused."""
        try:
            async with asyncio.timeout(ASK_PATIENCE - ASK_TIMEOUT):
                await self._turn.acquire()
        except TimeoutError:
            return Answer("no", "busy")
        try:
            return await self._put(request, callback)
        finally:
            self._turn.release()

    async def _put(self, request: AccessRequest, callback: AskCallback) -> Answer:
        """Put one question, and draw the consequences."""
        key, service = str(request.key), request.service
        self._tell(AccessRequested(tag=request.tag, id=request.id, key=key, service=service, path=request.path))
        answer = Answer("no", "timeout")
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ASK_TIMEOUT):
                    answer = _owners(await callback(request))
        finally:
            self._decided(request, answer)
        return answer

    def _decided(self, request: AccessRequest, answer: Answer) -> None:
        refusals = self._refusals.pop(request.key, 0) + 1
        if answer.decision == "no" and refusals < ASK_REFUSALS:
            self._refusals[request.key] = refusals
        elif answer.decision == "no":
            self._muted_until[request.key] = self._clock() + ASK_MUTE
            self._trace("access", "muted", peer=request.tag, seconds=ASK_MUTE)
        decision, by, service = answer.decision, answer.by, request.service
        self._trace("access", "decided", peer=request.tag, id=request.id, service=service, decision=decision, by=by)
        self._tell(AccessDecided(tag=request.tag, id=request.id, service=service, decision=decision, by=by))


def _owners(decision: str) -> Answer:
    if decision not in get_args(Decision):
        raise LocalProtocolError(f"an answer is one of {', '.join(get_args(Decision))}, not {decision!r}")
    return Answer(cast("Decision", decision), "owner")
