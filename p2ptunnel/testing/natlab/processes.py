"""What the kernel tells of processes in `/proc`; where there is none, nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["descendants", "stat_fields"]


def descendants(pid: int) -> Iterator[int]:
    """Yield a process, its children, and theirs.  Whose parent has ended belongs to init, and is not found."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        if fields := stat_fields(int(entry.name)):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    while found:
        yield (parent := found.pop())
        found.extend(children.get(parent, ()))


def stat_fields(pid: int) -> list[str]:
    """Return the fields of a process from the third on, the state (proc_pid_stat(5)); none if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
