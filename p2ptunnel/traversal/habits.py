"""What our NATs do with SYNs: found out once in each network, while nobody waits for it, and told by every port from then on.

Rule: it begins when a port is ready, and takes nothing from that; what nobody has told is not known, and never a no.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import msgspec

from p2ptunnel.defaults import HABITS_AGAIN, HABITS_DELAY, HABITS_MEMORY, HABITS_NO_MEMORY, HABITS_PLACES
from p2ptunnel.net.sockets import is_loopback
from p2ptunnel.protocol.nat import Habits, MappingClass
from p2ptunnel.trace import Tracer
from p2ptunnel.traversal.port import Opener, PunchPort
from p2ptunnel.traversal.probing import ask_habits
from p2ptunnel.types import Address

__all__ = ["AskHabits", "NatHabits"]

AskHabits: TypeAlias = Callable[[Address, MappingClass, Opener], Awaitable[Habits]]


class _Found(msgspec.Struct, frozen=True):
    """What was found out, and until when that is as good as new."""

    habits: Habits
    until: float


class NatHabits:
    """Knows what our NATs do with SYNs; asks about those before a port when it is ready, unless that is known.

    Args:
        on_learned: Called when something has been found out.
        ask: Asks a server.
        tracer: Told what was found out.
    """

    def __init__(self, on_learned: Callable[[], None], *, ask: AskHabits = ask_habits, tracer: Tracer | None = None) -> None:
        self._on_learned: Final = on_learned
        self._ask: Final = ask
        self._trace: Final = tracer or Tracer()
        self._found: dict[tuple[Address, str], _Found] = {}  # by the server, and the host on which it sees us; oldest first
        self._asking: asyncio.Task[None] | None = None

    def known(self, server: Address, host: str) -> Habits:
        """Return what is known of the NATs through which we reach a server that sees us on this host."""
        found = self._found.get((server, host))
        return Habits() if found is None else found.habits

    def learn(self, port: PunchPort) -> None:
        """Have the server of a port that is ready asked in a moment, unless that would tell nothing new.

        Never where each new flow takes a port out of a row: those are for whoever calls.
        """
        control, mapping = port.control, port.view.nat.tcp.kind
        if control is None or port.web is not None or not control.others or mapping == "seq" or is_loopback(port.server[0]):
            return
        host = control.observed[0]
        if not self._is_fresh(port.server, host) and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._learn(port.server, host, mapping, port.opener(port.server[0])))

    def forget(self) -> None:
        """Know nothing: the network is another."""
        self._found.clear()
        self.abort()

    def abort(self) -> None:
        """Ask no more; aborting twice is fine."""
        if self._asking is not None:
            self._asking.cancel()

    async def close(self) -> None:
        """Abort, and wait until nothing of it runs; closing twice is fine."""
        self.abort()
        if self._asking is not None:
            await asyncio.gather(self._asking, return_exceptions=True)

    def _is_fresh(self, server: Address, host: str) -> bool:
        found = self._found.get((server, host))
        return found is not None and asyncio.get_running_loop().time() < found.until

    async def _learn(self, server: Address, host: str, mapping: MappingClass, opener: Opener) -> None:
        await asyncio.sleep(HABITS_DELAY)
        habits = await self._ask(server, mapping, opener)
        self._found.pop((server, host), None)  # what is found anew is the newest
        self._found[server, host] = _Found(habits, asyncio.get_running_loop().time() + _memory(habits))
        while len(self._found) > HABITS_PLACES:
            del self._found[next(iter(self._found))]
        self._trace("traversal", "habits_seen", **msgspec.structs.asdict(habits))
        if habits.is_known:
            self._on_learned()


def _memory(habits: Habits) -> float:
    """Return for how many seconds this need not be asked again."""
    if habits.crosses is False:
        return HABITS_NO_MEMORY
    return HABITS_MEMORY if habits.is_known else HABITS_AGAIN
