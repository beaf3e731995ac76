"""Look-ups of names for peers: each name once at a time, so many in all and of one peer.

Rule: a look-up counts until the resolver has answered, whoever has given it up before: nothing ends the thread it hangs in.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from typing import Final, Generic, TypeVar

from p2ptunnel.defaults import LOOKUPS_MAX, LOOKUPS_OF_PEER_MAX
from p2ptunnel.errors import LookupsBusyError

__all__ = ["Lookups"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Lookups(Generic[K, T]):
    """Calls of one blocking function, in daemon threads; whoever asks for what is being looked up shares the answer.

    Args:
        look_up: The function.
        most: How many calls may be under way.
        most_of_one: How many of one asker.
    """

    def __init__(self, look_up: Callable[[K], T], *, most: int = LOOKUPS_MAX, most_of_one: int = LOOKUPS_OF_PEER_MAX) -> None:
        self._look_up: Final = look_up
        self._most: Final = most
        self._most_of_one: Final = most_of_one
        self._lock: Final = threading.Lock()
        self._under_way: Final[dict[K, Future[T]]] = {}
        self._of: Final[Counter[Hashable]] = Counter()

    async def find(self, wanted: K, asker: Hashable) -> T:
        """Return what the function returns for `wanted`, or raise what it raises; cancelled, it goes on for others.

        Args:
            wanted: What is looked up.
            asker: Whose look-up it is, if it is not under way already.

        Raises:
            LookupsBusyError: Too many are under way.
        """
        return await asyncio.wrap_future(self._join(wanted, asker))

    def _join(self, wanted: K, asker: Hashable) -> Future[T]:
        with self._lock:
            if (known := self._under_way.get(wanted)) is not None:
                return known
            if len(self._under_way) >= self._most or self._of[asker] >= self._most_of_one:
                raise LookupsBusyError
            found: Future[T] = Future()
            found.set_running_or_notify_cancel()  # from here on nobody who goes away cancels it for the others
            threading.Thread(target=self._work, args=(wanted, asker, found), name="p2ptunnel-look-up", daemon=True).start()
            self._under_way[wanted] = found
            self._of[asker] += 1
            return found

    def _work(self, wanted: K, asker: Hashable, found: Future[T]) -> None:
        tell: Callable[[], None]
        try:
            tell = partial(found.set_result, self._look_up(wanted))
        except Exception as error:  # noqa: BLE001 - it is raised where it belongs, in the tasks that wait
            tell = partial(found.set_exception, error)
        with self._lock:
            del self._under_way[wanted]
            self._of[asker] -= 1
            if not self._of[asker]:
                del self._of[asker]
        tell()
