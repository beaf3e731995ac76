"""Dials that meet through real NATs, the callee's first SYN dying on the way; and what each guard of theirs is for."""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections.abc import Sequence

import pytest

from p2ptunnel.errors import DialError
from p2ptunnel.net import low
from p2ptunnel.net.hops import Hops, opener_ttl
from p2ptunnel.net.tcp import Dialer, DialRecord, Listener, dial, reset_close
from p2ptunnel.testing.natlab import Lab, Site
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.types import Address

TTL = 2  # dies at the internet's router, one hop outside a single NAT
WINDOW = 0.4  # seconds a phase
IPV6_WINDOW = 1.5  # until the kernel has repeated a SYN that came while its target ignored everything
ATTEMPTS = 20


class Meeting:
    """One attempt of two hosts on one port number; what came up stays open until `close`."""

    def __init__(self, port: int, late: float, hops: Hops, window: float = WINDOW) -> None:
        self._port = port
        self._late = late
        self._hops = hops
        self._window = window
        self._callee_has_opened = threading.Event()
        self._connected: list[socket.socket] = []

    def run(self, caller: Host, caller_target: str, callee: Host, callee_target: str) -> tuple[str, str]:
        """Let both try; return how the connection came up for the caller and for the callee, `nothing` if it did not."""
        there = callee.thread(lambda: asyncio.run(self._callee(callee_target)))
        here = caller.thread(lambda: asyncio.run(self._caller(caller_target)))
        return here.result(30), there.result(30)

    def close(self) -> None:
        for sock in self._connected:
            reset_close(sock)

    async def _callee(self, peer: str) -> str:
        """Low first, until the caller must have begun and failed; then plain."""
        return await self._punch(peer, ((True, self._late + self._window), (False, WINDOW), (False, WINDOW)))

    async def _caller(self, peer: str) -> str:
        await asyncio.to_thread(self._callee_has_opened.wait)
        await asyncio.sleep(self._late)
        return await self._punch(peer, ((False, self._window), (True, WINDOW), (False, WINDOW)))

    async def _punch(self, peer: str, phases: Sequence[tuple[bool, float]]) -> str:
        local = ("::" if ":" in peer else "0.0.0.0", self._port)
        up: asyncio.Queue[tuple[socket.socket, str]] = asyncio.Queue()
        listener = Listener(local, lambda sock, _: up.put_nowait((sock, "accept")))
        dialer = Dialer(local, lambda sock, _, how: up.put_nowait((sock, how)), rng=random.Random(self._port))
        try:
            for is_low, window in phases:
                dialer.start([(peer, self._port)], low_ttl=self._hops.ttl if is_low else None, hop_rtt=self._hops.rtt)
                self._callee_has_opened.set()
                try:
                    async with asyncio.timeout(window):
                        sock, how = await up.get()
                except TimeoutError:
                    continue
                self._connected.append(sock)
                return how if await self._exchange(sock) else "broken"
            return "nothing"
        finally:
            dialer.close()
            listener.close()

    async def _exchange(self, sock: socket.socket) -> bool:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(1):
                await loop.sock_sendall(sock, b"x")
                return await loop.sock_recv(sock, 1) == b"x"
        except OSError:
            return False


def meet(caller: Site, callee: Site, port: int, late: float = 0.0) -> tuple[str, str]:
    """One attempt of two sites whose NATs keep port numbers."""
    meeting = Meeting(port, late, Hops(TTL, {}))
    try:
        return meeting.run(caller.host, callee.wan_address, callee.host, caller.wan_address)
    finally:
        meeting.close()


def meet_over_ipv6(caller: Site, callee: Site, port: int, hops: Hops, window: float = WINDOW) -> tuple[str, str]:
    """One attempt of two sites with IPv6; the caller begins when the callee no longer ignores what it sends."""
    assert caller.host.ip6
    assert callee.host.ip6
    meeting = Meeting(port, hops.rtt + 0.03, hops, window)
    try:
        return meeting.run(caller.host, callee.host.ip6, callee.host, caller.host.ip6)
    finally:
        meeting.close()


@pytest.mark.parametrize("delay", [0.0, 0.025], ids=["0 ms", "25 ms"])
@pytest.mark.parametrize("kind", ["pr", "prR"])
def test_two_routers_that_drop_or_reset_strangers_are_crossed_every_time(natlab: Lab, kind: str, delay: float) -> None:
    caller, callee = natlab.site(kind, delay=delay), natlab.site(kind, delay=delay)
    outcomes = [meet(caller, callee, 30000 + attempt) for attempt in range(ATTEMPTS)]
    assert outcomes == [("connect", "opener")] * ATTEMPTS


