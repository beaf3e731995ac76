"""Programs that run are found by their sockets; whatever else lies there stops nobody."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from p2ptunnel.cli.living import Program, living, telling_status
from p2ptunnel.cli.settings import Settings
from p2ptunnel.peer import Peer


def run_directory(profile: Path) -> Path:
    path = profile / "run"
    path.mkdir(parents=True)
    return path


async def asked(profile: Path) -> list[Program]:
    """What is found while a program of this profile runs: it answers from the same loop."""
    settings = Settings()
    async with Peer("nas", profile=profile) as peer, telling_status(peer, settings, "serve"):
        return await asyncio.to_thread(living, profile)


def test_a_program_is_found_while_it_runs_and_leaves_nothing(profile: Path) -> None:
    assert asyncio.run(asked(profile)) == [Program("serve", os.getpid(), ())]
    assert living(profile) == []
    assert list((profile / "run").iterdir()) == []


def test_a_process_that_had_our_number_is_no_hindrance(profile: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(run_directory(profile) / f"{os.getpid()}.sock"))
    profile.chmod(0o700)
    assert [program.command for program in asyncio.run(asked(profile))] == ["serve"]


def test_a_socket_that_nobody_listens_on_is_removed(profile: Path) -> None:
    path = run_directory(profile) / "1.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert living(profile) == []
    assert not path.exists()


@pytest.mark.parametrize("answer", [b"", b"{", b'{"pid": 1}', b'{"command": 1, "pid": 1, "connections": []}'])
def test_an_answer_that_is_none_is_left_out(answer: bytes, profile: Path) -> None:
    async def serve_and_ask() -> list[Program]:
        async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answer)
            writer.close()

        async with await asyncio.start_unix_server(say, run_directory(profile) / "2.sock"):
            return await asyncio.to_thread(living, profile)

    assert asyncio.run(serve_and_ask()) == []


def test_where_no_socket_can_be_the_program_runs_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = tmp_path / ("x" * 120)  # longer than a unix socket's address can be
    settings = Settings()
    settings.take("profile", str(deep))
    settings.take("verbose", 1)

    async def work() -> str:
        async with Peer("nas", profile=deep) as peer, telling_status(peer, settings, "serve"):
            return "done"

    assert asyncio.run(work()) == "done"
    assert capsys.readouterr().err.startswith("`p2ptunnel status` will not see this program: ")
