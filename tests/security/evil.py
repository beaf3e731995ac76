"""A rendezvous server that lies: a real one, whose word to the peers is changed on its way out, or made up."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Final, TypeAlias

from msgspec.structs import replace

from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.net.sockets import reset_close
from p2ptunnel.protocol.intent import Call, CallSigner, CallVerdict, IntentJudge
from p2ptunnel.protocol.machine import Datagram, new_secret
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.simnet.peers import SimCounter
from p2ptunnel.types import Address, Candidate
from p2ptunnel.wire.intent import decode as decode_intent
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectAnswerExtra,
    Message,
    NatHints,
    Observed,
    PunchNotice,
    PunchNoticeExtra,
    PunchResult,
    ReflexiveAnswer,
    decode,
    encode,
)

__all__ = ["EVE", "EvilRendezvous", "Twist", "Victim", "answered_by", "called_by", "honest", "misleading", "until", "victim"]

EVE: Final = Identity.from_seed(b"eve".ljust(32))
Twist: TypeAlias = Callable[[Message], Iterable[Message]]
_dice: Final = random.SystemRandom()


def honest(message: Message) -> Iterable[Message]:
    """Change nothing."""
    return (message,)


def misleading(host: str, port: int) -> Twist:
    """Tell a caller that it is at this address, and everybody else the same of it."""

    def twist(message: Message) -> Iterable[Message]:
        match message:
            case ReflexiveAnswer(extra=Observed() as extra):
                yield replace(message, extra=replace(extra, host=host, port=port))
            case ConnectAnswer(extra=ConnectAnswerExtra() as extra):
                yield replace(message, extra=replace(extra, host=host, port=port))
            case PunchNotice():
                yield replace(message, extra=replace(message.extra, host=host, port=port))
            case _:
                yield message

    return twist


class EvilRendezvous(Rendezvous):
    """A server that says to peers what it likes.

    Attributes:
        twist: What becomes of each message that an honest server would send; None at all, or several.
        said: What an honest server would have sent of t=10 and t=11, with where to.
    """

    def __init__(self, listen: Address = ("127.0.0.1", 0)) -> None:
        super().__init__(listen)
        self.twist: Twist = honest
        self.said: list[tuple[Message, Address]] = []
        self._honestly = self._broker.datagrams_to_send
        setattr(self._broker, "datagrams_to_send", self._twisted)  # noqa: B010 - a method is not assigned otherwise

    def tell(self, message: Message, to: Address) -> None:
        """Send a message of our own making, from the server's address."""
        assert self._services[0].driver.udp.send(encode(message), to)

    def call(
        self, intent: str, cands: tuple[Candidate, ...], *, at: Address, to: Address, hints: NatHints | None = None
    ) -> None:
        """Tell a callee, by t=10 with a fresh token, of a call from `at`."""
        host, port = at
        extra = PunchNoticeExtra(token=new_secret(_dice), host=host, port=port, v=1, intent=intent, cands=cands, nat=hints)
        self.tell(PunchNotice(mid=1, extra=extra), to)

    def _twisted(self) -> list[Datagram]:
        return [datagram for honest_one in self._honestly() for datagram in self._twist(honest_one)]

    def _twist(self, datagram: Datagram) -> Iterable[Datagram]:
        if datagram.data[:1] != b"{":  # STUN
            return (datagram,)
        message = decode(datagram.data)
        if isinstance(message, PunchNotice | PunchResult):
            self.said.append((message, datagram.destination))
        return [replace(datagram, data=encode(other)) for other in self.twist(message)]


def answered_by(identity: Identity, call: str, cands: Sequence[Candidate], hints: NatHints | None) -> str:
    """Return the answer of `identity` to a call, which it may not have been meant for."""
    intent = decode_intent(call)
    judge = IntentJudge(identity, _dice, is_admitted=lambda _: True)
    answered = judge.answer(Call(PublicKey(intent.key), CallVerdict.ADMITTED, intent, intent.ts), cands, hints)
    assert answered is not None
    return answered[0]


def called_by(identity: Identity, callee: PublicKey, cands: Sequence[Candidate], hints: NatHints | None = None) -> str:
    """Return a call of `identity`, signed as it should be."""
    return CallSigner(identity, SimCounter(), _dice, callee=callee).sign(cands, hints)


class Victim:
    """A third party that counts what it gets: datagrams, and TCP connections with whatever comes on them."""

    def __init__(self, host: str = "127.0.0.2") -> None:
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind((host, 0))
        self.address: Address = self._udp.getsockname()
        self._tcp = socket.create_server(self.address)
        for sock in (self._udp, self._tcp):
            sock.setblocking(False)

    @property
    def datagrams(self) -> list[bytes]:
        """What has come over UDP since it was asked last."""
        found: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self._udp.recv(2048))
        return found

    @property
    def connections(self) -> int:
        """How many TCP connections have come since it was asked last."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._tcp.accept()
                reset_close(sock)
                count += 1
        return count

    @property
    def is_untouched(self) -> bool:
        """Whether nothing at all has come."""
        return not self.datagrams and not self.connections

    def close(self) -> None:
        """Close both sockets."""
        self._udp.close()
        self._tcp.close()


@contextlib.contextmanager
def victim(host: str = "127.0.0.2") -> Generator[Victim]:
    """A victim while the block lasts."""
    found = Victim(host)
    try:
        yield found
    finally:
        found.close()


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop run until it is so."""
    while not is_so():
        await asyncio.sleep(0)
