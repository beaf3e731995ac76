"""The TCP of one host on one shared port, as far as opening connections goes, by the rules of Linux.

A SYN meets a socket in SYN_SENT before it meets the listener: simultaneous open.  What meets neither is answered by RST.
Rule: no socket vanishes without its owner having asked for it or being told.  Source: RFC 9293 3.5, 3.10.7; measured on Linux.
"""

from __future__ import annotations

from typing import Final, Literal, Protocol, TypeAlias

from p2ptunnel.testing.simnet.network import TTL, Host, Network
from p2ptunnel.testing.simnet.segment import ACK, RST, SYN, SYN_ACK, Segment
from p2ptunnel.types import Address

__all__ = ["Owner", "Socket", "TcpStack"]

State: TypeAlias = Literal["syn-sent", "syn-received", "established"]

_REPEAT: Final = 1.0  # seconds; Linux 6.x repeats the first SYNs at equal distances (tcp_syn_linear_timeouts)


class Socket:
    """One end of a connection, up or coming up.

    Attributes:
        number: Unlike that of any other socket; the initial sequence number as well.
        remote: The other end.
        ttl: Of its SYNs; all else travels far enough.
        dialled: It was made by `connect`, not by the listener.
        state: Where it stands.
        peer: The sequence number that the other side's SYN has shown, 0 for none.
    """

    __slots__ = ("dialled", "number", "peer", "remote", "state", "ttl")

    def __init__(self, number: int, remote: Address, *, dialled: bool, ttl: int = 0) -> None:
        """Begin in SYN_SENT or, made by a listener, in SYN_RECEIVED."""
        self.number = number
        self.remote = remote
        self.ttl = ttl
        self.dialled = dialled
        self.state: State = "syn-sent" if dialled else "syn-received"
        self.peer = 0


class Owner(Protocol):
    """Whoever has the stack."""

    def socket_up(self, socket: Socket) -> None:
        """A connection stands."""
        ...

    def socket_down(self, socket: Socket) -> None:
        """A connection, or one that was coming up, was reset by the other side."""
        ...

    def received(self, socket: Socket, payload: str) -> None:
        """The other side wrote something; whatever is repeated comes twice."""
        ...


class TcpStack:
    """All TCP sockets of one host's one port.

    Attributes:
        listening: Whether a SYN that no socket wants makes a new one.
    """

    __slots__ = ("_host", "_network", "_owner", "_port", "_sockets", "listening")

    def __init__(self, network: Network, host: Host, owner: Owner, *, port: int | None = None) -> None:
        """Take what arrives at `host`, or at another `port` of it."""
        self.listening = False
        self._network = network
        self._host = host
        self._owner = owner
        self._sockets: dict[Address, Socket] = {}
        self._port = port
        if port is None:
            host.receive_tcp = self._receive
        else:
            host.more_tcp[port] = self._receive

    @property
    def sockets(self) -> tuple[Socket, ...]:
        """Every socket there is."""
        return tuple(self._sockets.values())

    def is_open(self, socket: Socket) -> bool:
        """Tell whether `socket` still exists."""
        return self._sockets.get(socket.remote) is socket

    def connect(self, remote: Address, *, ttl: int = TTL) -> Socket | None:
        """Send a SYN; return None if this pair of addresses is taken (EADDRNOTAVAIL).

        A SYN with a TTL that ends on the way ends nothing here (IP_MINTTL), and its repetitions have the same.
        """
        if remote in self._sockets:
            return None
        socket = self._sockets[remote] = Socket(next(self._network.numbers), remote, dialled=True, ttl=ttl)
        self._send_syn(socket)
        return socket

    def send(self, socket: Socket, payload: str) -> None:
        """Write to a connection, once: whoever needs an answer repeats it."""
        self._send(socket, Segment(ACK, socket.number, socket.peer, payload))

    def reset(self, socket: Socket) -> None:
        """Close at once: by RST, unless nothing has come from the other side yet."""
        if self._sockets.get(socket.remote) is socket:
            del self._sockets[socket.remote]
            if socket.state != "syn-sent":
                self._send(socket, Segment(RST, socket.number, socket.peer))

    def _receive(self, segment: Segment, remote: Address) -> None:
        socket = self._sockets.get(remote)
        if socket is None:
            self._on_stray(segment, remote)
        elif segment.kind == RST:
            self._on_rst(socket, segment)
        elif segment.kind == SYN:
            self._on_syn(socket, segment)
        elif segment.ack != socket.number:
            self._on_wrong_ack(socket, segment)
        elif segment.kind == SYN_ACK:
            self._on_syn_ack(socket, segment)
        else:
            self._on_ack(socket, segment)

    def _on_stray(self, segment: Segment, remote: Address) -> None:
        if segment.kind == SYN and self.listening:
            socket = self._sockets[remote] = Socket(next(self._network.numbers), remote, dialled=False)
            self._answer_syn(socket, segment)
        elif segment.kind != RST:
            self._put(Segment(RST, segment.ack, segment.seq), remote)

    def _on_rst(self, socket: Socket, segment: Segment) -> None:
        if segment.ack == socket.number or (socket.peer and segment.seq == socket.peer):
            del self._sockets[socket.remote]
            self._owner.socket_down(socket)

    def _on_syn(self, socket: Socket, segment: Segment) -> None:
        if socket.state == "syn-sent":
            socket.state = "syn-received"
            self._answer_syn(socket, segment)
        elif segment.seq == socket.peer and socket.state == "syn-received":
            self._send(socket, Segment(SYN_ACK, socket.number, socket.peer))
        else:  # the other side has begun anew: this makes it say so by RST (RFC 5961)
            self._send(socket, Segment(ACK, socket.number, socket.peer))

    def _on_wrong_ack(self, socket: Socket, segment: Segment) -> None:
        if socket.state != "established":
            self._put(Segment(RST, segment.ack, segment.seq), socket.remote)

    def _on_syn_ack(self, socket: Socket, segment: Segment) -> None:
        if socket.peer not in (0, segment.seq):
            return
        socket.peer = segment.seq
        self._send(socket, Segment(ACK, socket.number, socket.peer))
        self._establish(socket)

    def _on_ack(self, socket: Socket, segment: Segment) -> None:
        if segment.seq != socket.peer:
            return
        self._establish(socket)
        if segment.payload and self.is_open(socket):
            self._owner.received(socket, segment.payload)

    def _establish(self, socket: Socket) -> None:
        if socket.state != "established":
            socket.state = "established"
            self._owner.socket_up(socket)

    def _answer_syn(self, socket: Socket, segment: Segment) -> None:
        socket.peer = segment.seq
        self._send(socket, Segment(SYN_ACK, socket.number, socket.peer))
        self._network.clock.call_later(_REPEAT, self._repeat_answer, socket)

    def _repeat_answer(self, socket: Socket) -> None:
        if socket.state == "syn-received" and self.is_open(socket):
            self._send(socket, Segment(SYN_ACK, socket.number, socket.peer))
            self._network.clock.call_later(_REPEAT, self._repeat_answer, socket)

    def _send_syn(self, socket: Socket) -> None:
        if socket.state == "syn-sent" and self.is_open(socket):
            self._put(Segment(SYN, socket.number), socket.remote, ttl=socket.ttl)
            self._network.clock.call_later(_REPEAT, self._send_syn, socket)

    def _send(self, socket: Socket, segment: Segment) -> None:
        self._put(segment, socket.remote)

    def _put(self, segment: Segment, remote: Address, *, ttl: int = TTL) -> None:
        self._network.send_tcp(self._host, segment, remote, ttl=ttl, source_port=self._port)
