"""Machines on one wire with real multicast: who is pinned is found and connected to, with no server, whoever lies beside it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pytest
from zeroconf import IPVersion, ServiceInfo, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from p2ptunnel.abc import Stream
from p2ptunnel.errors import NoPathError, PeerNotNearError
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.store import Profile
from p2ptunnel.net.lan import Lan
from p2ptunnel.peer import Peer
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab import Host
from p2ptunnel.testing.natlab.living import living
from p2ptunnel.traversal.lan import LanAnswerer
from p2ptunnel.types import Path as NetworkPath
from p2ptunnel.wire.lan import LAN_SERVICE, encode_mark, make_mark

pytestmark = pytest.mark.natlab

P = ParamSpec("P")
T = TypeVar("T")
PATIENCE = 30.0
HELLO = b"hello, neighbour"
QUERY = bytes.fromhex("000000000001000000000000") + b"\x0a_p2ptunnel\x04_udp\x05local\0" + bytes.fromhex("000c0001")
"""Who is there?  Asked by unicast, from a port that is not 5353, and so answered by unicast."""

COUNT_MULTICAST = """
table inet seen {
    chain out {
        type filter hook output priority 0;
        udp dport 5353 counter
    }
}
"""


class Wire:
    """One network 10.77.N.0/24: a bridge, and the machines that are plugged into it."""

    def __init__(self, stack: contextlib.ExitStack, number: int = 0) -> None:
        self._stack = stack
        self._number = number
        self._switch = stack.enter_context(contextlib.closing(Host(f"switch{number}")))
        self._switch.namespace.netlink.add_bridge("bridge")
        self._switch.namespace.netlink.set_up("bridge")

    def machine(self, last: int) -> Host:
        """One more machine."""
        host = self._stack.enter_context(contextlib.closing(Host(f"m{last}")))
        self.plug(host, last)
        host.namespace.netlink.add_route("0.0.0.0/0", f"eth{self._number}", via=f"10.77.{self._number}.254")
        return host

    def plug(self, host: Host, last: int) -> None:
        """Plug a machine in, also one that is elsewhere already."""
        device, port = f"eth{self._number}", f"port{last}"
        netlink, switch = host.namespace.netlink, self._switch.namespace.netlink
        switch.add_cable(port, host.namespace.descriptor, device)
        netlink.set_up(device)
        switch.set_up(port)
        switch.set_up(port, bridge="bridge")
        switch.settle("bridge")
        netlink.settle(device)
        netlink.add_address(device, f"10.77.{self._number}.{last}/24")


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def wire(stack: contextlib.ExitStack) -> Wire:
    return Wire(stack)


class Machine:
    """A peer that lives on a host, on a loop of its own."""

    def __init__(self, host: Host, peer: Peer, loop: asyncio.AbstractEventLoop) -> None:
        self.host = host
        self.peer = peer
        self._loop = loop

    def do(self, work: Callable[Concatenate[Peer, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something with the peer, there."""

        async def working() -> T:
            return await work(self.peer, *args, **kwargs)

        return asyncio.run_coroutine_threadsafe(working(), self._loop).result(PATIENCE)

    def knows(self, *others: Machine) -> None:
        """Pin other machines, and let them open everything here."""
        for other in others:
            assert other.peer.tag is not None
            self.peer.peers.add(other.peer.tag, other.peer.key, ("echo",))


@contextlib.contextmanager
def living_peer(host: Host, tag: str, directory: Path, *, serves: bool = False, **options: Any) -> Generator[Machine]:
    """A peer that is started on a host, and serves `echo` there if it is to."""
    ready: Future[Machine] = Future()

    @contextlib.asynccontextmanager
    async def alive() -> AsyncGenerator[None]:
        async with Peer(tag, profile=directory / tag, **options) as peer:
            serving = peer.serve({"echo": echo}) if serves else contextlib.AsyncExitStack()
            async with serving:
                ready.set_result(Machine(host, peer, asyncio.get_running_loop()))
                yield

    with living(host, alive):
        yield ready.result(PATIENCE)


async def echo(stream: Stream) -> None:
    async for part in stream:
        await stream.write(part)
    await stream.write_eof()


async def greet(peer: Peer, tag: str) -> tuple[float, NetworkPath]:
    """Connect, talk; return how long it took to have the stream, and its path."""
    began = time.monotonic()
    async with await peer.connect(tag, "echo") as stream:
        took = time.monotonic() - began
        await stream.write(HELLO)
        await stream.write_eof()
        assert b"".join([part async for part in stream]) == HELLO
        return took, stream.path


