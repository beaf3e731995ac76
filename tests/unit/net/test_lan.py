"""Multicast DNS, the real one, on loopback: who is announced is found by who knows the key, whatever else is announced."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import importlib
import secrets
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from zeroconf import IPVersion, ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.net import lan as module
from p2ptunnel.net.lan import Lan
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.types import Address
from p2ptunnel.wire.lan import LAN_SERVICE, encode_mark, make_mark
from tests.helpers import run
from tests.helpers.turns import descriptors, settle

LOOPBACK = ("127.0.0.1",)
PORT = 40001
PATIENCE = 10.0

Found = tuple[bytes, tuple[Address, ...], tuple[Address, ...]]


def a_key() -> PublicKey:
    """A key of this test alone: whoever else tests on this machine announces on loopback, too."""
    return Identity.generate().public


class Hosts:
    """Where this machine is; may change."""

    def __init__(self, *hosts: str) -> None:
        self.hosts = hosts

    def __call__(self) -> tuple[str, ...]:
        return self.hosts


class Neighbour:
    """One `Lan` on loopback, and what it finds and tells."""

    def __init__(self, hosts: Hosts | None = None) -> None:
        self.hosts = hosts or Hosts(*LOOPBACK)
        self.events: list[TraceEvent] = []
        self.salts: asyncio.Queue[bytes] = asyncio.Queue()
        self.found: asyncio.Queue[Found] = asyncio.Queue()
        self._changed = asyncio.Event()
        self.lan = Lan(hosts=self.hosts, tracer=Tracer(self._note))

    def on_found(self, salt: bytes, near: tuple[Address, ...], far: tuple[Address, ...]) -> None:
        self.found.put_nowait((salt, near, far))

    def announce(self, key: PublicKey, port: int = PORT) -> None:
        self.lan.announce(key, port, self.salts.put_nowait)

    async def told(self, name: str, times: int = 1) -> TraceEvent:
        while len(matching := [event for event in self.events if event.name == name]) < times:
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), PATIENCE)
        return matching[times - 1]

    async def finds(self) -> Found:
        return await asyncio.wait_for(self.found.get(), PATIENCE)

    async def finds_salt(self, salt: bytes) -> Found:
        """The next find that bears this salt."""
        while (found := await self.finds())[0] != salt:
            pass
        return found

    def _note(self, event: TraceEvent) -> None:
        self.events.append(event)
        self._changed.set()


@contextlib.asynccontextmanager
async def neighbours(count: int = 2) -> AsyncGenerator[list[Neighbour]]:
    there = [Neighbour() for _ in range(count)]
    try:
        for one in there:
            one.lan.start()
        yield there
    finally:
        await asyncio.gather(*(one.lan.close() for one in there))


Announce = Callable[[ServiceInfo], Awaitable[None]]


@contextlib.asynccontextmanager
async def announcer() -> AsyncGenerator[Announce]:
    """A program of somebody else's that announces what it likes."""
    zeroconf = AsyncZeroconf(interfaces=list(LOOPBACK), ip_version=IPVersion.V4Only)
    repeating: list[asyncio.Future[Any]] = []

    async def announce(info: ServiceInfo) -> None:
        repeating.append(asyncio.ensure_future(await zeroconf.async_register_service(info, cooperating_responders=True)))

    try:
        yield announce
    finally:
        for task in repeating:
            task.cancel()
        await asyncio.gather(*repeating, return_exceptions=True)
        await zeroconf.async_close()


def service(properties: dict[str, Any], *hosts: str, port: int = PORT, name: str = "") -> ServiceInfo:
    return ServiceInfo(
        LAN_SERVICE,
        f"{name or secrets.token_hex(16)}.{LAN_SERVICE}",
        port=port,
        addresses=[socket.inet_aton(host) for host in hosts],
        properties=properties,
        server=f"{secrets.token_hex(16)}.local.",
    )


def marked(key: PublicKey, salt: bytes = bytes(16)) -> dict[str, Any]:
    return dict(encode_mark(make_mark(key.raw, salt)))


# --- finding ----------------------------------------------------------------------------------------------------------


def test_who_is_announced_is_found_by_the_key() -> None:
    async def main() -> None:
        async with neighbours() as (home, laptop):
            key = a_key()
            home.announce(key)
            with laptop.lan.finding(key, laptop.on_found):
                salt, near, far = await laptop.finds()
            assert salt == await home.salts.get()
            assert (near, far) == ((("127.0.0.1", PORT),), ())

    run(main())


def test_who_was_found_before_is_found_at_once() -> None:
    async def main() -> None:
        async with neighbours() as (home, laptop):
            key = a_key()
            home.announce(key)
            with laptop.lan.finding(key, laptop.on_found):
                first = await laptop.finds()
            while not laptop.found.empty():
                laptop.found.get_nowait()
            with laptop.lan.finding(key, laptop.on_found):
                assert laptop.found.get_nowait() == first

    run(main())


