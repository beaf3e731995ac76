"""One target of hole punching: SYNs from a shared local port until a connection is up or the target is hopeless.

Rule: a socket in SYN_SENT takes the peer's SYN, so one that is given up is reset and closed at once, in the same tick,
and never merely forgotten.  Nothing here awaits between a SYN and that.

Source: docs/explanation/nat.md.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

import msgspec

from p2ptunnel.defaults import PUNCH_MSS_BYTES, PUNCH_TIMEOUT, REDIAL_MAX, REDIAL_MIN, REDIALS_PER_PHASE
from p2ptunnel.errors import DialError, InvalidAddressError
from p2ptunnel.net.interfaces import is_on_link
from p2ptunnel.net.low import LowConnect
from p2ptunnel.net.sockets import (
    family_of,
    is_half_open,
    is_loopback,
    is_sendable,
    limit_segments,
    prefer_lasting,
    progress,
    reset_close,
    share_port,
)
from p2ptunnel.net.watch import Watch
from p2ptunnel.protocol.machine import Entropy
from p2ptunnel.types import Address, format_address

__all__ = ["Dial", "DialOutcome", "DialRecord", "dial", "punch_socket"]

DialOutcome: TypeAlias = Literal["connected", "silent", "refused", "taken", "burnt", "dead", "replaced"]
"""How a dial ended.

