"""What `doctor` looks at on this machine: each look is a function that returns findings and changes nothing.

Rule: nothing is made, mended or sent here; only `examine_servers` talks to anybody, and only to servers of the configuration.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import shutil
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from p2ptunnel.config import CONFIG_FILE, load_config
from p2ptunnel.defaults import RENDEZVOUS_PORT
from p2ptunnel.errors import ConfigError, P2PTunnelError
from p2ptunnel.identity.files import OTHERS_READ_OR_WRITE, OTHERS_WRITE, read_private
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import Profile
from p2ptunnel.identity.tls import callee_context, caller_context, prove

if TYPE_CHECKING:
    from p2ptunnel.abc import Stream

__all__ = ["Finding", "Verdict", "examine", "examine_servers", "examine_sshd", "sshd_settings"]

Verdict: TypeAlias = Literal["ok", "warn", "fail"]

_RELEASED: Final = datetime.datetime(2026, 11, 1, tzinfo=datetime.UTC)
"""A clock before this is wrong."""
_DESCRIPTORS: Final = 1024
_PROGRAM_TIMEOUT: Final = 5.0
_SSHD_CONFIG: Final = Path("/etc/ssh/sshd_config")
_Look: TypeAlias = "Callable[[Profile], Iterator[Finding]]"


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at; `fix` is the next step, empty where all is well."""

    check: str
    verdict: Verdict
    text: str
    fix: str = ""


def examine(profile: Profile) -> list[Finding]:
    """Look at this machine and at `profile`; nothing is sent."""
    return [finding for look in _LOOKS for finding in look(profile)]


# --- the profile --------------------------------------------------------------------------------------------------------


def _directory(profile: Profile) -> Iterator[Finding]:
    directory = profile.directory
    try:
        status = directory.stat()
    except FileNotFoundError:
        yield Finding("profile", "ok", f"{directory} is not there yet; the first command makes it")
        return
    except OSError as error:
        yield Finding("profile", "fail", f"{directory}: {error.strerror}", "Check the directories above it.")
        return
    if not stat.S_ISDIR(status.st_mode):
        yield Finding("profile", "fail", f"{directory} is no directory", "Move it away, or name another with --profile.")
        return
    yield _rights("profile", directory, status, OTHERS_WRITE, "700")


def _rights(check: str, path: Path, status: os.stat_result, forbidden: int, mode: str) -> Finding:
    if sys.platform != "win32":  # access lists rule there
        if status.st_uid != os.geteuid():
            return Finding(check, "fail", f"{path} belongs to another user", f"sudo chown {os.geteuid()} {path}")
        if status.st_mode & forbidden:
            shown = f"{path} has mode {stat.S_IMODE(status.st_mode):04o}: others could read or replace it"
            return Finding(check, "fail", shown, f"chmod {mode} {path}")
    return Finding(check, "ok", f"{path} is its owner's alone")


def _identity(profile: Profile) -> Iterator[Finding]:
    if not (profile.directory / "identity.key").is_symlink() and not (profile.directory / "identity.key").exists():
        yield Finding("identity", "ok", "no key yet; the first command makes one")
        return
    with _told("identity") as found:
        identity = profile.identity()  # it is there: nothing is made
        found.append(Finding("identity", "ok", f"the key is {identity.public.short}, and only its owner can read it"))
    yield from found


def _peers(profile: Profile) -> Iterator[Finding]:
    with _told("peers") as found:
        peers = profile.peers().all()
        found.append(
            Finding(
                "peers",
                "ok",
                f"{len(peers)} known, {sum(bool(peer.services) for peer in peers)} of them may open services here",
            )
        )
    yield from found


def _config(profile: Profile) -> Iterator[Finding]:
    with _told("config") as found:
        load_config(profile.directory)
        has_one = (profile.directory / CONFIG_FILE).exists()
        if has_one:
            read_private(profile.directory / CONFIG_FILE, OTHERS_WRITE)  # it names the server, so others must not write it
        found.append(Finding("config", "ok", f"{CONFIG_FILE} is understood" if has_one else f"there is no {CONFIG_FILE}"))
    yield from found


def _secrets(profile: Profile) -> Iterator[Finding]:
    """Find whatever else in the profile was left readable: copies of the key, files of an editor."""
    with contextlib.suppress(OSError):
        for path in sorted(profile.directory.iterdir()):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and path.suffix in {".key", ".pem", ".bak"} and path.name != "identity.key":
                finding = _rights("profile", path, status, OTHERS_READ_OR_WRITE, "600")
                if finding.verdict != "ok":
                    yield finding


