"""Makes inputs by damaging true ones, and keeps those that a reader had something new to say of."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from pathlib import Path
from typing import Final

from fuzz.targets import Target

__all__ = ["Escaped", "Run", "corpus_of", "damaged"]

CORPUS: Final = Path(__file__).resolve().parent.parent / "tests" / "security" / "corpus"

_SPLINTERS: Final = (
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u", b"\\ud800", b"\xff", b"\xed\xa0\x80", b"\x00", b"\n", b"\x1b"),
    *(b"null", b"true", b"NaN", b"1e400", b"-0", b"31.0", b"9" * 400, b'"t":', b'"extra":{', b"[" * 200, b'\\"' * 200),
    *(
        b"\xff\xff\xff\xff",
        bytes(8),
        b"\x7f" * 4,
        b"%s",
        b"../",
        "\u202e".encode(),
        "\uff11\uff12\uff17".encode(),
        b"::ffff:",
        b"-1",
        b"65536",
    ),
)
_QUOTED: Final = re.compile(r"['\"`\d].*", re.DOTALL)
"""Where an error's text begins to speak of its input; what stands before says which refusal it was."""
_KEPT_MAX: Final = 512


class Escaped(Exception):  # noqa: N818 - it is a finding, and no error of ours
    """A reader raised what it may not.

    Attributes:
        data: The input.
    """

    def __init__(self, target: str, data: bytes) -> None:
        super().__init__(f"{target}: {data!r}")
        self.data = data


def corpus_of(target: str) -> list[bytes]:
    """Return the inputs that earlier runs kept for a target."""
    return [path.read_bytes() for path in sorted((CORPUS / target).glob("*"))]


def damaged(data: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """Return `data` after one to four edits: a bit, a byte, a splinter, a part cut out, doubled or from another input."""
    buffer = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        start = dice.randint(0, len(buffer))
        end = min(len(buffer), start + dice.randint(0, 12))
        match dice.randrange(6):
            case 0 if buffer:
                buffer[start - 1] = dice.randrange(256)
            case 1 if buffer:
                buffer[start - 1] ^= 1 << dice.randrange(8)
            case 2:
                buffer[start:start] = dice.choice(_SPLINTERS)
            case 3:
                del buffer[start:end]
            case 4:
                buffer[end:end] = buffer[start:end]
            case _:
                other = dice.choice(others)
                buffer[start:end] = other[dice.randint(0, len(other)) :][: dice.randint(0, 40)]
    return bytes(buffer)


class Run:
    """One target under fire.

    Attributes:
        inputs: How many were read.
        outcomes: What became of them.
        slowest: CPU seconds of the input that cost most, and the input.
        found: Inputs of which the reader said something that it had not said before.
    """

    def __init__(self, name: str, target: Target, seed: int) -> None:
        self.inputs = 0
        self.outcomes: Counter[str] = Counter()
        self.slowest: tuple[float, bytes] = (0.0, b"")
        self.found: list[bytes] = []
        self._name = name
        self._target = target
        self._dice = random.Random(seed)
        self._pool = [*target.seeds, *corpus_of(name)]
        for data in self._pool:
            self._read(data)
        self.found.clear()

    def go_on(self, seconds: float, most: int | None = None) -> None:
        """Read damaged inputs for a while.

        Raises:
            Escaped: One of them made the reader raise what it may not.
        """
        ends, last = time.monotonic() + seconds, None if most is None else self.inputs + most
        while time.monotonic() < ends and (last is None or self.inputs < last):
            data = damaged(self._dice.choice(self._pool), self._pool, self._dice)
            if self._read(data) and len(self._pool) < _KEPT_MAX:
                self._pool.append(data)

    def _read(self, data: bytes) -> bool:
        """Have one input read; tell whether the outcome is new."""
        began = time.thread_time()
        try:
            outcome = type(self._target.read(data)).__name__
        except self._target.refusals as refusal:
            outcome = f"{type(refusal).__name__}: {_QUOTED.sub('', str(refusal))}"
        except Exception as error:
            raise Escaped(self._name, data) from error
        cost = time.thread_time() - began
        self.inputs += 1
        if cost > self.slowest[0]:
            self.slowest = (cost, data)
        is_new = outcome not in self.outcomes
        self.outcomes[outcome] += 1
        if is_new:
            self.found.append(data)
        return is_new
