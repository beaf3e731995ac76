"""Cookies: good for one host and one to two epochs, and nobody else can make one."""

from __future__ import annotations

import pytest

from p2ptunnel.defaults import COOKIE_EPOCH
from p2ptunnel.protocol.cookie import CookieJar

JAR = CookieJar(b"a secret of sixteen bytes or more")
HOST = "192.0.2.1"


def test_a_cookie_is_22_characters_of_base64url() -> None:
    cookie = JAR.make(HOST, 0.0)
    assert len(cookie) == 22
    assert set(cookie) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize(
    ("made", "shown", "good"),
    [
        (0.0, 0.0, True),
        (0.0, COOKIE_EPOCH - 0.001, True),
        (0.0, COOKIE_EPOCH, True),
        (0.0, 2 * COOKIE_EPOCH - 0.001, True),
        (0.0, 2 * COOKIE_EPOCH, False),
        (COOKIE_EPOCH - 0.001, 2 * COOKIE_EPOCH, False),
        (COOKIE_EPOCH, COOKIE_EPOCH - 0.001, False),  # from the future: another server's clock, or a guess
    ],
)
def test_a_cookie_is_good_in_its_epoch_and_the_next(made: float, shown: float, good: bool) -> None:
    assert JAR.is_valid(JAR.make(HOST, made), HOST, shown) is good


@pytest.mark.parametrize("host", ["192.0.2.2", "192.0.2.10", "", "2001:db8::1"])
def test_a_cookie_is_no_good_for_another_host(host: str) -> None:
    assert not JAR.is_valid(JAR.make(HOST, 0.0), host, 0.0)


@pytest.mark.parametrize("damaged", ["", "x", "A" * 22, "é" * 22, "\x00" * 22, "A" * 512])
def test_what_was_not_made_is_not_good(damaged: str) -> None:
    assert not JAR.is_valid(damaged, HOST, 0.0)


def test_another_secret_makes_other_cookies() -> None:
    assert not CookieJar(b"another secret of sixteen bytes").is_valid(JAR.make(HOST, 0.0), HOST, 0.0)


def test_servers_that_share_a_secret_share_cookies() -> None:
    assert CookieJar(b"a secret of sixteen bytes or more").is_valid(JAR.make(HOST, 5.0), HOST, 6.0)


def test_a_cookie_never_tells_the_secret() -> None:
    assert "secret" not in repr(JAR)
