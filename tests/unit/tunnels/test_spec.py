"""Every form of a forward and of a service, and what is said of a near miss."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.errors import InvalidSpecError
from p2ptunnel.tunnels.spec import (
    ForwardSpec,
    ServeSpec,
    find_service,
    parse_forward,
    parse_name,
    parse_service,
    parse_target,
    service_for,
)

HERE = "127.0.0.1"

FORWARDS = {
    # short forms
    "8888": ((HERE, 8888), "8888"),
    "1": ((HERE, 1), "1"),
    "65535": ((HERE, 65535), "65535"),
    "9000:8888": ((HERE, 9000), "8888"),
    "0:8888": ((HERE, 0), "8888"),
    "web": ((HERE, 0), "web"),
    "python3.11": ((HERE, 0), "python3.11"),
    "my-web_2": ((HERE, 0), "my-web_2"),
    "9000:web": ((HERE, 9000), "web"),
    "0:web": ((HERE, 0), "web"),
    "nas2:445": ((HERE, 445), "nas2:445"),
    "192.0.2.7:80": ((HERE, 80), "192.0.2.7:80"),
    "[2001:db8::1]:445": ((HERE, 445), "[2001:db8::1]:445"),
    "localhost:8888": ((HERE, 8888), "127.0.0.1:8888"),
    # the grammar of ssh -L
    "9000:db:5432": ((HERE, 9000), "db:5432"),
    "9000:DB.Example:5432": ((HERE, 9000), "db.example:5432"),
    "9000:db.:80": ((HERE, 9000), "db.:80"),
    "9000:_ldap.example:389": ((HERE, 9000), "_ldap.example:389"),
    "0:127.0.0.1:8888": ((HERE, 0), "127.0.0.1:8888"),
    "9000:[2001:DB8:0:0::1]:80": ((HERE, 9000), "[2001:db8::1]:80"),
    "9000:[::1]:80": ((HERE, 9000), "[::1]:80"),
    # an address to listen on
    "127.0.0.1:9000:web": ((HERE, 9000), "web"),
    "localhost:9000:8888": ((HERE, 9000), "8888"),
    "LOCALHOST:9000:web": ((HERE, 9000), "web"),
    "127.0.0.5:9000:web": (("127.0.0.5", 9000), "web"),
    "0.0.0.0:9000:web": (("0.0.0.0", 9000), "web"),
    "*:9000:web": (("*", 9000), "web"),
    "*:0:8888": (("*", 0), "8888"),
    "[::1]:9000:web": (("::1", 9000), "web"),
    "[::]:9000:8888": (("::", 9000), "8888"),
    "192.0.2.1:9000:db:5432": (("192.0.2.1", 9000), "db:5432"),
    "[::1]:9000:[2001:db8::1]:80": (("::1", 9000), "[2001:db8::1]:80"),
    "*:9000:[::1]:80": (("*", 9000), "[::1]:80"),
}

NEAR_MISSES = {
    "": ("the name of a service is missing", "Examples: 8888"),
    "0": ("port 0 is nobody's service", "Examples"),
    "08888": ("'08888' is not a port", "Examples"),
    "65536": ("'65536' is not a port", "Examples"),
    "70000:web": ("'70000' is not a port", "Examples"),
    "9000:0": ("port 0 is nobody's service", "Examples"),
    "9000:": ("the name of a service is missing", "Examples"),
    ":9000": ("a host is missing", "Examples"),
    ":9000:web": ("an empty address to listen on", "Every interface is written out: *:9000:web"),
    ":9000:db:5432": ("an empty address to listen on", "*:9000:db:5432"),
    "Web": ("'Web' is not the name of a service", "Did you mean 'web'?"),
    "9000:Web": ("'Web' is not the name of a service", "Did you mean 'web'?"),
    "a b": ("'a b' is not the name of a service", "Examples"),
    "-web": ("'-web' is not the name of a service", "Examples"),
    "web\n": ("is not the name of a service", "Examples"),
    "web:ssh": ("'ssh' is not a port", "9000:host:80, 9000:web"),
    "9000:db:web": ("'web' is not a port", "9000:host:80, 9000:web"),
    "9000::80": ("a host is missing", "Examples"),
    "9000:d b:80": ("'d b' is not a host", "Examples"),
    "9000:-db:80": ("'-db' is not a host", "Examples"),
    f"9000:{'a' * 64}:80": ("is not a host", "Examples"),
    f"9000:{'a.' * 120}a:80": ("the host is too long", "Examples"),
    "9000:127.1:80": ("'127.1' is not an IPv4 address", "Examples"),
    "9000:2130706433:80": ("'2130706433' is not an IPv4 address", "Examples"),
    "9000:0x7f000001:80": ("'0x7f000001' is not an IPv4 address", "Examples"),
    "9000:0177.0.0.1:80": ("'0177.0.0.1' is not an IPv4 address", "Examples"),
    "127.0.0.1": ("an address needs a port", "127.0.0.1:80"),
    "db:5432:web": ("'db' is not an address to listen on", "follows the port here: 0:db:5432"),
    "db:9000:db2:80": ("'db' is not an address to listen on", "Numeric, localhost or *"),
    "::1:9000:web": ("too many colons", "in brackets"),
    "2001:db8::1": ("a host is missing", "Examples"),
    "9000:2001:db8::1:80": ("too many colons", "in brackets"),
    "[::1": ("'[' is not an address to listen on", "Numeric"),
    "[::1]": ("'[::1]' is not the name of a service", "Examples"),
    "[127.0.0.1]:9000:web": ("'127.0.0.1' is not an IPv6 address", "Examples"),
    "[fe80::1%eth0]:80": ("an address with a zone", "Examples"),
    "[::g]:80": ("'::g' is not an IPv6 address", "Examples"),
    "9000:web:": ("a port is missing", "9000:host:80"),
    "９０００:80": ("'９０００' is not a host", "Examples"),
    "8888/udp": ("UDP is not forwarded by this version", "Without /udp"),
    "9000:db:53/udp": ("UDP is not forwarded by this version", "Without /udp"),
    "8000-8010": ("ranges of ports are not forwarded", "SPEC of its own"),
    "8000-8010:9000-9010": ("ranges of ports are not forwarded", "SPEC of its own"),
    "9000:/run/db.sock": ("unix sockets are not forwarded", "serve db=unix:/run/db.sock"),
    "/run/here.sock:db:80": ("unix sockets are not forwarded", "serve db=unix:/run/db.sock"),
}

SERVICES = {
    "ssh": ServeSpec("ssh", (HERE, 22), is_ssh=True),
    "ssh=2222": ServeSpec("ssh", (HERE, 2222), is_ssh=True),
    "ssh=192.0.2.5:22": ServeSpec("ssh", ("192.0.2.5", 22), is_ssh=True),
    "box=ssh": ServeSpec("box", (HERE, 22), is_ssh=True),
    "box=ssh:2222": ServeSpec("box", (HERE, 2222), is_ssh=True),
    "box=ssh:192.0.2.5:22": ServeSpec("box", ("192.0.2.5", 22), is_ssh=True),
    "8888": ServeSpec("8888", (HERE, 8888)),
    "80=8080": ServeSpec("80", (HERE, 8080)),
    "web=8080": ServeSpec("web", (HERE, 8080)),
    "web=127.0.0.1:8080": ServeSpec("web", (HERE, 8080)),
    "web=localhost:8080": ServeSpec("web", (HERE, 8080)),
    "web=[2001:db8::1]:80": ServeSpec("web", ("2001:db8::1", 80)),
    "db=DB.lan:5432": ServeSpec("db", ("db.lan", 5432)),
    "log=unix:/run/log.sock": ServeSpec("log", "/run/log.sock"),
    "log=unix:/run/a=b c": ServeSpec("log", "/run/a=b c"),
}

BAD_SERVICES = {
    "": ("it says neither port nor address", "web=8080"),
    "jupyter": ("it says neither port nor address", "jupyter=8080"),
    "127.0.0.1:80": ("a service needs a name", "web=127.0.0.1:80"),
    "unix:/run/x": ("a service needs a name", "web=unix:/run/x"),
    "53/udp": ("single TCP ports, unix sockets and ssh", "Examples: ssh"),
    "8000-8010": ("single TCP ports, unix sockets and ssh", "Examples: ssh"),
    "any": ("it does not say what may be reached", "--to 10.0.0.0/24:80,443 --to db.internal:5432"),
    "socks": ("single TCP ports, unix sockets and ssh", "Examples: ssh"),
    "=80": ("the name of a service is missing", "Examples: ssh"),
    "Web=80": ("'Web' is not the name of a service", "Did you mean 'web'?"),
    "192.0.2.1=80": ("an address needs a port", "192.0.2.1:80"),
    "ssh-host-keys/ssh=80": ("is not the name of a service", "Examples: ssh"),
    "web=": ("a port is missing", "Examples: ssh"),
    "web=0": ("port 0 is nobody's service", "Examples: ssh"),
    "web=foo": ("'foo' is not a port", "Examples: ssh"),
    "web=::1:80": ("a target is host:port", "in brackets"),
    "web=127.1:80": ("'127.1' is not an IPv4 address", "Examples: ssh"),
    "db=unix:run/db": ("the path of a unix socket is absolute", "unix:/"),
    "db=unix:": ("the path of a unix socket is absolute", "unix:/"),
    "db=unix:/a\0b": ("the path of a unix socket is absolute", "unix:/"),
    f"db=unix:/{'a' * 107}": ("at most 107 bytes", "Examples: ssh"),
}


@pytest.mark.parametrize(("text", "meant"), FORWARDS.items(), ids=FORWARDS)
def test_a_forward_is_read(text: str, meant: tuple[tuple[str, int], str]) -> None:
    assert parse_forward(text) == ForwardSpec(*meant)


@pytest.mark.parametrize(("text", "told"), NEAR_MISSES.items(), ids=map(repr, NEAR_MISSES))
def test_a_near_miss_of_a_forward_is_told_apart(text: str, told: tuple[str, str]) -> None:
    reason, hint = told
    with pytest.raises(InvalidSpecError) as caught:
        parse_forward(text)
    assert reason in caught.value.reason
    assert hint in caught.value.hint
    assert str(caught.value) == f"cannot read {text!r}: {caught.value.reason}"


@pytest.mark.parametrize(("text", "meant"), SERVICES.items(), ids=SERVICES)
def test_a_service_is_read(text: str, meant: ServeSpec) -> None:
    assert parse_service(text) == meant


@pytest.mark.parametrize(("text", "told"), BAD_SERVICES.items(), ids=map(repr, BAD_SERVICES))
def test_a_near_miss_of_a_service_is_told_apart(text: str, told: tuple[str, str]) -> None:
    reason, hint = told
    with pytest.raises(InvalidSpecError) as caught:
        parse_service(text)
    assert reason in caught.value.reason
    assert hint in caught.value.hint


ports = st.integers(0, 65535)
names = st.from_regex(r"[a-z][a-z0-9._-]{0,20}[a-z]", fullmatch=True) | st.integers(1, 65535).map(str)
hosts = (
    st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(lambda ip: f"[{ip}]")
    | st.from_regex(r"[a-z](?:[a-z0-9-]{0,20}[a-z])?(?:\.[a-z]{2,5})?", fullmatch=True)
)
binds = (
    st.sampled_from(["*", "localhost", HERE]) | st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(lambda ip: f"[{ip}]")
)


@st.composite
def forwards(draw: st.DrawFn) -> str:
    service = draw(names | st.tuples(hosts, st.integers(1, 65535)).map(lambda pair: f"{pair[0]}:{pair[1]}"))
    parts = [draw(binds)] if draw(st.booleans()) else []
    return ":".join((*parts, str(draw(ports)), service))


@given(forwards())
def test_a_printed_forward_reads_as_the_same(text: str) -> None:
    spec = parse_forward(text)
    assert parse_forward(str(spec)) == spec


@given(names, st.integers(1, 65535).map(str) | st.tuples(hosts, st.integers(1, 65535)).map(lambda pair: f"{pair[0]}:{pair[1]}"))
def test_a_printed_service_reads_as_the_same(name: str, target: str) -> None:
    spec = parse_service(f"{name}={target}")
    assert parse_service(str(spec)) == spec


@pytest.mark.parametrize("text", SERVICES, ids=SERVICES)
def test_every_printed_form_of_a_service_reads_as_the_same(text: str) -> None:
    spec = parse_service(text)
    assert parse_service(str(spec)) == spec


@given(st.text(max_size=40), st.sampled_from([parse_forward, parse_service, parse_name, parse_target]))
def test_any_other_text_is_a_typed_error(text: str, parse: Callable[[str], object]) -> None:
    with contextlib.suppress(InvalidSpecError):
        parse(text)


SERVED = (ServeSpec("web", (HERE, 8080)), ServeSpec("db", ("db.lan", 5432)), ServeSpec("log", "/run/log.sock"))


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("web", "web"),
        ("127.0.0.1:8080", "web"),
        ("localhost:8080", "web"),
        ("DB.lan:5432", "db"),
        ("log", "log"),
        ("8080", None),
        ("db.lan:5433", None),
        ("/run/log.sock", None),
        ("unix:/run/log.sock", None),
        ("ssh", None),
        ("", None),
        ("[:", None),
    ],
)
def test_a_peer_finds_a_service_by_name_or_by_address(asked: str, found: str | None) -> None:
    service = find_service(SERVED, asked)
    assert (service.name if service else None) == found


def test_a_name_counts_before_an_address() -> None:
    first, second = ServeSpec("a", ("192.0.2.1", 80)), ServeSpec("192.0.2.1:80", ("192.0.2.2", 80))
    assert find_service((first, second), "192.0.2.1:80") is second


def test_a_host_called_ssh_is_not_the_ssh_server_of_this_machine() -> None:
    assert find_service((ServeSpec("ssh", (HERE, 22), is_ssh=True),), "ssh:22") is None


def test_targets_given_from_python_are_read_like_typed_ones() -> None:
    assert service_for("web", 8080) == parse_service("web=8080")
    assert service_for("log", "unix:/run/log.sock") == parse_service("log=unix:/run/log.sock")
    assert [parse_target(target) for target in (8888, "web", "DB:80")] == ["8888", "web", "db:80"]
