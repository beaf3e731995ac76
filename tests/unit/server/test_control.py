"""TCP connections of the server: how bytes become lines, and who is cut off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from p2ptunnel.defaults import DATAGRAM_MAX_BYTES
from p2ptunnel.server import control, doorman
from p2ptunnel.server.control import ControlConnections
from p2ptunnel.types import Address
from tests.helpers import run
from tests.unit.server.relayed import until
from tests.unit.server.wires import Line, line


class Desk:
    """A listener whose lines are kept, and sent back by `answer`."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[tuple[bytes, Address, int]] = asyncio.Queue()
        self.closed: asyncio.Queue[int] = asyncio.Queue()
        self.connections = ControlConnections(self._on_line, self.closed.put_nowait)
        self.address: Address = ("", 0)

    def _on_line(self, data: bytes, source: Address, connection: int) -> bool:
        self.lines.put_nowait((data, source, connection))
        return data != b"junk"

    async def received(self) -> bytes:
        return (await self.lines.get())[0]


@contextlib.asynccontextmanager
async def desk() -> AsyncGenerator[Desk]:
    there = Desk()
    server = await asyncio.get_running_loop().create_server(there.connections.make, "127.0.0.1", 0)
    there.address = server.sockets[0].getsockname()
    try:
        yield there
    finally:
        server.close()
        there.connections.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def connection() -> AsyncGenerator[tuple[Desk, Line]]:
    async with desk() as there, line(there.address) as wire:
        yield there, wire


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_lines_are_whole_however_their_bytes_come(size: int) -> None:
    async def main() -> None:
        async with connection() as (there, wire):
            data = b'{"t":5}\n\n{"t":4}\nrest'
            for at in range(0, len(data), size):
                wire.writer.write(data[at : at + size])
                await wire.writer.drain()
                await asyncio.sleep(0)
            assert [await there.received() for _ in range(3)] == [b'{"t":5}', b"", b'{"t":4}']
            assert there.lines.empty()

    run(main())


def test_a_line_comes_with_its_source_and_the_number_of_its_connection() -> None:
    async def main() -> None:
        async with desk() as there, line(there.address) as first, line(there.address) as second:
            await first.send(b"a")
            await second.send(b"b")
            lines = [await there.lines.get(), await there.lines.get()]
            assert sorted((data, source) for data, source, _ in lines) == [(b"a", first.address), (b"b", second.address)]
            assert {number for _, _, number in lines} == {1, 2}
            there.connections.send(lines[0][2], b"to the first")
            there.connections.send(99, b"to nobody")
            told = first if lines[0][0] == b"a" else second
            assert await told.reader.readline() == b"to the first\n"

    run(main())


def test_the_longest_line_passes() -> None:
    async def main() -> None:
        async with connection() as (there, wire):
            await wire.send(b"x" * DATAGRAM_MAX_BYTES)
            assert len(await there.received()) == DATAGRAM_MAX_BYTES

    run(main())


@pytest.mark.parametrize("end", [b"", b"\n", b"\nshort\n"], ids=["endless", "ended", "with others"])
def test_a_longer_line_ends_the_connection(end: bytes) -> None:
    async def main() -> None:
        async with connection() as (there, wire):
            wire.writer.write(b"x" * (DATAGRAM_MAX_BYTES + 1) + end)
            await wire.ended()
            assert await there.closed.get() == 1
            assert there.lines.empty()
            assert there.connections.cut_off == {"line too long": 1}
            assert len(there.connections) == 0

    run(main())


def test_too_many_lines_at_once_end_the_connection() -> None:
    async def main() -> None:
        async with connection() as (there, wire):
            wire.writer.write(b"{}\n" * 10_000)
            await wire.ended()
            assert there.connections.cut_off == {"too many lines": 1}
            assert there.lines.qsize() <= 64  # those of a first, small read

    run(main())


@pytest.mark.parametrize("data", [b"", b'{"t":5'], ids=["nothing", "half a line"])
def test_who_says_nothing_does_not_stay(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CONTROL_FIRST_LINE", 0.02)

    async def main() -> None:
        async with connection() as (there, wire):
            wire.writer.write(data)
            await wire.ended()
            assert there.connections.cut_off == {"silent": 1}

    run(main())


def test_who_has_spoken_may_be_quiet_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CONTROL_FIRST_LINE", 0.05)
    monkeypatch.setattr(control, "CONTROL_IDLE", 0.3)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connection() as (there, wire):
            await wire.send(b"hello")
            await there.received()
            began = loop.time()
            await wire.ended()
            assert loop.time() - began > 0.25

    run(main())


def test_who_does_not_read_is_cut_off() -> None:
    async def main() -> None:
        async with connection() as (there, wire):
            wire.transport.pause_reading()
            await wire.send(b"hello")
            _, _, number = await there.lines.get()
            for _ in range(1000):
                there.connections.send(number, bytes(10_000))
                await asyncio.sleep(0)
            assert await there.closed.get() == number
            assert there.connections.cut_off == {"does not read": 1}

    run(main())


def test_more_connections_than_there_may_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorman, "CONTROL_CONNECTIONS_MAX", 2)

    async def main() -> None:
        async with desk() as there, line(there.address) as first, line(there.address) as second:
            for wire in (first, second):
                await wire.send(b"hello")
                await there.received()
            async with line(there.address) as third:
                await third.ended()
            assert there.connections.cut_off == {"too many connections": 1}
            assert len(there.connections) == 2
            await first.send(b"still here")
            assert await there.received() == b"still here"

    run(main())


