"""A rendezvous server that lies reaches nobody: no handler runs, no byte of an application leaves, no third party is sent
anything, and who calls gets a typed error."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
from msgspec.structs import replace

from p2ptunnel.abc import Stream
from p2ptunnel.errors import AuthenticationError, NoPathError, P2PTunnelError, PeerKeyChangedError, PeerRefusedError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.protocol import broker as broker_module
from p2ptunnel.protocol.callee import CalleePort
from p2ptunnel.protocol.intent import IntentJudge
from p2ptunnel.types import Address, Candidate
from p2ptunnel.wire.messages import Message, NatHints, PortRow, PunchNotice, PunchResult
from tests.helpers import run
from tests.helpers.meeting import HELLO, HOME, Meeting, conversation, fresh_spare, introduce
from tests.security.evil import EVE, EvilRendezvous, Twist, Victim, answered_by, called_by, honest, misleading, until, victim

ELSEWHERE = "127.0.0.2"
Prepare = Callable[["Scene"], Twist]


class Scene:
    """Two peers of an evil server, a third party, and what the handler has been given."""

    def __init__(self, there: Meeting, server: EvilRendezvous, third: Victim) -> None:
        self.there = there
        self.server = server
        self.victim = third
        self.handled: list[Stream] = []
        self.sent: list[bytes] = []

    async def handle(self, stream: Stream) -> None:
        self.handled.append(stream)
        async for part in stream:
            self.sent.append(part)
            await stream.write(part)
        await stream.write_eof()

    @property
    def callee(self) -> CalleePort:
        answering = self.there.home._up.answering
        assert answering is not None
        return answering._machine

    @property
    def home(self) -> Address:
        """Where the server reaches the callee."""
        address = self.there.home.local_address
        assert address is not None
        return address

    async def talk(self) -> None:
        """One honest conversation, which the server hears."""
        twist, self.server.twist = self.server.twist, honest
        async with await self.there.laptop.connect(HOME, "echo") as stream:
            assert await conversation(stream) == HELLO
        for session in (*self.there.laptop._up._sessions, *self.there.home._up._sessions):
            await session.close()
        self.handled.clear()
        self.sent.clear()
        self.server.twist = twist
        assert self.victim.is_untouched


@contextlib.asynccontextmanager
async def scene(directory: Path) -> AsyncGenerator[Scene]:
    with victim(ELSEWHERE) as third:
        async with EvilRendezvous() as server:
            there = Meeting(directory, server)
            async with there.home, there.laptop:
                introduce(there.home, there.laptop, "echo")
                found = Scene(there, server, third)
                async with there.home.serve({"echo": found.handle}):
                    yield found


# --- lies about a call that is made ---------------------------------------------------------------------------------------


def in_answer(change: Callable[[PunchResult, Scene], PunchResult]) -> Prepare:
    """Change t=11."""

    def prepare(at: Scene) -> Twist:
        def twist(message: Message) -> Iterable[Message]:
            return (change(message, at),) if isinstance(message, PunchResult) and message.extra else (message,)

        return twist

    return prepare


def in_notice(change: Callable[[PunchNotice, Scene], PunchNotice]) -> Prepare:
    """Change t=10."""

    def prepare(at: Scene) -> Twist:
        def twist(message: Message) -> Iterable[Message]:
            return (change(message, at),) if isinstance(message, PunchNotice) else (message,)

        return twist

    return prepare


def redirected(message: PunchResult, at: Scene) -> PunchResult:
    assert message.extra is not None
    host, port = at.victim.address
    return replace(message, extra=replace(message.extra, host=host, port=port))


def with_other_candidates(message: PunchResult, at: Scene) -> PunchResult:
    assert message.extra is not None
    host, port = at.victim.address
    lies = (Candidate("srflx", "tcp", host, port), Candidate("srflx", "udp", host, port))
    return replace(message, extra=replace(message.extra, host=host, port=port, cands=lies))


def with_more_candidates(message: PunchResult, at: Scene) -> PunchResult:
    assert message.extra is not None
    more = Candidate("srflx", "tcp", *at.victim.address)
    return replace(message, extra=replace(message.extra, cands=(*message.extra.cands, more)))


def with_other_hints(message: PunchResult, at: Scene) -> PunchResult:
    assert message.extra is not None
    return replace(message, extra=replace(message.extra, nat=behind_random_ports(message.extra.nat)))


def behind_random_ports(hints: NatHints | None) -> NatHints:
    """No datagram would come from there: signals alone would have to show that the other side is there."""
    return replace(hints or NatHints(), udp="rnd")


def stripped(message: PunchResult, at: Scene) -> PunchResult:
    assert message.extra is not None
    return replace(message, extra=replace(message.extra, v=0, intent="", cands=()))


def of_the_founding_protocol_elsewhere(message: PunchResult, at: Scene) -> PunchResult:
    return redirected(stripped(message, at), at)


def by_eve(message: PunchResult, at: Scene) -> PunchResult:
    """The server takes the call itself, with a key of its own."""
    assert message.extra is not None
    [notice] = [said for said, _ in at.server.said if isinstance(said, PunchNotice)]
    host, port = at.victim.address
    cands = (Candidate("srflx", "udp", host, port),)
    intent = answered_by(EVE, notice.extra.intent, cands, message.extra.nat)
    return replace(message, extra=replace(message.extra, host=host, port=port, intent=intent, cands=cands))


def by_eve_in_the_name_of_home(message: PunchResult, at: Scene) -> PunchResult:
    """The same, with the callee's key written over its own."""
    lie = by_eve(message, at)
    assert lie.extra is not None
    assert message.extra is not None
    return replace(lie, extra=replace(lie.extra, intent=message.extra.intent[:45] + lie.extra.intent[45:]))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (redirected, AuthenticationError, "the server names an address that the peer has not signed"),
        (with_other_candidates, AuthenticationError, "its signature does not hold"),
        (with_more_candidates, AuthenticationError, "its signature does not hold"),
        (with_other_hints, AuthenticationError, "its signature does not hold"),
        (stripped, AuthenticationError, "it is not signed"),
        (of_the_founding_protocol_elsewhere, AuthenticationError, "it is not signed"),
        (by_eve, PeerKeyChangedError, "home-nas did not prove the pinned key"),
        (by_eve_in_the_name_of_home, AuthenticationError, "its signature does not hold"),
    ],
)
def test_a_lie_in_the_answer_ends_the_call_before_a_packet(
    tmp_path: Path, change: Callable[[PunchResult, Scene], PunchResult], error: type[P2PTunnelError], text: str
) -> None:
    async def main() -> None:
        async with scene(tmp_path) as at:
            at.server.twist = in_answer(change)(at)
            with pytest.raises(error) as caught:
                await at.there.laptop.connect(HOME, "echo")
            assert type(caught.value) is error
            assert text in str(caught.value)
            assert caught.value.hint
            assert not at.there.laptop_events.named("PunchStarted")
            assert (at.handled, at.sent, at.victim.is_untouched) == ([], [], True)

    run(main())


