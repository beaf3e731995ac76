"""Which relay a call is joined at: the server's own, or one that it has signed for and that lies no deeper inside."""

from __future__ import annotations

import time
from typing import Any

import pytest
from msgspec.structs import replace

from p2ptunnel.errors import RemoteProtocolError
from p2ptunnel.identity.grant import Offers
from p2ptunnel.identity.keys import Identity
from p2ptunnel.net.web import WebLinks
from p2ptunnel.transports.relay import RelayPipe
from p2ptunnel.transports.spare import Spares
from p2ptunnel.traversal import joining
from p2ptunnel.traversal.joining import Joining
from p2ptunnel.traversal.port import PunchPort
from p2ptunnel.traversal.ways import Ways
from p2ptunnel.types import Address, ServerSpec
from p2ptunnel.wire.messages import RelayOffer
from tests.helpers import run

SERVER, RELAY, ALICE, BOB = (Identity.from_seed(bytes([number]) * 32) for number in range(4))
TOKEN = "0123456789abcdef" * 2


def offer(host: str = "192.0.2.7", port: int = 7000) -> RelayOffer:
    made = Offers(SERVER, [((host, port), str(RELAY.public))], time.time).make(TOKEN, str(ALICE.public), str(BOB.public))
    assert made is not None
    return made


def joined(
    monkeypatch: pytest.MonkeyPatch, offered: RelayOffer | None, server: Address = ("198.51.100.1", 7000), key: str = ""
) -> tuple[Address, dict[str, Any]]:
    """Return where, and how, it joins."""
    asked: list[tuple[Address, dict[str, Any]]] = []

    async def ask(relay: Address, *_: object, **options: Any) -> RelayPipe:
        asked.append((relay, options))
        return RelayPipe.__new__(RelayPipe)

    async def main() -> None:
        spares = Spares(WebLinks())
        port = PunchPort.__new__(PunchPort)  # as much of one as is asked
        vars(port).update(server=server, spec=ServerSpec(server, key), control=None, web=None)
        try:
            await Joining(ALICE, spares, Ways(WebLinks())).at(port, "caller")(TOKEN, offered)
        finally:
            await spares.close()

    monkeypatch.setattr(joining, "ask_relay", ask)
    run(main())
    [one] = asked
    return one


def test_without_an_offer_it_is_the_server_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    where, how = joined(monkeypatch, None, key=str(SERVER.public))
    assert (where, how["server_key"], how["grant"]) == (("198.51.100.1", 7000), str(SERVER.public), "")


@pytest.mark.parametrize("key", ["", str(SERVER.public)])
def test_an_offer_is_taken_with_the_relays_own_key(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    made = offer()
    where, how = joined(monkeypatch, made, key=key)
    assert (where, how["server_key"], how["grant"]) == (("192.0.2.7", 7000), str(RELAY.public), made.grant)


@pytest.mark.parametrize(
    ("relay", "server", "is_fine"),
    [
        ("192.0.2.7", "127.0.0.1", True),
        ("10.0.0.7", "10.0.0.1", True),
        ("10.0.0.7", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("10.0.0.7", "198.51.100.1", False),
        ("127.0.0.1", "198.51.100.1", False),
        ("127.0.0.1", "10.0.0.1", False),
        ("169.254.169.254", "198.51.100.1", False),
        ("::ffff:127.0.0.1", "198.51.100.1", False),
        ("0.0.0.0", "198.51.100.1", False),
        ("", "198.51.100.1", False),
        ("168.63.129.16", "198.51.100.1", False),
    ],
)
def test_it_lies_no_deeper_inside_than_the_server(
    monkeypatch: pytest.MonkeyPatch, relay: str, server: str, is_fine: bool
) -> None:
    if is_fine:
        assert joined(monkeypatch, offer(relay), (server, 7000))[0] == (relay, 7000)
    else:
        with pytest.raises(RemoteProtocolError):
            joined(monkeypatch, offer(relay), (server, 7000))


def test_what_the_server_has_not_signed_is_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    for forged in (replace(offer(), key=str(ALICE.public)), replace(offer(), grant="")):
        with pytest.raises(RemoteProtocolError, match="has not signed for"):
            joined(monkeypatch, forged, key=str(SERVER.public))
    for port in (0, 22, 443):
        with pytest.raises(RemoteProtocolError):
            joined(monkeypatch, offer(port=port))