def test_closing_ends_all_and_lets_nobody_in_any_more() -> None:
    async def main() -> None:
        async with desk() as there, line(there.address) as wire:
            await wire.send(b"hello")
            await there.received()
            there.connections.close()
            await wire.ended()
            async with line(there.address) as late:
                await late.ended()
            assert [await there.closed.get(), await there.closed.get()] == [1, 2]
            assert len(there.connections) == 0
            assert there.connections.cut_off == {}  # at once, and not for having been silent

    run(main())


def test_a_connection_that_begins_with_junk_ends() -> None:
    async def main() -> None:
        async with connection() as (there, wire):
            wire.writer.write(b"junk\nhello\n")
            await wire.ended()
            assert there.lines.qsize() == 1
            assert there.connections.cut_off == {"junk": 1}

    run(main())


def test_junk_after_a_message_is_forgiven() -> None:
    async def main() -> None:
        async with connection() as (there, wire):
            for data in (b"hello", b"junk", b"again"):
                await wire.send(data)
                assert await there.received() == data

    run(main())


def test_a_line_that_is_begun_has_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CONTROL_LINE", 0.05)

    async def main() -> None:
        async with connection() as (there, wire):
            await wire.send(b"hello")
            await there.received()
            for byte in b"slowly":
                wire.writer.write(bytes([byte]))
                await asyncio.sleep(0)
            await wire.ended()
            assert there.connections.cut_off == {"slow": 1}

    run(main())


def test_a_line_that_is_dribbled_is_not_waited_for_anew_with_each_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CONTROL_LINE", 0.1)

    async def main() -> None:
        async with connection() as (there, wire):
            await wire.send(b"hello")
            await there.received()
            ended = asyncio.ensure_future(wire.ended())
            began = asyncio.get_running_loop().time()
            while not ended.done():
                wire.writer.write(b"x")
                await asyncio.wait([ended], timeout=0.01)
            await ended
            assert asyncio.get_running_loop().time() - began < 1

    run(main())


def test_what_is_left_unread_for_a_while_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CONTROL_UNREAD", 0.05)
    monkeypatch.setattr(control, "_WRITE_BUFFER_BYTES", 2**30)

    async def main() -> None:
        async with connection() as (there, wire):
            wire.transport.pause_reading()
            await wire.send(b"hello")
            _, _, number = await there.lines.get()
            for _ in range(1000):
                there.connections.send(number, bytes(10_000))
            assert await there.closed.get() == number
            assert there.connections.cut_off == {"does not read": 1}

    run(main())


def test_who_reads_in_time_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_WRITE_BUFFER_BYTES", 2**30)

    async def main() -> None:
        async with connection() as (there, wire):
            await wire.send(b"hello")
            _, _, number = await there.lines.get()
            for _ in range(300):
                there.connections.send(number, bytes(10_000))
            assert len(await wire.reader.readexactly(300 * 10_001)) == 300 * 10_001
            await wire.send(b"still here")
            assert await there.received() == b"still here"

    run(main())


# --- connections that belong to somebody else from some line on -------------------------------------------------------------


def test_a_connection_is_handed_over_with_what_has_come_behind_the_line() -> None:
    async def main() -> None:
        async with connection() as (there, wire):
            await wire.send(b"mine")
            assert await there.received() == b"mine"
            wire.writer.write(b"half a line")
            await until(lambda: there.connections._open[1]._rest != b"")
            taken = there.connections.take_over(1, b"yours")
            assert taken is not None
            sock, rest = taken
            with sock:
                assert rest == b"half a line"
                assert await there.closed.get() == 1
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(sock, b"more")
                assert await wire.reader.readexactly(10) == b"yours\nmore"
                await wire.send(b"a line no more")
                assert await loop.sock_recv(sock, 100) == b"a line no more\n"
            assert there.lines.empty()

    run(main())


def test_a_connection_that_takes_no_line_is_not_handed_over() -> None:
    async def main() -> None:
        async with connection() as (there, wire):
            wire.transport.pause_reading()
            await wire.send(b"mine")
            assert await there.received() == b"mine"
            while not there.connections._open[1]._unread:
                there.connections.send(1, b"x" * DATAGRAM_MAX_BYTES)
            assert there.connections.take_over(1, b"yours") is None
            assert await there.closed.get() == 1
            assert there.connections.take_over(1, b"yours") is None
            wire.transport.abort()

    run(main())


def test_behind_a_last_line_nothing_is_looked_at() -> None:
    async def main() -> None:
        async with connection() as (there, wire):
            await wire.send(b"mine")
            assert await there.received() == b"mine"
            there.connections.send(1, b"goodbye", is_last=True)
            there.connections.send(1, b"goodbye", is_last=True)  # it is over: nothing happens
            await wire.send(b"x" * 5000)
            assert await wire.reader.readline() == b"goodbye\n"
            assert await wire.reader.read() == b""
            wire.writer.write_eof()
            assert await there.closed.get() == 1
            assert there.lines.empty()
            assert not there.connections.cut_off

    run(main())