def elsewhere(message: PunchNotice, at: Scene) -> PunchNotice:
    host, port = at.victim.address
    return replace(message, extra=replace(message.extra, host=host, port=port))


def elsewhere_with_candidates(message: PunchNotice, at: Scene) -> PunchNotice:
    host, port = at.victim.address
    lies = (Candidate("srflx", "tcp", host, port), Candidate("srflx", "udp", host, port))
    return replace(message, extra=replace(message.extra, host=host, port=port, cands=lies))


def with_another_target(message: PunchNotice, at: Scene) -> PunchNotice:
    more = Candidate("srflx", "tcp", *at.victim.address)
    return replace(message, extra=replace(message.extra, cands=(*message.extra.cands, more)))


def with_random_ports(message: PunchNotice, at: Scene) -> PunchNotice:
    return replace(message, extra=replace(message.extra, nat=behind_random_ports(message.extra.nat)))


def with_ports_in_a_row(message: PunchNotice, at: Scene) -> PunchNotice:
    hints = replace(message.extra.nat or NatHints(), tcp="seq", tcp_row=PortRow(at.victim.address[1] - 1, 1))
    return replace(message, extra=replace(message.extra, nat=hints))


def from_eve(message: PunchNotice, at: Scene) -> PunchNotice:
    host, port = at.victim.address
    cands = (Candidate("srflx", "udp", host, port),)
    intent = called_by(EVE, at.there.home.key, cands, message.extra.nat)
    return replace(message, extra=replace(message.extra, host=host, port=port, intent=intent, cands=cands))


def unsigned(message: PunchNotice, at: Scene) -> PunchNotice:
    return elsewhere(replace(message, extra=replace(message.extra, intent="")), at)


def of_the_founding_protocol(message: PunchNotice, at: Scene) -> PunchNotice:
    host, port = at.victim.address
    return replace(message, extra=replace(message.extra, host=host, port=port, v=0, intent="", cands=()))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (elsewhere, NoPathError),
        (elsewhere_with_candidates, NoPathError),
        (with_another_target, NoPathError),
        (with_random_ports, NoPathError),
        (with_ports_in_a_row, NoPathError),
        (unsigned, NoPathError),
        (from_eve, PeerRefusedError),
        (of_the_founding_protocol, PeerRefusedError),
    ],
)
def test_a_lie_in_the_notice_is_sent_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[PunchNotice, Scene], PunchNotice],
    error: type[P2PTunnelError],
) -> None:
    monkeypatch.setattr(broker_module, "TRANSACTION_TIMEOUT", 0.5)  # after which the server says that nobody has answered

    async def main() -> None:
        async with scene(tmp_path) as at:
            at.server.twist = in_notice(change)(at)
            with pytest.raises(error):
                await at.there.laptop.connect(HOME, "echo")
            assert not at.there.home_events.named("PunchStarted")
            assert (at.handled, at.sent, at.victim.is_untouched) == ([], [], True)

    run(main())


