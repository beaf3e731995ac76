"""The plugin for pytest: skips with a reason, fails where a laboratory is required, and costs nothing until it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from p2ptunnel.testing.natlab import capability

ROOT = Path(__file__).parents[3]
TESTS = """
import pytest

def test_with_the_fixture(natlab):
    assert natlab.sites == []

@pytest.mark.natlab
def test_with_the_marker():
    pass

def test_with_neither():
    pass
"""


def run_pytest(directory: Path, *arguments: str, path: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tests above, by default where no program is found."""
    (directory / "test_it.py").write_text(TESTS)
    clean = {"PATH": path, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment}
    plugins = ["-p", "p2ptunnel.testing.natlab.plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "--strict-markers", "-rsf", *plugins, *arguments]
    return subprocess.run(command, cwd=directory, env=clean, capture_output=True, text=True, check=False, timeout=15)


def test_it_skips_with_the_reason(tmp_path: Path) -> None:
    result = run_pytest(tmp_path)
    assert "1 passed, 2 skipped" in result.stdout
    assert "no laboratory: the program nft is not on the PATH (package nftables)" in result.stdout


def test_it_fails_where_a_laboratory_is_required(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, P2PTUNNEL_REQUIRE_NATLAB="1")
    assert "1 passed, 2 errors" in result.stdout
    assert "P2PTUNNEL_REQUIRE_NATLAB=1, but the program nft is not on the PATH" in result.stdout


def test_the_fixture_brings_the_marker_with_it(tmp_path: Path) -> None:
    result = run_pytest(tmp_path, "-m", "natlab")
    assert "2 skipped, 1 deselected" in result.stdout


def test_the_plugin_imports_nothing_of_the_laboratory() -> None:
    code = "import sys; before = set(sys.modules); import p2ptunnel.testing.natlab.plugin; print(*set(sys.modules) - before)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"import pytest; {code}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert {name for name in result.stdout.split() if name.startswith("p2ptunnel.testing")} == {
        "p2ptunnel.testing",
        "p2ptunnel.testing.natlab",
        "p2ptunnel.testing.natlab.plugin",
    }


@pytest.mark.parametrize(("missing", "package"), [("nft", "nftables"), ("setpriv", "util-linux")])
def test_a_missing_program_is_named(missing: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability.shutil, "which", lambda program: None if program == missing else f"/usr/sbin/{program}")
    reason = capability.capable.__wrapped__()
    assert reason == f"the program {missing} is not on the PATH (package {package})"


def test_another_system_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capability.sys, "platform", "darwin")
    assert capability.capable.__wrapped__() == "network namespaces exist on Linux only, this is darwin"
