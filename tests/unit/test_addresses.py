"""Spellings of addresses, what the addresses are for, and where probes and connections may go."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.addresses import canonical, lan_refusal, probe_refusal, scope_of, source_of, target_refusal
from p2ptunnel.errors import InvalidAddressError

SPELLINGS = {  # a spelling, the address it reaches, and what that address is for
    "0.0.0.0": ("0.0.0.0", "unspecified"),
    "0.1.2.3": ("0.1.2.3", "unspecified"),
    "::": ("::", "unspecified"),
    "0:0:0:0:0:0:0:0": ("::", "unspecified"),
    "::0.0.0.0": ("::", "unspecified"),
    "::ffff:0.0.0.0": ("0.0.0.0", "unspecified"),
    "::ffff:0:0": ("0.0.0.0", "unspecified"),
    "::ffff:0:0:0": ("0.0.0.0", "unspecified"),
    "64:ff9b::": ("0.0.0.0", "unspecified"),
    "64:ff9b:1::": ("0.0.0.0", "unspecified"),
    "2002::": ("0.0.0.0", "unspecified"),
    "2001:0:4136:e378:8000:63bf:ffff:ffff": ("0.0.0.0", "unspecified"),
    "127.0.0.1": ("127.0.0.1", "loopback"),
    "127.255.255.254": ("127.255.255.254", "loopback"),
    "::1": ("::1", "loopback"),
    "0:0:0:0:0:0:0:1": ("::1", "loopback"),
    "::0.0.0.1": ("::1", "loopback"),
    "::127.0.0.1": ("127.0.0.1", "loopback"),
    "::7f00:1": ("127.0.0.1", "loopback"),
    "::ffff:127.0.0.1": ("127.0.0.1", "loopback"),
    "::FFFF:7F00:1": ("127.0.0.1", "loopback"),
    "0:0:0:0:0:ffff:127.0.0.1": ("127.0.0.1", "loopback"),
    "::ffff:0:127.0.0.1": ("127.0.0.1", "loopback"),
    "64:ff9b::127.0.0.1": ("127.0.0.1", "loopback"),
    "64:ff9b::7f00:1": ("127.0.0.1", "loopback"),
    "64:ff9b:1::7f00:1": ("127.0.0.1", "loopback"),
    "64:ff9b:1:ffff:ffff:ffff:7f00:1": ("127.0.0.1", "loopback"),
    "2002:7f00:1::": ("127.0.0.1", "loopback"),
    "2002:7f00:1:2:3:4:5:6": ("127.0.0.1", "loopback"),
    "2001:0:4136:e378:8000:63bf:80ff:fffe": ("127.0.0.1", "loopback"),
    "2001::80ff:fffe": ("127.0.0.1", "loopback"),
    "fe80::5efe:127.0.0.1": ("127.0.0.1", "loopback"),
    "fe80::200:5efe:7f00:1": ("127.0.0.1", "loopback"),
    "2001:db8::5efe:7f00:1": ("127.0.0.1", "loopback"),
    "169.254.169.254": ("169.254.169.254", "link-local"),
    "::ffff:169.254.169.254": ("169.254.169.254", "link-local"),
    "::a9fe:a9fe": ("169.254.169.254", "link-local"),
    "64:ff9b::a9fe:a9fe": ("169.254.169.254", "link-local"),
    "2002:a9fe:a9fe::1": ("169.254.169.254", "link-local"),
    "2001::5601:5601": ("169.254.169.254", "link-local"),
    "2001:db8::200:5efe:a9fe:a9fe": ("169.254.169.254", "link-local"),
    "fe80::1": ("fe80::1", "link-local"),
    "febf:ffff::1": ("febf:ffff::1", "link-local"),
    "10.0.0.1": ("10.0.0.1", "private"),
    "::ffff:10.0.0.1": ("10.0.0.1", "private"),
    "64:ff9b::a00:1": ("10.0.0.1", "private"),
    "2002:a00:1::1": ("10.0.0.1", "private"),
    "172.16.0.1": ("172.16.0.1", "private"),
    "172.31.255.255": ("172.31.255.255", "private"),
    "192.168.1.1": ("192.168.1.1", "private"),
    "::192.168.1.1": ("192.168.1.1", "private"),
    "100.64.0.1": ("100.64.0.1", "private"),
    "100.127.255.255": ("100.127.255.255", "private"),
    "198.18.0.1": ("198.18.0.1", "private"),
    "fd00::1": ("fd00::1", "private"),
    "fc00::1": ("fc00::1", "private"),
    "192.0.0.8": ("192.0.0.8", "reserved"),
    "192.88.99.1": ("192.88.99.1", "reserved"),
    "240.0.0.1": ("240.0.0.1", "reserved"),
    "255.255.255.254": ("255.255.255.254", "reserved"),
    "255.255.255.255": ("255.255.255.255", "broadcast"),
    "::ffff:255.255.255.255": ("255.255.255.255", "broadcast"),
    "::ffff:ffff": ("255.255.255.255", "broadcast"),
    "224.0.0.1": ("224.0.0.1", "multicast"),
    "239.255.255.250": ("239.255.255.250", "multicast"),
    "::ffff:224.0.0.251": ("224.0.0.251", "multicast"),
    "ff02::1": ("ff02::1", "multicast"),
    "ff0e::fb": ("ff0e::fb", "multicast"),
    "100::1": ("100::1", "reserved"),
    "1::1": ("1::1", "reserved"),
    "2001:2::1": ("2001:2::1", "reserved"),
    "2001:20::1": ("2001:20::1", "reserved"),
    "3ffe::1": ("3ffe::1", "reserved"),
    "4000::1": ("4000::1", "reserved"),
    "5f00::1": ("5f00::1", "reserved"),
    "fec0::1": ("fec0::1", "reserved"),
    "203.0.113.7": ("203.0.113.7", "public"),
    "::ffff:203.0.113.7": ("203.0.113.7", "public"),
    "2002:cb00:7107::1": ("203.0.113.7", "public"),
    "192.0.2.1": ("192.0.2.1", "public"),
    "198.51.100.9": ("198.51.100.9", "public"),
    "9.255.255.255": ("9.255.255.255", "public"),
    "11.0.0.0": ("11.0.0.0", "public"),
    "100.63.255.255": ("100.63.255.255", "public"),
    "100.128.0.0": ("100.128.0.0", "public"),
    "126.255.255.255": ("126.255.255.255", "public"),
    "128.0.0.0": ("128.0.0.0", "public"),
    "172.15.255.255": ("172.15.255.255", "public"),
    "172.32.0.0": ("172.32.0.0", "public"),
    "223.255.255.255": ("223.255.255.255", "public"),
    "2001:db8::7": ("2001:db8::7", "public"),
    "2001:200::1": ("2001:200::1", "public"),
    "3fff::1": ("3fff::1", "public"),
}


@pytest.mark.parametrize("text", SPELLINGS)
def test_every_spelling_is_taken_for_the_address_that_it_reaches(text: str) -> None:
    reached, scope = SPELLINGS[text]
    assert canonical(text) == ip_address(reached)
    assert scope_of(canonical(text)) == scope


NOT_NUMERIC = [
    "",
    "localhost",
    "127.1",
    "0",
    "0x7f.1",
    "0x7f000001",
    "2130706433",
    "0177.0.0.1",
    "127.0.0.01",
    "127.0.0.1.",
    "127.0.0.1 ",
    " 127.0.0.1",
    "127.0.0.1\n",
    "127.0.0.1\x00",
    "127.0.0.1/32",
    "127.0.0.256",
    "１２７.0.0.1",
    "127。0。0。1",
    "[::1]",
    "::1%lo",
    "fe80::1%eth0",
    "fe80::1%1",
    "::ffff:127.0.0.1%1",
    "::ffff:127.1",
    "1:2:3:4:5:6:7",
    ":::",
    "::1::",
]


@pytest.mark.parametrize("text", NOT_NUMERIC, ids=ascii)
def test_what_is_not_plainly_numeric_is_no_address(text: str) -> None:
    with pytest.raises(InvalidAddressError):
        canonical(text)


ANY_IPV4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ANY_IPV6 = st.integers(0, 2**128 - 1).map(IPv6Address)
EMBEDDINGS = ("::ffff:{}", "::ffff:0:{}", "64:ff9b::{}", "64:ff9b:1::{}", "64:ff9b:1:abcd::{}", "2001:db8::5efe:{}", "::{}")


@given(ANY_IPV4, st.sampled_from(EMBEDDINGS))
def test_an_ipv4_address_is_itself_in_every_wrapping(address: IPv4Address, wrapping: str) -> None:
    if int(address) > 1 or wrapping != "::{}":
        assert canonical(wrapping.format(address)) == address


@given(ANY_IPV4, st.integers(0, 2**80 - 1))
def test_6to4_and_teredo_hold_an_ipv4_address(address: IPv4Address, rest: int) -> None:
    assert canonical(str(IPv6Address(0x2002 << 112 | int(address) << 80 | rest))) == address
    assert canonical(str(IPv6Address(0x20010000 << 96 | rest >> 16 << 32 | int(address) ^ 0xFFFFFFFF))) == address


@given(ANY_IPV4 | ANY_IPV6)
def test_what_is_canonical_stays_as_it_is(address: IPv4Address | IPv6Address) -> None:
    once = canonical(str(address))
    assert canonical(str(once)) == once
    assert canonical(once.exploded) == once


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_typed_error(text: str) -> None:
    try:
        address = canonical(text)
    except InvalidAddressError:
        return
    assert text.isascii()
    assert ip_address(str(address)) == address


# --- probes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_stranger_can_name_public_addresses_only(text: str) -> None:
    refusal = probe_refusal(canonical(text), 40000, is_admitted=False)
    assert (refusal is None) is (SPELLINGS[text][1] == "public")


@pytest.mark.parametrize("text", SPELLINGS)
def test_an_admitted_peer_can_name_private_addresses_too(text: str) -> None:
    refusal = probe_refusal(canonical(text), 40000, is_admitted=True)
    assert (refusal is None) is (SPELLINGS[text][1] in {"public", "private"})


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_server_on_loopback_may_name_peers_there(text: str) -> None:
    refusal = probe_refusal(canonical(text), 40000, is_admitted=False, on_loopback=True)
    assert (refusal is None) is (SPELLINGS[text][1] in {"public", "loopback"})


@pytest.mark.parametrize("port", [-1, 0, 22, 53, 123, 1023, 1900, 3702, 5353, 11211, 65536])
def test_no_probe_goes_to_a_port_of_services(port: int) -> None:
    assert probe_refusal(canonical("203.0.113.7"), port, is_admitted=True)


@pytest.mark.parametrize("port", [1024, 7000, 65535])
def test_a_probe_may_go_to_an_ordinary_port(port: int) -> None:
    assert probe_refusal(canonical("203.0.113.7"), port, is_admitted=False) is None


def test_a_refusal_says_why() -> None:
    loopback = probe_refusal(canonical("::127.0.0.1"), 40000, is_admitted=True)
    assert loopback == "a loopback address"
    assert probe_refusal(canonical("203.0.113.7"), 80, is_admitted=True) == "a port below 1024"


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("192.168.1.7", None, None),
        ("10.1.2.3", None, None),
        ("100.64.0.9", None, None),
        ("fd12::7", None, None),
        ("169.254.7.7", None, "a link-local address"),
        ("203.0.113.7", None, "a public address"),
        ("2001:db8::7", None, "a public address"),
        ("127.0.0.1", "a loopback address", "a loopback address"),
        ("::1", "a loopback address", "a loopback address"),
        ("0.0.0.0", "a unspecified address", "a unspecified address"),
        ("224.0.0.251", "a multicast address", "a multicast address"),
        ("255.255.255.255", "a broadcast address", "a broadcast address"),
        ("240.0.0.1", "a reserved address", "a reserved address"),
        ("169.254.169.254", "a metadata service", "a link-local address"),
        ("100.100.100.200", "a metadata service", "a metadata service"),
    ],
)
def test_what_is_announced_leads_into_networks_like_ours_only(text: str, near: str | None, far: str | None) -> None:
    assert lan_refusal(canonical(text), 40000, is_on_link=True) == near
    assert lan_refusal(canonical(text), 40000, is_on_link=False) == far


def test_an_announced_port_is_none_of_a_service() -> None:
    refused = [lan_refusal(canonical("10.0.0.7"), port, is_on_link=True) for port in (0, 22, 1023, 5353, 11211, 65536)]
    assert refused == ["a port below 1024", "a port below 1024", "a port below 1024", *["a port of amplifiers"] * 2, "no port"]


def test_loopback_is_announced_to_tests_only() -> None:
    assert lan_refusal(canonical("127.0.0.1"), 40000, is_on_link=True, on_loopback=True) is None
    assert lan_refusal(canonical("203.0.113.7"), 40000, is_on_link=False, on_loopback=True) == "a public address"


def test_the_broadcast_address_of_an_interface_is_no_peer() -> None:
    broadcast = canonical("192.168.1.255")
    assert probe_refusal(broadcast, 40000, is_admitted=True) is None
    assert probe_refusal(broadcast, 40000, is_admitted=True, broadcasts={broadcast}) == "a broadcast address"


@pytest.mark.parametrize("text", ["100.100.100.200", "168.63.129.16", "fd00:ec2::254"])
def test_metadata_services_outside_link_local_ranges_are_not_probed(text: str) -> None:
    assert probe_refusal(canonical(text), 40000, is_admitted=True) == "a metadata service"


# --- targets ----------------------------------------------------------------------------------------------------------

EVERYTHING = (ip_network("0.0.0.0/0"), ip_network("::/0"))


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_grant_of_everything_covers_public_and_private_addresses_only(text: str) -> None:
    address = canonical(text)
    is_open = any(target_refusal(address, network) is None for network in EVERYTHING)
    assert is_open is (SPELLINGS[text][1] in {"public", "private"})


@pytest.mark.parametrize(
    "text",
    [
        *("169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.0.23", "169.254.42.42", "100.100.100.200"),
        *("168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd00:c1::a9fe:a9fe", "fd00:42::42", "fd20:ce::254"),
    ],
)
def test_a_metadata_service_is_denied_even_to_a_grant_of_its_own(text: str) -> None:
    assert target_refusal(canonical(text), ip_network(text)) == "a metadata service"


@pytest.mark.parametrize(
    ("text", "network"),
    [("127.0.0.1", "127.0.0.0/8"), ("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("169.254.7.7", "169.254.7.0/24")],
)
def test_loopback_and_link_local_are_open_to_a_network_of_their_own(text: str, network: str) -> None:
    assert target_refusal(canonical(text), ip_network(network)) is None


@pytest.mark.parametrize(("text", "network"), [("127.0.0.1", "126.0.0.0/7"), ("169.254.7.7", "169.0.0.0/8"), ("::1", "::/96")])
def test_a_wider_network_does_not_cover_them_by_accident(text: str, network: str) -> None:
    assert target_refusal(canonical(text), ip_network(network)) is not None


def test_what_the_network_does_not_hold_is_not_granted() -> None:
    assert target_refusal(canonical("10.0.1.1"), ip_network("10.0.0.0/24")) == "not in the grant"
    assert target_refusal(canonical("::ffff:10.0.0.1"), ip_network("::/0")) == "not in the grant"


# --- sources ----------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0x20030000_00000000, 0x3FFFFFFF_FFFFFFFF))
def test_a_whole_64_is_one_source(one: int, other: int, prefix: int) -> None:
    addresses = [IPv6Address(prefix << 64 | host) for host in (one, other)]
    assert source_of(addresses[0]) == source_of(addresses[1])


@given(st.integers(0, 2**80 - 1), st.integers(0, 2**80 - 1))
def test_a_whole_48_is_one_site(one: int, other: int) -> None:
    first, second = (source_of(IPv6Address(0x20010DB80007 << 80 | rest)) for rest in (one, other))
    assert first.site == second.site
    assert (first.block == second.block) is (one >> 64 == other >> 64)


@given(ANY_IPV4, ANY_IPV4)
def test_every_ipv4_address_is_a_source_of_its_own(one: IPv4Address, other: IPv4Address) -> None:
    assert (source_of(one) == source_of(other)) is (one == other)


@given(ANY_IPV4, ANY_IPV6.filter(lambda address: isinstance(canonical(str(address)), IPv6Address)))
def test_no_ipv6_block_is_taken_for_an_ipv4_address(one: IPv4Address, other: IPv6Address) -> None:
    assert source_of(one).block != source_of(other).block


def test_a_mapped_address_shares_the_limits_of_the_one_inside() -> None:
    assert source_of(canonical("::ffff:203.0.113.7")) == source_of(canonical("203.0.113.7"))
