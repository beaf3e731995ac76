"""TCP on a punched port: the listener, and the dials of one attempt.

Rule: every socket of the port is made by `punch_socket`; one that says no SO_REUSEPORT blocks the port for all.

Source: docs/explanation/nat.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Literal, TypeAlias

from p2ptunnel.defaults import PUNCH_ACCEPT_PAUSE, PUNCH_MSS_BYTES, PUNCH_TIMEOUT, REDIALS_PER_PHASE
from p2ptunnel.errors import BindError
from p2ptunnel.net.dial import Dial, DialOutcome, DialRecord, dial, punch_socket
from p2ptunnel.net.interfaces import is_on_link
from p2ptunnel.net.sockets import ANY_IPV4, ANY_IPV6, can_open_low, family_of, is_loopback, limit_segments, reset_close
from p2ptunnel.net.watch import Watch
from p2ptunnel.protocol.machine import Entropy
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address, format_address

__all__ = [
    "Dial",
    "DialOutcome",
    "DialRecord",
    "Dialer",
    "How",
    "Listener",
    "can_open_low",
    "dial",
    "punch_socket",
    "reset_close",
]

How: TypeAlias = Literal["connect", "opener"]
"""How a dialled connection came up: after a plain SYN, or after one that died on the way and met the peer's."""

_BACKLOG: Final = 16
_BATCH: Final = 64  # accepted a wake-up
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """The one listener of a shared port; two would get the connections by the luck of a hash.

    Hands over every connection, non-blocking, whoever made it.  Closing resets those that nobody has accepted yet.
    """

    def __init__(
        self,
        local: Address,
        on_accepted: Callable[[socket.socket, Address], None],
        *,
        is_limited: bool = True,
        tracer: Tracer | None = None,
    ) -> None:
        """Listen on `local`, a numeric host and a port (0: a free one); `on_accepted` gets the socket and who it is from.

        Segments are limited as an MTU black hole asks for, unless `is_limited` is False: peers of ours limit their own side
        where they dial through routers, which binds both, and a peer on our link is spared it.

        Raises:
            BindError: The address is not ours, or a foreign socket has the port.
            InvalidAddressError: `local` is not numeric.
        """
        self._on_accepted = on_accepted
        self._trace = tracer or Tracer()
        self._loop = asyncio.get_running_loop()
        self._resume: asyncio.TimerHandle | None = None
        self._socket = _listening_socket(local)
        if not is_limited:
            limit_segments(self._socket, 0)
        self._watch = Watch(self._socket, self._accept)
        self.address: Final[Address] = self._socket.getsockname()[:2]

    def expect(self, hosts: Iterable[str]) -> None:
        """Tell from whom connections are expected from now on; until told, from peers behind routers.

        One peer on our link is enough to lift the limit that a MTU black hole asks for: a listener cannot have it for some
        connections only, it costs the near ones up to a third of their throughput, and peers of ours that dial through
        routers limit their side, which binds both.

        Args:
            hosts: Numeric.
        """
        is_limited = not is_loopback(self.address[0]) and not any(is_on_link(host) for host in hosts)
        limit_segments(self._socket, PUNCH_MSS_BYTES if is_limited else 0)

    def close(self) -> None:
        """Stop; closing twice is fine."""
        if self._resume is not None:
            self._resume.cancel()
        self._watch.stop()
        self._socket.close()

    def _accept(self) -> None:
        for _ in range(_BATCH):
            try:
                sock, remote = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:  # else it died in the queue, or the callback has closed us
                if error.errno in _EXHAUSTED:
                    self._pause(error)
                    return
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._on_accepted(sock, (remote[0], remote[1]))

    def _pause(self, error: OSError) -> None:
        """Leave the queue alone for a moment: the listener stays readable, so watching it on would spin."""
        self._trace("net", "accept_paused", address=format_address(self.address), reason=str(error.strerror))
        self._watch.stop()
        self._resume = self._loop.call_later(PUNCH_ACCEPT_PAUSE, self._go_on)

    def _go_on(self) -> None:
        self._watch = Watch(self._socket, self._accept)


def _listening_socket(local: Address) -> socket.socket:
    try:
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(punch_socket(local))
            sock.listen(_BACKLOG)
            undo.pop_all()
            return sock
    except OSError as error:
        raise BindError(format_address(local), error.strerror or str(error)) from error


