"""The rules of who may import whom: they hold, and each of them notices when it is broken."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "p2ptunnel"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its rules that a test may spoil."""
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def verdict(directory: Path) -> str:
    """What import-linter says of the package in `directory`, on one line a contract."""
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=directory, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_the_rules_hold(copy: Path) -> None:
    assert "0 broken" in verdict(copy)


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("wire/messages.py", "import time", "The core reaches no clock"),
        ("protocol/mux.py", "import p2ptunnel.trace", "The core reaches no clock"),
        ("errors.py", "import p2ptunnel.types", "A module imports only what stands below it"),
        ("net/udp.py", "import p2ptunnel.session", "A module imports only what stands below it"),
        ("testing/clock.py", "import p2ptunnel.cli.main", "A module imports only what stands below it"),
        ("server/__init__.py", "import p2ptunnel.peer", "A module imports only what stands below it"),
        ("tunnels/spec.py", "import p2ptunnel.ssh", "A module imports only what stands below it"),
        ("ssh/openssh.py", "import p2ptunnel.session", "Tunnels and ssh know streams"),
        ("tunnels/local.py", "import p2ptunnel.net.udp", "Tunnels and ssh know streams"),
    ],
    ids=lambda text: text.replace("/", "."),
)
def test_breaking_a_rule_is_noticed(copy: Path, module: str, line: str, contract: str) -> None:
    with (copy / PACKAGE / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    broken = [row for row in verdict(copy).splitlines() if row.endswith("BROKEN")]
    assert [row for row in broken if row.startswith(contract)]


def test_a_module_that_stands_in_no_layer_is_noticed(copy: Path) -> None:
    (copy / PACKAGE / "utils.py").write_text('"""Anything."""\n', encoding="utf-8")
    assert "p2ptunnel.utils" in verdict(copy)


def test_the_core_loads_nothing_that_does_input_or_output() -> None:
    """Beyond what the rules see: not even what the core's libraries load may bring a loop or a socket."""
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for layer in ("wire", "protocol")
        for path in (ROOT / PACKAGE / layer).glob("[a-z]*.py")
    )
    program = f"import sys, {', '.join(modules)}; print(*sorted({{'asyncio', 'socket', 'ssl', 'random'}} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