connected: up, by either way of opening.  silent: no answer.  refused: by RST, each time.  taken: the listener has this
pair of addresses, maybe half open: wait for it to accept.  burnt: the local port is a foreign socket's.  dead: no route, a
local firewall, no address.  replaced: by the next phase, or closed.
"""

_UNDER_WAY: Final = frozenset({0, errno.EINPROGRESS, errno.EWOULDBLOCK})
_REFUSALS: Final = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED})
_SOFT_ERROR_PAUSE: Final = 0.01  # seconds; the socket stays writable, so watching it on would spin


class DialRecord(msgspec.Struct, frozen=True):
    """What became of one dial, for `explain`; times are the loop's seconds, `ended` None while under way.

    port: The local one, 0 if it is not told.
    """

    target: Address
    low_ttl: int | None
    started: float
    ended: float | None
    outcome: DialOutcome | None
    reason: str
    port: int = 0


def punch_socket(local: Address, remote: Address | None = None) -> socket.socket:
    """Return a non-blocking TCP socket, bound to a port that others of ours share, neither connected nor listening.

    Args:
        local: A numeric host and a port, 0 for a free one.
        remote: Where it will connect; the small MSS that survives an MTU black hole is left out for on-link addresses.

    Raises:
        InvalidAddressError: `local` is not numeric.
        OSError: EADDRINUSE: a foreign socket has the port; EADDRNOTAVAIL: the address is not ours.
    """
    host, port = local
    family = family_of(host)
    if family is None or not 0 <= port <= 65535:
        raise InvalidAddressError(format_address(local))
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        share_port(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not is_loopback(host) and not (remote and is_on_link(remote[0])):
            limit_segments(sock, PUNCH_MSS_BYTES)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            prefer_lasting(sock)
        sock.bind(local)
    except OSError:
        sock.close()
        raise
    return sock


class Dial:
    """One phase of one target, without a task: driven by the loop's callbacks, so closing it is immediate.

    The constructor makes the socket, `connect` sends the first SYN; `on_end` is called once, in a later turn, unless `close`
    comes before.  A socket that is up belongs to the dial until `take`.
    """

    def __init__(
        self,
        local: Address,
        target: Address,
        on_end: Callable[[Dial], None],
        *,
        rng: Entropy,
        low_ttl: int | None = None,
        hop_rtt: float = 0.0,
        patience: float = PUNCH_TIMEOUT,
        redials: int = REDIALS_PER_PHASE,
    ) -> None:
        """Make the socket.

        Args:
            local: Numeric host and shared port to dial from.
            target: Numeric; anything else ends as `dead`.
            on_end: Called with this dial when it has ended by itself.
            rng: Draws the pauses after an RST.
            low_ttl: TTL of SYNs that shall die on the way, None for plain ones.
            hop_rtt: Seconds to where they die and back; only IPv6 needs it.
            patience: Seconds until the dial ends as `silent` or `refused`.
            redials: How many refusals are answered by another SYN.
        """
        self.target = target
        self.low_ttl = low_ttl
        self._local = local
        self._on_end = on_end
        self._rng = rng
        self._hop_rtt = hop_rtt
        self._patience = patience
        self._redials = redials
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._ended: float | None = None
        self._outcome: DialOutcome | None = None
        self._reason = ""
        self._tries = 0
        self._watch: Watch | None = None
        self._low: LowConnect | None = None
        self._timer: asyncio.Handle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = None
        self._socket = self._new_socket()

    @property
    def record(self) -> DialRecord:
        """What has become of it so far."""
        return DialRecord(self.target, self.low_ttl, self._started, self._ended, self._outcome, self._reason, self._local[1])

    @property
    def is_half_open(self) -> bool:
        """The peer's SYN is here: to begin anew would throw away a hole that is open."""
        return self._socket is not None and is_half_open(self._socket)

    def connect(self) -> None:
        """Send the first SYN, before returning."""
        if self._outcome is None:
            self._deadline = self._loop.call_later(self._patience, self._expire)
            self._send_syn()

    def take(self) -> socket.socket:
        """Hand over the socket that is up."""
        sock, self._socket = self._socket, None
        assert sock is not None
        return sock

    def close(self) -> None:
        """Give up, now: timers gone, the socket reset and closed unless it was taken; closing twice is fine."""
        if self._outcome is None:
            self._conclude("replaced", "given up")
        if self._timer is not None:
            self._timer.cancel()
        self._drop_socket()

    def _new_socket(self) -> socket.socket | None:
        try:
            return punch_socket(self._local, self.target)
        except OSError as error:
            burnt = error.errno == errno.EADDRINUSE
            self._end("burnt" if burnt else "dead", os.strerror(error.errno or 0))
            return None

    def _send_syn(self) -> None:
        sock = self._socket = self._socket or self._new_socket()
        if sock is None:
            return
        if not is_sendable(self.target, sock.family):
            self._end("dead", "no address that this socket can reach")
            return
        self._tries += 1
        error = self._connect_ex(sock)
        if error in _UNDER_WAY:
            self._wait()
        elif error in _REFUSALS:
            self._refused(error)
        elif error == errno.EADDRNOTAVAIL:
            self._end("taken", "the listener has this pair of addresses already")
        else:
            self._end("dead", os.strerror(error))

    def _connect_ex(self, sock: socket.socket) -> int:
        try:
            if self.low_ttl is None:
                return sock.connect_ex(self.target)
            self._low = LowConnect(self._loop, sock, self.low_ttl, self._hop_rtt)
            return self._low.connect(self.target)
        except OSError as error:  # no such option here; or an IPv6 zone that does not exist, with a resolver's number
            return error.errno if error.errno and error.errno > 0 else errno.EINVAL

    def _wait(self) -> None:
        assert self._socket is not None
        self._watch = Watch(self._socket, self._check, for_writing=True)

    def _check(self) -> None:
        assert self._socket is not None
        state, error = progress(self._socket)
        if state == "up":
            self._end("connected", f"SYN {self._tries}")
        elif state == "closed":
            self._refused(error or errno.ECONNRESET)
        else:
            self._unwatch()
            self._timer = self._loop.call_later(_SOFT_ERROR_PAUSE, self._wait)

    def _refused(self, error: int) -> None:
        self._drop_socket()  # a refused one is spent
        self._reason = os.strerror(error) + (f", {self._tries} times" if self._tries > 1 else "")
        if self._tries > self._redials:
            self._end("refused", self._reason)
        else:
            pause = REDIAL_MIN + (REDIAL_MAX - REDIAL_MIN) * self._rng.random()
            self._timer = self._loop.call_later(pause, self._send_syn)

    def _expire(self) -> None:
        if self._socket is None:  # in the pause after a refusal
            self._end("refused", self._reason)
        else:
            self._end("silent", f"no answer in {self._patience:g} s")

    def _end(self, outcome: DialOutcome, reason: str) -> None:
        self._conclude(outcome, reason)
        self._timer = self._loop.call_soon(self._on_end, self)

    def _conclude(self, outcome: DialOutcome, reason: str) -> None:
        self._outcome, self._reason, self._ended = outcome, reason, self._loop.time()
        for timer in (self._timer, self._deadline):
            if timer is not None:
                timer.cancel()
        if outcome == "connected":
            self._release_socket()
        else:
            self._drop_socket()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _release_socket(self) -> None:
        """Leave the socket as any other, before it is closed or handed over."""
        self._unwatch()
        if self._low is not None:
            self._low.stop()
            self._low = None

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._release_socket()
            reset_close(self._socket)
            self._socket = None


async def dial(
    local: Address,
    target: Address,
    *,
    rng: Entropy,
    low_ttl: int | None = None,
    hop_rtt: float = 0.0,
    patience: float = PUNCH_TIMEOUT,
    redials: int = REDIALS_PER_PHASE,
) -> socket.socket:
    """Return a connected, non-blocking socket from `local` to `target`; the arguments are those of `Dial`.

    Cancelled, it leaves no socket: what there was has been reset before the cancellation goes on.

    Raises:
        DialError: It ended without a connection; its `outcome` is a `DialOutcome`.
    """
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_end(_: Dial) -> None:
        if not ended.done():
            ended.set_result(None)

    attempt = Dial(local, target, on_end, rng=rng, low_ttl=low_ttl, hop_rtt=hop_rtt, patience=patience, redials=redials)
    try:
        attempt.connect()
        await ended
        record = attempt.record
        if record.outcome != "connected":
            raise DialError(format_address(target), str(record.outcome), record.reason)
        return attempt.take()
    finally:
        attempt.close()