async def fails(peer: Peer, tag: str) -> tuple[float, Exception]:
    """Connect in vain; return how long that took, and the error."""
    began = time.monotonic()
    try:
        (await peer.connect(tag, "echo")).abort()
    except (NoPathError, PeerNotNearError) as error:
        return time.monotonic() - began, error
    raise AssertionError("connected")


def introduce(*machines: Machine) -> None:
    for machine in machines:
        machine.knows(*(other for other in machines if other is not machine))


# --- who is found -----------------------------------------------------------------------------------------------------


def test_two_machines_meet_without_a_server(wire: Wire, tmp_path: Path) -> None:
    with (
        living_peer(wire.machine(1), "home", tmp_path, serves=True) as home,
        living_peer(wire.machine(2), "laptop", tmp_path) as laptop,
    ):
        introduce(home, laptop)
        took, path = laptop.do(greet, "home")
        assert (path.kind, path.transport) == ("lan", "tcp")
        assert path.remote[0] == "10.77.0.1"
        assert took < 2


def test_who_has_just_come_is_found_soon_and_who_was_seen_before_at_once(wire: Wire, tmp_path: Path) -> None:
    cold, warm = [], []
    here = wire.machine(2)
    with living_peer(wire.machine(1), "home", tmp_path, serves=True) as home:
        for number in range(5):
            with living_peer(here, "laptop", tmp_path) as laptop:
                if not number:
                    introduce(home, laptop)
                cold.append(laptop.do(greet, "home")[0])
                laptop.do(drop_sessions)
                warm.append(laptop.do(greet, "home")[0])
    print(f"cold {[round(x * 1000) for x in cold]} ms, warm {[round(x * 1000) for x in warm]} ms")
    assert sorted(cold)[2] < 1.0
    assert sorted(warm)[2] < 0.3


async def drop_sessions(peer: Peer) -> None:
    """Lose the connections, so that the next call is one."""
    for session in tuple(peer._up._sessions):
        session.abort()
    peer._up.tidy()


def test_a_machine_that_is_not_there_or_does_not_serve_is_not_near(wire: Wire, tmp_path: Path) -> None:
    with (
        living_peer(wire.machine(1), "home", tmp_path) as home,
        living_peer(wire.machine(2), "laptop", tmp_path) as laptop,
    ):
        introduce(home, laptop)
        took, error = laptop.do(fails, "home")
        assert isinstance(error, PeerNotNearError)
        assert 3.5 < took < 5


def test_a_machine_that_comes_later_is_found_by_a_call_under_way(wire: Wire, tmp_path: Path) -> None:
    with living_peer(wire.machine(2), "laptop", tmp_path) as laptop:
        with living_peer(wire.machine(1), "home", tmp_path, lan=False) as home:
            introduce(home, laptop)
        calling = asyncio.run_coroutine_threadsafe(greet(laptop.peer, "home"), laptop._loop)
        with living_peer(wire.machine(3), "home", tmp_path, serves=True):
            assert calling.result(PATIENCE)[1].remote[0] == "10.77.0.3"


def test_twenty_machines_find_each_other(wire: Wire, tmp_path: Path) -> None:
    with contextlib.ExitStack() as living_ones:
        machines = [
            living_ones.enter_context(living_peer(wire.machine(number), f"m{number}", tmp_path, serves=True))
            for number in range(1, 21)
        ]
        caller, *others = machines
        caller.knows(*others)
        for other in others:
            other.knows(caller)
        paths = {machine.peer.tag: caller.do(greet, str(machine.peer.tag)) for machine in others}
        assert {path.remote[0] for _, path in paths.values()} == {f"10.77.0.{number}" for number in range(2, 21)}
        assert max(took for took, _ in paths.values()) < 3


