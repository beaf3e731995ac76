"""A peer's own bookkeeping: what it is made of, and which sessions it keeps."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typeguard import TypeCheckError

from p2ptunnel.defaults import RESUME_BUFFER_MIN_BYTES, SESSIONS_OF_PEER_MAX
from p2ptunnel.errors import ConfigError, InvalidSpecError
from p2ptunnel.identity.store import PinnedPeer
from p2ptunnel.peer import Peer
from p2ptunnel.session.session import Session
from tests.helpers import run
from tests.helpers.peers import CALLEE, Peers, sessions


def new_peer(directory: Path) -> Peer:
    """A peer whose server is never asked."""
    return Peer("home", rendezvous="127.0.0.1:9", profile=directory)


# --- what it is made of -------------------------------------------------------------------------------------------------


def test_it_is_shown_by_name_and_server() -> None:
    assert repr(Peer("laptop", rendezvous="127.0.0.1")) == "<Peer laptop via 127.0.0.1:7000>"
    assert (
        repr(Peer("laptop", rendezvous=["rv.example:1", "[2001:db8::1]"]))
        == "<Peer laptop via rv.example:1, [2001:db8::1]:7000>"
    )
    assert repr(Peer()) == "<Peer without a tag via no server>"


@pytest.mark.parametrize("seconds", [-0.1, float("inf"), float("nan")])
def test_a_wait_that_does_not_end_or_begin_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match=f"a resume_timeout of {seconds} seconds"):
        Peer("home", resume_timeout=seconds)


def test_a_replay_buffer_that_would_hold_streams_up_is_refused() -> None:
    Peer("home", resume_buffer=RESUME_BUFFER_MIN_BYTES, resume_timeout=0)
    with pytest.raises(ConfigError, match="a resume_buffer of 524287 bytes"):
        Peer("home", resume_buffer=RESUME_BUFFER_MIN_BYTES - 1)


def test_a_number_that_is_no_port_is_no_service(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with new_peer(tmp_path) as peer:
            with pytest.raises(InvalidSpecError):
                await peer.connect("laptop", 65536)

    run(scenario())


def test_what_is_no_kind_of_event_is_refused_at_once() -> None:
    with pytest.raises((TypeError, TypeCheckError)):  # the second where every annotation is checked
        Peer("home").events(str)  # type: ignore[arg-type]


# --- its sessions -------------------------------------------------------------------------------------------------------


def test_of_too_many_sessions_of_a_peer_those_that_wait_end_first_and_then_the_oldest(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with new_peer(tmp_path) as peer:
            callers: list[Session] = []
            callees: list[Session] = []

            async def another() -> None:
                peers = Peers("web")
                peers.options = peer._options
                caller, callee = await peers.meet()
                assert isinstance(caller, Session)
                assert isinstance(callee, Session)
                peer._up.keep(callee)
                callers.append(caller)
                callees.append(callee)

            for _ in range(SESSIONS_OF_PEER_MAX):
                await another()
            cut(callees[2])
            while callees[2].state != "suspended":
                await asyncio.sleep(0)
            await another()
            assert ended(callees) == [2]
            await another()
            assert ended(callees) == [0, 2]
            assert str(callees[0].error) == "the channel was closed by us: too many sessions of this peer"
            await asyncio.gather(*(session.close(grace=0) for session in (*callers, *callees)))
            peer._up.tidy()
            assert not peer._up._sessions

    run(scenario())


def ended(sessions: list[Session]) -> list[int]:
    return [number for number, session in enumerate(sessions) if session.error is not None]


def cut(session: Session) -> None:
    """Break the channel that carries the session."""
    leg = session._active
    assert leg is not None
    assert leg.channel._transport is not None
    leg.channel._transport.abort()


def test_a_session_that_has_ended_is_forgotten(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with new_peer(tmp_path) as peer:
            peers, home_nas = Peers("web"), PinnedPeer("home-nas", CALLEE.public)
            peers.options = peer._options
            async with sessions(peers) as (caller, _):
                peer._up.keep_called(caller, is_direct=False)
                assert peer._up.session(home_nas, is_direct=False) is caller
                assert peer._up.session(home_nas, is_direct=True) is None
            await caller.closed.wait()
            async with sessions(Peers("web")) as (_, callee):
                peer._up.keep(callee)
                assert (peer._up._sessions, peer._up._called) == ([callee], {})

    run(scenario())


def test_a_session_is_gone_on_with_by_its_caller_alone(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with new_peer(tmp_path) as peer, sessions(Peers("web")) as (caller, callee):
            for session in (caller, callee):
                peer._up.keep(session)
            assert peer._up.find(caller.peer_key, caller.session_id) is None
            assert peer._up.find(callee.peer_key, callee.session_id) is callee

    run(scenario())
