"""A UPnP router that says whatever a test wants: its sockets live on a machine of the laboratory, its code in our loop."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeAlias

from p2ptunnel.testing.natlab import Host
from p2ptunnel.wire import xml

__all__ = ["IP_1", "IP_2", "Answer", "FakeIgd", "fault", "http", "returns"]

IP_1, IP_2 = (f"urn:schemas-upnp-org:service:WANIPConnection:{version}" for version in (1, 2))
HTTP_PORT, SSDP_PORT = 5000, 1900

Answer: TypeAlias = Callable[[str, Mapping[str, str]], bytes]
"""Returns what is sent for an action and its arguments."""


def http(body: bytes, status: str = "200 OK", fields: str = "") -> bytes:
    """An answer whose body ends with the connection."""
    return f"HTTP/1.1 {status}\r\nContent-Type: text/xml\r\n{fields}\r\n".encode() + body


def returns(action: str, **values: object) -> bytes:
    """What a router says that agrees."""
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
    return http(f'<s:Envelope xmlns:s="s"><u:{action}Response xmlns:u="u">{inner}</u:{action}Response></s:Envelope>'.encode())


def fault(code: int) -> bytes:
    """What a router says that refuses."""
    body = f"<Envelope><Fault><UPnPError><errorCode>{code}</errorCode></UPnPError></Fault></Envelope>"
    return http(body.encode(), "500 Internal Server Error")


class FakeIgd(asyncio.DatagramProtocol):
    """Answers searches and questions until left.

    Args:
        machine: Where it listens.
        answer: To an action; "" for the description, whose default is `description`.
        kind: Of the service that it describes.
        location: What it names in its answer to a search; None for its own.

    Attributes:
        asked: Every action and its arguments.
    """

    def __init__(self, machine: Host, answer: Answer, *, kind: str = IP_1, location: str | None = None) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self._machine = machine
        self._answer = answer
        self._kind = kind
        self._location = location
        self._open: set[asyncio.Task[None]] = set()

    @property
    def actions(self) -> list[str]:
        """What was asked, by name; the description not."""
        return [action for action, _ in self.asked if action]

    def description(self) -> bytes:
        """What a router says of itself."""
        service = f"<service><serviceType>{self._kind}</serviceType><controlURL>/ctl</controlURL></service>"
        return http(f"<root><device><serviceList>{service}</serviceList></device></root>".encode())

    async def __aenter__(self) -> Self:
        ssdp = self._machine.socket(type=socket.SOCK_DGRAM)
        ssdp.bind(("", SSDP_PORT))
        ssdp.setblocking(False)
        web = self._machine.socket()
        web.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        web.bind(("", HTTP_PORT))
        self._ssdp, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, sock=ssdp)
        self._web = await asyncio.start_server(self._serve, sock=web)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ssdp.close()
        self._web.close()
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await asyncio.sleep(0)  # the transports end in the next turn

    def listen_to_everybody(self, address: str) -> None:
        """Hear the multicasts of the network of `address` too."""
        sock = self._ssdp.get_extra_info("socket")
        group = socket.inet_aton("239.255.255.250") + socket.inet_aton(address)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._location is not None and data.startswith(b"M-SEARCH"):
            self._ssdp.sendto(f"HTTP/1.1 200 OK\r\nLOCATION: {self._location}\r\n\r\n".encode(), addr)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"Content-Length: (\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            action, arguments = _called(body)
            self.asked.append((action, arguments))
            answer = self._answer(action, arguments)
            writer.write(answer or self.description())
            if not answer.endswith(_HANG):
                writer.write_eof()
                await writer.drain()
            else:
                await asyncio.get_running_loop().create_future()
        except (OSError, asyncio.IncompleteReadError):  # whoever asked has gone
            return
        finally:
            writer.transport.abort()
            self._open.discard(task)


_HANG = b"\r\nX-Hang: yes\r\n"
"""An answer that ends so never ends."""


def _called(body: bytes) -> tuple[str, dict[str, str]]:
    if not body:
        return "", {}
    action = xml.parse(body).children[0].children[0]
    return action.name, {argument.name: argument.text for argument in action.children}
