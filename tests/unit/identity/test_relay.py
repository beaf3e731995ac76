"""Who joins a relay: what is signed, and that nothing else is taken for it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from p2ptunnel.errors import InvalidKeyError
from p2ptunnel.identity.judge import Judge, relay_payload, to_base64
from p2ptunnel.identity.keys import Identity, Purpose, signed_bytes
from p2ptunnel.identity.relay import relay_extra
from p2ptunnel.types import Role

ALICE, SERVER = (Identity.from_seed(bytes([number]) * 32) for number in (1, 9))
TOKEN = "8f14e45fceea167a5a36dedd4bea2543"


@pytest.mark.parametrize(("role", "byte"), [("caller", b"\x01"), ("callee", b"\x02")])
@pytest.mark.parametrize(("server_key", "signed"), [("", bytes(32)), (str(SERVER.public), SERVER.public.raw)])
def test_what_is_signed_has_fixed_places(role: str, byte: bytes, server_key: str, signed: bytes) -> None:
    payload = relay_payload(server_key, TOKEN, role, ALICE.public)
    assert payload == b"p2pt-relay-1\0" + signed + TOKEN.encode() + bytes(32) + byte + ALICE.public.raw
    assert len(payload) == len(b"p2pt-relay-1\0") + 32 + 64 + 1 + 32


@pytest.mark.parametrize("role", ["caller", "callee"])
@pytest.mark.parametrize("server", [None, SERVER])
def test_a_judge_takes_what_is_signed_for_its_server(role: Role, server: Identity | None) -> None:
    judge = Judge(server)
    extra = relay_extra(ALICE, TOKEN, role, server_key=judge.server_key)
    assert (extra.token, extra.role, extra.key) == (TOKEN, role, str(ALICE.public))
    assert judge.is_end(extra)
    assert not Judge(Identity.from_seed(bytes(32))).is_end(extra)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("token", TOKEN.replace("8", "9")),
        ("token", "ü" * 16),
        ("role", "callee"),
        ("role", "both"),
        ("role", ""),
        ("key", str(SERVER.public)),
        ("key", ""),
        ("key", "p2p:junk"),
        ("sig", ""),
        ("sig", "A" * 86),
        ("sig", "not base64!"),
    ],
)
def test_another_field_than_was_signed_is_refused(field: str, value: str) -> None:
    extra = relay_extra(ALICE, TOKEN, "caller")
    assert not Judge().is_end(replace(extra, **{field: value}))


def test_another_purpose_is_refused() -> None:
    payload = relay_payload("", TOKEN, "caller", ALICE.public)

    foreign = signed_bytes(Purpose.REGISTRATION, payload.partition(b"\0")[2])
    extra = replace(relay_extra(ALICE, TOKEN, "caller"), sig=to_base64(ALICE.sign(foreign)))
    assert not Judge().is_end(extra)


def test_a_token_that_no_server_of_ours_gives_is_not_signed() -> None:
    for token in ("x" * 65, "ü"):
        with pytest.raises(ValueError, match=r"token|ascii"):
            relay_extra(ALICE, token, "caller")
    with pytest.raises(InvalidKeyError):
        relay_extra(ALICE, TOKEN, "caller", server_key="p2p:junk")


def test_nothing_secret_is_shown() -> None:
    extra = relay_extra(ALICE, TOKEN, "caller")
    assert TOKEN not in repr(extra)
    assert extra.sig not in repr(extra)
