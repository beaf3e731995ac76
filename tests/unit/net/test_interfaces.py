"""What this machine knows of its own addresses, and names of others."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from p2ptunnel.errors import InvalidAddressError, ResolveError
from p2ptunnel.net import interfaces
from p2ptunnel.net.interfaces import (
    global_ipv6,
    has_route,
    ipv4_networks,
    is_on_link,
    lan_hosts,
    leave_alike,
    local_addresses,
    on_link,
    resolve,
    resolve_both,
    source_address,
)
from p2ptunnel.net.netlink import InterfaceAddress, interface_addresses
from tests.helpers import run


def test_loopback_is_reached_from_loopback() -> None:
    assert source_address("127.0.0.1") == "127.0.0.1"
    assert source_address("127.1.2.3") == "127.0.0.1"
    assert source_address("::1") == "::1"


def test_destination_without_a_route_has_no_source() -> None:
    with pytest.raises(OSError, match=r"unreachable|denied"):
        source_address("255.255.255.255")


def test_source_is_asked_for_a_numeric_destination_only() -> None:
    with pytest.raises(InvalidAddressError):
        source_address("localhost")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.255.254", "::1"])
def test_loopback_is_on_link(host: str) -> None:
    assert is_on_link(host)


def test_own_addresses_are_on_link() -> None:
    assert all(is_on_link(host) for host in local_addresses())


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1.example", "", "255.255.255.255"])
def test_nobody_else_is_on_link(host: str) -> None:
    assert not is_on_link(host)


def test_loopback_and_link_local_addresses_reach_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    found = (
        InterfaceAddress("127.0.0.1", 8),
        InterfaceAddress("2001:db8::aaaa", 64, is_temporary=True),
        InterfaceAddress("fe80::1", 64),
        InterfaceAddress("192.168.1.7", 24),
        InterfaceAddress("2001:db8::1", 64),
        InterfaceAddress("::1", 128),
    )
    monkeypatch.setattr(interfaces, "interface_addresses", lambda: found)
    assert local_addresses() == ("192.168.1.7", "2001:db8::1", "2001:db8::aaaa")  # the temporary one last


def test_the_networks_of_our_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    found = (
        InterfaceAddress("127.0.0.1", 8),
        InterfaceAddress("192.168.1.7", 24),
        InterfaceAddress("192.168.1.8", 24),
        InterfaceAddress("10.0.0.1", 32),
        InterfaceAddress("10.9.9.9", 0),
        InterfaceAddress("2001:db8::1", 64),
    )
    monkeypatch.setattr(interfaces, "interface_addresses", lambda: found)
    assert ipv4_networks() == ("127.0.0.0/8", "192.168.1.0/24", "10.0.0.1/32")


def have(monkeypatch: pytest.MonkeyPatch, *found: InterfaceAddress, sources: dict[str, str]) -> None:
    """Give the machine these addresses, and say from which packets leave over each family."""

    def source(destination: str) -> str:
        own = sources.get("IPv6" if ":" in destination else "IPv4")
        if own is None:
            raise OSError(101, "Network is unreachable")
        return own

    monkeypatch.setattr(interfaces, "interface_addresses", lambda: found)
    monkeypatch.setattr(interfaces, "source_address", source)


def test_packets_leave_alike_that_leave_from_one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, sources={"IPv4": "192.168.1.7"})
    assert leave_alike("100.64.0.7", "192.0.2.1")
    assert not leave_alike("100.64.0.7", "2001:db8::1")  # no route there
    have(monkeypatch, sources={"IPv4": "192.168.1.7", "IPv6": "2001:db8::2"})
    assert not leave_alike("100.64.0.7", "2001:db8::1")


def test_global_addresses_are_the_one_we_speak_from_then_lasting_ones_then_temporary_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have(
        monkeypatch,
        InterfaceAddress("2001:db8::aaaa", 64, is_temporary=True),
        InterfaceAddress("192.168.1.7", 24),
        InterfaceAddress("2001:db8::1", 64),
        InterfaceAddress("2001:db8::2", 64),
        InterfaceAddress("fd00::7", 64),
        InterfaceAddress("2002:c000:0201::1", 16),
        sources={"IPv6": "2001:db8::2"},
    )
    assert global_ipv6() == ("2001:db8::2", "2001:db8::1", "2001:db8::aaaa")


def test_of_many_global_addresses_three_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [InterfaceAddress(f"2001:db8::{number}", 64) for number in range(1, 9)]
    have(monkeypatch, *many, sources={"IPv6": "2001:db8::8"})
    assert global_ipv6() == ("2001:db8::8", "2001:db8::1", "2001:db8::2")


def test_addresses_without_a_route_reach_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, InterfaceAddress("2001:db8::1", 64), sources={})
    assert global_ipv6() == ()


@pytest.mark.parametrize(
    ("sources", "ways"),
    [
        ({"IPv4": "192.168.1.7", "IPv6": "2001:db8::1"}, (True, True)),
        ({"IPv6": "2001:db8::1"}, (False, True)),
        ({}, (False, False)),
    ],
)
def test_there_is_a_route_where_packets_have_a_source(
    monkeypatch: pytest.MonkeyPatch, sources: dict[str, str], ways: tuple[bool, bool]
) -> None:
    have(monkeypatch, sources=sources)
    assert (has_route("192.0.2.1"), has_route("2001:db8::1")) == ways


class Names:
    """A resolver that knows one name, and never answers for some families."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, ipv4: str = "", ipv6: str = "", silent: bool = False) -> None:
        self._known = {socket.AF_INET: ipv4, socket.AF_INET6: ipv6}
        self._silent = silent
        self.end = threading.Event()
        monkeypatch.setattr("socket.getaddrinfo", self._look_up)

    def _look_up(self, host: str, _: object, family: int, kind: int) -> object:
        found = self._known[socket.AddressFamily(family)]
        if not found and self._silent:
            self.end.wait(10)
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, kind, 17, "", (found, 0))]


