"""The TLS port of a server, and how peers get there: raw lines, WebSocket, proxies, certificates; and who is not served."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import socket
import ssl
import struct
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from p2ptunnel.errors import (
    AddressInUseError,
    ConfigError,
    P2PTunnelError,
    RendezvousError,
    RendezvousTimeoutError,
    ResolveError,
)
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.tls import web_client_context
from p2ptunnel.net import web
from p2ptunnel.net.web import WebLinks, WebRoute, WebWay
from p2ptunnel.server import Rendezvous, handshakes
from p2ptunnel.server import web as fronts
from p2ptunnel.server.web import Web
from p2ptunnel.types import ServerSpec
from p2ptunnel.wire.messages import ReflexiveAnswer, ReflexiveProbe, decode, encode
from tests.helpers import run
from tests.helpers.lasting import until
from tests.helpers.turns import cancel_at_each_turn, descriptors, settle

SERVER, OTHER = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))
ANYWHERE: Final = ("127.0.0.1", 0)
LINE: Final = encode(ReflexiveProbe(mid=5)) + b"\n"
BOTH: Final = pytest.mark.parametrize("way", ["tls", "websocket"])


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@contextlib.asynccontextmanager
async def serving(monkeypatch: pytest.MonkeyPatch, *, certificate: str = "") -> AsyncGenerator[Rendezvous]:
    """A server whose TLS port is where peers look for it."""
    async with Rendezvous(ANYWHERE, identity=SERVER, web=Web(ANYWHERE, certificate)) as server:
        assert server.web_address is not None
        monkeypatch.setattr(web, "WEB_PORT", server.web_address[1])
        yield server


def spec(key: Identity | None = SERVER, name: str = "") -> ServerSpec:
    return ServerSpec(("127.0.0.1", 7000), str(key.public) if key else "", name=name)


async def asked(sock: socket.socket) -> ReflexiveAnswer:
    """Say t=5, and return the answer."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, LINE)
    line = b""
    while not line.endswith(b"\n"):
        part = await loop.sock_recv(sock, 2048)
        assert part, "the end"
        line += part
    answer = decode(line[:-1])
    assert isinstance(answer, ReflexiveAnswer)
    return answer


async def refused(route: WebRoute, text: str, kind: type[P2PTunnelError] = RendezvousError) -> None:
    links = WebLinks()
    with pytest.raises(kind) as caught:
        await links.connect(route)
    assert text in str(caught.value)
    await links.close()


# --- it works -----------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("key", [SERVER, None])
def test_what_is_said_there_is_what_is_said_to_the_tcp_port(
    monkeypatch: pytest.MonkeyPatch, way: WebWay, key: Identity | None
) -> None:
    async def main() -> None:
        before = descriptors()
        async with serving(monkeypatch) as server:
            links = WebLinks()
            sock = await links.connect(WebRoute(spec(key), way))
            answer = await asked(sock)
            assert answer.extra is not None
            assert (answer.extra.host, answer.extra.key) == ("127.0.0.1", str(SERVER.public))  # not of the pair in between
            assert server.stats.connections == 1
            sock.close()
            await until(lambda: not server.stats.connections)
            await links.close()
        await settle(before, 1)

    run(main())


def test_it_is_served_over_the_other_family_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        before = descriptors()
        there = Web(ANYWHERE, also=("::1", 0))
        async with Rendezvous(ANYWHERE, listen_also=("::1", 0), identity=SERVER, web=there) as server:
            assert server.web_address is not None
            monkeypatch.setattr(web, "WEB_PORT", server.web_address[1])
            for host in ("127.0.0.1", "::1"):
                links = WebLinks()
                sock = await links.connect(WebRoute(ServerSpec((host, 7000), str(SERVER.public)), "tls"))
                answer = await asked(sock)
                assert answer.extra is not None
                assert answer.extra.host == host
                sock.close()
                await links.close()
        await settle(before, 1)

    run(main())


