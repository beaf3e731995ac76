"""Peers over a real rendezvous server on loopback: what a user of `Peer` meets, good and bad."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, Awaitable
from pathlib import Path

import pytest
from typeguard import TypeCheckError

from p2ptunnel.abc import Stream
from p2ptunnel.errors import (
    AccessDeniedError,
    ChannelClosedError,
    ConfigError,
    InvalidAddressError,
    InvalidTagError,
    LocalProtocolError,
    NoSuchPeerError,
    NotReadyError,
    P2PTunnelError,
    PeerKeyChangedError,
    PeerOfflineError,
    PeerRefusedError,
    PunchTimeoutError,
    RendezvousTimeoutError,
    ResolveError,
    StreamResetError,
    TagInUseError,
    TargetRefusedError,
    UnknownPeerError,
)
from p2ptunnel.peer import Peer
from p2ptunnel.server import Rendezvous
from p2ptunnel.types import format_address
from tests.helpers import run
from tests.helpers.meeting import HELLO, HOME, LAPTOP, conversation, echo, introduce, meeting

# --- connecting -------------------------------------------------------------------------------------------------------


def test_bytes_go_there_and_back_and_each_way_ends_by_itself(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            async with await there.laptop.connect(HOME, "echo") as stream:
                assert await conversation(stream) == HELLO
                assert (stream.tag, stream.service) == (HOME, "echo")
                assert (stream.path.kind, stream.path.transport) == ("lan", "tcp")
            [status] = there.laptop.snapshot().peers
            assert (status.tag, status.path is not None, status.streams) == (HOME, True, 0)
            [status] = there.home.snapshot().peers
            assert (status.tag, status.services, status.path is not None) == (LAPTOP, ("echo",), True)

    run(main())


def test_a_port_may_be_asked_for_as_the_number_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "8888") as there, there.home.serve({"8888": echo}):
            async with await there.laptop.connect(HOME, 8888) as stream:
                assert await conversation(stream) == HELLO
            assert stream.service == "8888"

    run(main())


def test_several_at_once_share_one_punched_connection_and_so_do_later_ones(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            streams = await asyncio.gather(*(there.laptop.connect(HOME, "echo") for _ in range(20)))
            assert await asyncio.gather(*map(conversation, streams)) == [HELLO] * 20
            assert there.dials == 1
            await asyncio.gather(*(stream.close() for stream in streams))
            async with await there.laptop.connect(HOME, "echo") as later:
                assert await conversation(later) == HELLO
            assert there.dials == 1

    run(main())


def test_one_that_gives_up_takes_the_connection_from_nobody_else(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            impatient, patient = (asyncio.create_task(there.laptop.connect(HOME, "echo")) for _ in range(2))
            await there.laptop_events.told("PunchStarted")
            impatient.cancel()
            async with await patient as stream:
                assert await conversation(stream) == HELLO
            assert there.dials == 1

    run(main())


def test_a_refused_service_costs_the_other_streams_nothing(tmp_path: Path) -> None:
    """A stream that is reset before it is open says nothing about the session."""
    refusing = asyncio.Event()

    async def busy(stream: Stream) -> None:
        refusing.set()
        stream.abort("later")

    async def main() -> None:
        async with meeting(tmp_path, "echo", "busy") as there, there.home.serve({"echo": echo, "busy": busy}):
            async with await there.laptop.connect(HOME, "echo") as stream:
                with contextlib.suppress(StreamResetError):  # it may have been open for a moment
                    await (await there.laptop.connect(HOME, "busy")).read()
                assert refusing.is_set()
                assert await conversation(stream) == HELLO
            assert there.dials == 1

    run(main())


def test_the_first_of_several_servers_that_knows_the_peer_is_used(tmp_path: Path) -> None:
    async def main() -> None:
        async with Rendezvous(("127.0.0.1", 0)) as empty, meeting(tmp_path, "echo") as there:
            servers = [f"127.0.0.1:{empty.address[1]}", there.address]
            laptop = Peer(LAPTOP, rendezvous=servers, profile=tmp_path / LAPTOP)
            async with there.home.serve({"echo": echo}), laptop, await laptop.connect(HOME, "echo") as stream:
                assert await conversation(stream) == HELLO

    run(main())


def test_where_the_first_server_is_dead_the_second_is_used(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            dead = f"127.0.0.1:{closed.getsockname()[1]}"
            async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
                laptop = Peer(LAPTOP, rendezvous=[dead, there.address], profile=tmp_path / LAPTOP)
                async with laptop, await laptop.connect(HOME, "echo") as stream:
                    assert await conversation(stream) == HELLO

    run(main(), timeout=20)


def test_a_peer_without_a_tag_may_call(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.peer(None) as nameless, there.home.serve({"echo": echo}):
            there.home.peers.add("visitor", nameless.key, ("echo",))
            nameless.peers.add(HOME, there.home.key)
            async with await nameless.connect(HOME, "echo") as stream:
                assert await conversation(stream) == HELLO

    run(main())


def test_a_peer_that_is_ready_has_what_a_call_needs_and_asks_the_server_for_nothing_else(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            await there.laptop.ready()
            [port] = there.laptop_events.named("tcp_observed")
            async with await there.laptop.connect(HOME, "echo") as stream:
                assert await conversation(stream) == HELLO
            [asked] = [each.local for each in (await there.laptop.explain(HOME)).tries if each.sent == "t=4"]
            assert asked is not None
            assert format_address(asked) == port.facts["address"]

    run(main())


def test_without_a_server_every_peer_is_ready(tmp_path: Path) -> None:
    async def main() -> None:
        peer = Peer(LAPTOP, profile=tmp_path)
        with pytest.raises(LocalProtocolError):
            await peer.ready()
        async with peer:
            await peer.ready(timeout=0.0)

    run(main())


def test_who_is_not_ready_in_time_learns_what_is_missing_and_why(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            host, port = silent.getsockname()
            async with Peer(LAPTOP, rendezvous=f"{host}:{port}", profile=tmp_path) as peer:
                with pytest.raises(NotReadyError, match="no port stands at the server: not in "):
                    await peer.ready(timeout=0.05)
                waiting = asyncio.create_task(peer.ready())
                await asyncio.sleep(0)
                await peer.close()
                with pytest.raises(LocalProtocolError):
                    await waiting

    run(main())


# --- who may, who may not -----------------------------------------------------------------------------------------------


def test_nothing_is_served_to_a_peer_that_was_granted_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.home.serve({"web": echo}):
            with pytest.raises(AccessDeniedError) as caught:
                await there.laptop.connect(HOME, "web")
            assert str(caught.value) == "home-nas does not serve 'web' to this machine"
            assert (caught.value.hint, caught.value.granted) == ("Served to you: nothing.", ())

    run(main())


def test_what_is_not_there_and_what_is_not_ours_are_one_answer(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "web") as there, there.home.serve({"web": echo, "secret": echo, "mail": 25}):
            refusals: list[AccessDeniedError] = []
            for asked in ("secret", "nowhere", "localhost:25"):
                with pytest.raises(AccessDeniedError) as caught:
                    await there.laptop.connect(HOME, asked)
                refusals.append(caught.value)
            assert [type(refusal) for refusal in refusals] == [AccessDeniedError] * 3
            assert len({str(refusal).replace(repr(refusal.service), "…") for refusal in refusals}) == 1
            assert {(refusal.hint, refusal.granted) for refusal in refusals} == {("Served to you: web.", ("web",))}

    run(main())


def test_allowing_in_code_lets_in_and_nobody_else(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.peer("phone") as phone:
            introduce(there.home, phone)
            async with there.home.serve({"echo": echo}, allow=[LAPTOP]):
                async with await there.laptop.connect(HOME, "echo") as stream:
                    assert await conversation(stream) == HELLO
                with pytest.raises(AccessDeniedError):
                    await phone.connect(HOME, "echo")

    run(main())


def test_one_tag_may_be_allowed_as_it_is(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.home.serve({"echo": echo}, allow=LAPTOP):
            (await there.laptop.connect(HOME, "echo")).abort()

    run(main())


def test_a_peer_that_is_added_while_we_serve_is_let_in(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.peer("phone") as phone, there.home.serve({"echo": echo}):
            phone.peers.add(HOME, there.home.key)
            with pytest.raises(PeerRefusedError):
                await phone.connect(HOME, "echo")
            there.home.peers.add("phone", phone.key, ("echo",))
            async with await phone.connect(HOME, "echo") as stream:
                assert await conversation(stream) == HELLO

    run(main())


@pytest.mark.parametrize("allow", [(), (LAPTOP,)], ids=["in the store", "in code"])
def test_a_peer_that_is_removed_loses_its_streams_and_is_refused(tmp_path: Path, allow: tuple[str, ...]) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}, allow=allow):
            stream = await there.laptop.connect(HOME, "echo")
            there.home.peers.remove(LAPTOP)
            began = time.monotonic()
            with pytest.raises(ChannelClosedError) as caught:
                await stream.read()
            assert time.monotonic() - began < 2
            assert str(caught.value) == "the channel was closed by the peer: access was revoked"
            with pytest.raises(PeerRefusedError):
                await there.laptop.connect(HOME, "echo")

    run(main())


def test_a_callee_that_does_not_know_us_says_so_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.peer("stranger") as stranger, there.home.serve({"echo": echo}):
            stranger.peers.add(HOME, there.home.key)
            began = time.monotonic()
            with pytest.raises(PeerRefusedError) as caught:
                await stranger.connect(HOME, "echo")
            assert time.monotonic() - began < 1
            assert str(caught.value) == "home-nas does not know this machine's key"
            assert caught.value.hint == (
                "Pair with it: `p2ptunnel pair` on home-nas prints a code; then here: p2ptunnel pair CODE"
            )

    run(main())


def test_a_callee_that_knows_nobody_refuses_as_well(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.peer("fresh") as fresh, fresh.serve({"echo": echo}):
            there.laptop.peers.add("fresh", fresh.key)
            with pytest.raises(PeerRefusedError):
                await there.laptop.connect("fresh", "echo")

    run(main())


def test_a_callee_with_another_key_gets_nothing(tmp_path: Path) -> None:
    opened: list[str] = []

    async def note(stream: Stream) -> None:
        opened.append(stream.service)

    async def main() -> None:
        async with meeting(tmp_path) as there, there.peer("impostor") as impostor, there.home.serve({"note": note}):
            there.home.peers.allow(LAPTOP, "note")
            there.laptop.peers.remove(HOME)
            there.laptop.peers.add(HOME, impostor.key)
            began = time.monotonic()
            with pytest.raises(PeerKeyChangedError) as caught:
                await there.laptop.connect(HOME, "note")
            assert time.monotonic() - began < 2
            assert str(caught.value) == f"home-nas did not prove the pinned key {str(impostor.key)[:12]}…"
            assert caught.value.hint == (
                "If home-nas was reinstalled: `p2ptunnel peers rm home-nas`, then add its new key. Else do not connect."
            )
            assert there.home_events.named("up", "session") == []
            there.laptop.peers.remove(HOME)
            there.laptop.peers.add(HOME, there.home.key)
            (await there.laptop.connect(HOME, "note")).abort()  # and with the right key all is well

    run(main())
    assert opened == ["note"]


def test_a_session_with_a_key_that_is_pinned_no_more_is_not_used(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.peer("other") as other, there.home.serve({"echo": echo}):
            (await there.laptop.connect(HOME, "echo")).abort()
            there.laptop.peers.remove(HOME)
            with pytest.raises(UnknownPeerError):
                await there.laptop.connect(HOME, "echo")
            there.laptop.peers.add(HOME, other.key)
            with pytest.raises(PeerKeyChangedError):
                await there.laptop.connect(HOME, "echo")

    run(main())


def test_a_target_that_nobody_serves_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            async with meeting(tmp_path, "web") as there, there.home.serve({"web": closed.getsockname()[1]}):
                with pytest.raises(TargetRefusedError) as caught:
                    await there.laptop.connect(HOME, "web")
                assert str(caught.value) == "'web' on home-nas cannot be reached: connection refused"
                assert caught.value.hint == "home-nas is reached; start the program there."

    run(main())


# --- what goes wrong before -----------------------------------------------------------------------------------------------


async def refused(coroutine: Awaitable[object], kind: type[P2PTunnelError], text: str, hint: str) -> None:
    """Await something that must fail, and check all that is said."""
    with pytest.raises(kind) as caught:
        await coroutine
    assert type(caught.value) is kind
    assert (str(caught.value), caught.value.hint) == (text, hint)


def test_a_tag_that_nobody_pinned_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    async def main() -> None:
        async with Peer(LAPTOP, profile=tmp_path) as laptop:
            await refused(
                laptop.connect("nobody"),
                UnknownPeerError,
                "no key is pinned for 'nobody'",
                "`p2ptunnel pair` on nobody prints a code; then here: p2ptunnel pair CODE",
            )
            await refused(
                laptop.connect("Home NAS"),
                InvalidTagError,
                "'Home NAS' is not a tag",
                "A tag has 1 to 63 characters a-z 0-9 . _ - and begins and ends with a letter or digit.",
            )

    run(main())


def test_a_peer_that_is_offline_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            await refused(
                there.laptop.connect(HOME),
                PeerOfflineError,
                "no peer is registered as 'home-nas'",
                "Check the tag, and that `p2ptunnel serve` is running on home-nas.",
            )

    run(main(), timeout=2)


def test_without_a_server_it_is_said_how_to_name_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with Peer(LAPTOP, profile=tmp_path, lan=False) as laptop, Peer(HOME, profile=tmp_path / "home") as home:
            laptop.peers.add(HOME, home.key)
            for work in (laptop.connect(HOME), laptop.netcheck(), laptop.serve({"echo": echo})):
                await refused(
                    work,
                    ConfigError,
                    "no rendezvous server is given",
                    "Peer(rendezvous='host:7000'), --rendezvous host:7000 or P2PTUNNEL_RENDEZVOUS.",
                )

    run(main())


@contextlib.asynccontextmanager
async def without_server(directory: Path, port: int) -> AsyncGenerator[Peer]:
    """A peer whose server is at a port of loopback, with a peer pinned."""
    async with Peer(LAPTOP, rendezvous=f"127.0.0.1:{port}", profile=directory / LAPTOP) as laptop:
        async with Peer(HOME, profile=directory / HOME) as home:
            laptop.peers.add(HOME, home.key)
        yield laptop


UNREACHABLE = "Is `p2ptunnel rendezvous` running there, and do its firewalls let in UDP and TCP to port {}?"


def test_a_server_that_is_not_there_is_given_up_in_time(tmp_path: Path) -> None:
    """Nobody listens, so TCP is refused, which proves nothing; UDP is silent."""

    async def main() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
            async with without_server(tmp_path, port) as laptop:
                text = f"127.0.0.1:{port} did not answer over UDP or TCP in 5 s"
                hint = UNREACHABLE.format(port)
                over_tcp = "TCP: Connection refused. TLS on port 443: Connection refused."
                began = time.monotonic()
                await asyncio.gather(
                    refused(laptop.connect(HOME), RendezvousTimeoutError, text, hint),
                    refused(laptop.serve({"echo": echo}), RendezvousTimeoutError, text, hint),
                    refused(laptop.netcheck(), RendezvousTimeoutError, text, f"{over_tcp} {hint}"),
                )
                assert time.monotonic() - began < 6

    run(main())


def test_a_server_that_is_silent_over_both_is_given_up_as_soon(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, socket.socket() as tcp:
            tcp.bind(("127.0.0.1", 0))
            tcp.listen()
            port = tcp.getsockname()[1]
            udp.bind(("127.0.0.1", port))
            async with without_server(tmp_path, port) as laptop:
                text = f"127.0.0.1:{port} did not answer over UDP or TCP in 5 s"
                hint = UNREACHABLE.format(port)
                began = time.monotonic()
                await asyncio.gather(
                    refused(laptop.connect(HOME), RendezvousTimeoutError, text, hint),
                    refused(laptop.serve({"echo": echo}), RendezvousTimeoutError, text, hint),
                )
                assert time.monotonic() - began < 6

    run(main())


def swallow(*_: object) -> None:
    """What a network does with datagrams that blocks UDP."""


def test_a_server_that_answers_over_tcp_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2ptunnel.net.udp.UdpSocket._send", swallow)

    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            began = time.monotonic()
            stream = await there.laptop.connect(HOME, "echo")
            assert time.monotonic() - began < 2
            assert await conversation(stream) == HELLO
            assert there.server.stats.received == 0
            silent = [event.name for event in there.home_events.all].count("udp_silent")
            assert silent == 2  # once for the port that is registered, once for the spare one

    run(main())


def test_a_server_whose_name_has_no_address_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)

    async def main() -> None:
        async with Peer(LAPTOP, rendezvous="rv.invalid", profile=tmp_path) as laptop:
            await refused(
                laptop.netcheck(),
                ResolveError,
                "cannot resolve 'rv.invalid': Name or service not known",
                "Check the name, and that this machine can look names up.",
            )

    run(main())


def test_the_time_is_the_callers(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            async with without_server(tmp_path, closed.getsockname()[1]) as laptop:
                await refused(
                    laptop.connect(HOME, timeout=0.2),
                    PunchTimeoutError,
                    "no hole to home-nas opened in 0.2 s",
                    "`p2ptunnel explain home-nas` shows each way that is tried; `p2ptunnel netcheck` on both machines, what"
                    " their NATs do.",
                )

    run(main(), timeout=2)


def test_a_tag_of_another_key_is_named_and_nothing_is_served(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.peer(HOME, "thief") as thief, there.home.serve({"echo": echo}):
            await refused(
                thief.serve({"echo": echo}),
                TagInUseError,
                "the tag 'home-nas' belongs to another key",
                "Choose another tag; or the server's operator frees it: p2ptunnel rendezvous tags free home-nas",
            )
            assert thief.snapshot().serving == ()
            assert thief.local_address is None

    run(main())


def test_a_tag_that_another_key_pairs_under_is_named_as_people_know_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.peer(HOME, "thief") as thief, await there.home.invite():
            await refused(
                thief.invite(),
                TagInUseError,
                "the tag 'home-nas' belongs to another key",
                "Choose another tag; or the server's operator frees it: p2ptunnel rendezvous tags free home-nas",
            )

    run(main())


def test_a_peer_that_was_not_started_says_so(tmp_path: Path) -> None:
    text = "the peer has not been started: use `async with Peer(…)` or `await peer.start()`"

    async def main() -> None:
        peer = Peer(LAPTOP, rendezvous="127.0.0.1:7000", profile=tmp_path)
        works: list[Awaitable[object]] = [
            peer.connect(HOME),
            peer.serve({"echo": echo}),
            peer.forward(HOME, "web"),
            peer.ssh(HOME),
        ]
        for work in works:
            await refused(work, LocalProtocolError, text, "")
        with pytest.raises(LocalProtocolError):
            _ = peer.key
        with pytest.raises(LocalProtocolError):
            peer.snapshot()
        assert peer.local_address is None
        await peer.close()
        assert not (tmp_path / "identity.key").exists()

    run(main())


def test_serving_needs_a_tag(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.peer(None) as nameless:
            await refused(
                nameless.serve({"echo": echo}),
                ConfigError,
                "a peer that others are to find needs a tag",
                "Peer('home-nas', …), --tag or P2PTUNNEL_TAG.",
            )

    run(main())


def test_a_service_is_served_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.home.serve({"echo": echo}):
            await refused(
                there.home.serve({"new": echo, "echo": echo}),
                ConfigError,
                "'echo' is served already",
                "Close the other Serving first, or choose another name.",
            )
            assert there.home.snapshot().serving == ("echo",)

    run(main())


def test_allowing_somebody_unknown_serves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            await refused(
                there.home.serve({"echo": echo}, allow=[LAPTOP, "nobody"]),
                NoSuchPeerError,
                "no peer is known here as 'nobody'",
                "`p2ptunnel peers` lists those that are known here.",
            )
            assert there.home.snapshot().serving == ()
            assert there.server.registered == ()

    run(main())


@pytest.mark.parametrize("rendezvous", ["host:x", "host:0", ["ok:1", "host:0"]])
def test_what_was_written_wrong_is_said_before_anything_is_done(rendezvous: str | list[str]) -> None:
    with pytest.raises(InvalidAddressError):
        Peer(rendezvous=rendezvous)
    with pytest.raises(InvalidTagError):
        Peer("Home NAS")


def test_what_has_another_type_is_refused(tmp_path: Path) -> None:
    peer = Peer(HOME, profile=tmp_path)
    with pytest.raises(TypeCheckError):
        Peer(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeCheckError):
        peer.serve({"echo": 1.5})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
