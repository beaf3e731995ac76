"""Takes each defence away in a copy of the tree and sees its test fail: `make mutations`.

What attacks there are, what stands against them and how to take it away is in tests/security/attacks.toml; what failed when it
was done is noted in tests/security/mutations.json, and docs/security/attacks.md is written from both.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Final, TypeAlias

import msgspec

__all__ = ["ATTACKS", "RECORD", "Mutation", "Row", "failed_in", "load_record", "load_rows", "outdated", "page"]

ROOT: Final = Path(__file__).resolve().parent.parent
ATTACKS: Final = ROOT / "tests" / "security" / "attacks.toml"
RECORD: Final = ROOT / "tests" / "security" / "mutations.json"
PAGE: Final = ROOT / "docs" / "security" / "attacks.md"
_PARTS: Final = ("p2ptunnel", "tests", "scripts", "fuzz", "docs", "pyproject.toml", "README.md", "CHANGELOG.md", "mkdocs.yml")
_FAILED: Final = re.compile(r"^(?:FAILED|ERROR) (\S+?::\S+?)(?:\[.*)?(?: - .*)?$", re.MULTILINE)
_TIMEOUT: Final = 30  # seconds a test, where it says no other; a defence taken away often makes one wait for ever
_COPIES: Final = 2  # in each of which one defence is missing at a time
_ENOUGH: Final = 5  # tests that fail: then no more are run
_HUNG: Final = 300  # seconds of all of them
_BEGIN, _END = "<!-- attacks: written by scripts/mutate_defences.py -->", "<!-- end -->"


class Mutation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One defence taken away: in `file`, the one place that reads `find` becomes `replace`.

    Attributes:
        removed: What that is, in words.
        tests: What is run; empty: the row's tests.
    """

    removed: str
    file: str
    find: str
    replace: str
    tests: tuple[str, ...] = ()


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One attack.

    Attributes:
        tests: Node ids, without parameters.
        later: What of it waits for a part that is not there yet.
    """

    attack: str
    defence: str
    tests: tuple[str, ...] = ()
    later: str = ""
    mutations: tuple[Mutation, ...] = ()


def load_rows() -> dict[str, Row]:
    """Return the attacks by their numbers.

    Raises:
        msgspec.ValidationError: The file is not as it should be.
    """
    return msgspec.convert(tomllib.loads(ATTACKS.read_text(encoding="utf-8")), dict[str, Row])


def load_record() -> dict[str, list[str]]:
    """Return which tests failed at each mutation, by `T1: what was removed`."""
    record: dict[str, list[str]] = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    return record


# --- the page -------------------------------------------------------------------------------------------------------------


def page() -> str:
    """Return the part of docs/security/attacks.md that is made."""
    record = load_record()
    lines = ["| # | attack | defence | tests | taken away, and what failed |", "| --- | --- | --- | --- | --- |"]
    for name, row in load_rows().items():
        tests = "<br>".join(f"`{test.removeprefix('tests/')}`" for test in row.tests)
        later = f"{'<br>' if tests else ''}*{row.later}*" if row.later else ""
        taken = "<br>".join(_taken(mutation, record.get(f"{name}: {mutation.removed}", [])) for mutation in row.mutations)
        lines.append(f"| {name} | {row.attack} | {row.defence} | {tests}{later} | {taken} |")
    return "\n".join(lines)


def _taken(mutation: Mutation, failed: list[str]) -> str:
    names = ", ".join(f"`{test.rpartition('::')[2]}`" for test in failed) or "not run yet"
    return f"{mutation.removed}: {names}"


def outdated() -> bool:
    """Tell whether the page says something else than the tables."""
    return page() not in PAGE.read_text(encoding="utf-8")


def _write_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    PAGE.write_text(f"{before}{_BEGIN}\n\n{page()}\n\n{_END}{after}", encoding="utf-8")


# --- taking away ------------------------------------------------------------------------------------------------------------

_Wanted: TypeAlias = tuple[str, Mutation, tuple[str, ...]]
"""A row, one of its mutations, and what is run."""


def _run(wanted: set[str]) -> int:
    """Do the mutations of these rows; return how many went unnoticed."""
    found: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(_COPIES) as workers:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(_COPIES):
            copies.put(_copy_tree(Path(directory, str(number))))
        broken = _broken(Path(directory, "0"), wanted)
        for name, failed, took in workers.map(partial(_take_away, copies), _wanted(wanted)):
            found[name] = [test for test in failed if test not in broken]
            print(f"{name} ({took:.0f} s): {', '.join(found[name]) or 'NOTHING FAILED'}", flush=True)
    _write_record(load_record() | found)  # read now: somebody may have run other rows meanwhile
    return sum(not failed for failed in found.values())


def _take_away(copies: SimpleQueue[Path], what: _Wanted) -> tuple[str, list[str], float]:
    """Do one mutation in a copy that nobody else is using; return its name, which tests failed, and how long that took."""
    (name, mutation, tests), copy, began = what, copies.get(), time.monotonic()
    try:
        failed = _failing(copy, mutation, tests)
    finally:
        copies.put(copy)
    return f"{name}: {mutation.removed}", failed, time.monotonic() - began


def _write_record(record: dict[str, list[str]]) -> None:
    known = {f"{name}: {mutation.removed}" for name, mutation, _ in _wanted(set())}
    kept = {key: record[key] for key in sorted(record) if key in known}
    RECORD.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _wanted(rows: set[str]) -> Iterator[_Wanted]:
    for name, row in load_rows().items():
        for mutation in row.mutations:
            if not rows or name in rows:
                yield name, mutation, mutation.tests or row.tests


def _copy_tree(target: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__")
    for part in _PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, target / part, ignore=ignored)
        else:
            shutil.copy(source, target / part)
    return target


def _broken(copy: Path, wanted: set[str]) -> set[str]:
    """Return which tests fail with every defence in its place: that they fail says nothing."""
    tests = dict.fromkeys(test for _, _, tests in _wanted(wanted) for test in tests)
    broken = _failed(copy, tuple(tests), enough=0)
    if broken:
        print(f"fails with every defence in its place, and counts for nothing: {', '.join(broken)}", flush=True)
    return set(broken)


def _failing(copy: Path, mutation: Mutation, tests: tuple[str, ...]) -> list[str]:
    """Return which tests fail without the defence; the copy is as before afterwards.

    Raises:
        SystemExit: The place is not there, or is there twice.
    """
    path = copy / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.find) != 1:
        raise SystemExit(f"{mutation.file} has {text.count(mutation.find)} times:\n{mutation.find}")
    path.write_text(text.replace(mutation.find, mutation.replace), encoding="utf-8")
    try:
        return _failed(copy, tests)
    finally:
        path.write_text(text, encoding="utf-8")


def _failed(copy: Path, tests: tuple[str, ...], *, enough: int = _ENOUGH) -> list[str]:
    """Run the tests and return which fail, at most `enough` unless that is 0; that they hang is a failure as well."""
    options = ("-q", "--tb=no", "-p", "no:cacheprovider", f"--timeout={_TIMEOUT}", f"--maxfail={enough}")
    command = [sys.executable, "-m", "pytest", *options, *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(  # noqa: S603 - our own tests, as the table names them
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=_HUNG if enough else None, check=False
        )
    except subprocess.TimeoutExpired:
        return [tests[0]]
    return failed_in(done.stdout)


def failed_in(output: str) -> list[str]:
    """Return which tests failed by what pytest says, without parameters; a module that cannot be imported is no test."""
    return sorted(set(_FAILED.findall(output)))


def main() -> int:
    """Do the mutations of the rows that are named, or of all; 1 if one went unnoticed."""
    parser = argparse.ArgumentParser(prog="python -m scripts.mutate_defences", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="T1 to T39; none: all")
    parser.add_argument("--page", action="store_true", help="write the page only")
    arguments = parser.parse_args()
    unnoticed = 0 if arguments.page else _run(set(arguments.rows))
    _write_page()
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
