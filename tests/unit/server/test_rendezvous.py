"""The rendezvous server over real sockets: what it binds, whom it answers and whom not, and that nothing stays open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from p2ptunnel import defaults
from p2ptunnel.errors import AddressInUseError, BindError, ConfigError, InvalidAddressError, LocalProtocolError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.server import Rendezvous, control
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.types import Address
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectRequest,
    ConnectRequestExtra,
    ProbeExtra,
    PunchNotice,
    ReflexiveAnswer,
    ReflexiveProbe,
    encode,
    encode_padded,
)
from p2ptunnel.wire.stun import decode_response, encode_request
from tests.helpers import run
from tests.unit.server.wires import Line, line, register, udp

LOOPBACK: Address = ("127.0.0.1", 0)
NOT_OURS = "192.0.2.1"
ALICE, BOB = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))


def probe(mid: int = 7) -> bytes:
    """A t=5 that may be answered over UDP."""
    return encode_padded(ReflexiveProbe(mid=mid, extra=ProbeExtra()), defaults.PROBE_PAD_BYTES)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds; `run` limits how long."""
    while not condition():
        await asyncio.sleep(0)


def taken(kind: socket.SocketKind) -> socket.socket:
    """A socket that has a port all for itself."""
    sock = socket.socket(socket.AF_INET, kind)
    sock.bind(LOOPBACK)
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


# --- binding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["UDP", "TCP"])
def test_a_port_that_is_taken_is_named(kind: socket.SocketKind) -> None:
    with taken(kind) as other:
        host, port = other.getsockname()
        with pytest.raises(AddressInUseError) as caught:
            run(Rendezvous((host, port)).start())
    assert str(caught.value) == f"127.0.0.1:{port} is taken by another program"
    assert caught.value.hint == "Is a server running there already? Another port: --listen :7001"


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["UDP", "TCP"])
def test_a_second_address_that_is_taken_leaves_the_first_one_free(kind: socket.SocketKind) -> None:
    async def main(second: Address) -> None:
        with socket.socket() as free:
            free.bind(LOOPBACK)
            first: Address = free.getsockname()
        with pytest.raises(AddressInUseError):
            await Rendezvous(first, alt_listen=[second]).start()
        async with Rendezvous(first) as server:
            assert server.address == first

    with taken(kind) as other:
        run(main(other.getsockname()))


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(BindError) as caught:
        run(Rendezvous((NOT_OURS, 7000)).start())
    assert not isinstance(caught.value, AddressInUseError)
    assert str(caught.value) == "cannot listen on 192.0.2.1:7000: Cannot assign requested address"


def test_a_name_is_no_address_to_listen_on() -> None:
    with pytest.raises(InvalidAddressError, match="'localhost:7000' is not an address"):
        run(Rendezvous(("localhost", 7000)).start())


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_peers_cannot_be_sent_to_every_address(host: str) -> None:
    with pytest.raises(ConfigError, match=r"peers cannot be told to ask \S+:7001"):
        Rendezvous(alt_listen=[(host, 7001)])


@pytest.mark.parametrize("private", [{"join_token": "a-token-of-16-or-more"}, {"members": frozenset[str]()}])
def test_a_server_of_members_does_not_serve_programs_that_cannot_show_who_they_are(private: dict[str, Any]) -> None:
    """H4: with a token and a list of keys, an unsigned t=1 was taken."""
    with pytest.raises(ConfigError, match="cannot show that it is a member"):
        Rendezvous(compat_seed=True, **private)


@pytest.mark.parametrize("limits", [(0, 16), (-1, 16), (2**30, 0)])
def test_a_relay_that_may_carry_nothing_is_none(limits: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="a relay that may carry nothing is none") as caught:
        Rendezvous(LOOPBACK, relay_quota_bytes=limits[0], relay_circuits=limits[1])
    assert caught.value.hint == "Use relay=False."


def test_port_0_is_one_port_for_udp_and_tcp() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, udp(server.address) as datagrams, line(server.address) as lines:
            assert server.address[1] != 0
            await datagrams.send(probe())
            await datagrams.receive(ReflexiveAnswer)
            await lines.send(ReflexiveProbe(mid=1))
            await lines.receive(ReflexiveAnswer)

    run(main())


