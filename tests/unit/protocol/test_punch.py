"""The plan of a punch: how long a phase is, where SYNs go."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import PHASE_MIN, SYN_REPEAT
from p2ptunnel.protocol.punch import (
    ConnectionChosen,
    LocalView,
    Nominate,
    aim,
    own_candidates,
    phase_length,
    tcp_targets,
    udp_targets,
)
from p2ptunnel.types import Candidate, Transport
from p2ptunnel.wire.messages import NatHints

PEER = ("198.51.100.2", 40002)
SERVER = ("203.0.113.1", 7000)


@pytest.mark.parametrize(
    ("own", "other", "length"),
    [
        (0.0, 0.0, PHASE_MIN),
        (0.05, 0.05, PHASE_MIN),
        (0.06, 0.06, 0.3),
        (0.1, 0.1, 0.5),
        (0.17, 0.17, 0.85),
        (0.2, 0.2, 1.5),
        (0.3, 0.3, 1.75),
        (0.8, 0.8, 4.0),
    ],
)
def test_a_phase_outlives_a_handshake(own: float, other: float, length: float) -> None:
    assert phase_length(own, other) == pytest.approx(length)
    assert phase_length(own, other) > 2 * (own + other)  # t=11, SYN, SYN-ACK, ACK: all within the callee's first phase


@pytest.mark.parametrize("round_trip", [n / 100 for n in range(80)])
def test_no_phase_ends_between_a_repeated_syn_and_its_answer(round_trip: float) -> None:
    length = phase_length(round_trip / 2, round_trip / 2)
    assert length < SYN_REPEAT or length > SYN_REPEAT + round_trip


@pytest.mark.parametrize(
    ("candidates", "targets"),
    [
        ((), (PEER,)),
        ((Candidate("srflx", "tcp", PEER[0], 50002),), ((PEER[0], 50002),)),
        ((Candidate("srflx", "udp", PEER[0], 50002),), (PEER,)),
        ((Candidate("srflx", "tcp", PEER[0], 0),), (PEER,)),
        ((Candidate("srflx", "tcp", PEER[0], 443),), (PEER,)),
        (
            (
                Candidate("mapped", "tcp", PEER[0], 4443),
                Candidate("srflx", "tcp", PEER[0], 50002),
                Candidate("mapped", "tcp", PEER[0], 4443),
            ),
            ((PEER[0], 4443), (PEER[0], 50002)),
        ),
        ((Candidate("host", "tcp", "192.168.1.1", 80),), (PEER,)),
        ((Candidate("srflx", "tcp", "127.0.0.1", 22), Candidate("srflx", "tcp", PEER[0], 5000)), ((PEER[0], 5000),)),
        (tuple(Candidate("srflx", "tcp", f"192.0.2.{n}", 80) for n in range(16)), (PEER,)),
    ],
)
def test_syns_go_to_the_host_that_the_server_saw(
    candidates: tuple[Candidate, ...], targets: tuple[tuple[str, int], ...]
) -> None:
    assert tcp_targets(candidates, PEER, SERVER) == targets


@pytest.mark.parametrize(
    ("candidates", "targets"),
    [
        ((), (PEER,)),
        ((Candidate("srflx", "udp", PEER[0], 40_009),), (PEER,)),
        ((Candidate("mapped", "tcp", PEER[0], 40_009),), (PEER,)),
        ((Candidate("mapped", "udp", PEER[0], 40_009),), (PEER, (PEER[0], 40_009))),
        (tuple(Candidate("mapped", "udp", PEER[0], port) for port in (40_009, 40_010)), (PEER, (PEER[0], 40_009))),
        ((Candidate("mapped", "udp", *PEER),), (PEER,)),
        ((Candidate("mapped", "udp", PEER[0], 22),), (PEER,)),
        ((Candidate("mapped", "udp", "192.0.2.66", 40_009), Candidate("mapped", "udp", "100.64.0.2", 40_009)), (PEER,)),
    ],
)
def test_datagrams_go_to_the_host_that_the_server_saw_and_to_what_its_router_keeps_open_there(
    candidates: tuple[Candidate, ...], targets: tuple[tuple[str, int], ...]
) -> None:
    assert udp_targets(candidates, PEER, SERVER) == targets


@pytest.mark.parametrize(("kept", "is_open"), [((), None), (("tcp",), None), (("udp",), None), (("tcp", "udp"), True)])
def test_who_is_let_in_as_a_stranger_over_both_transports_says_that_it_is_open(
    kept: tuple[Transport, ...], is_open: bool | None
) -> None:
    candidates = (Candidate("srflx", "tcp", *PEER), *(Candidate("mapped", transport, *PEER) for transport in kept))
    assert LocalView(candidates).hints.is_open is is_open


def test_hints_are_in_milliseconds_and_bounded() -> None:
    assert LocalView((), 0.0504, can_open_low=True).hints == NatHints(low=True, rtt=50)
    assert LocalView((), 1000.0, can_open_low=False).hints == NatHints(low=False, rtt=60_000)


def test_no_event_shows_a_secret() -> None:
    for event in (Nominate(3, "very secret"), ConnectionChosen("very secret", 3)):
        assert "secret" not in repr(event)
        assert "3" in repr(event)


# --- where the server may send us -------------------------------------------------------------------------------------------

PRIVATE = ["10.0.0.1", "100.64.0.1", "172.16.0.1", "192.168.1.1", "198.18.0.1", "fc00::1", "::ffff:10.0.0.1", "2002:a00:1::"]
NEVER = [
    "0.0.0.0",
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f.0.0.1",
    "0177.0.0.1",
    "169.254.169.254",
    "192.0.0.192",
    "224.0.0.1",
    "255.255.255.255",
    "240.0.0.1",
    "localhost",
    "",
    "\u0661.1.1.1",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "fe80::1",
    "fe80::1%lo",
    "2001:db8::5efe:7f00:1",
    "fd00:ec2::254",
    "ff02::1",
]


def signed(host: str, port: int = 40_000) -> tuple[Candidate, ...]:
    return (Candidate("srflx", "udp", host, port),)


@pytest.mark.parametrize("host", ["198.51.100.2", "203.0.113.9", "192.0.2.7", "8.8.8.8", "2001:db8::1"])
def test_where_the_peer_has_signed_that_it_is_may_be_sent_to(host: str) -> None:
    assert aim((host, 40_000), signed(host), SERVER) == (host, 40_000)
    assert aim((host, 50_000), signed(host), SERVER) == (host, 50_000)  # its NAT may have taken another port
    assert aim((host, 40_000), None, SERVER) == (host, 40_000)


@pytest.mark.parametrize("candidates", [(), signed("198.51.100.3"), signed("2001:db8::1")])
def test_where_it_has_not_may_not(candidates: tuple[Candidate, ...]) -> None:
    assert aim(PEER, candidates, SERVER) == "an address that the peer has not signed"


@pytest.mark.parametrize("host", NEVER)
def test_a_server_on_the_internet_aims_nobody_at_what_is_near(host: str) -> None:
    assert isinstance(aim((host, 40_000), signed(host), SERVER), str)
    assert isinstance(aim((host, 40_000), None, SERVER), str)


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_are_for_those_who_sign_them_and_for_servers_inside(host: str) -> None:
    assert not isinstance(aim((host, 40_000), signed(host), SERVER), str)
    assert aim((host, 40_000), None, SERVER) == "a private address"
    for server in ("192.168.1.5", "127.0.0.1", "fd12::1"):
        assert not isinstance(aim((host, 40_000), None, (server, 7000)), str)


@pytest.mark.parametrize("candidates", [None, signed("127.0.0.1")])
def test_loopback_is_for_those_who_ask_on_loopback(candidates: tuple[Candidate, ...] | None) -> None:
    assert aim(("127.0.0.1", 40_000), candidates, ("127.0.0.1", 7000)) == ("127.0.0.1", 40_000)
    assert aim(("127.0.0.1", 40_000), candidates, ("::1", 7000)) == ("127.0.0.1", 40_000)
    assert aim(("127.0.0.1", 40_000), candidates, ("192.168.1.5", 7000)) == "a loopback address"


@pytest.mark.parametrize("port", [0, 1, 22, 53, 1023, 1900, 3702, 5353, 11211])
def test_ports_where_somebody_else_listens_are_not_probed(port: int) -> None:
    assert isinstance(aim((PEER[0], port), signed(PEER[0]), SERVER), str)
    assert tcp_targets((Candidate("srflx", "tcp", PEER[0], port),), PEER, SERVER) == (PEER,)


def test_an_address_within_another_is_sent_to_as_what_it_is() -> None:
    assert aim(("::ffff:198.51.100.2", 40_002), signed("198.51.100.2"), SERVER) == PEER
    assert aim(PEER, signed("::ffff:198.51.100.2"), SERVER) == PEER


@pytest.mark.parametrize(
    ("host", "server", "is_told"),
    [
        ("198.51.100.2", "203.0.113.1", True),
        ("192.168.1.7", "203.0.113.1", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "203.0.113.1", False),
        ("169.254.1.1", "203.0.113.1", False),
        ("nonsense", "203.0.113.1", False),
        ("fe80::1%lo", "203.0.113.1", False),
    ],
)
def test_how_the_server_sees_us_is_told_where_somebody_would_send_there(host: str, server: str, is_told: bool) -> None:
    told = own_candidates("udp", (host, 40_000), (server, 7000))
    assert told == ((Candidate("srflx", "udp", host, 40_000),) if is_told else ())
