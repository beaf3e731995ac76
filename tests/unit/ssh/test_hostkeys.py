"""Host keys from a real SSH server to the caller."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from p2ptunnel.defaults import HOST_KEYS_MAX_BYTES
from p2ptunnel.errors import AccessDeniedError, RemoteProtocolError
from p2ptunnel.ssh import hostkeys
from p2ptunnel.ssh.hostkeys import HostKeys, fetch_host_keys
from p2ptunnel.types import Address
from tests.helpers import run
from tests.unit.ssh.sshd import needs_openssh, running_sshd
from tests.unit.ssh.test_knownhosts import ED, RSA, key
from tests.unit.tunnels.streams import Loopback, SocketStream, connected_pair


@needs_openssh
def test_a_server_is_asked_for_its_keys(tmp_path: Path) -> None:
    with running_sshd(tmp_path) as sshd:
        assert run(HostKeys().of(sshd.address)) == (sshd.host_key,)


@needs_openssh
def test_what_was_found_is_remembered_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        keys = HostKeys()
        with running_sshd(tmp_path) as sshd:
            assert await keys.of(sshd.address) == (sshd.host_key,)
        assert await keys.of(sshd.address) == (sshd.host_key,)  # the server is gone by now
        monkeypatch.setattr(hostkeys, "HOST_KEYS_MEMORY", 0.0)
        assert await keys.of(sshd.address) == ()

    run(main())


@needs_openssh
def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostkeys, "HOST_KEYS_SCAN_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert run(HostKeys().of(silent.getsockname())) == ()


@needs_openssh
def test_cancelling_a_scan_ends_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(hostkeys, "HOST_KEYS_SCAN_TIMEOUT", 60)  # longer than this test may take
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.setblocking(False)
            loop = asyncio.get_running_loop()
            scanning = asyncio.create_task(HostKeys().of(silent.getsockname()))
            scanner, _ = await loop.sock_accept(silent)
            with scanner, contextlib.suppress(ConnectionResetError):
                scanning.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await scanning
                while await loop.sock_recv(scanner, 100):
                    pass

    run(main())


@needs_openssh
def test_who_asks_together_is_answered_by_one_scan(tmp_path: Path) -> None:
    async def main() -> None:
        keys = HostKeys()
        with running_sshd(tmp_path) as sshd:
            assert set(await asyncio.gather(*(keys.of(sshd.address) for _ in range(5)))) == {(sshd.host_key,)}
            assert len(sshd.sessions) <= 3  # a connection for each kind of key

    run(main())


def test_without_a_scanner_nothing_is_known_of_other_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(HostKeys().of(("127.0.0.1", 2222))) == ()


def test_without_a_scanner_this_machines_own_keys_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "ssh_host_ed25519_key.pub").write_text(f"{ED} root@nas\n")
    (tmp_path / "ssh_host_rsa_key.pub").write_text(f"{RSA} root@nas\n")
    (tmp_path / "ssh_host_rsa_key").write_text("secret")
    assert run(HostKeys(tmp_path).of(("127.0.0.1", 22))) == (ED, RSA)
    assert run(HostKeys(tmp_path).of(("192.0.2.5", 22))) == ()


def keys_of_this_machine(directory: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> HostKeys:
    """The host keys of a machine whose sshd is not asked, or says what `sshd_says` told last."""
    for name, line in files.items():
        (directory / f"ssh_host_{name}_key.pub").write_text(f"{line} root@nas\n")
    monkeypatch.setattr(hostkeys, "_scan", sshd_says())
    return HostKeys(directory)


def sshd_says(*keys: str) -> Callable[[Address], Awaitable[tuple[str, ...]]]:
    """A scan that finds these keys; none: nobody answers it."""

    async def scan(_: Address) -> tuple[str, ...]:
        return keys

    return scan


LOCAL = ("127.0.0.1", 22)
OTHER_ED = key(fill=5)


def written(file: Path, line: str) -> None:
    """Write a key where another one is, in the same tick of the clock."""
    times = file.stat()
    file.write_text(f"{line} root@nas\n")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("way", ["written", "renamed", "touched", "added", "removed"])
def test_files_that_change_are_read_anew_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str) -> None:
    async def main() -> None:
        keys = keys_of_this_machine(tmp_path, monkeypatch, ed25519=ED, rsa=RSA)
        ed, rsa = tmp_path / "ssh_host_ed25519_key.pub", tmp_path / "ssh_host_rsa_key.pub"
        assert await keys.of(LOCAL) == (ED, RSA)
        match way:
            case "written":
                written(ed, OTHER_ED + " of a longer name")
            case "renamed":
                fresh = tmp_path / "fresh"
                fresh.write_text(f"{OTHER_ED} root@nas\n")
                os.utime(fresh, ns=(ed.stat().st_atime_ns, ed.stat().st_mtime_ns))
                fresh.rename(ed)
            case "touched":
                ed.write_text(f"{OTHER_ED} root@nas\n")
                os.utime(ed, ns=(ed.stat().st_atime_ns, ed.stat().st_mtime_ns + 1))
            case "added":
                rsa.write_text("")
                (tmp_path / "ssh_host_ecdsa_key.pub").write_text(f"{OTHER_ED} root@nas\n")
            case _:
                rsa.unlink()
        expected = {"added": (OTHER_ED, ED), "removed": (ED,)}.get(way, (OTHER_ED, RSA))
        assert await keys.of(LOCAL) == expected

    run(main())


def test_files_that_stay_are_asked_for_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def main() -> None:
        keys = keys_of_this_machine(tmp_path, monkeypatch, ed25519=ED)
        assert await keys.of(LOCAL) == (ED,)
        monkeypatch.setattr(hostkeys, "_scan", sshd_says(OTHER_ED))
        assert await keys.of(LOCAL) == (ED,)

    run(main())


def test_an_sshd_that_still_shows_its_old_key_is_asked_until_it_shows_the_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def main() -> None:
        keys = keys_of_this_machine(tmp_path, monkeypatch, ed25519=ED)
        monkeypatch.setattr(hostkeys, "_scan", sshd_says(ED))
        assert await keys.of(LOCAL) == (ED,)
        (tmp_path / "ssh_host_ed25519_key.pub").write_text(f"{OTHER_ED} root@nas\n")
        assert await keys.of(LOCAL) == (ED,)  # it has not been started again
        monkeypatch.setattr(hostkeys, "_scan", sshd_says(OTHER_ED))
        assert await keys.of(LOCAL) == (OTHER_ED,)

    run(main())


@needs_openssh
def test_what_is_remembered_of_other_servers_goes_with_the_files_too(tmp_path: Path) -> None:
    """The sshd of this machine may listen elsewhere than on port 22."""

    async def main() -> None:
        files = tmp_path / "files"
        files.mkdir()
        keys = HostKeys(files)
        with running_sshd(tmp_path) as sshd:
            assert await keys.of(sshd.address) == (sshd.host_key,)
        (files / "ssh_host_ed25519_key.pub").write_text(f"{ED} root@nas\n")
        assert await keys.of(sshd.address) == ()

    run(main())


def test_a_server_behind_a_unix_socket_is_not_known() -> None:
    assert run(HostKeys().of("/run/sshd.sock")) == ()


@needs_openssh
def test_a_caller_is_told_the_keys_over_a_stream(tmp_path: Path) -> None:
    async def main() -> None:
        with running_sshd(tmp_path) as sshd:
            async with Loopback() as connector:
                fetching = asyncio.create_task(fetch_host_keys(connector, "nas", "box"))
                await HostKeys().tell(await connector.arrived.get(), sshd.address)
                assert await fetching == (sshd.host_key,)
                assert connector.asked == [("nas", "ssh-host-keys/box")]

    run(main())


def test_a_callee_that_knows_no_key_tells_none() -> None:
    async def main() -> None:
        near, far = connected_pair()
        await HostKeys().tell(SocketStream(far), "/run/sshd.sock")
        with near:
            assert await SocketStream(near).read() == b""

    run(main())


def test_a_peer_that_tells_without_end_is_cut_off() -> None:
    async def main() -> None:
        async with Loopback() as connector:
            fetching = asyncio.create_task(fetch_host_keys(connector, "nas"))
            peer = await connector.arrived.get()
            sending = asyncio.create_task(peer.write(b"x" * (HOST_KEYS_MAX_BYTES + 1)))
            with pytest.raises(RemoteProtocolError, match="nas broke the protocol: host keys of more than 65536 bytes"):
                await fetching
            assert connector.opened[0].aborted is not None
            await asyncio.wait([sending])
            peer.abort()

    run(main())


def test_what_a_peer_says_beside_keys_is_dropped() -> None:
    async def main() -> None:
        async with Loopback() as connector:
            fetching = asyncio.create_task(fetch_host_keys(connector, "nas"))
            peer = await connector.arrived.get()
            await peer.write(f"@cert-authority * {ED}\n* {RSA} x\n\xff\x00\n{ED}\n".encode("latin-1"))
            await peer.close()
            assert await fetching == (RSA, ED)

    run(main())


def test_a_denied_service_stays_denied() -> None:
    async def main() -> None:
        async with Loopback() as connector:
            connector.error = AccessDeniedError("nas", "ssh-host-keys/ssh", ("web",))
            await fetch_host_keys(connector, "nas")

    with pytest.raises(AccessDeniedError) as caught:
        run(main())
    assert caught.value.hint == "Served to you: web."