def test_an_answer_to_an_earlier_call_is_none_to_this_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as at:
            await at.talk()
            [old] = [message for message, _ in at.server.said if isinstance(message, PunchResult)]

            def again(message: Message) -> Iterable[Message]:
                is_answer = isinstance(message, PunchResult)
                return (replace(message, extra=old.extra),) if is_answer else (message,)

            at.server.twist = again
            with pytest.raises(AuthenticationError, match="its signature does not hold"):
                await at.there.laptop.connect(HOME, "echo")
            assert at.there.dials == 1  # the honest one
            assert at.handled == []

    run(main())


# --- calls that nobody makes ------------------------------------------------------------------------------------------------


async def deafly(at: Scene, count: int, say: Callable[[int], None]) -> None:
    """Say so many things to the callee, and wait until it has dropped or refused each of them."""
    before = at.callee.dropped.total()
    for begin in range(0, count, 50):  # more would not fit the socket's buffer
        said = min(begin + 50, count)
        for n in range(begin, said):
            say(n)
        await until(partial(_has_dropped, at, before + said))


def _has_dropped(at: Scene, total: int) -> bool:
    return at.callee.dropped.total() >= total


@pytest.mark.parametrize("is_moved", [False, True])
def test_a_thousand_replays_of_a_call_change_nothing(tmp_path: Path, is_moved: bool) -> None:
    async def main() -> None:
        async with scene(tmp_path) as at:
            await at.talk()
            [(notice, _)] = [said for said in at.server.said if isinstance(said[0], PunchNotice)]
            assert isinstance(notice, PunchNotice)
            genuine = notice.extra
            host = ELSEWHERE if is_moved else genuine.host
            dropped = at.callee.dropped.copy()

            def replay(_: int) -> None:
                there = (host, at.victim.address[1])
                at.server.call(genuine.intent, genuine.cands, at=there, to=at.home, hints=genuine.nat)

            await deafly(at, 1000, replay)
            reason = "an address that the peer has not signed" if is_moved else "intent repeated"
            assert at.callee.dropped - dropped == {reason: 1000}
            assert len(at.there.home_events.named("PunchStarted")) == 1  # the honest one
            assert not at.callee.agents
            assert at.victim.is_untouched
            await at.talk()

    run(main(), timeout=20)


def test_calls_that_a_server_invents_reach_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with scene(tmp_path) as at:
            cands = (Candidate("srflx", "udp", *at.victim.address),)
            strangers = [Identity.generate() for _ in range(20)]
            intents = ["", "A" * 227, *(called_by(stranger, at.there.home.key, cands) for stranger in strangers)]
            intents += [called_by(stranger, EVE.public, cands) for stranger in strangers]

            def invent(n: int) -> None:
                at.server.call(intents[n % len(intents)], cands, at=at.victim.address, to=at.home)

            await deafly(at, 300, invent)
            assert not at.callee.agents
            assert not at.there.home_events.named("PunchStarted")
            assert at.victim.is_untouched
            await at.talk()  # who is known is let in all the same

    run(main(), timeout=20)


# --- a server that has lied all along -------------------------------------------------------------------------------------


def test_who_is_told_a_wrong_address_of_its_own_costs_its_owner_two_datagrams_at_most(tmp_path: Path) -> None:
    """The caller signs what the server has shown it; before it is heard of there, next to nothing gets out."""

    async def main() -> None:
        async with scene(tmp_path) as at:
            at.server.twist = misleading(*at.victim.address)
            await fresh_spare(at.there.laptop)  # which has heard nothing else
            with pytest.raises(P2PTunnelError):
                await at.there.laptop.connect(HOME, "echo", timeout=3, require_direct=True)
            [started] = at.there.home_events.named("PunchStarted")
            assert started.facts["peer"] == at.victim.address
            dials = at.there.home_events.named("Dial")
            assert [dial.facts["low"] for dial in dials] == [True]  # it dies at our own NAT, where there is one
            datagrams = at.victim.datagrams
            assert len(datagrams) <= 3  # the first of which dies there as well
            assert all(len(datagram) == 53 for datagram in datagrams)
            assert (at.handled, at.sent) == ([], [])

    run(main(), timeout=20)


# --- what it costs ----------------------------------------------------------------------------------------------------------


def test_ten_thousand_bad_signatures_cost_little_and_peers_are_let_in_meanwhile() -> None:
    home, laptop = Identity.generate(), Identity.generate()
    judge = IntentJudge(home, random.SystemRandom(), is_admitted=laptop.public.__eq__)
    cands = (Candidate("srflx", "udp", "198.51.100.7", 40_000),)
    forged = [called_by(Identity.generate(), home.public, cands)[:-4] + "AAAA" for _ in range(200)]
    began = time.process_time()
    for n in range(10_000):
        judge.judge(forged[n % 200], cands, f"192.0.2.{n % 250}", n / 1000)
    assert time.process_time() - began < 1.5
    call = judge.judge(called_by(laptop, home.public, cands), cands, "198.51.100.7", 10.0)
    assert not isinstance(call, str)
    assert call.key == laptop.public
