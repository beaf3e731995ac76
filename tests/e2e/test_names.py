"""A peer by the name that it has here: it is found under the one that it registers with, and known by its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2ptunnel.calling import _by_name_here
from p2ptunnel.errors import (
    NoPathError,
    P2PTunnelError,
    PeerOfflineError,
    PeerRefusedError,
    PunchTimeoutError,
    ResolveError,
    TagBusyError,
    UnknownPeerError,
)
from p2ptunnel.events import Paired
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import PinnedPeer
from p2ptunnel.peer import Peer
from tests.helpers import run
from tests.helpers.meeting import HELLO, HOME, LAPTOP, conversation, echo, meeting


def test_a_peer_that_is_renamed_here_is_reached_by_its_new_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.home.serve({"echo": echo}):
            there.laptop.peers.rename(HOME, "nas")
            async with await there.laptop.connect("nas", "echo") as stream:
                assert await conversation(stream) == HELLO
            assert stream.tag == "nas"
            session = there.laptop._up.session_with(there.laptop._pinned("nas"))
            assert session is not None
            assert session.tag == "nas"
            await there.laptop._calling.redial(session, "never")
            assert there.dials == 2

    run(main())


def test_a_peer_that_was_paired_by_another_name_is_reached_by_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.home.serve({"echo": echo}):
            there.laptop.peers.remove(HOME)
            there.home.peers.remove(LAPTOP)
            async with await there.home.invite(services=["echo"], name="portable") as invitation:
                paired = await there.laptop.redeem(invitation.code, name="nas")
                assert (paired.tag, paired.registered_as) == ("nas", HOME)
                guest = await invitation.paired()
                assert (guest.tag, guest.registered_as) == ("portable", LAPTOP)
            async with await there.laptop.connect("nas", "echo") as stream:
                assert await conversation(stream) == HELLO

    run(main())


def test_who_pairs_again_keeps_its_name_on_both_sides_and_it_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            there.laptop.peers.rename(HOME, "nas")
            there.home.peers.rename(LAPTOP, "portable")
            told, heard = there.home.events(Paired), there.laptop.events(Paired)
            async with await there.home.invite(uses=2) as invitation:
                assert (await there.laptop.redeem(invitation.ticket)).tag == "nas"
                assert (await invitation.paired()).tag == "portable"
            for events, tag in ((told, "portable"), (heard, "nas")):
                event = await anext(events)
                assert isinstance(event, Paired)
                assert (event.tag, event.known_as) == (tag, tag)
            assert [peer.tag for peer in (*there.home.peers.all(), *there.laptop.peers.all())] == ["portable", "nas"]

    run(main())


def test_an_error_names_the_peer_by_both_names_where_its_tag_matters(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            there.laptop.peers.rename(HOME, "nas")
            with pytest.raises(PeerOfflineError) as error:
                await there.laptop.connect("nas")
            assert str(error.value) == "no peer is registered as 'home-nas', which is 'nas' here"
            assert error.value.hint == "Check the tag, and that `p2ptunnel serve` is running on home-nas."
            with pytest.raises(UnknownPeerError) as unknown:
                await there.laptop.connect(HOME)
            assert unknown.value.hint == "The peer that is registered as home-nas is called nas here."

    run(main())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PeerRefusedError(HOME), "nas does not know this machine's key"),
        (NoPathError(HOME, ("a", "b")), "no path to nas: 2 tried (a; b)"),
        (PunchTimeoutError(HOME, 5.0), "no hole to nas opened in 5 s"),
    ],
)
def test_all_other_errors_of_a_call_have_its_name_here(error: P2PTunnelError, text: str) -> None:
    pinned = PinnedPeer("nas", Identity.generate().public, registered_as=HOME)
    assert isinstance(error, PeerRefusedError | NoPathError | PunchTimeoutError)
    assert str(_by_name_here(error, pinned)) == text


def test_a_live_connection_is_known_by_its_key_whatever_the_peer_is_called(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            meeting(tmp_path, "echo") as there,
            there.home.serve({"echo": echo}),
            await there.laptop.connect(HOME, "echo") as stream,
        ):
            there.home.peers.rename(LAPTOP, "old-laptop")
            there.laptop.peers.rename(HOME, "nas")
            for peer, tag in ((there.home, "old-laptop"), (there.laptop, "nas")):
                [status] = peer.snapshot().peers
                assert (status.tag, status.state, status.streams) == (tag, "open", 1)
            async with await there.laptop.connect("nas", "echo") as other:
                assert await conversation(other) == HELLO
            assert there.dials == 1
            assert await conversation(stream) == HELLO

    run(main())


# --- one program at a time under a tag --------------------------------------------------------------------------------


def test_a_second_program_does_not_take_the_tag_from_the_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path, "echo") as there, there.peer(HOME) as second:
            async with there.home.serve({"echo": echo}):
                with pytest.raises(TagBusyError, match="another p2ptunnel serve"):
                    await second.serve({"other": echo})
                assert second.snapshot().serving == ()
                async with await there.laptop.connect(HOME, "echo") as stream:
                    assert await conversation(stream) == HELLO
                async with there.home.serve({"more": echo}), await there.home.invite():  # both get along with serving
                    pass
            async with second.serve({"other": echo}):  # the first one has gone
                pass

    run(main())


def test_a_second_invitation_does_not_take_the_guests_of_the_first(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there, there.peer(HOME) as second:
            async with await there.home.invite() as invitation:
                with pytest.raises(TagBusyError, match="another p2ptunnel pair"):
                    await second.invite()
                await there.laptop.redeem(invitation.code)
            async with await second.invite():
                pass

    run(main())


def test_a_tag_is_free_again_when_serving_came_to_nothing_or_the_peer_is_closed(tmp_path: Path) -> None:
    async def main() -> None:
        async with meeting(tmp_path) as there:
            dead = Peer(HOME, rendezvous="no-such-host.invalid:7000", profile=tmp_path / HOME)
            async with dead:
                for failing in (dead.serve({"echo": echo}), dead.invite()):
                    with pytest.raises(ResolveError):
                        await failing
                async with there.home.serve({"echo": echo}), await there.home.invite():
                    pass
            second = there.peer(HOME)
            await second.start()
            await second.serve({"echo": echo})
            await second.close()
            async with there.home.serve({"echo": echo}):
                pass

    run(main())
