"""Dialling one target, over real loopback sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import struct
from collections.abc import Callable

import pytest

from p2ptunnel.defaults import PUNCH_MSS_BYTES
from p2ptunnel.errors import DialError, InvalidAddressError
from p2ptunnel.net.dial import Dial, dial, punch_socket
from p2ptunnel.net.sockets import progress, reset_close, share_port
from p2ptunnel.net.tcp import Listener
from p2ptunnel.types import Address
from tests.helpers import run

LOOPBACK: Address = ("127.0.0.1", 0)
RNG = random.Random(1)


class Pauses:
    """Entropy that draws the shortest pause, counts, and does something at the first draw."""

    def __init__(self, at_first: Callable[[], None] = lambda: None) -> None:
        self.drawn = 0
        self._at_first = at_first

    def random(self) -> float:
        if not self.drawn:
            self._at_first()
        self.drawn += 1
        return 0.0

    def getrandbits(self, k: int, /) -> int:
        return RNG.getrandbits(k)


def bound() -> socket.socket:
    """A TCP socket on a port of its own that refuses, until it listens."""
    sock = socket.socket()
    sock.bind(LOOPBACK)
    return sock


def free_address() -> Address:
    with bound() as sock:
        address: Address = sock.getsockname()
        return address


class Silent:
    """A server that answers no SYN: its queue is full."""

    def __enter__(self) -> Address:
        self._server, self._filler = bound(), socket.socket()
        self._server.listen(0)
        self._filler.connect(self._server.getsockname())
        address: Address = self._server.getsockname()
        return address

    def __exit__(self, *_: object) -> None:
        self._filler.close()
        self._server.close()


async def failure(*args: Address, **options: float) -> DialError:
    with pytest.raises(DialError) as caught:
        await dial(*args, rng=Pauses(), **options)  # type: ignore[arg-type]
    return caught.value


def test_listening_target_is_connected_from_the_local_port() -> None:
    async def main() -> None:
        with bound() as server:
            server.listen()
            local = free_address()
            sock = await dial(local, server.getsockname(), rng=Pauses())
            accepted, remote = server.accept()
            assert remote == local == sock.getsockname()
            assert sock.getblocking() is False
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            accepted.close()
            sock.close()

    run(main())


def test_target_that_refuses_is_dialled_again_until_it_listens() -> None:
    async def main() -> None:
        with bound() as server:
            pauses = Pauses(at_first=server.listen)
            sock = await dial(LOOPBACK, server.getsockname(), rng=pauses)
            assert pauses.drawn == 1
            sock.close()

    run(main())


def test_target_that_refuses_seven_times_is_given_up() -> None:
    async def main() -> None:
        with bound() as target:
            pauses = Pauses()
            with pytest.raises(DialError) as caught:
                await dial(LOOPBACK, target.getsockname(), rng=pauses)
            host, port = target.getsockname()
            assert caught.value.outcome == "refused"
            assert str(caught.value) == f"{host}:{port}: Connection refused, 7 times"
            assert pauses.drawn == 6

    run(main())


def test_pauses_after_a_refusal_are_random_between_50_and_100_ms() -> None:
    class Half(Pauses):
        def random(self) -> float:
            super().random()
            return 0.5

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with bound() as target:
            for rng, expected in ((Pauses(), 0.05), (Half(), 0.075)):
                began = loop.time()
                with pytest.raises(DialError):
                    await dial(LOOPBACK, target.getsockname(), rng=rng, redials=1)
                assert expected <= loop.time() - began < expected + 0.024

    run(main())


def test_silence_ends_with_the_patience() -> None:
    async def main() -> None:
        with Silent() as target:
            error = await failure(LOOPBACK, target, patience=0.05)
        assert (error.outcome, error.reason) == ("silent", "no answer in 0.05 s")

    run(main())


def test_patience_that_ends_in_a_pause_ends_as_refused() -> None:
    async def main() -> None:
        with bound() as target:
            error = await failure(LOOPBACK, target.getsockname(), patience=0.02)
        assert (error.outcome, error.reason) == ("refused", "Connection refused")

    run(main())


def test_pair_of_addresses_that_the_listener_has_is_left_to_it() -> None:
    async def main() -> None:
        accepted: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        listener = Listener(LOOPBACK, lambda sock, _: accepted.set_result(sock))
        with bound() as peer:
            share_port(peer)
            peer.connect(listener.address)
            error = await failure(listener.address, peer.getsockname())
            assert (error.outcome, error.reason) == ("taken", "the listener has this pair of addresses already")
            reset_close(await accepted)
        listener.close()

    run(main())


def test_port_of_a_foreign_socket_is_burnt() -> None:
    async def main() -> None:
        with bound() as foreign, bound() as target:
            error = await failure(foreign.getsockname(), target.getsockname())
        assert (error.outcome, error.reason) == ("burnt", "Address already in use")

    run(main())


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (("255.255.255.255", 9), "Network is unreachable"),
        (("localhost", 9), "no address that this socket can reach"),
        (("::1", 9), "no address that this socket can reach"),
        (("127.0.0.1", 0), "no address that this socket can reach"),
        (("127.0.0.1", 70000), "no address that this socket can reach"),
    ],
)
def test_target_out_of_reach_is_dead_at_once(target: Address, reason: str) -> None:
    async def main() -> None:
        error = await failure(LOOPBACK if ":" not in target[0] else ("127.0.0.1", 0), target)
        assert (error.outcome, error.reason) == ("dead", reason)

    run(main())


def test_address_of_another_machine_is_no_local_one() -> None:
    async def main() -> None:
        error = await failure(("192.0.2.1", 0), ("192.0.2.2", 9))
        assert (error.outcome, error.reason) == ("dead", os.strerror(errno.EADDRNOTAVAIL))

    run(main())


def test_local_address_must_be_numeric() -> None:
    async def main() -> None:
        with pytest.raises(InvalidAddressError):
            await dial(("localhost", 0), ("127.0.0.1", 9), rng=Pauses())

    run(main())


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("is_silent", [True, False], ids=["silent target", "listening target"])
def test_cancelled_in_any_turn_it_leaves_no_socket_and_no_word(
    turns: int, is_silent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        with Silent() as silent, bound() as server:
            server.listen()
            before = set(os.listdir("/proc/self/fd"))
            dialling = asyncio.create_task(dial(LOOPBACK, silent if is_silent else server.getsockname(), rng=Pauses()))
            for _ in range(turns):
                await asyncio.sleep(0)
            if dialling.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await dialling
            else:
                dialling.result().close()
            assert set(os.listdir("/proc/self/fd")) == before

    run(main())
    assert caplog.messages == []  # such as an exception in a callback


def test_cancelled_in_a_pause_it_dials_no_more() -> None:
    async def main() -> None:
        refused = asyncio.Event()
        pauses = Pauses(at_first=refused.set)
        with bound() as target:
            dialling = asyncio.create_task(dial(LOOPBACK, target.getsockname(), rng=pauses))
            await refused.wait()
            target.listen()
            target.settimeout(0.12)
            dialling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await dialling
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(target.accept)

    run(main())


def test_connection_that_nobody_took_is_reset() -> None:
    async def main() -> None:
        ended: asyncio.Future[Dial] = asyncio.get_running_loop().create_future()
        with bound() as server:
            server.listen()
            dialled = Dial(LOOPBACK, server.getsockname(), ended.set_result, rng=Pauses())
            dialled.connect()
            await ended
            accepted, _ = server.accept()
            dialled.close()
            dialled.close()
            with pytest.raises(ConnectionResetError):
                accepted.recv(1)
            accepted.close()
            assert dialled.record.outcome == "connected"

    run(main())


def test_dial_closed_in_the_turn_of_its_end_tells_nobody() -> None:
    async def main() -> None:
        told: list[Dial] = []
        dialled = Dial(LOOPBACK, ("localhost", 9), told.append, rng=Pauses())
        dialled.connect()
        dialled.close()
        await asyncio.sleep(0)
        assert told == []
        assert dialled.record.outcome == "dead"

    run(main())


def test_record_tells_what_has_become_of_a_dial() -> None:
    async def main() -> None:
        with Silent() as target:
            dialled = Dial(LOOPBACK, target, lambda _: None, rng=Pauses(), low_ttl=3)
            dialled.connect()
            record = dialled.record
            assert (record.target, record.low_ttl, record.outcome, record.ended) == (target, 3, None, None)
            dialled.close()
            record = dialled.record
            assert (record.outcome, record.reason) == ("replaced", "given up")
            assert record.ended is not None
            assert record.ended >= record.started

    run(main())


def test_low_dial_hands_over_a_socket_like_any_other() -> None:
    async def main() -> None:
        with bound() as server:
            server.listen()
            low = await dial(LOOPBACK, server.getsockname(), rng=Pauses(), low_ttl=1)
            plain = await dial(LOOPBACK, server.getsockname(), rng=Pauses())
            for option in (socket.IP_TTL, 21):  # 21: IP_MINTTL
                assert low.getsockopt(socket.IPPROTO_IP, option) == plain.getsockopt(socket.IPPROTO_IP, option)
            low.close()
            plain.close()

    run(main())


def test_soft_error_ends_no_connection_attempt() -> None:
    async def main() -> None:
        with Silent() as target:
            ended: list[Dial] = []
            dialled = Dial(LOOPBACK, target, ended.append, rng=Pauses(), patience=0.1)
            dialled.connect()
            dialled._check()  # as if the socket had become writable
            dialled._check()
            await asyncio.sleep(0)
            assert ended == []
            dialled.close()

    run(main())


def test_mss_survives_a_black_hole_unless_the_target_is_on_link() -> None:
    def announced(remote: Address | None, local: Address) -> int:
        sock = punch_socket(local, remote)
        try:
            return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        finally:
            sock.close()

    any_address = ("0.0.0.0", 0)
    unset = announced(None, LOOPBACK)
    assert announced(("198.51.100.1", 9), any_address) == PUNCH_MSS_BYTES
    assert announced(None, any_address) == PUNCH_MSS_BYTES
    assert announced(("127.0.0.1", 9), any_address) == unset != PUNCH_MSS_BYTES


def test_progress_tells_waiting_up_and_closed() -> None:
    with Silent() as silent, bound() as server:
        sock = punch_socket(LOOPBACK)
        sock.connect_ex(silent)
        assert progress(sock) == ("waiting", 0)
        reset_close(sock)
        server.listen()
        sock = punch_socket(LOOPBACK)
        sock.connect_ex(server.getsockname())
        assert progress(sock) == ("up", 0)
        accepted, _ = server.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        assert progress(sock) == ("closed", errno.ECONNRESET)
        reset_close(sock)


def test_progress_can_do_without_tcp_info(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2ptunnel.net.sockets._TCP_INFO", None)
    test_progress_tells_waiting_up_and_closed()


def test_target_refused_at_once_is_dialled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems tell of the RST in connect() itself."""

    async def main() -> None:
        with bound() as server:
            server.listen()
            refusals = iter([errno.ECONNREFUSED])
            real = Dial._connect_ex
            monkeypatch.setattr(Dial, "_connect_ex", lambda self, sock: next(refusals, None) or real(self, sock))
            pauses = Pauses()
            (await dial(LOOPBACK, server.getsockname(), rng=pauses)).close()
            assert pauses.drawn == 1

    run(main())


def test_port_that_is_burnt_between_two_syns_ends_the_dial() -> None:
    async def main() -> None:
        with bound() as target, socket.socket() as foreign:
            local = free_address()
            with pytest.raises(DialError) as caught:
                await dial(local, target.getsockname(), rng=Pauses(at_first=lambda: foreign.bind(local)))
        assert caught.value.outcome == "burnt"

    run(main())


def test_zone_that_does_not_exist_is_dead() -> None:
    async def main() -> None:
        error = await failure(("::", 0), ("fe80::1%nowhere", 9))
        assert (error.outcome, error.reason) == ("dead", "Invalid argument")

    run(main())


def test_system_that_cannot_open_low_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))

    async def main() -> None:
        with Silent() as target:
            error = await failure(LOOPBACK, target, low_ttl=2)
        assert (error.outcome, error.reason) == ("dead", "Protocol not available")

    monkeypatch.setattr("p2ptunnel.net.low.set_min_ttl", refuse)
    run(main())
