"""QUIC over a UDP port that JSON machines share: whose a datagram is, who outlives whom, when nothing is sent any more."""

from __future__ import annotations

import asyncio
import errno
import random
import secrets
import subprocess
import sys

import pytest

from p2ptunnel.defaults import CONSENT_EVERY, CONSENT_TIMEOUT, QUIC_DATAGRAM_BYTES
from p2ptunnel.errors import MissingExtraError, RemoteProtocolError
from p2ptunnel.net.udp import UdpSocket
from p2ptunnel.transports.quic import QuicPipe, can_quic
from p2ptunnel.transports.quicport import quic_name
from p2ptunnel.wire.frames import preamble
from tests.helpers import run
from tests.helpers.quic import CONKEY, accepted, meet, new_consents, quic_pipes, quic_ports
from tests.helpers.recorder import Recorder, write_all


def test_json_and_stun_are_the_machines_whoever_speaks_quic_beside_them() -> None:
    async def scenario() -> None:
        async with quic_ports() as (near, far):
            ours, _ = await meet(near, far)
            for datagram in (b'{"t":30}', b'{"t":33,"mid":1,"token":"of nobody"}', b"{", bytes(20), b"\x01\x01" + bytes(18)):
                assert far.quic.take(datagram, near.address) is False
            for datagram in (b"\x7b\x80", b"\x40", b"\xff", b"\x43" + secrets.token_bytes(40), b"\xc3" + bytes(1199)):
                assert far.quic.take(datagram, near.address) is False  # of no connection: counted like all that is malformed
            near.udp.send(b'{"t":30}', far.address)
            while b'{"t":30}' not in far.machine.came:
                await asyncio.sleep(0)
            ours.abort()

    run(scenario())


@pytest.mark.parametrize("_", range(8))  # each connection has another id
def test_no_datagram_of_a_connection_can_be_taken_for_json_or_stun_and_none_is_too_long(_: int) -> None:
    async def scenario() -> None:
        async with quic_ports() as (near, far):
            seen: list[bytes] = []
            for port in (near, far):
                port.udp.loses = lambda data: seen.append(data) or False
            ours, theirs = await meet(near, far)
            recorder = Recorder()
            await theirs.attach(lambda: recorder)
            near_end = await ours.attach(Recorder)
            near_end.write(bytes(100_000))
            near_end.close()
            await recorder.gone
            short = [data for data in seen if not data[0] & 0x80]
            assert len(short) > 80
            assert all(data[0] >= 0x40 and data[1] >= 0x80 for data in short)
            assert max(map(len, seen)) <= QUIC_DATAGRAM_BYTES

    run(scenario())


def test_a_stranger_who_does_not_know_the_name_begins_nothing_and_is_in_nobodys_way() -> None:
    async def scenario() -> None:
        async with quic_ports() as (near, far):
            ours, theirs = new_consents(near.address, far.address)
            accepting = asyncio.ensure_future(accepted(far, theirs))
            guessing = asyncio.ensure_future(near.quic.connect(quic_name("00" * 16), ours, 0.001))
            while not far.udp.received:
                await asyncio.sleep(0)
            assert far.udp.sent == 0
            guessing.cancel()
            await asyncio.gather(guessing, return_exceptions=True)
            pipe = await near.quic.connect(quic_name(CONKEY), ours, 0.001)
            assert (await accepting).path.remote == near.address
            pipe.abort()

    run(scenario())


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20, 60])
def test_a_cancelled_attempt_leaves_nothing(turns: int) -> None:
    async def scenario() -> None:
        async with quic_ports() as (near, far):
            ours, theirs = new_consents(near.address, far.address)
            tasks = [
                asyncio.ensure_future(near.quic.connect(quic_name(CONKEY), ours, 0.001)),
                asyncio.ensure_future(accepted(far, theirs)),
            ]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(outcome, QuicPipe):
                    outcome.abort()
            for port in (near, far):
                assert (port.quic._links, port.quic._consents, port.quic._expected) == ({}, {}, {})

    run(scenario())


def test_a_connection_outlives_the_machine_on_its_port_and_closes_the_port_behind_it() -> None:
    async def scenario() -> None:
        async with quic_ports() as (near, far):
            ours, theirs = await meet(near, far)
            recorder = Recorder()
            near_end = await ours.attach(Recorder)
            await theirs.attach(lambda: recorder)
            near.driver.close()
            far.driver.close()
            assert near.udp.is_closed
            data = random.randbytes(500_000)
            near_end.write(data)
            near_end.close()
            assert await recorder.gone is None
            assert recorder.came == data
            UdpSocket(near.address, shared=False).close()  # or the port would still be taken

    run(scenario())


def test_without_a_descriptor_left_connections_end_with_their_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: UdpSocket) -> UdpSocket:
        raise OSError(errno.EMFILE, "too many open files")

    async def scenario() -> None:
        async with quic_ports() as (near, far):
            ours, theirs = await meet(near, far)
            recorder, there = Recorder(), Recorder()
            await ours.attach(lambda: recorder)
            await theirs.attach(lambda: there)
            monkeypatch.setattr(UdpSocket, "duplicate", refuse)
            near.driver.close()
            assert isinstance(await recorder.gone, ConnectionAbortedError)
            assert isinstance(await there.gone, ConnectionResetError)

    run(scenario())


def test_a_second_stream_ends_the_connection() -> None:
    async def scenario() -> None:
        async with quic_pipes() as (ours, theirs):
            near_end, recorder = await ours.attach(lambda: Recorder(stays=True)), Recorder(stays=True)
            far_end = await theirs.attach(lambda: recorder)
            near_end.write_eof()
            far_end.write_eof()  # the one is done with: QUIC allows for another now
            await recorder.ended.wait()
            link = ours._link
            while link.connection._remote_max_streams_bidi < 2:
                await asyncio.sleep(0)
            link.connection.send_stream_data(4, b"more")
            link._flush()
            assert isinstance(await recorder.gone, ConnectionResetError)
            assert not recorder.came

    run(scenario())


