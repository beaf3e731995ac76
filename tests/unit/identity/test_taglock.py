"""One program at a time is registered under a tag of a profile, and the end of a program is the end of its hold."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from p2ptunnel.errors import ConfigError, TagBusyError
from p2ptunnel.identity.taglock import Doing, TagLock

HOLDER = """
import sys
from pathlib import Path
from p2ptunnel.identity.taglock import TagLock
lock = TagLock.take(Path(sys.argv[1]), "home-nas", "serve")
print("held", flush=True)
sys.stdin.read()
"""


def test_another_program_is_named_and_its_death_frees_the_tag(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(TagBusyError) as error:
            TagLock.take(tmp_path, "home-nas", "serve")
        assert str(error.value) == f"another p2ptunnel serve (pid {holder.pid}) runs here with the tag 'home-nas'"
        assert error.value.hint == "One program serves several: p2ptunnel serve ssh 8888. Or end the other one first."
        assert (error.value.tag, error.value.doing, error.value.pid) == ("home-nas", "serve", holder.pid)
        assert isinstance(error.value, ConfigError)
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    TagLock.take(tmp_path, "home-nas", "serve").release()


def test_serving_pairing_and_other_tags_do_not_get_into_each_others_way(tmp_path: Path) -> None:
    doings: tuple[Doing, Doing] = ("serve", "pair")
    held = [TagLock.take(tmp_path, tag, doing) for tag in ("home-nas", "home") for doing in doings]
    with pytest.raises(TagBusyError) as error:
        TagLock.take(tmp_path, "home-nas", "pair")
    assert str(error.value) == f"another p2ptunnel pair (pid {os.getpid()}) runs here with the tag 'home-nas'"
    assert error.value.hint == "Its code and its ticket are good for this; or end it first."
    for lock in held:
        lock.release()
        lock.release()
    TagLock.take(tmp_path, "home-nas", "pair").release()


def test_a_holder_that_has_not_said_its_number_is_none(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "serve-home-nas.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TagBusyError, match="another p2ptunnel serve runs here with the tag 'home-nas'"):
            TagLock.take(tmp_path, "home-nas", "serve")


def test_where_no_file_can_be_made_nobody_is_kept_from_anything(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    for _ in range(2):
        TagLock.take(tmp_path, "home-nas", "serve")


def test_only_the_owner_can_read_who_holds_it(tmp_path: Path) -> None:
    lock = TagLock.take(tmp_path, "home-nas", "serve")
    path = tmp_path / "run" / "serve-home-nas.lock"
    assert (path.read_text(), path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (
        str(os.getpid()),
        0o600,
        0o700,
    )
    lock.release()
