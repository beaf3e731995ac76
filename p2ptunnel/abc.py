"""The seams between layers: what a pipe, a stream and a connector promise, whoever implements them."""

from __future__ import annotations

import abc
import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar, runtime_checkable

import msgspec

from p2ptunnel.types import Address, Path

__all__ = ["Closable", "Connector", "Opening", "Pipe", "Splice", "Spliceable", "Stream", "StreamStats", "StreamTunnel"]


class Closable(Protocol):
    """Whatever must be closed, and can be awaited while it does."""

    async def close(self) -> None:
        """Close; closing twice is fine."""
        ...


T = TypeVar("T", bound=Closable)
P = TypeVar("P", bound=asyncio.Protocol)


class Pipe(abc.ABC):
    """One reliable, ordered, unauthenticated byte pipe to a peer: what a transport gives and a channel secures.

    Exactly one of `attach` and `abort` ends the pipe's own life; after `attach` the transport owns the descriptor.
    """

    path: Path

    @abc.abstractmethod
    async def attach(self, factory: Callable[[], asyncio.BaseProtocol]) -> asyncio.Transport:
        """Hand the bytes to a protocol of asyncio's and return its transport.

        Raises:
            OSError: The pipe broke before.
        """

    @abc.abstractmethod
    def abort(self) -> None:
        """Close at once, by RST where there is one; closing twice is fine."""


class StreamTunnel(Protocol):
    """What asyncssh wants of a `tunnel=`: something that makes a connection, wherever asyncssh believes that it goes."""

    async def create_connection(self, session_factory: Callable[[], P], remote_host: str, remote_port: int) -> tuple[Any, P]:
        """Connect the protocol that `session_factory` makes; return its transport and the protocol."""
        ...

    def close(self) -> None:
        """End the connection, if nothing has."""
        ...

    async def wait_closed(self) -> None:
        """Wait until it has ended."""
        ...


class StreamStats(msgspec.Struct, frozen=True):
    """How far a stream has got, in bytes.

    `sent` counts what has left `write`; all of it but `unacknowledged` has certainly come.  `received` counts what came, also
    what has not been read.
    """

    sent: int
    unacknowledged: int
    received: int


class Stream(abc.ABC):
    """One ordered byte flow to a service of a peer, authenticated and encrypted end to end.

    A stream ends with the peer's FIN (`read` returns `b""`) or with an error, never silently short.  The loss of a connection
    is no such error: the stream waits, and goes on over the next one where the bytes stopped.
    """

    service: str
    tag: str

    @property
    @abc.abstractmethod
    def stats(self) -> StreamStats:
        """How far it has got; also after its end."""

    @property
    @abc.abstractmethod
    def path(self) -> Path:
        """The path that carries the bytes now."""

    @abc.abstractmethod
    async def read(self, n: int = 65536) -> bytes:
        """Return 1 to `n` bytes, or `b""` after the peer's FIN.

        Raises:
            StreamResetError: The peer reset the stream.
            ResumeExpiredError: The connection was lost, and no other came in time; `stats` says how far the stream got.
            ChannelLostError: The channel broke for good.
        """

    @abc.abstractmethod
    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send `data`, in order; returns when there is room for more, so awaiting it is the back-pressure.

        The buffer may be reused when the call returns.

        Raises:
            StreamResetError: The peer reset the stream.
            ChannelLostError: The channel broke.
        """

    @abc.abstractmethod
    async def write_eof(self) -> None:
        """Send FIN: no more bytes from here; reading goes on."""

    @abc.abstractmethod
    async def delivered(self) -> None:
        """Wait until the peer has acknowledged every byte that was written; also after `close`.

        Raises:
            ResumeExpiredError: The connection was lost, and no other came in time; `stats` says how far the stream got.
            ChannelError: The session ended before.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Finish writing and give up reading; closing twice is fine."""

    @abc.abstractmethod
    def abort(self, reason: str = "cancelled") -> None:
        """Reset the stream at once; bytes under way are lost."""

    @abc.abstractmethod
    def socket(self) -> socket.socket:
        """Give a real descriptor (one end of a socketpair) for libraries that want one; the stream is spent afterwards."""

    @abc.abstractmethod
    def asyncssh_tunnel(self) -> StreamTunnel:
        """Give an object for asyncssh's `tunnel=`: `asyncssh.connect(host, tunnel=stream.asyncssh_tunnel())`.

        The host that is named there is only a name, as which the host key is looked up.  The stream is spent.
        """

    async def readexactly(self, n: int) -> bytes:
        """Return exactly `n` bytes.

        Raises:
            asyncio.IncompleteReadError: FIN came before; its `partial` has what was read.
        """
        parts: list[bytes] = []
        missing = n
        while missing:
            part = await self.read(missing)
            if not part:
                raise asyncio.IncompleteReadError(b"".join(parts), n)
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.close()
        else:
            self.abort()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while part := await self.read():
            yield part


class Splice(Protocol):
    """What a stream is joined to, instead of being read and written: bytes go from one to the other without a copy in between.

    The stream calls these whenever it can; none of them may wait, raise, or call back.
    """

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Put bytes for the peer into `buffer` and return how many: 0 at the end, None while there are none."""
        ...

    def take(self, data: memoryview, /) -> int:
        """Take bytes that came and return how many; the stream keeps the rest until `Spliceable.sink_ready`."""
        ...

    def stopped(self) -> None:
        """Learn that the peer takes no more: `readinto` is not called again."""
        ...

    def ended(self) -> None:
        """Learn that the peer's FIN came behind all that was taken."""
        ...

    def broke(self, error: Exception) -> None:
        """Learn that instead of a FIN this error came behind all that was taken."""
        ...


@runtime_checkable
class Spliceable(Protocol):
    """A stream that can be spliced; whatever cannot is read and written."""

    def splice(self, other: Splice) -> None:
        """Join the stream to `other`: from now on it is neither read nor written otherwise."""
        ...

    def source_ready(self) -> None:
        """Say that `readinto` may have bytes again; it is called now, or when its turn comes."""
        ...

    def sink_ready(self) -> bool:
        """Say that `take` can take more; tell whether it has taken all there was."""
        ...

    def finish(self) -> None:
        """Do what `Stream.close` does, which never has to wait."""
        ...

    def abort(self, reason: str = "cancelled") -> None:
        """Reset the stream at once; bytes under way are lost."""
        ...


class Connector(Protocol):
    """Whatever can open a stream to a service of a peer: `Peer` is one; tunnels and ssh know no more of it than this."""

    async def connect(
        self, tag: str, service: str = "default", *, timeout: float | None = None, confirm: bool = True
    ) -> Stream:
        """Open a stream; see `Peer.connect`."""
        ...

    @property
    def local_address(self) -> Address | None:
        """The address that peers see, None while unknown."""
        ...


class Opening(Generic[T]):
    """What an opener returns: `await` it for the opened thing, or `async with` it, which also closes the thing."""

    def __init__(self, opening: Coroutine[Any, Any, T]) -> None:
        self._opening = opening
        self._opened: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._opening.__await__()

    async def __aenter__(self) -> T:
        self._opened = await self._opening
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._opened is not None
        await self._opened.close()
