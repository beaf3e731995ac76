"""Whose tag is whose at a rendezvous server, over its restarts and against forgeries; and who may hang about at its TCP port.

P2PTUNNEL_FULL_ATTACKS=1 runs each at its full size, which wants two cores of its own; figures are printed (`pytest -s`).
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from pathlib import Path

import pytest

from p2ptunnel.defaults import CONTROL_DROP_FULL, CONTROL_FIRST_LINE, COOKIELESS_PAD_BYTES
from p2ptunnel.identity.keys import Identity
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import EpochExtra, Heartbeat, Leave, ReflexiveAnswer, ReflexiveProbe, decode, encode, encode_padded
from tests.security.attackers import FULL, Flood, Honest, Server, percentile

pytestmark = [pytest.mark.natlab, pytest.mark.timeout(120)]

ALICE, MALLORY = Identity.generate(), Identity.generate()


def test_a_tag_stays_its_first_keys_also_when_the_server_was_killed(natlab: Lab, tmp_path: Path) -> None:
    """T4: squatting, a crash in between, and the operator's command."""
    home, elsewhere = (natlab.site("pub").host for _ in range(2))
    with Server(natlab, tmp_path) as server:
        with Honest(home, server.address) as alice:
            assert alice.register("nas", ALICE).code == 200
            with Honest(elsewhere, server.address) as mallory:
                assert mallory.register("nas", MALLORY).code == 409
            until_kept(natlab, tmp_path)
            server.kill()
        first_key = server.key
    with Server(natlab, tmp_path) as server, Honest(elsewhere, server.address) as mallory:
        assert server.key == first_key
        assert mallory.register("nas", MALLORY).code == 409  # nobody is registered as nas now, and it is alice's all the same
        assert tags(natlab, tmp_path, "free", "nas") == [{"schema": 1, "event": "freed", "tag": "nas"}]
        server.stop()
    with Server(natlab, tmp_path) as server, Honest(elsewhere, server.address) as mallory:
        assert mallory.register("nas", MALLORY).code == 200


def tags(lab: Lab, profile: Path, *words: str) -> list[dict[str, object]]:
    """Run `p2ptunnel rendezvous tags`."""
    argv = [sys.executable, "-m", "p2ptunnel", "--json", "--profile", str(profile), "rendezvous", "tags", *words]
    return [json.loads(line) for line in lab.server.run(argv, timeout=20).stdout.splitlines()]


def until_kept(lab: Lab, profile: Path) -> None:
    """Wait until the server has written its tags."""
    ends = time.monotonic() + 15
    while time.monotonic() < ends:
        if tags(lab, profile, "list"):
            return
    raise TimeoutError("the server has not written its tags")


def test_forged_heartbeats_and_leaves_move_nothing(natlab: Lab, tmp_path: Path) -> None:
    """T4: 10^4 of them, with guessed epochs, in the peer's own name and in others'."""
    attacker, home = (natlab.site("pub").host for _ in range(2))
    extras = [EpochExtra(epoch=guess) for guess in range(500)]
    payloads = [
        encode_padded(kind(mid=n, ltag="nas", extra=extra), COOKIELESS_PAD_BYTES)
        for n, extra in enumerate(extras)
        for kind in (Heartbeat, Leave)
    ]
    count = 10_000 if FULL else 4_000
    with Server(natlab, tmp_path) as server, Honest(home, server.address) as alice:
        assert alice.register("nas", ALICE).code == 200
        for source in (home.ip, "any"):
            Flood(attacker, server.address, rate=count / 2, seconds=1.0, source=source, payloads=payloads).wait()
        answer = alice.heartbeat("nas")
        assert answer.code == 200
        assert answer.extra is not None
        assert (answer.extra.host, answer.extra.port) == (home.ip, alice.socket.getsockname()[1])
        stats = server.stop()
    assert stats["online"] == 1


def test_silent_connections_keep_nobody_out_and_do_not_stay(natlab: Lab, tmp_path: Path) -> None:
    """T14: 500 silent sockets; of one source, then of 40."""
    attacker, home = (natlab.site("pub").host for _ in range(2))
    with Server(natlab, tmp_path) as server:
        one = attack_by_silence(attacker, home, server.address, [attacker.ip])
        more = [f"198.51.100.{n}" for n in range(100, 140)]
        for address in more:
            attacker.run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
            natlab.inet.run(["ip", "route", "replace", f"{address}/32", "via", attacker.ip])
        many = attack_by_silence(attacker, home, server.address, more)
        stats = server.stop()
    print(f"p99 {one * 1000:.1f} ms beside 500 silent connections of one source, {many * 1000:.1f} ms beside those of 40")
    why = ("too many silent connections of a source", "too many silent connections", "silent")
    assert sum(stats["dropped"].get(reason, 0) for reason in why) == 1000
    assert stats["dropped"].get("silent", 0) < 2 * CONTROL_DROP_FULL  # the others did not even have their five seconds
    assert max(one, many) < 0.5


def attack_by_silence(attacker: Host, home: Host, server: Address, sources: list[str]) -> float:
    """Open 500 connections that say nothing, from these addresses; return the p99 of honest ones, once all others are gone."""
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        silent = [stack.enter_context(connected(attacker, server, sources[n % len(sources)])) for n in range(500)]
        took = [asked(home, server) for _ in range(100)]
        for sock in silent:
            sock.settimeout(max(0.01, began + CONTROL_FIRST_LINE + 1 - time.monotonic()))
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
        return percentile(took, 0.99)


def connected(host: Host, server: Address, source: str) -> socket.socket:
    sock = host.socket()
    sock.bind((source, 0))
    sock.settimeout(5)
    sock.connect(server)
    return sock


def asked(host: Host, server: Address) -> float:
    """Connect, ask how we look, and return how many seconds that took."""
    began = time.monotonic()
    with host.socket() as sock:
        sock.settimeout(5)
        sock.connect(server)
        sock.sendall(encode(ReflexiveProbe(mid=1)) + b"\n")
        assert isinstance(decode(sock.recv(2048).rstrip(b"\n")), ReflexiveAnswer)
    return time.monotonic() - began
