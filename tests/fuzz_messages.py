"""A fuzz run of the JSON wire by hand: `python -m tests.fuzz_messages 10000000 [SEED]`.

Each input is a vector of tests/vectors/messages.json with a few random edits; whatever is not a message must be malformed, any
other exception ends the run with its input and its seed.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

from p2ptunnel.wire.messages import MalformedMessageError, decode

VECTORS = json.loads((Path(__file__).parent / "vectors" / "messages.json").read_text(encoding="utf-8"))
SEEDS = [vector["wire"].encode() for vector in VECTORS["exact"] + VECTORS["decode_only"]]
SPLINTERS = [
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\", b"\\u", b"\\ud800", b"\xff", b"\xed\xa0\x80", b"\x00"),
    *(b"null", b"true", b"NaN", b"1e400", b"-0", b"31.0", b"9" * 400, b'"t":', b'"extra":{', b"[" * 200, b'\\"' * 200),
]


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Return `data` after one to four edits: a byte changed, a splinter put in, a part cut out, doubled, or replaced."""
    buffer = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        start = dice.randint(0, len(buffer))
        end = min(len(buffer), start + dice.randint(0, 12))
        match dice.randrange(5):
            case 0 if buffer:
                buffer[start - 1] = dice.randrange(256)
            case 1:
                buffer[start:start] = dice.choice(SPLINTERS)
            case 2:
                del buffer[start:end]
            case 3:
                buffer[end:end] = buffer[start:end]
            case _:
                other = dice.choice(SEEDS)
                buffer[start:end] = other[dice.randint(0, len(other)) :][: dice.randint(0, 40)]
    return bytes(buffer)


def main(count: int, seed: int) -> None:
    """Decode `count` damaged messages; print how many were what, the pace, and the one that cost most CPU."""
    dice = random.Random(seed)
    outcomes: Counter[str] = Counter()
    dearest, dearest_input, began = 0.0, b"", time.perf_counter()
    for _ in range(count):
        data = damaged(dice.choice(SEEDS), dice)
        started = time.thread_time()
        try:
            outcome = type(decode(data)).__name__
        except MalformedMessageError:
            outcome = "malformed"
        except BaseException:
            print(f"seed {seed}: {data!r}")
            raise
        cost = time.thread_time() - started
        outcomes[outcome] += 1
        if cost > dearest:
            dearest, dearest_input = cost, data
    pace = count / (time.perf_counter() - began)
    print(f"seed {seed}: {count} inputs, {outcomes.pop('malformed', 0)} malformed, {outcomes.total()} messages, {pace:.0f}/s")
    print(f"dearest {dearest * 1e6:.0f} us: {dearest_input!r}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(2**32))
