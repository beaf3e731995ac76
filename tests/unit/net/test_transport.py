"""A stream as an asyncio transport: what a protocol writes and reads, its pauses, and both ends of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncssh
import pytest

from p2ptunnel.errors import ChannelClosedError, LocalProtocolError, StreamResetError
from p2ptunnel.net.pump import pump
from p2ptunnel.net.transport import StreamTransport
from p2ptunnel.session.session import OpenRequest
from p2ptunnel.session.stream import SessionStream
from tests.helpers import run
from tests.helpers.peers import Peers, sessions, tcp_pair

MEGABYTE = 1_000_000


class Recorder(asyncio.Protocol):
    """Remembers what it was told."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.came = bytearray()
        self.told: list[str] = []
        self.error: Exception | None = None
        self.lost = asyncio.Event()
        self.news = asyncio.Event()
        self._keep_open = keep_open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.came += data
        self.news.set()

    def eof_received(self) -> bool:
        self.told.append("eof")
        self.news.set()
        return self._keep_open

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")
        self.news.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append("lost")
        self.error = exc
        self.lost.set()

    async def until(self, size: int) -> bytes:
        while len(self.came) < size:
            self.news.clear()
            await self.news.wait()
        return bytes(self.came)


class Pausing(Recorder):
    """Wants one part at a time."""

    transport: StreamTransport

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.pause_reading()


@asynccontextmanager
async def carried(protocol: Recorder) -> AsyncGenerator[tuple[StreamTransport, SessionStream]]:
    """A protocol over one end of a stream, and the other end of the stream."""
    peers = Peers("web")
    async with sessions(peers) as (caller, _):
        ours, theirs = await peers.stream(caller, "web")
        yield StreamTransport(ours, protocol), theirs


def test_bytes_go_both_ways() -> None:
    async def scenario() -> None:
        protocol = Recorder()
        async with carried(protocol) as (transport, theirs):
            transport.write(b"hel")
            transport.writelines([b"l", b"o"])
            assert await theirs.readexactly(5) == b"hello"
            await theirs.write(b"world")
            assert await protocol.until(5) == b"world"
            assert (transport.get_protocol(), transport.get_extra_info("socket", 1)) == (protocol, 1)

    run(scenario())


def test_end_of_the_peer_is_an_end_and_closes_unless_the_protocol_wants_to_write_on() -> None:
    async def scenario(keep_open: bool) -> None:
        protocol = Recorder(keep_open=keep_open)
        async with carried(protocol) as (transport, theirs):
            await theirs.write(b"all")
            await theirs.write_eof()
            if keep_open:
                await protocol.until(3)
                while "eof" not in protocol.told:
                    await asyncio.sleep(0)
                transport.write(b"answer")
                transport.write_eof()
                assert transport.can_write_eof()
                assert await theirs.readexactly(6) == b"answer"
                with pytest.raises(LocalProtocolError, match="behind the end"):
                    transport.write(b"more")
                transport.close()
            await protocol.lost.wait()
            assert (protocol.came, protocol.told, protocol.error) == (b"all", ["made", "eof", "lost"], None)
            assert await theirs.read() == b""

    run(scenario(keep_open=False))
    run(scenario(keep_open=True))


def test_closing_sends_what_was_written_and_an_end_behind_it() -> None:
    async def scenario() -> None:
        protocol = Recorder()
        async with carried(protocol) as (transport, theirs):
            transport.write(bytes(MEGABYTE))
            transport.close()
            assert transport.is_closing()
            transport.close()
            assert len(await theirs.readexactly(MEGABYTE)) == MEGABYTE
            assert await theirs.read() == b""
            await protocol.lost.wait()
            assert protocol.error is None

    run(scenario())


def test_peer_learns_that_nobody_reads_after_closing() -> None:
    async def scenario() -> None:
        async with carried(Recorder()) as (transport, theirs):
            transport.close()
            with pytest.raises(StreamResetError):
                await theirs.write(bytes(MEGABYTE))

    run(scenario())