def test_port_0_is_tried_again_where_tcp_has_the_port_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel picks a port that is free for UDP; a listener of somebody else's may have it for TCP."""

    async def main() -> None:
        with contextlib.ExitStack() as others:
            real = socket.socket.bind

            def bind(sock: socket.socket, address: Address) -> None:
                real(sock, address)
                if sock.type == socket.SOCK_DGRAM and len(foreign) < 3:
                    foreign.append(others.enter_context(socket.socket()))
                    real(foreign[-1], sock.getsockname())
                    foreign[-1].listen()

            foreign: list[socket.socket] = []
            monkeypatch.setattr("socket.socket.bind", bind, raising=True)
            async with Rendezvous(LOOPBACK) as server:
                assert len(foreign) == 3
                assert server.address[1] not in {sock.getsockname()[1] for sock in foreign}

    run(main())


# --- both families ------------------------------------------------------------------------------------------------------

BOTH: tuple[Address, Address] = (("127.0.0.1", 0), ("::1", 0))


def test_both_families_are_served_on_one_port_by_one_broker() -> None:
    async def main() -> None:
        async with Rendezvous(BOTH[0], listen_also=BOTH[1]) as server:
            port = server.address[1]
            assert server.addresses == (("127.0.0.1", port), ("::1", port))
            async with udp(server.addresses[0]) as alice, udp(server.addresses[1]) as bob, line(server.addresses[1]) as lines:
                await register(bob, "bob", BOB)
                assert server.registered == ("bob",)
                await lines.send(ReflexiveProbe(mid=1))
                told = await lines.receive(ReflexiveAnswer)
                assert told.extra is not None
                assert told.extra.host == "::1"
                await alice.send(probe())
                await alice.receive(ReflexiveAnswer)
            assert (server.stats.received, server.stats.sent) == (3, 3)

    run(main())


def test_an_observer_is_told_to_whom_can_ask_it() -> None:
    async def main() -> None:
        async with Rendezvous(BOTH[0], listen_also=BOTH[1], alt_listen=BOTH) as server:
            for address in server.addresses:
                async with line(address) as lines:
                    await lines.send(ReflexiveProbe(mid=1))
                    told = await lines.receive(ReflexiveAnswer)
                    assert told.extra is not None
                    assert [host for host, _ in told.extra.other] == [address[0]]

    run(main())


