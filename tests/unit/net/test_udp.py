"""The driver of machines, over real loopback sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from p2ptunnel.errors import BindError, InvalidAddressError
from p2ptunnel.net.udp import UdpDriver, UdpSocket
from p2ptunnel.protocol.machine import Datagram, Event, Hole, MachineBase
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.types import Address
from tests.helpers import run

LOOPBACK: Address = ("127.0.0.1", 0)
IP_RECVTTL = 12


class Heard(Event, frozen=True):
    """A datagram arrived."""

    data: bytes
    source: Address


class Rang(Event, frozen=True):
    """The timer went off."""

    at: float


class Recorder(MachineBase):
    """Reports what it is given, and echoes datagrams that ask for it."""

    def __init__(self) -> None:
        super().__init__()
        self.deadline: float | None = None
        self.timer_calls = 0

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        self._events.append(Heard(data, source))
        if data.startswith(b"echo"):
            self._datagrams.append(Datagram(data[4:], source))

    def handle_timer(self, now: float) -> None:
        self.timer_calls += 1
        if self.deadline is not None and now >= self.deadline:
            self.deadline = None
            self._events.append(Rang(now))

    def next_deadline(self) -> float | None:
        return self.deadline

    def say(self, data: bytes, destination: Address, *, opener: bool = False) -> None:
        self._datagrams.append(Datagram(data, destination, opener))

    def report(self, event: Event) -> None:
        self._events.append(event)


class Inbox:
    """Collects events, and wakes who waits for a number of them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._arrived = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._arrived.set()

    async def count(self, wanted: int) -> list[Event]:
        while len(self.events) < wanted:
            self._arrived.clear()
            await self._arrived.wait()
        return self.events


class Pair:
    """A driven machine and a plain socket at the other end."""

    def __init__(self, on_event: Callable[[Event], None] | None = None, tracer: Tracer | None = None) -> None:
        self.machine = Recorder()
        self.inbox = Inbox()
        self.driver = UdpDriver(self.machine, UdpSocket(LOOPBACK, tracer=tracer), on_event or self.inbox)
        self.other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.other.setblocking(False)
        self.other.bind(LOOPBACK)

    @property
    def address(self) -> Address:
        return self.driver.udp.address

    @property
    def other_address(self) -> Address:
        host, port = self.other.getsockname()
        return (host, port)

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.other, 2048)

    async def __aenter__(self) -> Pair:
        self.driver.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.driver.close()
        self.other.close()


def test_datagram_reaches_the_machine_and_its_answer_the_sender() -> None:
    async def main() -> None:
        async with Pair() as pair:
            pair.other.sendto(b"echo hello", pair.address)
            assert await pair.receive() == b" hello"
            assert pair.inbox.events == [Heard(b"echo hello", pair.other_address)]

    run(main())


def test_batch_of_more_than_one_wake_up_arrives_whole_and_in_order() -> None:
    async def main() -> None:
        async with Pair() as pair:
            sent = [str(number).encode() for number in range(150)]
            for data in sent:
                pair.other.sendto(data, pair.address)
            heard = await pair.inbox.count(150)
            assert [event.data for event in heard if isinstance(event, Heard)] == sent
            assert pair.driver.udp.received == 150

    run(main())


def test_one_wake_up_takes_at_most_64_datagrams() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        udp = UdpSocket(LOOPBACK)
        for number in range(100):
            other.sendto(bytes([number]), udp.address)
        assert len(list(udp.receive())) == 64
        assert len(list(udp.receive())) == 36
        udp.close()


def test_wake_sends_what_a_call_of_the_machine_left() -> None:
    async def main() -> None:
        async with Pair() as pair:
            pair.machine.say(b"first", pair.other_address)
            pair.machine.say(b"second", pair.other_address)
            pair.driver.wake()
            assert [await pair.receive(), await pair.receive()] == [b"first", b"second"]
            assert pair.driver.udp.sent == 2

    run(main())


def test_timer_goes_off_at_the_deadline_and_never_before() -> None:
    async def main() -> None:
        async with Pair() as pair:
            loop = asyncio.get_running_loop()
            pair.machine.deadline = deadline = loop.time() + 0.02
            pair.driver.wake()
            [rang] = await pair.inbox.count(1)
            assert isinstance(rang, Rang)
            assert deadline <= rang.at < deadline + 1
            assert pair.machine.timer_calls == 1

    run(main())


