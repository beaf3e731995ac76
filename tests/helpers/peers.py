"""Two peers on this machine, over real TCP and real TLS, with a tap on the wire between them for those who want one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator

from p2ptunnel.identity.acl import AccessList
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.session.session import (
    OnOpen,
    OpenRequest,
    Session,
    SessionOptions,
    accept_session,
    connect_session,
    resume_session,
)
from p2ptunnel.session.stream import SessionStream
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.transports.tcp import TcpPipe, read_preamble
from p2ptunnel.types import Path

__all__ = ["CALLEE", "CALLER", "Peers", "Wire", "new_pipe", "sessions", "tcp_pair"]

CALLER, CALLEE = (Identity.from_seed(bytes([number]) * 32) for number in (21, 22))


def tcp_pair(buffer_bytes: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection over loopback, non-blocking; with kernel buffers of this size where one is given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for end in (client, server):
        end.setblocking(False)
        if buffer_bytes is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    return client, server


def new_pipe(sock: socket.socket) -> TcpPipe:
    """A connected socket as a pipe."""
    path = Path(kind="direct", transport="tcp", local=sock.getsockname()[:2], remote=sock.getpeername()[:2], why="a test")
    return TcpPipe(sock, path)


class Peers:
    """How two peers meet: identities, what each believes of the other, and what was asked of the callee."""

    def __init__(self, *services: str) -> None:
        self.caller = CALLER
        self.callee = CALLEE
        self.expected = CALLEE.public
        self.access = AccessList()
        self.access.allow(CALLER.public, *services)
        self.selector = os.urandom(16)
        self.requests: asyncio.Queue[OpenRequest] = asyncio.Queue()
        self.events: list[TraceEvent] = []
        self.tracer = Tracer(self.events.append)
        self.on_open: OnOpen = self._on_open
        self.options = SessionOptions()
        self.accepted: list[Session] = []
        """The callee's sessions, in the order in which they began."""

    async def _on_open(self, request: OpenRequest) -> None:
        """Leave the decision to the test, which takes the request from the queue."""
        self.requests.put_nowait(request)
        await request.session.closed.wait()

    async def connect(self, sock: socket.socket) -> Session:
        """The caller's side."""
        return await connect_session(
            new_pipe(sock),
            identity=self.caller,
            tag="home-nas",
            peer_key=self.expected,
            selector=self.selector,
            options=self.options,
            tracer=self.tracer,
        )

    async def accept(self, sock: socket.socket, *, over_relay: bool = False) -> Session:
        """The callee's side; over the relay there is no preamble."""
        try:
            selector = self.selector if over_relay else await read_preamble(sock)
        except BaseException:
            sock.close()
            raise
        session = await accept_session(
            new_pipe(sock),
            identity=self.callee,
            access=self.access,
            selector=selector,
            on_open=self.on_open,
            find=self.find,
            options=self.options,
            tracer=self.tracer,
        )
        if session not in self.accepted:
            self.accepted.append(session)
        return session

    def find(self, key: PublicKey, session_id: bytes) -> Session | None:
        """The callee's living session of that id."""
        return next((s for s in self.accepted if s.error is None and (s.peer_key, s.session_id) == (key, session_id)), None)

    async def rejoin(self, caller: Session, ends: tuple[socket.socket, socket.socket] | None = None) -> None:
        """Bring up another channel for the caller's session."""
        client, server = ends or tcp_pair()
        self.selector = os.urandom(16)
        accepting = asyncio.ensure_future(self.accept(server))
        accepting.add_done_callback(lambda task: server.close() if task.cancelled() else None)  # perhaps before it began
        try:
            await resume_session(caller, new_pipe(client), identity=self.caller, selector=self.selector)
        finally:
            await asyncio.gather(accepting, return_exceptions=True)

    async def meet(
        self, ends: tuple[socket.socket, socket.socket] | None = None
    ) -> tuple[Session | BaseException, Session | BaseException]:
        """Both sides at once: the caller's session and the callee's, or what each raised."""
        client, server = ends or tcp_pair()
        caller, callee = await asyncio.gather(self.connect(client), self.accept(server), return_exceptions=True)
        return caller, callee

    async def stream(self, caller: Session, service: str) -> tuple[SessionStream, SessionStream]:
        """An accepted stream: the caller's end and the callee's."""
        ours = caller.open(service)
        request = await self.requests.get()
        return ours, request.accept()


@contextlib.asynccontextmanager
async def sessions(
    peers: Peers, ends: tuple[socket.socket, socket.socket] | None = None
) -> AsyncGenerator[tuple[Session, Session]]:
    """The sessions of two peers that have met; closed in the end."""
    caller, callee = await peers.meet(ends)
    assert isinstance(caller, Session), caller
    assert isinstance(callee, Session), callee
    try:
        yield caller, callee
    finally:
        await asyncio.gather(caller.close(grace=0), callee.close(grace=0))


class Wire:
    """A man in the middle: two TCP connections, and every byte that goes between them recorded, or damaged, or withheld."""

    def __init__(self) -> None:
        self.client, near = tcp_pair()
        far, self.server = tcp_pair()
        self.seen: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        """What went from the caller to the callee, and back."""
        self.flip: tuple[int, int] | None = None
        """Direction (0: from the caller) and place of a byte to be damaged."""
        self.is_open = asyncio.Event()
        """Clear it, and bytes wait."""
        self.is_open.set()
        self._ends = (near, far)
        self._tasks = [asyncio.ensure_future(self._carry(0, near, far)), asyncio.ensure_future(self._carry(1, far, near))]

    async def _carry(self, direction: int, source: socket.socket, target: socket.socket) -> None:
        loop, seen = asyncio.get_running_loop(), self.seen[direction]
        with contextlib.suppress(OSError):
            while data := bytearray(await loop.sock_recv(source, 65536)):
                await self.is_open.wait()
                if self.flip and self.flip[0] == direction and 0 <= self.flip[1] - len(seen) < len(data):
                    data[self.flip[1] - len(seen)] ^= 1
                seen += data
                await loop.sock_sendall(target, data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """End both connections as a forged FIN would: in order, and without a word of TLS."""
        for end in self._ends:
            end.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """Close everything of the wire's own."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for end in self._ends:
            end.close()
