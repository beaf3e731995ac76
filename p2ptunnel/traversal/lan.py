"""Peers in one network, without a server: the side that announces itself and is called, and the side that finds it and calls.

What `Call` and `AnsweringPort` are with a server, `LanCall` and `LanAnswerer` are without one.  A race may own a `LanCall`: it
gates nothing and leaves nothing behind.  Who may come is settled in the channel alone, since nobody signs anything before.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, Generic, TypeAlias, TypeVar

from p2ptunnel.abc import Pipe
from p2ptunnel.defaults import LAN_DIAL_PATIENCE, LAN_GRACE, PENDING_CONNECTIONS, PREAMBLE_TIMEOUT
from p2ptunnel.errors import (
    ChannelClosedError,
    ChannelError,
    DialError,
    NoPathError,
    P2PTunnelError,
    PeerKeyChangedError,
    PeerNotNearError,
)
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.net.dial import dial
from p2ptunnel.net.lan import Lan
from p2ptunnel.net.sockets import ANY_IPV4
from p2ptunnel.net.tcp import Listener, reset_close
from p2ptunnel.net.udp import UdpDriver
from p2ptunnel.protocol.lan import LanCaller, LanExhausted, LanPort, LanReached
from p2ptunnel.protocol.machine import Event
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.tcp import TcpPipe, read_preamble
from p2ptunnel.traversal.call import Abortable, Establish
from p2ptunnel.traversal.port import take_number
from p2ptunnel.traversal.report import path_of
from p2ptunnel.traversal.tries import Outcome, Tries, Trying
from p2ptunnel.types import Address, Tag, format_address

__all__ = ["AdmitLan", "LanAnswerer", "LanCall", "beside"]

AdmitLan: TypeAlias = Callable[[Pipe, str], Awaitable[None]]
"""Makes a channel on a pipe: `(pipe, selector in hex)`; anybody who is admitted may come.  Raises an error of ours if not."""

T = TypeVar("T", bound=Abortable)
_dice: Final = random.SystemRandom()


class LanAnswerer:
    """A port of UDP and TCP that is announced in our own network, and what comes up on it.

    Args:
        lan: Started by its owner, who closes it.
        key: Ours.
        admit: Makes a channel of a connection.
        on_loopback: Answer on loopback, too: a test.
        tracer: Told of connections, and of strangers that were cut off.
    """

    def __init__(
        self, lan: Lan, key: PublicKey, admit: AdmitLan, *, on_loopback: bool = False, tracer: Tracer | None = None
    ) -> None:
        self._lan: Final = lan
        self._key: Final = key
        self._admit: Final = admit
        self._trace: Final = tracer or Tracer()
        self._port: Final = LanPort(key, b"", _dice, on_loopback=on_loopback)
        self._greetings: Final[dict[asyncio.Task[None], str]] = {}
        self._close_sockets = contextlib.ExitStack()

    def start(self) -> Address:
        """Answer, and announce it; return the local address.

        Raises:
            BindError: No port can be had.
        """
        with contextlib.ExitStack() as undo:
            udp, reserved = take_number(ANY_IPV4, self._trace)
            undo.callback(reserved.close)
            driver = UdpDriver(self._port, udp, lambda _: None)
            undo.callback(driver.close)
            undo.callback(Listener(udp.address, self._greet_soon, is_limited=False, tracer=self._trace).close)
            driver.start()
            self._close_sockets = undo.pop_all()
        self._lan.announce(self._key, udp.address[1], self._take_salt)
        return udp.address

    async def close(self) -> None:
        """Answer nobody any more, and wait for the end of what is under way; closing twice is fine."""
        self.abort()
        await asyncio.gather(*self._greetings, return_exceptions=True)

    def abort(self) -> None:
        """Answer nobody any more, at once."""
        self._lan.withdraw()
        self._close_sockets.close()
        for greeting in self._greetings:
            greeting.cancel()

    def _take_salt(self, salt: bytes) -> None:
        self._port.salt = salt

    def _greet_soon(self, sock: socket.socket, remote: Address) -> None:
        host = remote[0]
        pending = sum(other == host for other in self._greetings.values())
        if pending >= min(self._port.waiting_for(host, time.monotonic()), PENDING_CONNECTIONS):
            self._trace("lan", "stranger_cut_off", remote=format_address(remote))
            reset_close(sock)
            return
        pipe = TcpPipe(sock, path_of(sock, remote, "accept"))
        greeting = asyncio.create_task(self._greet(pipe, sock, remote))
        self._greetings[greeting] = host
        greeting.add_done_callback(self._greetings.pop)
        greeting.add_done_callback(lambda _: pipe.abort())  # also of one that was cancelled before it began

    async def _greet(self, pipe: TcpPipe, sock: socket.socket, remote: Address) -> None:
        try:
            async with asyncio.timeout(PREAMBLE_TIMEOUT):
                selector = await read_preamble(sock, PREAMBLE_TIMEOUT)
                if not self._port.matches(selector, remote[0], time.monotonic()):
                    raise ChannelClosedError("us: a preamble with no conkey of ours")
                await self._admit(pipe, selector.hex())
        except (P2PTunnelError, OSError) as error:  # TimeoutError among them
            reason = str(error) or f"not admitted in {PREAMBLE_TIMEOUT:g} s"
            self._trace("lan", "connection_refused", remote=format_address(remote), reason=reason)
        else:
            self._port.spend(selector)


class LanCall(Generic[T]):
    """One attempt to reach a peer in our own network.

    Args:
        lan: Started by its owner, who closes it.
        key: The callee's, as it is pinned.
        tag: Its name, for errors.
        establish: Makes a channel, as for `Call`.  ChannelError, OSError and PeerKeyChangedError let the next address try:
            whoever answers in another's name costs nothing but time.  What else it raises ends the call.
        tries: Noted in there what is tried.
        tracer: Told what happens.
    """

    def __init__(
        self,
        lan: Lan,
        key: PublicKey,
        tag: Tag,
        establish: Establish[T],
        *,
        tries: Tries | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._lan: Final = lan
        self._key: Final = key
        self._tag: Final = tag
        self._establish: Final = establish
        self._trace: Final = tracer or Tracer()
        self._tries: Final = tries or Tries()
        self._noted: Final[dict[Address, Trying]] = {}
        self._agent: Final = LanCaller(key, _dice)
        self._driver: UdpDriver | None = None
        self._result: Final[asyncio.Future[T]] = asyncio.get_running_loop().create_future()
        self._meetings: Final[set[asyncio.Task[None]]] = set()
        self._broken: Final[dict[Address, str]] = {}

    async def run(self) -> T:
        """Find the peer, connect; return what `establish` made.

        Cancelling leaves no socket and no task.

        Raises:
            PeerNotNearError: Nobody who bears its mark has been found in 4 s.
            NoPathError: Somebody was, and no address led to it; its `attempts` name each.
            BindError: No port can be had.
            P2PTunnelError: What `establish` raised.
        """
        try:
            await self._find_and_meet()
            await self._end_meetings()
        except asyncio.CancelledError:
            await self._end_meetings()
            if not self._result.cancelled() and self._result.exception() is None:
                self._result.result().abort("cancelled")  # it came up in the very turn in which nobody wanted it any more
            raise
        return self._result.result()

    async def _find_and_meet(self) -> None:
        """Wait for the result, whatever it is."""
        udp, reserved = take_number(ANY_IPV4, self._trace)
        self._driver = UdpDriver(self._agent, udp, self._on_event)
        self._looking = self._tries.begin("lan", "question to all by multicast")
        try:
            self._driver.start()
            self._agent.start(time.monotonic())
            self._driver.wake()
            with self._tries.working(), self._lan.finding(self._key, self._on_found):
                await asyncio.wait({self._result})
        finally:
            self._result.cancel()
            self._end_entries("given up", "given up")
            self._driver.close()
            reserved.close()

    async def _end_meetings(self) -> None:
        for meeting in self._meetings:
            meeting.cancel()
        await asyncio.gather(*self._meetings, return_exceptions=True)

    # --- whom there is ------------------------------------------------------------------------------------------------

    def _on_found(self, salt: bytes, near: tuple[Address, ...], far: tuple[Address, ...]) -> None:
        self._trace("lan", "found", addresses=[format_address(address) for address in (*near, *far)])
        self._looking.end("answered", "its mark is announced")
        self._agent.found(salt, near, far, time.monotonic())
        for address in (target.address for target in self._agent.targets):
            if address not in self._noted:
                self._noted[address] = self._tries.begin("lan", "t=31", remote=address, kind="host")
        self._wake()

    def _on_event(self, event: Event) -> None:
        self._trace("lan", type(event).__name__, **event.facts())
        match event:
            case LanReached():
                self._noted[event.address].end("answered", "somebody who knows the peer's key")
                meeting = asyncio.create_task(self._meet(event))
                self._meetings.add(meeting)
                meeting.add_done_callback(self._on_met)
            case LanExhausted():
                self._looking.end("silent", self._lan.trouble or "nobody announces its mark")
                self._end_entries("silent", "announced, but does not answer")
                self._fail(self._error())
            case _:
                pass

    def _end_entries(self, outcome: Outcome, reason: str) -> None:
        for entry in (self._looking, *self._noted.values()):
            entry.end(outcome, reason)

    def _error(self) -> P2PTunnelError:
        found = dict.fromkeys((target.address for target in self._agent.targets), "announced, but does not answer")
        lines = (f"{format_address(address)} {text}" for address, text in {**found, **self._broken}.items())
        return NoPathError(self._tag, tuple(lines)) if found else PeerNotNearError(self._tag, self._lan.trouble)

    def _wake(self) -> None:
        assert self._driver is not None
        self._driver.wake()

    # --- connecting ---------------------------------------------------------------------------------------------------

    async def _meet(self, reached: LanReached) -> None:
        """Connect where somebody answered; who that is shows only now."""
        try:
            with self._tries.begin("lan", "SYN", remote=reached.address, kind="host"):
                made = await self._channel(reached)
        except (ChannelError, PeerKeyChangedError, DialError, OSError) as error:
            self._broken[reached.address] = f"answered: {error}"
            self._trace("lan", "meeting_failed", remote=format_address(reached.address), reason=str(error))
            self._agent.meeting_failed(reached.address, time.monotonic())
            self._wake()
        except P2PTunnelError as error:
            self._fail(error)
        else:
            self._succeed(made)

    async def _channel(self, reached: LanReached) -> T:
        assert self._driver is not None
        sock = await dial(self._driver.udp.address, reached.address, rng=_dice, patience=LAN_DIAL_PATIENCE)
        pipe = TcpPipe(sock, path_of(sock, reached.address, "connect", reached.rtt))
        try:
            return await self._establish(pipe, reached.selector, self._key)
        finally:
            pipe.abort()  # unless a transport has it

    def _on_met(self, meeting: asyncio.Task[None]) -> None:
        """Hand a bug in `establish` to whoever waits for the call, rather than to nobody."""
        self._meetings.discard(meeting)
        if not meeting.cancelled() and (error := meeting.exception()) is not None and not self._result.done():
            self._result.set_exception(error)

    def _succeed(self, made: T) -> None:
        if not self._result.done():
            self._result.set_result(made)
        elif self._result.cancelled() or self._result.exception() is not None or self._result.result() is not made:
            made.abort("too late")

    def _fail(self, error: P2PTunnelError) -> None:
        if not self._result.done():
            self._result.set_exception(error)


async def beside(call: Coroutine[Any, Any, T], near: Coroutine[Any, Any, T]) -> T:
    """Return what comes up first: a call with a server's help, or one in our own network; the other one is ended.

    Both may make the very same thing: a session that has got a second channel.  Where both fail, the error of the one with a
    server is raised: it knows more.  It waits a little for the other one.
    """
    calling, finding = asyncio.ensure_future(call), asyncio.ensure_future(near)
    try:
        winner = await _first(calling, finding)
    except asyncio.CancelledError:
        await _end(calling, finding)
        raise
    try:
        kept = winner.result() if winner.exception() is None else None
        await _end(finding if winner is calling else calling, kept=kept)
    except asyncio.CancelledError:
        await _end(winner)
        raise
    return winner.result()


async def _first(calling: asyncio.Future[T], finding: asyncio.Future[T]) -> asyncio.Future[T]:
    """Wait until it is settled which of the two counts; return it, which is done."""
    await asyncio.wait({calling, finding}, return_when=asyncio.FIRST_COMPLETED)
    if not calling.done() and finding.exception() is not None:
        await asyncio.wait({calling})
    elif calling.done() and calling.exception() is not None:
        await asyncio.wait({finding}, timeout=LAN_GRACE)
    return finding if finding.done() and finding.exception() is None else calling


async def _end(*calls: asyncio.Future[T], kept: T | None = None) -> None:
    """Cancel calls, and end what they have made by then, unless it is what is kept."""
    for call in calls:
        call.cancel()
    for made in await asyncio.gather(*calls, return_exceptions=True):
        if not isinstance(made, BaseException) and made is not kept:
            made.abort("too late")