@pytest.mark.parametrize("also", [("127.0.0.1", 7001), ("127.0.0.2", 7000)])
def test_two_addresses_of_one_family_are_no_place_for_one_broker(also: Address) -> None:
    with pytest.raises(ConfigError, match="2 addresses to listen on, of which 0 of IPv6"):
        Rendezvous(LOOPBACK, listen_also=also)


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["UDP", "TCP"])
def test_a_port_that_is_taken_over_the_other_family_leaves_the_first_one_free(kind: socket.SocketKind) -> None:
    async def main(port: int) -> None:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(AddressInUseError, match=rf"\[::1\]:{port} is taken"):
            await Rendezvous(("127.0.0.1", port), listen_also=("::1", port)).start()
        assert len(os.listdir("/proc/self/fd")) == before

    with socket.socket(socket.AF_INET6, kind) as other:
        other.bind(("::1", 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        run(main(other.getsockname()[1]))


def test_port_0_is_tried_again_where_the_other_family_has_it_already(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with contextlib.ExitStack() as others:
            real = socket.socket.bind

            def bind(sock: socket.socket, address: Address) -> None:
                real(sock, address)
                if sock.family == socket.AF_INET and sock.type == socket.SOCK_DGRAM and len(foreign) < 3:
                    foreign.append(others.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)))
                    real(foreign[-1], ("::1", sock.getsockname()[1]))

            foreign: list[socket.socket] = []
            monkeypatch.setattr("socket.socket.bind", bind, raising=True)
            async with Rendezvous(BOTH[0], listen_also=BOTH[1]) as server:
                assert len(foreign) == 3
                assert server.address[1] not in {sock.getsockname()[1] for sock in foreign}

    run(main())


def test_starting_and_closing_twice_is_fine() -> None:
    async def main() -> None:
        server = Rendezvous(LOOPBACK)
        await server.close()
        await server.start()
        address = server.address
        await server.start()
        assert server.address == address
        await server.close()
        await server.close()
        with pytest.raises(LocalProtocolError) as caught:
            _ = server.address
        assert str(caught.value) == "the rendezvous server is not up: use `async with Rendezvous(…)`"
        async with Rendezvous(address):  # the port is free again at once
            pass

    run(main())


def test_it_closes_the_connections_that_it_has() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            reader, writer = await asyncio.open_connection(*server.address)
            writer.write(b'{"t":5,"mid":1}\n')
            await reader.readline()
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    run(main())


def test_a_connection_that_asyncio_hands_over_after_the_end_is_closed() -> None:
    async def main() -> None:
        server = Rendezvous(LOOPBACK)
        await server.start()
        with socket.create_connection(server.address) as client:
            await asyncio.sleep(0)  # it is accepted in this turn, and handed over in the next
            await server.close()
            client.settimeout(5)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.to_thread(client.recv, 1) == b""

    run(main())


@pytest.mark.parametrize("turns", range(8))
def test_cancelling_the_start_leaves_nothing(turns: int) -> None:
    async def main() -> None:
        descriptors = len(os.listdir("/proc/self/fd"))
        server = Rendezvous(LOOPBACK, listen_also=BOTH[1], alt_listen=[LOOPBACK, LOOPBACK])
        starting = asyncio.create_task(server.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await server.close()
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) == descriptors
        async with Rendezvous(LOOPBACK) as again, line(again.address) as lines:  # on the same descriptors
            await lines.send(ReflexiveProbe(mid=1))
            await lines.receive(ReflexiveAnswer)

    run(main())


def test_it_is_up_in_no_time() -> None:
    async def main() -> float:
        times: list[float] = []
        for _ in range(10):
            began = time.perf_counter()
            async with Rendezvous(LOOPBACK):
                times.append(time.perf_counter() - began)
        return sorted(times)[5]

    assert run(main()) < 0.02


# --- how one looks ------------------------------------------------------------------------------------------------------


def test_it_tells_over_both_transports_how_one_looks_and_where_else_to_ask() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK, alt_listen=[LOOPBACK, ("127.0.0.2", 0)]) as server:
            async with udp(server.address) as datagrams, line(server.address) as lines:
                await datagrams.send(probe())
                over_udp = (await datagrams.receive(ReflexiveAnswer)).extra
                await lines.send(ReflexiveProbe(mid=9))
                over_tcp = (await lines.receive(ReflexiveAnswer)).extra
                assert over_udp is not None
                assert over_tcp is not None
                assert (over_udp.host, over_udp.port) == datagrams.address
                assert (over_tcp.host, over_tcp.port) == lines.address
            assert over_udp.other == over_tcp.other
            assert [host for host, _ in over_udp.other] == ["127.0.0.1", "127.0.0.2"]
            assert len(over_tcp.cookie) == 22  # the handshake has shown that we receive there
            assert over_udp.cookie == ""
            for other in over_udp.other:
                async with udp(other) as datagrams, line(other) as lines:
                    await datagrams.send(probe())
                    seen = (await datagrams.receive(ReflexiveAnswer)).extra
                    assert seen is not None
                    assert (seen.host, seen.port) == datagrams.address
                    for junk in (b"", b"nonsense"):  # the first line must be a message
                        await lines.send(ReflexiveProbe(mid=9))
                        await lines.receive(ReflexiveAnswer)
                        await lines.send(junk)

    run(main())


def test_a_stun_binding_is_answered() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, udp(server.address) as datagrams:
            await datagrams.send(encode_request(b"p2ptunnel-st"))
            response = decode_response(await datagrams.receive_bytes())
            assert response.transaction_id == b"p2ptunnel-st"
            assert response.mapped == datagrams.address

    run(main())


def test_a_bare_stun_binding_is_answered_so_many_times_a_second_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 1000.5)  # the second does not end meanwhile
    monkeypatch.setattr("p2ptunnel.protocol.observer.STUN_BARE_PER_SECOND", 5)
    bare = bytes.fromhex("000100002112a442") + b"p2ptunnel-st"

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, udp(server.address) as datagrams:
            for _ in range(8):
                await datagrams.send(bare)
            for _ in range(5):
                decode_response(await datagrams.receive_bytes())
            await datagrams.send(encode_request(b"after-all---"))  # not longer than its answer: not rationed
            assert decode_response(await datagrams.receive_bytes()).transaction_id == b"after-all---"
            assert datagrams.is_silent()
            assert server.dropped["bare STUN over its rate"] == 3

    run(main(), timeout=5)


