"""Drives the relay's circuits: the connections of their ends, and the clock by which they end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import socket
import time
from typing import Final

from p2ptunnel.defaults import RELAY_BUFFER_BYTES, UNSENT_MAX_BYTES
from p2ptunnel.net.sockets import keep_alive, limit_unsent, reset_close
from p2ptunnel.protocol.relay import CircuitEnded, EndReason, Relay
from p2ptunnel.server.flow import Flow, WaitingEnd
from p2ptunnel.trace import Tracer

__all__ = ["RelayDriver"]

_BY_RESET: Final[frozenset[str]] = frozenset({"an end does not read", "an end was lost"})
"""Where what the kernel still holds must not wait for a reader, or an error must be one for the other end, too."""


class RelayDriver:
    """The connections of one relay, each from `join` on."""

    def __init__(self, relay: Relay, trace: Tracer) -> None:
        self._relay = relay
        self._trace = trace
        self._buffer = memoryview(bytearray(RELAY_BUFFER_BYTES))
        self._waiting: dict[int, WaitingEnd] = {}  # by circuit, as the flows
        self._flows: dict[int, tuple[Flow, Flow]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def join(self, number: int, role: str, sock: socket.socket, early: bytes) -> None:
        """Take over the connection of an end; with the second one of a circuit, bytes cross.

        Args:
            number: Of a circuit that the relay has let this end into.
            role: Which end it is.
            sock: Non-blocking; its answer has been sent.
            early: What has been read from it behind its t=6.
        """
        with contextlib.suppress(OSError):  # it is lost already: reading tells
            keep_alive(sock)
            limit_unsent(sock, UNSENT_MAX_BYTES)
        end = WaitingEnd(sock, role, early, functools.partial(self.end, number))
        other = self._waiting.pop(number, None)
        if other is None:
            self._waiting[number] = end
        else:
            self._open(number, other, end)
        self._arm()

    def _open(self, number: int, first: WaitingEnd, second: WaitingEnd) -> None:
        flows = self._flows[number] = (self._flow(number, first, second), self._flow(number, second, first))
        for flow in flows:
            if number in self._flows:  # else what the first end has sent already has found the second one lost
                flow.start()

    def _flow(self, number: int, source: WaitingEnd, sink: WaitingEnd) -> Flow:
        source.stop()
        circuit, on_ended = self._relay.circuits[number], functools.partial(self._on_ended, number)
        return Flow(self._relay, circuit, source.source, sink.source, sink.role, source.early, self._buffer, on_ended)

    def end(self, number: int, why: EndReason) -> None:
        """End a circuit that has not ended."""
        self._close(self._relay.end(self._relay.circuits[number], why))

    def close(self) -> None:
        """End every circuit; closing twice is fine."""
        for number in tuple(self._relay.circuits):
            self.end(number, "the relay closed")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_ended(self, number: int, why: EndReason | None) -> None:
        if why is not None:
            self.end(number, why)
        elif all(flow.is_done for flow in self._flows[number]):
            self.end(number, "both ends closed")

    def _close(self, ended: CircuitEnded) -> None:
        self._trace("server", "CircuitEnded", **ended.facts())
        waiting = self._waiting.pop(ended.circuit, None)
        ends = self._flows.pop(ended.circuit, ()) if waiting is None else (waiting,)
        for end in ends:
            end.stop()
        for end in ends:
            if ended.why in _BY_RESET:
                reset_close(end.source)
            else:
                end.source.close()

    def _arm(self) -> None:
        deadline = self._relay.next_deadline()
        if self._timer is None and deadline is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, deadline - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        for flow in itertools.chain.from_iterable(self._flows.values()):
            flow.look(now)
        for ended in self._relay.handle_timer(now):
            self._close(ended)
        self._arm()
