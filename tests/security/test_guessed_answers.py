"""T12: whoever can send in the server's name, and has to guess what a peer has asked, answers nothing.

P2PTUNNEL_FULL_ATTACKS=1 runs it at its full size: a hundred thousand guesses.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Future

import pytest

from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.registration import KeyCredentials
from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.protocol.callee import CalleePort
from p2ptunnel.protocol.intent import IntentJudge
from p2ptunnel.protocol.machine import Event, new_mid
from p2ptunnel.protocol.registration import Registered
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.types import Address, format_address
from p2ptunnel.wire.messages import Observed, RegisterAnswer, encode
from tests.security.attackers import FULL, Flood

pytestmark = [pytest.mark.natlab, pytest.mark.timeout(60)]
SECONDS = 2.0
GUESSES = 100_000 if FULL else 20_000
SOMEWHERE: Address = ("203.0.113.66", 6666)


class Asking:
    """A peer that registers at a server, and goes on asking until it is answered."""

    def __init__(self, host: str, server: Address) -> None:
        self.address: Future[Address] = Future()
        self.registered: Future[Address] = Future()
        self.dropped: Future[int] = Future()
        self._host, self._server = host, server

    @contextlib.asynccontextmanager
    async def living(self) -> AsyncGenerator[None]:
        dice, identity = random.SystemRandom(), Identity.generate()
        udp = UdpSocket((self._host, 0))
        judge = IntentJudge(identity, dice, is_admitted=lambda _: False)
        credentials = KeyCredentials(identity, "nas")
        machine = CalleePort(
            "nas", self._server, credentials, dice, udp_port=udp.address[1], screen=lambda _: None, judge=judge
        )
        driver = UdpDriver(machine, udp, self._on_event)
        try:
            driver.start()
            machine.registration.start(time.monotonic())
            driver.wake()
            self.address.set_result(udp.address)
            yield
        finally:
            self.dropped.set_result(machine.registration.dropped["unexpected answer"])
            driver.close()
            udp.close()

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Registered) and not self.registered.done():
            self.registered.set_result(event.observed)


def forged(mid: int) -> bytes:
    """A yes, such as the server would give."""
    host, port = SOMEWHERE
    return encode(RegisterAnswer(mid=mid, code=200, em="", extra=Observed(host=host, port=port, ttl=90, epoch=1)))


def test_a_hundred_thousand_forged_answers_register_nobody(natlab: Lab) -> None:
    """While they come the peer waits; the real server's answer, which comes after all of them, is taken."""
    home, attacker = (natlab.site("pub").host for _ in range(2))
    server: Address = (natlab.server.ip, 7000)
    peer, dice = Asking(home.ip, server), random.SystemRandom()
    payloads = [forged(new_mid(dice)) for _ in range(GUESSES)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(living(home, peer.living))
        target = peer.address.result(5)
        source = format_address(server)
        sent = Flood(attacker, target, rate=GUESSES / SECONDS, seconds=SECONDS, source=source, payloads=payloads).wait()
        assert sent.packets >= GUESSES / 2
        assert not peer.registered.done()
        stack.enter_context(living(natlab.server, lambda: Rendezvous(server)))
        assert peer.registered.result(20) == target
    assert peer.dropped.result(5) >= sent.packets / 2  # the kernel may have dropped some, and did not drop all
