"""The listener and the dials of one attempt, over real loopback sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import socket

import pytest

from p2ptunnel.errors import BindError, InvalidAddressError
from p2ptunnel.net.tcp import Dialer, DialRecord, How, Listener, punch_socket, reset_close
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.types import Address
from tests.helpers import run

LOOPBACK: Address = ("127.0.0.1", 0)
Accepted = tuple[socket.socket, Address]


class Door:
    """A listener that puts what it accepts into a queue."""

    def __init__(self, local: Address = LOOPBACK, tracer: Tracer | None = None) -> None:
        self.accepted: asyncio.Queue[Accepted] = asyncio.Queue()
        self.listener = Listener(local, lambda sock, remote: self.accepted.put_nowait((sock, remote)), tracer=tracer)

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        while not self.accepted.empty():
            self.accepted.get_nowait()[0].close()


class Calls:
    """A dialer that puts its connections and failures into queues."""

    def __init__(self, local: Address = LOOPBACK, tracer: Tracer | None = None) -> None:
        self.connected: asyncio.Queue[tuple[socket.socket, Address, How]] = asyncio.Queue()
        self.failed: asyncio.Queue[DialRecord] = asyncio.Queue()
        self.dialer = Dialer(
            local,
            lambda sock, remote, how: self.connected.put_nowait((sock, remote, how)),
            on_failed=self.failed.put_nowait,
            rng=random.Random(1),
            tracer=tracer,
        )

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self.dialer.close()
        while not self.connected.empty():
            self.connected.get_nowait()[0].close()


def client(address: Address) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(5)
    sock.connect(address)
    return sock


def free_address() -> Address:
    with socket.socket() as sock:
        sock.bind(LOOPBACK)
        address: Address = sock.getsockname()
        return address


def test_every_connection_is_handed_over_with_its_source() -> None:
    async def main() -> None:
        with Door() as door:
            clients = [client(door.listener.address) for _ in range(3)]
            for each in clients:
                sock, remote = await door.accepted.get()
                assert remote == each.getsockname()
                assert sock.getblocking() is False
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                sock.close()
                each.close()

    run(main())


def test_closing_resets_what_nobody_has_accepted() -> None:
    async def main() -> None:
        with Door() as door, client(door.listener.address) as waiting:
            door.listener.close()
            door.listener.close()
            with pytest.raises(ConnectionResetError):
                waiting.recv(1)

    run(main())


def test_callback_may_close_the_listener() -> None:
    async def main() -> None:
        accepted: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()

        def on_accepted(sock: socket.socket, _: Address) -> None:
            listener.close()
            accepted.set_result(sock)

        listener = Listener(LOOPBACK, on_accepted)
        with client(listener.address), client(listener.address) as second:
            (await accepted).close()
            with pytest.raises(ConnectionResetError):
                second.recv(1)

    run(main())


def test_connection_waits_while_descriptors_are_exhausted() -> None:
    async def main() -> None:
        paused = asyncio.Event()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with Door(tracer=Tracer(lambda _: paused.set())) as door, client(door.listener.address) as waiting:
            used = max(int(number) for number in os.listdir("/proc/self/fd")) + 1
            spare = [os.dup(0) for _ in range(used - len(os.listdir("/proc/self/fd")) + 2)]
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1, hard))
            try:
                await paused.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for number in spare:
                    os.close(number)
            sock, remote = await door.accepted.get()
            assert remote == waiting.getsockname()
            sock.close()

    run(main())


def test_listener_closed_in_its_pause_stays_closed() -> None:
    async def main() -> None:
        with Door() as door:
            door.listener._pause(OSError())
            door.listener.close()
            assert door.listener._resume is not None
            assert door.listener._resume.cancelled()

    run(main())


def test_port_of_a_foreign_socket_cannot_be_listened_on() -> None:
    async def main() -> None:
        with socket.socket() as foreign:
            foreign.bind(LOOPBACK)
            with pytest.raises(BindError, match="Address already in use"):
                Door(foreign.getsockname())

    run(main())


def test_listening_wants_a_numeric_address() -> None:
    async def main() -> None:
        with pytest.raises(InvalidAddressError):
            Door(("localhost", 0))

    run(main())


def test_listener_and_dials_share_one_port() -> None:
    async def main() -> None:
        with Door() as here, Door() as there, Door() as elsewhere, Calls(here.listener.address) as calls:
            calls.dialer.start([there.listener.address, elsewhere.listener.address])
            for door in (there, elsewhere):
                sock, remote = await door.accepted.get()
                assert remote == here.listener.address
                sock.close()
            with client(here.listener.address):
                (await here.accepted.get())[0].close()

    run(main())


def test_syns_have_left_when_start_returns() -> None:
    async def main() -> None:
        with socket.socket() as server, Calls() as calls:
            server.bind(LOOPBACK)
            server.listen()
            server.setblocking(False)
            calls.dialer.start([server.getsockname()])
            server.accept()[0].close()  # raises BlockingIOError if nothing is there

    run(main())


def test_connection_is_handed_over_with_how_it_came() -> None:
    async def main() -> None:
        with Door() as door, Calls() as calls:
            calls.dialer.start([door.listener.address])
            plain, remote, how = await calls.connected.get()
            assert (remote, how) == (door.listener.address, "connect")
            calls.dialer.start([door.listener.address], low_ttl=1)
            low, _, how = await calls.connected.get()
            assert how == "opener"
            assert [record.outcome for record in calls.dialer.records] == ["connected", "connected"]
            calls.dialer.close()
            low.send(b"x")  # it is its new owner's
            plain.close()
            low.close()

    run(main())


def test_next_phase_replaces_the_dials_of_the_one_before() -> None:
    async def main() -> None:
        with silent() as first, silent() as second, Calls(free_address()) as calls:
            calls.dialer.start([first, second], low_ttl=2)
            before = connecting(first, second)
            calls.dialer.start([first])
            assert [record.outcome for record in calls.dialer.records] == ["replaced", "replaced", None]
            assert [record.low_ttl for record in calls.dialer.records] == [2, 2, None]
            assert len(before) == 2
            assert len(connecting(first, second)) == 1
            assert not before & connecting(first, second)
            calls.dialer.close()
            calls.dialer.close()
            assert connecting(first, second) == set()
            assert calls.failed.empty()

    run(main())


def test_what_is_added_replaces_nothing() -> None:
    async def main() -> None:
        with silent() as first, silent() as second, Calls(free_address()) as calls:
            calls.dialer.start([first], low_ttl=2)
            before = connecting(first, second)
            calls.dialer.start([second], is_added=True)
            assert before < connecting(first, second)
            assert [record.outcome for record in calls.dialer.records] == [None, None]
            calls.dialer.start([first, second])
            assert not before & connecting(first, second)
            calls.dialer.close()
            assert connecting(first, second) == set()

    run(main())


def test_one_target_named_twice_is_dialled_once() -> None:
    async def main() -> None:
        with silent() as target, Calls() as calls:
            calls.dialer.start([target, target])
            assert len(calls.dialer.records) == 1

    run(main())


def test_failure_of_one_target_is_told_and_spares_the_others() -> None:
    async def main() -> None:
        traced: list[TraceEvent] = []
        with Door() as door, Calls(tracer=Tracer(traced.append)) as calls:
            calls.dialer.start([("localhost", 9), door.listener.address])
            failed = await calls.failed.get()
            assert (failed.target, failed.outcome) == (("localhost", 9), "dead")
            (await calls.connected.get())[0].close()
        assert [(event.name, event.facts["outcome"]) for event in traced] == [
            ("dial_ended", "dead"),
            ("dial_ended", "connected"),
        ]

    run(main())


def test_the_two_families_do_not_replace_each_other_and_leave_from_one_port() -> None:
    async def main() -> None:
        with punch_socket(("0.0.0.0", 0)) as number, Door(("::1", 0)) as near, Door() as far:
            port = number.getsockname()[1]
            with Calls(("0.0.0.0", port)) as calls:
                calls.dialer.start([far.listener.address])
                calls.dialer.start([near.listener.address])
                came_up = {(await calls.connected.get())[0] for _ in range(2)}
                with contextlib.ExitStack() as stack:
                    local = {stack.enter_context(sock).getsockname()[:2] for sock in came_up}
                assert local == {("127.0.0.1", port), ("::1", port)}
                assert [record.outcome for record in calls.dialer.records] == ["connected", "connected"]

    run(main())


def test_no_targets_at_all_end_the_dials_of_the_dialers_own_family() -> None:
    async def main() -> None:
        with punch_socket(("127.0.0.1", 0)) as closed, punch_socket(("::1", 0)) as closed_too, Calls(("0.0.0.0", 0)) as calls:
            for refusing in (closed, closed_too):
                calls.dialer.start([refusing.getsockname()[:2]])
            calls.dialer.start([])
            assert [(record.target[0], record.outcome) for record in calls.dialer.records] == [
                ("127.0.0.1", "replaced"),
                ("::1", None),
            ]

    run(main())


def test_what_is_added_goes_on_whatever_is_started_and_who_refuses_it_is_not_asked_again() -> None:
    async def main() -> None:
        with punch_socket(("127.0.0.1", 0)) as closed, Door() as door, Calls(("0.0.0.0", 0)) as calls:
            refusing = closed.getsockname()
            calls.dialer.add([door.listener.address, refusing, refusing], patience=5.0)
            calls.dialer.add([refusing], patience=5.0)
            calls.dialer.start([refusing])
            calls.dialer.start([])
            sock, remote, how = await calls.connected.get()
            sock.close()
            assert (remote, how) == (door.listener.address, "connect")
            refused = await calls.failed.get()
            assert (refused.target, refused.outcome, "times" in refused.reason) == (refusing, "refused", False)
            assert sorted(str(record.outcome) for record in calls.dialer.records) == ["connected", "refused", "replaced"]

    run(main())


def test_what_is_added_ends_with_the_dialer() -> None:
    async def main() -> None:
        with punch_socket(("127.0.0.1", 0)) as closed, Calls(("0.0.0.0", 0)) as calls:
            calls.dialer.add([closed.getsockname()], patience=5.0)
            calls.dialer.close()
            assert [record.outcome for record in calls.dialer.records] == ["replaced"]

    run(main())


def test_callback_may_start_the_next_phase() -> None:
    async def main() -> None:
        with Door() as door:
            connected: asyncio.Queue[socket.socket] = asyncio.Queue()

            def on_failed(record: DialRecord) -> None:
                dialer.start([door.listener.address])

            dialer = Dialer(LOOPBACK, lambda sock, *_: connected.put_nowait(sock), on_failed=on_failed)
            dialer.start([("localhost", 1), ("localhost", 2)])
            (await connected.get()).close()
            dialer.close()
            assert [record.outcome for record in dialer.records] == ["dead", "dead", "connected"]

    run(main())


def test_reset_close_leaves_no_time_wait_and_may_come_twice() -> None:
    with socket.socket() as server:
        server.bind(LOOPBACK)
        server.listen()
        sock = punch_socket(LOOPBACK)
        local: Address = sock.getsockname()
        sock.setblocking(True)
        sock.connect(server.getsockname())
        accepted, _ = server.accept()
        reset_close(sock)
        reset_close(sock)
        with pytest.raises(ConnectionResetError):
            accepted.recv(1)
        accepted.close()
        with socket.socket() as strict:
            strict.bind(local)  # would be refused by a TIME_WAIT


class silent:  # noqa: N801 - reads like a function in a with statement
    """A server that answers no SYN: its queue is full."""

    def __enter__(self) -> Address:
        self._server = socket.socket()
        self._server.bind(LOOPBACK)
        self._server.listen(0)
        self._filler = client(self._server.getsockname())
        address: Address = self._server.getsockname()
        return address

    def __exit__(self, *_: object) -> None:
        self._filler.close()
        self._server.close()


def connecting(*targets: Address) -> set[str]:
    """The inodes of sockets in SYN_SENT to these targets."""
    wanted = {f"0100007F:{port:04X}" for _, port in targets}
    with open("/proc/self/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return {row[9] for row in rows if row[2] in wanted and row[3] == "02"}


@pytest.mark.parametrize(
    ("hosts", "limit"),
    [([], 1200), (["198.51.100.7"], 1200), (["127.0.0.1"], 536), (["198.51.100.7", "127.0.0.1"], 536), (["nobody"], 1200)],
)
def test_listener_limits_segments_unless_somebody_near_is_expected(hosts: list[str], limit: int) -> None:
    """536 is what the kernel tells where nothing is set."""

    def announced(listener: Listener) -> int:
        return listener._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)

    async def main() -> None:
        with Door(("0.0.0.0", 0)) as anywhere, Door() as loopback:
            assert announced(anywhere.listener) == 1200
            assert announced(loopback.listener) == 536
            for _ in range(2):
                anywhere.listener.expect(hosts)
                loopback.listener.expect(hosts)
                assert announced(anywhere.listener) == limit
                assert announced(loopback.listener) == 536
            anywhere.listener.expect([])
            assert announced(anywhere.listener) == 1200

    run(main())
