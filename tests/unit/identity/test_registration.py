"""The signed body of t=1: what it covers, what it is good for, and what no signature is."""

from __future__ import annotations

import base64
import itertools

import msgspec
import pytest

from p2ptunnel.defaults import WIRE_VERSION
from p2ptunnel.identity.judge import Judge
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.registration import KeyCredentials
from p2ptunnel.wire.intent import COUNTER_END
from p2ptunnel.wire.messages import RegisterExtra

ALICE, MALLORY, SERVER = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3))
COOKIE = base64.urlsafe_b64encode(bytes(range(16))).rstrip(b"=").decode()
OTHER_COOKIE = base64.urlsafe_b64encode(bytes(16)).rstrip(b"=").decode()
LATE = 2**61


def signed(*, server_key: str = "", at_least_ts: int = 0) -> RegisterExtra:
    return KeyCredentials(ALICE, "alice").register_extra(cookie=COOKIE, server_key=server_key, at_least_ts=at_least_ts)


@pytest.mark.parametrize("server_key", ["", str(SERVER.public)], ids=["server without a key", "server with a key"])
def test_a_body_holds_for_its_tag_key_and_server(server_key: str) -> None:
    extra = signed(server_key=server_key)
    assert (extra.v, extra.key, extra.cookie) == (WIRE_VERSION, str(ALICE.public), COOKIE)
    assert Judge(SERVER if server_key else None).is_signed("alice", extra)


def test_without_a_cookie_it_is_not_signed() -> None:
    extra = KeyCredentials(ALICE, "alice").register_extra(cookie="", server_key="", at_least_ts=0)
    assert extra == RegisterExtra(v=WIRE_VERSION, key=str(ALICE.public))
    assert not Judge().is_signed("alice", extra)


@pytest.mark.parametrize("cookie", ["x", COOKIE + "AA", "äöü", "!" * 22, COOKIE[:-1]])
def test_what_is_no_cookie_is_not_signed(cookie: str) -> None:
    extra = KeyCredentials(ALICE, "alice").register_extra(cookie=cookie, server_key="", at_least_ts=0)
    assert extra.sig == ""


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("key", str(MALLORY.public)),
        ("ts", 1),
        ("nonce", base64.urlsafe_b64encode(bytes(16)).decode()),
        ("cookie", OTHER_COOKIE),
        ("cookie", ""),
        ("sig", base64.urlsafe_b64encode(bytes(64)).decode()),
    ],
)
def test_a_changed_member_breaks_it(member: str, value: object) -> None:
    extra = signed()
    assert Judge().is_signed("alice", extra)
    assert not Judge().is_signed("alice", msgspec.structs.replace(extra, **{member: value}))


def test_it_is_good_for_no_other_tag() -> None:
    assert not Judge().is_signed("bob", signed())


def test_it_is_good_for_no_other_server() -> None:
    """Else a malicious server could have a cookie of another one signed, and take the tag there."""
    assert not Judge(SERVER).is_signed("alice", signed())
    assert not Judge().is_signed("alice", signed(server_key=str(SERVER.public)))
    assert not Judge(MALLORY).is_signed("alice", signed(server_key=str(SERVER.public)))


@pytest.mark.parametrize("member", ["key", "nonce", "sig", "cookie"])
@pytest.mark.parametrize("junk", ["", "x", "äöü", "\ud800", "=" * 22, "A" * 512, "p2p:" + "a" * 52])
def test_malformed_members_are_no_signature_and_no_error(member: str, junk: str) -> None:
    assert not Judge().is_signed("alice", msgspec.structs.replace(signed(), **{member: junk}))


def test_each_body_is_newer_than_the_one_before() -> None:
    credentials = KeyCredentials(ALICE, "alice")
    bodies = [credentials.register_extra(cookie=COOKIE, server_key="", at_least_ts=0) for _ in range(5)]
    assert all(later.ts > earlier.ts for earlier, later in itertools.pairwise(bodies))
    assert len({body.nonce for body in bodies}) == 5


def test_it_is_newer_than_what_the_server_has_seen_and_the_next_one_is_not_for_that() -> None:
    """H5: anybody on the way may have said what the server has seen."""
    credentials = KeyCredentials(ALICE, "alice")
    before = credentials.register_extra(cookie=COOKIE, server_key="", at_least_ts=0).ts
    assert credentials.register_extra(cookie=COOKIE, server_key="", at_least_ts=LATE).ts == LATE + 1
    assert before < credentials.register_extra(cookie=COOKIE, server_key="", at_least_ts=0).ts < LATE


def test_a_counter_at_its_end_is_not_signed() -> None:
    credentials = KeyCredentials(ALICE, "alice")
    assert credentials.register_extra(cookie=COOKIE, server_key="", at_least_ts=COUNTER_END - 2).ts == COUNTER_END - 1
    with pytest.raises(ValueError, match="at its end"):
        credentials.register_extra(cookie=COOKIE, server_key="", at_least_ts=COUNTER_END - 1)


def test_a_clock_that_runs_backwards_makes_it_no_older(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = KeyCredentials(ALICE, "alice")
    before = credentials.register_extra(cookie=COOKIE, server_key="", at_least_ts=0).ts
    monkeypatch.setattr("time.time_ns", lambda: 0)  # a board that wakes in 1970
    assert credentials.register_extra(cookie=COOKIE, server_key="", at_least_ts=0).ts == before + 1
    assert KeyCredentials(ALICE, "alice").register_extra(cookie=COOKIE, server_key="", at_least_ts=0).ts == 1


def test_credentials_show_no_secret() -> None:
    secret = ALICE.private_key.private_bytes_raw()
    shown = repr(KeyCredentials(ALICE, "alice")) + repr(vars(KeyCredentials(ALICE, "alice")))
    assert secret.hex() not in shown
    assert str(secret) not in shown
