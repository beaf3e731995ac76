"""Packets are edited in place, and what a router answers is what RFCs say."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.testing.natlab.engine.answers import error_about, is_error, quoted, reset_for
from p2ptunnel.testing.natlab.engine.packet import ACK, FIN, ICMP, RST, SYN, TCP, UDP, Packet, checksum
from tests.unit.testing.natlab_packets import (
    HOST,
    LAN,
    PEER,
    STRANGER,
    WAN,
    icmp_error,
    internet_checksum,
    ipv4,
    packed,
    read,
    read_quoted,
    tcp,
    udp,
)

ports = st.integers(0, 65535)
addresses = st.binary(min_size=4, max_size=4)


def parsed(data: bytes) -> Packet:
    packet = Packet.parse(data)
    assert packet is not None
    return packet


@given(addresses, ports, addresses, ports, st.binary(max_size=40))
def test_new_ends_leave_both_checksums_right(source: bytes, sport: int, target: bytes, dport: int, payload: bytes) -> None:
    for data in (udp(HOST, PEER, payload), tcp(HOST, PEER, ACK, payload)):
        packet = parsed(data)
        packet.set_source(source, sport)
        packet.set_destination(target, dport)
        seen = read(bytes(packet.data))
        assert (packed(seen.source[0]), seen.source[1]) == (source, sport)
        assert (packed(seen.destination[0]), seen.destination[1]) == (target, dport)
        assert seen.payload == payload


def test_a_datagram_without_checksum_keeps_none() -> None:
    packet = parsed(udp(HOST, PEER, checksum=False))
    packet.set_source(packed(WAN), 1)
    assert packet.data[26:28] == bytes(2)
    assert read(bytes(packet.data)).source == (WAN, 1)


@pytest.mark.bulk
def test_a_checksum_that_becomes_zero_is_sent_as_all_ones() -> None:
    packet = parsed(udp(HOST, PEER, bytes(2)))
    for port in range(65536):  # one of them must give zero
        packet.set_source(packed(WAN), port)
        assert packet.data[26:28] != bytes(2), f"port {port} looks as if there were no checksum"


@given(st.binary(max_size=100))
def test_the_checksum_is_that_of_a_second_implementation(data: bytes) -> None:
    assert checksum(data) == internet_checksum(data)


def test_a_hop_takes_one_and_keeps_the_checksum() -> None:
    packet = parsed(udp(HOST, PEER, ttl=2))
    assert packet.hop()
    assert read(bytes(packet.data)).ttl == 1
    assert not packet.hop()
    assert read(bytes(packet.data)).ttl == 1


@pytest.mark.parametrize(
    ("flags", "is_opening"), [(SYN, True), (SYN | ACK, False), (ACK, False), (RST, False), (SYN | FIN, True)]
)
def test_only_a_syn_without_ack_opens(flags: int, is_opening: bool) -> None:
    packet = parsed(tcp(HOST, PEER, flags))
    assert (packet.flags, packet.is_opening) == (flags, is_opening)


def test_a_datagram_has_no_flags() -> None:
    packet = parsed(udp(HOST, PEER, b"\xff" * 40))
    assert (packet.flags, packet.is_opening) == (0, False)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x60" + bytes(60),
        udp(HOST, PEER)[:27],
        tcp(HOST, PEER, SYN)[:39],
        b"\x44" + udp(HOST, PEER)[1:],
        ipv4("192.168.1.2", "203.0.113.1", UDP, bytes(20), fragment=0x2000),
        ipv4("192.168.1.2", "203.0.113.1", UDP, bytes(20), fragment=0x0001),
    ],
    ids=["empty", "IPv6", "UDP cut", "TCP cut", "header too short", "first fragment", "later fragment"],
)
def test_what_is_not_a_whole_ipv4_packet_is_none(data: bytes) -> None:
    assert Packet.parse(data) is None


@pytest.mark.parametrize("size", [0, 19, 27])
def test_a_quotation_without_ports_is_none(size: int) -> None:
    assert Packet.parse_quoted(udp(HOST, PEER)[:size]) is None


def test_a_syn_is_reset_as_by_a_closed_port() -> None:
    answer = reset_for(parsed(tcp(PEER, (WAN, 7), SYN, b"abc", seq=1000)))
    seen = read(answer)
    assert (seen.source, seen.destination, seen.flags) == ((WAN, 7), PEER, RST | ACK)
    assert struct.unpack("!II", answer[24:32]) == (0, 1004)


def test_an_ack_is_reset_with_its_own_number() -> None:
    answer = reset_for(parsed(tcp(PEER, (WAN, 7), ACK, seq=1000, ack=77)))
    assert read(answer).flags == RST
    assert struct.unpack("!II", answer[24:32]) == (77, 0)


def test_a_fin_counts_as_one_byte_of_what_is_acknowledged() -> None:
    answer = reset_for(parsed(tcp(PEER, (WAN, 7), FIN, seq=0xFFFFFFFF)))
    assert struct.unpack("!II", answer[24:32]) == (0, 0)


def test_an_error_quotes_the_header_and_eight_bytes() -> None:
    original = udp(HOST, PEER, b"x" * 100)
    seen = read(error_about(parsed(original), packed(LAN), 11, 0))
    assert (seen.protocol, seen.source[0], seen.destination[0]) == (ICMP, LAN, HOST[0])
    assert seen.payload[:2] == bytes([11, 0])
    assert seen.payload[8:] == original[:28]
    assert read_quoted(seen) == (HOST, PEER)


def test_an_error_can_be_told_to_somebody_else() -> None:
    assert read(error_about(parsed(udp(HOST, PEER)), packed(LAN), 3, 3, to=packed("192.0.2.9"))).destination[0] == "192.0.2.9"


@pytest.mark.parametrize(("kind", "expected"), [(3, True), (11, True), (12, True), (0, False), (8, False)])
def test_an_error_is_told_from_an_echo(kind: int, expected: bool) -> None:
    assert is_error(parsed(icmp_error(PEER[0], WAN, udp((WAN, 1), PEER), kind))) is expected


def test_what_an_error_quotes_can_be_read() -> None:
    about = quoted(parsed(icmp_error("192.0.2.1", WAN, tcp((WAN, 9), STRANGER, SYN), 11, 0)))
    assert about is not None
    assert (about.protocol, about.source, about.ports) == (TCP, packed(WAN), (9, STRANGER[1]))
