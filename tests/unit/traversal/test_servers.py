"""Which of several servers is used, and what is said where none of them helps."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from p2ptunnel.errors import (
    ConfigError,
    InvalidAddressError,
    P2PTunnelError,
    PeerOfflineError,
    RendezvousError,
    RendezvousTimeoutError,
    ResolveError,
    TagInUseError,
)
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.traversal.servers import Servers
from p2ptunnel.types import Address, ServerSpec
from tests.helpers import run

FIRST, SECOND = "192.0.2.1:7001", "192.0.2.2"


class Asked:
    """Notes which servers are asked; each fails as it is told to."""

    def __init__(self, *failures: P2PTunnelError | None) -> None:
        self.addresses: list[Address] = []
        self._failures = list(failures)

    async def __call__(self, server: ServerSpec) -> str:
        self.addresses.append(server.address)
        failure = self._failures.pop(0)
        if failure is not None:
            raise failure
        return "done"


def test_the_first_that_helps_is_used() -> None:
    asked = Asked(None)
    assert run(Servers([FIRST, SECOND], default_port=7000).first(asked)) == "done"
    assert asked.addresses == [("192.0.2.1", 7001)]


@pytest.mark.parametrize("failure", [RendezvousTimeoutError(FIRST, 5), PeerOfflineError("home-nas", FIRST)])
def test_the_next_is_asked_where_one_is_silent_or_does_not_know_the_peer(failure: P2PTunnelError) -> None:
    events: list[TraceEvent] = []
    asked = Asked(failure, None)
    assert run(Servers([FIRST, SECOND], default_port=7000, tracer=Tracer(events.append)).first(asked)) == "done"
    assert asked.addresses == [("192.0.2.1", 7001), ("192.0.2.2", 7000)]
    [event] = events
    assert (event.name, event.facts) == ("next_server", {"server": FIRST, "reason": str(failure)})


def test_the_last_ones_failure_is_the_answer() -> None:
    with pytest.raises(PeerOfflineError):
        run(Servers([FIRST, SECOND], default_port=7000).first(Asked(RendezvousTimeoutError(FIRST, 5), PeerOfflineError("nas"))))


@pytest.mark.parametrize("failure", [TagInUseError("home-nas"), RendezvousError(FIRST, "no", 403)])
def test_another_failure_is_final(failure: P2PTunnelError) -> None:
    asked = Asked(failure)
    with pytest.raises(type(failure)):
        run(Servers([FIRST, SECOND], default_port=7000).first(asked))
    assert len(asked.addresses) == 1


def test_without_a_server_it_is_said_how_to_name_one() -> None:
    with pytest.raises(ConfigError) as caught:
        run(Servers([], default_port=7000).first(Asked()))
    assert str(caught.value) == "no rendezvous server is given"
    assert caught.value.hint == "Peer(rendezvous='host:7000'), --rendezvous host:7000 or P2PTUNNEL_RENDEZVOUS."


@pytest.mark.parametrize("text", ["192.0.2.1:0", "192.0.2.1:x", "", "[::1", "192.0.2.1:65536"])
def test_what_is_no_address_of_a_server_is_refused_at_once(text: str) -> None:
    with pytest.raises(InvalidAddressError) as caught:
        Servers([text], default_port=7000)
    assert str(caught.value) == f"{text!r} is not an address"


def test_they_are_shown_as_they_may_be_written() -> None:
    servers = Servers(["rv.example", "192.0.2.1:7001", "[2001:db8::1]:7002"], default_port=7000)
    assert servers.texts == ("rv.example:7000", "192.0.2.1:7001", "[2001:db8::1]:7002")


# --- names ------------------------------------------------------------------------------------------------------------


def resolver(*, ipv4: str = "", ipv6: str = "") -> Callable[..., object]:
    """A resolver that knows one name, and raises for the families in which that has no address."""

    def getaddrinfo(host: str, port: object, family: int, kind: int) -> object:
        assert host == "rv.example"
        if not (found := {socket.AF_INET: ipv4, socket.AF_INET6: ipv6}[socket.AddressFamily(family)]):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, kind, 17, "", (found, 0))]

    return getaddrinfo


class Families:
    """Which addresses there are routes to, and which answers; and how often that was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, routes: str = "46", answers: str = "4") -> None:
        self.asked = 0
        self.answers = answers
        self._routes = routes
        monkeypatch.setattr("p2ptunnel.traversal.servers.has_route", lambda host: _family(host) in self._routes)
        monkeypatch.setattr("p2ptunnel.traversal.servers.first_to_answer", self._first)

    async def _first(self, addresses: list[Address]) -> Address:
        self.asked += 1
        return next(address for address in addresses if _family(address[0]) == self.answers)


