"""Two strangers who pair over loopback: real TCP, real TLS, and what each claims of the other given by the test."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from types import MappingProxyType

from p2ptunnel.errors import PeerKeyChangedError
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.protocol.pairing import Desk
from p2ptunnel.session.pairing import Services, be_guest, call_host, receive_guest
from p2ptunnel.transports.tcp import read_preamble
from tests.helpers.peers import new_pipe, tcp_pair

__all__ = ["GUEST", "HOST", "SECRET", "WORDS", "Strangers"]

GUEST, HOST = (Identity.from_seed(bytes([number]) * 32) for number in (31, 32))
SECRET = bytes(range(16))
WORDS = "apple-river-zoo"
SSH_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA=="


class Strangers:
    """A host with a desk, a guest, and what each has stored in the end."""

    def __init__(self, *, uses: int = 1, expires: float = 600.0) -> None:
        self.desk = Desk(SECRET, WORDS, expires_at=time.monotonic() + expires, uses=uses)
        self.guest, self.host = GUEST, HOST
        self.guest_claimed, self.host_claimed = GUEST.public, HOST.public
        self.selector = os.urandom(16)
        self.services: Services = MappingProxyType({"ssh": (SSH_KEY,), "web": ()})
        self.guests: list[tuple[PublicKey, str]] = []
        """Whom the host has stored."""
        self.hosts: list[Services] = []
        """What the guest has stored."""
        self.taken: set[str] = set()
        """Names under which the host knows other machines."""
        self.source = 0

    async def keep_guest(self, key: PublicKey, tag: str) -> Services:
        if tag in self.taken:
            raise PeerKeyChangedError(tag, "another")
        self.guests.append((key, tag))
        return self.services

    async def keep_host(self, services: Services) -> None:
        self.hosts.append(services)

    async def receive(self, sock: socket.socket, selector: bytes | None = None) -> None:
        """The host's side; each guest comes from another source unless the test says otherwise."""
        self.source += 1
        try:
            shown = await read_preamble(sock)
        except BaseException:
            sock.close()
            raise
        await receive_guest(
            new_pipe(sock),
            identity=self.host,
            guest=self.guest_claimed,
            selector=selector or shown,
            desk=self.desk,
            source=str(self.source),
            keep=self.keep_guest,
        )

    async def call(self, sock: socket.socket, given: bytes | str, tag: str = "laptop") -> None:
        """The guest's side."""
        channel = await call_host(new_pipe(sock), identity=self.guest, host=self.host_claimed, selector=self.selector)
        await be_guest(channel, tag, given, self.keep_host)

    async def meet(
        self, given: bytes | str, tag: str = "laptop", ends: tuple[socket.socket, socket.socket] | None = None
    ) -> tuple[BaseException | None, BaseException | None]:
        """Both sides at once: what the guest raised and what the host raised, None where it went well."""
        client, server = ends or tcp_pair()
        guest, host = await asyncio.gather(self.call(client, given, tag), self.receive(server), return_exceptions=True)
        return guest, host