def test_earlier_deadline_replaces_the_timer_and_none_removes_it() -> None:
    async def main() -> None:
        async with Pair() as pair:
            now = asyncio.get_running_loop().time()
            pair.machine.deadline = now + 1000
            pair.driver.wake()
            pair.machine.deadline = now + 0.01
            pair.driver.wake()
            await pair.inbox.count(1)
            pair.machine.deadline = now + 0.02
            pair.driver.wake()
            pair.machine.deadline = None
            pair.driver.wake()
            pair.machine.deadline = now + 0.04
            pair.driver.wake()
            await pair.inbox.count(2)
            assert pair.machine.timer_calls == 2

    run(main())


def test_callback_may_call_the_machine_and_wake_and_events_stay_in_order() -> None:
    async def main() -> None:
        seen: list[Event] = []
        done = asyncio.Event()

        def on_event(event: Event) -> None:
            seen.append(event)
            if event == Rang(1):
                pair.machine.report(Rang(3))
                pair.machine.say(b"from within", pair.other_address)
                pair.driver.wake()
            if event == Rang(3):
                done.set()

        async with Pair(on_event) as pair:
            pair.machine.report(Rang(1))
            pair.machine.report(Rang(2))
            pair.driver.wake()
            assert await pair.receive() == b"from within"
            await done.wait()
            assert seen == [Rang(1), Rang(2), Rang(3)]

    run(main())


def test_events_are_told_before_datagrams_leave() -> None:
    async def main() -> None:
        def on_event(event: Event) -> None:
            with pytest.raises(BlockingIOError):
                pair.other.recv(1)
            told.append(event)

        told: list[Event] = []
        async with Pair(on_event) as pair:
            pair.machine.say(b"after it", pair.other_address)
            pair.machine.report(Rang(1))
            pair.driver.wake()
            assert told == [Rang(1)]
            assert pair.other.recv(100) == b"after it"

    run(main())


def test_callback_that_raises_costs_no_later_event_and_no_datagram() -> None:
    async def main() -> None:
        seen: list[Event] = []
        later = asyncio.Event()

        def on_event(event: Event) -> None:
            seen.append(event)
            if event == Rang(1):
                raise ArithmeticError
            later.set()

        async with Pair(on_event) as pair:
            pair.machine.report(Rang(1))
            pair.machine.report(Rang(2))
            pair.machine.say(b"all the same", pair.other_address)
            with pytest.raises(ArithmeticError):
                pair.driver.wake()
            assert pair.other.recv(100) == b"all the same"
            await later.wait()
            assert seen == [Rang(1), Rang(2)]

    run(main())


def test_close_within_the_callback_ends_everything_at_once() -> None:
    async def main() -> None:
        seen: list[Event] = []

        def on_event(event: Event) -> None:
            seen.append(event)
            pair.driver.close()
            pair.machine.report(Rang(3))

        async with Pair(on_event) as pair:
            pair.machine.deadline = 0.0
            pair.machine.report(Rang(1))
            pair.machine.report(Rang(2))
            pair.machine.say(b"too late", pair.other_address)
            pair.driver.wake()
            pair.driver.wake()
            assert seen == [Rang(1)]
            assert pair.driver.udp.is_closed
            assert pair.driver.udp.send_failures == 0

    run(main())


def test_closing_twice_is_fine() -> None:
    async def main() -> None:
        async with Pair() as pair:
            pair.driver.close()
            pair.driver.close()

    run(main())


def test_closed_driver_leaves_the_descriptor_number_to_its_next_owner() -> None:
    async def main() -> None:
        pair = Pair()
        pair.driver.start()
        number = pair.driver.udp.socket.fileno()
        pair.driver.close()
        async with Pair() as next_pair:
            assert next_pair.driver.udp.socket.fileno() == number
            next_pair.other.sendto(b"echo!", next_pair.address)
            assert await next_pair.receive() == b"!"
        pair.other.close()

    run(main())


