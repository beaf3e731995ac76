"""What several test modules need: running a coroutine, and seeing what it left behind."""

from tests.helpers.leaks import Leaks, watch_for_leaks
from tests.helpers.running import run

__all__ = ["Leaks", "run", "watch_for_leaks"]