def test_reset_of_the_peer_is_an_error_and_aborting_is_one_for_it() -> None:
    async def scenario() -> None:
        protocol = Recorder()
        async with carried(protocol) as (transport, theirs):
            theirs.abort("enough")
            await protocol.lost.wait()
            assert isinstance(protocol.error, StreamResetError)
            assert transport.is_closing()
        protocol = Recorder()
        async with carried(protocol) as (transport, theirs):
            transport.abort()
            with pytest.raises(StreamResetError, match="the connection was aborted"):
                await theirs.read()
            await protocol.lost.wait()
            assert protocol.error is None

    run(scenario())


def test_writer_is_paused_while_the_peer_does_not_read() -> None:
    async def scenario() -> None:
        protocol = Recorder()
        async with carried(protocol) as (transport, theirs):
            block = bytes(2 * MEGABYTE)
            transport.write(block)
            assert protocol.told == ["made", "pause"]
            assert transport.get_write_buffer_size() > MEGABYTE
            assert len(await theirs.readexactly(len(block))) == len(block)
            while "resume" not in protocol.told:
                protocol.news.clear()
                await protocol.news.wait()
            assert transport.get_write_buffer_size() == 0

    run(scenario())


def test_peer_is_stopped_while_the_protocol_does_not_read() -> None:
    async def scenario() -> None:
        protocol = Recorder()
        async with carried(protocol) as (transport, theirs):
            transport.pause_reading()
            assert not transport.is_reading()
            writing = asyncio.ensure_future(theirs.write(bytes(2 * MEGABYTE)))
            done, _ = await asyncio.wait([writing], timeout=0.2)
            assert not done
            assert not protocol.came
            transport.resume_reading()
            assert transport.is_reading()
            assert len(await protocol.until(2 * MEGABYTE)) == 2 * MEGABYTE
            await writing

    run(scenario())


def test_what_was_taken_before_the_protocol_paused_is_kept_for_it_in_order_and_so_is_the_end() -> None:
    async def scenario() -> None:
        protocol = Pausing()
        async with carried(protocol) as (transport, theirs):
            protocol.transport = transport
            for part in (b"one", b"two"):  # both are taken in one turn
                transport.take(memoryview(part))
            await theirs.write_eof()
            assert await protocol.until(3) == b"one"
            for _ in range(20):
                await asyncio.sleep(0)
            assert (protocol.came, protocol.told) == (b"one", ["made"])
            assert not transport.is_reading()
            transport.resume_reading()
            assert await protocol.until(6) == b"onetwo"
            transport.resume_reading()
            await protocol.lost.wait()
            assert (protocol.told, protocol.error) == (["made", "eof", "lost"], None)

    run(scenario())


def test_error_comes_behind_the_bytes_that_came_before_it() -> None:
    async def scenario() -> None:
        protocol = Pausing()
        async with carried(protocol) as (transport, theirs):
            protocol.transport = transport
            for part in (b"one", b"two"):
                transport.take(memoryview(part))
            theirs.abort("enough")
            while not transport.is_closing():
                await asyncio.sleep(0)
            assert (await protocol.until(3), protocol.told) == (b"one", ["made"])
            transport.resume_reading()
            await protocol.lost.wait()
            assert protocol.came == b"onetwo"
            assert isinstance(protocol.error, StreamResetError)

    run(scenario())


def test_end_is_told_once_however_often_reading_is_resumed() -> None:
    async def scenario() -> None:
        protocol = Recorder(keep_open=True)
        async with carried(protocol) as (transport, theirs):
            await theirs.write_eof()
            while "eof" not in protocol.told:
                await asyncio.sleep(0)
            transport.pause_reading()
            transport.resume_reading()
            transport.write(b"answer")
            assert await theirs.readexactly(6) == b"answer"
            assert protocol.told == ["made", "eof"]

    run(scenario())


def test_writer_waits_for_no_room_when_the_peer_takes_no_more() -> None:
    async def scenario() -> None:
        protocol = Recorder()
        async with carried(protocol) as (transport, theirs):
            transport.take(memoryview(b"not read yet"))
            transport.pause_reading()  # so that the error itself has to wait
            transport.write(bytes(2 * MEGABYTE))
            theirs.abort("enough")
            while "resume" not in protocol.told:
                protocol.news.clear()
                await protocol.news.wait()
            assert (protocol.told, transport.get_write_buffer_size()) == (["made", "pause", "resume"], 0)

    run(scenario())


