"""Where one's own NATs end: which addresses are public, and what is concluded from the hops that answered."""

from __future__ import annotations

import pytest

from p2ptunnel.errors import InvalidAddressError
from p2ptunnel.net.hops import Hops, _choose, _is_enough, _Outside, is_public, opener_ttl
from tests.helpers import run

SERVER = "203.0.113.1"
SERVER_6 = "2001:db8:ffff::1"


def chosen(*hops: str | None, server: str = SERVER) -> int | None:
    """What is concluded when these answered, the nearest first; None is a silent one."""
    return _choose({ttl: host for ttl, host in enumerate(hops, 1) if host}, _Outside((server, 7000)))


@pytest.mark.parametrize("host", ["10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255"])
def test_addresses_used_behind_nats_are_private(host: str) -> None:
    assert not is_public(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.1.1", "192.0.0.1", "0.0.0.0", "::1", "fe80::1%eth0", "fd00::1"])
def test_addresses_of_one_link_or_machine_are_private(host: str) -> None:
    assert not is_public(host)


@pytest.mark.parametrize(
    "host", ["203.0.113.1", "198.51.100.1", "192.0.2.1", "172.32.0.1", "100.128.0.1", "192.0.0.8", "11.0.0.1", "2001:db8::1"]
)
def test_all_others_are_public_documentation_addresses_too(host: str) -> None:
    assert is_public(host)


def test_without_a_nat_the_first_hop_is_outside() -> None:
    assert chosen("203.0.113.254", SERVER) == 1


def test_behind_one_nat_the_second_hop_is_outside() -> None:
    assert chosen("192.168.1.1", "203.0.113.254", SERVER) == 2


def test_behind_two_nats_the_third_hop_is_outside() -> None:
    assert chosen("192.168.1.1", "100.64.0.1", "203.0.113.254", SERVER) == 3


def test_silent_hop_before_a_public_one_is_passed() -> None:
    assert chosen("192.168.1.1", None, "203.0.113.254") == 3


def test_silence_behind_a_private_hop_leaves_room_for_one_silent_nat() -> None:
    assert chosen("192.168.1.1") == 3
    assert chosen("192.168.1.1", "10.0.0.1") == 4


def test_server_itself_is_no_hop_outside_but_the_opener_does_not_pass_it() -> None:
    assert chosen("192.168.1.1", None, None, None, None, SERVER) == 3
    assert chosen("192.168.1.1", SERVER) == 2
    assert chosen(None, None, None, None, None, SERVER) == 3


def test_nothing_known_is_said_so() -> None:
    assert chosen() is None


def test_ipv6_has_no_second_nat_to_pass() -> None:
    assert chosen("fe80::1", server=SERVER_6) == 2
    assert chosen("fd00::1", "fd00::2", server=SERVER_6) == 3
    assert chosen("fe80::1", "2001:db8:fffe::1", server=SERVER_6) == 2
    assert chosen(None, None, SERVER_6, server=SERVER_6) == 2


def test_what_may_come_yet_is_waited_for() -> None:
    outside = _Outside((SERVER, 7000))
    assert not _is_enough({}, outside)
    assert not _is_enough({1: "192.168.1.1"}, outside)
    assert not _is_enough({2: "203.0.113.254"}, outside)
    assert _is_enough({1: "192.168.1.1", 2: "203.0.113.254"}, outside)
    assert _is_enough({1: "192.168.1.1", 2: SERVER}, outside)


def test_loopback_has_no_hops() -> None:
    assert run(opener_ttl(("127.0.0.1", 9), wait=0.01)) == Hops(None, {})


@pytest.mark.parametrize("server", [("localhost", 9), ("127.0.0.1", 0)])
def test_server_must_be_numeric(server: tuple[str, int]) -> None:
    with pytest.raises(InvalidAddressError):
        run(opener_ttl(server))
