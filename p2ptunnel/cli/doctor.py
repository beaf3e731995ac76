"""`doctor`: what on this machine would keep p2ptunnel from working, or its secrets from staying secret."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from p2ptunnel.cli.commands import Command
from p2ptunnel.cli.output import SCHEMA
from p2ptunnel.cli.settings import Settings

if TYPE_CHECKING:
    from p2ptunnel.cli.examination import Finding, Verdict

__all__ = ["command"]

_TIMEOUT: Final = 3.0  # seconds for each question to a server
_FAILED: Final = 1


@click.command(
    "doctor",
    cls=Command,
    short_help="Look for what is wrong on this machine.",
    examples=("p2ptunnel doctor", "p2ptunnel --json doctor", "p2ptunnel doctor --bundle report.json"),
)
@click.option(
    "--bundle",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write what was found to a new file, to be shown to others: without names, addresses and keys.",
)
@click.pass_obj
def command(settings: Settings, bundle: Path | None) -> int:
    """Look at the profile's files, at Python, OpenSSL, clock, ssh and ports, and ask the configured servers.

    Each line is ok, warn or fail, with the next step below it; one that is fail makes the exit code 1.  Nothing is changed, and
    nothing is sent but to servers of the configuration.
    """
    from p2ptunnel.cli.examination import examine

    findings = examine(settings.profile) + _servers(settings)
    verdict = _worst(findings)
    settings.output.data(
        "\n".join(map(_line, findings)),
        verdict=verdict,
        checks=[{"check": f.check, "verdict": f.verdict, "text": f.text, "fix": f.fix} for f in findings],
    )
    if bundle is not None:
        _write_bundle(settings, bundle, findings)
    return _FAILED if verdict == "fail" else 0


def _servers(settings: Settings) -> list[Finding]:
    """Ask the servers; a configuration that cannot be read names none, and has been told of already."""
    from p2ptunnel.cli.examination import examine_servers
    from p2ptunnel.cli.running import run
    from p2ptunnel.errors import ConfigError

    try:
        servers = settings.rendezvous
    except ConfigError:
        return []
    is_known = (settings.profile.directory / "identity.key").exists()  # else one would be made, and nothing is changed here
    found = run(examine_servers(servers, settings.timeout or _TIMEOUT, settings.profile if is_known else None))
    if isinstance(found, int):
        raise click.exceptions.Exit(found)
    return found


def _worst(findings: list[Finding]) -> Verdict:
    verdicts: set[Verdict] = {finding.verdict for finding in findings}
    return "fail" if "fail" in verdicts else "warn" if "warn" in verdicts else "ok"


def _line(finding: Finding) -> str:
    line = f"{finding.verdict:<5} {finding.check:<12} {finding.text}"
    return f"{line}\n{'':19}{finding.fix}" if finding.fix else line


def _write_bundle(settings: Settings, path: Path, findings: list[Finding]) -> None:
    """Write the findings for others to read.

    Raises:
        ConfigError: The file is there already, or cannot be written.
    """
    from p2ptunnel._version import __version__
    from p2ptunnel.cli.redaction import redactor
    from p2ptunnel.errors import ConfigError

    redact = redactor(settings)
    checks = [{"check": f.check, "verdict": f.verdict, "text": redact(f.text), "fix": redact(f.fix)} for f in findings]
    bundle = {"schema": SCHEMA, "p2ptunnel": __version__, "checks": checks}
    try:
        with open(path, "x", encoding="utf-8", opener=functools.partial(os.open, mode=0o600)) as file:
            file.write(json.dumps(bundle, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", "Name a file that is not there yet.") from error
    settings.output.say(f"written to {path}; read it before you send it")