@BOTH
def test_megabytes_go_through_as_they_are_whoever_reads_slowly(monkeypatch: pytest.MonkeyPatch, way: WebWay) -> None:
    sent = bytes(range(256)) * 16384

    async def main() -> None:
        loop = asyncio.get_running_loop()
        ends: list[socket.socket] = []
        async with serving(monkeypatch) as server:
            front = server._front
            assert front is not None
            monkeypatch.setattr(front, "_connections", Catcher(ends))
            links = WebLinks()
            near = await links.connect(WebRoute(spec(), way))
            await loop.sock_sendall(near, b"{")
            await until(lambda: ends)
            far = ends[0]
            assert await loop.sock_recv(far, 10) == b"{"
            for source, sink in ((near, far), (far, near)):
                sending = asyncio.create_task(loop.sock_sendall(source, sent))
                came = bytearray()
                while len(came) < len(sent):
                    came += await loop.sock_recv(sink, 65536)
                await sending
                assert came == sent
            far.close()
            assert await loop.sock_recv(near, 10) == b""  # the end of one is the end of the other
            near.close()
            await links.close()

    run(main(), timeout=15)


class Catcher:
    """Takes the connections of a front instead of a server."""

    def __init__(self, ends: list[socket.socket]) -> None:
        self.ends = ends

    def make(self, source: object) -> asyncio.Protocol:
        return Held(self.ends)


class Held(asyncio.Protocol):
    """Takes the socket away from the loop."""

    def __init__(self, ends: list[socket.socket]) -> None:
        self.ends = ends

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        sock = transport.get_extra_info("socket").dup()
        sock.setblocking(False)
        transport.abort()
        self.ends.append(sock)


def test_a_certificate_of_the_webs_does_for_the_name_that_it_is_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "cert.pem"
    file.write_bytes(certified("rv.example"))
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    web_client_context.cache_clear()

    async def main() -> None:
        async with serving(monkeypatch, certificate=str(file)):
            links = WebLinks()
            sock = await links.connect(WebRoute(spec(name="rv.example"), "tls"))
            assert (await asked(sock)).code == 200
            sock.close()
            await links.close()
            await refused(WebRoute(spec(name="other.example"), "tls"), "another server answers there")
            await refused(WebRoute(spec(), "tls"), "another server answers there")

    run(main())
    web_client_context.cache_clear()


