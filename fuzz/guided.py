"""`python -m fuzz.guided TARGET ARGUMENT…`: one target under atheris, which ends the process; the arguments are libFuzzer's."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import Any, Final

atheris: Final[Any] = importlib.import_module("atheris")  # it says nothing of its types
with atheris.instrument_imports(include=["p2ptunnel"]):
    from fuzz.targets import TARGETS


def main() -> None:
    """Fuzz until libFuzzer has enough."""
    name, *arguments = sys.argv[1:]
    target = TARGETS[name]

    def read(data: bytes) -> Any:
        with contextlib.suppress(*target.refusals):
            target.read(data)

    atheris.Setup([sys.argv[0], *arguments], read)
    atheris.Fuzz()


main()
