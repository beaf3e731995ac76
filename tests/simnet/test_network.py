"""Links: delay, loss, duplication, reordering; and the same seed gives the same run."""

from __future__ import annotations

from typing import Any

import pytest

from p2ptunnel.testing.simnet import Network
from tests.simnet.sites import FAR, FAR_HOST, Witness


def deliveries(count: int = 400, **conditions: Any) -> list[tuple[float, bytes]]:
    network = Network(seed=5, **conditions)
    sender, receiver = Witness(network, FAR), Witness(network, FAR_HOST)
    sender.host.delay, receiver.host.delay = 0.03, 0.01
    heard: list[tuple[float, bytes]] = []
    receiver.host.receive_udp = lambda data, _: heard.append((network.clock.now, data))
    for n in range(count):
        network.clock.call_at(n * 0.01, network.send_udp, sender.host, b"%d" % n, FAR_HOST)
    network.clock.advance(60.0)
    return heard


def test_a_packet_takes_the_delay_of_both_links() -> None:
    heard = deliveries(3)
    assert [data for _, data in heard] == [b"0", b"1", b"2"]
    assert [at for at, _ in heard] == pytest.approx([0.04, 0.05, 0.06])


def test_a_share_is_lost() -> None:
    assert 0.7 < len(deliveries(loss=0.2)) / 400 < 0.9
    assert not deliveries(loss=1.0)


def test_a_share_comes_twice() -> None:
    assert 1.15 < len(deliveries(duplicate=0.2)) / 400 < 1.25
    assert len(deliveries(duplicate=1.0)) == 800


def test_a_share_is_overtaken() -> None:
    numbers = [int(data) for _, data in deliveries(reorder=0.3)]
    assert sorted(numbers) == list(range(400))
    assert numbers != sorted(numbers)
    assert [int(data) for _, data in deliveries()] == list(range(400))


def test_jitter_only_delays_and_is_bounded() -> None:
    late = [at - int(data) * 0.01 for at, data in deliveries(jitter=0.02)]
    assert min(late) >= 0.04
    assert 0.055 < max(late) <= 0.06 + 1e-9


def test_the_same_seed_gives_the_same_run() -> None:
    conditions = {"loss": 0.2, "duplicate": 0.2, "reorder": 0.2, "jitter": 0.01}
    assert deliveries(**conditions) == deliveries(**conditions)


def test_what_has_no_receiver_is_counted() -> None:
    network = Network()
    sender = Witness(network, FAR)
    network.send_udp(sender.host, b"x", ("192.0.2.200", 1))
    network.send_udp(sender.host, b"x", (FAR_HOST[0], 1))
    Witness(network, FAR_HOST)
    network.send_udp(sender.host, b"x", (FAR_HOST[0], FAR_HOST[1] + 1))
    network.clock.advance(1.0)
    assert network.drops == {"no such host": 2, "filtered": 1}
    assert network.packets == 3
    assert sender.host.sent == {"192.0.2.200": 1, FAR_HOST[0]: 2}
