"""Who gets in: what our NATs do with packets of strangers, found out by having the server send some.

Each question leaves from a fresh port, since to have sent anything to an address changes what comes back from there.
Rule: what the server did not say, or could not, is not known; it is never taken for a no.

Source: RFC 4787 5 and 6, RFC 5382 4.1 and 4.3, RFC 5780 4.4; docs/explanation/nat.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
from types import TracebackType
from typing import Final, Self

import msgspec

from p2ptunnel.defaults import ARRIVALS_MAX, PROBE_BACK_PATIENCE, SYN_REPEAT
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.net.dial import Dial, dial
from p2ptunnel.net.reflexive import TcpControl, observe_udp
from p2ptunnel.net.sockets import ANY_IPV4, can_open_low, reset_close
from p2ptunnel.net.tcp import Listener
from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.net.watch import Watch
from p2ptunnel.protocol.machine import Event, new_mid
from p2ptunnel.protocol.nat import Habits, MappingClass
from p2ptunnel.protocol.punch import own_candidates
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.backquestion import BackQuestion, GotThrough, Over
from p2ptunnel.traversal.netreport import Filtering, Refusal
from p2ptunnel.traversal.port import Opener, take_number
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import Message, Observed, ProbeExtra, ReflexiveAnswer, ReflexiveProbe

__all__ = [
    "Crossing",
    "Strangers",
    "ask_habits",
    "crosses",
    "does_cross",
    "filtering_udp",
    "hairpins_tcp",
    "hairpins_udp",
    "has_met",
    "strangers_tcp",
]

_OUTCOMES: Final[dict[str, Refusal]] = {"connected": "accept", "refused": "reset", "silent": "drop"}
_HAIRPIN: Final = 0.6  # seconds for a packet that only goes to our own router and back
_SETTLE: Final = 0.05  # seconds beside a round trip in which a SYN of ours has left the NATs, and died
_HAIRPIN_BYTES: Final = 16
_dice: Final = random.SystemRandom()


class Strangers(msgspec.Struct, frozen=True):
    """What SYNs get that nobody has asked for; `is_open`: one from a host that we have sent nothing to gets in."""

    filtering: Filtering = "unknown"
    refusal: Refusal = "unknown"
    is_open: bool | None = None


class Crossing(msgspec.Struct, frozen=True):
    """What became of a SYN that was sent to meet one of ours: whether it got in, and whether ours had died on the way."""

    gets_in: bool | None = None
    has_died: bool | None = None


def does_cross(strangers: Strangers, crossing: Crossing, mapping: MappingClass) -> bool | None:
    """Return whether SYNs get in that meet ours; where the server saw another port than its SYN met, a no says nothing."""
    if strangers.filtering == "endpoint-independent" or strangers.is_open:
        return True
    return crossing.gets_in if crossing.gets_in or mapping == "eim" else None


async def ask_habits(server: Address, mapping: MappingClass, opener: Opener) -> Habits:
    """Find out what our NATs do with SYNs, by one probe where strangers get in and by two elsewhere.

    A third one confirms that SYNs do not cross, since any of them may have been lost on the way.  Then it takes six seconds.

    Args:
        server: Numeric.
        mapping: Of our NATs, over TCP.
        opener: How far a SYN travels to leave them.
    """
    strangers = await strangers_tcp(server, is_brief=True)
    is_asked = not strangers.is_open and mapping == "eim" and can_open_low()
    crossing = await crosses(server, opener.ttl) if is_asked else Crossing()
    if crossing.gets_in is False:
        crossing = await crosses(server, opener.ttl)
    return Habits(
        crosses=does_cross(strangers, crossing, mapping),
        is_open=strangers.is_open,
        opens_low=crossing.has_died if opener.rtt else None,  # else it is we who had guessed how far it should go
    )


def _choose_filtering(far: bool | None, near: bool | None) -> Filtering:
    """Return the word: `far` is whether another host got in, `near` whether another port of the same; None: not known."""
    if far:
        return "endpoint-independent"
    if far is None or near is None:
        return "unknown"
    return "address-dependent" if near else "address-and-port-dependent"


def _numbers(others: tuple[Address, ...], server: Address) -> tuple[int | None, int | None]:
    """Return the numbers of an observer on another host, and of one on another port of the server's own."""
    far = next((number for number, other in enumerate(others) if other[0] != server[0]), None)
    near = next((number for number, other in enumerate(others) if other[0] == server[0]), None)
    return far, near


# --- over UDP ---------------------------------------------------------------------------------------------------------


async def filtering_udp(server: Address) -> Filtering:
    """Find out who may send in over UDP; about a second where somebody may not.

    Args:
        server: Numeric.
    """
    with contextlib.suppress(P2PTunnelError, OSError):
        udp = UdpSocket((_any(server), 0), shared=True)
        try:
            seen = await observe_udp(udp.address, server)
            return await _ask_back(udp, server, seen.others)
        finally:
            udp.close()
    return "unknown"


