"""Real peers, a real server and the kernel's NATs: who reaches whom, and over what."""

from __future__ import annotations

import pytest

from p2ptunnel.protocol import callee, caller
from p2ptunnel.testing.natlab.kinds import PUNCHABLE
from p2ptunnel.testing.natlab.matrix import run_matrix
from p2ptunnel.traversal import port

AT_ONCE = 1.0  # seconds, without delay on the lines; measured are 0.04 to 0.09


@pytest.mark.natlab
@pytest.mark.parametrize("delay", [0.0, 0.025])
def test_every_pair_of_the_kinds_that_keep_one_port_gets_a_direct_tcp_stream(delay: float) -> None:
    cells = run_matrix(PUNCHABLE, attempts=1, delay=delay)
    assert len(cells) == len(PUNCHABLE) ** 2
    failed = [
        (cell.caller, cell.callee, attempt.error or attempt.path)
        for cell in cells
        if not cell.direct
        for attempt in cell.attempts
    ]
    assert failed == []


@pytest.mark.natlab
def test_nobody_is_told_a_path_where_both_nats_choose_a_port_at_random() -> None:
    """Nothing of this version can open these; what a person gets is each try by name, not a wait for ever."""
    [cell] = run_matrix(("symR",), attempts=1, delay=0.0)
    assert cell.direct == 0
    [attempt] = cell.attempts
    assert attempt.error.startswith("NoPathError: no path to callee-symr: ")
    assert attempt.seconds < 12


@pytest.mark.natlab
def test_without_the_syn_that_dies_on_the_way_nats_that_refuse_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two routers that answer a stranger's SYN, with no delay between them: what the low TTL is there for.

    The first plain SYN to arrive finds a NAT with no session for it, and is refused or remembered; the answer ends the other
    side's session as well.  With the low TTL each pair meets at once (above), without it none of the four did, in ten seconds.
    """
    monkeypatch.setattr(port, "can_open_low", _never)
    for agents in (caller, callee):
        monkeypatch.setattr(agents, "PUNCH_TIMEOUT", 2.0)
    cells = run_matrix(("prR", "prO"), attempts=1, delay=0.0)
    assert [cell for cell in cells if not cell.direct or cell.median > AT_ONCE] != []


def _never() -> bool:
    return False
