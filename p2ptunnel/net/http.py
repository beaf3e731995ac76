"""One question to a router over HTTP, on a connection of its own; bounded in time and bytes."""

from __future__ import annotations

import asyncio

from p2ptunnel.defaults import IGD_ANSWER_MAX_BYTES, IGD_TIMEOUT
from p2ptunnel.types import Address
from p2ptunnel.wire.http import HttpAnswer, MalformedHttpError, parse_chunk_size, parse_head

__all__ = ["ask"]


async def ask(address: Address, local_host: str, question: bytes) -> HttpAnswer:
    """Send a request and return the answer.

    Args:
        address: Numeric.
        local_host: Ours to ask from.
        question: The whole request; it asks for the connection to end.

    Raises:
        OSError: There is no connection, or it breaks; TimeoutError after IGD_TIMEOUT.
        MalformedHttpError: What comes is no answer, or too much.
    """
    async with asyncio.timeout(IGD_TIMEOUT):
        reader, writer = await asyncio.open_connection(*address, local_addr=(local_host, 0), limit=IGD_ANSWER_MAX_BYTES)
        try:
            writer.write(question)
            head = parse_head(await reader.readuntil(b"\r\n\r\n"))
            return HttpAnswer(head.status, await _body(reader, head.length, is_chunked=head.is_chunked))
        except asyncio.LimitOverrunError as error:
            raise MalformedHttpError("a line too long") from error
        except asyncio.IncompleteReadError as error:
            raise MalformedHttpError("it ends too early") from error
        finally:
            writer.transport.abort()  # all is said; no TIME_WAIT


async def _body(reader: asyncio.StreamReader, length: int | None, *, is_chunked: bool) -> bytes:
    if is_chunked:
        return await _chunks(reader)
    if length is None:
        return await _rest(reader)
    if length > IGD_ANSWER_MAX_BYTES:
        raise MalformedHttpError(f"{length} bytes")
    return await reader.readexactly(length)


async def _rest(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while part := await reader.read(IGD_ANSWER_MAX_BYTES):
        body += part
        if len(body) > IGD_ANSWER_MAX_BYTES:
            raise MalformedHttpError(f"more than {IGD_ANSWER_MAX_BYTES} bytes")
    return bytes(body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := parse_chunk_size(await reader.readuntil(b"\r\n")):
        if len(body) + size > IGD_ANSWER_MAX_BYTES:
            raise MalformedHttpError(f"more than {IGD_ANSWER_MAX_BYTES} bytes")
        body += (await reader.readexactly(size + 2))[:size]
    return bytes(body)
