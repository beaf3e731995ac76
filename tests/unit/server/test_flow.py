"""One direction of a circuit, over real TCP connections: what it holds, what it leaves, and how it tells a slow reader."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import socket
import termios
from collections.abc import AsyncGenerator, Callable

import pytest

from p2ptunnel.defaults import RELAY_EARLY_BYTES
from p2ptunnel.identity.judge import Judge
from p2ptunnel.identity.relay import relay_extra
from p2ptunnel.net.sockets import limit_unsent, reset_close, unacknowledged_bytes
from p2ptunnel.protocol.relay import Circuit, EndReason, Relay
from p2ptunnel.server.flow import Flow, WaitingEnd
from p2ptunnel.wire.messages import RelayJoin
from tests.helpers import run
from tests.unit.server.relayed import ALICE, BOB, ENDS, pair, until

TOKEN = "8f14e45fceea167a5a36dedd4bea2543"


def waiting(sock: socket.socket) -> int:
    """Return how many bytes wait to be read."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


class World:
    """A circuit that is open at a relay, and a flow of it."""

    def __init__(self, source: socket.socket, sink: socket.socket, *, early: bytes = b"") -> None:
        self.relay = Relay(Judge())
        self.relay.introduce(TOKEN, str(ALICE.public), str(BOB.public), 0.0)
        self.circuit: Circuit
        for who, role in ENDS:
            _, circuit = self.relay.join(RelayJoin(mid=6, extra=relay_extra(who, TOKEN, role)), "127.0.0.1", 0.0)
            assert circuit is not None
            self.circuit = circuit
        self.ended: list[EndReason | None] = []
        buffer = memoryview(bytearray(2**18))
        self.flow = Flow(self.relay, self.circuit, source, sink, "callee", early, buffer, self.ended.append)


async def turns(count: int = 100) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_of_who_waits_so_much_is_held_and_the_rest_left_where_it_is() -> None:
    async def main() -> None:
        left: list[EndReason] = []
        with pair() as (source, writer):
            end = WaitingEnd(source, "caller", b"x" * 1000, left.append)
            writer.send(b"y" * 30_000)
            await until(lambda: waiting(source) == 30_000 + 1000 - RELAY_EARLY_BYTES)
            await turns()
            assert waiting(source) == 30_000 + 1000 - RELAY_EARLY_BYTES
            assert end.early == b"x" * 1000 + b"y" * (RELAY_EARLY_BYTES - 1000)
            writer.close()
            await turns()
            assert left == []  # it is seen that it has left when what it has said has been carried
            end.stop()

    run(main())


@pytest.mark.parametrize("leave", [socket.socket.close, reset_close])
def test_who_leaves_is_seen_to(leave: Callable[[socket.socket], None]) -> None:
    async def main() -> None:
        left: list[EndReason] = []
        with pair() as (source, writer):
            end = WaitingEnd(source, "caller", b"", left.append)
            leave(writer)
            await until(lambda: bool(left))
            end.stop()
            assert left == ["an end left before the other came"]

    run(main())


def test_what_was_held_comes_first() -> None:
    async def main() -> None:
        with pair() as (source, writer), pair() as (reader, sink):
            there = World(source, sink, early=b"early ")
            writer.send(b"late")
            there.flow.start()
            await until(lambda: waiting(reader) == 10)
            assert reader.recv(100) == b"early late"
            assert (there.circuit.carried_bytes, there.ended) == (10, [])
            there.flow.stop()

    run(main())


def test_what_the_reader_does_not_take_stays_with_the_writer() -> None:
    async def main() -> None:
        with pair() as (source, writer), pair(receive_bytes=4096) as (reader, sink):
            limit_unsent(sink, 2**14)
            there = World(source, sink)
            there.flow.start()
            loop = asyncio.get_running_loop()
            writing = asyncio.create_task(loop.sock_sendall(writer, b"x" * 2**22))
            await until(lambda: "callee" in there.circuit.blocked)
            # what has arrived is acknowledged a little later; nothing is anywhere else
            await until(lambda: there.circuit.carried_bytes == waiting(reader) + (unacknowledged_bytes(sink) or 0))
            assert not writing.done()
            left = 2**22
            while left:
                left -= len(await loop.sock_recv(reader, left))
            await writing
            assert there.circuit.carried_bytes == 2**22
            assert there.circuit.blocked == {}
            there.flow.stop()

    run(main())


@contextlib.asynccontextmanager
async def stuck() -> AsyncGenerator[tuple[World, socket.socket, socket.socket]]:
    """Give a flow whose reader has taken nothing yet, noted at 0, that reader, and its sink."""
    with pair() as (source, writer), pair(receive_bytes=4096) as (reader, sink):
        there = World(source, sink)
        there.flow.start()
        writing = asyncio.create_task(asyncio.get_running_loop().sock_sendall(writer, b"x" * 2**24))
        await until(lambda: "callee" in there.circuit.blocked)
        there.relay.blocked(there.circuit, "callee", 0.0)
        yield there, reader, sink
        there.flow.stop()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


def test_a_reader_whose_kernel_acknowledges_is_slow_and_does_not_stand_still() -> None:
    async def main() -> None:
        async with stuck() as (there, reader, sink):
            await until(lambda: waiting(reader) > 0)
            there.flow.look(1.0)
            before = unacknowledged_bytes(sink) or 0
            assert there.circuit.blocked == {"callee": 0.0}
            while (unacknowledged_bytes(sink) or 0) >= before:
                with contextlib.suppress(BlockingIOError):
                    reader.recv(1000)
            there.flow.look(2.0)
            assert there.circuit.blocked == {"callee": 2.0}

    run(main())


def test_where_nothing_is_acknowledged_looking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with stuck() as (there, _, __):
            for told in (None, 7, 7, 8, None, 7):  # None: the system does not tell
                monkeypatch.setattr("p2ptunnel.server.flow.unacknowledged_bytes", lambda _, told=told: told)
                there.flow.look(1.0)
            assert there.circuit.blocked == {"callee": 0.0}

    run(main())


def test_where_nothing_waits_there_is_nothing_to_look_at() -> None:
    async def main() -> None:
        with pair() as (source, _), pair() as (__, sink):
            there = World(source, sink)
            there.flow.start()
            for now in (1.0, 2.0):
                there.flow.look(now)
            assert there.circuit.blocked == {}
            there.flow.stop()

    run(main())


def test_the_end_of_the_writer_is_passed_on_behind_its_last_byte() -> None:
    async def main() -> None:
        with pair() as (source, writer), pair() as (reader, sink):
            there = World(source, sink)
            there.flow.start()
            writer.send(b"last words")
            writer.shutdown(socket.SHUT_WR)
            await until(lambda: there.ended == [None])
            assert there.flow.is_done
            loop = asyncio.get_running_loop()
            assert await loop.sock_recv(reader, 100) == b"last words"
            assert await loop.sock_recv(reader, 100) == b""

    run(main())


@pytest.mark.parametrize("words", [b"", b"lost"], ids=["the end", "bytes"])
def test_what_cannot_be_passed_on_ends_the_circuit(words: bytes) -> None:
    async def main() -> None:
        with pair() as (source, writer), pair() as (reader, sink):
            there = World(source, sink)
            reset_close(reader)
            there.flow.start()
            writer.sendall(words)
            writer.shutdown(socket.SHUT_WR)
            await until(lambda: bool(there.ended))
            assert there.ended == ["an end was lost"]
            assert not there.flow.is_done
            there.flow.stop()

    run(main())