@contextlib.contextmanager
def _told(check: str) -> Generator[list[Finding]]:
    """Give a list of findings, and add to it what is raised."""
    found: list[Finding] = []
    try:
        yield found
    except ConfigError as error:
        found.append(Finding(check, "fail", str(error), error.hint))


# --- the programs -------------------------------------------------------------------------------------------------------


def _python(_: Profile) -> Iterator[Finding]:
    version = sys.version_info[:3]
    shown = f"Python {platform.python_version()}"
    if version < (3, 11, 9) or (3, 12) <= version < (3, 12, 3):
        faults = "CVE-2024-0397" + (", CVE-2023-40217" if version < (3, 11, 5) else "")
        shown += f" has faults in ssl that are mended in later ones ({faults}); p2ptunnel does not use what they are in"
        yield Finding("python", "warn", shown, "Install the latest release of this Python.")
    else:
        yield Finding("python", "ok", shown)
    if version < (3, 13):
        text = "its StreamWriter.start_tls loses bytes (cpython#142352, not mended before 3.13); p2ptunnel does not call it"
        yield Finding("python", "ok", text)


def _openssl(_: Profile) -> Iterator[Finding]:
    version = ssl.OPENSSL_VERSION
    if not ssl.HAS_TLSv1_3:
        yield Finding("openssl", "fail", f"{version} speaks no TLS 1.3", "Use a Python that was built with OpenSSL 3.")
    elif ssl.OPENSSL_VERSION_INFO < (3, 0):
        yield Finding("openssl", "warn", f"{version} is not cared for any more", "Use a Python that was built with OpenSSL 3.")
    else:
        yield Finding("openssl", "ok", version)
    yield _handshake()


def _handshake() -> Finding:
    """Have two identities of a moment meet in memory: whatever this OpenSSL cannot do, it cannot do here."""
    caller, callee = Identity.generate(), Identity.generate()
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        client = caller_context(caller, callee.public).wrap_bio(down, up, server_side=False)
        server = callee_context(callee, (caller.public,)).wrap_bio(up, down, server_side=True)
        for end in (client, server, client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
        prove(client, caller.public, callee.public)
        prove(server, callee.public, caller.public)
    except (OSError, ValueError, P2PTunnelError) as error:  # ssl.SSLError is an OSError
        problem = f"a pinned TLS handshake fails: {error}"
        return Finding("tls", "fail", problem, "Use a Python that was built with OpenSSL 3, with its default settings.")
    return Finding("tls", "ok", "two keys that pin each other meet over TLS 1.3")


def _clock(_: Profile) -> Iterator[Finding]:
    now = datetime.datetime.fromtimestamp(time.time(), datetime.UTC)
    if now < _RELEASED:
        text = f"the clock says {now:%Y-%m-%d}: connections work, but what ends at a date does not end, and logs mislead"
        yield Finding("clock", "warn", text, "Set the clock, or have it set: timedatectl set-ntp true")
    else:
        yield Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M} UTC")


def _ssh(_: Profile) -> Iterator[Finding]:
    from p2ptunnel.ssh.openssh import has_known_hosts_command

    program = shutil.which("ssh")
    if program is None:
        yield Finding("ssh", "warn", "there is no ssh program; `p2ptunnel ssh` needs one", "Install OpenSSH's client.")
        return
    version = _version_of(program)
    if has_known_hosts_command(version):
        yield Finding("ssh", "ok", version)
    else:
        yield Finding("ssh", "ok", f"{version}: it is given the pinned host keys in a file, since it runs no KnownHostsCommand")