@pytest.mark.parametrize(("ipv4", "ipv6"), [("192.0.2.1", "2001:db8::1"), ("192.0.2.1", ""), ("", "2001:db8::1")])
def test_a_name_has_an_address_of_each_family_or_of_one(monkeypatch: pytest.MonkeyPatch, ipv4: str, ipv6: str) -> None:
    Names(monkeypatch, ipv4=ipv4, ipv6=ipv6)
    assert list(run(resolve_both("rv.example")).values()) == [host for host in (ipv4, ipv6) if host]


@pytest.mark.parametrize("known", [{"ipv4": "192.0.2.1"}, {"ipv6": "2001:db8::1"}])
def test_a_resolver_that_never_answers_for_one_family_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, str]
) -> None:
    names = Names(monkeypatch, **known, silent=True)
    assert list(run(resolve_both("rv.example", grace=0.01)).values()) == list(known.values())
    names.end.set()


def test_a_name_without_an_address_of_either_family_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch)
    with pytest.raises(ResolveError, match="Name or service not known"):
        run(resolve_both("rv.example"))


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_a_numeric_host_has_one_family(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.delattr("socket.getaddrinfo")
    assert list(run(resolve_both(host)).values()) == [host]


@pytest.mark.parametrize(
    ("hosts", "on_linux", "elsewhere"),
    [
        (["192.168.1.7", "127.0.0.1"], ["192.168.1.7"], ["192.168.1.7"]),
        (["10.0.0.7", "169.254.7.7", "fe80::1", "fd00::7"], ["10.0.0.7", "169.254.7.7"], ["10.0.0.7", "169.254.7.7"]),
        (["203.0.113.7"], [], []),
        (["203.0.113.7", "172.17.0.1"], ["172.17.0.1"], []),
        (["127.0.0.1"], [], []),
        ([], [], []),
    ],
)
def test_neighbours_may_look_for_us_in_private_networks_only(
    hosts: list[str], on_linux: list[str], elsewhere: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tuple(InterfaceAddress(host, 24) for host in hosts)
    monkeypatch.setattr(interfaces, "_known_addresses", lambda: found)
    for linux, expected in ((True, on_linux), (False, elsewhere)):
        monkeypatch.setattr(interfaces, "LINUX", linux)
        assert list(lan_hosts()) == expected


def test_the_system_is_asked_once_for_what_is_on_link(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[None] = []

    def known() -> tuple[InterfaceAddress, ...]:
        asked.append(None)
        return (InterfaceAddress("192.168.1.7", 24),)

    monkeypatch.setattr(interfaces, "_known_addresses", known)
    hosts = ["127.0.0.1", "192.168.1.9", "192.168.2.9", "a name", *(f"192.168.1.{n}" for n in range(10, 40))]
    assert on_link(hosts) == {host for host in hosts if host == "127.0.0.1" or host.startswith("192.168.1.")}
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("own", "prefix", "host", "expected"),
    [
        ("192.168.1.7", 24, "192.168.1.200", True),
        ("192.168.1.7", 24, "192.168.2.7", False),
        ("192.168.1.7", 32, "192.168.1.7", True),
        ("10.0.0.1", 0, "198.51.100.1", False),
        ("2001:db8::1", 64, "2001:db8::ffff", True),
        ("2001:db8::1", 64, "2001:db8:0:1::1", False),
        ("10.0.0.1", 8, "2001:db8::1", False),
    ],
)
def test_network_of_an_interface_address(own: str, prefix: int, host: str, expected: bool) -> None:
    assert InterfaceAddress(own, prefix).is_near(host) is expected


def test_kernel_tells_of_loopback() -> None:
    assert InterfaceAddress("127.0.0.1", 8) in interface_addresses()


def refuse() -> None:
    raise PermissionError


@pytest.mark.parametrize(("name", "value"), [("LINUX", False), ("interface_addresses", refuse)])
def test_where_the_system_does_not_tell_default_routes_do(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, name, value)
    monkeypatch.setattr(interfaces, "_SOMEWHERE", {"192.0.2.1": 32})
    monkeypatch.setattr(interfaces, "source_address", {"192.0.2.1": "192.168.1.7"}.get)
    assert local_addresses() == ("192.168.1.7",)
    assert is_on_link("192.168.1.7")
    assert not is_on_link("192.168.1.8")


def test_without_any_route_there_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "LINUX", False)
    monkeypatch.setattr(interfaces, "_SOMEWHERE", {"255.255.255.255": 32})
    assert local_addresses() == ()


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7", "fe80::7%lo"])
def test_numeric_host_is_its_own_address(host: str) -> None:
    assert run(resolve(host)) == host


def test_numeric_host_of_the_other_family_has_a_typed_error() -> None:
    with pytest.raises(ResolveError, match="cannot resolve '::1'"):
        run(resolve("::1", family=socket.AF_INET))


def test_name_is_looked_up_in_a_daemon_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    def getaddrinfo(*_: object) -> list[tuple[object, ...]]:
        threads.append(threading.current_thread())
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("192.0.2.7", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert run(resolve("rendezvous.example")) == "192.0.2.7"
    [thread] = threads
    assert thread.daemon
    assert thread is not threading.main_thread()


def test_local_name_resolves() -> None:
    assert run(resolve("localhost", family=socket.AF_INET)) == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "reason"),
    [("x" * 64 + ".example", "not a host name"), ("name\0.example", "not a host name"), ("\ud800.example", "not a host name")],
)
def test_host_that_is_no_name_has_a_typed_error(host: str, reason: str) -> None:
    with pytest.raises(ResolveError) as caught:
        run(resolve(host))
    assert caught.value.reason == reason
    assert str(caught.value).isprintable()


def test_name_without_an_address_has_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ResolveError) as caught:
        run(resolve("nobody.example"))
    assert str(caught.value) == "cannot resolve 'nobody.example': Name or service not known"


def test_hanging_look_up_is_forgotten_when_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def getaddrinfo(*_: object) -> None:
        threads.append(threading.current_thread())
        entered.set()
        leave.wait()

    async def main() -> None:
        looking = asyncio.create_task(resolve("hanging.example"))
        await asyncio.to_thread(entered.wait)
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    run(main())
    leave.set()  # after the loop is gone: the thread ends without a word
    threads[0].join(5)
    assert not threads[0].is_alive()