def test_wake_before_the_start_sends_and_the_start_sets_the_timer() -> None:
    async def main() -> None:
        pair = Pair()
        pair.machine.deadline = 0.0
        pair.machine.say(b"early", pair.other_address)
        pair.driver.wake()
        assert pair.other.recv(100) == b"early"
        async with pair:
            await pair.inbox.count(1)

    run(main())


@pytest.mark.parametrize(
    "destination",
    [("localhost", 9), ("", 9), ("<broadcast>", 9), ("127.0.0.1", 0), ("127.0.0.1", 65536), ("127.0.0.1", -1), ("::1", 9)],
)
def test_destination_that_would_be_looked_up_or_overflow_is_counted_and_dropped(destination: Address) -> None:
    udp = UdpSocket(LOOPBACK)
    assert udp.send(b"x", destination) is False
    assert (udp.sent, udp.send_failures) == (0, 1)
    udp.close()


def test_refusal_of_the_system_is_counted_and_traced() -> None:
    traced: list[TraceEvent] = []
    udp = UdpSocket(LOOPBACK, tracer=Tracer(traced.append))
    assert udp.send(bytes(70_000), ("127.0.0.1", 9)) is False
    udp.close()
    assert udp.send(b"x", ("127.0.0.1", 9)) is False
    assert udp.send_failures == 2
    assert [event.name for event in traced] == ["send_failed", "send_failed"]
    assert traced[0].facts["destination"] == "127.0.0.1:9"


def test_opener_leaves_with_its_ttl_and_the_next_datagram_with_the_usual_one() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(LOOPBACK)
        other.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        other.settimeout(5)
        udp = UdpSocket(LOOPBACK, opener_ttl=4)
        usual = udp.socket.getsockopt(socket.IPPROTO_IP, socket.IP_TTL)
        ttls: list[int] = []
        for is_opener in (True, False):
            udp.send(b"x", other.getsockname(), opener=is_opener)
            [(_, _, ttl)] = other.recvmsg(16, 64)[1]
            ttls.append(int.from_bytes(ttl, "little"))
        udp.opener_ttl = 7
        udp.send(b"x", other.getsockname(), opener=True)
        [(_, _, ttl)] = other.recvmsg(16, 64)[1]
        assert [*ttls, int.from_bytes(ttl, "little")] == [4, usual, 7]
        udp.close()


def test_what_is_for_a_hole_leaves_from_there_and_nothing_from_one_that_is_closed() -> None:
    async def main() -> None:
        async with Pair() as pair:
            hole = UdpSocket(LOOPBACK)
            pair.driver.hole_of = {Hole("token", 1): hole}.get
            for number in (2, 1):
                pair.machine._datagrams.append(Datagram(b"%d" % number, pair.other_address, hole=Hole("token", number)))
            pair.driver.wake()
            pair.machine.say(b"own", pair.other_address)
            pair.driver.wake()
            came = {}
            for _ in range(2):
                data, source = await asyncio.get_running_loop().sock_recvfrom(pair.other, 2048)
                came[data] = source
            assert came == {b"1": hole.address, b"own": pair.address}
            hole.close()

    run(main())


def test_a_driver_that_knows_of_no_hole_sends_nothing_for_one() -> None:
    async def main() -> None:
        async with Pair() as pair:
            pair.machine._datagrams.append(Datagram(b"x", pair.other_address, hole=Hole("token", 1)))
            pair.driver.wake()
            assert pair.driver.udp.sent == 0

    run(main())


def test_opener_whose_ttl_the_system_refuses_is_not_sent_at_all() -> None:
    udp = UdpSocket(LOOPBACK, opener_ttl=0)
    assert udp.send(b"x", ("127.0.0.1", 9), opener=True) is False
    assert udp.send_failures == 1
    udp.close()


def test_fragmentation_is_forbidden_in_probe_mode() -> None:
    udp = UdpSocket(LOOPBACK)
    assert udp.socket.getsockopt(socket.IPPROTO_IP, 10) == 3
    udp.close()


def test_port_is_shared_with_tcp_and_with_another_udp_socket_of_ours() -> None:
    udp = UdpSocket(LOOPBACK)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second, socket.socket() as tcp:
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        second.bind(udp.address)
        tcp.bind(udp.address)
    udp.close()


def test_free_ports_are_all_different() -> None:
    sockets = [UdpSocket(LOOPBACK) for _ in range(800)]
    ports = {udp.address[1] for udp in sockets}
    for udp in sockets:
        udp.close()
    assert len(ports) == 800


