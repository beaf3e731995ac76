"""A datagram that tells when word of its death is here: sent to a port of this machine where nobody listens."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Generator

import pytest

from p2ptunnel.net import witness as module
from p2ptunnel.net.sockets import LINUX
from p2ptunnel.net.witness import Witness
from p2ptunnel.types import Address
from tests.helpers import run

pytestmark = pytest.mark.skipif(not LINUX, reason="only Linux has an error queue")


@pytest.fixture
def dead() -> Generator[Address]:
    """An address at which nobody listens."""
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as keeper:
        keeper.bind(("::1", 0))
        yield ("::1", keeper.getsockname()[1])


@pytest.fixture
def silent() -> Generator[Address]:
    """One at which somebody takes what comes and says nothing."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sink:
        sink.bind(("::1", 0))
        yield ("::1", sink.getsockname()[1])


def test_word_that_comes_at_once_is_told_at_once(dead: Address) -> None:
    async def main() -> None:
        witness = Witness("::1", dead, 2, lambda: pytest.fail("told twice"))
        assert witness.is_back
        witness.stop()
        await asyncio.sleep(0)

    run(main())


def test_word_that_comes_later_is_told_once(dead: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MSG_ERRQUEUE", socket.MSG_DONTWAIT)  # the first look is for something else, and finds nothing

    async def main() -> None:
        told: asyncio.Queue[None] = asyncio.Queue()
        assert not Witness("::1", dead, 2, lambda: told.put_nowait(None)).is_back
        await told.get()
        await asyncio.sleep(0)
        assert told.empty()

    run(main())


def test_silence_is_never_told_and_stopping_leaves_nothing(silent: Address) -> None:
    async def main() -> None:
        witness = Witness("::1", silent, 2, lambda: pytest.fail("there was no word"))
        assert not witness.is_back
        await asyncio.sleep(0)
        witness.stop()
        witness.stop()

    run(main())


def test_where_nothing_can_be_sent_there_is_no_word() -> None:
    async def main() -> None:
        witness = Witness("::1", ("2001:db8::1", 0), 2, lambda: pytest.fail("there was no word"))
        assert not witness.is_back
        witness.stop()

    run(main())


def test_it_leaves_from_where_the_syn_did() -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
            sink.bind(("127.0.0.1", 0))
            sink.setblocking(False)
            witness = Witness("127.0.0.7", sink.getsockname(), 2, lambda: None)
            assert sink.recvfrom(1)[1][0] == "127.0.0.7"
            witness.stop()

    run(main())
