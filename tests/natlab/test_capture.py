"""What somebody on the path sees."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from p2ptunnel import Identity, Peer, Profile, Rendezvous, Stream
from p2ptunnel.errors import PeerKeyChangedError
from p2ptunnel.testing.natlab import Lab
from p2ptunnel.testing.natlab.living import living

SERVICE = "the-name-of-a-service"


def profiles(directory: Path) -> tuple[Profile, Profile]:
    home, laptop = Profile(directory / "home"), Profile(directory / "laptop")
    home.peers().add("laptop", laptop.identity().public, (SERVICE,))
    laptop.peers().add("home-nas", home.identity().public)
    return home, laptop


async def echo(stream: Stream) -> None:
    async for part in stream:
        await stream.write(part)
    await stream.write_eof()


@contextlib.asynccontextmanager
async def serving(server: str, profile: Profile) -> AsyncGenerator[None]:
    async with Peer("home-nas", rendezvous=server, profile=profile) as peer, peer.serve({SERVICE: echo}):
        yield


def test_no_byte_of_a_stream_nor_its_service_is_readable_on_the_path(natlab: Lab, tmp_path: Path) -> None:
    home, laptop = profiles(tmp_path)
    marker = secrets.token_hex(32).encode()
    server = natlab.server.ip
    packets = tmp_path / "packets.pcap"

    async def call() -> bytes:
        async with Peer("laptop", rendezvous=server, profile=laptop) as peer, await peer.connect("home-nas", SERVICE) as stream:
            sending = asyncio.create_task(stream.write(marker * 1024))
            echoed = await stream.readexactly(len(marker) * 1024)
            await sending
            return echoed

    with (
        natlab.capture(write=packets, snapshot_bytes=65_600),
        living(natlab.server, lambda: Rendezvous((server, 7000))),
        living(natlab.site("pr").host, lambda: serving(server, home)),
    ):
        echoed = natlab.site("pr").host.thread(asyncio.run, call()).result(40)
    seen = packets.read_bytes()
    assert echoed == marker * 1024
    assert len(seen) > 2 * len(echoed)  # both directions are in it
    assert b'"t":4' in seen  # and it can be read: the founding protocol is in the clear
    for secret in (marker, base64.b64encode(marker)[:40], bytes.fromhex(marker.decode()), SERVICE.encode()):
        assert secret not in seen


def test_between_peers_that_expect_another_key_no_packet_is_sent(natlab: Lab, tmp_path: Path) -> None:
    home, laptop = profiles(tmp_path)
    laptop.peers().remove("home-nas")
    pinned = Identity.generate().public
    laptop.peers().add("home-nas", pinned)
    server = natlab.server.ip
    opened: list[str] = []

    async def call() -> None:
        async with Peer("laptop", rendezvous=server, profile=laptop) as peer:
            with pytest.raises(PeerKeyChangedError, match="home-nas did not prove the pinned key"):
                await peer.connect("home-nas", SERVICE)

    @contextlib.asynccontextmanager
    async def listening() -> AsyncGenerator[None]:
        async def note(stream: Stream) -> None:
            opened.append(stream.service)

        async with Peer("home-nas", rendezvous=server, profile=home) as peer, peer.serve({SERVICE: note}):
            yield

    here, there = natlab.site("pr"), natlab.site("pr")
    with (
        natlab.capture(filter=f"host {here.wan_address} and host {there.wan_address}") as seen,
        living(natlab.server, lambda: Rendezvous((server, 7000))),
        living(there.host, listening),
    ):
        here.host.thread(asyncio.run, call()).result(40)
    assert opened == []
    assert seen.lines == []  # each learns it from what the other has signed, before either sends a packet
