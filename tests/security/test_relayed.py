"""T1 at the relay: whoever runs it can break what it carries, and can do nothing else with it."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from p2ptunnel.abc import Stream
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.events import ChannelLost
from p2ptunnel.server.flow import Flow
from tests.helpers import run
from tests.helpers.meeting import HOME, meeting

FLIPS = 100
SENT_BYTES = 60_000
_seen = Flow._seen


class EvilRelay:
    """Flips one bit of what an end sends, once, after so many bytes.

    Attributes:
        flips: How many it has flipped.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flips = 0
        self._dice = random.Random(1)
        self._after: int | None = None
        relay = self

        def meddle(flow: Flow, limit: int) -> memoryview:
            return relay._pass(_seen(flow, limit))

        monkeypatch.setattr(Flow, "_seen", meddle)

    def strike(self) -> None:
        """Flip a bit of what comes next, or a little later."""
        self._after = self._dice.randrange(SENT_BYTES)

    def _pass(self, data: memoryview) -> memoryview:
        if self._after is None:
            return data
        if self._after < len(data):
            data[self._after] ^= 1 << self._dice.randrange(8)
            self._after = None
            self.flips += 1
        else:
            self._after -= len(data)  # all of it is taken, on loopback and so little of it
        return data


async def all_of_it(stream: Stream, data: bytes) -> None:
    """Send it, and wait for the end that the other side writes when it has all."""
    await stream.write(data)
    await stream.write_eof()
    await stream.read()


@pytest.mark.timeout(60)
def test_a_hundred_flipped_bits_are_a_hundred_lost_channels_and_no_wrong_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = random.Random(2).randbytes(SENT_BYTES)
    came: list[bytearray] = []

    async def note(stream: Stream) -> None:
        came.append(bytearray())
        with contextlib.suppress(P2PTunnelError):
            async for part in stream:
                came[-1] += part

    async def main() -> None:
        evil = EvilRelay(monkeypatch)
        async with meeting(tmp_path, "note", relay="always", resume_timeout=0) as there, there.home.serve({"note": note}):
            lost = there.laptop.events(ChannelLost)
            for number in range(1, FLIPS + 1):
                stream = await there.laptop.connect(HOME, "note", timeout=10)
                evil.strike()
                with pytest.raises(P2PTunnelError):
                    await all_of_it(stream, sent)
                await anext(lost)
                assert evil.flips == number
        assert len(came) == FLIPS
        assert all(sent.startswith(part) and len(part) < len(sent) for part in came)

    run(main(), timeout=55)
