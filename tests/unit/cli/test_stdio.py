"""stdin and stdout as a stream, in a process of its own, with a peer that this test plays."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import pytest

from p2ptunnel.net.sockets import reset_close
from tests.unit.cli.running import environment

SCRIPT = """
import asyncio, socket, sys
from p2ptunnel.cli.stdio import carry_stdio
from p2ptunnel.errors import StreamResetError
from tests.unit.tunnels.streams import SocketStream

class Breaking(SocketStream):
    async def read(self, n=65536):
        if self.service == "broken":
            raise StreamResetError("for the test")
        self.service = "broken"
        return bytes(100_000)

async def main():
    sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    sock.setblocking(False)
    try:
        await carry_stdio(Breaking(sock) if "breaking" in sys.argv else SocketStream(sock))
    except Exception as error:
        print(type(error).__name__, file=sys.stderr)

asyncio.run(main())
"""


@contextlib.contextmanager
def carrying(*words: str, **options: Any) -> Generator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """Start the process; yield it, and the peer's end of its stream."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        argv = [sys.executable, "-c", SCRIPT, str(listener.getsockname()[1]), *words]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(argv, env=environment(), **{**pipes, **options}) as process:
            peer, _ = listener.accept()
            with peer:
                yield process, peer


def read(file: IO[bytes] | None) -> bytes:
    assert file is not None
    return file.read()


def receive_all(peer: socket.socket) -> bytes:
    return b"".join(iter(lambda: peer.recv(65536), b""))


def test_the_end_of_input_goes_out_and_the_answer_still_comes_in() -> None:
    with carrying() as (process, peer):
        assert process.stdin is not None
        process.stdin.write(b"question")
        process.stdin.close()
        assert receive_all(peer) == b"question"
        peer.sendall(b"answer")
        peer.shutdown(socket.SHUT_WR)
        assert read(process.stdout) == b"answer"
        assert (process.wait(), read(process.stderr)) == (0, b"")


def test_the_peers_end_closes_stdout_and_input_still_goes_out() -> None:
    with carrying() as (process, peer):
        peer.sendall(b"answer")
        peer.shutdown(socket.SHUT_WR)
        assert read(process.stdout) == b"answer"  # to its end: that is how ssh learns of it
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.write(b"late")
        process.stdin.close()
        assert receive_all(peer) == b"late"
        assert (process.wait(), read(process.stderr)) == (0, b"")


def test_a_person_who_types_sees_the_end_at_once() -> None:
    ours, theirs = pty.openpty()
    try:
        with carrying(stdin=theirs) as (process, peer):
            peer.sendall(b"bye")
            peer.shutdown(socket.SHUT_WR)
            assert read(process.stdout) == b"bye"
            assert (process.wait(), read(process.stderr)) == (0, b"")
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_stream_that_breaks_is_an_error_behind_what_had_arrived() -> None:
    with carrying() as (process, peer):
        peer.sendall(b"first bytes")
        assert process.stdout is not None
        assert process.stdout.read(11) == b"first bytes"
        reset_close(peer)
        assert read(process.stdout) == b""
        assert (process.wait(), read(process.stderr)) == (0, b"StreamResetError\n")


def test_what_had_arrived_before_a_break_is_written_however_slow_the_reader() -> None:
    with carrying("breaking") as (process, _):
        assert process.stdout is not None
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, 4096)
        with pytest.raises(subprocess.TimeoutExpired):  # it does not go before all is read
            process.wait(timeout=1)
        assert len(read(process.stdout)) == 100_000
        assert (process.wait(), read(process.stderr)) == (0, b"StreamResetError\n")


@pytest.mark.parametrize("said", [b"", b"some input"])
def test_a_reader_that_went_away_resets_the_stream(said: bytes) -> None:
    with carrying() as (process, peer):
        assert process.stdout is not None
        process.stdout.close()
        assert process.stdin is not None
        process.stdin.write(said)
        process.stdin.flush()
        peer.sendall(b"nobody reads this")
        with pytest.raises(ConnectionResetError):
            receive_all(peer)
        assert (process.wait(), read(process.stderr)) == (0, b"ReaderGoneError\n")


def test_without_a_reader_the_input_is_still_delivered() -> None:
    with carrying() as (process, peer):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        process.stdin.write(b"a backup")
        process.stdin.close()
        assert receive_all(peer) == b"a backup"
        peer.shutdown(socket.SHUT_WR)
        assert (process.wait(timeout=20), read(process.stderr)) == (0, b"")


def test_input_that_cannot_be_read_is_told() -> None:
    writing = os.open("/dev/null", os.O_WRONLY)
    try:
        with carrying(stdin=writing) as (process, peer):
            with contextlib.suppress(ConnectionResetError):
                assert receive_all(peer) == b""
            assert (process.wait(), read(process.stderr)) == (0, b"TunnelError\n")
    finally:
        os.close(writing)


def test_much_passes_both_ways_at_once(tmp_path: Path) -> None:
    (tmp_path / "much").write_bytes(much := os.urandom(4 << 20))
    with (tmp_path / "much").open("rb") as stdin, carrying(stdin=stdin) as (process, peer):
        received: list[bytes] = []
        receiving = threading.Thread(target=lambda: received.append(receive_all(peer)))
        sending = threading.Thread(target=lambda: (peer.sendall(much), peer.shutdown(socket.SHUT_WR)))
        receiving.start()
        sending.start()
        assert read(process.stdout) == much
        sending.join()
        receiving.join()
        assert received == [much]
        assert (process.wait(), read(process.stderr)) == (0, b"")
