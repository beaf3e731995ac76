"""The TLS port of a server: what comes there is what comes to its TCP port, with a coat or two around it.

Rule: a handshake costs bounded time and a bounded place; behind it, all rules are those of `server.control`.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import socket
import ssl
from collections.abc import Sequence
from typing import Final

import msgspec
from websockets.http11 import Request
from websockets.server import ServerProtocol

from p2ptunnel.defaults import (
    ACCEPT_PAUSE,
    CLOSE_GRACE,
    CONTROL_FIRST_LINE,
    WEB_FRAME_MAX_BYTES,
    WEB_HEAD_MAX_BYTES,
)
from p2ptunnel.errors import ConfigError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.tls import web_server_context
from p2ptunnel.net.bridge import Bridges, Codec, End, Frames, Plain
from p2ptunnel.server.control import ControlConnections
from p2ptunnel.server.handshakes import Handshakes
from p2ptunnel.server.listening import listen_at
from p2ptunnel.types import Address

__all__ = ["Web", "WebFront"]

_LINE: Final = b"{"  # how each message begins, and no request of HTTP


class Web(msgspec.Struct, frozen=True):
    """Where, and as whom, a server serves inside TLS.

    Attributes:
        listen: The host is numeric; port 0 picks one.
        also: The same over the other family; None: nowhere.
        certificate: A file with a certificate chain of the web's; empty: the server's own key shows who it is.
        key: The file with its key; empty: it is in the same.
    """

    listen: Address
    certificate: str = ""
    key: str = ""
    also: Address | None = None

    def context(self, identity: Identity | None) -> ssl.SSLContext:
        """Return the context of TLS.

        Raises:
            ConfigError: There is nothing to show, or a file cannot be read or is not what it should be.
        """
        if not self.certificate and identity is None:
            raise ConfigError("TLS without a certificate and without a key of the server's", "Give it one of the two.")
        try:
            return web_server_context(identity, self.certificate, self.key)
        except OSError as error:  # of ssl among them
            raise ConfigError(f"{self.certificate}: {error.strerror or error}", "PEM: the chain, and its key.") from error

    def front(self, context: ssl.SSLContext, connections: ControlConnections) -> WebFront:
        """Return the listener, which does not serve yet.

        Raises:
            AddressInUseError: Another program has the port.
            BindError: The address is not ours.
        """
        listeners = [listen_at(self.listen, instead="--tls-port 8443")]
        try:
            if self.also is not None:
                host, port = self.also
                listeners.append(listen_at((host, port or listeners[0].getsockname()[1]), instead="--tls-port 8443"))
        except BaseException:
            listeners[0].close()
            raise
        return WebFront(listeners, context, connections)


class WebFront:
    """Listeners whose connections become those of a server's TCP port.

    Args:
        listeners: Non-blocking; closed by `close`.
        context: Of TLS.
        connections: Those of the TCP port.
    """

    def __init__(self, listeners: Sequence[socket.socket], context: ssl.SSLContext, connections: ControlConnections) -> None:
        self.address: Final[Address] = listeners[0].getsockname()[:2]
        self._listeners: Final = tuple(listeners)
        self._context: Final = context
        self._connections: Final = connections
        self._numbers: Final = itertools.count()
        self._greeting: Final[dict[int, asyncio.Task[None]]] = {}
        self._unbegun: Final[set[socket.socket]] = set()
        self._handshakes: Final = Handshakes(random.SystemRandom())
        self._bridges: Final = Bridges()
        self._accepting: Final[list[asyncio.Task[None]]] = []

    def start(self) -> None:
        """Serve."""
        self._accepting.extend(asyncio.create_task(self._accept(listener)) for listener in self._listeners)

    async def close(self) -> None:
        """Close the listeners and every connection; closing twice is fine."""
        tasks = [*self._accepting, *self._greeting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in (*self._listeners, *self._unbegun):
            sock.close()
        await self._bridges.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError:  # out of descriptors
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            source: Address = address[:2]
            number = next(self._numbers)
            task = self._greeting[number] = asyncio.create_task(self._greet(sock, source))
            self._unbegun.add(sock)
            task.add_done_callback(functools.partial(self._greeted, number, sock))
            victim = self._handshakes.enter(number, source[0])
            if victim is not None:
                self._connections.cut_off["too many handshakes"] += 1
                self._greeting[victim].cancel()

    def _greeted(self, number: int, sock: socket.socket, task: asyncio.Task[None]) -> None:
        del self._greeting[number]
        self._handshakes.leave(number)
        if sock in self._unbegun:  # cancelled before its first turn
            self._unbegun.discard(sock)
            sock.close()
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, OSError):
            asyncio.get_running_loop().call_exception_handler({"message": "a handshake failed", "exception": error})

    async def _greet(self, sock: socket.socket, source: Address) -> None:
        """Finish the handshakes of a connection, and make it one of the TCP port's."""
        outer = End()
        self._unbegun.discard(sock)
        try:
            async with asyncio.timeout(CONTROL_FIRST_LINE):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: outer, sock, ssl=self._context, ssl_shutdown_timeout=CLOSE_GRACE
                )
                codec = await self._understood(outer)
                if codec is None:
                    self._connections.cut_off["no message and no WebSocket over TLS"] += 1
                else:
                    await self._hand_on(outer, codec, source)
                    return
        except OSError:  # the end of the time, a handshake that failed, a connection that broke
            self._connections.cut_off["no handshake over TLS"] += 1
        except BaseException:
            outer.abort()
            raise
        outer.abort()

    async def _understood(self, outer: End) -> Codec | None:
        """Return how its bytes look, as its first ones show; None if they are nothing of ours."""
        data = await outer.read(WEB_HEAD_MAX_BYTES)
        if data.startswith(_LINE):
            outer.unread(data)
            return Plain()
        protocol = ServerProtocol(max_size=WEB_FRAME_MAX_BYTES)
        room = WEB_HEAD_MAX_BYTES
        while data and room > 0:
            room -= len(data)
            protocol.receive_data(data)
            if events := protocol.events_received():
                return self._accepted(outer, protocol, events)
            if protocol.handshake_exc is not None:
                return None
            data = await outer.read(room)
        return None

    def _accepted(self, outer: End, protocol: ServerProtocol, events: Sequence[object]) -> Codec | None:
        request, *early = events
        assert outer.transport is not None
        assert isinstance(request, Request)
        protocol.send_response(protocol.accept(request))
        outer.transport.writelines(protocol.data_to_send())
        return None if protocol.handshake_exc is not None else Frames(protocol, early)

    async def _hand_on(self, outer: End, codec: Codec, source: Address) -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        inner = End()
        try:
            await loop.connect_accepted_socket(lambda: inner, near)
            await loop.connect_accepted_socket(lambda: self._connections.make(source), far)
        except BaseException:
            inner.abort()
            near.close()
            far.close()
            raise
        self._bridges.add(outer, inner, codec)
