"""Says how many tests passed in all the runs of `make check`: reads the JUnit files that pytest has written."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

__all__ = ["main"]


def outcomes(report: Path) -> Counter[str]:
    """Return how many tests of one run passed, were skipped, and so on."""
    return Counter(map(_outcome, ElementTree.parse(report).iter("testcase")))  # noqa: S314 - pytest's own, of a minute ago


def _outcome(case: ElementTree.Element) -> str:
    for child in case:
        if child.tag == "skipped":
            return "xfailed" if child.get("type") == "pytest.xfail" else "skipped"
        if child.tag in {"failure", "error"}:
            return "failed"
    return "passed"


def in_words(counts: Counter[str]) -> str:
    """Return counts as pytest writes them."""
    order = ("failed", "passed", "skipped", "xfailed")
    return ", ".join(f"{counts[outcome]} {outcome}" for outcome in order if counts[outcome]) or "no tests"


def main(directory: Path) -> None:
    """Print a line for each run in the directory, and their sum."""
    runs = {report.stem: outcomes(report) for report in sorted(directory.glob("*.xml"))}
    for name, counts in runs.items():
        print(f"{name}: {in_words(counts)}")
    print(f"in {len(runs)} runs: {in_words(sum(runs.values(), Counter()))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
