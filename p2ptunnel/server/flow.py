"""The connections of a circuit: one end that waits for the other, and then one direction each.

Rule: nothing is taken out of a source before the sink has it.  What the sink does not take stays in the source's kernel, which
then stops its writer; so a circuit that is open holds no bytes of its own, however many stand still.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Final

from p2ptunnel.defaults import RELAY_EARLY_BYTES
from p2ptunnel.net.sockets import LINUX, unacknowledged_bytes
from p2ptunnel.net.watch import Watch
from p2ptunnel.protocol.relay import Circuit, EndReason, Relay

__all__ = ["Flow", "WaitingEnd"]

_NOT_NOW: Final = (BlockingIOError, InterruptedError)
_DROP: Final = socket.MSG_TRUNC if LINUX else 0  # takes bytes out of a TCP socket without copying them


class WaitingEnd:
    """The connection of the end that came first; a little of what it sends is held, so that it is seen if it leaves.

    Args:
        source: Non-blocking; whoever made this closes it, after `stop`.
        role: Which end it is.
        early: What has been read from it already.
        on_left: Called when it leaves.
    """

    def __init__(self, source: socket.socket, role: str, early: bytes, on_left: Callable[[EndReason], None]) -> None:
        self.source: Final = source
        self.role: Final = role
        self.early = early
        self._on_left = on_left
        self._watch: Watch | None = Watch(source, self._on_readable) if len(early) < RELAY_EARLY_BYTES else None

    def stop(self) -> None:
        """Watch the connection no more; stopping twice is fine."""
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _on_readable(self) -> None:
        try:
            data = self.source.recv(RELAY_EARLY_BYTES - len(self.early))
        except _NOT_NOW:
            return
        except OSError:
            data = b""
        if not data:
            self._on_left("an end left before the other came")
            return
        self.early += data
        if len(self.early) >= RELAY_EARLY_BYTES:
            self.stop()


class Flow:
    """One direction: what comes from `source` goes to `sink`.

    Args:
        relay: Knows what the circuit may carry.
        circuit: Which one.
        source: Non-blocking; whoever made the flow closes it, after `stop`.
        sink: The same, of the other end.
        sink_role: Which end that is.
        early: What has been read from the source already.
        buffer: To look at bytes in; free again when a call returns.
        on_ended: Called without a reason when the source has ended and the sink knows, and else why the circuit must end;
            the flow does nothing more after that.

    Attributes:
        is_done: Whether the source has ended and the sink knows.
    """

    def __init__(
        self,
        relay: Relay,
        circuit: Circuit,
        source: socket.socket,
        sink: socket.socket,
        sink_role: str,
        early: bytes,
        buffer: memoryview,
        on_ended: Callable[[EndReason | None], None],
    ) -> None:
        self.source: Final = source
        self.is_done = False
        self._relay = relay
        self._circuit = circuit
        self._sink = sink
        self._sink_role = sink_role
        self._early = memoryview(early)
        self._buffer = buffer
        self._on_ended = on_ended
        self._queued_bytes: int | None = None  # in the sink's kernel, when looked at last
        self._reading: Watch | None = None
        self._writing: Watch | None = None

    def start(self) -> None:
        """Carry what has been read already, and whatever comes."""
        if self._early:
            self._carry()
        else:
            self._watch_source()

    def stop(self) -> None:
        """Watch the sockets no more; stopping twice is fine."""
        for watch in (self._reading, self._writing):
            if watch is not None:
                watch.stop()
        self._reading = self._writing = None

    def look(self, now: float) -> None:
        """See whether the other end acknowledges anything while bytes wait for it.

        A slow path frees room in the kernel more rarely than a reader is given time to take some.
        """
        if self._writing is None:
            return
        before, self._queued_bytes = self._queued_bytes, unacknowledged_bytes(self._sink)
        if before is not None and self._queued_bytes is not None and self._queued_bytes < before:
            self._relay.blocked(self._circuit, self._sink_role, now)

    def _carry(self) -> None:
        """Carry what there is, as far as it may be and as the sink takes it."""
        now = time.monotonic()
        room = self._relay.room(self._circuit, now)
        try:
            waiting = self._early or self._seen(max(room, 1))  # without room it only matters whether there is more
            taken = self._taken(waiting[:room])
        except _NOT_NOW:
            return
        except OSError:
            self._on_ended("an end was lost")
            return
        if not waiting:
            self._pass_end()
            return
        self._relay.carried(self._circuit, taken, now)
        if taken < min(room, len(waiting)):
            self._watch_sink(now, has_taken=taken > 0)
        elif self._early or not room:
            self._on_ended("the quota is used up")
        else:
            self._watch_source()

    def _seen(self, limit: int) -> memoryview:
        """Return what waits in the source, nothing at its end; it stays there."""
        return self._buffer[: self.source.recv_into(self._buffer, min(limit, len(self._buffer)), socket.MSG_PEEK)]

    def _taken(self, data: memoryview) -> int:
        """Return how much the sink takes, which is gone from where it was."""
        if not data:
            return 0
        try:
            taken = self._sink.send(data)
        except _NOT_NOW:
            return 0
        if self._early:
            self._early = self._early[taken:]
        else:
            self.source.recv_into(self._buffer, taken, _DROP)
        return taken

    def _watch_source(self) -> None:
        if self._reading is None:
            self.stop()
            self._reading = Watch(self.source, self._carry)
            self._relay.unblocked(self._circuit, self._sink_role)

    def _watch_sink(self, now: float, *, has_taken: bool) -> None:
        if self._writing is None:
            self.stop()
            self._writing = Watch(self._sink, self._carry, for_writing=True)
            self._queued_bytes, has_taken = None, True
        if has_taken:
            self._relay.blocked(self._circuit, self._sink_role, now)

    def _pass_end(self) -> None:
        self.stop()
        try:
            self._sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._on_ended("an end was lost")
        else:
            self.is_done = True
            self._on_ended(None)