def test_both_networks_of_a_machine_find_it(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    one, other = Wire(stack, 0), Wire(stack, 1)
    both = one.machine(1)
    other.plug(both, 1)
    with (
        living_peer(both, "home", tmp_path, serves=True) as home,
        living_peer(one.machine(2), "left", tmp_path) as left,
        living_peer(other.machine(2), "right", tmp_path) as right,
    ):
        home.knows(left, right)
        for machine, address in ((left, "10.77.0.1"), (right, "10.77.1.1")):
            machine.knows(home)
            assert machine.do(greet, "home")[1].remote[0] == address


def test_a_machine_whose_address_has_changed_is_found_there(wire: Wire, tmp_path: Path) -> None:
    with (
        living_peer(wire.machine(1), "home", tmp_path, serves=True) as home,
        living_peer(wire.machine(2), "laptop", tmp_path) as laptop,
    ):
        introduce(home, laptop)
        assert laptop.do(greet, "home")[1].remote[0] == "10.77.0.1"
        laptop.do(drop_sessions)
        steps = ["addr del 10.77.0.1/24 dev eth0", "addr add 10.77.0.99/24 dev eth0"]
        home.host.run(["ip", "-batch", "-"], input="\n".join(steps))
        took, path = laptop.do(greet, "home")
        assert path.remote[0] == "10.77.0.99"
        assert took < 4


def test_a_caller_whose_address_has_changed_finds_its_peer(wire: Wire, tmp_path: Path) -> None:
    with (
        living_peer(wire.machine(1), "home", tmp_path, serves=True) as home,
        living_peer(wire.machine(2), "laptop", tmp_path) as laptop,
    ):
        introduce(home, laptop)
        steps = ["addr del 10.77.0.2/24 dev eth0", "addr add 10.77.0.98/24 dev eth0"]
        laptop.host.run(["ip", "-batch", "-"], input="\n".join(steps))
        _, path = laptop.do(greet, "home")
        assert path.local[0] == "10.77.0.98"


def test_a_stream_outlives_the_change_of_its_peers_address(wire: Wire, tmp_path: Path) -> None:
    with (
        living_peer(wire.machine(1), "home", tmp_path, serves=True) as home,
        living_peer(wire.machine(2), "laptop", tmp_path) as laptop,
    ):
        introduce(home, laptop)
        stream = laptop.do(Peer.connect, "home", "echo")
        laptop.do(exchange, stream)
        steps = ["addr del 10.77.0.1/24 dev eth0", "addr add 10.77.0.97/24 dev eth0"]
        home.host.run(["ip", "-batch", "-"], input="\n".join(steps))
        laptop.do(exchange, stream)
        assert stream.path.remote[0] == "10.77.0.97"
        laptop.do(end, stream)


async def exchange(_: Peer, stream: Stream) -> None:
    await stream.write(HELLO)
    assert await stream.readexactly(len(HELLO)) == HELLO


async def end(_: Peer, stream: Stream) -> None:
    await stream.close()


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_command_line_needs_no_server_in_one_network(wire: Wire, tmp_path: Path) -> None:
    there, here = wire.machine(1), wire.machine(2)
    nas, laptop = Profile(tmp_path / "nas"), Profile(tmp_path / "laptop")
    nas.peers().add("laptop", laptop.identity().public, ("echo",))
    laptop.peers().add("nas", nas.identity().public)
    with living(there, lambda: echoing("127.0.0.1", 8080)):
        serving = there.popen(command(tmp_path, "nas", "serve", "echo=8080"), stdout=subprocess.PIPE)
        assert serving.stdout is not None
        assert serving.stdout.readline() == "serving echo as nas (in this network only: no server is configured)\n"
        done = here.run(command(tmp_path, "laptop", "pipe", "nas", "echo"), input="hello, neighbour\n", check=False)
        assert (done.returncode, done.stdout) == (0, "hello, neighbour\n"), done.stderr


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("pair",), 2, "no rendezvous server is given"),
        (("netcheck",), 2, "no rendezvous server is given"),
        (("pipe", "nas", "echo"), 4, "'nas' is not to be found in this network"),
    ],
)
def test_what_needs_a_server_says_so(words: tuple[str, ...], code: int, text: str, wire: Wire, tmp_path: Path) -> None:
    Profile(tmp_path / "laptop").peers().add("nas", Identity.generate().public)
    done = wire.machine(2).run(command(tmp_path, "laptop", *words), check=False)
    assert done.returncode == code
    assert f"p2ptunnel: {text}\nhint: " in done.stderr
    assert "--rendezvous host:7000" in done.stderr


def command(directory: Path, tag: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "p2ptunnel", "--profile", str(directory / tag), "--tag", tag, *words]


