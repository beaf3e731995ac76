"""QUIC beside the TCP of an attempt, at the callee: whose handshake is answered, and where."""

from __future__ import annotations

import asyncio
import random
import socket

import pytest
from msgspec.structs import replace

from p2ptunnel.protocol.callee import CalleeAgent
from p2ptunnel.protocol.consent import Consent
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.quic import QuicPipe
from p2ptunnel.transports.quicport import quic_name
from p2ptunnel.traversal.quic import QuicAnswers
from p2ptunnel.types import Address
from p2ptunnel.wire.frames import preamble
from p2ptunnel.wire.keyed import KeyedReceiver, KeyedSender
from p2ptunnel.wire.messages import ConsentCheck, HoleProbe, decode, encode
from tests.helpers import run
from tests.helpers.quic import Port, quic_ports
from tests.helpers.recorder import Recorder
from tests.unit.protocol.actors import SERVER, TOKEN, VIEW, notice, signed_call, tell


def called_from(caller: Address) -> CalleeAgent:
    """The agent of a call that has begun."""
    message = notice()
    message = replace(message, extra=replace(message.extra, host=caller[0], port=caller[1]))
    agent = CalleeAgent(message, caller, SERVER, VIEW, random.Random(1), udp_port=40002, signed=signed_call(message))
    agent.start(0.0)
    return agent


class Called:
    """A callee that expects QUIC, and what its caller has."""

    def __init__(self, near: Port, far: Port) -> None:
        self.agent = called_from(near.address)
        assert self.agent._receiver is not None
        assert self.agent._sender is not None
        self._voice = KeyedSender(self.agent._receiver._key)
        ear = KeyedReceiver(self.agent._sender._key)
        consent = Consent(TOKEN, far.address, self._voice, ear, random.Random(2))
        self.came: asyncio.Future[QuicPipe] = asyncio.get_running_loop().create_future()
        self.answers = QuicAnswers(far.quic, Tracer())
        self.answers.expect(self.agent, self._on_up)
        self.connecting = asyncio.ensure_future(near.quic.connect(quic_name(self.agent.conkey), consent, 0.001))

    def probe(self, mid: int, source: Address) -> None:
        """Have a t=31 of the caller's come from there."""
        message = HoleProbe(mid=mid, token=TOKEN)
        self.agent.receive(message, self._voice.seal(encode(message)), source, 0.0)

    async def close(self) -> None:
        self.connecting.cancel()
        await asyncio.gather(self.connecting, self.answers.close(), return_exceptions=True)

    async def _on_up(self, pipe: QuicPipe, of: CalleeAgent) -> None:
        assert of is self.agent
        self.came.set_result(pipe)


def test_a_handshake_is_answered_where_the_caller_has_shown_its_key_and_nowhere_else() -> None:
    """Who calls may write any source on its datagrams: three times as many bytes would go to a host that never asked."""

    async def scenario() -> None:
        async with quic_ports() as (near, far):
            called = Called(near, far)
            while not far.machine.came:  # what nobody took
                await asyncio.sleep(0)
            called.probe(31, (near.address[0], near.address[1] ^ 1))
            while len(far.machine.came) < 2:
                await asyncio.sleep(0)
            assert far.udp.sent == 0
            called.probe(32, near.address)
            near_end = await (await called.connecting).attach(Recorder)  # which has asked again
            near_end.write(preamble(bytes.fromhex(called.agent.conkey)))
            assert (await called.came).path.remote == near.address
            await called.close()

    run(scenario())


def test_before_who_seems_to_ask_has_answered_itself_it_gets_one_question_and_no_handshake() -> None:
    """The caller holds the key, so it can forge its probes as well; only an answer shows who is there."""

    async def scenario() -> None:
        async with quic_ports() as (near, far):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim:
                victim.setblocking(False)
                victim.bind(("127.0.0.1", 0))
                said: list[bytes] = []
                near.udp.loses = lambda data: said.append(data) or True
                called = Called(near, far)
                while len(said) < 3:
                    await asyncio.sleep(0)
                called.probe(31, victim.getsockname())
                assert far.quic.take(said[0], victim.getsockname())
                question = await asyncio.get_running_loop().sock_recv(victim, 2048)
                assert isinstance(decode(question), ConsentCheck)
                for data in said[1:]:
                    assert far.quic.take(data, victim.getsockname())
                for _ in range(20):
                    await asyncio.sleep(0)
                assert far.udp.sent == 1
                await called.close()
                with pytest.raises(BlockingIOError):
                    victim.recv(2048)

    run(scenario())


def test_expected_at_two_ports_it_comes_to_one_and_is_expected_nowhere_else() -> None:
    async def scenario() -> None:
        async with quic_ports() as (near, far), quic_ports() as (other, _):
            called = Called(near, far)
            called.answers.expect(called.agent, called._on_up, other.quic)
            assert far.quic._expected.keys() == other.quic._expected.keys() != set()
            called.probe(31, near.address)
            pipe = await called.connecting
            assert (far.quic._expected, other.quic._expected) == ({}, {})
            pipe.abort()
            await called.close()

    run(scenario())


def test_forgotten_it_is_expected_nowhere() -> None:
    async def scenario() -> None:
        async with quic_ports() as (near, far), quic_ports() as (other, _):
            called = Called(near, far)
            called.answers.expect(called.agent, called._on_up, other.quic)
            for _ in range(2):
                called.answers.forget(TOKEN)
                assert (far.quic._expected, other.quic._expected) == ({}, {})
            await called.close()

    run(scenario())


def test_places_of_a_caller_are_remembered_without_being_kept_for_ever() -> None:
    agent = called_from(("198.51.100.7", 50000))
    places = [("198.51.100.7", 50000 + number) for number in range(100)]
    for number, place in enumerate(places):
        tell(agent, HoleProbe(mid=number + 1, token=TOKEN), place, 0.0)
    assert [place for place in places if agent.has_heard_from(place)] == places[-4:]


def test_what_is_not_keyed_shows_no_place() -> None:
    caller = ("198.51.100.7", 50000)
    agent = called_from(caller)
    agent.receive(HoleProbe(mid=31, token=TOKEN), b'{"t":31}', caller, 0.0)
    assert not agent.has_heard_from(caller)