async def _ask_back(udp: UdpSocket, server: Address, others: tuple[Address, ...]) -> Filtering:
    far, near = _numbers(others, server)
    loop = asyncio.get_running_loop()
    heard: set[str] = set()
    over: asyncio.Future[bool] = loop.create_future()

    def on_event(event: Event) -> None:
        if isinstance(event, GotThrough):
            heard.add(event.op)
        elif isinstance(event, Over) and not over.done():
            over.set_result(event.is_told)

    numbers = tuple(number for number in (far, near) if number is not None)
    if not numbers:
        return "unknown"
    question = BackQuestion(server, tuple(ProbeExtra(op=str(number)) for number in numbers), loop.time())
    async with UdpDriver(question, udp, on_event, clock=loop.time) as driver:
        driver.wake()
        is_told = await over
    told = {number: str(number) in heard if is_told else None for number in numbers}
    return _choose_filtering(None if far is None else told[far], None if near is None else told[near])


async def hairpins_udp(server: Address, own: frozenset[str]) -> bool | None:
    """Tell whether two machines behind our NAT reach each other by its outside address (RFC 4787 6); None: not known.

    Args:
        server: Numeric.
        own: Addresses of this machine: seen under one of them, there is no NAT to tell of.
    """
    with contextlib.suppress(P2PTunnelError, OSError):
        inside = UdpSocket((_any(server), 0))
        try:
            seen = (await observe_udp(inside.address, server)).address
            return None if seen[0] in own or not own_candidates("udp", seen, server) else await _loops(inside, seen)
        finally:
            inside.close()
    return None


async def _loops(inside: UdpSocket, seen: Address) -> bool:
    mark, came = os.urandom(_HAIRPIN_BYTES), asyncio.Event()

    def on_readable() -> None:
        if any(data == mark for data, _ in inside.receive()):
            came.set()

    watch, outside = Watch(inside.socket, on_readable), UdpSocket((inside.address[0], 0), shared=False)
    try:
        async with asyncio.timeout(_HAIRPIN):
            while not came.is_set():
                outside.send(mark, seen)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(came.wait(), _HAIRPIN / 4)
    except TimeoutError:
        pass
    finally:
        watch.stop()
        outside.close()
    return came.is_set()


# --- over TCP ---------------------------------------------------------------------------------------------------------


