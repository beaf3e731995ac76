"""The rendezvous service: UDP and TCP on one port around the broker, and an observer on every other address.

As a program: `p2ptunnel rendezvous`.  Inside a program: `async with Rendezvous(("127.0.0.1", 0)) as server: server.address`.
"""

from __future__ import annotations

import abc
import asyncio
import random
import secrets
import time
from collections import Counter
from collections.abc import Container, Sequence
from types import TracebackType
from typing import Final, Self

import msgspec

from p2ptunnel.addresses import port_refusal
from p2ptunnel.defaults import RELAY_CIRCUITS_OF_KEY, RELAY_QUOTA_BYTES, RENDEZVOUS_PORT
from p2ptunnel.errors import ConfigError, LocalProtocolError
from p2ptunnel.identity.grant import Offers
from p2ptunnel.identity.judge import Judge
from p2ptunnel.identity.keys import Identity
from p2ptunnel.net.interfaces import resolve_both
from p2ptunnel.net.udp import UdpDriver
from p2ptunnel.protocol.broker import Broker, LineToSend, RelayJoined
from p2ptunnel.protocol.machine import Event
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.protocol.probing import ProbeBack
from p2ptunnel.protocol.relay import Relay
from p2ptunnel.protocol.tags import TagBook
from p2ptunnel.server.control import ControlConnections
from p2ptunnel.server.doors import Door, open_doors
from p2ptunnel.server.keeper import TagKeeper
from p2ptunnel.server.listening import BACKLOG, families_refusal
from p2ptunnel.server.members import KeyList
from p2ptunnel.server.probing import Prober
from p2ptunnel.server.registry import TagStore
from p2ptunnel.server.relay import RelayDriver
from p2ptunnel.server.web import Web, WebFront
from p2ptunnel.trace import Tracer
from p2ptunnel.types import Address, format_address, parse_server

__all__ = ["RelayStats", "Rendezvous", "ServerStats", "relay_stats"]

_EVERYWHERE: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - what nobody can be told to ask


class RelayStats(msgspec.Struct, frozen=True):
    """How a server's relay stands; counts are since it was made.

    Attributes:
        circuits: Those that are open, and those that wait for an end.
        carried_bytes: In all, both directions.
        refused: Who was not let in, by reason.
        ended: Circuits that are over, by reason.
    """

    circuits: int
    carried_bytes: int
    refused: dict[str, int]
    ended: dict[str, int]


class ServerStats(msgspec.Struct, frozen=True):
    """How a server stands; counts are since it was made.

    Attributes:
        online: Registered peers.
        tags: Tags that a key owns.
        attempts: Introductions under way.
        connections: TCP connections.
        received: UDP datagrams that came past the kernel's filter.
        sent: UDP datagrams.
        unwritten: How often the store could not be written.
        dropped: What was not taken and who was cut off, by reason.
        relay: None where there is none.
        members: Why the list of members cannot be read, and holds as it was read last; empty: it can, or there is none.
    """

    online: int
    tags: int
    attempts: int
    connections: int
    received: int
    sent: int
    unwritten: int
    dropped: dict[str, int]
    relay: RelayStats | None
    members: str = ""


