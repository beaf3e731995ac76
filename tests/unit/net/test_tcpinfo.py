"""What the kernel knows of a TCP connection: over loopback, and of kernels that tell less."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import timeit
from pathlib import Path

import msgspec
import pytest

from p2ptunnel.net import tcpinfo
from p2ptunnel.net.tcpinfo import TcpInfo, read_tcp_info
from tests.helpers import run
from tests.helpers.peers import tcp_pair

HEADER = Path("/usr/include/linux/tcp.h")
SIZES = {"__u8": 1, "__u32": 4, "__u64": 8}
ESTABLISHED, CLOSED, LISTENING = 1, 7, 10

OFFSETS = {
    "tcpi_probes": 3,
    "tcpi_snd_mss": 16,
    "tcpi_unacked": 24,
    "tcpi_last_ack_recv": 56,
    "tcpi_rtt": 68,
    "tcpi_rttvar": 72,
    "tcpi_total_retrans": 100,
    "tcpi_notsent_bytes": 144,
    "tcpi_data_segs_out": 156,
    "tcpi_delivery_rate": 160,
    "tcpi_snd_wnd": 228,
}
CODES = {"tcpi_probes": "=B", "tcpi_delivery_rate": "=Q"}


def told(size: int = 232, state: int = ESTABLISHED, **fields: int) -> TcpInfo | None:
    """What is read from a kernel's answer of `size` bytes with these fields."""
    answer = bytearray(256)
    answer[0] = state
    for name, value in fields.items():
        struct.pack_into(CODES.get(name, "=I"), answer, OFFSETS[name], value)
    return tcpinfo._parse(bytes(answer[:size]))


def info_of(**fields: int) -> TcpInfo:
    info = told(**fields)
    assert info is not None
    return info


@pytest.mark.skipif(not HEADER.exists(), reason="no kernel headers")
def test_offsets_are_those_of_the_kernels_header() -> None:
    body = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    fields = re.search(r"struct tcp_info \{(.*?)\n\};", body, flags=re.DOTALL)
    assert fields
    at, found = 0, dict[str, int]()
    for kind, names in re.findall(r"(__u\d+)\s+(tcpi_[^;]*);", fields[1]):
        if ":" not in names:
            at = -(-at // SIZES[kind]) * SIZES[kind]
            found[names.strip()] = at
        at += SIZES[kind]  # a line of bit fields is one byte
    assert {name: found.get(name) for name in OFFSETS} | {"tcpi_snd_wnd": 228} == OFFSETS  # headers may be older than 5.4


def test_each_field_is_read_from_its_place_and_in_its_unit() -> None:
    info = info_of(
        tcpi_snd_mss=1188,
        tcpi_unacked=3,
        tcpi_last_ack_recv=30,
        tcpi_rtt=25_000,
        tcpi_rttvar=4_000,
        tcpi_total_retrans=7,
        tcpi_notsent_bytes=99,
        tcpi_data_segs_out=1000,
        tcpi_delivery_rate=1 << 33,
    )
    assert msgspec.structs.asdict(info) == pytest.approx(
        {
            "rtt": 0.025,
            "rttvar": 0.004,
            "seconds_without_ack": 0.03,
            "retransmitted": 7,
            "sent": 1000,
            "delivery_rate": 1 << 33,
            "snd_mss": 1188,
            "unsent_bytes": 99,
        }
    )


@pytest.mark.parametrize("size", [104, 148, 160, 168, 248])
def test_kernels_that_tell_less_or_more_are_understood(size: int) -> None:
    info = told(size, tcpi_total_retrans=7, tcpi_notsent_bytes=99, tcpi_data_segs_out=1000, tcpi_delivery_rate=5)
    assert info is not None
    assert (info.retransmitted, info.unsent_bytes, info.sent, info.delivery_rate) == (
        7,
        99 if size >= 148 else 0,
        1000 if size >= 160 else 0,
        5 if size >= 168 else 0,
    )


@pytest.mark.parametrize("size", [0, 1, 103])
def test_answer_too_short_for_any_kernel_is_none(size: int) -> None:
    assert told(size) is None


@pytest.mark.parametrize("state", [CLOSED, LISTENING])
def test_what_is_no_connection_has_no_figures(state: int) -> None:
    assert told(state=state) is None


def test_nothing_under_way_is_nothing_to_wait_for() -> None:
    assert info_of(tcpi_unacked=0, tcpi_last_ack_recv=9000).seconds_without_ack == 0


WAITING = {"tcpi_last_ack_recv": 9000, "tcpi_notsent_bytes": 100, "tcpi_snd_mss": 1448}


@pytest.mark.parametrize(
    ("size", "fields", "seconds"),
    [
        (232, {"tcpi_snd_wnd": 65536}, 9),  # there is room at the other side, and yet nothing leaves: our own cable is out
        (232, {"tcpi_snd_wnd": 65536, "tcpi_notsent_bytes": 0}, 0),
        (232, {"tcpi_snd_wnd": 0}, 0),  # its buffer is full, and it says so
        (232, {"tcpi_snd_wnd": 500}, 0),  # less than what is sent in one piece: as good as full
        (232, {"tcpi_snd_wnd": 0, "tcpi_probes": 1}, 0),  # the answer may be on its way
        (232, {"tcpi_snd_wnd": 0, "tcpi_probes": 2}, 9),  # nobody says that it is full any more
        (168, {"tcpi_probes": 1}, 0),
        (168, {"tcpi_probes": 2}, 9),
    ],
)
def test_what_this_machine_cannot_send_is_not_acknowledged(size: int, fields: dict[str, int], seconds: float) -> None:
    info = told(size, **(WAITING | fields))
    assert info is not None
    assert info.seconds_without_ack == seconds


def test_connection_over_loopback_tells_all() -> None:
    client, server = tcp_pair()
    with client, server:
        client.send(bytes(1000))
        assert len(server.recv(2000)) == 1000
        info = read_tcp_info(client)
        assert info is not None
        assert 0 < info.rtt < 1
        assert 0 < info.rttvar < 1
        assert info.snd_mss > 1000
        assert info.sent == 1
        assert (info.retransmitted, info.unsent_bytes, info.seconds_without_ack) == (0, 0, 0)


def test_transports_socket_is_read_as_well() -> None:
    async def main() -> None:
        client, server = tcp_pair()
        with server:
            transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=client)
            sock = transport.get_extra_info("socket")
            assert read_tcp_info(sock) is not None
            transport.abort()
            await asyncio.sleep(0)
            assert read_tcp_info(sock) is None

    run(main())


def test_there_is_none_without_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    client, server = tcp_pair()
    with client, server:
        monkeypatch.setattr(tcpinfo, "_TCP_INFO", None)
        assert read_tcp_info(client) is None
        monkeypatch.undo()
    assert read_tcp_info(client) is None
    with socket.socket() as fresh:
        assert read_tcp_info(fresh) is None
        fresh.listen()
        assert read_tcp_info(fresh) is None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        assert read_tcp_info(datagrams) is None


def test_reading_costs_a_few_microseconds() -> None:
    """The bound is wide, for machines that are busy, and for annotations that are checked."""
    client, server = tcp_pair()
    with client, server:
        assert min(timeit.repeat(lambda: read_tcp_info(client), number=100, repeat=50)) / 100 < 50e-6
