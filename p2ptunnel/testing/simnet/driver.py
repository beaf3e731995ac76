"""Runs a machine on the network in memory, as `net.udp` runs it on a socket; and the rendezvous server, which needs no more."""

from __future__ import annotations

from typing import Final

from p2ptunnel.identity.judge import Judge
from p2ptunnel.protocol.broker import Broker
from p2ptunnel.protocol.machine import Event, Hole, Machine
from p2ptunnel.testing.simnet.network import TTL, Host, Network
from p2ptunnel.types import Address, Tag
from p2ptunnel.wire.messages import Observed, RegisterExtra

__all__ = ["Credentials", "Driver", "SimServer"]

_SECRET: Final = b"a secret of sixteen bytes or more"


class Driver:
    """Runs one machine on one host: its datagrams, its timer, its events.

    After calling a method of the machine directly, call `flush` so that what it wants done is done.

    Attributes:
        network: Where the host is.
        host: Where the machine runs.
        opener_ttl: TTL of what must die on the way.
    """

    def __init__(self, machine: Machine, network: Network, host: Host, *, ttl_error: int = 0, port: int | None = None) -> None:
        """Take what arrives at `host` over UDP, or at another `port` of it."""
        self.network = network
        self.host = host
        self.opener_ttl = host.routers + 1 + ttl_error
        self._machine = machine
        self._clock = network.clock
        self._wake_at: float | None = None
        self._port = port
        if port is None:
            host.receive_udp = self._receive
        else:
            host.more_udp[port] = self._receive

    def flush(self) -> None:
        """Do what the machine wants done: events first, since SYNs leave before datagrams."""
        machine = self._machine
        for event in machine.events():
            self._handle(event)
        for datagram in machine.datagrams_to_send():
            ttl = self.opener_ttl if datagram.opener else TTL
            source_port = self._port if datagram.hole is None else self.port_of(datagram.hole)
            self.network.send_udp(self.host, datagram.data, datagram.destination, ttl=ttl, source_port=source_port)
        deadline = machine.next_deadline()
        if deadline is not None and (self._wake_at is None or deadline < self._wake_at):
            self._wake_at = deadline
            self._clock.call_at(deadline, self._wake)

    def port_of(self, hole: Hole) -> int | None:
        """Return the inside port of a hole over UDP; a server has none."""

    def _receive(self, data: bytes, source: Address) -> None:
        self._machine.receive_datagram(data, source, self._clock.now)
        self.flush()

    def _wake(self) -> None:
        self._wake_at = None
        self._machine.handle_timer(self._clock.now)
        self.flush()

    def _handle(self, event: Event) -> None:
        """Take note of an event; a server's events ask for nothing."""


class Credentials:
    """Signs registrations with words that `SimServer` believes and nobody else."""

    def __init__(self, key: str) -> None:
        """Sign as `key`."""
        self.server_key = ""
        self._key = key
        self._ts = 0

    def register_extra(self, *, cookie: str, server_key: str, at_least_ts: int) -> RegisterExtra:
        """Return a body whose `ts` is above all before."""
        self._ts = max(self._ts, at_least_ts) + 1
        return RegisterExtra(v=1, key=self._key, ts=self._ts, sig=f"by {self._key}", cookie=cookie)

    def is_proven(self, answer: Observed) -> bool:
        """Believe every server."""
        return True


class _Believing(Judge):
    """Believes those words."""

    def is_signed(self, tag: Tag, extra: RegisterExtra) -> bool:
        """Tell whether they name the key."""
        return extra.sig == f"by {extra.key}"


class SimServer(Driver):
    """The rendezvous server.

    Attributes:
        broker: The real one.
    """

    def __init__(self, network: Network, host: Host, *, compat_seed: bool = False) -> None:
        """Open it on `host`."""
        self.broker = Broker(_SECRET, network.random, _Believing(), compat_seed=compat_seed)
        super().__init__(self.broker, network, host)
