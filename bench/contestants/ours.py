"""p2ptunnel itself: a rendezvous server and a peer on the far machine, a peer on the near one.

python -m bench.contestants.ours far|forward|near DIRECTORY
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import probe
from bench.contest import FAR, FORWARD_PORT, LOOPBACK, SINK_PORT, STREAM_PORT, Contestant
from p2ptunnel import P2PTunnelError, Peer, Profile, Rendezvous, Stream, __version__

if TYPE_CHECKING:
    from bench.rig import Program, Rig

_MODULE: Final = "bench.contestants.ours"
_FAR, _NEAR = "far", "near"
_SERVER: Final = f"{FAR}:{STREAM_PORT}"


def _start_forward(rig: Rig, python: Path) -> Program:
    rig.sink()
    _start_far(rig, python)
    return rig.probe(rig.near.start([python, "-m", _MODULE, "forward", rig.directory]))


def _start_stream(rig: Rig, python: Path) -> Program:
    _start_far(rig, python)
    return rig.near.start([python, "-m", _MODULE, "near", rig.directory])


def _start_far(rig: Rig, python: Path) -> None:
    home, away = Profile(rig.directory / _FAR), Profile(rig.directory / _NEAR)
    home.peers().add(_NEAR, away.identity().public)
    away.peers().add(_FAR, home.identity().public)
    rig.far.start([python, "-m", _MODULE, "far", rig.directory]).line()


CONTESTANTS: Final = (
    Contestant("ours", "forward", "p2ptunnel forward", _start_forward, version=__version__),
    Contestant("ours", "stream", "p2ptunnel Stream", _start_stream, version=__version__),
)


async def _serve(stream: Stream) -> None:
    with contextlib.suppress(P2PTunnelError):  # whoever uploads beside an echo just goes
        await probe.serve(stream)


async def _far(directory: Path) -> None:
    async with (
        Rendezvous((FAR, STREAM_PORT)),
        Peer(_FAR, rendezvous=_SERVER, profile=directory / _FAR, lan=False) as peer,
        peer.serve({"stream": _serve, "sink": f"{LOOPBACK}:{SINK_PORT}"}, allow=[_NEAR]),
    ):
        probe.tell("serving")
        await asyncio.Event().wait()


async def _forward(directory: Path) -> None:
    async with _caller(directory) as peer, peer.forward(_FAR, "sink", listen=FORWARD_PORT):
        await asyncio.Event().wait()


async def _near(directory: Path) -> None:
    await probe.obey(partial(_session, directory))


@contextlib.asynccontextmanager
async def _session(directory: Path) -> AsyncGenerator[Callable[[], Awaitable[Stream]]]:
    async with _caller(directory) as peer:
        yield lambda: peer.connect(_FAR, "stream")


def _caller(directory: Path) -> Peer:
    return Peer(rendezvous=_SERVER, profile=directory / _NEAR, lan=False)


if __name__ == "__main__":
    roles = {"far": _far, "forward": _forward, "near": _near}
    asyncio.run(roles[sys.argv[1]](Path(sys.argv[2])))
