"""The laboratory's commands: what they print, and with which status they end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from p2ptunnel.errors import LaboratoryError
from p2ptunnel.testing import natlab
from p2ptunnel.testing.natlab import __main__ as program
from p2ptunnel.testing.natlab.behaviour import command
from p2ptunnel.testing.natlab.behaviour.expected import EXPECTED
from p2ptunnel.testing.natlab.behaviour.proof import Verdict

GOOD = Verdict("pr", EXPECTED["pr"], EXPECTED["pr"])
BAD = Verdict("prR", EXPECTED["prR"], EXPECTED["pr"])
UNMEASURED = Verdict("fc", EXPECTED["fc"], None, "no connection outwards: drop")


def test_a_verdict_knows_what_is_wrong() -> None:
    assert (GOOD.is_proved, GOOD.differences) == (True, [])
    assert (BAD.is_proved, BAD.differences[0]) == (False, "udp_stranger is drop, not icmp")
    assert (UNMEASURED.is_proved, UNMEASURED.differences) == (False, ["no connection outwards: drop"])


def test_the_table_has_a_line_a_kind_and_says_what_differs() -> None:
    header, good, bad, *differences, unmeasured, problem = command.format_table([GOOD, BAD, UNMEASURED]).splitlines()
    assert header.split()[:3] == ["kind", "udp", "mapping"]
    assert good.split() == ["ok", "pr", *EXPECTED["pr"].words()]
    assert bad.split() == ["BAD", "prR", *EXPECTED["pr"].words()]
    assert [line.strip() for line in differences] == BAD.differences
    assert unmeasured.split() == ["BAD", "fc", *"?" * len(EXPECTED["fc"].words())]
    assert problem.strip() == "no connection outwards: drop"
    assert header.index("ipv6") == good.index("none")


@pytest.mark.parametrize(("verdicts", "status"), [([GOOD], 0), ([GOOD, BAD], 1), ([UNMEASURED], 1)])
def test_the_status_tells_whether_all_is_proved(
    verdicts: list[Verdict], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "prove", lambda _: iter(verdicts))
    assert program.main(["behaviour", "pr"]) == status
    proved = sum(verdict.is_proved for verdict in verdicts)
    assert capsys.readouterr().out.endswith(f"\n{proved} of {len(verdicts)} kinds behave as their names say\n")


def test_an_unknown_kind_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["behaviour", "pigeon"]) == 1
    assert capsys.readouterr().err.startswith("natlab: there is no kind 'pigeon'\nhint: There are pub, pubfw,")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (LaboratoryError("no namespaces"), 1, "natlab: the laboratory does not work: no namespaces\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_stops_a_command_is_its_status(
    error: BaseException, status: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> Iterator[Verdict]:
        raise error

    monkeypatch.setattr(command, "prove", fail)
    assert program.main(["behaviour"]) == status
    assert capsys.readouterr().err.startswith(words)


def test_no_command_is_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        program.main([])
    assert raised.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_it_runs_as_a_program() -> None:
    arguments = [sys.executable, "-m", "p2ptunnel.testing.natlab", "--help"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."})
    assert "behaviour" in result.stdout


def test_every_public_name_is_there() -> None:
    assert natlab._MODULES.keys() == set(natlab.__all__)
    for name in natlab.__all__:
        public = getattr(natlab, name)
        assert getattr(public, "__name__", name) == name
    with pytest.raises(AttributeError, match="has no attribute 'Labs'"):
        natlab.Labs  # noqa: B018
