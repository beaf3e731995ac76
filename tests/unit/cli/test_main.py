"""The frame of the command line: flags, exit codes, and the words of failures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from p2ptunnel import __version__, errors
from p2ptunnel.cli.main import COMMANDS, exit_code, main, root
from p2ptunnel.cli.output import ReaderGoneError
from p2ptunnel.cli.settings import Settings
from p2ptunnel.errors import P2PTunnelError
from tests.unit.cli.running import call, environment, program

KEY = "p2p:k5xq7m2a"

# What each failure says and how the program ends; docs/reference/cli.md.
FAILURES = [
    (
        errors.PeerOfflineError("nas"),
        "no peer is registered as 'nas'",
        "Check the tag, and that `p2ptunnel serve` is running on nas.",
        "rendezvous",
        4,
    ),
    (
        errors.RendezvousTimeoutError("rv.example:7000", 5.0),
        "rv.example:7000 did not answer over UDP or TCP in 5 s",
        "Is `p2ptunnel rendezvous` running there, and do its firewalls let in UDP and TCP to port 7000?",
        "rendezvous",
        4,
    ),
    (
        errors.RateLimitedError("rv.example:7000", 3.0),
        "rv.example:7000 refused: too many requests (429)",
        "3 s",
        "rendezvous",
        4,
    ),
    (errors.NoPathError("nas", ("a", "b")), "no path to nas: 2 tried (a; b)", "`p2ptunnel explain nas`", "traversal", 4),
    (errors.PunchTimeoutError("nas", 15.0), "no hole to nas opened in 15 s", "`p2ptunnel explain nas`", "traversal", 4),
    (
        errors.PeerKeyChangedError("nas", f"{KEY}xyz"),
        "nas did not prove the pinned key p2p:k5xq7m2a…",
        "If nas was reinstalled: `p2ptunnel peers rm nas`, then add its new key. Else do not connect.",
        "identity",
        5,
    ),
    (errors.UnknownPeerError("nas"), "no key is pinned for 'nas'", "p2ptunnel pair CODE", "identity", 5),
    (errors.PeerRefusedError("nas"), "nas does not know this machine's key", "Pair with it", "identity", 5),
    (errors.TagInUseError("nas"), "the tag 'nas' belongs to another key", "Choose another tag", "rendezvous", 5),
    (
        errors.AccessRevokedError("nas", "web"),
        "nas serves 'web' to this machine no more",
        "Its owner took it back",
        "access",
        5,
    ),
    (
        errors.ApprovalTimeoutError("nas", "web"),
        "nobody at nas has answered whether this machine may open 'web'",
        "Ask again when somebody is at nas",
        "access",
        5,
    ),
    (
        errors.AccessDeniedError("nas", "jupiter", ("jupyter", "ssh")),
        "nas does not serve 'jupiter' to this machine",
        "Served to you: jupyter, ssh.",
        "access",
        5,
    ),
    (
        errors.TargetRefusedError("nas", "8888", "connection refused"),
        "'8888' on nas cannot be reached: connection refused",
        "nas is reached; start the program there.",
        "target",
        1,
    ),
    (
        errors.AddressInUseError("127.0.0.1:8888", "`p2ptunnel forward nas 0:8888` picks a free port."),
        "127.0.0.1:8888 is taken by another program",
        "`p2ptunnel forward nas 0:8888` picks a free port.",
        "tunnel",
        1,
    ),
    (errors.ChannelLostError("no answer"), "the channel was lost: no answer", "Connect again", "session", 1),
    (errors.SSHError("nas", "x", "y"), "ssh to nas: x", "y", "ssh", 1),
    (errors.ConfigError("unknown key `tga`", "Did you mean `tag`?"), "unknown key `tga`", "Did you mean `tag`?", "config", 2),
    (errors.InvalidTagError("NAS"), "'NAS' is not a tag", "A tag has 1 to 63 characters", "config", 2),
    (errors.InvalidSpecError("x:", "y"), "cannot read 'x:': y", "Examples: 8888", "tunnel", 2),
    (errors.MissingExtraError("ssh", "ssh"), "ssh needs a library that is not installed", "pip install", "install", 2),
]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What `status` fails with from now on."""
    error: list[BaseException] = []

    def fail(_: object) -> None:
        raise error[0]

    monkeypatch.setattr(Settings, "rendezvous", property(fail))
    return error


@pytest.mark.parametrize(("error", "text", "hint", "layer", "code"), FAILURES, ids=lambda value: type(value).__name__)
def test_a_failure_is_a_text_a_hint_and_an_exit_code(
    error: P2PTunnelError,
    text: str,
    hint: str,
    layer: str,
    code: int,
    failing: list[BaseException],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing.append(error)
    result = call(capsys, "status")
    first, second = result.err.splitlines()
    assert (result.code, result.out, first) == (code, "", f"p2ptunnel: {text}")
    assert second.startswith("hint: ")
    assert hint in second
    result = call(capsys, "status", "--json")
    told = {"type": type(error).__name__, "layer": layer, "code": error.code, "message": text, "hint": error.hint}
    assert (result.code, json.loads(result.out)) == (code, {"schema": 1, "error": told})
    assert result.err.splitlines()[0] == f"p2ptunnel: {text}"


def test_every_error_has_an_exit_code_of_the_table() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, P2PTunnelError)]
    codes = {kind.__name__: exit_code(kind.__new__(kind)) for kind in kinds}
    assert set(codes.values()) == {1, 2, 4, 5, 6}
    assert codes["StoreError"] == codes["InsecureKeyFileError"] == 2
    assert codes["BindError"] == codes["StreamResetError"] == codes["RemoteProtocolError"] == 1


