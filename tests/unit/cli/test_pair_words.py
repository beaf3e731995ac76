"""What may be typed behind `pair`, and what it says of all else."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from p2ptunnel.cli.pair import command, complete_code
from tests.unit.cli.running import call


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nonsense"], "a spoken code is a tag and three words"),
        (["home-nas-able-able-qqqq"], "the third word is not in the list"),
        (["p2pt1abcdefgh"], "the ticket is not whole: its checksum does not fit"),
        (["--uses", "0"], "Invalid value for '--uses'"),
        (["--expires", "soon"], "Invalid value for '--expires'"),
        (["--expires", "0"], "an invitation that lasts no time lets nobody in\nhint: Examples: --expires 10m, --expires 1h."),
        (["home-nas-able-able-able", "--expires", "1h"], "--expires is for the machine that invites"),
        (["home-nas-able-able-able", "--uses", "1"], "--uses is for the machine that invites"),
        (
            ["p2pc1abc"],
            "that is an access ticket, which is shown to a machine that is known already\nhint: p2ptunnel peers use",
        ),
        (["p2p:abc"], "that is a machine's key, and no code or ticket\nhint: To pin it by hand: p2ptunnel peers add NAME KEY"),
        (["--services", "a b"], "cannot read 'a b'"),
        (["--as", "Me"], "'Me' is not a tag"),
    ],
)
def test_misuse_is_2(capsys: pytest.CaptureFixture[str], words: list[str], text: str) -> None:
    result = call(capsys, "--rendezvous", "127.0.0.1:9", "--tag", "home-nas", "pair", *words)
    assert result.code == 2
    assert text in result.err


def test_a_code_without_a_server_and_an_invitation_without_a_tag_are_2(
    capsys: pytest.CaptureFixture[str], profile: Path
) -> None:
    assert call(capsys, "pair", "home-nas-able-able-able").code == 2
    without_tag = call(capsys, "--rendezvous", "127.0.0.1:7000", "pair")
    assert without_tag.code == 2
    assert "has no tag" in without_tag.err


def test_no_error_shows_what_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, "--rendezvous", "127.0.0.1:9", "pair", "home-nas-secretword-apple-river")
    assert result.code == 2
    assert "secretword" not in result.err


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("home-nas-zo", ["home-nas-zone", "home-nas-zoo"]),
        ("home-nas-zoo-appl", ["home-nas-zoo-apple"]),
        ("home", []),
        ("home-", []),
    ],
)
def test_tab_completes_the_words_of_a_code(typed: str, offered: list[str]) -> None:
    assert complete_code(click.Context(command), command.params[0], typed) == offered


def test_the_help_tells_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    shown = call(capsys, "pair", "--help")
    assert shown.code == 0
    assert "[CODE|TICKET|-]" in shown.out
    assert "p2ptunnel pair --services ssh" in shown.out
