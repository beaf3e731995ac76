"""What a flood does to a rendezvous server: nothing that its peers notice, and nothing that anybody else receives.

P2PTUNNEL_FULL_ATTACKS=1 runs each at its full size, which wants two cores of its own; figures are printed (`pytest -s`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

import pytest

from p2ptunnel.defaults import COOKIELESS_PAD_BYTES, PROBE_PAD_BYTES, STUN_BARE_OF_SOURCE_PER_SECOND
from p2ptunnel.identity.keys import Identity
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import (
    ConnectRequest,
    ConnectRequestExtra,
    EpochExtra,
    Heartbeat,
    Leave,
    ProbeExtra,
    ReflexiveProbe,
    Register,
    RegisterExtra,
    encode,
    encode_padded,
)
from p2ptunnel.wire.stun import encode_request
from tests.security.attackers import FULL, Flood, Honest, Server, count_arrivals, percentile

pytestmark = [pytest.mark.natlab, pytest.mark.timeout(180)]

TAGS = tuple(f"callee-{n}" for n in range(5))
MIDS = range(1, 1001)
BARE_STUN = bytes.fromhex("000100002112a442") + b"twelve bytes"


def t4(mid: int, *, pad: int = COOKIELESS_PAD_BYTES, v: int = 1) -> bytes:
    return encode_padded(ConnectRequest(mid=mid, ltag="mallory", extra=ConnectRequestExtra(rtag=TAGS[0], v=v)), pad)


@contextlib.contextmanager
def callees(host: Host, server: Address) -> Generator[None]:
    """Five registered peers that say yes to every call."""
    with contextlib.ExitStack() as stack:
        for tag in TAGS:
            peer = stack.enter_context(Honest(host, server))
            answer = peer.register(tag, Identity.generate())
            assert answer.code == 200, answer
            host.thread(peer.answer_calls)
        yield


def calls_during(flood: Flood, peer: Honest, calls: int, seconds: float) -> list[float]:
    """Be introduced so often, spread over a flood of so many seconds; return how many each took."""
    took: list[float] = []
    in_flood = 0
    for n in range(calls):
        took.append(peer.call(TAGS[n % len(TAGS)]))
        in_flood += flood.goes_on(0.7 * seconds / calls)
    assert in_flood > calls / 2  # a machine that is busy otherwise takes longer for them all
    return took


def test_garbage_at_100_000_packets_a_second_disturbs_no_introduction(natlab: Lab, tmp_path: Path) -> None:
    """T10, C23: random bytes from random sources, while 50 calls are introduced."""
    attacker, caller, callee = (natlab.site("pub").host for _ in range(3))
    rate, seconds = (100_000, 15.0) if FULL else (100_000, 4.0)
    with Server(natlab, tmp_path) as server, callees(callee, server.address):
        cpu = server.cpu_seconds
        flood = Flood(attacker, server.address, rate=rate, seconds=seconds)
        with Honest(caller, server.address) as peer:
            took = calls_during(flood, peer, 50, seconds)
        sent = flood.wait()
        share = (server.cpu_seconds - cpu) / seconds
        stats = server.stop()
    print(f"{sent.packets / seconds:.0f} packets/s; 50 of 50; p99 {percentile(took, 0.99) * 1000:.1f} ms; CPU {share:.1%}")
    assert sent.packets / seconds > rate / 4  # a machine that is busy otherwise sends fewer
    assert stats["received"] < sent.packets / 100  # one in 256 begins as a message does; the kernel has dropped the rest
    assert percentile(took, 0.5) < 0.25
    assert percentile(took, 0.99) < 2.5
    assert share < 0.3


def test_a_million_forged_calls_take_no_memory_and_give_nobody_more_than_was_sent(natlab: Lab, tmp_path: Path) -> None:
    """T6: cookieless t=4 from random sources; R7: 5 MiB at most."""
    attacker, caller, callee = (natlab.site("pub").host for _ in range(3))
    packets, rate = (1_000_000, 50_000) if FULL else (60_000, 20_000)
    payloads = [t4(mid) for mid in MIDS]
    with Server(natlab, tmp_path) as server, callees(callee, server.address):
        Flood(attacker, server.address, rate=rate, seconds=1.0, payloads=payloads).wait()  # tables of sources are full now
        before, cpu = server.rss_bytes, server.cpu_seconds
        with Honest(caller, server.address) as peer:
            peer.call(TAGS[0])  # it has a cookie then, as peers have by their TCP connection
            flood = Flood(attacker, server.address, rate=rate, seconds=packets / rate, payloads=payloads)
            took = calls_during(flood, peer, 50, packets / rate)
        sent = flood.wait()
        growth, share = server.rss_bytes - before, (server.cpu_seconds - cpu) / (packets / rate)
        stats = server.stop()
    print(
        f"{sent.packets} packets, {stats['received']} taken; RSS +{growth / 2**20:.2f} MiB; "
        f"p50 {percentile(took, 0.5) * 1000:.1f}, p90 {percentile(took, 0.9) * 1000:.1f}, "
        f"p99 {percentile(took, 0.99) * 1000:.1f} ms; CPU {share:.0%}"
    )
    assert growth <= 5 * 2**20
    assert stats["attempts"] <= 20  # those of the honest caller, where an acknowledgement was lost in the flood
    assert stats["online"] == len(TAGS)
    assert percentile(took, 0.5) < 0.25
    assert percentile(took, 0.99) < 2.5
    assert stats["sent"] <= stats["received"] + 1000  # what is repeated to peers until they acknowledge it


PADDED = {
    "t=4": [t4(mid) for mid in MIDS],
    "t=1": [
        encode_padded(Register(mid=mid, ltag="mallory", extra=RegisterExtra(v=1, key="p2p:x")), COOKIELESS_PAD_BYTES)
        for mid in MIDS
    ],
    "t=2": [encode_padded(Heartbeat(mid=mid, ltag=TAGS[0], extra=EpochExtra(epoch=mid)), COOKIELESS_PAD_BYTES) for mid in MIDS],
    "t=3": [encode_padded(Leave(mid=mid, ltag=TAGS[0], extra=EpochExtra(epoch=mid)), COOKIELESS_PAD_BYTES) for mid in MIDS],
    "t=5": [encode_padded(ReflexiveProbe(mid=mid, extra=ProbeExtra()), PROBE_PAD_BYTES) for mid in MIDS],
    "STUN": [
        encode_request(mid.to_bytes(12, "big"))
        for mid in range(0x0101_0101_0101_0101_0101_0101, 0x0101_0101_0101_0101_0101_0105)
    ],
}
SHORT = {
    "t=4": [t4(mid, pad=0) for mid in MIDS],
    "t=4 of the seed": [t4(mid, pad=0, v=0) for mid in MIDS],
    "t=1": [encode(Register(mid=mid, ltag="mallory", extra=RegisterExtra(v=1))) for mid in MIDS],
    "t=5": [encode(ReflexiveProbe(mid=mid, extra=ProbeExtra())) for mid in MIDS],
}


def test_a_victim_receives_no_more_than_the_attacker_sends_in_its_name(natlab: Lab, tmp_path: Path) -> None:
    """T7, the server's half; T34: 18 requests a second in the victim's name, so that no rate hides what one of them does."""
    attacker, victim, callee = (natlab.site("pub").host for _ in range(3))
    seconds = 5.0 if FULL else 1.0
    with Server(natlab, tmp_path) as server, callees(callee, server.address):
        arrived = count_arrivals(victim, server.address[0])
        for name, payloads in [*PADDED.items(), *((f"short {name}", payloads) for name, payloads in SHORT.items())]:
            before = arrived()
            sent = Flood(attacker, server.address, rate=18, seconds=seconds, source=victim.ip, payloads=payloads).wait()
            packets, received = (now - then for now, then in zip(arrived(), before, strict=True))
            factor = received / sent.bytes
            print(
                f"{name}: sent {sent.packets}, received {packets}: {packets / sent.packets:.2f} x packets, {factor:.2f} x bytes"
            )
            assert packets <= sent.packets
            assert received <= sent.bytes
            if name.startswith("short"):
                assert packets == 0
            else:
                assert packets >= 0.9 * sent.packets  # nothing but its size keeps an answer back
        before = arrived()
        Flood(attacker, server.address, rate=1000, seconds=2.0, source=victim.ip, payloads=[BARE_STUN]).wait()
        packets = arrived().packets - before.packets
        print(f"bare STUN, 1000/s for 2 s: {packets} answers")
        assert 0 < packets <= 3.5 * STUN_BARE_OF_SOURCE_PER_SECOND
        stats = server.stop()
    assert stats["online"] == len(TAGS)
    assert stats["attempts"] == 0
