"""The QUIC connections on one UDP port, which the JSON machines share.

A datagram is JSON if it begins with `{` and goes on with a byte below 0x80, with which no connection id of ours begins; it is
QUIC if its first two bits are not both zero (RFC 9443).  Whose it is, its connection id tells.

Rule: the port outlives whoever drives the machines on it, as long as a connection needs it.

Source: RFC 8999, RFC 9443; docs/explanation/data-path.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from p2ptunnel.defaults import HANDSHAKE_TIMEOUT, QUIC_RECEIVE_BYTES
from p2ptunnel.errors import MissingExtraError
from p2ptunnel.net.interfaces import is_on_link
from p2ptunnel.net.sockets import widen_receiving
from p2ptunnel.net.threads import in_thread
from p2ptunnel.net.udp import UdpSocket
from p2ptunnel.net.watch import Watch
from p2ptunnel.protocol.consent import Consent
from p2ptunnel.trace import Tracer
from p2ptunnel.transports.quic import QuicPipe
from p2ptunnel.types import Address, Path
from p2ptunnel.wire.messages import ConsentAnswer, ConsentCheck, MalformedMessageError, decode, message_number

if TYPE_CHECKING:
    from p2ptunnel.transports.quiclink import Link

__all__ = ["QuicPort", "quic_name"]

_NAME_BYTES: Final = 16
_ID: Final = slice(1, 9)  # of a short header
_LONG_ID_LENGTH: Final = 5  # of a long one: where the length stands, the id follows
_WHY: Final = "QUIC through the port that UDP has opened"


def quic_name(conkey: str) -> bytes:
    """Return what the caller of an attempt calls the callee in its first datagrams, which nobody else can know.

    So nobody who is not on the path can begin a connection in its place; the conkey itself is not in the open by that.
    """
    return hashlib.sha256(b"p2ptunnel quic 1\0" + bytes.fromhex(conkey)).digest()[:_NAME_BYTES]


class QuicPort:
    """What lives on a UDP port beside its machines; an `Aside` of the driver that reads it.

    Args:
        udp: The port's; the driver closes it.
        tracer: Gets what happens.
    """

    def __init__(self, udp: UdpSocket, *, tracer: Tracer | None = None) -> None:
        self._udp = udp
        self._trace: Final = tracer or Tracer()
        self._watches: tuple[Watch, ...] = ()
        self._links: dict[bytes, Link] = {}  # by the name and by the id of each
        self._consents: dict[str, Link] = {}
        self._expected: dict[bytes, Callable[[bytes, Address], bool]] = {}

    async def connect(self, name: bytes, consent: Consent, rtt: float | None) -> QuicPipe:
        """Connect to the callee, which expects us by `name`.

        Raises:
            MissingExtraError: aioquic is not installed.
            OSError: Nobody answered in 5 s, or not by our rules.
        """
        await in_thread(_load)
        return await self._open(name, consent, rtt, is_caller=True)

    def expect(self, name: bytes, on_first: Callable[[bytes, Address], bool]) -> None:
        """Have the first datagram of the caller's connection handed to `on_first`, until it takes one or is forgotten."""
        self._expected[name] = on_first

    def forget(self, name: bytes) -> None:
        """Expect that caller no more; forgetting twice is fine."""
        self._expected.pop(name, None)

    async def accept(self, name: bytes, consent: Consent, first: bytes, rtt: float | None = None) -> QuicPipe:
        """Bring up the caller's connection, which has begun with the datagram `first` from where `consent` has it.

        Raises:
            MissingExtraError: aioquic is not installed.
            OSError: It was not up in 5 s.
        """
        await in_thread(_load)  # now, since most callers never come this way
        return await self._open(name, consent, rtt, is_caller=False, first=first)

    def take(self, data: bytes, source: Address) -> bool:
        """Take a datagram of a connection, or of consent to one; whatever else comes is the machine's, which counts it."""
        if data[:1] == b"{" and data[1:2] < b"\x80":
            return bool(self._consents) and self._take_consent(data, source)
        if data[:1] < b"\x40":
            return False
        if (link := self._links.get(_id_of(data))) is not None:
            link.receive(data, source)
            return True
        name = _id_of(data)
        if (on_first := self._expected.get(name)) is None or not on_first(data, source):
            return False
        self.forget(name)
        return True

    def outlive(self) -> None:
        """Read the port on, if there is a connection; whoever is expected is expected no more."""
        self._expected.clear()
        if not self._links:
            return
        try:
            self._udp = self._udp.duplicate()
        except OSError:  # out of descriptors: they end with the port
            self.abort()
        else:
            self._watches = tuple(Watch(sock, self._read) for sock in self._udp.sockets)

    def abort(self) -> None:
        """End every connection at once."""
        for link in tuple(self._links.values()):
            link.abort()

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _open(self, name: bytes, consent: Consent, rtt: float | None, *, is_caller: bool, first: bytes = b"") -> QuicPipe:
        from p2ptunnel.transports.quiclink import Link
        from p2ptunnel.transports.quicwire import Connection

        for sock in self._udp.sockets:
            widen_receiving(sock, QUIC_RECEIVE_BYTES)
        connection = Connection(name, is_caller=is_caller, rtt=rtt)
        keys = {name, connection.id}
        link = Link(connection, consent, self._send, lambda: self._forget(keys, consent.token), self._trace)
        self._links |= dict.fromkeys(keys, link)
        self._consents[consent.token] = link
        link.start(first)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT):
                await link.opened
        except BaseException:
            link.abort()
            raise
        return QuicPipe(link, self._path(consent.remote, rtt))

    def _path(self, remote: Address, rtt: float | None) -> Path:
        is_near = is_on_link(remote[0])
        local = self._udp.address
        return Path(kind="lan" if is_near else "direct", transport="quic", local=local, remote=remote, rtt=rtt, why=_WHY)

    def _send(self, datagrams: Sequence[bytes], remote: Address) -> None:
        self._udp.send_all(datagrams, remote)

    def _take_consent(self, data: bytes, source: Address) -> bool:
        if message_number(data) not in {33, -33}:
            return False
        try:
            message = decode(data)
        except MalformedMessageError:
            return False
        if not isinstance(message, ConsentCheck | ConsentAnswer) or message.token not in self._consents:
            return False
        self._consents[message.token].receive_consent(message, data, source)
        return True

    def _read(self) -> None:
        for data, source in self._udp.receive():
            self.take(data, source)

    def _forget(self, keys: set[bytes], token: str) -> None:
        for key in keys:
            self._links.pop(key, None)
        self._consents.pop(token, None)
        if self._watches and not self._links:
            for watch in self._watches:
                watch.stop()
            self._udp.close()


def _id_of(data: bytes) -> bytes:
    """Return by what a datagram calls us, whatever the version (RFC 8999)."""
    if not data[0] & 0x80:
        return data[_ID]
    length = data[_LONG_ID_LENGTH] if len(data) > _LONG_ID_LENGTH else 0
    return data[_LONG_ID_LENGTH + 1 : _LONG_ID_LENGTH + 1 + length]


def _load() -> None:
    """Load what takes a while to load; not in the loop.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        importlib.import_module("p2ptunnel.transports.quiclink")
    except ModuleNotFoundError as error:
        raise MissingExtraError("QUIC", "quic") from error
