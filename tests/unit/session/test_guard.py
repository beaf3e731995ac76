"""What a peer may open, and for how long: by the list of the moment, and by the last one where it cannot be read."""

from __future__ import annotations

import pytest

from p2ptunnel.errors import RemoteProtocolError, StoreError
from p2ptunnel.identity.acl import AccessList
from p2ptunnel.identity.keys import PublicKey
from p2ptunnel.session import guard as guard_module
from p2ptunnel.session.guard import Guard
from p2ptunnel.trace import TraceEvent, Tracer
from p2ptunnel.wire.frames import ResetCode
from tests.helpers.peers import CALLEE, CALLER

NOT_YOURS = (ResetCode.NOT_YOURS, "")


class Grants(AccessList):
    """A list that admits the caller to `web`, may be unreadable, and lets in as many questions as a test says."""

    def __init__(self, questions: int = 100) -> None:
        super().__init__()
        self.allow(CALLER.public, "web")
        self.error: StoreError | None = None
        self._questions = questions

    def may_ask(self, key: PublicKey) -> bool:
        self._questions -= 1
        return self._questions >= 0

    def granted(self, key: PublicKey) -> tuple[str, ...]:
        if self.error is not None:
            raise self.error
        return super().granted(key)


def guard_by(access: Grants | None, events: list[TraceEvent] | None = None, key: PublicKey = CALLER.public) -> Guard:
    return Guard(access, "laptop", key, Tracer([].append if events is None else events.append))


def test_what_is_granted_may_be_opened_and_nothing_else() -> None:
    guard = guard_by(Grants())
    assert guard.refusal("web", 0.0) is None
    assert guard.refusal("ssh", 0.0) == NOT_YOURS
    assert guard_by(Grants(), key=CALLEE.public).refusal("web", 0.0) == NOT_YOURS


def test_where_there_is_no_list_nothing_may_be_opened_and_who_is_there_may_stay() -> None:
    guard = guard_by(None)
    guard.show(b"a ticket")
    assert not guard.has_access
    assert guard.refusal("web", 0.0) == NOT_YOURS
    assert guard.judge(()) == (True, [])


def test_a_list_that_cannot_be_read_lets_nobody_in() -> None:
    access, events = Grants(), list[TraceEvent]()
    guard = guard_by(access, events)
    access.error = StoreError("peers.toml", "no such file")
    assert guard.refusal("web", 0.0) == NOT_YOURS
    assert [event.name for event in events] == ["access_unreadable"]


def test_who_asks_too_fast_is_told_so_and_who_goes_on_breaks_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "OPENS_BURST", 1)
    guard = guard_by(Grants(questions=1))
    assert guard.refusal("web", 0.0) is None
    refusals = {guard.refusal("web", 0.0) for _ in range(10)}
    assert refusals == {(ResetCode.BUSY, "streams are opened too fast")}
    with pytest.raises(RemoteProtocolError, match="laptop broke the protocol: it asks for one stream after the other"):
        guard.refusal("web", 0.0)


def test_who_is_not_on_the_list_any_more_is_not_admitted() -> None:
    access = Grants()
    guard = guard_by(access)
    assert guard.judge(()) == (True, [])
    access.revoke(CALLER.public)
    assert guard.judge(()) == (False, [])


def test_a_peer_that_we_called_may_stay_while_it_is_pinned_or_nobody_can_tell() -> None:
    def unreadable() -> bool:
        raise StoreError("peers.toml", "no such file")

    events = list[TraceEvent]()
    guard = guard_by(None, events)
    assert guard.knows_peer()
    guard.is_pinned = lambda: False
    assert not guard.knows_peer()
    guard.is_pinned = unreadable
    assert guard.knows_peer()
    assert [event.name for event in events] == ["access_unreadable"]