def test_interrupting_is_130_and_a_reader_that_went_away_is_141_without_a_word(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing.append(KeyboardInterrupt())
    assert tuple(call(capsys, "status")) == (130, "", "")
    hushed: list[bool] = []
    monkeypatch.setattr("p2ptunnel.cli.main.hush_stdout", lambda: hushed.append(True))
    failing[0] = ReaderGoneError()
    assert tuple(call(capsys, "status")) == (141, "", "")
    assert hushed


@pytest.mark.parametrize(
    ("words", "text", "hint"),
    [
        (["frward"], "No such command 'frward'. Did you mean 'forward'?", "p2ptunnel --help"),
        (["xyzzy"], "No such command 'xyzzy'.", "p2ptunnel --help"),
        (["peers", "ad"], "No such command 'ad'. Did you mean 'add'?", "p2ptunnel peers --help"),
        (["status", "--jsn"], "No such option '--jsn'.", "p2ptunnel status --help"),
        (["--jsn", "status"], "No such option '--jsn'.", "p2ptunnel --help"),
        (["forward", "nas"], "Missing argument 'SPEC...'.", "p2ptunnel forward --help"),
        (["--timeout", "0", "status"], "Invalid value for '--timeout'", "p2ptunnel --help"),
    ],
)
def test_misuse_is_2_and_points_to_the_help(words: list[str], text: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, *words)
    first, second = result.err.splitlines()
    assert (result.code, result.out) == (2, "")
    assert first.startswith(f"p2ptunnel: {text}")
    assert second == f"hint: {hint}"


def test_misuse_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, "forward", "nas", "--json")
    error = json.loads(result.out)["error"]
    assert (result.code, error["type"], error["layer"], error["hint"]) == (2, "UsageError", "cli", "p2ptunnel forward --help")
    result = call(capsys, "forward", "nas", "--jsn", "--json")  # the parser gave up before it saw --json
    assert json.loads(result.out)["schema"] == 1


@pytest.mark.parametrize("words", [["-h"], ["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_every_help_is_there_and_shows_examples(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, *words)
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Usage: p2ptunnel ")
    assert "\nExamples:\n" in result.out


def groups(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Group]]:
    """This group and those below it, each with the words that name it."""
    yield path, group
    context = click.Context(group)
    for name in group.list_commands(context):
        below = group.get_command(context, name)
        if isinstance(below, click.Group):
            yield from groups(below, (*path, name))


@pytest.mark.parametrize(
    ("path", "group"), list(groups(root)), ids=lambda part: " ".join(part) if isinstance(part, tuple) else ""
)
def test_no_line_about_a_command_is_cut_at_80_columns(
    path: tuple[str, ...], group: click.Group, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = call(capsys, *path, "--help").out.partition("\nCommands:\n")[2].partition("\n\n")[0].splitlines()
    context = click.Context(group)
    commands = [(name, group.get_command(context, name)) for name in group.list_commands(context)]
    shown = [(name, command) for name, command in commands if command is not None and not command.hidden]
    assert [line.split(maxsplit=1) for line in lines] == [[name, command.short_help] for name, command in shown]
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if "..." in line or "…" in line]


def test_every_command_has_one_line_that_fits() -> None:
    for name in COMMANDS:
        command = root.get_command(click.Context(root), name)
        assert command is not None
        assert command.name == name
        assert command.hidden or (command.short_help and len(command.short_help) < 62)


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(call(capsys, "--version")) == (0, f"p2ptunnel {__version__}\n", "")


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: p2ptunnel [OPTIONS] COMMAND [ARGS]...")


@pytest.mark.parametrize(
    ("words", "variable", "colored"),
    [(["--color"], "", True), (["--no-color"], "", False), ([], "", False), ([], "1", False), (["--color"], "1", True)],
)
def test_colours_are_asked_for_or_left_out(
    words: list[str], variable: str, colored: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", variable)
    result = call(capsys, "--tag", "NOT A TAG", *words, "id")
    assert ("\x1b[" in result.err) is colored


@pytest.mark.parametrize(
    "words", ["known-hosts nas", "id", "peers", "peers list", "rendezvous --help", "status", "serve --help"]
)
def test_light_commands_stay_light(words: str, tmp_path: Path) -> None:
    """asyncio costs 60 ms, asyncssh 300 and more; `known-hosts` runs twice in every ssh login."""
    code = f"import sys; from p2ptunnel.cli.main import main; main({words.split()!r}); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(P2PTUNNEL_PROFILE=str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"asyncio", "asyncssh", "typeguard", "rich", "p2ptunnel.peer"}


def test_a_reader_that_went_away_ends_the_real_program_with_141() -> None:
    with subprocess.Popen(
        program("completion", "bash"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as it:
        assert it.stdout is not None
        assert it.stderr is not None
        it.stdout.close()
        assert it.stderr.read() == b""
        assert it.wait() == 141


def test_help_for_nobody_is_141_too() -> None:
    with subprocess.Popen(program("--help"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as it:
        assert it.stdout is not None
        assert it.stderr is not None
        it.stdout.close()
        assert it.stderr.read() == b""
        assert it.wait() == 141


def test_a_bug_is_not_hidden(failing: list[BaseException]) -> None:
    failing.append(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["status"])