class Dialer:
    """The dials of one attempt, all from one local port: a set for each phase."""

    def __init__(
        self,
        local: Address,
        on_connected: Callable[[socket.socket, Address, How], None],
        *,
        on_failed: Callable[[DialRecord], None] | None = None,
        rng: Entropy | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            local: Numeric host and port that every socket of the attempt shares; what goes to targets of the other family
                leaves from the same port.
            on_connected: Gets each connection that comes up, to own it; there may be several, from several targets.
            on_failed: Gets the record of each dial that ended by itself without a connection.
            rng: Draws the pauses after an RST.
            tracer: Told of the end of each dial.
        """
        self._local = local
        self._on_connected = on_connected
        self._on_failed = on_failed
        self._rng = rng or random.SystemRandom()
        self._trace = tracer or Tracer()
        self._running: list[Dial] = []
        self._added: list[Dial] = []
        self._ended: list[DialRecord] = []

    @property
    def records(self) -> tuple[DialRecord, ...]:
        """One record for each dial so far, those that have ended first."""
        return (*self._ended, *(running.record for running in (*self._running, *self._added)))

    def start(
        self,
        targets: Iterable[Address],
        *,
        low_ttl: int | None = None,
        hop_rtt: float = 0.0,
        patience: float = PUNCH_TIMEOUT,
        redials: int = REDIALS_PER_PHASE,
        is_added: bool = False,
    ) -> None:
        """Replace the dials that run by new ones to `targets`; the SYNs have left in that order when this returns.

        IPv4 and IPv6 do not replace each other: no targets at all are taken for the family that the dialer was made for.

        The new sockets are made before, so that a target is without one for the time of a system call: a peer's SYN that
        came in between would find the listener and be answered with another sequence number than NATs have seen.  A dial
        that the peer's SYN has met already goes on.

        Args:
            targets: Numeric addresses, best first.
            low_ttl: As for `Dial`, as the rest is.
            hop_rtt: Seconds.
            patience: Seconds; by default a dial waits until it is replaced or closed.
            redials: How many refusals are answered by another SYN.
            is_added: Whether those that run go on beside the new ones.
        """
        wanted = tuple(dict.fromkeys(targets))
        local = self._local_for(wanted)
        beside = [running for running in self._running if is_added or _other_family(running.target[0], local[0])]
        met = [running for running in self._running if running.is_half_open and running not in beside]
        old = {running.target: running for running in self._running if running not in (*beside, *met)}
        make = partial(Dial, rng=self._rng, low_ttl=low_ttl, hop_rtt=hop_rtt, patience=patience, redials=redials)
        met_targets = {running.target for running in met}
        new = [make(local, target, self._on_end) for target in wanted if target not in met_targets]
        self._running = [*beside, *met, *new]
        for starting in new:
            if starting.target in old:
                self._give_up(old.pop(starting.target))
            starting.connect()
        for left in old.values():
            self._give_up(left)

    def add(self, targets: Iterable[Address], *, patience: float) -> None:
        """Dial `targets`, all of one family, beside whatever else is dialled, now and later; who refuses is not dialled again.

        Args:
            targets: Numeric addresses; those that were added already go on.
            patience: Seconds.
        """
        known = {running.target for running in self._added}
        wanted = tuple(target for target in dict.fromkeys(targets) if target not in known)
        local = self._local_for(wanted)
        new = [Dial(local, target, self._on_end, rng=self._rng, patience=patience, redials=0) for target in wanted]
        self._added += new
        for starting in new:
            starting.connect()

    def _local_for(self, targets: tuple[Address, ...]) -> Address:
        """Return where SYNs to `targets`, all of one family, leave from."""
        if not targets or not _other_family(targets[0][0], self._local[0]):
            return self._local
        return (ANY_IPV6 if ":" in targets[0][0] else ANY_IPV4, self._local[1])

    def close(self) -> None:
        """Reset every dial that runs; connections handed over stay.  Closing twice is fine."""
        running, self._running, self._added = (*self._running, *self._added), [], []
        for left in running:
            self._give_up(left)

    def _give_up(self, running: Dial) -> None:
        running.close()
        self._note(running.record)

    def _on_end(self, ended: Dial) -> None:
        (self._added if ended in self._added else self._running).remove(ended)
        record = ended.record
        self._note(record)
        if record.outcome == "connected":
            self._on_connected(ended.take(), record.target, "connect" if record.low_ttl is None else "opener")
        elif self._on_failed is not None:
            self._on_failed(record)

    def _note(self, record: DialRecord) -> None:
        self._ended.append(record)
        self._trace(
            "net",
            "dial_ended",
            target=format_address(record.target),
            low_ttl=record.low_ttl,
            outcome=record.outcome,
            reason=record.reason,
        )


def _other_family(host: str, local: str) -> bool:
    """Tell whether sockets at `local` cannot reach `host` but sockets of the other family could."""
    return family_of(host) not in (None, family_of(local))