def test_memory_of_any_format_is_counted_in_bytes() -> None:
    async def scenario() -> None:
        async with carried(Recorder()) as (transport, theirs):
            block = os.urandom(1000)
            transport.write(memoryview(block).cast("H"))
            transport.write(memoryview(b"").cast("H"))
            assert await theirs.readexactly(1000) == block
            assert transport.get_write_buffer_size() == 0

    run(scenario())


def test_what_a_protocol_writes_when_it_is_made_is_sent() -> None:
    class Greeting(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, StreamTransport)
            transport.write(b"hello")

    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, _):
            ours, theirs = await peers.stream(caller, "web")
            await ours.opened()
            StreamTransport(ours, Greeting())
            assert await theirs.read() == b"hello"

    run(scenario())


def test_protocol_of_a_stream_that_is_over_is_told_nothing() -> None:
    async def scenario() -> None:
        protocol = Recorder()
        peers = Peers("web")
        async with sessions(peers) as (caller, _):
            ours, _ = await peers.stream(caller, "web")
            await ours.close()
            with pytest.raises(ChannelClosedError):
                StreamTransport(ours, protocol)
            assert protocol.told == []

    run(scenario())


def test_closing_after_the_end_of_our_direction_frees_the_stream() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        async with sessions(peers) as (caller, _):
            ours, theirs = await peers.stream(caller, "web")
            transport = StreamTransport(ours, Recorder())
            transport.write_eof()
            assert await theirs.read() == b""
            transport.close()
            while caller.streams:
                await asyncio.sleep(0)
            with pytest.raises(StreamResetError, match="the peer reads no more"):
                await theirs.write(bytes(MEGABYTE))

    run(scenario())


def test_what_is_written_after_closing_is_dropped() -> None:
    async def scenario() -> None:
        async with carried(Recorder()) as (transport, theirs):
            transport.close()
            transport.write(b"late")
            assert transport.get_write_buffer_size() == 0
            assert await theirs.read() == b""

    run(scenario())


def test_another_protocol_gets_what_comes_from_then_on_if_it_takes_bytes() -> None:
    class Buffered(asyncio.BufferedProtocol):
        """Would be given a buffer at a time, which no stream does."""

    async def scenario() -> None:
        first, second = Recorder(), Recorder()
        async with carried(first) as (transport, theirs):
            with pytest.raises(TypeError, match=r"Buffered is no asyncio\.Protocol"):
                transport.set_protocol(Buffered())
            assert transport.get_protocol() is first
            transport.set_protocol(second)
            await theirs.write(b"hello")
            assert (await second.until(5), first.came) == (b"hello", b"")

    run(scenario())


def test_asyncssh_logs_in_over_a_stream() -> None:
    async def scenario() -> None:
        key = asyncssh.generate_private_key("ssh-ed25519")

        class Server(asyncssh.SSHServer):
            def begin_auth(self, username: str) -> bool:
                return False

        async def upper(process: asyncssh.SSHServerProcess[str]) -> None:
            process.stdout.write((await process.stdin.read()).upper())
            process.exit(0)

        async def serve(request: OpenRequest) -> None:
            near, far = tcp_pair()
            await asyncio.gather(pump(request.accept(), near), serve_ssh(far))

        async def serve_ssh(sock: object) -> None:
            connection = await asyncssh.run_server(sock, server_factory=Server, server_host_keys=[key], process_factory=upper)
            await connection.wait_closed()

        peers = Peers("ssh")
        peers.on_open = serve
        async with sessions(peers) as (caller, _):
            stream = await caller.open_confirmed("ssh")
            trusted = ([key.convert_to_public()], [], [])
            async with await asyncssh.connect(
                "home-nas", tunnel=stream.asyncssh_tunnel(), known_hosts=trusted, config=None, username="pi", client_keys=None
            ) as login:
                assert (await login.run("", input="hello")).stdout == "HELLO"

    run(scenario())