@contextlib.asynccontextmanager
async def echoing(host: str, port: int) -> AsyncGenerator[None]:
    """A server that sends back what it gets."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while part := await reader.read(1024):
            writer.write(part)
        writer.close()

    async with await asyncio.start_server(answer, host, port):
        yield


# --- with a server ----------------------------------------------------------------------------------------------------


def test_with_a_server_the_network_is_asked_as_well_and_without_it_goes_on(wire: Wire, tmp_path: Path) -> None:
    """The server is there when the peers start, and gone when they look for each other."""
    server = wire.machine(10)
    address = "10.77.0.10:7000"
    with contextlib.ExitStack() as peers:
        with living(server, lambda: Rendezvous(("10.77.0.10", 7000))):
            home = peers.enter_context(living_peer(wire.machine(1), "home", tmp_path, serves=True, rendezvous=address))
            laptop = peers.enter_context(living_peer(wire.machine(2), "laptop", tmp_path, rendezvous=address, relay="never"))
            introduce(home, laptop)
            assert laptop.do(greet, "home")[1].kind == "lan"
            laptop.do(drop_sessions)
        took, path = laptop.do(greet, "home")
        assert path.kind == "lan"
        assert took < 2


def test_who_is_told_to_sends_nothing_to_the_network(wire: Wire, tmp_path: Path) -> None:
    server, quiet = wire.machine(10), wire.machine(1)
    quiet.nft(COUNT_MULTICAST)
    address = "10.77.0.10:7000"
    with (
        living(server, lambda: Rendezvous(("10.77.0.10", 7000))),
        living_peer(wire.machine(2), "laptop", tmp_path, rendezvous=address) as laptop,
        living_peer(quiet, "home", tmp_path, serves=True, lan=False, rendezvous=address) as home,
    ):
        introduce(home, laptop)
        laptop.do(greet, "home")
        assert multicast_of(quiet) == 0
    loud = wire.machine(3)
    loud.nft(COUNT_MULTICAST)
    with living_peer(loud, "loud", tmp_path, serves=True) as machine:
        machine.do(sees, [machine.peer.key])
        assert multicast_of(loud) > 0


async def sees(peer: Peer, keys: list[PublicKey]) -> None:
    """Wait until a peer has found what is announced for each of these keys."""
    lan = peer._up.lan
    assert lan is not None
    for key in keys:
        there = asyncio.Event()
        with lan.finding(key, lambda *_, there=there: there.set()):
            await there.wait()


def multicast_of(host: Host) -> int:
    counted = re.search(r"counter packets (\d+)", host.run(["nft", "list", "ruleset"]).stdout)
    assert counted is not None
    return int(counted[1])


@pytest.mark.parametrize(
    ("source", "is_heard"),
    [
        ("10.9.0.66", True),
        ("172.16.0.66", True),
        ("172.31.255.66", True),
        ("192.168.7.66", True),
        ("169.254.7.66", True),
        ("100.127.0.66", True),
        ("172.32.0.66", False),
        ("192.169.0.66", False),
        ("11.0.0.66", False),
        ("100.128.0.66", False),
        ("203.0.113.66", False),
    ],
)
def test_strangers_on_another_interface_ask_in_vain(
    stack: contextlib.ExitStack, tmp_path: Path, source: str, is_heard: bool
) -> None:
    """A machine between its own network and the internet: port 5353 is open on both, and only one of them is answered."""
    inside, outside = Wire(stack, 0), Wire(stack, 1)
    router, asker = inside.machine(1), outside.machine(66)
    outside.plug(router, 1)
    asker.namespace.netlink.add_address("eth1", f"{source}/32")
    router.namespace.netlink.add_route(f"{source}/32", "eth1")
    with living_peer(router, "home", tmp_path, serves=True) as home:
        home.do(sees, [home.peer.key])
        with asker.socket(type=socket.SOCK_DGRAM) as sock:
            sock.bind((source, 0))
            sock.settimeout(0.5)
            sock.sendto(QUERY, ("10.77.1.1", 5353))
            if is_heard:
                assert b"_p2ptunnel" in sock.recv(9000)
            else:
                with pytest.raises(TimeoutError):
                    sock.recv(9000)


# --- who lies ---------------------------------------------------------------------------------------------------------


def fake(properties: dict[str, Any], *hosts: str, port: int = 40000) -> ServiceInfo:
    return ServiceInfo(
        LAN_SERVICE,
        f"{secrets.token_hex(16)}.{LAN_SERVICE}",
        port=port,
        addresses=[socket.inet_aton(host) for host in hosts],
        properties=properties,
        server=f"{secrets.token_hex(16)}.local.",
    )


def marked(key: PublicKey) -> dict[str, Any]:
    return dict(encode_mark(make_mark(key.raw, secrets.token_bytes(16))))


@contextlib.asynccontextmanager
async def announcing(host: str, services: list[ServiceInfo]) -> AsyncGenerator[AsyncZeroconf]:
    """A program of somebody else's that announces what it likes."""
    zeroconf = AsyncZeroconf(interfaces=[host], ip_version=IPVersion.V4Only)
    try:
        for info in services:
            (await zeroconf.async_register_service(info, cooperating_responders=True)).cancel()  # type: ignore[attr-defined]
        yield zeroconf
    finally:
        await zeroconf.zeroconf._async_close()


