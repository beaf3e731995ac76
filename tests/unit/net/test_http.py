"""One question over HTTP, on real loopback sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from p2ptunnel.defaults import IGD_ANSWER_MAX_BYTES
from p2ptunnel.net import http
from p2ptunnel.net.http import ask
from p2ptunnel.types import Address
from p2ptunnel.wire.http import HttpAnswer, MalformedHttpError
from tests.helpers import run

HOST = "127.0.0.1"
HEAD = b"HTTP/1.1 200 OK\r\n"


@contextlib.asynccontextmanager
async def answering(*parts: bytes, ends: bool = True) -> AsyncIterator[Address]:
    """A server that says `parts`, each in a packet of its own, and then ends the connection or does not."""
    served: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            if ends:
                writer.write_eof()
            await reader.read()  # until whoever asked has gone
        except OSError:
            return
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)
        await asyncio.sleep(0)


def asked(*parts: bytes, ends: bool = True) -> HttpAnswer:
    async def main() -> HttpAnswer:
        async with answering(*parts, ends=ends) as address:
            return await ask(address, HOST, b"GET / HTTP/1.1\r\n\r\n")

    return run(main())


@pytest.mark.parametrize(
    "parts",
    [
        (HEAD + b"Content-Length: 4\r\n\r\nbody",),
        (HEAD[:9], HEAD[9:], b"Content-Length: 4\r\n\r\nbo", b"dy and more"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nb\r\n3;x\r\nody\r\n", b"0\r\n\r\n"),
    ],
    ids=["whole", "in parts", "chunked"],
)
def test_a_body_that_says_its_length_needs_no_end(parts: tuple[bytes, ...]) -> None:
    assert asked(*parts, ends=False) == HttpAnswer(200, b"body")


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    assert asked(b"HTTP/1.0 500 x\r\n\r\n", b"bo", b"dy") == HttpAnswer(500, b"body")


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (b"junk\r\n\r\n",),
        (HEAD + b"a" * 2 * IGD_ANSWER_MAX_BYTES,),
        (HEAD + b"Content-Length: 5\r\n\r\nbody",),
        (HEAD + b"Content-Length: %d\r\n\r\n" % (IGD_ANSWER_MAX_BYTES + 1),),
        (HEAD + b"\r\n", *(b"x" * 10_000,) * 7),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n2\r\n",),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 2 * IGD_ANSWER_MAX_BYTES,),
    ],
    ids=["nothing", "junk", "head", "short", "length", "long", "chunks", "size"],
)
def test_what_is_no_answer_or_too_much_is_malformed(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(MalformedHttpError):
        asked(*parts)


def test_a_closed_port_and_a_silent_one_are_os_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "IGD_TIMEOUT", 0.05)

    async def main() -> None:
        async with answering(ends=False) as address:
            with pytest.raises(TimeoutError):
                await ask(address, HOST, b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionRefusedError):
            await ask(address, HOST, b"GET / HTTP/1.1\r\n\r\n")

    run(main())


def test_cancelled_it_leaves_no_connection() -> None:
    async def main() -> None:
        async with answering(HEAD, ends=False) as address:
            question: Callable[[], Coroutine[Any, Any, HttpAnswer]] = lambda: ask(address, HOST, b"GET / HTTP/1.1\r\n\r\n")  # noqa: E731
            for turns in range(8):
                task = asyncio.create_task(question())
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task

    run(main())
