"""What can be listened on, and what is said of the rest."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from p2ptunnel.errors import AddressInUseError, BindError, ConfigError
from p2ptunnel.tunnels.listener import listen_on


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")


@pytest.mark.parametrize(
    ("host", "bound"),
    [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), pytest.param("::1", "::1", marks=needs_ipv6)],
)
def test_a_free_port_is_picked_on_loopback(host: str, bound: str) -> None:
    with contextlib.closing(listen_on((host, 0))) as listener:
        assert listener.getsockname()[0] == bound
        assert listener.getsockname()[1] > 0
        assert not listener.getblocking()
        with socket.create_connection(listener.getsockname()[:2]):
            pass


@needs_ipv6
def test_every_interface_takes_both_families() -> None:
    with contextlib.closing(listen_on(("*", 0))) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, port)):
                pass


@needs_ipv6
def test_a_written_out_ipv6_wildcard_is_ipv6_only() -> None:
    with contextlib.closing(listen_on(("::", 0))) as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]))


@pytest.mark.parametrize("host", ["db", "", "nas.example", "127.1", "a\x1b[31mb"])
def test_nothing_is_looked_up(host: str) -> None:
    with pytest.raises(ConfigError, match="is not an address to listen on") as caught:
        listen_on((host, 0))
    assert caught.value.hint == "Numeric, localhost, or * for every interface."
    assert str(caught.value).isprintable()


def test_a_taken_port_is_an_error_of_its_own() -> None:
    with contextlib.closing(listen_on(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(AddressInUseError) as caught:
            listen_on(("127.0.0.1", port))
    assert str(caught.value) == f"127.0.0.1:{port} is taken by another program"
    assert caught.value.hint == "Port 0 picks a free one."


def test_an_address_of_another_machine_is_told_in_words() -> None:
    with pytest.raises(BindError) as caught:
        listen_on(("192.0.2.1", 0))
    assert str(caught.value) == "cannot listen on 192.0.2.1:0: it is not an address of this machine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may listen on every port")
def test_a_privileged_port_is_told_in_words() -> None:
    with pytest.raises(BindError) as caught:
        listen_on(("127.0.0.1", 1))
    assert caught.value.reason == "ports below 1024 need more rights"