def test_opener_fails_without_protection_from_its_own_time_exceeded(natlab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a delay, that is: at 0 ms the ICMP error comes while connect() holds the socket, and is only a soft one."""
    monkeypatch.setattr(low, "set_min_ttl", lambda *_: None)
    caller, callee = natlab.site("prR", delay=0.025), natlab.site("prR", delay=0.025)
    assert [meet(caller, callee, 31000 + attempt)[1] for attempt in range(3)] == ["nothing"] * 3


def test_opener_fails_if_its_syn_ack_dies_too(natlab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low.LowConnect, "_raise", lambda _: None)
    caller, callee = natlab.site("prR", delay=0.025), natlab.site("prR", delay=0.025)
    assert "opener" not in meet(caller, callee, 32000)


def test_hole_outlives_the_kernels_repetition_of_the_syn(natlab: Lab) -> None:
    caller, callee = natlab.site("prR", delay=0.025), natlab.site("prR", delay=0.025)
    assert meet(caller, callee, 33000, late=1.2) == ("connect", "opener")


@pytest.mark.parametrize("is_lowered", [True, False], ids=["lowered again", "not lowered again"])
def test_kernels_repetitions_of_a_low_syn_die_on_the_way_too(
    natlab: Lab, is_lowered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_lowered:
        monkeypatch.setattr(low.LowConnect, "_lower_for_repeat", lambda *_: None)
    home, stranger = natlab.site("pr", delay=0.01), natlab.site("pub", delay=0.01)
    target = (stranger.host.ip, 34000)  # nobody listens: a SYN that arrives is answered by RST

    async def main() -> DialError:
        with pytest.raises(DialError) as caught:
            await dial(("0.0.0.0", 34000), target, rng=random.Random(1), low_ttl=TTL, patience=3.3, redials=0)
        return caught.value

    outcome = home.host.thread(lambda: asyncio.run(main())).result(30).outcome
    assert outcome == ("silent" if is_lowered else "refused")


def test_low_syn_reaches_nobody_and_a_plain_one_does(natlab: Lab) -> None:
    home, stranger = natlab.site("pr"), natlab.site("pub")

    async def main(low_ttl: int | None) -> str:
        with pytest.raises(DialError) as caught:
            await dial(
                ("0.0.0.0", 35000), (stranger.host.ip, 35000), rng=random.Random(1), low_ttl=low_ttl, patience=0.2, redials=0
            )
        return caught.value.outcome

    assert home.host.thread(lambda: asyncio.run(main(TTL))).result(30) == "silent"
    assert home.host.thread(lambda: asyncio.run(main(None))).result(30) == "refused"


def test_syn_that_came_before_ours_is_left_to_the_listener(natlab: Lab) -> None:
    """The border lies at the one-way delay: later than that, our listener has the pair of addresses already."""
    first, second = natlab.site("pub", delay=0.025), natlab.site("pub", delay=0.025)
    port = 36000
    dialling = threading.Event()

    async def early() -> str:
        attempt = asyncio.create_task(dial(("0.0.0.0", port), (second.host.ip, port), rng=random.Random(1)))
        await asyncio.sleep(0)
        dialling.set()
        sock = await attempt
        assert await asyncio.get_running_loop().sock_recv(sock, 1) == b""
        reset_close(sock)
        return "connected"

    async def tardy() -> tuple[str | None, Address]:
        accepted: asyncio.Future[tuple[socket.socket, Address]] = asyncio.get_running_loop().create_future()
        failed: asyncio.Future[DialRecord] = asyncio.get_running_loop().create_future()
        listener = Listener(("0.0.0.0", port), lambda sock, remote: accepted.set_result((sock, remote)))
        dialer = Dialer(("0.0.0.0", port), lambda *_: None, on_failed=failed.set_result)
        listening.set()
        await asyncio.to_thread(dialling.wait)
        await asyncio.sleep(0.07)  # its SYN has come, its ACK has not
        dialer.start([(first.host.ip, port)])
        record = await failed
        sock, remote = await accepted
        sock.close()
        dialer.close()
        listener.close()
        return record.outcome, remote

    listening = threading.Event()
    there = second.host.thread(lambda: asyncio.run(tardy()))
    assert listening.wait(5)
    here = first.host.thread(lambda: asyncio.run(early()))
    assert there.result(30) == ("taken", (first.host.ip, port))
    assert here.result(30) == "connected"


@pytest.mark.parametrize("kind", ["v6_drop", "v6_reject"])
@pytest.mark.parametrize("delay", [0.0, 0.025], ids=["0 ms", "25 ms"])
def test_two_ipv6_firewalls_are_crossed_every_time(natlab: Lab, kind: str, delay: float) -> None:
    caller, callee = natlab.site(kind, delay=delay), natlab.site(kind, delay=delay)
    assert natlab.server.ip6
    server = (natlab.server.ip6, 9)
    hops = callee.host.thread(lambda: asyncio.run(opener_ttl(server))).result(30)
    outcomes = [meet_over_ipv6(caller, callee, 37000 + attempt, hops, IPV6_WINDOW) for attempt in range(10)]
    assert outcomes == [("connect", "opener")] * 10


def test_ipv6_opener_fails_if_it_hears_its_own_time_exceeded(natlab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low, "set_min_ttl", lambda *_: None)
    caller, callee = natlab.site("v6_reject", delay=0.025), natlab.site("v6_reject", delay=0.025)
    outcomes = [meet_over_ipv6(caller, callee, 38000 + attempt, Hops(TTL, {}, 0.052)) for attempt in range(3)]
    assert [there for _, there in outcomes] == ["nothing"] * 3


def test_ipv6_opener_fails_if_it_ignores_errors_for_good(natlab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low.LowConnect, "_hear", lambda _: None)
    caller, callee = natlab.site("v6_reject", delay=0.025), natlab.site("v6_reject", delay=0.025)
    assert "opener" not in meet_over_ipv6(caller, callee, 39000, Hops(TTL, {}, 0.052))
