"""Transactions: a request is repeated with the same `mid` until it is answered; a repeated request is answered from memory.

Source: wire document W3.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Hashable

import msgspec

from p2ptunnel.defaults import (
    ANSWER_MEMORY,
    ANSWER_MEMORY_MAX,
    RETRANSMIT_CAP,
    RETRANSMIT_FACTOR,
    RETRANSMIT_FIRST,
    RETRANSMIT_JITTER,
    TRANSACTION_TIMEOUT,
)
from p2ptunnel.protocol.machine import Datagram, Entropy, Hole
from p2ptunnel.types import Address

__all__ = ["AnswerMemory", "Request", "Requester"]


class Request(msgspec.Struct):
    """One request under way; times are monotonic seconds."""

    t: int
    mid: int
    data: bytes
    destination: Address
    sent_at: float
    expires_at: float
    repeat_at: float
    interval: float
    sends: int = 1
    hole: Hole | None = None

    def __repr__(self) -> str:
        return f"Request(t={self.t}, mid={self.mid}, {len(self.data)} bytes to {self.destination})"

    @property
    def due_at(self) -> float:
        """When something is to be done about it."""
        return min(self.repeat_at, self.expires_at)


class Requester:
    """The requests of one machine that wait for an answer.

    The machine appends what `send` and `due` return to its own datagrams, and tells by `answered` what came back.
    """

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._waiting: dict[tuple[int, int], Request] = {}
        self._due: list[tuple[float, tuple[int, int]]] = []  # a heap; what has been answered or repeated since is skipped

    def __len__(self) -> int:
        return len(self._waiting)

    def send(
        self,
        t: int,
        mid: int,
        data: bytes,
        destination: Address,
        now: float,
        *,
        first: float = RETRANSMIT_FIRST,
        timeout: float = TRANSACTION_TIMEOUT,
        hole: Hole | None = None,
    ) -> Datagram:
        """Begin a transaction; `first` is the wait before the first repetition, `timeout` the end of all, in seconds."""
        request = Request(t, mid, data, destination, now, now + timeout, now + self._jitter(first), first, hole=hole)
        self._waiting[t, mid] = request
        heapq.heappush(self._due, (request.due_at, (t, mid)))
        return Datagram(data, destination, hole=hole)

    def answered(self, t: int, mid: int, source: Address | None = None) -> Request | None:
        """End the transaction that an answer belongs to.

        Args:
            t: Number of the request, so minus that of the answer.
            mid: The answer's.
            source: Where the answer came from; None accepts an answer from anywhere (a peer behind a NAT).

        Returns:
            The request, or None if there is none such or the answer comes from somewhere else.
        """
        request = self._waiting.get((t, mid))
        if request is None or (source is not None and source != request.destination):
            return None
        return self._waiting.pop((t, mid))

    def cancel(self, t: int | None = None) -> None:
        """Forget every request, or every one of number `t`."""
        for key in [key for key in self._waiting if t is None or key[0] == t]:
            del self._waiting[key]

    def due(self, now: float) -> tuple[list[Datagram], list[Request]]:
        """Return the repetitions that are due, and the requests that have expired, which are forgotten."""
        repeat: list[Datagram] = []
        expired: list[Request] = []
        while (at := self.next_deadline()) is not None and at <= now:
            _, key = heapq.heappop(self._due)
            request = self._waiting[key]
            if now >= request.expires_at:
                expired.append(self._waiting.pop(key))
                continue
            request.sends += 1
            request.interval = min(request.interval * RETRANSMIT_FACTOR, RETRANSMIT_CAP)
            request.repeat_at = now + self._jitter(request.interval)
            heapq.heappush(self._due, (request.due_at, key))
            repeat.append(Datagram(request.data, request.destination, hole=request.hole))
        return repeat, expired

    def next_deadline(self) -> float | None:
        """Return when `due` has something, None if nothing waits."""
        while self._due:
            at, key = self._due[0]
            request = self._waiting.get(key)
            if request is not None and request.due_at == at:
                return at
            heapq.heappop(self._due)
        return None

    def _jitter(self, seconds: float) -> float:
        return seconds * (1 + RETRANSMIT_JITTER * (2 * self._entropy.random() - 1))


class AnswerMemory:
    """The answers given lately, so that a repeated request is answered alike and its work done once.

    Bounded in time and number; the oldest go first, which costs a repetition of the work and nothing else.
    """

    def __init__(self, *, most: int = ANSWER_MEMORY_MAX, seconds: float = ANSWER_MEMORY) -> None:
        self._most = most
        self._seconds = seconds
        self._answers: OrderedDict[Hashable, tuple[float, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def remember(self, key: Hashable, answer: bytes, now: float) -> None:
        """Keep the answer of the request `key` (its source, t and mid)."""
        self._answers[key] = (now + self._seconds, answer)
        self._answers.move_to_end(key)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)

    def recall(self, key: Hashable, now: float) -> bytes | None:
        """Return the answer that was given to `key`, None if there is none or it is too old."""
        while self._answers:
            oldest, (expires_at, _) = next(iter(self._answers.items()))
            if expires_at > now:
                break
            del self._answers[oldest]
        entry = self._answers.get(key)
        return entry[1] if entry else None
