"""The table of attacks is true: every row is there, every test exists, every defence is as it was when it was taken away."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from scripts.mutate_defences import failed_in, load_record, load_rows, outdated

ROOT = Path(__file__).parents[2]
ROWS = load_rows()
MUTATIONS = [(name, mutation) for name, row in ROWS.items() for mutation in row.mutations]


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def exists(node: str) -> bool:
    name, _, test = node.partition("::")
    path = ROOT / name
    return path.is_file() and (not test or test in names_in(path))


def test_every_attack_has_a_row() -> None:
    assert list(ROWS) == [f"T{number}" for number in (*range(1, 42), 50, 53)]


@pytest.mark.parametrize("name", ROWS)
def test_a_row_has_tests_that_exist_or_says_what_it_waits_for(name: str) -> None:
    row = ROWS[name]
    assert row.tests or row.later
    assert [node for node in row.tests if not exists(node)] == []
    assert len(set(row.tests)) == len(row.tests)


def test_of_every_row_a_defence_has_been_taken_away() -> None:
    assert [name for name, row in ROWS.items() if not row.mutations] == []


@pytest.mark.parametrize(("name", "mutation"), MUTATIONS, ids=lambda value: value if isinstance(value, str) else value.removed)
def test_a_defence_reads_as_it_did_when_it_was_taken_away_and_tests_failed(name: str, mutation) -> None:
    assert (ROOT / mutation.file).read_text(encoding="utf-8").count(mutation.find) == 1
    assert [node for node in mutation.tests if not exists(node)] == []
    failed = load_record()[f"{name}: {mutation.removed}"]
    assert failed != []
    assert [node for node in failed if not exists(node)] == []


def test_nothing_is_noted_of_what_is_no_defence_any_more() -> None:
    assert load_record().keys() == {f"{name}: {mutation.removed}" for name, mutation in MUTATIONS}


def test_the_page_says_what_the_table_says() -> None:
    assert not outdated(), "python -m scripts.mutate_defences --page"


def test_a_test_that_does_not_exist_would_be_noticed() -> None:
    assert not exists("tests/security/test_attacks.py::test_that_nobody_wrote")
    assert not exists("tests/security/test_nowhere.py")
    assert exists("tests/security/test_attacks.py::test_every_attack_has_a_row")


def test_a_defence_without_which_nothing_can_be_imported_has_failed_no_test() -> None:
    output = """
FAILED tests/unit/test_x.py::test_b[one-two] - assert False
FAILED tests/unit/test_x.py::test_b[three]
ERROR tests/unit/test_x.py::test_a - OSError: gone
ERROR tests/unit/test_y.py - SyntaxError: invalid syntax
1 passed
"""
    assert failed_in(output) == ["tests/unit/test_x.py::test_a", "tests/unit/test_x.py::test_b"]
