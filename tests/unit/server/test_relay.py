"""The relay over real sockets: bytes cross as they are, limits hold to the byte, and nothing stays open."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import random
import socket
import time
from collections.abc import Callable

import pytest

from p2ptunnel.defaults import RELAY_EARLY_BYTES
from p2ptunnel.identity.judge import Judge
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.relay import relay_extra
from p2ptunnel.net.sockets import reset_close
from p2ptunnel.protocol import relay as machine
from p2ptunnel.protocol.relay import Relay
from p2ptunnel.server import Rendezvous, flow
from p2ptunnel.server.relay import RelayDriver
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.types import Role
from p2ptunnel.wire.messages import Observed, ReflexiveProbe, RelayJoin, encode
from tests.helpers import run
from tests.unit.server.relayed import ALICE, BOB, ENDS, LOOPBACK, End, circuit, introduced, join, join_line, pair, until

MIB = 2**20
EVE = Identity.from_seed(b"\3" * 32)


def ended(server: Rendezvous) -> dict[str, int]:
    assert server.stats.relay is not None
    return server.stats.relay.ended


def open_circuits(server: Rendezvous) -> int:
    assert server.stats.relay is not None
    return server.stats.relay.circuits


def noise(count: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(count)


async def exchange(here: End, there: End, data: bytes) -> str:
    """Send all of `data` and an end; return the digest of what came out over there."""
    digest = hashlib.sha256()

    async def send() -> None:
        await here.send(data)
        here.finish()

    sending = asyncio.create_task(send())
    while more := await there.read_some():
        digest.update(more)
    await sending
    return digest.hexdigest()


async def is_reset(sock: socket.socket) -> bool:
    """Read to the end; tell whether that was a reset."""
    try:
        while await asyncio.get_running_loop().sock_recv(sock, 2**16):
            pass
    except ConnectionResetError:
        return True
    return False


def reset(end: End) -> None:
    reset_close(end.sock)


# --- bytes cross --------------------------------------------------------------------------------------------------------


def test_bytes_cross_both_ways_at_once_and_unchanged() -> None:
    data = noise(8 * MIB), noise(8 * MIB + 1, seed=1)

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            async with circuit(server) as (caller, callee):
                both = asyncio.gather(exchange(caller, callee, data[0]), exchange(callee, caller, data[1]))
                assert list(await both) == [hashlib.sha256(each).hexdigest() for each in data]
            await until(lambda: open_circuits(server) == 0)
            assert ended(server) == {"both ends closed": 1}
            assert server.stats.relay is not None
            assert server.stats.relay.carried_bytes == sum(map(len, data))

    run(main())


@pytest.mark.parametrize("roles", [ENDS, ENDS[::-1]], ids=["caller first", "callee first"])
@pytest.mark.parametrize("size", [1, 1000, RELAY_EARLY_BYTES, 5 * RELAY_EARLY_BYTES])
def test_what_is_sent_right_behind_a_join_comes_first_at_the_other_end(
    roles: tuple[tuple[Identity, Role], ...], size: int
) -> None:
    (first, role), (second, other) = roles
    early = noise(size), noise(size, seed=1)

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            token = await introduced(server.address)
            async with (
                join(server, join_line(first, token, role) + early[0]) as here,
                join(server, join_line(second, token, other) + early[1]) as there,
            ):
                await here.send(b"later")
                assert await there.read(size + 5) == early[0] + b"later"
                assert await here.read(size) == early[1]

    run(main())


def test_a_join_may_come_in_pieces_and_after_other_lines() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            token = await introduced(server.address)
            early = b"\n\n\n{}\n" + b"x" * 2000  # what no line may be is none of the lines' business now
            data = join_line(ALICE, token, "caller") + early
            before = encode(ReflexiveProbe(mid=1)) + b"\n" + data[:50]
            async with (
                join(server, data[50:], before=before) as caller,
                join(server, join_line(BOB, token, "callee")) as callee,
            ):
                assert caller.answer.code == 200
                assert await callee.read(len(early)) == early

    run(main())


def test_an_end_that_has_said_all_still_hears() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, circuit(server) as (caller, callee):
            await caller.send(b"question")
            caller.finish()
            assert await callee.read(100) == b"question"
            await callee.send(b"answer")
            assert await caller.read(6) == b"answer"
            assert open_circuits(server) == 1
            callee.finish()
            assert await caller.read(100) == b""
            assert ended(server) == {"both ends closed": 1}

    run(main())


def test_a_slow_reader_slows_its_writer_and_gets_every_byte() -> None:
    data = noise(32 * MIB)

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, circuit(server, receive_bytes=2**16) as (caller, callee):
            sending = asyncio.create_task(exchange(callee, caller, b""))
            writing = asyncio.create_task(caller.send(data))
            await until(lambda: server.stats.relay is not None and server.stats.relay.carried_bytes > 2**16)
            for _ in range(1000):
                await asyncio.sleep(0)
            assert not writing.done()
            assert server.stats.relay is not None
            assert server.stats.relay.carried_bytes < MIB  # what fits into the kernel on the way, and no more
            assert await callee.read(len(data)) == data
            await writing
            caller.finish()
            await sending

    run(main())


@pytest.mark.parametrize("who", [0, 1], ids=["caller", "callee"])
def test_a_reset_of_either_end_is_one_for_the_other(who: int) -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, circuit(server) as ends:
            await ends[who].send(b"last words")
            assert await ends[1 - who].read(10) == b"last words"
            reset(ends[who])
            assert await is_reset(ends[1 - who].sock)
            assert ended(server) == {"an end was lost": 1}

    run(main())


# --- who is not let in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "role", "token", "code"),
    [(EVE, "caller", "", 403), (ALICE, "callee", "", 403), (ALICE, "caller", "f" * 32, 404)],
    ids=["a stranger", "the other role", "another call"],
)
def test_a_refusal_arrives_whatever_was_sent_behind_the_join(who: Identity, role: Role, token: str, code: int) -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            made = await introduced(server.address)
            async with join(server, join_line(who, token or made, role) + noise(50_000)) as end:
                assert end.answer.code == code
                assert await end.read(1) == b""
            await until(lambda: server.stats.connections == 0)
            assert open_circuits(server) == 0
            assert not server.dropped  # nobody is punished for what it could not know
            async with join(server, join_line(ALICE, made, "caller")) as end:
                assert end.answer.code == 200

    run(main())


def test_who_stays_after_a_refusal_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2ptunnel.server.control.CLOSE_GRACE", 0.05)

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, join(server, join_line(ALICE, "f" * 32, "caller")) as end:
            assert await end.read(1) == b""
            await until(lambda: server.dropped["stays after it was refused"] == 1)
            await until(lambda: server.stats.connections == 0)

    run(main())


def test_one_end_is_in_once_and_a_join_played_again_opens_nothing() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            token = await introduced(server.address)
            recorded = join_line(ALICE, token, "caller")
            async with join(server, recorded) as caller:
                async with join(server, recorded) as again:
                    assert again.answer.code == 409
                async with join(server, join_line(BOB, token, "callee")) as callee:
                    await caller.send(b"hello")
                    assert await callee.read(5) == b"hello"
            await until(lambda: open_circuits(server) == 0)
            for data in (recorded, join_line(BOB, token, "callee")):
                async with join(server, data) as again:
                    assert again.answer.code == 404

    run(main())


def test_a_server_without_a_relay_says_so() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK, relay=False) as server:
            async with join(server, join_line(ALICE, await introduced(server.address), "caller")) as end:
                assert (end.answer.code, end.answer.em) == (503, "no relay here")
                assert await end.read(1) == b""
            assert server.stats.relay is None

    run(main())


def test_a_server_with_a_key_wants_it_signed_for() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK, identity=EVE) as server:
            token = await introduced(server.address)
            async with join(server, join_line(ALICE, token, "caller")) as end:
                assert end.answer.code == 403
            async with join(server, join_line(ALICE, token, "caller", server_key=str(EVE.public))) as end:
                assert end.answer.code == 200

    run(main())


# --- limits -----------------------------------------------------------------------------------------------------------

QUOTA = 300_000


def test_not_one_byte_beyond_the_quota_is_carried() -> None:
    data = noise(QUOTA + 1)

    async def main() -> None:
        async with Rendezvous(LOOPBACK, relay_quota_bytes=QUOTA) as server:
            async with circuit(server, early=(data[:1000], b"")) as (caller, callee):
                writing = asyncio.create_task(caller.send(data[1000:]))
                assert await callee.read(QUOTA + 1) == data[:QUOTA]
                await asyncio.gather(writing, return_exceptions=True)
            assert server.stats.relay is not None
            assert server.stats.relay.carried_bytes == QUOTA
            assert ended(server) == {"the quota is used up": 1}
            async with join(server, join_line(ALICE, await introduced(server.address), "caller")) as end:
                assert (end.answer.code, end.answer.em) == (429, "the quota of that key is used up")
                assert isinstance(end.answer.extra, Observed)
                assert 86_300 < end.answer.extra.retry_after <= 86_400

    run(main())


def test_the_last_byte_of_the_quota_is_carried_and_an_end_costs_none() -> None:
    data = noise(QUOTA)

    async def main() -> None:
        async with Rendezvous(LOOPBACK, relay_quota_bytes=QUOTA) as server:
            async with circuit(server) as (caller, callee):
                await callee.send(data[:1000])
                callee.finish()
                assert await caller.read(QUOTA) == data[:1000]
                assert await exchange(caller, callee, data[1000:]) == hashlib.sha256(data[1000:]).hexdigest()
            assert ended(server) == {"both ends closed": 1}

    run(main())


@pytest.mark.parametrize("beyond", [0, 1])
def test_what_was_held_for_the_other_end_counts_as_well(beyond: int) -> None:
    early = noise(1000 + beyond)

    async def main() -> None:
        async with Rendezvous(LOOPBACK, relay_quota_bytes=1000) as server, circuit(server, early=(early, b"")) as (_, callee):
            assert await callee.read(1000) == early[:1000]
            if beyond:
                assert await callee.read(1) == b""
                assert ended(server) == {"the quota is used up": 1}

    run(main())


def test_a_reader_that_stands_still_ends_its_circuit_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "RELAY_STALLED", 0.3)
    monkeypatch.setattr(machine, "RELAY_TICK", 0.05)

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, circuit(server) as (caller, callee), circuit(server) as (other, there):
            writing = asyncio.create_task(caller.send(noise(64 * MIB)))
            await until(lambda: ended(server) == {"an end does not read": 1})
            with pytest.raises(ConnectionError):
                await writing
            assert await is_reset(callee.sock)
            await other.send(b"still here")
            assert await there.read(10) == b"still here"

    run(main())


def test_a_reader_whose_kernel_acknowledges_something_may_be_as_slow_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "RELAY_STALLED", 0.1)
    monkeypatch.setattr(machine, "RELAY_TICK", 0.02)
    looks: list[int] = []

    def told(_: socket.socket) -> int:
        looks.append(max(50 - len(looks), 0))
        return looks[-1]

    monkeypatch.setattr(flow, "unacknowledged_bytes", told)

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, circuit(server) as (caller, _):
            writing = asyncio.create_task(caller.send(noise(64 * MIB)))
            await until(lambda: ended(server) == {"an end does not read": 1})
            assert len(looks) > 50  # and not the five that a reader has that stands still
            await asyncio.gather(writing, return_exceptions=True)

    run(main())


def test_a_circuit_that_carries_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "RELAY_IDLE", 0.2)

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, circuit(server) as (caller, callee):
            assert [await caller.read(1), await callee.read(1)] == [b"", b""]
            assert ended(server) == {"idle": 1}

    run(main())


def test_who_waits_in_vain_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "RELAY_JOIN_TIMEOUT", 0.2)

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            async with join(server, join_line(ALICE, await introduced(server.address), "caller") + b"early") as end:
                assert (end.answer.code, await end.read(1)) == (200, b"")
            assert ended(server) == {"the other end did not come": 1}

    run(main())


@pytest.mark.parametrize("leave", [End.finish, reset])
def test_who_leaves_before_the_other_came_makes_room_at_once(leave: Callable[[End], None]) -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            token = await introduced(server.address)
            async with join(server, join_line(ALICE, token, "caller") + b"early") as end:
                leave(end)
                await until(lambda: ended(server) == {"an end left before the other came": 1})
            async with join(server, join_line(BOB, token, "callee")) as end:
                assert end.answer.code == 404

    run(main())


# --- what it leaves ---------------------------------------------------------------------------------------------------


def test_closing_the_server_ends_circuits_and_leaves_nothing() -> None:
    async def main() -> None:
        before = len(os.listdir("/proc/self/fd"))
        server = Rendezvous(LOOPBACK)
        await server.start()
        waiting = join(server, join_line(ALICE, await introduced(server.address), "caller"))
        async with circuit(server) as (caller, callee), waiting as third:
            writing = asyncio.create_task(caller.send(noise(64 * MIB)))
            await until(lambda: server.stats.relay is not None and server.stats.relay.carried_bytes > 0)
            await server.close()
            assert ended(server) == {"the relay closed": 2}
            with contextlib.suppress(ConnectionError):
                await writing
            for end in (callee, third):
                await is_reset(end.sock)
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == before

    run(main())


def test_it_can_be_started_again() -> None:
    async def main() -> None:
        server = Rendezvous(LOOPBACK)
        for _ in range(2):
            async with server, circuit(server) as (caller, callee):
                await caller.send(b"hello")
                assert await callee.read(5) == b"hello"
        assert ended(server) == {"the relay closed": 2}

    run(main())


def test_where_the_second_end_is_lost_already_when_the_first_one_has_sent_something() -> None:
    async def main() -> None:
        with pair() as (first, caller), pair() as (second, _):
            relay, token = Relay(Judge()), "f" * 32
            relay.introduce(token, str(ALICE.public), str(BOB.public), time.monotonic())
            driver = RelayDriver(relay, Tracer())
            second.shutdown(socket.SHUT_WR)
            for (who, role), sock, early in zip(ENDS, (first, second), (b"early", b""), strict=True):
                join = RelayJoin(mid=6, extra=relay_extra(who, token, role))
                assert relay.join(join, "127.0.0.1", time.monotonic())[0].code == 200
                driver.join(1, role, sock, early)
            assert relay.ended == {"an end was lost": 1}
            assert await is_reset(caller)
            driver.close()

    run(main())


def test_where_descriptors_run_out_nobody_waits_for_the_join_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    def fromfd(*_: int) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            token = await introduced(server.address)
            monkeypatch.setattr(socket, "fromfd", fromfd)
            async with join(server, join_line(ALICE, token, "caller")) as end:
                await is_reset(end.sock)
            assert server.dropped == {"out of descriptors": 1}
            assert ended(server) == {"an end was lost": 1}

    run(main())


def test_what_happens_is_told_without_a_token() -> None:
    events: list[TraceEvent] = []

    async def main() -> str:
        async with Rendezvous(LOOPBACK, tracer=Tracer(events.append)) as server:
            token = await introduced(server.address)
            async with join(server, join_line(ALICE, token, "caller") + b"abc") as end:
                assert end.answer.code == 200
                async with join(server, join_line(BOB, token, "callee")) as there:
                    assert await there.read(3) == b"abc"
            await until(lambda: open_circuits(server) == 0)
            return token

    token = run(main())
    told = [(event.name, event.facts) for event in events if event.layer == "server"]
    assert ("RelayJoined", {"connection": 3, "circuit": 1, "role": "caller"}) in told
    name, facts = told[-1]
    assert (name, facts["circuit"], facts["carried_bytes"]) == ("CircuitEnded", 1, 3)
    assert token not in str(told)
