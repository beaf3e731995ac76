"""Carries a stream over stdin and stdout, whatever they are: pipes, files, a terminal, /dev/null.

Two threads copy with blocking calls, since a loop cannot wait for files, and since making a terminal non-blocking would do so
for every program that shares it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Final

from p2ptunnel.abc import Stream
from p2ptunnel.cli.output import ReaderGoneError
from p2ptunnel.net.pump import pump
from p2ptunnel.net.threads import in_thread

__all__ = ["carry_stdio"]

_STDIN, _STDOUT = 0, 1
_CHUNK_BYTES: Final = 256 * 1024
