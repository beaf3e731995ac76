"""The engine's program, with pairs of sockets where the laboratory has TUN devices."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from p2ptunnel.testing.natlab.engine.loop import Loop
from p2ptunnel.testing.natlab.engine.packet import SYN
from p2ptunnel.testing.natlab.engine.process import main
from tests.unit.testing.natlab_packets import HOST, LAN, PEER, WAN, icmp_error, read, tcp, udp

PATIENCE = 5.0


class Program:
    """A running engine, and the control socket to it."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._cables: list[socket.socket] = []

    def command(self, op: str, *cables: socket.socket, **arguments: Any) -> dict[str, Any]:
        socket.send_fds(self._control, [json.dumps({"op": op, **arguments}).encode()], [c.fileno() for c in cables])
        reply: dict[str, Any] = json.loads(self._control.recv(65536))
        return reply

    def cable(self) -> tuple[socket.socket, socket.socket]:
        """Our end, and the one to give to the engine as if it were a TUN device."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(PATIENCE)
        theirs.setblocking(False)
        self._cables += [ours, theirs]
        return ours, theirs

    def add_nat(self, name: str = "s1", upstream: str | None = None, wan: str = WAN, **words: Any) -> socket.socket:
        """Make a NAT; return our end of its upper cable, if it has one."""
        ours, theirs = self.cable()
        settings = {"wan_address": wan, "lan_address": LAN, **words}
        upper = () if upstream else (theirs,)
        assert self.command("add_nat", *upper, name=name, settings=settings, link={}, upstream=upstream) == {}
        return ours

    def add_host(self, nat: str = "s1", address: str = HOST[0]) -> socket.socket:
        ours, theirs = self.cable()
        assert self.command("add_host", theirs, nat=nat, address=address) == {}
        return ours

    def close(self) -> None:
        for cable in self._cables:
            cable.close()


@pytest.fixture
def program() -> Iterator[Program]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=main, args=(theirs.detach(), os.getpid()))
    thread.start()
    ours.settimeout(PATIENCE)
    running = Program(ours)
    try:
        yield running
    finally:
        ours.close()
        thread.join(PATIENCE)
        running.close()
        assert not thread.is_alive(), "it did not end when the control socket was closed"


def test_packets_go_through_a_nat_and_back(program: Program) -> None:
    upper = program.add_nat(allocation="random")
    host = program.add_host()
    host.send(udp(HOST, PEER, b"out"))
    seen = read(upper.recv(2000))
    assert (seen.source[0], seen.destination, seen.payload) == (WAN, PEER, b"out")
    upper.send(udp(PEER, seen.source, b"back"))
    assert read(host.recv(2000)).payload == b"back"


def test_nats_stand_above_each_other_and_each_counts_as_a_hop(program: Program) -> None:
    upper = program.add_nat("s1", allocation="random")
    program.add_nat("s2", "s1", wan="100.64.0.2")
    host = program.add_host("s2")
    host.send(udp(HOST, PEER, ttl=9))
    seen = read(upper.recv(2000))
    assert (seen.source[0], seen.ttl) == (WAN, 7)
    upper.send(udp(PEER, seen.source))
    assert read(host.recv(2000)).ttl == 62
    host.send(udp(HOST, PEER, ttl=2))
    assert read(host.recv(2000)).source[0] == LAN
    assert program.command("stats", name="s2")["up"] == [2, 0]


def test_a_router_below_a_nat_has_a_link_of_its_own(program: Program) -> None:
    upper = program.add_nat(allocation="random")
    router, theirs = program.cable()
    assert program.command("add_router", theirs, nat="s1", address="100.64.0.9", name="s2", settings={"delay": 0.05}) == {}
    before = time.monotonic()
    router.send(udp(("100.64.0.9", 7), PEER))
    seen = read(upper.recv(2000))
    upper.send(udp(PEER, seen.source))
    assert read(router.recv(2000)).destination == ("100.64.0.9", 7)
    assert 0.1 <= time.monotonic() - before < 0.1 + 0.1
    assert program.command("stats", name="s2")["down"] == [1, 0]


def test_a_link_delays_each_way_as_told_and_forgets_nothing_under_way(program: Program) -> None:
    (upper, upper_end), (lower, lower_end) = program.cable(), program.cable()
    assert program.command("add_link", upper_end, lower_end, name="s1", settings={}) == {}
    assert program.command("change_link", name="s1", directions=["up"], changes={"delay": 0.1}) == {}
    before = time.monotonic()
    lower.send(b"\x60 anything")
    program.command("change_link", name="s1", directions=["up"], changes={"down": True})
    lower.send(b"\x60 lost")
    upper.send(b"\x60 down")
    assert lower.recv(100) == b"\x60 down"
    assert time.monotonic() - before < 0.1
    assert upper.recv(100) == b"\x60 anything"
    assert 0.1 <= time.monotonic() - before < 0.15
    assert program.command("stats", name="s1") == {"up": [1, 1], "down": [1, 0], "mappings": 0, "refused": {}}


def test_flush_and_static_mappings_reach_the_nat(program: Program) -> None:
    upper = program.add_nat()
    host = program.add_host()
    host.send(udp(HOST, PEER))
    outside = read(upper.recv(2000)).source
    assert program.command("flush", name="s1") == {}
    upper.send(udp(PEER, outside))
    assert program.command("map_port", name="s1", protocol=17, outside_port=9, address=HOST[0], port=HOST[1]) == {}
    upper.send(udp(PEER, (WAN, 9), b"in"))
    assert read(host.recv(2000)).payload == b"in"
    counts = program.command("stats", name="s1")
    assert (counts["mappings"], counts["refused"]) == (1, {"unsolicited": 1})


def test_what_a_nat_answers_itself_goes_back_where_it_came_from(program: Program) -> None:
    upper = program.add_nat(unsolicited="reject", simultaneous_open=False)
    host = program.add_host()
    upper.send(tcp(PEER, (WAN, 9), SYN))
    assert read(upper.recv(2000)).destination == PEER
    host.send(udp(HOST, PEER, ttl=1))
    assert read(host.recv(2000)).source[0] == LAN
    upper.send(icmp_error(PEER[0], WAN, udp((WAN, 1), PEER)))
    assert program.command("stats", name="s1")["refused"] == {"unsolicited": 1, "no mapping": 1}


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ({"op": "destroy"}, "KeyError: 'destroy'"),
        ({"op": "flush", "name": "s9"}, "KeyError: 's9'"),
        ({"op": "flush"}, "TypeError: .*missing 1 required keyword-only argument: 'name'"),
        ({"op": "map_port", "name": "s1", "protocol": 17, "outside_port": 1, "address": "x", "port": 1}, "OSError: .*"),
        ({"op": "change_link", "name": "s1", "directions": ["up"], "changes": {"loss": 2}}, "ValueError: loss is a share.*"),
    ],
)
def test_a_wrong_command_is_answered_with_its_error(program: Program, command: dict[str, Any], error: str) -> None:
    program.add_nat()
    reply = program.command(**command)
    assert reply.keys() == {"error"}
    assert re.fullmatch(error, reply["error"]), reply["error"]
    assert program.command("stats", name="s1")["up"] == [0, 0]


def test_a_device_that_is_gone_is_forgotten(program: Program) -> None:
    program.add_nat()
    host, theirs = program.cable()
    program.command("add_host", theirs, nat="s1", address=HOST[0])
    host.close()
    theirs.shutdown(socket.SHUT_RDWR)
    assert program.command("stats", name="s1")["up"] == [0, 0]


def test_it_ends_with_its_parent_even_if_somebody_holds_the_control_socket() -> None:
    parent = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    thread = threading.Thread(target=main, args=(theirs.detach(), parent.pid))
    thread.start()
    with ours:
        parent.communicate(b"")
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_it_ends_at_once_if_its_parent_has() -> None:
    parent = subprocess.Popen(["true"])
    parent.wait()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        main(theirs.detach(), parent.pid)


def test_it_ends_without_a_word_if_an_answer_finds_nobody() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.send(b'{"op": "stats", "name": "s1"}')
    ours.close()
    main(theirs.detach(), os.getpid())


def test_equal_times_keep_their_order_and_nothing_comes_early() -> None:
    loop, got = Loop(), list[tuple[float, bytes]]()

    def receive(packet: bytes) -> None:
        got.append((time.monotonic(), packet))
        if packet == b"last":
            loop.stop()

    reader, writer = os.pipe()
    with contextlib.ExitStack() as pipes:
        for end in (reader, writer):
            pipes.callback(os.close, end)
        loop.watch(reader, lambda: None)
        soon = time.monotonic() + 0.02
        for when, packet in ((soon + 0.0015, b"last"), (soon, b"1"), (soon, b"2"), (soon, b"3")):
            loop.deliver(when, receive, packet)
        os.write(writer, b".")  # stays readable: the loop must deliver in time nevertheless
        loop.run()
    loop.close()
    assert [packet for _, packet in got] == [b"1", b"2", b"3", b"last"]
    assert got[0][0] >= soon
    assert got[3][0] >= soon + 0.0015