# --- junk -------------------------------------------------------------------------------------------------------------


def test_garbage_datagrams_are_counted_and_not_answered() -> None:
    junk = [b"{garbage", b'{"t":99,"mid":1}', b'{"t":4 }', b"{" * 1200, b'{"t":-4,"mid":1,"code":200}', b'{"t":30}']

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, udp(server.address) as datagrams:
            for data in junk:
                await datagrams.send(data)
            await datagrams.send(probe(77))
            assert (await datagrams.receive(ReflexiveAnswer)).mid == 77  # the first and only answer
            assert datagrams.is_silent()
            assert server.dropped.total() == len(junk)
            assert server.dropped["malformed"] == 4

    run(main())


def test_garbage_lines_are_counted_and_not_answered() -> None:
    junk = [b"", b"garbage", b"{}", b'{"t":-4,"mid":1,"code":200}', b'{"t":30}', b"\0\xff"]

    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, line(server.address) as lines:
            for data in (encode(ReflexiveProbe(mid=1)), *junk, encode(ReflexiveProbe(mid=77))):
                await lines.send(data)
            assert [(await lines.receive(ReflexiveAnswer)).mid for _ in range(2)] == [1, 77]
            assert server.dropped.total() == len(junk)

    run(main())


def test_500_silent_connections_disturb_nobody_and_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CONTROL_FIRST_LINE", 0.5)

    async def main() -> float:
        async with Rendezvous(LOOPBACK) as server:
            with contextlib.ExitStack() as silent:
                clients = [silent.enter_context(socket.create_connection(server.address)) for _ in range(500)]
                began = time.perf_counter()
                async with line(server.address) as lines:
                    assert (await register(lines, "alice", ALICE)).code == 200
                    took = time.perf_counter() - began
                    await until(lambda: sum(server.dropped[why] for why in ("silent", "too many silent connections")) == 500)
                    assert server.registered == ("alice",)  # who speaks is not cut off
                for client in clients:
                    client.settimeout(5)
                    with contextlib.suppress(ConnectionResetError):
                        assert client.recv(1) == b""
        return took

    assert run(main()) < 0.5


# --- peers ------------------------------------------------------------------------------------------------------------


def test_a_peer_registers_over_either_transport() -> None:
    events: list[TraceEvent] = []

    async def main() -> None:
        server = Rendezvous(LOOPBACK, tracer=Tracer(events.append))
        async with server, udp(server.address) as datagrams, line(server.address) as lines:
            assert (await register(datagrams, "alice", ALICE)).code == 200
            assert (await register(lines, "bob", BOB)).code == 200
            assert server.registered == ("alice", "bob")

    run(main())
    registered = [event.facts["tag"] for event in events if (event.layer, event.name) == ("server", "PeerRegistered")]
    assert registered == ["alice", "bob"]


def test_who_registered_over_tcp_is_called_over_it_and_gone_with_it() -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server:
            async with line(server.address) as callee, line(server.address) as caller:
                await register(callee, "alice", ALICE)
                await caller.send(ConnectRequest(mid=5, ltag="bob", extra=ConnectRequestExtra(rtag="alice")))
                answer = await caller.receive(ConnectAnswer)
                assert answer.code == 200
                assert answer.extra is not None
                notice = await callee.receive(PunchNotice)
                assert notice.extra.token == answer.extra.token
                assert (notice.extra.host, notice.extra.port) == caller.address
            await until(lambda: server.registered == ())

    run(main())


async def _close(wire: Line) -> None:
    wire.writer.close()
    await wire.writer.wait_closed()


async def _reset(wire: Line) -> None:
    wire.writer.transport.abort()


@pytest.mark.parametrize("end", [_close, _reset])
def test_a_call_to_whoever_is_gone_is_answered_with_404(end: Callable[[Line], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Rendezvous(LOOPBACK) as server, line(server.address) as callee, line(server.address) as caller:
            await register(callee, "alice", ALICE)
            await end(callee)
            await until(lambda: server.registered == ())
            await caller.send(ConnectRequest(mid=5, ltag="bob", extra=ConnectRequestExtra(rtag="alice")))
            assert (await caller.receive(ConnectAnswer)).code == 404

    run(main())
