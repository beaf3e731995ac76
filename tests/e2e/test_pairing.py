"""Two strangers pair through a rendezvous server on loopback, and one then opens what the other has let it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from p2ptunnel.errors import (
    ConfigError,
    InvalidCodeError,
    InvitationExpiredError,
    PairingError,
    PeerKeyChangedError,
    PeerOfflineError,
    PeerRefusedError,
    StoreError,
    UnknownPeerError,
)
from p2ptunnel.events import Paired, PairingFailed
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import PeerStore, PinnedPeer
from p2ptunnel.pairing import Invitation, Redemption, _counted_as, pairing_tag, require_elsewhere
from p2ptunnel.peer import Peer
from p2ptunnel.protocol import pairing as machines
from p2ptunnel.server import Rendezvous
from p2ptunnel.ssh.hostkeys import HostKeys
from p2ptunnel.types import format_address
from p2ptunnel.wire.ticket import Ticket
from tests.helpers import run
from tests.helpers.meeting import HELLO, HOME, LAPTOP, conversation, echo
from tests.helpers.pairing import SSH_KEY
from tests.helpers.turns import cancel_at_each_turn

GIVEN = ("code", "ticket")
either = pytest.mark.parametrize("kind", GIVEN)


class Strangers:
    """A server and two started peers that know nothing of each other."""

    def __init__(self, directory: Path, server: str) -> None:
        self.directory, self.server = directory, server
        self.home, self.laptop = self.peer(HOME), self.peer(LAPTOP)

    def peer(self, tag: str | None, profile: str | None = None, server: str | None = None) -> Peer:
        return Peer(tag, rendezvous=server or self.server, profile=self.directory / (profile or tag or "nameless"))


@contextlib.asynccontextmanager
async def strangers(directory: Path) -> AsyncGenerator[Strangers]:
    async with Rendezvous(("127.0.0.1", 0)) as server:
        there = Strangers(directory, format_address(server.address))
        async with there.home, there.laptop:
            yield there


def given(invitation: Invitation, kind: str) -> str:
    return str(getattr(invitation, kind))


@either
def test_a_stranger_becomes_a_peer_and_opens_what_it_was_let(tmp_path: Path, kind: str) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there, there.home.serve({"echo": echo}):
            with pytest.raises(UnknownPeerError):
                await there.laptop.connect(HOME, "echo")
            async with await there.home.invite(services=["echo"]) as invitation:
                host, guest = await asyncio.gather(there.laptop.redeem(given(invitation, kind)), invitation.paired())
            assert (host.tag, host.key, host.services) == (HOME, there.home.key, ())
            assert (guest.tag, guest.key, guest.services) == (LAPTOP, there.laptop.key, ("echo",))
            assert there.home.peers.get(LAPTOP) == guest
            assert there.laptop.peers.get(HOME) == host
            assert await conversation(await there.laptop.connect(HOME, "echo")) == HELLO

    run(scenario(), timeout=60)


def test_a_guest_that_is_cancelled_while_it_pins_the_host_is_told_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = Redemption._pin

    async def scenario() -> None:
        loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def slowly(self: Redemption, *arguments: Any) -> PinnedPeer:
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(10)
            return pin(self, *arguments)

        monkeypatch.setattr(Redemption, "_pin", slowly)
        async with strangers(tmp_path) as there, await there.home.invite() as invitation:
            events = there.laptop.events(Paired)
            redeeming = asyncio.create_task(there.laptop.redeem(invitation.ticket))
            await begun.wait()
            redeeming.cancel()
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await redeeming
            assert there.laptop.peers.get(HOME) is not None
            told = await anext(events)
            assert isinstance(told, Paired)
            assert told.tag == HOME

    run(scenario(), timeout=60)


@either
def test_an_invitation_is_used_once(tmp_path: Path, kind: str) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there, there.peer("thief") as thief:
            invitation = await there.home.invite()
            text = given(invitation, kind)
            await there.laptop.redeem(text)
            await invitation.paired()
            with pytest.raises(PairingError, match="it is used up"):
                given(invitation, kind)
            await invitation.close()
            with pytest.raises(PeerOfflineError) as caught:
                await thief.redeem(text)
            assert "p2ptunnel pair" in caught.value.hint
            assert thief.peers.all() == ()
            assert [peer.tag for peer in there.home.peers.all()] == [LAPTOP]

    run(scenario(), timeout=60)


def test_a_wrong_code_is_told_with_its_source_and_another_code_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "PAIRING_PAUSE", 0.0)  # all of them come from 127.0.0.1
    monkeypatch.setattr("p2ptunnel.protocol.intent.PAIRING_CALL_PAUSE", 0.01)

    async def scenario() -> None:
        async with strangers(tmp_path) as there:
            failures = there.home.events(PairingFailed)
            async with await there.home.invite() as invitation:
                first = invitation.code
                wrong = f"{HOME}-{'zoo-zoo-zoo' if not first.endswith('zoo-zoo-zoo') else 'able-able-able'}"
                with pytest.raises(PairingError, match="wrong, used or too old"):
                    await there.laptop.redeem(wrong)
                told = await anext(failures)
                assert isinstance(told, PairingFailed)
                assert told.reason == "it tried a wrong code"
                assert told.source.startswith("127.0.0.1:")
                assert invitation.code != first
                with pytest.raises(PairingError, match="wrong, used or too old"):
                    await there.laptop.redeem(first)
                await anext(failures)
                await there.laptop.redeem(invitation.code)
                assert (await invitation.paired()).tag == LAPTOP

    run(scenario(), timeout=60)


def test_three_wrong_codes_end_the_invitation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "PAIRING_PAUSE", 0.0)
    monkeypatch.setattr("p2ptunnel.protocol.intent.PAIRING_CALL_PAUSE", 0.01)

    async def scenario() -> None:
        async with strangers(tmp_path) as there:
            async with await there.home.invite() as invitation:
                for _ in range(3):
                    with pytest.raises(PairingError):
                        await there.laptop.redeem(f"{HOME}-able-able-able")
                with pytest.raises(PairingError, match="too many wrong codes"):
                    await invitation.paired()
                assert not invitation.is_open
            assert there.home.peers.all() == ()

    run(scenario(), timeout=60)


def test_an_invitation_ends_with_its_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there, await there.home.invite(expires=0.05) as invitation:
            with pytest.raises(InvitationExpiredError, match=r"nobody came in 0\.05 s"):
                await invitation.paired()
            with pytest.raises(InvitationExpiredError, match="nobody came"):  # whoever asks again
                await invitation.paired()

    run(scenario(), timeout=60)


def test_an_invitation_ends_with_its_peer(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there:
            invitation = await there.home.invite()
            await there.home.close()
            with pytest.raises(PairingError, match="it was closed"):
                await invitation.paired()

    run(scenario(), timeout=60)


def test_a_ticket_is_good_for_as_many_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "PAIRING_PAUSE", 0.0)
    monkeypatch.setattr("p2ptunnel.protocol.intent.PAIRING_CALL_PAUSE", 0.01)

    async def scenario() -> None:
        async with (
            strangers(tmp_path) as there,
            there.peer("phone") as phone,
            await there.home.invite(uses=2) as invitation,
        ):
            ticket = invitation.ticket
            await there.laptop.redeem(ticket)
            await phone.redeem(ticket)
            assert {(await invitation.paired()).tag, (await invitation.paired()).tag} == {LAPTOP, "phone"}

    run(scenario(), timeout=60)


def test_names_are_chosen_on_either_side(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there, await there.home.invite(name="my-laptop") as invitation:
            host = await there.laptop.redeem(invitation.code, name="nas", services=["web"])
            assert (host.tag, host.services) == ("nas", ("web",))
            assert (await invitation.paired()).tag == "my-laptop"

    run(scenario(), timeout=60)


@either
def test_a_name_that_another_machine_has_here_is_not_given_away(tmp_path: Path, kind: str) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there, there.peer("another") as another:
            there.laptop.peers.add(HOME, another.key)
            async with await there.home.invite() as invitation:
                with pytest.raises(PairingError, match="another machine is known here as home-nas") as caught:
                    await there.laptop.redeem(given(invitation, kind))
                assert "--as NAME" in caught.value.hint
            known = there.laptop.peers.get(HOME)
            assert known is not None
            assert known.key == another.key
            assert there.home.peers.all() == ()

    run(scenario(), timeout=60)


def test_pairing_again_keeps_the_name_and_adds_services(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there:
            there.home.peers.add("my-laptop", there.laptop.key, ("web",))
            async with await there.home.invite(services=["db"]) as invitation:
                await there.laptop.redeem(invitation.ticket)
                guest = await invitation.paired()
            assert (guest.tag, guest.services) == ("my-laptop", ("web", "db"))
            assert len(there.home.peers.all()) == 1

    run(scenario(), timeout=60)


def test_the_host_keys_of_an_ssh_server_are_pinned_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def of(_: HostKeys, target: object) -> tuple[str, ...]:
        assert target == ("127.0.0.1", 22)
        return (SSH_KEY,)

    monkeypatch.setattr(HostKeys, "of", of)

    async def scenario() -> None:
        async with strangers(tmp_path) as there, await there.home.invite(services=["ssh", "web"]) as invitation:
            assert (await there.laptop.redeem(invitation.ticket)).ssh_host_keys == {"ssh": (SSH_KEY,)}

    run(scenario(), timeout=60)


def test_what_a_host_calls_a_host_key_is_taken_apart_before_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def of(_: HostKeys, target: object) -> tuple[str, ...]:
        return ("@cert-authority * ssh-ed25519 AAAA", f"* {SSH_KEY}", "no key")

    monkeypatch.setattr(HostKeys, "of", of)

    async def scenario() -> None:
        async with strangers(tmp_path) as there, await there.home.invite(services=["ssh"]) as invitation:
            assert (await there.laptop.redeem(invitation.ticket)).ssh_host_keys == {"ssh": (SSH_KEY,)}

    run(scenario(), timeout=60)


def test_both_sides_are_told_by_events(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there:
            home, laptop = there.home.events(Paired), there.laptop.events(Paired)
            async with await there.home.invite(services=["web"]) as invitation:
                await there.laptop.redeem(invitation.code)
                told = [await anext(events) for events in (home, laptop)]
            assert [(e.tag, e.key, e.services, e.offered) for e in told if isinstance(e, Paired)] == [
                (LAPTOP, str(there.laptop.key), ("web",), ()),
                (HOME, str(there.home.key), (), ("web",)),
            ]

    run(scenario(), timeout=60)


def test_a_guest_without_a_tag_has_a_name_of_its_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there, there.peer(None) as nameless, await there.home.invite() as invitation:
            await nameless.redeem(invitation.ticket)
            assert (await invitation.paired()).tag == f"p-{nameless.key.short}"

    run(scenario(), timeout=60)


def test_the_ticket_knows_the_server_that_the_guest_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2ptunnel.peer.require_elsewhere", lambda _: None)  # all of this test is on loopback

    async def scenario() -> None:
        async with (
            strangers(tmp_path) as there,
            there.peer("phone", server="127.0.0.1:9") as phone,
            await there.home.invite() as invitation,
        ):
            assert (await phone.redeem(invitation.ticket)).key == there.home.key

    run(scenario(), timeout=60)


def test_a_ticket_does_not_make_its_guest_speak_to_what_listens_on_its_own_loopback(tmp_path: Path) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            ticket = Ticket(listener.getsockname(), "home-nas", Identity.generate().public.raw, bytes(16))
            async with strangers(tmp_path) as there:
                with pytest.raises(PairingError) as error:
                    await there.laptop.redeem(str(ticket))
            port = listener.getsockname()[1]
            assert error.value.reason == f"the ticket sends this machine to 127.0.0.1:{port}, a loopback address"
            with pytest.raises(BlockingIOError):
                listener.accept()

    run(scenario(), timeout=60)


@pytest.mark.parametrize("host", ["203.0.113.9", "192.168.1.5", "10.0.0.1", "2001:db8::1", "fd00::5"])
def test_a_ticket_may_name_a_server_at_home_or_anywhere_else(host: str) -> None:
    require_elsewhere((host, 7000))


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("127.0.0.1", "a loopback address"),
        ("::ffff:127.8.9.1", "a loopback address"),
        ("::1", "a loopback address"),
        ("0.0.0.0", "a unspecified address"),
        ("169.254.3.4", "a link-local address"),
        ("fe80::1", "a link-local address"),
        ("169.254.169.254", "a metadata service"),
        ("100.100.100.200", "a metadata service"),
        ("224.0.0.1", "a multicast address"),
    ],
)
def test_a_ticket_may_not_name_what_trusts_whoever_reaches_it(host: str, why: str) -> None:
    with pytest.raises(PairingError) as error:
        require_elsewhere((host, 7000))
    text = format_address((host, 7000))
    assert error.value.reason == f"the ticket sends this machine to {text}, {why}"
    assert (
        error.value.hint == f"If you run a server there, name it yourself: --rendezvous {text}, or Peer(rendezvous={text!r})."
    )


def test_a_host_without_room_for_the_guest_lets_it_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "PAIRING_PAUSE", 0.0)
    monkeypatch.setattr("p2ptunnel.protocol.intent.PAIRING_CALL_PAUSE", 0.01)

    async def scenario() -> None:
        async with strangers(tmp_path) as there, await there.home.invite() as invitation:
            store = tmp_path / HOME / "peers.toml"
            store.write_text("no toml")
            with pytest.raises(PairingError, match="could not store our key"):
                await there.laptop.redeem(invitation.ticket)
            with pytest.raises(StoreError):
                there.home.peers.all()
            assert there.laptop.peers.all() == ()
            store.unlink()
            await there.laptop.redeem(invitation.ticket)

    run(scenario(), timeout=60)


def test_whoever_serves_stays_unreachable_for_strangers_while_pairing_is_open(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there, there.home.serve({"echo": echo}), await there.home.invite():
            there.laptop.peers.add(HOME, there.home.key)
            with pytest.raises(PeerRefusedError):
                await there.laptop.connect(HOME, "echo")

    run(scenario(), timeout=60)


def test_cancelling_an_invitation_leaves_nothing_whenever_it_comes(tmp_path: Path) -> None:
    async def scenario() -> int:
        async with strangers(tmp_path) as there:
            await (await there.home.invite()).close()  # what is loaded once is loaded
            return await cancel_at_each_turn(there.home.invite, Invitation.close)

    assert run(scenario(), timeout=80) > 5


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (PeerOfflineError("home-nas.pair", "rv.example:7000"), "no peer is registered as 'home-nas'"),
        (PeerRefusedError("home-nas.pair"), "no peer is registered as 'home-nas'"),
        (
            PeerKeyChangedError("home-nas.pair", "p2p:k5xq"),
            "pairing failed: whoever answered has another key than the ticket names",
        ),
    ],
)
def test_what_a_call_fails_with_is_told_by_the_name_that_people_know(
    tmp_path: Path, error: PeerOfflineError | PeerRefusedError | PeerKeyChangedError, text: str
) -> None:
    redemption = Redemption(f"{HOME}-able-able-able", PeerStore(tmp_path / "peers.toml"))
    explained = redemption.explained(error)
    assert str(explained) == text
    assert "home-nas.pair" not in explained.hint


# --- what is asked for wrongly ----------------------------------------------------------------------------------------


def test_a_machine_without_a_tag_cannot_invite(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there, there.peer(None) as nameless:
            with pytest.raises(ConfigError, match="needs a tag"):
                await nameless.invite()

    run(scenario(), timeout=60)


@pytest.mark.parametrize(
    "options",
    [{"uses": 0}, {"expires": 0.0}, {"expires": -1.0}, {"expires": float("nan")}, {"services": ["a b"]}, {"name": "A"}],
)
def test_an_invitation_out_of_range_is_refused_before_anything_is_sent(tmp_path: Path, options: dict[str, object]) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there:
            with pytest.raises(ConfigError):
                await there.home.invite(**options)  # type: ignore[arg-type]

    run(scenario(), timeout=60)


@pytest.mark.parametrize("text", ["", "home-nas", "p2pt1abc", f"{HOME}-apple-river-qqqq"])
def test_what_is_neither_a_code_nor_a_ticket_is_refused_before_anything_is_sent(tmp_path: Path, text: str) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there:
            with pytest.raises(InvalidCodeError):
                await there.laptop.redeem(text)

    run(scenario(), timeout=60)


# --- what is shown, and what is not -----------------------------------------------------------------------------------


def test_code_and_ticket_stand_in_no_repr_and_in_no_event(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there:
            events = there.home.events()
            async with await there.home.invite() as invitation:
                secrets = (invitation.code.removeprefix(f"{HOME}-"), invitation.ticket)
                redemptions = [Redemption(text, there.laptop.peers) for text in (invitation.code, invitation.ticket)]
                await there.laptop.redeem(invitation.code)
                shown = repr([invitation, invitation._desk, invitation._ticket, *redemptions, await anext(events)])
            assert not any(secret in shown for secret in secrets)

    run(scenario(), timeout=60)


def test_a_notebook_shows_the_invitation_while_it_is_good(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there:
            async with await there.home.invite() as invitation:
                shown, code, ticket = invitation._repr_html_(), invitation.code, invitation.ticket
                assert "<svg" in shown
                assert code in shown
                assert ticket in shown
            after = invitation._repr_html_()
            assert "it was closed" in after
            assert code not in after
            assert ticket not in after

    run(scenario(), timeout=60)


def test_the_qr_code_is_text_for_a_terminal_and_svg_for_a_page(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with strangers(tmp_path) as there, await there.home.invite() as invitation:
            assert set(invitation.qr()) <= set("█▀▄ \n\xa0")
            assert invitation.qr("svg").startswith("<svg")

    run(scenario(), timeout=60)


@pytest.mark.parametrize(("tag", "waits_as"), [("home-nas", "home-nas.pair"), ("a" * 63, "a" * 58 + ".pair")])
def test_a_host_waits_under_a_tag_of_its_own(tag: str, waits_as: str) -> None:
    assert pairing_tag(tag) == waits_as


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("198.51.100.7", "::ffff:198.51.100.7", True),
        ("2001:db8::1", "2001:db8::2", True),
        ("198.51.100.7", "198.51.100.8", False),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::1%eth1", False),
    ],
)
def test_attempts_are_counted_for_a_host_or_its_network(one: str, other: str, are_one: bool) -> None:
    assert (_counted_as(one) == _counted_as(other)) is are_one
