"""asyncssh over a stream, against an SSH server of asyncssh on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import asyncssh
import pytest

from p2ptunnel.abc import Stream
from p2ptunnel.errors import ConfigError, MissingExtraError, PeerOfflineError, SSHError
from p2ptunnel.ssh import client
from p2ptunnel.ssh.client import open_ssh
from p2ptunnel.types import Address
from tests.helpers import run
from tests.unit.tunnels.streams import Loopback, SocketStream

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:asyncssh")

HOST_KEY = asyncssh.generate_private_key("ssh-ed25519")
USER_KEY = asyncssh.generate_private_key("ssh-ed25519")
TOLD = " ".join(HOST_KEY.export_public_key("openssh").decode().split()[:2])


class ToServer(Loopback):
    """A connector that reaches one address, whatever is asked for."""

    def __init__(self, address: Address) -> None:
        super().__init__()
        self.address = address

    async def connect(
        self, tag: str, service: str = "default", *, timeout: float | None = None, confirm: bool = True
    ) -> Stream:
        self.asked.append((tag, service))
        sock = socket.create_connection(self.address)
        sock.setblocking(False)
        self.opened.append(SocketStream(sock, tag, service))
        return self.opened[-1]


async def shell(process: Any) -> None:
    process.stdout.write(f"{process.command} {await process.stdin.read()}")
    process.exit(3)


@contextlib.asynccontextmanager
async def server(**options: Any) -> AsyncIterator[ToServer]:
    """Serve, and leave no connection behind whose client has just gone."""
    connections: list[asyncssh.SSHServerConnection] = []

    class Server(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            connections.append(conn)

    listening = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[HOST_KEY],
        authorized_client_keys=asyncssh.import_authorized_keys(USER_KEY.export_public_key("openssh").decode()),
        process_factory=shell,
        sftp_factory=True,
        server_factory=Server,
        **options,
    )
    async with listening:
        yield ToServer(listening.sockets[0].getsockname())
    for connection in connections:
        connection.abort()
        await connection.wait_closed()


def test_a_command_runs_over_the_stream() -> None:
    async def main() -> None:
        async with server() as connector:
            ssh = await open_ssh(connector, "nas", known_host_keys=[TOLD], username="pi", client_keys=[USER_KEY])
            async with ssh:
                done = await ssh.run("uptime", input="now")
                assert (done.exit_status, done.stdout) == (3, "uptime now")
                assert repr(ssh) == "<SSH pi@nas>"
                assert ssh.connection.get_extra_info("send_cipher") in client._CIPHERS
            await ssh.close()
            assert connector.asked == [("nas", "ssh")]

    run(main())


def test_a_process_and_files_go_over_the_stream() -> None:
    async def main() -> None:
        async with (
            server() as connector,
            await open_ssh(connector, "nas", known_host_keys=[TOLD], client_keys=[USER_KEY], service="box") as ssh,
        ):
            process = await ssh.process("cat")
            process.stdin.write("meow")
            process.stdin.write_eof()
            assert await process.stdout.read() == "cat meow"
            async with await ssh.sftp() as files:
                assert await files.exists("/")
            assert connector.asked == [("nas", "box")]

    run(main())


def test_another_host_key_than_the_told_one_is_refused() -> None:
    async def main() -> None:
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key("openssh").decode()
        async with server() as connector:
            with pytest.raises(SSHError) as caught:
                await open_ssh(connector, "nas", known_host_keys=[other], client_keys=[USER_KEY])
            assert str(caught.value) == "ssh to nas: its host key is not the one that the peer told"
            assert connector.opened[0].sock.fileno() == -1

    run(main())


def test_a_user_without_the_right_key_is_refused() -> None:
    async def main() -> None:
        wrong = asyncssh.generate_private_key("ssh-ed25519")
        async with server() as connector:
            with pytest.raises(SSHError) as caught:
                await open_ssh(connector, "nas", known_host_keys=[TOLD], username="pi", client_keys=[wrong])
            assert str(caught.value) == "ssh to nas: pi may not log in there"
            assert "client_keys" in caught.value.hint

    run(main())


def test_without_a_told_host_key_nothing_is_opened() -> None:
    with pytest.raises(SSHError, match="no host key of its server is known"):
        run(open_ssh(ToServer(("127.0.0.1", 1)), "nas", known_host_keys=[]))


@pytest.mark.parametrize("option", ["known_hosts", "sock", "tunnel", "host", "port", "proxy_command"])
def test_what_the_peer_decides_cannot_be_given(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} cannot be given"):
        run(open_ssh(Loopback(), "nas", known_host_keys=[TOLD], **{option: None}))


def test_a_server_that_is_none_is_an_error_of_its_own() -> None:
    async def main() -> None:
        async with Loopback() as connector:
            opening = asyncio.create_task(open_ssh(connector, "nas", known_host_keys=[TOLD], client_keys=[USER_KEY]))
            peer = await connector.arrived.get()
            await peer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
            await peer.close()
            with pytest.raises(SSHError, match=r"^ssh to nas: "):
                await opening
            connector.opened[0].sock.close()

    run(main())


def test_a_bad_option_closes_the_stream() -> None:
    async def main() -> None:
        async with Loopback() as connector:
            with pytest.raises(SSHError):
                await open_ssh(connector, "nas", known_host_keys=[TOLD], client_keys=["/dev/null/key"])
            assert connector.opened[0].sock.fileno() == -1

    run(main())


def test_an_unreachable_peer_is_told_as_it_is() -> None:
    async def main() -> None:
        async with Loopback() as connector:
            connector.error = PeerOfflineError("nas")
            await open_ssh(connector, "nas", known_host_keys=[TOLD])

    with pytest.raises(PeerOfflineError):
        run(main())


def test_cancelling_a_login_closes_the_stream() -> None:
    async def main() -> None:
        async with Loopback() as connector:
            opening = asyncio.create_task(open_ssh(connector, "nas", known_host_keys=[TOLD], client_keys=[USER_KEY]))
            peer = await connector.arrived.get()
            assert (await peer.read()).startswith(b"SSH-2.0-AsyncSSH")
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            assert connector.opened[0].sock.fileno() == -1
            peer.abort()

    run(main())


def test_without_asyncssh_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "asyncssh", None)
    with pytest.raises(MissingExtraError) as caught:
        run(open_ssh(Loopback(), "nas", known_host_keys=[TOLD]))
    assert caught.value.hint == "pip install 'p2ptunnel[ssh]'"


@pytest.mark.parametrize(
    ("cpu", "first"), [("flags\t: fpu aes avx", "aes128-gcm@openssh.com"), ("Features : half", "chacha20-poly1305@openssh.com")]
)
def test_the_cipher_suits_the_cpu(cpu: str, first: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "cpuinfo").write_text(cpu)
    monkeypatch.setattr(client, "_CPU", tmp_path / "cpuinfo")
    assert client._settings("nas", [TOLD], None, None, {})["encryption_algs"][0] == first