class _Asker:
    """A fresh port with a connection to the server, over which it is asked to dial that port from elsewhere."""

    def __init__(self, number: tuple[UdpSocket, socket.socket]) -> None:
        self.local: Address = number[0].address
        self._held = number
        self._answers: dict[int, asyncio.Future[str]] = {}
        self._control: TcpControl | None = None

    @classmethod
    async def open(cls, server: Address) -> _Asker:
        """Connect.

        Raises:
            P2PTunnelError: There is no port, or the server does not answer.
        """
        asker = cls(take_number(_any(server), Tracer()))
        try:
            asker._control = await TcpControl.open(
                asker.local[1], server, on_message=asker._take, on_lost=lambda _: asker._give_up()
            )
        except BaseException:
            asker.close()
            raise
        return asker

    @property
    def control(self) -> TcpControl:
        """The connection."""
        assert self._control is not None  # `open` made it
        return self._control

    async def outcome(self, number: int) -> str:
        """Have the observer of this number dial us; return how that ended, empty if nobody tells."""
        probe = ReflexiveProbe(mid=new_mid(_dice), extra=ProbeExtra(op=str(number)))
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answers[probe.mid] = answer
        self.control.send(probe)
        try:
            async with asyncio.timeout(PROBE_BACK_PATIENCE + 1 + 2 * self.control.rtt):
                return await answer
        except TimeoutError:
            return ""

    def close(self) -> None:
        """Close every socket."""
        if self._control is not None:
            self._control.abort()
        for sock in self._held:
            sock.close()

    def _take(self, message: Message) -> None:
        if isinstance(message, ReflexiveAnswer) and message.mid in self._answers and not self._answers[message.mid].done():
            told = (message.extra or Observed()).back if message.code == 200 else ""
            self._answers[message.mid].set_result(told)

    def _give_up(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result("")


async def strangers_tcp(server: Address, *, is_brief: bool = False) -> Strangers:
    """Find out what a stranger's SYN gets; about two seconds where it gets no answer.

    Args:
        server: Numeric.
        is_brief: Only whether a stranger of another host gets in, by one probe instead of two.
    """
    with contextlib.suppress(P2PTunnelError, OSError):
        asker = await _Asker.open(server)
        try:
            with _Arrivals(asker.local) as arrivals:
                return await _let_dial(asker, server, arrivals, is_brief=is_brief)
        finally:
            asker.close()
    return Strangers()


class _Arrivals:
    """The listener of a port, and who has come to it; connections are kept until the block ends: their makers look at them.

    One of each host, and of few hosts: a question takes seconds, in which anybody may come any number of times.
    """

    def __init__(self, local: Address) -> None:
        self._kept: dict[str, socket.socket] = {}
        self._came: dict[str, asyncio.Event] = {}
        self._listener = Listener(local, self._take)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.close()
        for sock in self._kept.values():
            reset_close(sock)

    async def came_from(self, host: str) -> bool:
        """Tell whether a connection from there has come, or comes in a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HAIRPIN):
                await self._of(host).wait()
        return self._of(host).is_set()

    async def wait(self) -> None:
        """Wait until somebody has come."""
        await self._of("").wait()

    def _take(self, sock: socket.socket, remote: Address) -> None:
        if remote[0] in self._kept or len(self._kept) >= ARRIVALS_MAX:
            reset_close(sock)
            return
        self._kept[remote[0]] = sock
        self._of(remote[0]).set()
        self._of("").set()

    def _of(self, host: str) -> asyncio.Event:
        return self._came.setdefault(host, asyncio.Event())


async def _let_dial(asker: _Asker, server: Address, arrivals: _Arrivals, *, is_brief: bool) -> Strangers:
    others = asker.control.others
    far, near = _numbers(others, server)
    near = None if is_brief else near

    async def gets_in(number: int | None) -> tuple[bool | None, str]:
        outcome = "" if number is None else await asker.outcome(number)
        if number is None or outcome not in _OUTCOMES:
            return None, outcome
        return outcome == "connected" and await arrivals.came_from(others[number][0]), outcome

    (is_far, far_outcome), (is_near, near_outcome) = await asyncio.gather(gets_in(far), gets_in(near))
    refusal = _OUTCOMES.get(far_outcome or near_outcome, "unknown")
    is_lost = refusal == "accept" and not (is_far or is_near)  # it was the router that took the connection
    return Strangers(_choose_filtering(is_far, is_near), "unknown" if is_lost else refusal, is_far)


async def crosses(server: Address, ttl: int) -> Crossing:
    """Find out whether our NATs let a SYN in that meets one of ours (RFC 5382 REQ-2).

    Only of a NAT that keeps one port for all destinations a no is one: another shows the server another port.

    Args:
        server: Numeric.
        ttl: With which our SYN leaves our NATs and gets no further.
    """
    with contextlib.suppress(P2PTunnelError, OSError):
        asker = await _Asker.open(server)
        try:
            far, near = _numbers(asker.control.others, server)
            number = near if far is None else far
            return Crossing() if number is None else await _meet(asker, number, ttl)
        finally:
            asker.close()
    return Crossing()


async def _meet(asker: _Asker, number: int, ttl: int) -> Crossing:
    target = asker.control.others[number]
    ours = Dial(asker.local, target, _leave_it, rng=_dice, low_ttl=ttl, redials=0)
    try:
        began = asyncio.get_running_loop().time()
        ours.connect()
        await asyncio.sleep(_SETTLE + asker.control.rtt)  # by then whoever it reached would have answered
        if ours.record.outcome is not None:
            return Crossing(has_died=False if ours.record.outcome in {"connected", "refused"} else None)
        outcome = await asker.outcome(number)
        return Crossing(has_met(outcome, asyncio.get_running_loop().time() - began), has_died=True)
    finally:
        ours.close()


def has_met(outcome: str, seconds: float) -> bool | None:
    """Return whether the server's SYN got in that met ours, by what became of it so many seconds after ours.

    Behind our SYN's repetition a connection shows nothing: on a busy machine that may leave as usual, and open the NAT itself.
    """
    if outcome == "connected":
        return True if seconds < SYN_REPEAT else None
    return False if outcome in {"refused", "silent"} else None


def _leave_it(_: Dial) -> None:
    """Do nothing: whether a dial has ended is looked at when it matters."""


async def hairpins_tcp(server: Address, own: frozenset[str]) -> bool | None:
    """As `hairpins_udp`, over TCP."""
    with contextlib.suppress(P2PTunnelError, OSError):
        asker = await _Asker.open(server)
        try:
            seen = asker.control.observed
            return (
                None if seen[0] in own or not own_candidates("tcp", seen, server) else await _reaches_itself(asker.local, seen)
            )
        finally:
            asker.close()
    return None


async def _reaches_itself(local: Address, seen: Address) -> bool:
    try:
        with _Arrivals(local) as arrivals:
            async with asyncio.timeout(_HAIRPIN):
                outside = await dial((local[0], 0), seen, rng=_dice, patience=_HAIRPIN, redials=0)
                try:
                    await arrivals.wait()  # what has answered may be the router itself: its own pages, say
                finally:
                    reset_close(outside)
    except (P2PTunnelError, TimeoutError):
        return False
    return True


def _any(server: Address) -> str:
    return "::" if ":" in server[0] else ANY_IPV4