def test_another_key_finds_nobody() -> None:
    async def main() -> None:
        async with neighbours() as (home, laptop):
            key = a_key()
            home.announce(key)
            other: list[Found] = []
            with (
                laptop.lan.finding(a_key(), lambda *found: other.append(found)),
                laptop.lan.finding(key, laptop.on_found),
            ):
                await laptop.finds()
            assert other == []

    run(main())


def test_who_withdraws_is_found_no_more_and_whoever_looks_no_longer_is_told_nothing() -> None:
    async def main() -> None:
        async with neighbours() as (home, laptop):
            key, marker = a_key(), a_key()
            home.announce(key)
            with laptop.lan.finding(key, laptop.on_found):
                await laptop.finds()
            home.lan.withdraw()
            home.announce(marker)  # whoever hears this has heard the goodbye before
            with laptop.lan.finding(marker, laptop.on_found):
                await laptop.finds()
            await until(lambda: not any(known.mark.is_of(key.raw) for known in laptop.lan._services.values()))
            later: list[Found] = []
            with laptop.lan.finding(key, lambda *found: later.append(found)):
                assert later == []

    run(main())


async def until(is_so: Any) -> None:
    """Wait for something that the goodbye, which takes effect a second later, brings about; the test's end is its limit."""
    loop = asyncio.get_running_loop()
    while not is_so():
        turned = loop.create_future()
        loop.call_later(0.01, turned.set_result, None)
        await turned


def test_in_another_network_the_mark_the_names_and_the_salt_are_others() -> None:
    async def main() -> None:
        async with neighbours() as (home, laptop):
            key = a_key()
            home.announce(key)
            with laptop.lan.finding(key, laptop.on_found):
                first = await home.salts.get()
                await laptop.finds_salt(first)
                before = set(laptop.lan._services)
                home.lan.network_changed()
                second = await home.salts.get()
                await laptop.finds_salt(second)
            assert first != second
            fresh = set(laptop.lan._services) - before
            assert fresh

    run(main())


def test_who_comes_to_a_network_later_is_found_from_then_on() -> None:
    async def main() -> None:
        home, laptop = Neighbour(Hosts()), Neighbour()
        try:
            for one in (home, laptop):
                one.lan.start()
            key = a_key()
            home.announce(key)
            assert (await home.told("unavailable")).facts["reason"] == "this machine has no address in a private network"
            assert home.lan.trouble == "this machine has no address in a private network"
            with laptop.lan.finding(key, laptop.on_found):
                home.hosts.hosts = LOOPBACK
                home.lan.network_changed()
                await laptop.finds()
            assert home.lan.trouble == ""
        finally:
            await asyncio.gather(home.lan.close(), laptop.lan.close())

    run(main())


def test_nothing_that_is_announced_tells_who_it_is() -> None:
    """Every record that leaves: no key, no tag, no host name, and names that are random."""

    async def main() -> None:
        async with neighbours() as (home, laptop):
            key = a_key()
            home.announce(key)
            with laptop.lan.finding(key, laptop.on_found):
                await laptop.finds()
            info = home.lan._announced
            assert info is not None
            for name in (info.name.removesuffix(f".{LAN_SERVICE}"), str(info.server).removesuffix(".local.")):
                assert len(name) == 32
                assert set(name) <= set("0123456789abcdef")
            assert set(info.properties) == {b"v", b"s", b"h"}
            shown = repr(info) + repr(info.text)
            secrets_of_ours = (socket.gethostname(), key.raw.hex(), str(key)[4:12], repr(key.raw[:8])[2:-1])
            assert not any(word in shown for word in secrets_of_ours)

    run(main())


# --- what others announce ---------------------------------------------------------------------------------------------


def test_what_others_announce_leads_nowhere_but_into_networks_like_ours() -> None:
    async def main() -> None:
        async with neighbours(1) as (laptop,), announcer() as announce:
            key = a_key()
            hosts = ("127.0.0.1", "10.9.9.9", "8.8.8.8", "169.254.169.254", "224.0.0.251", "0.0.0.0", "255.255.255.255")
            await announce(service(marked(key), *hosts))
            with laptop.lan.finding(key, laptop.on_found):
                _, near, far = await laptop.finds()
            assert near == (("127.0.0.1", PORT),)
            assert far == (("10.9.9.9", PORT),)

    run(main())


def test_a_port_of_a_service_is_not_taken() -> None:
    async def main() -> None:
        async with neighbours(1) as (laptop,), announcer() as announce:
            key = a_key()
            await announce(service(marked(key), "127.0.0.1", port=22))
            with laptop.lan.finding(key, laptop.on_found):
                assert await laptop.finds() == (bytes(16), (), ())

    run(main())


@pytest.mark.parametrize(
    "properties",
    [{}, {"v": "1"}, {"v": "2", "s": "x", "h": "y"}, {"s": b"\xff" * 200}, {"v": "1", "s": "A" * 22, "h": None}],
)
def test_records_that_are_no_mark_are_passed_over(properties: dict[str, Any]) -> None:
    async def main() -> None:
        async with neighbours(1) as (laptop,), announcer() as announce:
            key = a_key()
            junk = service(properties, "127.0.0.1", name=f"{'x' * 20}.{secrets.token_hex(4)}")
            await announce(junk)
            await announce(service(marked(key), "127.0.0.1"))
            with laptop.lan.finding(key, laptop.on_found):
                await laptop.finds()
            assert junk.name not in laptop.lan._services

    run(main())


