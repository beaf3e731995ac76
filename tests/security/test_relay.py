"""The relay of a server as its operator runs it: nobody's free proxy, and no place to wait for ever."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Final

import pytest

from p2ptunnel.defaults import CONTROL_FIRST_LINE, RELAY_CIRCUITS_OF_PAIR, RELAY_CIRCUITS_OF_SOURCE, RELAY_STALLED
from p2ptunnel.identity.keys import Identity
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.host import Host
from p2ptunnel.types import Role
from p2ptunnel.wire.messages import RelayJoin, RelayJoinAnswer, RelayJoinExtra, decode, encode
from tests.helpers import run
from tests.security.attackers import Server, percentile
from tests.unit.server.relayed import ALICE, BOB, ENDS, introduced, join_line

pytestmark = [pytest.mark.natlab, pytest.mark.timeout(60)]

EVE: Final = Identity.from_seed(b"\3" * 32)
QUOTA: Final = 2**16
_PATIENCE: Final = 5.0


def met(host: Host, server: Server, caller: Identity = ALICE) -> str:
    """Return the token of a call that the server has introduced."""
    return host.thread(lambda: run(introduced(server.address, caller, BOB))).result(_PATIENCE)


@contextlib.contextmanager
def joining(host: Host, server: Server, line: bytes) -> Generator[tuple[socket.socket, RelayJoinAnswer]]:
    """Send a t=6; give the connection and its answer."""
    with host.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(_PATIENCE)
        sock.connect(server.address)
        sock.sendall(line)
        data = b""
        while not data.endswith(b"\n"):
            data += sock.recv(1)
        answer = decode(data[:-1])
        assert isinstance(answer, RelayJoinAnswer)
        yield sock, answer


def signed(server: Server, who: Identity, token: str, role: Role) -> bytes:
    return join_line(who, token, role, server_key=server.key)


@contextlib.contextmanager
def circuit(here: Host, there: Host, server: Server) -> Generator[tuple[socket.socket, socket.socket]]:
    """Give both ends of an open circuit."""
    token = met(there, server)
    with (
        joining(here, server, signed(server, ALICE, token, "caller")) as (caller, first),
        joining(there, server, signed(server, BOB, token, "callee")) as (callee, second),
    ):
        assert (first.code, second.code) == (200, 200)
        yield caller, callee


def read_all(sock: socket.socket) -> bytes:
    data = bytearray()
    while more := sock.recv(2**16):
        data += more
    return bytes(data)


def test_two_peers_have_so_many_bytes_carried_in_a_day_and_not_one_more(natlab: Lab, tmp_path: Path) -> None:
    here, there = (natlab.site("pub").host for _ in range(2))
    with Server(natlab, tmp_path, "--relay-quota", "64KiB/day") as server:
        with circuit(here, there, server) as (caller, callee):
            caller.sendall(b"x" * (QUOTA + 1))
            assert len(read_all(callee)) == QUOTA
        token = met(there, server)
        for host, (who, role) in zip((here, there), ENDS, strict=True):
            with joining(host, server, signed(server, who, token, role)) as (_, answer):
                assert (answer.code, answer.em) == (429, "the quota of that key is used up")
                assert answer.extra is not None
                assert answer.extra.retry_after > 86_000
        relay = server.stop()["relay"]
    assert relay["carried_bytes"] == QUOTA
    assert relay["ended"] == {"the quota is used up": 1}
    assert relay["refused"] == {"the quota of that key is used up": 2}


def test_nothing_is_carried_for_who_was_not_introduced_or_has_not_signed(natlab: Lab, tmp_path: Path) -> None:
    here, there = (natlab.site("pub").host for _ in range(2))
    with Server(natlab, tmp_path) as server:
        token = met(there, server)
        unsigned = RelayJoin(mid=6, extra=RelayJoinExtra(token=token, role="caller", key=str(ALICE.public)))
        lines = [
            (encode(unsigned) + b"\n", 403),
            (signed(server, EVE, token, "caller"), 403),
            (signed(server, ALICE, token, "callee"), 403),
            (join_line(ALICE, token, "caller"), 403),  # for a server without a key
            (signed(server, ALICE, "f" * 32, "caller"), 404),
        ]
        for line, code in lines:
            with joining(here, server, line + b"carry this") as (sock, answer):
                assert answer.code == code
                assert read_all(sock) == b""
        with circuit(here, there, server) as (caller, callee):  # the same host is served when it has the right
            caller.sendall(b"carry this")
            assert callee.recv(100) == b"carry this"
        relay = server.stop()["relay"]
    assert relay["refused"] == {"not signed by that end of the call": 4, "no such call, or it is over": 1}
    assert relay["carried_bytes"] == len(b"carry this")


def test_one_address_has_so_many_circuits_at_a_time_whatever_its_keys(natlab: Lab, tmp_path: Path) -> None:
    here, other, there = (natlab.site("pub").host for _ in range(3))
    with Server(natlab, tmp_path) as server, contextlib.ExitStack() as held:
        for number in range(RELAY_CIRCUITS_OF_SOURCE + 1):
            caller = Identity.from_seed(bytes([100 + number]) * 32)
            token = met(there, server, caller)
            _, answer = held.enter_context(joining(here, server, signed(server, caller, token, "caller")))
            assert answer.code == (200 if number < RELAY_CIRCUITS_OF_SOURCE else 429)
        assert answer.em == "too many circuits from there"
        _, answer = held.enter_context(joining(other, server, signed(server, caller, token, "caller")))
        assert answer.code == 200


def test_a_line_that_never_ends_and_a_reader_that_never_reads_cost_others_nothing_and_do_not_stay(
    natlab: Lab, tmp_path: Path
) -> None:
    """T14: 500 connections with half a t=6, and as many circuits as two peers may have, all stuck."""
    here, there, attacker, accomplice = (natlab.site("pub").host for _ in range(4))
    half = join_line(ALICE, "f" * 32, "caller")[:100]
    with Server(natlab, tmp_path) as server, contextlib.ExitStack() as held:
        caller, callee = held.enter_context(circuit(here, there, server))
        stuck = [held.enter_context(circuit(attacker, accomplice, server)) for _ in range(RELAY_CIRCUITS_OF_PAIR - 1)]
        began = time.monotonic()
        for writer, _ in stuck:
            writer.setblocking(False)
        silent = [held.enter_context(attacker.socket(socket.AF_INET, socket.SOCK_STREAM)) for _ in range(500)]
        for sock in silent:
            sock.settimeout(_PATIENCE)
            with contextlib.suppress(OSError):  # many are cut off while others come
                sock.connect(server.address)
                sock.sendall(half)
        took = echoes(caller, callee, until=lambda: not sum(is_written(writer) for writer, _ in stuck))
        stood = time.monotonic() - began
        took += echoes(caller, callee, until=lambda: all(map(is_over, silent)))
        stayed = time.monotonic() - began
        stats = server.stop()
    print(f"{len(took)} echoes, p99 {percentile(took, 0.99) * 1000:.1f} ms; readers stood {stood:.1f} s, lines {stayed:.1f} s")
    assert percentile(took, 0.99) < 0.5
    assert RELAY_STALLED <= stood < 2 * RELAY_STALLED
    assert stayed < CONTROL_FIRST_LINE + RELAY_STALLED
    assert stats["relay"]["ended"] == {"an end does not read": len(stuck)}
    assert stats["connections"] == 0


def echoes(caller: socket.socket, callee: socket.socket, *, until: Callable[[], bool]) -> list[float]:
    """Send a little there and back over a circuit until something holds; return how long each time took."""
    took: list[float] = []
    while not until():
        began = time.monotonic()
        caller.sendall(b"ping")
        callee.sendall(callee.recv(4))
        assert caller.recv(4) == b"ping"
        took.append(time.monotonic() - began)
    return took


def is_written(sock: socket.socket) -> bool:
    """Write as much as the kernel takes; tell whether the connection is still there."""
    try:
        while sock.send(b"x" * 2**16):
            pass
    except BlockingIOError:
        return True
    except OSError:
        return False
    raise AssertionError("a socket takes something or refuses")


def is_over(sock: socket.socket) -> bool:
    """Tell whether the other end has closed or reset a connection."""
    if not select.select([sock], [], [], 0)[0]:
        return False
    try:
        return sock.recv(1) == b""
    except OSError:
        return True
