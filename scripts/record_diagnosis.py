"""Plays "Find out why it does not connect" in the laboratory, and writes what was said into that page.

`python -m scripts.record_diagnosis`; needs root.  Real programs behind real NATs of the kernel, 20 ms on each line; one pair
of NATs lets them through, the other does not.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Final

from p2ptunnel.abc import Stream
from p2ptunnel.identity.store import Profile
from p2ptunnel.peer import Peer
from p2ptunnel.server import Rendezvous
from p2ptunnel.testing.natlab import Host, Lab
from p2ptunnel.testing.natlab.living import living

__all__ = ["Play", "play", "write"]

_HOW_TO: Final = Path(__file__).resolve().parent.parent / "docs" / "how-to"
PAGE: Final = _HOW_TO / "diagnose.md"
PICTURE: Final = _HOW_TO / "explain.svg"
_PLACE: Final = re.compile(r"(<!-- recorded ([a-z-]+): [^>]*-->\n).*?(?=<!-- end -->)", re.DOTALL)
_DELAY: Final = 0.02
_HOME, _LAPTOP = "home-nas", "laptop"


class Play:
    """Two machines that know each other, each behind a NAT of one kind, and a server that sees them from three addresses."""

    def __init__(self, lab: Lab, directory: Path, kind: str) -> None:
        self._directory = directory
        self._laptop: Final[Host] = lab.site(kind, delay=_DELAY, name="laptop").host
        self.home: Final[Host] = lab.site(kind, delay=_DELAY, name="home").host
        first, second = lab.server.ips
        self.others: Final = ((first, 7001), (second, 7000))
        self._server: Final = f"{first}:7000"

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncGenerator[None]:
        """Serve at home, where the laptop is known."""
        home, laptop = (Profile(self._directory / name) for name in (_HOME, _LAPTOP))
        laptop.peers().add(_HOME, home.identity().public)
        home.peers().add(_LAPTOP, laptop.identity().public, ("echo",))
        async with Peer(_HOME, rendezvous=self._server, profile=home) as peer, peer.serve({"echo": _hang_up}):
            yield

    def say(self, *words: str) -> str:
        """Run our program on the laptop; return what it said."""
        options = ["--profile", str(self._directory / _LAPTOP), "--rendezvous", self._server, "--tag", _LAPTOP]
        done = self._laptop.run([sys.executable, "-m", "p2ptunnel", *options, *words], check=False)
        if done.returncode not in {0, 4}:
            raise subprocess.CalledProcessError(done.returncode, words, done.stdout, done.stderr)
        return done.stdout


async def _hang_up(stream: Stream) -> None:
    stream.abort()


@contextlib.contextmanager
def play(kind: str) -> Generator[Play]:
    """Give a laboratory of two homes behind NATs of a kind, one of which serves."""
    with tempfile.TemporaryDirectory(prefix="p2ptunnel-diagnosis-") as directory, Lab(server_delay=_DELAY) as lab:
        there = Play(lab, Path(directory), kind)
        server = Rendezvous((lab.server.ip, 7000), alt_listen=there.others)
        with living(lab.server, lambda: server), living(there.home, there.serving):
            yield there


def write() -> None:
    """Play it, and renew the page and its picture."""
    said: dict[str, str] = {}
    with play("pr") as there:
        said["netcheck"] = there.say("netcheck")
        said["explain"] = there.say("explain", _HOME)
        said["ping"] = there.say("ping", _HOME, "--until-direct")
    with play("symR") as there:
        said["relay"] = there.say("explain", _HOME, "--svg", str(PICTURE))
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        _PLACE.sub(lambda place: f"{place[1]}\n```text\n{said[place[2]].rstrip()}\n```\n\n", text), encoding="utf-8"
    )


if __name__ == "__main__":
    write()