def certified(name: str) -> bytes:
    """Return a certificate for a name that certifies itself, and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(encoding, form, plain) + certificate.public_bytes(encoding)


# --- who is in between ----------------------------------------------------------------------------------------------------


@BOTH
def test_a_server_with_another_key_is_none(monkeypatch: pytest.MonkeyPatch, way: WebWay) -> None:
    async def main() -> None:
        async with serving(monkeypatch):
            await refused(WebRoute(spec(OTHER), way), "another server answers there")
            await refused(WebRoute(spec(OTHER, "rv.example"), way), "another server answers there")

    run(main())


Proxying = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def proxy(
    monkeypatch: pytest.MonkeyPatch, proxying: Proxying, user: str = "", *, context: ssl.SSLContext | None = None
) -> AsyncGenerator[int]:
    """A proxy that the environment names; its port."""
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await proxying(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("https_proxy", f"http://{user}127.0.0.1:{port}/")
    try:
        yield port
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@BOTH
def test_a_proxy_is_asked_for_the_server_by_its_name(monkeypatch: pytest.MonkeyPatch, way: WebWay) -> None:
    heads: list[bytes] = []

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", web.WEB_PORT)
        writer.write(b"HTTP/1.1 200 Connection established\r\nVia: a test\r\n\r\n")

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
            sink.close()

        try:
            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))
        finally:
            far_writer.transport.abort()

    async def main() -> None:
        async with serving(monkeypatch), proxy(monkeypatch, connect, "me:s%40cret@"):
            links = WebLinks()
            sock = await links.connect(WebRoute(spec(name="rv.example"), way))
            assert (await asked(sock)).code == 200
            sock.close()
            await links.close()

    run(main())
    [head] = heads
    lines = head.decode().split("\r\n")
    assert lines[0] == f"CONNECT rv.example:{web.WEB_PORT} HTTP/1.1"
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:s@cret').decode()}" in lines


def test_what_no_proxy_names_goes_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://192.0.2.1:3128")
    for named, host, is_past in (
        ("", "rv.example", False),
        ("rv.example", "rv.example", True),
        (".example", "rv.example", True),
        ("xample", "rv.example", False),
        ("one.example, rv.example", "RV.example", True),
        ("*", "rv.example", True),
    ):
        monkeypatch.setenv("no_proxy", named)
        assert (web._proxy(host) is None) is is_past, named


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "the proxy said: HTTP/1.1 407 Proxy Authentication Required"),
        (b"HTTP/1.1 503 \x1b[31m\r\n\r\n", "the proxy said: HTTP/1.1 503 \\x1b[31m"),
        (b"SSH-2.0-x\r\n\r\n", "the proxy said: SSH-2.0-x"),
        (b"\r\n\r\n", "the proxy said:"),
        (b"", "the proxy gave no answer"),
        (b"x" * 20_000, "the proxy gave no answer"),
    ],
)
def test_a_proxy_that_does_not_is_named(monkeypatch: pytest.MonkeyPatch, answer: bytes, text: str) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if len(answer) < 20_000:  # else it might go on for ever
            writer.close()

    async def main() -> None:
        async with proxy(monkeypatch, refuse, "me:secret@"):
            before = descriptors()
            await refused(WebRoute(spec(), "tls"), text)
            assert descriptors() <= before + 1

    run(main())


@pytest.mark.parametrize(
    "url",
    [
        "socks5://me:secret@127.0.0.1:1",
        "http://me:secret@127.0.0.1:x",
        "http://me:secret@127.0.0.1:99999",
        "http://me:secret/@proxy.example",  # a slash of the password's that is not escaped
        "http://me:secret@[proxy.example",
        "http://me:secret@pro\u2100xy.example",
        "me:secret@pro\x1b[31mxy",
        "http://me:secret\udcff@",
        "http://",
        "https://me:secret@proxy.example",
    ],
)
def test_what_is_no_http_proxy_is_an_error_that_shows_no_password(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("https_proxy", url)

    async def main() -> None:
        with pytest.raises(ResolveError) as caught:
            await WebLinks().connect(WebRoute(spec(), "tls"))
        assert "secret" not in "".join(traceback.format_exception(caught.value))

    run(main())


def test_a_password_that_is_no_text_is_sent_as_the_bytes_that_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://me:\udcff@192.0.2.1:3128")
    proxy = web._proxy("rv.example")
    assert proxy is not None
    assert base64.b64decode(proxy.credentials) == b"me:\xff"


def test_a_proxy_shows_no_password() -> None:
    assert "secret" not in repr(web._Proxy(("192.0.2.1", 1), "secret"))


# --- what is no server ------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def https(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> AsyncGenerator[None]:
    """A web server that says one thing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
        writer.close()

    context = Web(ANYWHERE).context(SERVER)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    monkeypatch.setattr(web, "WEB_PORT", server.sockets[0].getsockname()[1])
    try:
        yield
    finally:
        server.close()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n",
        b"\x00\xff" * 500 + b"\r\n",
        b"",
        b"HTTP/1.1 101 x\r\n" + b"A: b\r\n" * 5000,
    ],
)
def test_what_does_not_speak_websocket_is_refused(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    async def main() -> None:
        async with https(monkeypatch, answer):
            await refused(WebRoute(spec(), "websocket"), "WebSocket")

    run(main())


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


@contextlib.asynccontextmanager
async def stalling(monkeypatch: pytest.MonkeyPatch, where: str) -> AsyncGenerator[None]:
    """What is connected to, and says nothing from some point on."""
    async with proxy(monkeypatch, say_nothing, context=Web(ANYWHERE).context(SERVER) if where == "websocket" else None) as port:
        if where != "proxy":
            monkeypatch.delenv("https_proxy")
            monkeypatch.setattr(web, "WEB_PORT", port)
        yield


@pytest.mark.parametrize("where", ["proxy", "tls", "websocket"])
def test_who_stalls_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr(web, "TRANSACTION_TIMEOUT", 0.2)

    async def main() -> None:
        async with stalling(monkeypatch, where):
            before = descriptors()
            await refused(WebRoute(spec(), "websocket"), "did not answer over TCP in 0.2 s", RendezvousTimeoutError)
            await settle(before + 1)  # the other side's

    run(main())


# --- who is not served ------------------------------------------------------------------------------------------------------


async def over_tls(server: Rendezvous, *said: bytes) -> bytes:
    """Say something over TLS, the second part behind the first answer; return all that is answered."""
    assert server.web_address is not None
    reader, writer = await asyncio.open_connection(*server.web_address, ssl=web_client_context(SERVER.public))
    try:
        first, *others = said
        writer.write(first)
        answer = await reader.readuntil(b"\r\n\r\n") if others else b""
        writer.write(b"".join(others))
        return answer + await reader.read()
    except (ConnectionError, ssl.SSLError):
        return b""
    finally:
        writer.transport.abort()


REQUEST: Final = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CLOSED: Final = b"HTTP/1.1 101 Switching Protocols\r\n"


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"\x00" * 100 + b"\r\n",
        b"G" * 20_000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 4000,
    ],
)
def test_who_speaks_neither_language_is_cut_off(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    async def main() -> None:
        async with serving(monkeypatch) as server:
            answer = await over_tls(server, said)
            assert not answer or answer.startswith(b"HTTP/1.1 4")
            await until(lambda: server.dropped["no message and no WebSocket over TLS"] == 1)
            assert server.stats.connections == 0

    run(main())


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x82\x7f" + struct.pack("!Q", 1 << 40), 1002),  # not masked
        (b"\x82\xff" + struct.pack("!Q", 1 << 40), 1009),
        (b"\x8f\x80\0\0\0\0", 1002),
        (b"\xf2\x80\0\0\0\0", 1002),
    ],
)
def test_a_frame_that_is_none_or_too_long_ends_it(monkeypatch: pytest.MonkeyPatch, frame: bytes, code: int) -> None:
    async def main() -> None:
        async with serving(monkeypatch) as server:
            await over_tls(server, REQUEST + frame)  # with the request, or behind it
            answer = await over_tls(server, REQUEST, frame)
            assert answer.startswith(CLOSED)
            assert struct.pack("!BxH", 0x88, code)[:1] in answer
            assert struct.pack("!H", code) in answer
            await until(lambda: not server.stats.connections)

    run(main())


