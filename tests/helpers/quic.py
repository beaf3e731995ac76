"""Two UDP ports on this machine, a machine and QUIC on each, and a path between them that loses what a test wants lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncGenerator, Callable, Sequence

from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.protocol.consent import Consent
from p2ptunnel.protocol.machine import Event, MachineBase
from p2ptunnel.transports.quic import QuicPipe
from p2ptunnel.transports.quicport import QuicPort, quic_name
from p2ptunnel.types import Address
from p2ptunnel.wire.keyed import KeyedReceiver, KeyedSender

__all__ = ["CONKEY", "Port", "accepted", "meet", "new_consents", "quic_pipes", "quic_ports"]

CONKEY = "5e" * 16


class LossyUdp(UdpSocket):
    """A port that loses what `loses` says, on its way out."""

    loses: Callable[[bytes], bool] = staticmethod(lambda _: False)

    def send(self, data: bytes, destination: Address, *, opener: bool = False) -> bool:
        return self.loses(data) or super().send(data, destination, opener=opener)

    def send_all(self, datagrams: Sequence[bytes], destination: Address) -> None:
        for datagram in datagrams:
            self.send(datagram, destination)


class Heard(MachineBase):
    """A machine that keeps what comes."""

    def __init__(self) -> None:
        super().__init__()
        self.came: list[bytes] = []

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        self.came.append(data)

    def handle_timer(self, now: float) -> None:
        raise AssertionError("it has no deadline")

    def next_deadline(self) -> float | None:
        return None


class Port:
    """A port with everything on it."""

    def __init__(self) -> None:
        self.udp = LossyUdp(("127.0.0.1", 0))
        self.machine = Heard()
        self.quic = QuicPort(self.udp)
        self.driver = UdpDriver(self.machine, self.udp, _ignore, aside=self.quic)
        self.driver.start()

    @property
    def address(self) -> Address:
        return self.udp.address


def _ignore(event: Event) -> None:
    raise AssertionError(event)


def new_consents(near: Address, far: Address) -> tuple[Consent, Consent]:
    """The caller's and the callee's, with the keys of one attempt."""
    caller, callee = os.urandom(32), os.urandom(32)
    dice = random.SystemRandom()
    return (
        Consent("a-token", far, KeyedSender(caller), KeyedReceiver(callee), dice),
        Consent("a-token", near, KeyedSender(callee), KeyedReceiver(caller), dice),
    )


@contextlib.asynccontextmanager
async def quic_ports() -> AsyncGenerator[tuple[Port, Port]]:
    """Two ports; in the end nothing is left on them."""
    near, far = Port(), Port()
    try:
        yield near, far
    finally:
        for port in (near, far):
            port.quic.abort()
            port.driver.close()


async def accepted(port: Port, consent: Consent) -> QuicPipe:
    """The callee's pipe, once the caller has come."""
    came: asyncio.Future[tuple[bytes, Address]] = asyncio.get_running_loop().create_future()

    def take(first: bytes, source: Address) -> bool:
        came.set_result((first, source))
        return True

    name = quic_name(CONKEY)
    port.quic.expect(name, take)
    try:
        first, consent.remote = await came
    finally:
        port.quic.forget(name)
    return await port.quic.accept(name, consent, first)


async def meet(near: Port, far: Port) -> tuple[QuicPipe, QuicPipe]:
    """A connection between two ports: the caller's pipe and the callee's."""
    ours, theirs = new_consents(near.address, far.address)
    async with asyncio.TaskGroup() as group:
        accepting = group.create_task(accepted(far, theirs))
        connecting = group.create_task(near.quic.connect(quic_name(CONKEY), ours, 0.001))
    return connecting.result(), accepting.result()


@contextlib.asynccontextmanager
async def quic_pipes() -> AsyncGenerator[tuple[QuicPipe, QuicPipe]]:
    """The two ends of a connection."""
    async with quic_ports() as (near, far):
        yield await meet(near, far)
