"""How a server answers: to whom, over what, and never more to a stranger than it sent."""

from __future__ import annotations

import msgspec

from p2ptunnel.defaults import CHALLENGES_PER_SECOND, TRANSACTION_TIMEOUT
from p2ptunnel.protocol.cookie import CookieJar
from p2ptunnel.protocol.limits import Buckets, Rate
from p2ptunnel.protocol.machine import Datagram, Entropy, Event, MachineBase
from p2ptunnel.protocol.transaction import Requester
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectAnswerExtra,
    HeartbeatAnswer,
    Message,
    Observed,
    RegisterAnswer,
    encode,
)

__all__ = ["Endpoint", "LineToSend", "Replies", "observed"]


class Endpoint(msgspec.Struct, frozen=True):
    """Where a message came from and its answer goes: an address over UDP, or one TCP connection."""

    address: Address
    connection: int | None = None

    @property
    def host(self) -> str:
        """The numeric host."""
        return self.address[0]

    @property
    def is_validated(self) -> bool:
        """A TCP handshake has shown that the address receives."""
        return self.connection is not None


class LineToSend(Event, frozen=True):
    """Write `line`, JSON without line end, to a TCP connection; `is_last`: and close it, reading no more."""

    connection: int
    line: bytes
    is_last: bool = False


class Replies(MachineBase):
    """The outbox of a server, its cookies, and what it repeats until it is acknowledged."""

    def __init__(self, secret: bytes, entropy: Entropy, server_key: str) -> None:
        super().__init__()
        self.cookies = CookieJar(secret)
        self.requester = Requester(entropy)
        self._server_key = server_key
        self._challenges = Buckets(Rate(CHALLENGES_PER_SECOND, CHALLENGES_PER_SECOND))

    def drop(self, reason: str) -> None:
        """Count something that is not answered."""
        self._drop(reason)

    def report(self, event: Event) -> None:
        """Tell what happened."""
        self._events.append(event)

    def is_known(self, cookie: str, source: Endpoint, now: float) -> bool:
        """Tell whether the source has shown that it receives at its address."""
        return source.is_validated or self.has_cookie(cookie, source, now)

    def has_cookie(self, cookie: str, source: Endpoint, now: float) -> bool:
        """Tell whether `cookie` is the one of that address."""
        return bool(cookie) and self.cookies.is_valid(cookie, source.host, now)

    def send(self, data: bytes, to: Endpoint) -> None:
        """Send once."""
        if to.connection is None:
            self._datagrams.append(Datagram(data, to.address))
        else:
            self._events.append(LineToSend(to.connection, data))

    def answer(self, answer: Message, source: Endpoint) -> None:
        """Answer who has shown that it receives there."""
        self.send(encode(answer), source)

    def answer_stranger(self, answer: Message, source: Endpoint, size: int) -> None:
        """Answer anybody, if the question of `size` bytes was no shorter."""
        data = encode(answer)
        if source.is_validated or len(data) <= size:
            self.send(data, source)
        else:
            self.drop("question shorter than the answer")

    def request(self, t: int, mid: int, data: bytes, to: Endpoint, now: float, *, timeout: float = TRANSACTION_TIMEOUT) -> None:
        """Send, over UDP until it is acknowledged."""
        if to.connection is None:
            self._datagrams.append(self.requester.send(t, mid, data, to.address, now, timeout=timeout))
        else:
            self._events.append(LineToSend(to.connection, data))

    def repeat(self, now: float) -> None:
        """Send again what has not been acknowledged."""
        repeat, _ = self.requester.due(now)
        self._datagrams += repeat

    def take(self, machine: MachineBase) -> None:
        """Send what waits in another machine."""
        self._datagrams += machine.datagrams_to_send()

    def challenge(
        self,
        kind: type[RegisterAnswer] | type[HeartbeatAnswer] | type[ConnectAnswer],
        mid: int,
        source: Endpoint,
        size: int,
        now: float,
    ) -> None:
        """Answer 401 with the cookie of that address, and say who we are; under a flood not everybody."""
        if not source.is_validated and not self._challenges.take(None, now):
            self.drop("too many strangers")
            return
        host, port = source.address
        cookie = self.cookies.make(host, now)
        answer: Message
        if kind is ConnectAnswer:
            extra = ConnectAnswerExtra(host=host, port=port, cookie=cookie, key=self._server_key)
            answer = ConnectAnswer(mid=mid, code=401, em="cookie", extra=extra)
        elif kind is RegisterAnswer:
            answer = RegisterAnswer(mid=mid, code=401, em="cookie", extra=observed(source, cookie=cookie, key=self._server_key))
        else:
            answer = HeartbeatAnswer(mid=mid, code=401, em="cookie", extra=observed(source, cookie=cookie))
        self.answer_stranger(answer, source, size)


def observed(
    source: Endpoint,
    *,
    ttl: float = 0,
    epoch: int = 0,
    cookie: str = "",
    ts: int = 0,
    key: str = "",
    sig: str = "",
    retry_after: float = 0,
) -> Observed:
    """Return the body that tells `source` how it looks from here."""
    host, port = source.address
    return Observed(host=host, port=port, ttl=ttl, epoch=epoch, cookie=cookie, ts=ts, key=key, sig=sig, retry_after=retry_after)
