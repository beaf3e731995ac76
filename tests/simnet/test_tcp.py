"""TCP's openings, by the rules of Linux: listener, simultaneous open, refusal, half-open leftovers, repetition."""

from __future__ import annotations

import pytest

from p2ptunnel.testing.simnet import ACK, RST, SYN, SYN_ACK, Network, Segment, Socket, TcpStack
from p2ptunnel.types import Address

A: Address = ("198.51.100.1", 1000)
B: Address = ("198.51.100.2", 2000)
DELAY = 0.05


class End:
    """One host that writes down what its TCP tells."""

    def __init__(self, network: Network, address: Address) -> None:
        self.stack = TcpStack(network, network.add(*address, delay=DELAY / 2), self)
        self.up: list[Socket] = []
        self.down: list[Socket] = []
        self.read: list[str] = []

    def socket_up(self, socket: Socket) -> None:
        self.up.append(socket)

    def socket_down(self, socket: Socket) -> None:
        self.down.append(socket)

    def received(self, socket: Socket, payload: str) -> None:
        self.read.append(payload)


def ends(*, loss: float = 0.0, seed: int = 0) -> tuple[Network, End, End]:
    network = Network(seed=seed, loss=loss)
    return network, End(network, A), End(network, B)


def test_a_listener_takes_a_syn() -> None:
    network, a, b = ends()
    b.stack.listening = True
    a.stack.connect(B)
    network.clock.advance(1.0)
    assert (len(a.up), len(b.up)) == (1, 1)
    assert (a.up[0].dialled, b.up[0].dialled) == (True, False)
    assert (a.up[0].peer, b.up[0].peer) == (b.up[0].number, a.up[0].number)


def test_crossing_syns_make_one_connection_and_wake_no_listener() -> None:
    network, a, b = ends()
    a.stack.listening = b.stack.listening = True
    a.stack.connect(B)
    b.stack.connect(A)
    network.clock.advance(1.0)
    assert (len(a.up), len(b.up)) == (1, 1)
    assert a.up[0].dialled
    assert b.up[0].dialled
    assert (a.up[0].peer, b.up[0].peer) == (b.up[0].number, a.up[0].number)


def test_a_syn_that_died_on_the_way_still_answers_the_peers() -> None:
    network, a, b = ends()
    a.stack.connect(B, ttl=1)
    network.clock.advance(0.2)
    b.stack.connect(A)
    network.clock.advance(1.0)
    assert (len(a.up), len(b.up)) == (1, 1)
    assert network.drops == {"TTL over": 1}


def test_the_border_lies_at_the_one_way_delay() -> None:
    for late, expected in ((DELAY - 0.001, True), (DELAY + 0.001, False)):
        network, a, b = ends()
        b.stack.listening = True
        a.stack.connect(B)
        network.clock.advance(late)
        assert (b.stack.connect(A) is not None) is expected  # later, the listener has this pair of addresses
        network.clock.advance(1.0)
        assert (len(a.up), len(b.up)) == (1, 1)


def test_where_nobody_listens_a_syn_is_refused() -> None:
    network, a, b = ends()
    a.stack.connect(B)
    network.clock.advance(1.0)
    assert len(a.down) == 1
    assert not a.stack.sockets
    assert not b.up


def test_a_refused_pair_can_be_dialled_again() -> None:
    network, a, b = ends()
    a.stack.connect(B)
    network.clock.advance(1.0)
    b.stack.listening = True
    assert a.stack.connect(B) is not None
    network.clock.advance(1.0)
    assert len(a.up) == 1


def test_a_syn_without_an_answer_is_repeated_each_second() -> None:
    network, a, _ = ends()
    a.stack.connect(("192.0.2.99", 1))
    network.clock.advance(3.5)
    assert network.drops == {"no such host": 4}


@pytest.mark.parametrize("seed", range(30))
def test_loss_only_delays(seed: int) -> None:
    network, a, b = ends(loss=0.3, seed=seed)
    a.stack.listening = b.stack.listening = True
    a.stack.connect(B)
    b.stack.connect(A)
    network.clock.advance(60.0)
    assert (len(a.up), len(b.up)) == (1, 1)


def test_what_is_written_arrives_also_as_the_last_part_of_the_handshake() -> None:
    network, a, b = ends()
    b.stack.listening = True
    socket = a.stack.connect(B)
    assert socket is not None
    network.clock.advance(2 * DELAY)
    a.stack.send(socket, "hello")
    network.clock.advance(1.0)
    assert b.read == ["hello"]


def test_a_reset_reaches_the_other_side() -> None:
    network, a, b = ends()
    b.stack.listening = True
    socket = a.stack.connect(B)
    assert socket is not None
    network.clock.advance(1.0)
    a.stack.reset(socket)
    a.stack.reset(socket)  # twice is once
    network.clock.advance(1.0)
    assert len(b.down) == 1
    assert not a.stack.sockets
    assert not b.stack.sockets
    assert not a.down


def test_a_socket_that_nobody_has_answered_goes_without_a_word() -> None:
    network, a, _ = ends()
    socket = a.stack.connect(B, ttl=1)
    assert socket is not None
    a.stack.reset(socket)
    sent = network.packets
    network.clock.advance(5.0)
    assert network.packets == sent


def test_a_side_that_begins_anew_makes_the_other_side_forget() -> None:
    network, a, b = ends()
    b.stack.listening = True
    socket = a.stack.connect(B)
    assert socket is not None
    network.clock.advance(1.0)
    del a.stack._sockets[B]  # its machine crashed
    a.stack.connect(B)
    network.clock.advance(1.5)  # challenge, RST; the repeated SYN is welcome
    assert len(b.down) == 1
    assert len(a.up) == 2


@pytest.mark.parametrize("kind", [SYN_ACK, ACK])
def test_a_segment_of_no_connection_is_refused(kind: int) -> None:
    network, a, b = ends()
    heard: list[Segment] = []
    network.send_tcp(a.stack._host, Segment(kind, 5, 6), B)
    a.stack._host.receive_tcp = lambda segment, _: heard.append(segment)
    network.clock.advance(1.0)
    assert heard == [Segment(RST, 6, 5)]
    assert not b.up


def test_an_answer_to_an_earlier_syn_is_refused_and_changes_nothing() -> None:
    network, a, b = ends()
    socket = a.stack.connect(B, ttl=1)
    assert socket is not None
    network.send_tcp(b.stack._host, Segment(SYN_ACK, 7, socket.number + 1000), A)
    network.clock.advance(0.5)
    assert a.stack.is_open(socket)
    assert socket.state == "syn-sent"


def test_a_reset_that_answers_nothing_changes_nothing() -> None:
    network, a, b = ends()
    socket = a.stack.connect(B, ttl=1)
    assert socket is not None
    network.send_tcp(b.stack._host, Segment(RST, 0, socket.number + 1000), A)
    network.clock.advance(0.5)
    assert not a.down
    assert a.stack.is_open(socket)


def test_a_duplicate_syn_is_answered_again() -> None:
    network, a, b = ends()
    b.stack.listening = True
    for _ in range(2):
        network.send_tcp(a.stack._host, Segment(SYN, 77), B)
    a.stack._host.receive_tcp = lambda *_: None
    network.clock.advance(0.9)
    assert len(b.stack.sockets) == 1
    assert network.packets == 4
