"""Real peers, a real server and the kernel's NATs: who reaches whom, and over what."""

import pytest

from p2ptunnel.testing.natlab.matrix import DEFAULT_KINDS, run_matrix


@pytest.mark.natlab
@pytest.mark.parametrize("delay", [0.0, 0.025])
def test_every_pair_of_the_kinds_that_keep_one_port_gets_a_direct_tcp_stream(delay: float) -> None:
    cells = run_matrix(DEFAULT_KINDS, attempts=1, delay=delay)
    assert len(cells) == len(DEFAULT_KINDS) ** 2
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
