"""Lines do what they were asked: delay, jitter, loss, rate, outage, each way, while they are in use."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from p2ptunnel.errors import ConfigError, LaboratoryError
from p2ptunnel.testing.natlab import Host, Lab, Site, dataplane

PATIENCE = 5.0


class Pair:
    """A datagram socket on each side of a site, the server's first hearing from the host's."""

    def __init__(self, lab: Lab, host: Host) -> None:
        self.server = self._bound(lab.server, lab.server.ip)
        self.client = self._bound(host, "0.0.0.0")
        self.client.connect(self.server.getsockname())
        self.outside = ("", 0)
        self.round_trip()

    def round_trip(self) -> float:
        """Seconds of one question and its answer."""
        before = time.perf_counter()
        self.client.send(b"?")
        self.outside = self.server.recvfrom(100)[1]
        self.server.sendto(b"!", self.outside)
        self.client.recv(100)
        return time.perf_counter() - before

    def close(self) -> None:
        self.server.close()
        self.client.close()

    @staticmethod
    def _bound(host: Host, address: str) -> socket.socket:
        made = host.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, 0))
        made.settimeout(PATIENCE)
        return made


@pytest.fixture
def site(natlab: Lab) -> Site:
    return natlab.site("pr", link=True)


@pytest.fixture
def pair(natlab: Lab, site: Site) -> Iterator[Pair]:
    made = Pair(natlab, site.host)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("kind", "delay"),
    [("pr", 0.005), ("pr", 0.1), ("pub", 0.025), ("pr", 0.025), ("noSO", 0.025), ("dbl", 0.025), ("pr_cgn", 0.025)],
)
def test_a_round_trip_takes_twice_the_delay(natlab: Lab, kind: str, delay: float) -> None:
    pair = Pair(natlab, natlab.site(kind, delay=delay).host)
    fastest = min(pair.round_trip() for _ in range(5))
    pair.close()
    assert 1 <= fastest / (2 * delay) < 1.1 + 0.002 / delay


def test_the_server_s_delay_adds_to_the_site_s() -> None:
    with Lab(server_delay=0.03) as lab:
        pair = Pair(lab, lab.site("pr", delay=0.02).host)
        fastest = min(pair.round_trip() for _ in range(5))
        pair.close()
    assert 1 <= fastest / 0.1 < 1.1


def test_a_plain_cable_takes_next_to_nothing(natlab: Lab) -> None:
    pair = Pair(natlab, natlab.site("pr").host)
    assert statistics.median(pair.round_trip() for _ in range(50)) < 0.002
    pair.close()


def test_a_delay_can_change_each_way(site: Site, pair: Pair) -> None:
    for direction, seconds in (("up", 0.05), ("both", 0.05), ("down", 0.0)):
        site.link(direction, delay=seconds)  # type: ignore[arg-type]
        expected = {"up": 0.05, "both": 0.1, "down": 0.05}[direction]
        assert 1 <= min(pair.round_trip() for _ in range(3)) / expected < 1.2


def test_jitter_spreads_and_keeps_the_order(site: Site, pair: Pair) -> None:
    site.link("up", delay=0.02, jitter=0.04)
    took = []
    for _ in range(20):
        before = time.perf_counter()
        pair.client.send(b"?")
        pair.server.recv(100)
        took.append(time.perf_counter() - before)
    assert 0.02 <= min(took) < 0.04 < max(took)
    assert sorted(took)[len(took) * 3 // 4] < 0.08  # a busy machine may be late with a few
    for i in range(50):
        pair.client.send(bytes([i]))
    numbers = [pair.server.recv(100)[0] for _ in range(50)]
    assert all(before < after for before, after in pairwise(numbers))


def test_an_outage_loses_all_that_is_sent_in_it(site: Site, pair: Pair) -> None:
    site.link("up", down=True)
    for _ in range(10):
        pair.client.send(b"lost")
    pair.server.sendto(b"down is another way", pair.outside)
    assert pair.client.recv(100) == b"down is another way"
    assert site.stats().lost_up == 10
    site.link(down=False)
    pair.client.send(b"found")
    assert pair.server.recv(100) == b"found"


def test_loss_is_counted_and_near_what_was_asked(site: Site, pair: Pair) -> None:
    before = site.stats()
    site.link("down", loss=0.3)
    for _ in range(400):
        pair.server.sendto(b"?", pair.outside)
    after = site.stats()
    sent, lost = after.sent_down - before.sent_down, after.lost_down - before.lost_down
    assert sent + lost == 400
    assert 0.15 < lost / (sent + lost) < 0.45
    assert after.lost_up == before.lost_up == 0


def test_a_rate_is_kept(natlab: Lab) -> None:
    size, rate = 250_000, 8e6
    site = natlab.site("noSO", rate=rate)
    with natlab.server.socket() as listener, site.host.socket() as client:
        listener.bind((natlab.server.ip, 0))
        listener.listen()
        client.settimeout(PATIENCE)
        client.connect(listener.getsockname())
        connection, _ = listener.accept()
        with connection:
            before = time.perf_counter()
            sending = natlab.server.thread(connection.sendall, bytes(size))
            left = size
            while left:
                left -= len(client.recv(65536))
            took = time.perf_counter() - before
            sending.result(PATIENCE)
    assert 0.9 < took / (size * 8 / rate) < 1.3


@pytest.mark.parametrize(
    ("changes", "text"), [({"loss": 1.5}, "loss is a share"), ({"dealy": 1.0}, "dealy"), ({"delay": -1.0}, "not negative")]
)
def test_a_wrong_change_is_refused_before_it_is_sent(site: Site, changes: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError, match=f"not a change of a link: .*{text}"):
        site.link(**changes)  # type: ignore[misc]


def test_a_data_plane_that_was_killed_is_said_to_be_gone() -> None:
    with Lab() as lab:
        site = lab.site("noSO")
        engine = lab._plane._process
        assert engine is not None
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(LaboratoryError, match="the data plane"):
            site.stats()


def test_a_data_plane_that_hangs_is_killed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with Lab() as lab:
        site = lab.site("noSO")
        engine, control = lab._plane._process, lab._plane._control
        assert engine is not None
        assert control is not None
        assert control.gettimeout() == dataplane._PATIENCE
        control.settimeout(0.1)
        monkeypatch.setattr(dataplane, "_PATIENCE", 0.1)
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(LaboratoryError, match="the data plane is gone: timed out"):
            site.stats()
    assert engine.returncode == -signal.SIGKILL


def test_a_command_that_the_engine_refuses_says_why(natlab: Lab) -> None:
    with pytest.raises(LaboratoryError, match="the data plane cannot flush: KeyError: 'nobody'"):
        natlab._plane.flush("nobody")