def test_names_that_are_none_and_packets_that_are_junk_harm_nobody() -> None:
    async def main() -> None:
        async with neighbours() as (home, laptop):
            key = a_key()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
                raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
                for packet in hostile_packets():
                    raw.sendto(packet, ("224.0.0.251", 5353))
            home.announce(key)
            with laptop.lan.finding(key, laptop.on_found):
                await laptop.finds()

    run(main())


def hostile_packets() -> list[bytes]:
    """Answers with names that are no services, pointers that loop, lengths that lie, and noise."""
    head = bytes.fromhex("000084000000000100000000")
    service_name = b"".join(bytes([len(part)]) + part for part in LAN_SERVICE.rstrip(".").encode().split(b".")) + b"\0"

    def pointer(alias: bytes) -> bytes:
        return head + service_name + bytes.fromhex("000c000100001194") + len(alias).to_bytes(2, "big") + alias

    def label(text: bytes) -> bytes:
        return bytes([len(text)]) + text

    return [
        pointer(b"\0"),
        pointer(label(b"no service") + b"\0"),
        pointer(label(b"\x1b[2J\n\r") + service_name),
        pointer(label(b"\xff" * 63) * 4 + service_name),
        pointer(label(b"_sub") + service_name),
        pointer(service_name),
        pointer(b"\xc0\x0c"),
        pointer(b"\xc0\xff"),
        head + b"\xc0\x0c",
        pointer(label(b"x"))[:-3],
        b"",
        bytes(12),
        b"\xff" * 1400,
        *(secrets.token_bytes(200) for _ in range(50)),
    ]


def test_no_more_services_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAN_SERVICES_MAX", 5)

    async def main() -> None:
        async with neighbours(1) as (laptop,), announcer() as announce:
            key = a_key()
            for number in range(20):
                info = service(marked(a_key(), bytes([number]) * 16), "127.0.0.1")
                await announce(info)
            await announce(service(marked(key), "127.0.0.1"))
            with laptop.lan.finding(key, laptop.on_found):
                await laptop.finds()
            assert len(laptop.lan._services) <= 5

    run(main())


# --- what keeps us from it --------------------------------------------------------------------------------------------


def test_without_the_library_there_is_nobody_and_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "zeroconf"]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "zeroconf":
            raise ImportError("No module named 'zeroconf'")
        return real(name, *rest)

    def missing(name: str) -> Any:
        return without(name)

    monkeypatch.setattr(importlib, "import_module", missing)

    async def main() -> None:
        async with neighbours(1) as (laptop,):
            laptop.announce(a_key())
            assert (await laptop.told("unavailable")).facts["reason"] == "No module named 'zeroconf'"
            with laptop.lan.finding(a_key(), laptop.on_found):
                assert laptop.found.empty()

    run(main())


def test_where_the_port_is_anothers_alone_there_is_nobody_until_the_network_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    import zeroconf.asyncio

    real = zeroconf.asyncio.AsyncZeroconf

    def taken(**_: Any) -> Any:
        raise OSError(98, "Address already in use")

    async def main() -> None:
        monkeypatch.setattr(zeroconf.asyncio, "AsyncZeroconf", taken)
        async with neighbours(1) as (laptop,):
            await laptop.told("unavailable")
            assert "Address already in use" in laptop.lan.trouble
            monkeypatch.setattr(zeroconf.asyncio, "AsyncZeroconf", real)
            laptop.announce(a_key())
            laptop.lan.network_changed()
            await laptop.told("announced")
            assert laptop.lan.trouble == ""

    run(main())


def test_nothing_is_opened_before_the_start_or_left_open_after_the_end() -> None:
    async def main() -> None:
        before = descriptors()
        unused = Lan(hosts=Hosts(*LOOPBACK))
        assert descriptors() == before
        await unused.close()
        async with neighbours(1) as (home,):
            home.lan.start()
            home.announce(a_key())
            await home.told("announced")
            await home.lan.close()
        await settle(before, 1)

    run(main())


def test_closed_at_once_it_leaves_nothing_open() -> None:
    async def main() -> None:
        before = descriptors()
        home = Neighbour()
        home.lan.start()
        home.announce(a_key())
        await home.told("announced")
        home.lan.abort()
        await settle(before, 1)

    run(main())


def test_a_closing_that_is_cancelled_leaves_nothing_open() -> None:
    async def main() -> None:
        before = descriptors()
        for turns in range(1, 12):
            home = Neighbour()
            home.lan.start()
            home.announce(a_key())
            await home.told("announced")
            closing = asyncio.ensure_future(home.lan.close())
            for _ in range(turns):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
            await settle(before, 1)

    run(main())