def _version_of(program: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603 - ssh, as the user's own PATH has it
            [program, "-V"], capture_output=True, text=True, timeout=_PROGRAM_TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return f"{program} does not tell its version"
    return (done.stderr or done.stdout).partition("\n")[0].strip()


def _sshd(_: Profile) -> Iterator[Finding]:
    yield from examine_sshd(_SSHD_CONFIG)


def examine_sshd(config: Path) -> Iterator[Finding]:
    """Look at the SSH server's settings that end connections which could be resumed."""
    try:
        settings = sshd_settings(config)
    except FileNotFoundError:
        yield Finding("sshd", "ok", "there is no SSH server here")
        return
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        yield Finding("sshd", "warn", f"{config} cannot be read: {reason}", f"sudo sshd -T | grep -i {_ALIVE}")
        return
    interval = settings.get(_ALIVE, "0")
    if interval == "0":
        yield Finding("sshd", "ok", "it leaves silent connections alone")
        return
    count = settings.get("clientalivecountmax", "3")
    text = (
        f"it ends a connection that is silent for {count} times {interval} (ClientAliveInterval): less than a resume may take"
    )
    yield Finding("sshd", "warn", text, f"ClientAliveInterval 0 in {config}, then reload sshd.")


_ALIVE: Final = "clientaliveinterval"


def sshd_settings(config: Path) -> dict[str, str]:
    """Return the global settings of an sshd_config, names in lower case; of a name given twice the first holds.

    Raises:
        OSError: It, or a file that it includes, cannot be read.
        UnicodeDecodeError: It is no text.

    Source: sshd_config(5).
    """
    settings: dict[str, str] = {}
    for line in config.read_text("utf-8").splitlines():
        name, _, value = line.replace("=", " ", 1).strip().partition(" ")
        if name.lower() == "match":
            break  # what follows holds for some connections only
        if name.lower() == "include":
            for pattern in value.split():
                for included in sorted(config.parent.glob(str(pattern).removeprefix(f"{config.parent}/"))):
                    settings = sshd_settings(included) | settings
        elif name and not name.startswith("#"):
            settings.setdefault(name.lower(), value.strip())
    return settings


# --- the network --------------------------------------------------------------------------------------------------------


def _ports(_: Profile) -> Iterator[Finding]:
    from p2ptunnel.net.sockets import ANY_IPV4
    from p2ptunnel.trace import Tracer
    from p2ptunnel.traversal.port import take_number

    try:
        udp, reserved = take_number(ANY_IPV4, Tracer())
    except P2PTunnelError as error:
        yield Finding("ports", "fail", f"no port can be had for UDP and TCP: {error}", "Does a sandbox or firewall forbid it?")
        return
    udp.close()
    reserved.close()
    yield Finding("ports", "ok", "one port can be had for UDP and TCP")


def _descriptors(_: Profile) -> Iterator[Finding]:
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _DESCRIPTORS:
        text = f"a process may open {soft} files; each stream to a target takes one"
        yield Finding("descriptors", "warn", text, f"ulimit -n {min(hard, 65536) if hard > 0 else 65536}")
    else:
        yield Finding("descriptors", "ok", f"a process may open {'any number of' if soft < 0 else soft} files")


async def examine_servers(servers: Sequence[str], timeout: float, profile: Profile | None = None) -> list[Finding]:
    """Ask each of these rendezvous servers how it sees us, over UDP and TCP, and whether it serves this profile's key.

    For that a name of ours is registered there for a moment: nothing else proves the server's key, and that we are a member.

    Args:
        servers: As they are configured.
        timeout: Seconds for each question.
        profile: Has an identity; None: nothing is registered.
    """
    if not servers:
        text = "none is configured, so only peers in this network can be found"
        return [Finding("server", "warn", text, "rendezvous under [peer] in config.toml, or --rendezvous HOST:PORT")]
    return [await _ask(server, timeout, profile) for server in servers]


async def _ask(server: str, timeout: float, profile: Profile | None) -> Finding:
    from p2ptunnel.traversal.netcheck import netcheck
    from p2ptunnel.traversal.servers import Servers

    found = Servers((server,), default_port=RENDEZVOUS_PORT)
    [name] = found.texts  # without the token that may stand behind it
    try:
        report = await found.first(lambda spec: netcheck(spec, timeout=timeout, brief=True))
        if profile is not None:
            await _register(server, profile)
    except P2PTunnelError as error:
        return Finding("server", "fail", f"{name}: {str(error).removeprefix(f'{name} ')}", error.hint)
    if report.through_web:
        text = f"{name} answers in {(report.rtt or 0.0) * 1000:.0f} ms; {report.verdict}"
        fix = f"Let UDP and TCP to port {report.server[1]} of it through the firewalls on the way, for direct connections."
        return Finding("server", "warn", text, fix)
    silent = [transport for transport, way in (("UDP", report.udp), ("TCP", report.tcp)) if not way.works]
    if silent:
        text = f"{name} does not answer over {' and '.join(silent)}, so there are fewer ways to connect"
        return Finding("server", "warn", text, f"Let {' and '.join(silent)} to its port through the firewalls on the way.")
    serves = " and serves this machine" if profile is not None else ""
    return Finding("server", "ok", f"{name} answers over UDP and TCP{serves}; {report.verdict}")


async def _register(server: str, profile: Profile) -> None:
    """Be registered for a moment, under a name that nobody uses."""
    from p2ptunnel.peer import Peer

    async def nobody(stream: Stream) -> None:
        stream.abort()

    key = profile.identity().public
    async with Peer(f"doctor-{key.short}", rendezvous=server, profile=profile) as peer:
        await peer.serve({"doctor": nobody})


_LOOKS: Final[tuple[_Look, ...]] = (
    *(_directory, _identity, _peers, _config, _secrets),
    *(_python, _openssl, _clock, _ssh, _sshd, _ports, _descriptors),
)
