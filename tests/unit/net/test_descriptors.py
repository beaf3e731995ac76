"""How many files may still be opened: so many fewer as are open."""

from __future__ import annotations

import resource
import socket

import pytest

from p2ptunnel.net.descriptors import free_descriptors


def test_each_open_file_is_one_less() -> None:
    before = free_descriptors()
    assert before is not None
    with socket.socket(), socket.socket():
        assert free_descriptors() == before - 2
    assert free_descriptors() == before


def test_without_a_limit_nobody_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert free_descriptors() is None


def test_there_are_never_fewer_than_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 1))
    assert free_descriptors() == 0