@pytest.mark.parametrize("share", [0.05, 0.15])
def test_lost_datagrams_cost_time_and_nothing_else(share: float) -> None:
    async def scenario() -> None:
        dice = random.Random(7)
        async with quic_ports() as (near, far):
            ours, theirs = await meet(near, far)
            for port in (near, far):
                port.udp.loses = lambda _: dice.random() < share
            recorder, writer = Recorder(), Recorder()
            near_end = await ours.attach(lambda: writer)
            await theirs.attach(lambda: recorder)
            data = random.randbytes(100_000)
            await write_all(near_end, writer, data)
            near_end.close()
            await recorder.ended.wait()
            assert recorder.came == data

    run(scenario())


def test_the_other_side_is_followed_to_another_address() -> None:
    async def scenario() -> None:
        async with quic_ports() as (near, far):
            ours, theirs = await meet(near, far)
            recorder, answers = Recorder(), Recorder()
            near_end = await ours.attach(lambda: answers)
            far_end = await theirs.attach(lambda: recorder)
            async with quic_ports() as (elsewhere, _):  # as the NAT in front of us would have it from now on
                old, near.quic._udp = near.quic._udp, elsewhere.udp
                elsewhere.driver._aside = near.quic
                near_end.write(b"from elsewhere")
                while recorder.came != b"from elsewhere":
                    await asyncio.sleep(0)
                async with asyncio.timeout(0.8 * CONSENT_EVERY):  # before either side would have asked anyway
                    while far.quic._consents["a-token"].consent.remote != elsewhere.address:
                        await asyncio.sleep(0)
                far_end.write(b"and there")
                while answers.came != b"and there":
                    await asyncio.sleep(0)
                near_end.abort()
                near.quic._udp = old

    run(scenario())


def test_without_consent_nothing_is_sent_and_with_it_everything_is() -> None:
    async def scenario() -> None:
        async with quic_ports() as (near, far):
            ours, theirs = await meet(near, far)
            recorder = Recorder()
            near_end = await ours.attach(Recorder)
            await theirs.attach(lambda: recorder)
            link = near.quic._consents["a-token"]
            later = asyncio.get_running_loop().time() + CONSENT_TIMEOUT
            link.consent.handle_timer(later)  # its question leaves, the answer brings consent back
            assert not link.consent.is_given
            before, sent = near.udp.sent, []
            near.udp.loses = lambda data: sent.append(data) or False
            near_end.write(b"held back")
            assert near.udp.sent == before + 1  # the question
            assert all(data.startswith(b'{"t":33') for data in sent)
            while recorder.came != b"held back":
                await asyncio.sleep(0)
            assert link.consent.is_given
            near_end.abort()

    run(scenario())


def test_an_abort_is_a_reset_to_the_other_side() -> None:
    async def scenario() -> None:
        async with quic_pipes() as (ours, theirs):
            recorder = Recorder()
            await theirs.attach(lambda: recorder)
            (await ours.attach(Recorder)).abort()
            assert isinstance(await recorder.gone, ConnectionResetError)

    run(scenario())


def test_a_preamble_is_read_and_what_is_behind_it_left() -> None:
    async def scenario() -> None:
        async with quic_pipes() as (ours, theirs):
            near_end = await ours.attach(Recorder)
            near_end.write(preamble(bytes(range(16))) + b"behind it")
            assert await theirs.read_preamble() == bytes(range(16))
            recorder = Recorder()
            await theirs.attach(lambda: recorder)
            near_end.close()
            await recorder.gone
            assert recorder.came == b"behind it"

    run(scenario())


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "does not begin with a preamble"),
        (preamble(bytes(16))[:-1], "ended before its preamble"),
        (b"", "ended before its preamble"),
    ],
)
def test_what_is_no_preamble_is_refused(said: bytes, reason: str) -> None:
    async def scenario() -> None:
        async with quic_pipes() as (ours, theirs):
            near_end = await ours.attach(Recorder)
            near_end.write(said)
            near_end.close()
            with pytest.raises(RemoteProtocolError, match=reason):
                await theirs.read_preamble()
            theirs.abort()

    run(scenario())


def test_no_preamble_in_time_is_refused() -> None:
    async def scenario() -> None:
        async with quic_pipes() as (_, theirs):
            with pytest.raises(RemoteProtocolError, match=r"no preamble in 0\.01 s"):
                await theirs.read_preamble(timeout=0.01)

    run(scenario())


def test_the_name_of_an_attempt_hides_its_conkey() -> None:
    names = {quic_name(f"{number:032x}") for number in range(100)}
    assert len(names) == 100
    assert {len(name) for name in names} == {16}
    assert not any(bytes.fromhex(f"{number:032x}")[:8] in name for number, name in zip(range(100), names, strict=True))


def test_a_missing_library_is_told_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [
        name for name in sys.modules if name.startswith(("aioquic", "p2ptunnel.transports.quicl", "p2ptunnel.transports.quicw"))
    ]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "aioquic", None)

    async def scenario() -> None:
        async with quic_ports() as (near, far):
            consent, _ = new_consents(near.address, far.address)
            with pytest.raises(MissingExtraError) as caught:
                await near.quic.connect(quic_name(CONKEY), consent, None)
            assert caught.value.extra == "quic"

    run(scenario())


def test_nothing_of_aioquic_is_loaded_before_it_is_needed() -> None:
    code = "import sys, p2ptunnel.peer, p2ptunnel.transports.quicport; print([m for m in sys.modules if 'aioquic' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert can_quic()