class Rendezvous:
    """A rendezvous server, up between `start` and `close`.

    Args:
        listen: Where the broker serves, UDP and TCP on one port; the host is numeric, port 0 picks one that is free for both.
        listen_also: Where the same broker serves over the other family; with the port 0, on the same one.  None: nowhere.
        alt_listen: Where else to observe.  A second port and a second address let peers learn how their NAT maps; they are
            told these addresses as they are written here, each those of its family.
        compat_seed: Also serve programs written from the founding document alone (see docs/how-to/rendezvous.md for what
            that gives up).
        identity: The server's own key, which registrations are signed for; None: nobody can tell it from another.
        store: Where owned tags outlive the server; None: nowhere.  Closed with the server.
        join_token: What members must know; empty: everybody is served.
        members: The public keys, as text, of whom it serves, such as a `KeyList`; None: everybody.
        relay: Also carry, as they are, the bytes of peers that it has introduced and that find no direct path.
        relays: Relays on other machines that do so in its place, each `host:port#p2p:KEY` as it has announced itself; one of
            them, by lot, is named for each call.  A name is looked up at the start.
        web: Where its TCP side is served inside TLS as well, and inside WebSocket over TLS; None: nowhere.
        relay_quota_bytes: What one key may have carried in a day.
        relay_circuits: Of one key at a time.
        tracer: Gets every event of the broker.

    Raises:
        ConfigError: One of `alt_listen` is no single address, or `listen_also` is of the family of `listen`, or programs that
            cannot show who they are would be served with members only, or the relay could carry nothing, or relays elsewhere
            have no key, or there is none to sign for them, or TLS has no certificate.
        InvalidAddressError: One of `relays` is no address of a relay.
    """

    def __init__(
        self,
        listen: Address = ("127.0.0.1", RENDEZVOUS_PORT),
        *,
        listen_also: Address | None = None,
        alt_listen: Sequence[Address] = (),
        compat_seed: bool = False,
        identity: Identity | None = None,
        store: TagStore | None = None,
        join_token: str = "",
        members: Container[str] | None = None,
        relay: bool = True,
        relay_quota_bytes: int = RELAY_QUOTA_BYTES,
        relay_circuits: int = RELAY_CIRCUITS_OF_KEY,
        relays: Sequence[str] = (),
        web: Web | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        for address in alt_listen:
            if address[0] in _EVERYWHERE:
                hint = "Write one of this machine's own addresses."
                raise ConfigError(f"peers cannot be told to ask {format_address(address)}", hint)
        if min(relay_quota_bytes, relay_circuits) < 1:
            raise ConfigError("a relay that may carry nothing is none", "Use relay=False.")
        self._listen = (listen,) if listen_also is None else (listen, listen_also)
        if refusal := families_refusal(self._listen):
            raise ConfigError(refusal, "One of each family; where else peers may look at their NAT is said by --alt-listen.")
        self._alt_listen = tuple(alt_listen)
        self._trace = tracer or Tracer()
        self._observer = Observer()
        self._tags = TagBook()
        self._members = members
        judge = Judge(identity, join_token=join_token, members=members)
        if compat_seed and judge.is_private:
            hint = "Serve those programs at a server of their own."
            raise ConfigError("a program of the founding document cannot show that it is a member", hint)
        is_relaying = relay and not relays
        self._relay = Relay(judge, quota_bytes=relay_quota_bytes, circuits_of_key=relay_circuits) if is_relaying else None
        self._offers = _offers(identity, relays) if relays else None
        self._broker = Broker(
            secrets.token_bytes(32),
            random.SystemRandom(),
            judge,
            tags=self._tags,
            compat_seed=compat_seed,
            observer=self._observer,
            relay=self._relay,
            offers=self._offers,
        )
        self._web = web
        self._web_context = None if web is None else web.context(identity)
        self._front: WebFront | None = None
        self._keeper = None if store is None else TagKeeper(store)
        self._services: list[_Service] = []

    @property
    def address(self) -> Address:
        """Where the broker serves.

        Raises:
            LocalProtocolError: The server is not up.
        """
        if not self._services:
            raise LocalProtocolError("the rendezvous server is not up: use `async with Rendezvous(…)`")
        return self._services[0].address

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the broker serves: one address of each family.

        Raises:
            LocalProtocolError: The server is not up.
        """
        return (self.address, *(udp.address for udp in self._services[0].udps[1:]))

    @property
    def web_address(self) -> Address | None:
        """Where its TCP side is served inside TLS, None: nowhere."""
        return None if self._front is None else self._front.address

    @property
    def registered(self) -> tuple[str, ...]:
        """The tags that are online."""
        return self._broker.registered

    @property
    def dropped(self) -> Counter[str]:
        """How often something that came was dropped, or a connection cut off, by reason."""
        counts = self._broker.dropped + self._observer.dropped
        for service in self._services:
            counts += service.dropped
        return counts

    @property
    def stats(self) -> ServerStats:
        """How the server stands."""
        return ServerStats(
            online=len(self._broker.registrar.online),
            tags=len(self._tags),
            attempts=self._broker.attempts,
            connections=sum(len(service.connections) for service in self._services),
            received=sum(udp.received for service in self._services for udp in service.udps),
            sent=sum(udp.sent for service in self._services for udp in service.udps),
            unwritten=0 if self._keeper is None else self._keeper.failures,
            dropped=dict(self.dropped),
            relay=None if self._relay is None else relay_stats(self._relay),
            members=self._members.problem if isinstance(self._members, KeyList) else "",
        )

    async def start(self) -> None:
        """Bind and serve; starting twice is fine.

        Raises:
            AddressInUseError: Another program has a port, for UDP or for TCP; nothing stays open.
            BindError: An address is not ours; nothing stays open.
            InvalidAddressError: An address is not numeric.
            ResolveError: The name of a relay has no address.
            StoreError: The store cannot be read.
        """
        if self._services:
            return
        try:
            if self._keeper is not None:
                await self._keeper.load(self._tags)
            if self._offers is not None:
                await self._offers.look_up(_every_family)
            relay = RelayDriver(self._relay, self._trace) if self._relay else None
            broker = _BrokerService(self._broker, relay, open_doors(self._listen, self._trace), self._trace)
            self._services.append(broker)
            for address in self._alt_listen:
                self._services.append(_ObserverService(Observer(), open_doors((address,), self._trace, is_dialled_from=True)))
            broker.prober = Prober([service.driver.udp for service in self._services[1:]], broker.connections.send)
            self._observer.others = tuple(service.address for service in self._services[1:])
            if self._web is not None and self._web_context is not None:
                self._front = self._web.front(self._web_context, self._services[0].connections)
            for service in self._services:
                await service.start()
            if self._front is not None:
                self._front.start()
            if self._keeper is not None:
                self._keeper.start(self._broker.registrar)
                self._services[0].driver.wake()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop serving, and write what is to be kept; closing twice is fine."""
        services, self._services = self._services, []
        front, self._front = self._front, None
        for service in services:
            service.close()
        if front is not None:
            await front.close()
        for service in services:
            await service.wait_closed()
        if self._keeper is not None:
            await self._keeper.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Service(abc.ABC):
    """A machine on one UDP socket and on the TCP connections of one listener of each family; owns them."""

    def __init__(self, machine: Broker | Observer, doors: tuple[Door, ...]) -> None:
        first = doors[0].udp
        self.address: Final = first.address
        self.connections: Final = ControlConnections(self.on_line, self.on_closed)
        self.driver: Final = UdpDriver(machine, first, self.on_event)
        self.udps: Final = tuple(door.udp for door in doors)
        self._listeners: Final = tuple(door.listener for door in doors)
        self._servers: Final[list[asyncio.Server]] = []

    @property
    def dropped(self) -> Counter[str]:
        """What was dropped here, and nowhere else."""
        return self.connections.cut_off

    async def start(self) -> None:
        """Serve."""
        self.driver.start()
        loop, make = asyncio.get_running_loop(), self.connections.make
        for listener in self._listeners:
            # Served in a second step: cancelled in the middle of a first one, there would be nobody to stop it.
            server = await loop.create_server(make, sock=listener, backlog=BACKLOG, start_serving=False)
            self._servers.append(server)
            await server.start_serving()

    def close(self) -> None:
        """Stop, and close every socket."""
        for server in self._servers:
            server.close()
        for listener in self._listeners[len(self._servers) :]:
            listener.close()
        self.driver.close()
        self.connections.close()

    async def wait_closed(self) -> None:
        """Wait until asyncio has let go of the listeners."""
        for server in self._servers:
            await server.wait_closed()

    @abc.abstractmethod
    def on_event(self, event: Event) -> None:
        """Do what the machine wants done."""

    @abc.abstractmethod
    def on_line(self, line: bytes, source: Address, connection: int) -> bool:
        """Take a line; return whether it was a message."""

    @abc.abstractmethod
    def on_closed(self, connection: int) -> None:
        """Learn that a connection is gone."""


class _BrokerService(_Service):
    """Where the broker serves."""

    def __init__(self, broker: Broker, relay: RelayDriver | None, doors: tuple[Door, ...], trace: Tracer) -> None:
        super().__init__(broker, doors)
        self.prober: Prober | None = None
        self._broker = broker
        self._relay = relay
        self._trace = trace

    def close(self) -> None:
        """Stop, and close every socket, those of circuits among them."""
        super().close()
        if self.prober is not None:
            self.prober.close()
        if self._relay is not None:
            self._relay.close()

    async def wait_closed(self) -> None:
        """Wait until asyncio has let go of the listener, and nobody is dialled any more."""
        await super().wait_closed()
        if self.prober is not None:
            await self.prober.wait_closed()

    def on_event(self, event: Event) -> None:
        """Write lines, hand connections on to the relay; tell of the rest."""
        if isinstance(event, LineToSend):
            self.connections.send(event.connection, event.line, is_last=event.is_last)
            return
        if isinstance(event, ProbeBack):
            if self.prober is not None:
                self.prober.probe(event)
            return
        self._trace("server", type(event).__name__, **event.facts())
        if isinstance(event, RelayJoined) and self._relay is not None:
            self._hand_on(event, self._relay)

    def _hand_on(self, joined: RelayJoined, relay: RelayDriver) -> None:
        taken = self.connections.take_over(joined.connection, joined.line)
        if taken is None:
            relay.end(joined.circuit, "an end was lost")
        else:
            relay.join(joined.circuit, joined.role, *taken)

    def on_line(self, line: bytes, source: Address, connection: int) -> bool:
        """Give it to the broker."""
        is_message = self._broker.receive_line(line, source, connection, time.monotonic())
        self.driver.wake()
        return is_message

    def on_closed(self, connection: int) -> None:
        """Tell the broker: whoever registered over it cannot be reached any more."""
        self._broker.connection_closed(connection)
        self.driver.wake()


class _ObserverService(_Service):
    """Where there is an observer only."""

    def __init__(self, observer: Observer, doors: tuple[Door, ...]) -> None:
        super().__init__(observer, doors)
        self._observer = observer

    @property
    def dropped(self) -> Counter[str]:
        """What was dropped by this observer, too."""
        return self.connections.cut_off + self._observer.dropped

    def on_event(self, event: Event) -> None:
        """An observer has nothing to report."""

    def on_line(self, line: bytes, source: Address, connection: int) -> bool:
        """Answer it, if it is a question."""
        is_message, answer = self._observer.receive_line(line, source)
        if answer is not None:
            self.connections.send(connection, answer)
        return is_message

    def on_closed(self, connection: int) -> None:
        """Nothing is kept of a connection."""


def _offers(identity: Identity | None, relays: Sequence[str]) -> Offers:
    """Read the relays that there are elsewhere."""
    specs = [parse_server(relay, default_port=RENDEZVOUS_PORT) for relay in relays]
    if identity is None or not all(spec.key for spec in specs):
        raise ConfigError("a relay elsewhere that has no key, or no server's key to sign for it", "host:port#p2p:KEY.")
    for spec in specs:
        if refusal := port_refusal(spec.address[1]):
            raise ConfigError(
                f"the relay {format_address(spec.address)}: {refusal}", "No peer goes there; the relay's --listen."
            )
    return Offers(identity, [(spec.address, spec.key) for spec in specs], time.time)


async def _every_family(host: str) -> tuple[str, ...]:
    """Look a relay's name up: an address of each family that it has."""
    return tuple((await resolve_both(host)).values())


def relay_stats(relay: Relay) -> RelayStats:
    """Return how a relay stands."""
    return RelayStats(len(relay.circuits), relay.carried_bytes, dict(relay.refused), dict(relay.ended))
