"""What the tests of the broker share: a broker, and messages as peers send them, over UDP with a cookie or over TCP."""

from __future__ import annotations

import random

from p2ptunnel.defaults import COOKIELESS_PAD_BYTES
from p2ptunnel.identity.judge import Judge
from p2ptunnel.protocol.broker import Broker, LineToSend
from p2ptunnel.protocol.cookie import CookieJar
from p2ptunnel.protocol.observer import Observer
from p2ptunnel.protocol.tags import TagBook
from p2ptunnel.types import Address, Candidate, Tag
from p2ptunnel.wire.messages import (
    ConnectRequest,
    ConnectRequestExtra,
    EpochExtra,
    Heartbeat,
    Leave,
    Message,
    PunchAnswer,
    PunchAnswerExtra,
    Register,
    RegisterAnswer,
    RegisterExtra,
    decode,
    encode,
    encode_padded,
)
from tests.unit.protocol.actors import CALLEE, CALLER, only, signer

SECRET = b"a secret of sixteen bytes or more"
JAR = CookieJar(SECRET)


class Words(Judge):
    """Believes signatures that name key, tag and server."""

    def __init__(self, server_key: str = "") -> None:
        super().__init__()
        self.server_key = server_key  # type: ignore[misc]

    def is_signed(self, tag: Tag, extra: RegisterExtra) -> bool:
        return extra.sig == f"{extra.key} signs {tag} at {self.server_key}"

    def is_handed_on(self, tag: Tag, extra: RegisterExtra) -> bool:
        return extra.rekey == f"{extra.old_key} hands {tag} to {extra.key}"


def broker(
    *, compat_seed: bool = False, server_key: str = "", tags: TagBook | None = None, observer: Observer | None = None
) -> Broker:
    """Return a broker that knows nobody."""
    return Broker(SECRET, random.Random(3), Words(server_key), compat_seed=compat_seed, tags=tags, observer=observer)


def register(
    tag: Tag = "bob",
    *,
    key: str = "key",
    ts: int = 1,
    host: str = CALLEE[0],
    now: float = 0.0,
    mid: int = 1,
    cookie: str | None = None,
    server_key: str = "",
) -> bytes:
    """Return a signed t=1 with the cookie of `host`."""
    shown = JAR.make(host, now) if cookie is None else cookie
    extra = RegisterExtra(v=1, key=key, ts=ts, sig=f"{key} signs {tag} at {server_key}", cookie=shown)
    return encode_padded(Register(mid=mid, ltag=tag, extra=extra), COOKIELESS_PAD_BYTES)


def connect(
    wanted: Tag = "bob",
    *,
    host: str = CALLER[0],
    now: float = 0.0,
    mid: int = 4,
    cookie: str | None = None,
    cands: tuple[Candidate, ...] = (),
    ltag: Tag = "alice",
) -> bytes:
    """Return a signed t=4 with the cookie of `host`."""
    shown = JAR.make(host, now) if cookie is None else cookie
    extra = ConnectRequestExtra(rtag=wanted, v=1, cookie=shown, intent=signer().sign(cands), cands=cands)
    return encode_padded(ConnectRequest(mid=mid, ltag=ltag, extra=extra), COOKIELESS_PAD_BYTES)


def heartbeat(epoch: int, *, tag: Tag = "bob", mid: int = 2) -> bytes:
    """Return a t=2."""
    return encode_padded(Heartbeat(mid=mid, ltag=tag, extra=EpochExtra(epoch=epoch)), COOKIELESS_PAD_BYTES)


def leave(epoch: int, *, tag: Tag = "bob", mid: int = 3) -> bytes:
    """Return a t=3."""
    return encode_padded(Leave(mid=mid, ltag=tag, extra=EpochExtra(epoch=epoch)), COOKIELESS_PAD_BYTES)


def yes(mid: int, token: str, *, cands: tuple[Candidate, ...] = ()) -> bytes:
    """Return a -10 that says yes."""
    extra = PunchAnswerExtra(port=1234, v=1, cands=cands)
    return encode(PunchAnswer(mid=mid, token=token, code=200, em="", extra=extra))


def with_bob(*, now: float = 0.0, at: Address = CALLEE, compat_seed: bool = False) -> tuple[Broker, int]:
    """Return a broker at which bob is registered, and his epoch; nothing waits in it."""
    server = broker(compat_seed=compat_seed)
    server.receive_datagram(register(host=at[0], now=now), at, now)
    answer = only(RegisterAnswer, server.datagrams_to_send())
    server.events()
    assert answer.extra is not None
    return server, answer.extra.epoch


def lines(server: Broker, connection: int) -> list[Message]:
    """Return what waits for a TCP connection."""
    written = [event for event in server.events() if isinstance(event, LineToSend)]
    return [decode(line.line) for line in written if line.connection == connection]