def test_thirty_two_dead_addresses_cost_less_than_five_seconds(wire: Wire, tmp_path: Path) -> None:
    liar = wire.machine(66)
    with (
        living_peer(wire.machine(1), "home", tmp_path, lan=False) as home,
        living_peer(wire.machine(2), "laptop", tmp_path) as laptop,
    ):
        introduce(home, laptop)
        dead = [f"10.77.0.{number}" for number in range(100, 132)]
        services = [fake(marked(home.peer.key), *dead[:16]), fake(marked(home.peer.key), *dead[16:])]
        with living(liar, lambda: announcing("10.77.0.66", services)):
            took, error = laptop.do(fails, "home")
            assert isinstance(error, NoPathError)
            assert {attempt.partition(":")[0] for attempt in error.attempts} == set(dead)
            assert took < 5


def test_dead_addresses_do_not_hide_the_living_one(wire: Wire, tmp_path: Path) -> None:
    liar = wire.machine(66)
    with (
        living_peer(wire.machine(1), "home", tmp_path, serves=True) as home,
        living_peer(wire.machine(2), "laptop", tmp_path) as laptop,
    ):
        introduce(home, laptop)
        services = [fake(marked(home.peer.key), *(f"10.77.0.{10 * n + m}" for m in range(8))) for n in range(10, 14)]
        with living(liar, lambda: announcing("10.77.0.66", services)):
            assert laptop.do(greet, "home")[0] < 5


class Mimic:
    """Announces itself with every mark that it hears; it knows the key of one of them, and not the secret."""

    def __init__(self, host: str, key: PublicKey) -> None:
        self.host = host
        self.key = key
        self.has_copied = threading.Event()

    @contextlib.asynccontextmanager
    async def alive(self) -> AsyncGenerator[None]:
        lan = Lan(hosts=lambda: ())  # its answerer announces nothing of its own
        answerer = LanAnswerer(lan, self.key, self._admit)
        address = answerer.start()
        tasks: list[asyncio.Task[None]] = []
        async with announcing(self.host, []) as zeroconf:

            def copy(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
                info = AsyncServiceInfo(service_type, name)
                if state_change is ServiceStateChange.Added and info.load_from_cache(zeroconf) and name not in mine:
                    answerer._port.salt = salt_of(info)
                    mimicry = fake(dict(info.properties), self.host, port=address[1])  # type: ignore[arg-type]
                    mine.add(mimicry.name)
                    tasks.append(asyncio.ensure_future(register(mimicry)))

            async def register(info: ServiceInfo) -> None:
                repeating = await zeroconf.async_register_service(info, cooperating_responders=True)
                self.has_copied.set()
                await repeating

            mine: set[str] = set()
            browser = AsyncServiceBrowser(zeroconf.zeroconf, LAN_SERVICE, handlers=[copy])
            try:
                yield
            finally:
                await browser.async_cancel()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await answerer.close()

    async def _admit(self, pipe: Any, conkey: str) -> None:
        """Hold the connection for as long as it likes."""
        await asyncio.Event().wait()


def salt_of(info: ServiceInfo) -> bytes:
    return base64.urlsafe_b64decode((info.properties[b"s"] or b"") + b"==")


def test_who_answers_for_everybody_costs_only_time(wire: Wire, tmp_path: Path) -> None:
    """It copies every record, knows the peer's public key, answers its datagrams and holds connections that it cannot prove."""
    evil = wire.machine(66)
    with (
        living_peer(wire.machine(1), "home", tmp_path, serves=True) as home,
        living_peer(wire.machine(2), "laptop", tmp_path) as laptop,
    ):
        introduce(home, laptop)
        mimic = Mimic("10.77.0.66", home.peer.key)
        with living(evil, mimic.alive):
            assert mimic.has_copied.wait(PATIENCE)
            for _ in range(3):
                took, path = laptop.do(greet, "home")
                assert path.remote[0] == "10.77.0.1"
                assert took < 5
                laptop.do(drop_sessions)


def test_five_hundred_fake_services_hide_nobody(wire: Wire, tmp_path: Path) -> None:
    evil = wire.machine(66)
    keys = [Identity.generate().public for _ in range(500)]
    services = [fake(marked(key), f"10.77.0.{number % 200 + 20}") for number, key in enumerate(keys)]
    with (
        living(evil, lambda: announcing("10.77.0.66", services)),
        living_peer(wire.machine(1), "home", tmp_path, serves=True) as home,
        living_peer(wire.machine(2), "laptop", tmp_path) as laptop,
    ):
        introduce(home, laptop)
        laptop.do(sees, keys)
        took, path = laptop.do(greet, "home")
        print(f"beside 500 fakes: {took * 1000:.0f} ms")
        assert path.remote[0] == "10.77.0.1"
        assert took < 4