def test_what_is_in_frames_is_judged_as_on_the_tcp_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(monkeypatch) as server:
            junk = b"\x82\x85\0\0\0\0" + b"junk\n"
            assert (await over_tls(server, REQUEST, junk)).startswith(CLOSED)
            assert server.dropped["junk"] == 1

    run(main())


def test_silent_handshakes_have_few_places_and_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes, "WEB_HANDSHAKES_MAX", 3)
    monkeypatch.setattr(fronts, "CONTROL_FIRST_LINE", 0.2)

    async def main() -> None:
        before = descriptors()
        async with serving(monkeypatch) as server:
            assert server.web_address is not None
            silent = [socket.create_connection(server.web_address) for _ in range(5)]
            await until(lambda: server.dropped["too many handshakes"] == 2)
            await until(lambda: server.dropped["no handshake over TLS"] == 3)
            for sock in silent:
                sock.close()
            links = WebLinks()
            sock = await links.connect(WebRoute(spec(), "tls"))
            assert (await asked(sock)).code == 200
            sock.close()
            await links.close()
        await settle(before, 1)

    run(main())


# --- life -------------------------------------------------------------------------------------------------------------------


@BOTH
def test_connecting_can_be_cancelled_at_any_turn_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, way: WebWay) -> None:
    async def main() -> int:
        async with serving(monkeypatch):
            links = WebLinks()

            async def undo(sock: socket.socket) -> None:
                sock.close()
                await links.close()

            return await cancel_at_each_turn(lambda: links.connect(WebRoute(spec(), way)), undo)

    assert run(main(), timeout=15) > 5


def test_what_cannot_be_served_is_refused_before(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("none", encoding="ascii")
    with pytest.raises(ConfigError):
        Rendezvous(ANYWHERE, web=Web(ANYWHERE))
    for file in ("missing.pem", "cert.pem"):
        with pytest.raises(ConfigError) as caught:
            Rendezvous(ANYWHERE, identity=SERVER, web=Web(ANYWHERE, str(tmp_path / file)))
        assert file in str(caught.value)

    async def main() -> None:
        before = descriptors()
        with socket.create_server(ANYWHERE) as taken:
            server = Rendezvous(ANYWHERE, identity=SERVER, web=Web(taken.getsockname()))
            with pytest.raises(AddressInUseError) as caught:
                await server.start()
            assert caught.value.hint.endswith("--tls-port 8443")
        await settle(before, 1)

    run(main())