def _family(host: str) -> str:
    return "6" if ":" in host else "4"


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "used"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("", "2001:db8::1", "2001:db8::1"),
    ],
)
@pytest.mark.parametrize("routes", ["46", "4", "6", ""])
def test_a_name_of_one_family_becomes_its_number(
    monkeypatch: pytest.MonkeyPatch, ipv4: str, ipv6: str, used: str, routes: str
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", resolver(ipv4=ipv4, ipv6=ipv6))
    families = Families(monkeypatch, routes=routes)
    asked = Asked(None)
    run(Servers(["rv.example"], default_port=7000).first(asked))
    assert asked.addresses == [(used, 7000)]
    assert families.asked == 0


@pytest.mark.parametrize(
    ("routes", "used", "questions"),
    [("46", "2001:db8::1", 1), ("4", "192.0.2.1", 0), ("6", "2001:db8::1", 0), ("", "192.0.2.1", 0)],
)
def test_of_two_families_the_one_is_used_that_leads_out_and_answers(
    monkeypatch: pytest.MonkeyPatch, routes: str, used: str, questions: int
) -> None:
    monkeypatch.setattr("socket.getaddrinfo", resolver(ipv4="192.0.2.1", ipv6="2001:db8::1"))
    families = Families(monkeypatch, routes=routes, answers="6")
    asked = Asked(None)
    run(Servers(["rv.example"], default_port=7000).first(asked))
    assert asked.addresses == [(used, 7000)]
    assert families.asked == questions


def test_a_family_is_chosen_once_and_anew_when_the_server_is_silent_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", resolver(ipv4="192.0.2.1", ipv6="2001:db8::1"))
    families = Families(monkeypatch, answers="4")
    asked = Asked(None, PeerOfflineError("nas"), RendezvousTimeoutError(FIRST, 5), None)

    async def main() -> None:
        servers = Servers(["rv.example"], default_port=7000)
        await servers.first(asked)
        with pytest.raises(PeerOfflineError):
            await servers.first(asked)
        with pytest.raises(RendezvousTimeoutError):
            await servers.first(asked)
        assert families.asked == 1
        families.answers = "6"
        await servers.first(asked)

    run(main())
    assert [_family(host) for host, _ in asked.addresses] == ["4", "4", "4", "6"]


def test_a_family_is_chosen_anew_when_the_name_means_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    families = Families(monkeypatch, answers="4")

    async def main() -> None:
        servers = Servers(["rv.example"], default_port=7000)
        for ipv4 in ("192.0.2.1", "192.0.2.1", "192.0.2.9"):
            monkeypatch.setattr("socket.getaddrinfo", resolver(ipv4=ipv4, ipv6="2001:db8::1"))
            assert (await servers.numeric(servers.specs[0])).address == (ipv4, 7000)

    run(main())
    assert families.asked == 2


@pytest.mark.parametrize("literal", ["192.0.2.1", "2001:db8::1"])
def test_a_number_is_not_looked_up(monkeypatch: pytest.MonkeyPatch, literal: str) -> None:
    monkeypatch.delattr("socket.getaddrinfo")
    asked = Asked(None)
    run(Servers([f"[{literal}]:7000"], default_port=7000).first(asked))
    assert asked.addresses == [(literal, 7000)]


def test_a_name_without_an_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", resolver())
    with pytest.raises(ResolveError) as caught:
        run(Servers(["rv.example"], default_port=7000).first(Asked()))
    assert str(caught.value) == "cannot resolve 'rv.example': Name or service not known"


def test_a_name_without_an_address_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.getaddrinfo", resolver())
    asked = Asked(None)
    run(Servers(["rv.example", SECOND], default_port=7000).first(asked))
    assert asked.addresses == [("192.0.2.2", 7000)]
