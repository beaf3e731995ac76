"""The callee's end: sockets of what services stand for, and the reasons why there is none."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from p2ptunnel.errors import StreamResetError, TargetRefusedError
from p2ptunnel.tunnels.spec import ServeSpec
from p2ptunnel.tunnels.target import open_target, serve_target
from tests.helpers import run
from tests.unit.tunnels.streams import SocketStream, connected_pair

LOCAL = ("127.0.0.1", 0)


def refusal(spec: ServeSpec, **options: Any) -> TargetRefusedError:
    async def main() -> None:
        with contextlib.closing(await open_target(spec, **options)):
            pytest.fail("it connected")

    with pytest.raises(TargetRefusedError) as caught:
        run(main())
    return caught.value


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_tcp_target_is_connected_and_ready_for_the_loop(host: str) -> None:
    async def main() -> None:
        with socket.create_server(LOCAL) as listener:
            sock = await open_target(ServeSpec("web", (host, listener.getsockname()[1])))
            with contextlib.closing(sock):
                assert sock.getpeername() == listener.getsockname()
                assert not sock.getblocking()
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    run(main())


def test_a_unix_target_is_connected(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "s"))
            listener.listen()
            with contextlib.closing(await open_target(ServeSpec("log", str(tmp_path / "s")))) as sock:
                assert sock.getpeername() == str(tmp_path / "s")

    run(main())


def test_a_port_that_nobody_listens_on_refuses() -> None:
    with socket.socket() as holder:
        holder.bind(LOCAL)
        error = refusal(ServeSpec("web", holder.getsockname()))
    assert error.reason == "connection refused"
    assert str(error) == "'web' on this machine cannot be reached: connection refused"


def test_a_unix_socket_that_is_not_there_refuses(tmp_path: Path) -> None:
    assert refusal(ServeSpec("log", str(tmp_path / "s"))).reason == "no such socket"


def test_a_unix_socket_with_a_full_backlog_refuses(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as waiting:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        client = waiting.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(str(tmp_path / "s"))
        assert refusal(ServeSpec("log", str(tmp_path / "s"))).reason == "too busy to accept"


def test_an_unknown_host_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)  # a real look-up would leave this machine
    assert refusal(ServeSpec("web", ("nowhere.invalid", 80))).reason == "no such host"


def test_a_target_that_does_not_answer_refuses_in_time() -> None:
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(LOCAL)
        listener.listen(0)  # one connection waits, later SYNs are dropped
        for _ in range(2):
            client = waiting.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        assert refusal(ServeSpec("web", listener.getsockname()), timeout=0.05).reason == "no answer in 0.05 s"


def test_a_look_up_that_hangs_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    real = socket.getaddrinfo

    def slow(host: str, *arguments: Any, **options: Any) -> Any:
        if not options.get("flags"):
            released.wait()
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        assert refusal(ServeSpec("web", ("nas.example", 80)), timeout=0.05).reason == "no answer in 0.05 s"
    finally:
        released.set()


def test_a_host_with_several_addresses_is_tried_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with socket.create_server(LOCAL) as listener, socket.socket() as holder:
            holder.bind(LOCAL)
            found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", where.getsockname()) for where in (holder, listener, holder)]

            def both(*_: Any, flags: int = 0, **__: Any) -> Any:
                if flags:
                    raise socket.gaierror
                return found

            monkeypatch.setattr(socket, "getaddrinfo", both)
            with contextlib.closing(await open_target(ServeSpec("web", ("two.example", 80)))) as sock:
                assert sock.getpeername() == listener.getsockname()

    run(main())


def test_cancelling_leaves_no_socket() -> None:
    async def main() -> None:
        with socket.socket() as listener, contextlib.ExitStack() as waiting:
            listener.bind(LOCAL)
            listener.listen(0)
            for _ in range(2):
                client = waiting.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(listener.getsockname())
            opening = asyncio.create_task(open_target(ServeSpec("web", listener.getsockname())))
            await asyncio.sleep(0)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening

    run(main())


def test_a_stream_is_served_until_both_directions_ended() -> None:
    async def main() -> None:
        target, program = connected_pair()
        near, far = connected_pair()
        peer = SocketStream(far)
        serving = asyncio.create_task(serve_target(SocketStream(near), target))
        await peer.write(b"question")
        await peer.write_eof()
        loop = asyncio.get_running_loop()
        assert await loop.sock_recv(program, 100) == b"question"
        assert await loop.sock_recv(program, 100) == b""
        await loop.sock_sendall(program, b"answer")
        program.close()
        assert await peer.read() == b"answer"
        assert await peer.read() == b""
        await serving
        await peer.close()

    run(main())


def test_a_stream_that_breaks_resets_the_target() -> None:
    async def main() -> None:
        target, program = connected_pair()
        near, far = connected_pair()
        serving = asyncio.create_task(serve_target(SocketStream(near), target))
        SocketStream(far).abort()
        with pytest.raises(StreamResetError):
            await serving
        with contextlib.closing(program), pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(program, 100)

    run(main())
