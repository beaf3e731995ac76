"""A relay on another machine than the rendezvous server: who is let in there, who is not, and what becomes of a call."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from p2ptunnel.errors import AddressInUseError, ConfigError, InvalidKeyError, LocalProtocolError, NoPathError
from p2ptunnel.identity.grant import Offers
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.relay import relay_extra
from p2ptunnel.server import Rendezvous
from p2ptunnel.server.relaying import RelayServer
from p2ptunnel.types import format_address
from p2ptunnel.wire.messages import Message, ReflexiveAnswer, ReflexiveProbe, RelayJoin, RelayJoinAnswer, decode, encode
from tests.helpers import run
from tests.helpers.meeting import HELLO, HOME, Meeting, conversation, echo, introduce

SERVER, RELAY, ALICE, BOB, EVE = (Identity.from_seed(bytes([number]) * 32) for number in range(5))
TOKEN = "0123456789abcdef" * 2
ANYWHERE = ("127.0.0.1", 0)


def relaying(server: Identity = SERVER, **options: int) -> RelayServer:
    return RelayServer([str(server.public)], identity=RELAY, listen=ANYWHERE, **options)


def spec(relay: RelayServer) -> str:
    return f"{format_address(relay.address)}#{RELAY.public}"


@contextlib.asynccontextmanager
async def elsewhere(directory: Path, relay: RelayServer) -> AsyncGenerator[Meeting]:
    """Two peers that always use the relay, which is not the server."""
    async with relay, Rendezvous(ANYWHERE, identity=SERVER, relays=[spec(relay)]) as server:
        there = Meeting(directory, server, relay="always")
        async with there.home, there.laptop, there.home.serve({"echo": echo}):
            introduce(there.home, there.laptop, "echo")
            yield there


def test_a_relay_serves_both_families_on_one_port() -> None:
    async def main() -> None:
        async with RelayServer([str(SERVER.public)], identity=RELAY, listen=ANYWHERE, listen_also=("::1", 0)) as relay:
            assert relay.addresses == (relay.address, ("::1", relay.address[1]))
            for host, port in relay.addresses:
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(encode(ReflexiveProbe(mid=1)) + b"\n")
                told = decode((await reader.readline()).rstrip())
                assert isinstance(told, ReflexiveAnswer)
                assert told.extra is not None
                assert told.extra.host == host
                writer.close()
                await writer.wait_closed()
        with pytest.raises(ConfigError, match="2 addresses to listen on"):
            RelayServer([str(SERVER.public)], identity=RELAY, listen=ANYWHERE, listen_also=ANYWHERE)

    run(main())


def test_peers_meet_at_the_relay_that_the_server_names(tmp_path: Path) -> None:
    async def main() -> None:
        relay = relaying()
        async with elsewhere(tmp_path, relay) as there:
            stream = await there.laptop.connect(HOME, "echo")
            assert stream.path.remote == relay.address
            assert await conversation(stream) == HELLO
            assert there.server.stats.relay is None
            assert relay.stats.relay.circuits == 1
            assert relay.stats.relay.carried_bytes > len(HELLO)
            assert relay.stats.connections >= 1  # what is kept for the next call
        with pytest.raises(LocalProtocolError):
            _ = relay.address

    run(main())


def test_a_relay_for_another_server_lets_nobody_in(tmp_path: Path) -> None:
    async def main() -> None:
        relay = relaying(server=EVE)
        async with elsewhere(tmp_path, relay) as there:
            with pytest.raises(NoPathError) as caught:
                await there.laptop.connect(HOME, "echo")
            assert "no such call, or it is over (404)" in caught.value.attempts[0]
            assert not relay.stats.relay.circuits

    run(main())


def test_the_quota_is_the_relays_own(tmp_path: Path) -> None:
    async def main() -> None:
        relay = relaying(quota_bytes=4000, circuits=1)
        async with elsewhere(tmp_path, relay) as there:
            with contextlib.suppress(Exception):
                stream = await there.laptop.connect(HOME, "echo")
                await stream.write(bytes(20_000))
            while "the quota is used up" not in relay.stats.relay.ended:
                await asyncio.sleep(0.01)
            assert relay.stats.relay.carried_bytes == 4000

    run(main())


async def said(relay: RelayServer, *messages: Message) -> list[Message]:
    """Say each on one connection; return what was answered until its end."""
    reader, writer = await asyncio.open_connection(*relay.address)
    try:
        writer.write(b"".join(encode(message) + b"\n" for message in messages))
        return [decode(await reader.readline()) for _ in messages]
    finally:
        writer.transport.abort()


def test_a_grant_opens_for_its_two_keys_and_once() -> None:
    async def main() -> None:
        async with relaying() as relay:
            offer = Offers(SERVER, [(relay.address, str(RELAY.public))], time.time).make(
                TOKEN, str(ALICE.public), str(BOB.public)
            )
            assert offer is not None

            async def code(who: Identity, role: str, key: str = offer.key) -> int:
                extra = relay_extra(who, TOKEN, role, server_key=key, grant=offer.grant)  # type: ignore[arg-type]
                [answer] = await said(relay, RelayJoin(mid=6, extra=extra))
                assert isinstance(answer, RelayJoinAnswer)
                return answer.code

            assert await code(EVE, "caller") == 403
            assert await code(ALICE, "callee") == 403
            assert await code(ALICE, "caller", str(SERVER.public)) == 403  # signed for somewhere else
            assert await code(ALICE, "caller") == 200  # and leaves
            while not relay.stats.relay.ended:
                await asyncio.sleep(0.01)
            assert await code(ALICE, "caller") == 404

    run(main())


def test_it_tells_how_one_looks_and_nothing_else() -> None:
    async def main() -> None:
        async with relaying() as relay:
            [seen] = await said(relay, ReflexiveProbe(mid=5))
            assert isinstance(seen, ReflexiveAnswer)
            assert seen.extra is not None
            assert seen.extra.host == "127.0.0.1"
            reader, writer = await asyncio.open_connection(*relay.address)
            writer.write(b"GET / HTTP/1.1\r\n")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
            assert relay.stats.dropped["junk"] == 1

    run(main())


def test_what_could_relay_for_nobody_is_refused() -> None:
    with pytest.raises(ConfigError):
        RelayServer([], identity=RELAY)
    with pytest.raises(ConfigError):
        RelayServer([str(SERVER.public)], identity=RELAY, quota_bytes=0)
    with pytest.raises(InvalidKeyError):
        RelayServer(["none"], identity=RELAY)
    with pytest.raises(ConfigError):
        Rendezvous(ANYWHERE, identity=SERVER, relays=["192.0.2.1:7000"])
    with pytest.raises(ConfigError):
        Rendezvous(ANYWHERE, relays=[f"192.0.2.1:7000#{RELAY.public}"])


def test_a_port_that_is_taken_is_named_and_starting_twice_is_once() -> None:
    async def main() -> None:
        async with relaying() as relay:
            await relay.start()
            with pytest.raises(AddressInUseError):
                await RelayServer([str(SERVER.public)], identity=EVE, listen=relay.address).start()
        await relay.close()

    run(main())


def test_a_direct_path_needs_no_relay_elsewhere(tmp_path: Path) -> None:
    async def main() -> None:
        relay = relaying()
        async with relay:
            name = spec(relay)
        async with Rendezvous(ANYWHERE, identity=SERVER, relays=[name]) as server:  # it is down
            there = Meeting(tmp_path, server)
            async with there.home, there.laptop, there.home.serve({"echo": echo}):
                introduce(there.home, there.laptop, "echo")
                assert await conversation(await there.laptop.connect(HOME, "echo")) == HELLO

    run(main())
