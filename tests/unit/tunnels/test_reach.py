"""What peers may reach through a service that stands for no single address: 60 targets, and answers of DNS that change."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.addresses import canonical
from p2ptunnel.errors import AccessDeniedError, InvalidSpecError, TargetRefusedError
from p2ptunnel.tunnels import target
from p2ptunnel.tunnels.reach import Reach, may_reach, parse_reach
from p2ptunnel.tunnels.spec import ServeSpec, find_destination, find_service, parse_service
from p2ptunnel.tunnels.target import open_destination
from p2ptunnel.types import Address
from tests.helpers import run

# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["10.0.0.0/24:80", "10.0.0.5/32:80,443", "[2001:db8::/32]:22", "db.internal:5432", "0.0.0.0/0:1-65535", "[::/0]:1-2,9"],
)
def test_a_reach_is_printed_as_it_is_read(text: str) -> None:
    assert str(parse_reach(text)) == text
    assert parse_service(f"lan=any:{text} 10.9.9.9/32:9") == parse_service(str(parse_service(f"lan=any:{text} 10.9.9.9/32:9")))


def test_without_ports_the_form_is_told() -> None:
    for text in ("", "80", "0.0.0.0/0"):
        with pytest.raises(InvalidSpecError, match="ports belong together, with a colon between them"):
            parse_reach(text)


def test_short_forms_are_read() -> None:
    assert str(parse_reach("10.0.0.5:*")) == "10.0.0.5/32:1-65535"
    assert str(parse_reach("DB.Internal:5432")) == "db.internal:5432"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        "10.0.0.0/24",
        "10.0.0.0/24:",
        "10.0.0.0/24:0",
        "10.0.0.0/24:65536",
        "10.0.0.0/24:90-80",
        "10.0.0.0/24:80,",
        "10.0.0.0/24:http",
        "10.0.0.1/24:80",
        "10.0.0.0/33:80",
        "127.1:80",
        "2130706433:80",
        "0x7f000001:80",
        "[::ffff:10.0.0.0/120]:80",
        "[64:ff9b::/96]:80",
        "[fe80::1%eth0]:80",
        "[db]:80",
        "a b:80",
        "-x:80",
        "10.0.0.0/24:８０",
    ],
    ids=ascii,
)
def test_what_is_no_reach_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpecError):
        parse_reach(text)


# --- which service ----------------------------------------------------------------------------------------------------

LAN = parse_service("lan=any:10.0.0.0/24:80,443 db.internal:5432")
WEB = parse_service("web=10.0.0.7:80")


def test_an_address_that_is_reached_belongs_to_the_service_that_reaches_it() -> None:
    assert find_destination([WEB, LAN], "10.0.0.7:443") == (LAN, ("10.0.0.7", 443))
    assert find_destination([LAN], "db.internal:5432") == (LAN, ("db.internal", 5432))
    assert find_service([LAN, WEB], "10.0.0.7:80") == WEB


@pytest.mark.parametrize(
    "asked", ["lan", "any", "", "10.0.0.7", "10.0.1.7:80", "10.0.0.7:81", "127.0.0.1:80", "8888", "10.7:80"]
)
def test_what_is_not_reached_is_nobodys(asked: str) -> None:
    assert find_destination([LAN], asked) is None
    assert find_service([LAN], asked) is None


def test_a_service_of_names_alone_is_asked_for_no_other_name() -> None:
    names = parse_service("lan=any:db.internal:5432")
    assert find_destination([names], "other.internal:5432") is None
    assert find_destination([names], "10.0.0.7:5432") is None


@pytest.mark.parametrize("asked", ["secret.internal:80", "absent.internal:80", "exfiltrated.example:443", "db.internal:81"])
def test_a_name_that_no_reach_lists_is_denied_and_never_looked_up(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up = answer_of(monkeypatch, lambda: ["10.0.0.7"])
    host, _, port = asked.partition(":")
    assert find_destination([LAN], asked) is None
    assert outcome(LAN, (host, int(port))) == "AccessDeniedError"
    assert looked_up == []


def test_a_name_that_is_listed_may_resolve_into_a_network_of_another_reach() -> None:
    assert find_destination([LAN], "db.internal:80") == (LAN, ("db.internal", 80))


# --- connecting -------------------------------------------------------------------------------------------------------


def neighbours(*hosts: str) -> list[socket.socket]:
    """Listeners on the same port of several addresses; a port that is taken on one of them is given up for another."""
    while True:
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
            first = opened.enter_context(socket.create_server((hosts[0], 0)))
            port = first.getsockname()[1]
            others = [opened.enter_context(socket.create_server((host, port))) for host in hosts[1:]]
            opened.pop_all()
            return [first, *others]


class Inner:
    """Listeners of which one is granted and the others never are: all that a peer can reach is counted."""

    def __init__(self) -> None:
        self.listeners = neighbours("127.0.0.7", "127.0.0.1", "127.0.0.8")
        self.port = self.listeners[0].getsockname()[1]
        self.spec = ServeSpec(
            "lan", "", reach=(parse_reach(f"127.0.0.7/32:{self.port}"), parse_reach(f"db.internal:{self.port}"))
        )

    def connects(self, index: int) -> int:
        """How many connections came to a listener."""
        count = 0
        self.listeners[index].setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.listeners[index].accept()[0].close()
                count += 1
        return count


@pytest.fixture
def inner() -> Any:
    made = Inner()
    yield made
    for listener in made.listeners:
        listener.close()


def outcome(spec: ServeSpec, destination: Address, own: tuple[Address, ...] = ()) -> str:
    async def main() -> str:
        try:
            sock = await open_destination(spec, destination, own, timeout=2)
        except (AccessDeniedError, TargetRefusedError) as error:
            return type(error).__name__
        with sock:
            return str(sock.getpeername()[0])

    return run(main())


HIDDEN = [
    *("127.0.0.1", "127.0.0.8", "127.1.2.3", "0.0.0.0", "::", "::1", "::ffff:127.0.0.1", "::ffff:127.0.0.8", "::127.0.0.1"),
    *("::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:7f00:1::7", "2001::80ff:fffe"),
    *("fe80::5efe:127.0.0.1", "2001:db8::200:5efe:7f00:1", "169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"),
    *("2002:a9fe:a9fe::", "169.254.170.2", "fd00:ec2::254", "fe80::a9fe:a9fe", "100.100.100.200", "168.63.129.16"),
    *("10.0.0.1", "192.168.1.1", "172.16.0.1", "100.64.0.1", "198.18.0.1", "fd00::1", "fe80::1", "fe80::1%lo", "::1%lo"),
    *("224.0.0.1", "ff02::1", "239.255.255.250", "255.255.255.255", "240.0.0.1", "192.0.0.8", "203.0.113.7", "2001:db8::7"),
    *(
        "127.0.0.6",
        "127.0.0.9",
        "127.0.0.71",
        "::ffff:127.0.0.6",
        "127.255.255.255",
        "126.0.0.7",
        "::7f00:8",
        "64:ff9b::7f00:8",
    ),
]
NAMES = [
    "localhost",
    "ip6-localhost",
    "127.1",
    "0x7f.1",
    "2130706433",
    "0177.0.0.1",
    "0",
    "１２７.0.0.1",
    "other.internal",
    "db.internal.",
]


@pytest.mark.parametrize("host", [*HIDDEN, *NAMES], ids=ascii)
def test_nothing_but_what_is_reached_is_ever_connected_to(inner: Inner, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the reading of what was asked, which would stop many of these: the check alone has to."""
    attempts: list[object] = []

    async def connect(endpoint: object) -> socket.socket:
        attempts.append(endpoint)
        raise ConnectionRefusedError

    monkeypatch.setattr(target, "_connect", connect)
    if host in NAMES and not host[0].isnumeric():
        answer_of(monkeypatch, lambda: ["127.0.0.1"])
    assert outcome(inner.spec, (host, inner.port)) == "AccessDeniedError"
    assert attempts == []


