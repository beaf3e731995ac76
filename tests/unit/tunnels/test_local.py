"""A forward over real sockets: what its clients see, whatever the peer does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
from collections.abc import AsyncIterator

import pytest

from p2ptunnel.errors import (
    AccessDeniedError,
    AddressInUseError,
    InvalidSpecError,
    PeerOfflineError,
    StreamResetError,
    TargetRefusedError,
)
from p2ptunnel.net.sockets import reset_close
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.tunnels import local
from p2ptunnel.tunnels.local import Forward, ForwardStats, open_forward
from tests.helpers import run
from tests.unit.tunnels.streams import Loopback, SocketStream

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def forwarding(target: int | str = "web", tracer: Tracer | None = None) -> AsyncIterator[tuple[Forward, Loopback]]:
    async with Loopback() as connector:
        forward = await open_forward(connector, "nas", target, tracer=tracer)
        try:
            yield forward, connector
        finally:
            await forward.close()


@contextlib.asynccontextmanager
async def client_of(forward: Forward) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(*forward.local)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def read_all(stream: SocketStream) -> bytes:
    return b"".join([part async for part in stream])


def test_bytes_pass_both_ways_and_each_end_of_file_goes_its_own_way() -> None:
    async def main() -> None:
        async with forwarding() as (forward, connector), client_of(forward) as (reader, writer):
            writer.write(b"question")
            writer.write_eof()
            peer = await connector.arrived.get()
            assert await read_all(peer) == b"question"  # the client's end of file came through
            await peer.write(b"answer")  # and the other direction is still open
            await peer.write_eof()
            assert await reader.read() == b"answer"
            await peer.close()
            assert connector.asked == [("nas", "web")]

    run(main())


def test_the_peer_may_end_first_and_still_read() -> None:
    async def main() -> None:
        async with forwarding() as (forward, connector), client_of(forward) as (reader, writer):
            peer = await connector.arrived.get()
            await peer.write_eof()
            assert await reader.read() == b""
            writer.write(b"late")
            writer.write_eof()
            assert await read_all(peer) == b"late"
            await peer.close()

    run(main())


@pytest.mark.parametrize(
    "error",
    [
        TargetRefusedError("nas", "web", "connection refused"),
        AccessDeniedError("nas", "web"),
        PeerOfflineError("nas"),
    ],
)
def test_a_refusal_resets_the_client_and_the_next_one_is_tried_afresh(error: Exception) -> None:
    async def main() -> None:
        async with forwarding() as (forward, connector):
            connector.error = error
            async with client_of(forward) as (reader, _):
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            assert (forward.state, forward.errors) == ("failing", (error,))
            connector.error = None
            async with client_of(forward) as (reader, _):
                peer = await connector.arrived.get()
                await peer.write(b"back")
                assert await reader.readexactly(4) == b"back"
                assert (forward.state, forward.stats) == ("listening", ForwardStats(open=1, accepted=2, failed=1))
                await peer.close()

    run(main())


def test_a_stream_that_breaks_resets_the_client_instead_of_ending_its_answer() -> None:
    async def main() -> None:
        async with forwarding() as (forward, connector), client_of(forward) as (reader, _):
            peer = await connector.arrived.get()
            await peer.write(b"first bytes")
            assert await reader.readexactly(11) == b"first bytes"
            peer.abort()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert forward.state == "failing"

    run(main())


def test_a_client_that_breaks_off_resets_the_stream_and_is_no_failure_of_the_forward() -> None:
    async def main() -> None:
        events: asyncio.Queue[TraceEvent] = asyncio.Queue()
        async with forwarding(tracer=Tracer(events.put_nowait)) as (forward, connector):
            client = socket.create_connection(forward.local)
            peer = await connector.arrived.get()
            reset_close(client)
            with pytest.raises(StreamResetError):
                await peer.read()
            names = [(await events.get()).name, (await events.get()).name]
            assert names == ["client_connected", "client_lost"]
            assert (forward.state, forward.errors) == ("listening", ())
            peer.abort()

    run(main())


def test_closing_resets_the_clients_frees_the_port_and_leaves_nothing() -> None:
    async def main() -> None:
        async with Loopback() as connector:
            forward = await open_forward(connector, "nas", "web")
            async with client_of(forward) as (reader, _):
                peer = await connector.arrived.get()
                connector.gate = asyncio.Event()  # a second client still waits for its stream
                async with client_of(forward) as (waiting, _):
                    while len(connector.asked) < 2:
                        await asyncio.sleep(0)
                    await forward.close()
                    await forward.close()
                    for gone in (reader, waiting):
                        with pytest.raises(ConnectionResetError):
                            await gone.read()
            assert connector.opened[0].aborted is not None
            with pytest.raises(StreamResetError):
                await peer.read()
            peer.abort()
            assert (forward.state, forward.connections) == ("closed", ())
            again = await open_forward(connector, "nas", "web", listen=forward.local)
            assert again.local == forward.local
            await again.close()

    run(main())


def test_a_client_that_came_at_the_very_moment_of_closing_is_reset() -> None:
    async def main() -> None:
        async with forwarding() as (forward, connector):
            with socket.create_connection(forward.local) as client:
                forward._accept()  # its task has not made a step when close cancels it
                await forward.close()
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            assert connector.asked == []

    run(main())


def test_a_taken_port_says_who_has_it_and_how_to_go_on() -> None:
    async def main() -> None:
        async with forwarding() as (forward, connector):
            with pytest.raises(AddressInUseError) as caught:
                await open_forward(connector, "nas", 8888, listen=forward.local)
            assert str(caught.value) == f"127.0.0.1:{forward.port} is taken by another program"
            assert caught.value.hint == "`p2ptunnel forward nas 0:8888` picks a free port."

    run(main())


def test_a_forward_tells_about_itself() -> None:
    async def main() -> None:
        async with forwarding("DB:5432") as (forward, connector), client_of(forward) as (_, writer):
            peer = await connector.arrived.get()
            assert forward.target == "db:5432"
            assert forward.url == f"http://127.0.0.1:{forward.port}"
            assert repr(forward) == f"<Forward 127.0.0.1:{forward.port} -> nas db:5432 listening>"
            assert [connection.client for connection in forward.connections] == [writer.get_extra_info("sockname")]
            assert not forward.is_public
            await peer.close()

    run(main())


def test_every_interface_is_public_and_its_url_is_this_machine() -> None:
    async def main() -> None:
        async with Loopback() as connector:
            forward = await open_forward(connector, "nas", "web", listen=("*", 0))
            assert forward.is_public
            assert forward.url == f"http://127.0.0.1:{forward.port}"
            reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
            (await connector.arrived.get()).sock.close()
            assert await reader.read() == b""
            writer.close()
            await forward.close()

    run(main())


def test_a_target_that_cannot_be_read_opens_no_port() -> None:
    with pytest.raises(InvalidSpecError, match="cannot read '9000:8888'"):
        run(open_forward(Loopback(), "nas", "9000:8888"))


def test_clients_beyond_the_limit_wait_in_the_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(local, "FORWARD_CONNECTIONS_MAX", 1)
        async with forwarding() as (forward, connector), client_of(forward) as first, client_of(forward) as second:
            peer = await connector.arrived.get()
            second[1].write(b"patient")
            assert forward.stats.accepted == 1
            first[1].write_eof()
            assert await peer.read() == b""
            await peer.close()
            later = await connector.arrived.get()
            assert await later.read() == b"patient"
            assert forward.stats.accepted == 2
            await later.close()

    run(main())


def test_without_descriptors_the_listener_rests_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(local, "ACCEPT_PAUSE", 0.01)
        events: asyncio.Queue[TraceEvent] = asyncio.Queue()
        async with forwarding(tracer=Tracer(events.put_nowait)) as (forward, connector):
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            client = socket.socket()
            highest = client.fileno()
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
                client.connect(forward.local)
                assert (await events.get()).facts["reason"] == "[Errno 24] Too many open files"
                for _ in range(5):
                    await asyncio.sleep(0)
                assert forward.stats.failed == 1  # it does not spin on the connection that it cannot take
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert isinstance(forward.errors[-1], OSError)
            assert forward.errors[-1].errno == errno.EMFILE
            (await connector.arrived.get()).sock.close()
            client.close()

    run(main())
