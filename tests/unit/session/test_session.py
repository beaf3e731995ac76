"""Sessions over real sockets and real TLS: who comes up, who is refused and how, and how a session ends."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import msgspec
import pytest

from p2ptunnel.errors import (
    AuthenticationError,
    ChannelClosedError,
    ChannelLostError,
    PeerKeyChangedError,
    PeerRefusedError,
    RemoteProtocolError,
    StoreError,
)
from p2ptunnel.identity.acl import AccessList
from p2ptunnel.identity.keys import Identity, Purpose, signed_bytes
from p2ptunnel.identity.store import PeerStore
from p2ptunnel.identity.tls import callee_context, caller_context, leaf_key, prove
from p2ptunnel.session import session as session_module
from p2ptunnel.session.channel import Channel
from p2ptunnel.session.session import accept_session, connect_session
from p2ptunnel.transports.tcp import read_preamble
from p2ptunnel.wire.frames import Accept, GoAway, GoAwayCode, Hello, Open, Ping, encode, preamble
from tests.helpers import run
from tests.helpers.peers import CALLEE, CALLER, Peers, Wire, new_pipe, sessions, tcp_pair

MALLORY = Identity.from_seed(bytes([66]) * 32)


# --- coming up --------------------------------------------------------------------------------------------------------


def test_both_sides_learn_who_the_other_is_and_what_is_granted() -> None:
    async def scenario() -> None:
        peers = Peers("ssh", "web")
        async with sessions(peers) as (caller, callee):
            assert (caller.tag, caller.peer_key, caller.granted) == ("home-nas", CALLEE.public, ("ssh", "web"))
            assert (callee.tag, callee.peer_key, callee.granted) == (CALLER.public.short, CALLER.public, ())
            assert caller.path.remote == callee.path.local
            assert (caller.streams, callee.streams, caller.error, callee.error) == (0, 0, None, None)

    run(scenario())


def test_the_callee_calls_a_pinned_peer_by_its_tag(tmp_path: Path) -> None:
    async def scenario() -> None:
        peers = Peers()
        store = PeerStore(tmp_path / "peers.toml")
        store.add("laptop", CALLER.public, ("ssh",))
        peers.access = AccessList(store)
        async with sessions(peers) as (caller, callee):
            assert callee.tag == "laptop"
            assert caller.granted == ("ssh",)

    run(scenario())


def test_the_preamble_and_the_client_hello_go_in_one_write() -> None:
    async def scenario() -> None:
        client, server = tcp_pair()
        connecting = asyncio.ensure_future(Peers().connect(client))
        first = await asyncio.get_running_loop().sock_recv(server, 65536)
        assert first.startswith(b"P2PT/1\r\n")
        assert first[24] == 22  # a TLS handshake record, in the same segment
        server.close()
        with pytest.raises(ChannelLostError):
            await connecting

    run(scenario())


def test_bytes_that_were_read_beyond_the_preamble_are_not_lost() -> None:
    async def scenario() -> None:
        peers = Peers()
        client, server = tcp_pair()
        connecting = asyncio.ensure_future(peers.connect(client))
        first = await asyncio.get_running_loop().sock_recv(server, 65536)
        callee = await accept_session(
            new_pipe(server),
            identity=CALLEE,
            access=peers.access,
            selector=peers.selector,
            on_open=peers.on_open,
            early=first[24:],
        )
        caller = await connecting
        await asyncio.gather(caller.close(), callee.close())

    run(scenario())


def test_the_round_trip_is_known_soon() -> None:
    async def scenario() -> None:
        async with sessions(Peers("web")) as (caller, callee):
            stream = caller.open("web")
            await stream.write(b"x")
            while caller.rtt is None or callee.rtt is None:
                await asyncio.sleep(0)
            assert 0 < caller.rtt < 5
            assert caller.path.rtt == caller.rtt

    run(scenario())


# --- not coming up: keys ------------------------------------------------------------------------------------------------


def test_a_callee_with_another_key_is_refused_and_gets_no_byte() -> None:
    async def scenario() -> None:
        wire, peers = Wire(), Peers()
        peers.callee = MALLORY
        caller, callee = await peers.meet((wire.client, wire.server))
        assert isinstance(caller, PeerKeyChangedError)
        assert (caller.tag, caller.pinned) == ("home-nas", str(CALLEE.public))
        assert isinstance(callee, AuthenticationError)
        assert str(callee) == "authentication failed: the caller expected another key than this machine's"
        await wire.close()
        records = record_types(bytes(wire.seen[0][24:]))
        assert records in ([22, 20, 21], [22, 21], [22, 20, 23])  # ClientHello, then nothing but the alert
        assert peers.requests.empty()

    run(scenario())


def record_types(data: bytes) -> list[int]:
    types = list[int]()
    while data:
        types.append(data[0])
        data = data[5 + int.from_bytes(data[3:5], "big") :]
    return types


def test_a_caller_that_is_not_admitted_is_refused_and_served_nothing() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        peers.caller = MALLORY
        caller, callee = await peers.meet()
        assert isinstance(caller, PeerRefusedError)
        assert caller.tag == "home-nas"
        assert isinstance(callee, AuthenticationError)
        assert str(callee) == "authentication failed: the caller proved no key that is admitted here"
        assert peers.requests.empty()

    run(scenario())


def test_on_a_call_of_one_peer_no_other_is_let_in_although_it_is_admitted() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        peers.access.allow(MALLORY.public, "web")
        client, server = tcp_pair()
        peers.caller = MALLORY
        calling = asyncio.ensure_future(peers.connect(client))
        selector = await read_preamble(server)
        with pytest.raises(AuthenticationError, match="the caller proved no key that is admitted here"):
            await accept_session(
                new_pipe(server),
                identity=CALLEE,
                access=peers.access,
                selector=selector,
                on_open=peers.on_open,
                key=CALLER.public,
            )
        with pytest.raises(PeerRefusedError):
            await calling

    run(scenario())


def test_a_machine_does_not_call_itself() -> None:
    async def scenario() -> None:
        peers = Peers()
        peers.expected = CALLER.public
        client, server = tcp_pair()
        with pytest.raises(AuthenticationError, match="the peer's key is this machine's own"):
            await peers.connect(client)
        with pytest.raises(ConnectionResetError):  # closed before a byte
            await asyncio.get_running_loop().sock_recv(server, 1)
        server.close()

    run(scenario())


def test_a_machine_does_not_answer_itself() -> None:
    async def scenario() -> None:
        peers = Peers()
        peers.callee = peers.caller
        peers.access.allow(CALLER.public, "web")
        caller, callee = await peers.meet()
        assert isinstance(caller, PeerKeyChangedError)
        assert isinstance(callee, AuthenticationError)
        client, server = tcp_pair()
        channel = Channel(caller_context(CALLER, CALLER.public), callee=False)  # a caller without the guard of ours
        await new_pipe(client).attach(lambda: channel)
        accepting = asyncio.ensure_future(peers.accept(server))
        await channel.handshake(preamble(bytes(16)))
        with pytest.raises(AuthenticationError, match="no key that is admitted here"):
            await accepting
        channel.abort()

    run(scenario())


# --- not coming up: the greeting ----------------------------------------------------------------------------------------


class RawCaller:
    """A caller that has finished TLS and does by hand what comes then."""

    def __init__(self, peers: Peers, identity: Identity = CALLER) -> None:
        self.peers, self.identity = peers, identity
        self.client, self.server = tcp_pair()
        self.channel = Channel(caller_context(identity, CALLEE.public), callee=False)
        self.accepting = asyncio.ensure_future(peers.accept(self.server))

    async def secure(self) -> None:
        await new_pipe(self.client).attach(lambda: self.channel)
        await self.channel.handshake(preamble(self.peers.selector))

    def hello(
        self,
        *,
        signer: Identity | None = None,
        selector: bytes | None = None,
        session: bytes | None = None,
        leaf: bytes | None = None,
    ) -> Hello:
        proof = prove(self.channel.tls, self.identity.public)
        selector, nonce = selector or self.peers.selector, bytes(16)
        session = session or selector
        keys = (self.identity.public.raw, CALLEE.public.raw, leaf or leaf_key(self.identity), proof.leaf)
        signed = signed_bytes(Purpose.HELLO, *keys, selector, session, nonce)
        return Hello(selector, session, nonce, (signer or self.identity).sign(signed))

    async def refused(self, frame: bytes) -> BaseException:
        """Send these bytes as the first frame; return what the callee made of them, once we have been shut out."""
        await self.secure()
        self.channel.write(frame)
        with pytest.raises((ChannelLostError, ssl.SSLError)):
            await self.channel.read_frame()
        return await self.outcome()

    async def outcome(self) -> BaseException:
        self.channel.abort()
        [error] = await asyncio.gather(self.accepting, return_exceptions=True)
        assert isinstance(error, BaseException), error
        return error


def test_the_raw_caller_is_accepted_when_it_does_everything_right() -> None:
    async def scenario() -> None:
        raw = RawCaller(Peers("web"))
        await raw.secure()
        raw.channel.write(encode(raw.hello()))
        answer = await raw.channel.read_frame()
        assert isinstance(answer, Accept)
        assert answer.services == ("web",)
        session = await raw.accepting
        raw.channel.abort()
        await session.closed.wait()

    run(scenario())


def test_a_leaf_without_its_identity_proves_nothing() -> None:
    async def scenario() -> None:
        raw = RawCaller(Peers())
        await raw.secure()
        hello = raw.hello(signer=MALLORY)
        raw.channel.write(encode(hello))
        with pytest.raises((ChannelLostError, ssl.SSLError)):
            await raw.channel.read_frame()
        assert str(await raw.outcome()) == (
            "authentication failed: the caller holds a leaf, but not the identity that it names"
        )

    run(scenario())


@pytest.mark.parametrize("field", ["leaf", "selector", "session"])
def test_a_hello_from_another_connection_or_for_another_session_is_refused(field: str) -> None:
    async def scenario() -> None:
        raw = RawCaller(Peers())
        await raw.secure()
        hello = {
            "leaf": lambda: raw.hello(leaf=bytes(32)),
            "selector": lambda: raw.hello(selector=bytes(16)),
            "session": lambda: msgspec.structs.replace(raw.hello(), session=bytes(16)),  # and signed for a new one
        }[field]()
        raw.channel.write(encode(hello))
        with pytest.raises((ChannelLostError, ssl.SSLError)):
            await raw.channel.read_frame()
        problem = "HELLO is for another attempt" if field == "selector" else "holds a leaf, but not"
        error = await raw.outcome()
        assert isinstance(error, AuthenticationError)
        assert problem in str(error)

    run(scenario())


def test_a_caller_that_goes_on_with_a_session_that_nobody_knows_is_told_so() -> None:
    async def scenario() -> None:
        raw = RawCaller(Peers("web"))
        await raw.secure()
        raw.channel.write(encode(raw.hello(session=bytes(16))))
        assert isinstance(await raw.channel.read_frame(), Accept)
        assert await raw.channel.read_frame() == GoAway(GoAwayCode.EXPIRED)
        with pytest.raises(ChannelLostError, match="it was closed during the greeting"):
            await raw.channel.read_frame()
        error = await raw.outcome()
        assert isinstance(error, ChannelClosedError)
        assert str(error) == "the channel was closed by us: the session that the caller wants to go on with has ended"

    run(scenario())


@pytest.mark.parametrize(
    "first",
    [
        encode(Open(1, 0, "web")),
        encode(Hello(bytes(16), bytes(16), bytes(16), bytes(64), v=2)),
        encode(Ping(bytes(8))),
        bytes(8),
    ],
)
def test_anything_but_a_hello_of_our_version_ends_the_connection(first: bytes) -> None:
    async def scenario() -> None:
        error = await RawCaller(Peers("web")).refused(first)
        assert isinstance(error, RemoteProtocolError)

    run(scenario())


def test_a_caller_that_is_revoked_between_handshake_and_accept_is_refused() -> None:
    async def scenario() -> None:
        peers = Peers("web")
        raw = RawCaller(peers)
        await raw.secure()
        hello = raw.hello()
        peers.access.revoke(CALLER.public)
        raw.channel.write(encode(hello))
        with pytest.raises((ChannelLostError, ssl.SSLError)):
            await raw.channel.read_frame()
        assert str(await raw.outcome()) == "authentication failed: the caller is no longer admitted here"

    run(scenario())


class RawCallee:
    """A callee that has finished TLS and does by hand what comes then."""

    def __init__(self, peers: Peers) -> None:
        self.client, self.server = tcp_pair()
        self.channel = Channel(callee_context(CALLEE, (CALLER.public,)), callee=True)
        self.connecting = asyncio.ensure_future(peers.connect(self.client))

    async def hello(self) -> Hello:
        loop = asyncio.get_running_loop()
        assert len(await loop.sock_recv(self.server, 24)) == 24
        await new_pipe(self.server).attach(lambda: self.channel)
        await self.channel.handshake()
        frame = await self.channel.read_frame()
        assert isinstance(frame, Hello)
        return frame

    def accept(self, hello: Hello, signer: Identity, purpose: Purpose = Purpose.ACCEPT) -> Accept:
        leaf = prove(self.channel.tls, CALLEE.public).leaf
        keys = (CALLER.public.raw, CALLEE.public.raw, leaf, leaf_key(CALLEE))
        return Accept(signer.sign(signed_bytes(purpose, *keys, hello.selector, hello.session, hello.nonce)))

    async def outcome(self) -> BaseException:
        [error] = await asyncio.gather(self.connecting, return_exceptions=True)
        self.channel.abort()
        assert isinstance(error, BaseException), error
        return error


@pytest.mark.parametrize("fault", ["another identity", "another purpose", "another session", "another nonce"])
def test_an_accept_that_the_pinned_identity_did_not_sign_is_a_changed_key(fault: str) -> None:
    async def scenario() -> None:
        raw = RawCallee(Peers())
        hello = await raw.hello()
        if fault == "another identity":
            answer = raw.accept(hello, MALLORY)
        elif fault == "another purpose":
            answer = raw.accept(hello, CALLEE, Purpose.HELLO)
        elif fault == "another session":
            answer = raw.accept(msgspec.structs.replace(hello, session=bytes(16)), CALLEE)
        else:
            answer = raw.accept(msgspec.structs.replace(hello, nonce=bytes(16)), CALLEE)
        raw.channel.write(encode(answer))
        assert isinstance(await raw.outcome(), PeerKeyChangedError)

    run(scenario())


@pytest.mark.parametrize("goodbye", ["goodbye", "end of file", "reset"])
def test_an_end_before_accept_means_that_we_are_not_admitted(goodbye: str) -> None:
    async def scenario() -> None:
        raw = RawCallee(Peers())
        await raw.hello()
        if goodbye == "goodbye":
            raw.channel.close()
        elif goodbye == "end of file":
            assert raw.channel._transport is not None
            raw.channel._transport.write_eof()
        else:
            raw.channel.abort()
        error = await raw.outcome()
        assert isinstance(error, PeerRefusedError)
        assert error.tag == "home-nas"

    run(scenario())


def test_an_answer_that_is_no_accept_is_a_violation() -> None:
    async def scenario() -> None:
        raw = RawCallee(Peers())
        await raw.hello()
        raw.channel.write(encode(Ping(bytes(8))))
        assert isinstance(await raw.outcome(), RemoteProtocolError)

    run(scenario())


# --- not coming up: the bytes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("junk", [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(100), b"\x16\x03\x03\x40\x00" + bytes(20_000)])
def test_what_speaks_no_tls_is_a_lost_channel(junk: bytes) -> None:
    async def scenario() -> None:
        client, server = tcp_pair()
        await asyncio.get_running_loop().sock_sendall(server, junk)
        with pytest.raises((ChannelLostError, RemoteProtocolError)):
            await Peers().connect(client)
        server.close()

    run(scenario())


def test_more_than_16_kib_before_the_handshake_is_done_are_refused() -> None:
    async def scenario() -> None:
        client, server = tcp_pair()
        accepting = asyncio.ensure_future(Peers().accept(server))
        loop = asyncio.get_running_loop()
        record = b"\x16\x03\x01\x40\x00" + b"\x01\x00\x7f\xff" + bytes(16380)  # a ClientHello of 32 KiB, in two records
        await loop.sock_sendall(client, preamble(bytes(16)) + record + record)
        with pytest.raises(RemoteProtocolError, match="16384 bytes, and no handshake in them"):
            await accepting
        client.close()

    run(scenario())


@pytest.mark.parametrize("side", ["caller", "callee"])
def test_a_peer_that_says_nothing_is_given_up(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "HANDSHAKE_TIMEOUT", 0.05)

    async def scenario() -> None:
        client, server = tcp_pair()
        if side == "callee":
            await asyncio.get_running_loop().sock_sendall(client, preamble(bytes(16)))
        meeting = Peers().connect(client) if side == "caller" else Peers().accept(server)
        with pytest.raises(ChannelLostError, match=r"the channel was not up in 0.05 s"):
            await meeting
        (server if side == "caller" else client).close()

    run(scenario())


def test_a_list_of_peers_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    async def scenario() -> None:
        peers = Peers()
        (tmp_path / "peers.toml").write_text("nonsense")
        peers.access = AccessList(PeerStore(tmp_path / "peers.toml"))
        caller, callee = await peers.meet()
        assert isinstance(callee, StoreError)
        assert isinstance(caller, ChannelLostError)

    run(scenario())


def test_a_pipe_that_is_broken_already_is_an_error_of_the_system() -> None:
    async def scenario() -> None:
        client, server = tcp_pair()
        pipe = new_pipe(client)
        server.close()
        client.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            await connect_session(pipe, identity=CALLER, tag="x", peer_key=CALLEE.public, selector=bytes(16))

    run(scenario())
