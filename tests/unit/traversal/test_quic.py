"""QUIC beside the TCP of an attempt, at the callee: whose handshake is answered, and where."""

from __future__ import annotations

import asyncio
import random

from msgspec.structs import replace

from p2ptunnel.protocol.callee import CalleeAgent
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.quic import QuicPipe
from p2ptunnel.transports.quicport import quic_name
from p2ptunnel.traversal.quic import QuicAnswers
from p2ptunnel.types import Address
from p2ptunnel.wire.frames import preamble
from p2ptunnel.wire.messages import HoleProbe
from tests.helpers import run
from tests.helpers.quic import new_consents, quic_ports
from tests.helpers.recorder import Recorder
from tests.unit.protocol.actors import SERVER, TOKEN, VIEW, notice, signed_call, tell


def called_from(caller: Address) -> CalleeAgent:
    """The agent of a call that has begun."""
    message = notice()
    message = replace(message, extra=replace(message.extra, host=caller[0], port=caller[1]))
    agent = CalleeAgent(message, caller, SERVER, VIEW, random.Random(1), udp_port=40002, signed=signed_call(message))
    agent.start(0.0)
    return agent


def test_a_handshake_is_answered_where_the_caller_has_shown_its_key_and_nowhere_else() -> None:
    """Who calls may write any source on its datagrams: three times as many bytes would go to a host that never asked."""

    async def scenario() -> None:
        async with quic_ports() as (near, far):
            agent = called_from(near.address)
            came: asyncio.Future[tuple[QuicPipe, CalleeAgent]] = asyncio.get_running_loop().create_future()

            async def on_up(pipe: QuicPipe, of: CalleeAgent) -> None:
                came.set_result((pipe, of))

            answers = QuicAnswers(far.quic, Tracer())
            answers.expect(agent, on_up)
            ours, _ = new_consents(near.address, far.address)
            connecting = asyncio.ensure_future(near.quic.connect(quic_name(agent.conkey), ours, 0.001))
            while not far.machine.came:  # what nobody took
                await asyncio.sleep(0)
            tell(agent, HoleProbe(mid=31, token=TOKEN), (near.address[0], near.address[1] ^ 1), 0.0)
            while len(far.machine.came) < 2:
                await asyncio.sleep(0)
            assert far.udp.sent == 0
            tell(agent, HoleProbe(mid=32, token=TOKEN), near.address, 0.0)
            near_end = await (await connecting).attach(Recorder)  # which has asked again
            near_end.write(preamble(bytes.fromhex(agent.conkey)))
            pipe, of = await came
            assert (pipe.path.remote, of) == (near.address, agent)
            await answers.close()

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
