"""A connection to a server through what only lets the web through: TLS on port 443, WebSocket inside it, a proxy before it.

What is returned is a socket like any other; the loop carries its bytes.  TLS is a coat here and no lock: what is said inside is
signed or sealed as it is without it.  Where the server's key is known it is checked all the same, and who is in between shows.

Source: RFC 8446, 6455, 9110 9.3.6 (CONNECT).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
import urllib.parse
import urllib.request
from typing import Final, Literal, TypeAlias

import msgspec
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.uri import parse_uri

from p2ptunnel.defaults import CLOSE_GRACE, TRANSACTION_TIMEOUT, WEB_FRAME_MAX_BYTES, WEB_HEAD_MAX_BYTES, WEB_PORT
from p2ptunnel.errors import InvalidKeyError, RendezvousError, RendezvousTimeoutError, ResolveError
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.identity.tls import web_client_context
from p2ptunnel.net.bridge import Bridges, Codec, End, Frames, Plain
from p2ptunnel.net.interfaces import resolve
from p2ptunnel.types import Address, ServerSpec, clean, format_address

__all__ = ["WebLinks", "WebRoute", "WebWay", "proxy_towards"]

WebWay: TypeAlias = Literal["tls", "websocket"]
_PROXY_PORT: Final = 8080
_CLOSE_GRACE: Final = 0.5  # seconds in which the peer that closes waits for goodbyes of TLS


class WebRoute(msgspec.Struct, frozen=True):
    """How a server is reached where only the web is let through.

    Attributes:
        server: Its address is numeric; `name` is what it was called, and shown to proxies.
        way: What the bytes look like inside TLS.
    """

    server: ServerSpec
    way: WebWay


class WebLinks:
    """The connections of one peer through the web."""

    def __init__(self) -> None:
        self._bridges: Final = Bridges()

    async def connect(self, route: WebRoute) -> socket.socket:
        """Return a non-blocking socket whose bytes go to the server's port 443 and back; closing it closes all of it.

        Raises:
            RendezvousError: The proxy refused, or what answers is not the server.
            RendezvousTimeoutError: Not all of it was there in `TRANSACTION_TIMEOUT`.
            ResolveError: The proxy's name has no address.
            OSError: No connection.
        """
        limit = asyncio.timeout(TRANSACTION_TIMEOUT)
        try:
            async with limit:
                return await self._connected(route)
        except TimeoutError as error:
            if limit.expired():
                where = format_address((route.server.address[0], WEB_PORT))
                raise RendezvousTimeoutError(where, TRANSACTION_TIMEOUT, "TCP") from error
            raise

    async def _connected(self, route: WebRoute) -> socket.socket:
        server = route.server
        outer = await _tls(server)
        try:
            codec = Plain() if route.way == "tls" else await _upgrade(outer, server)
            near, inner = await _pair()
        except BaseException:
            outer.abort()
            raise
        self._bridges.add(outer, inner, codec)
        return near

    async def close(self) -> None:
        """Close what is still open, once what was written is on its way; closing twice is fine."""
        await self._bridges.close(_CLOSE_GRACE)


async def _pair() -> tuple[socket.socket, End]:
    """Return two ends of a connection inside this process, the second one as the loop has it."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    try:
        _, inner = await asyncio.get_running_loop().create_connection(End, sock=far)  # which closes it, should it fail
    except BaseException:
        near.close()
        raise
    return near, inner


class _Proxy(msgspec.Struct, frozen=True):
    """An HTTP proxy; `credentials` are what its URL has, and in no text."""

    address: Address
    credentials: str

    def __repr__(self) -> str:
        return f"_Proxy({format_address(self.address)})"


async def _tls(server: ServerSpec) -> End:
    """Connect, by TLS that proves the server's key, or as the web does for a server with a certificate of the web's."""
    key = _key(server.key)
    try:
        return await _handshaken(server, web_client_context(key))
    except ssl.SSLCertVerificationError as error:
        if key is None or not server.name:
            raise _refused(server, "another server answers there") from error
    try:
        return await _handshaken(server, web_client_context(None, is_public=True))
    except ssl.SSLCertVerificationError as error:
        raise _refused(server, "another server answers there") from error


def _key(text: str) -> PublicKey | None:
    with contextlib.suppress(InvalidKeyError):
        return PublicKey.parse(text)
    return None


async def _handshaken(server: ServerSpec, context: ssl.SSLContext) -> End:
    loop = asyncio.get_running_loop()
    sock = await _tcp(server)
    _, end = await loop.create_connection(  # which closes it, should it fail
        End, sock=sock, ssl=context, server_hostname=_shown(server), ssl_shutdown_timeout=CLOSE_GRACE
    )
    return end