def test_port_that_is_not_shared_is_ours_alone() -> None:
    udp = UdpSocket(LOOPBACK, shared=False)
    with pytest.raises(BindError, match=rf"127\.0\.0\.1:{udp.address[1]}: Address already in use"):
        UdpSocket(udp.address)
    udp.close()


def test_socket_with_a_remote_takes_its_datagrams_and_leaves_the_rest() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        server.bind(LOOPBACK)
        peer.bind(LOOPBACK)
        general = UdpSocket(LOOPBACK)
        special = UdpSocket(general.address, remote=server.getsockname())
        server.sendto(b"from the server", general.address)
        peer.sendto(b"from a peer", general.address)
        assert [data for data, _ in special.receive()] == [b"from the server"]
        assert [data for data, _ in general.receive()] == [b"from a peer"]
        special.close()
        general.close()


def test_refused_send_of_a_connected_socket_ends_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(LOOPBACK)
        gone: Address = server.getsockname()
    traced: list[TraceEvent] = []
    udp = UdpSocket(LOOPBACK, remote=gone, tracer=Tracer(traced.append))
    assert udp.send(b"x", gone)
    assert list(udp.receive()) == []
    udp.close()
    assert [event.name for event in traced if event.layer == "net"] == ["receive_failed"]


def test_two_sockets_that_are_joined_are_one_for_both_families() -> None:
    async def main() -> None:
        machine, inbox = Recorder(), Inbox()
        first, beside = UdpSocket(LOOPBACK), UdpSocket(("::1", 0))
        first.join(beside)
        there = UdpSocket(LOOPBACK), UdpSocket(("::1", 0))
        async with UdpDriver(machine, first, inbox):
            for socket_there, own in zip(there, (first, beside), strict=True):
                assert first.send(b"out", socket_there.address)
                first.send_all([b"one", b"two"], socket_there.address)
                heard = [data for data, source in socket_there.receive() if source == own.address]
                assert heard == [b"out", b"one", b"two"]
                socket_there.send(b"in", own.address)
            assert {event.source for event in await inbox.count(2) if isinstance(event, Heard)} == {
                other.address for other in there
            }
            assert (first.sent, beside.sent) == (3, 3)
            twin = first.duplicate()
        assert first.is_closed
        assert beside.is_closed
        assert len(twin.sockets) == 2
        assert twin.send(b"still", there[1].address)
        twin.close()
        for other in there:
            other.close()

    run(main())


def test_ipv6_is_spoken_where_it_is_given() -> None:
    async def main() -> None:
        machine, inbox = Recorder(), Inbox()
        first, second = UdpSocket(("::1", 0)), UdpSocket(("::1", 0), opener_ttl=5)
        async with UdpDriver(machine, first, inbox):
            assert second.send(b"over IPv6", first.address, opener=True)
            assert await inbox.count(1) == [Heard(b"over IPv6", ("::1", second.address[1]))]
        second.close()

    run(main())


@pytest.mark.parametrize("local", [("localhost", 0), ("127.0.0.1", 65536), ("127.0.0.1", -1), ("1.2.3.4\0", 0)])
def test_local_address_must_be_numeric(local: Address) -> None:
    with pytest.raises(InvalidAddressError):
        UdpSocket(local)


def test_remote_address_must_be_numeric() -> None:
    with pytest.raises(InvalidAddressError):
        UdpSocket(LOOPBACK, remote=("localhost", 9))


def test_address_of_another_machine_cannot_be_bound() -> None:
    with pytest.raises(BindError, match="Cannot assign requested address"):
        UdpSocket(("192.0.2.1", 0))


@pytest.mark.parametrize("notices", ["receive", "send"])
def test_a_remote_port_that_is_closed_is_told(notices: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(LOOPBACK)
        remote: Address = taken.getsockname()
    told: list[bool] = []
    udp = UdpSocket(LOOPBACK, remote=remote, shared=False, on_refused=lambda: told.append(True))
    assert udp.send(b"knock", remote)
    if notices == "receive":
        assert list(udp.receive()) == []
    else:
        assert not udp.send(b"knock", remote)
    assert told == [True]
    udp.close()
