"""One of the channels of a session.  Rule: it decides nothing; it tells the session which channel it is that speaks."""

from __future__ import annotations

from typing import Final, Protocol

from p2ptunnel.errors import ChannelError
from p2ptunnel.session.channel import Channel
from p2ptunnel.types import Path

__all__ = ["Leg", "Owner"]


class Owner(Protocol):
    """What a leg needs of its session."""

    def received(self, leg: Leg, data: memoryview) -> None:
        """Take bytes that the leg's channel has authenticated."""
        ...

    def flush(self) -> None:
        """Send what waits now, as far as the channels take it."""
        ...

    def leg_ended(self, leg: Leg, error: ChannelError) -> None:
        """Learn that the leg's channel is gone."""
        ...


class Leg:
    """A channel, the path that it runs on, and its number in the session."""

    def __init__(self, session: Owner, channel: Channel, path: Path, number: int) -> None:
        self.channel: Final = channel
        self.path: Final = path
        self.number: Final = number
        self._session: Final = session

    def data_received(self, data: memoryview) -> None:
        """Hand on bytes."""
        self._session.received(self, data)

    def writable(self) -> None:
        """Let the session write on."""
        self._session.flush()

    def channel_ended(self, error: ChannelError) -> None:
        """Tell the session."""
        self._session.leg_ended(self, error)