async def _tcp(server: ServerSpec) -> socket.socket:
    """Connect to the server, or to the proxy and by it to the server."""
    target = (_shown(server), WEB_PORT)
    proxy = _proxy(target[0])
    near = (server.address[0], WEB_PORT) if proxy is None else (await resolve(proxy.address[0]), proxy.address[1])
    loop = asyncio.get_running_loop()
    sock = socket.socket(socket.AF_INET6 if ":" in near[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, near)
        if proxy is not None:
            await _through(sock, proxy, format_address(target))
    except BaseException:
        sock.close()
        raise
    return sock


def proxy_towards(server: ServerSpec) -> Address | None:
    """Return where the proxy is that connects us to a server, as the environment has it; None: we connect ourselves.

    Raises:
        ResolveError: What the environment has is no address of an HTTP proxy.
    """
    proxy = _proxy(_shown(server))
    return None if proxy is None else proxy.address


def _shown(server: ServerSpec) -> str:
    """Return what a server is called towards those on the way."""
    return server.name or server.address[0]


def _proxy(host: str) -> _Proxy | None:
    """Return the proxy that the environment names for a host (https_proxy, no_proxy), None if there is none to be used."""
    named = urllib.request.getproxies_environment()
    url = named.get("https", "")
    if not url or _goes_past(host, named.get("no", "")):
        return None
    try:
        parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
        address = (parts.hostname or "", parts.port or _PROXY_PORT)
    except ValueError:  # its text has all of the URL, with the password
        raise ResolveError("https_proxy", "not the address of a proxy") from None
    if parts.scheme != "http" or not address[0]:
        raise ResolveError(clean(address[0]), "not the address of an HTTP proxy")
    user = f"{urllib.parse.unquote(parts.username or '')}:{urllib.parse.unquote(parts.password or '')}"
    return _Proxy(address, base64.b64encode(user.encode(errors="surrogateescape")).decode() if parts.username else "")


def _goes_past(host: str, no_proxy: str) -> bool:
    """Tell whether a host, or a domain that it is of, stands in no_proxy."""
    names = [name.strip().lstrip(".").lower() for name in no_proxy.split(",")]
    return any(name == "*" or host.lower() == name or host.lower().endswith(f".{name}") for name in names if name)


async def _through(sock: socket.socket, proxy: _Proxy, target: str) -> None:
    """Have the proxy connect to the target; behind its answer nobody speaks before we do."""
    loop = asyncio.get_running_loop()
    credentials = f"Proxy-Authorization: Basic {proxy.credentials}\r\n" if proxy.credentials else ""
    await loop.sock_sendall(sock, f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{credentials}\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        part = await loop.sock_recv(sock, WEB_HEAD_MAX_BYTES)
        head += part
        if not part or len(head) > WEB_HEAD_MAX_BYTES:
            raise RendezvousError(format_address(proxy.address), "the proxy gave no answer", 503)
    status = head.split(b"\r\n", 1)[0].decode("ascii", "replace")
    words = status.split(" ", 2)
    if len(words) < 2 or not (words[0].startswith("HTTP/1.") and words[1].startswith("2")):
        raise RendezvousError(format_address(proxy.address), f"the proxy said: {clean(status)}", 503)


async def _upgrade(end: End, server: ServerSpec) -> Codec:
    """Ask for WebSocket, and wait for the answer."""
    assert end.transport is not None
    host = format_address((_shown(server), WEB_PORT))
    protocol = ClientProtocol(parse_uri(f"wss://{host}/"), max_size=WEB_FRAME_MAX_BYTES)
    protocol.send_request(protocol.connect())
    end.transport.writelines(protocol.data_to_send())
    room = WEB_HEAD_MAX_BYTES
    while not (events := protocol.events_received()) and room > 0:
        data = await end.read(room)
        room -= len(data)
        if not data:
            raise _refused(server, "it ended before it spoke WebSocket")
        protocol.receive_data(data)
    if not events or protocol.handshake_exc is not None:
        reason = protocol.handshake_exc
        text = clean(str(reason)) if isinstance(reason, InvalidHandshake) else "too long an answer"
        raise _refused(server, f"it does not speak WebSocket: {text}")
    return Frames(protocol, events[1:])


def _refused(server: ServerSpec, reason: str) -> RendezvousError:
    return RendezvousError(format_address((server.address[0], WEB_PORT)), reason, 503)