def test_there_are_sixty_of_them() -> None:
    assert len({*HIDDEN, *NAMES}) >= 60


def test_what_is_reached_is_connected_to_in_every_spelling(inner: Inner) -> None:
    for host in ("127.0.0.7", "::ffff:127.0.0.7", "64:ff9b::7f00:7"):
        assert outcome(inner.spec, (host, inner.port)) == "127.0.0.7"
    assert [inner.connects(index) for index in range(3)] == [3, 0, 0]


def answer_of(monkeypatch: pytest.MonkeyPatch, answers: Callable[[], list[str]]) -> list[str]:
    """Answer each look-up of a name with other addresses; return the names that were asked for."""
    asked: list[str] = []

    real = socket.getaddrinfo

    def fake(host: str, port: int, *rest: Any, flags: int = 0, **more: Any) -> Any:
        if flags & socket.AI_NUMERICHOST or not host[0].isalpha():
            return real(host, port, *rest, flags=flags, **more)
        asked.append(host)
        families = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [(families[canonical(each).version], socket.SOCK_STREAM, 6, "", (each, port)) for each in answers()]

    monkeypatch.setattr(socket, "getaddrinfo", fake)
    return asked


def test_an_answer_that_flips_between_check_and_connection_changes_nothing(
    inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = "127.0.0.7", "127.0.0.8"
    flips = iter([[good], [bad], [good], [bad]] * 10)
    asked = answer_of(monkeypatch, lambda: next(flips))
    outcomes = [outcome(inner.spec, ("db.internal", inner.port)) for _ in range(20)]
    assert outcomes == [good, "AccessDeniedError"] * 10  # what was checked is what was connected to
    assert len(asked) == 20  # resolved once each
    assert [inner.connects(index) for index in range(3)] == [10, 0, 0]


@pytest.mark.parametrize("answer", [["127.0.0.7", "127.0.0.8"], ["127.0.0.8", "127.0.0.7"], ["127.0.0.7", "::1"]])
def test_one_address_that_is_not_reached_denies_all_of_a_name(
    inner: Inner, answer: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_of(monkeypatch, lambda: answer)
    assert outcome(inner.spec, ("db.internal", inner.port)) == "AccessDeniedError"
    assert [inner.connects(index) for index in range(3)] == [0, 0, 0]


def test_a_name_that_is_granted_reaches_no_loopback_that_it_comes_to_mean(
    inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_of(monkeypatch, lambda: ["127.0.0.1"])
    assert outcome(inner.spec, ("db.internal", inner.port)) == "AccessDeniedError"
    assert inner.connects(1) == 0


@pytest.mark.parametrize("own", ["127.0.0.7", "0.0.0.0", "::"])
def test_our_own_listeners_are_no_targets(inner: Inner, own: str) -> None:
    assert outcome(inner.spec, ("127.0.0.7", inner.port), ((own, inner.port),)) == "AccessDeniedError"
    assert outcome(inner.spec, ("127.0.0.7", inner.port), ((own, inner.port - 1), ("127.0.0.8", inner.port))) == "127.0.0.7"


@given(st.integers(0, 2**32 - 1), st.integers(0, 70000))
def test_an_address_is_reached_exactly_where_network_and_port_say_so(value: int, port: int) -> None:
    reach = parse_reach("10.0.0.0/8:80,8000-9000")
    address = canonical(f"::{value:x}" if value < 2 else ".".join(str(value >> shift & 255) for shift in (24, 16, 8, 0)))
    expected = value >> 24 == 10 and (port == 80 or 8000 <= port <= 9000)
    assert may_reach([reach], str(address), address, port) is expected


def test_a_reach_says_why_not() -> None:
    reach: Reach = parse_reach("0.0.0.0/0:80")
    assert reach.refusal("x", canonical("127.0.0.1"), 80) == "a loopback address"
    assert reach.refusal("x", canonical("127.0.0.1"), 81) == "not in the grant"
