"""A QUIC connection of ours, fed what a stranger, and what a peer that has shaken hands, may send."""

# pyright: reportPrivateUsage=false
# what is to be read must be sealed, with keys that aioquic keeps to itself

from __future__ import annotations

import itertools
import random
from typing import Final

from aioquic import tls
from aioquic.buffer import encode_uint_var

from p2ptunnel.transports.quicwire import PEER, Connection

__all__ = ["DATAGRAMS", "FRAMES", "HELLOS", "QuicDatagramReader", "QuicFrameReader", "read_hello"]

_NAME: Final = bytes(range(16))
_TURNS: Final = 6
_LIFE: Final = 200
"""Inputs that one connection is given at most."""


class _Handshake:
    """A caller and a callee that have just shaken hands in memory.

    Attributes:
        datagrams: What went from the one to the other.
    """

    def __init__(self) -> None:
        self.caller = Connection(_NAME, is_caller=True, rtt=0.01)
        self.callee = Connection(_NAME, is_caller=False, rtt=None)
        self.datagrams: list[bytes] = []
        self.now = 0.0
        self.caller.connect(PEER, self.now)
        self.caller.write(b"\x01")
        for _ in range(_TURNS):
            self.now += 0.01
            for source, target in ((self.caller, self.callee), (self.callee, self.caller)):
                for data, _address in source.datagrams_to_send(self.now):
                    self.datagrams.append(data)
                    target.receive_datagram(data, PEER, self.now)

    def give(self, data: bytes) -> None:
        """Give the callee a datagram, and have it do what it then wants to do."""
        self.now += 0.01
        self.callee.receive_datagram(data, PEER, self.now)
        if (deadline := self.callee.get_timer()) is not None and deadline <= self.now:
            self.callee.handle_timer(self.now)
        while self.callee.next_event() is not None:
            pass
        self.callee.datagrams_to_send(self.now)


class QuicDatagramReader:
    """Feeds datagrams as they are, one behind the other, to a connection that is up."""

    def __init__(self) -> None:
        self._ends = _Handshake()
        self._lives = itertools.count()

    def __call__(self, data: bytes, /) -> None:
        """Read one datagram."""
        if self._ends.callee.ended or next(self._lives) % _LIFE == _LIFE - 1:
            self._ends = _Handshake()
        self._ends.give(self._sealed(data))

    def _sealed(self, data: bytes) -> bytes:
        return data


class QuicFrameReader(QuicDatagramReader):
    """The same for frames, sealed with the right keys: what a peer can say that has shaken hands."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers = itertools.count(1000)

    def _sealed(self, data: bytes) -> bytes:
        number = next(self._numbers)
        header = b"\x43" + self._ends.callee.id + number.to_bytes(4, "big")
        payload = data[:1100].ljust(4, b"\0")
        sealed: bytes = self._ends.caller._cryptos[tls.Epoch.ONE_RTT].encrypt_packet(header, payload, number)  # noqa: SLF001
        return sealed


def read_hello(data: bytes) -> None:
    """Read what claims to be a ClientHello, in a first datagram as anybody can seal it who sees the name go by."""
    callee = Connection(_NAME, is_caller=False, rtt=None)
    callee.receive_datagram(_first(data[:1000]), PEER, 0.0)
    while callee.next_event() is not None:
        pass
    callee.datagrams_to_send(0.0)


def _first(hello: bytes) -> bytes:
    plain = (b"\x06\x00" + encode_uint_var(len(hello)) + hello).ljust(1150, b"\0")
    size = encode_uint_var(4 + len(plain) + 16)
    own = _BEGINNER.id
    header = b"\xc3\x00\x00\x00\x01" + bytes([len(_NAME)]) + _NAME + bytes([len(own)]) + own + b"\x00" + size
    sealed: bytes = _BEGINNER._cryptos[tls.Epoch.INITIAL].encrypt_packet(header + bytes(4), plain, 0)  # noqa: SLF001
    return sealed


def _beginner() -> Connection:
    """Return a caller that has said hello."""
    caller = Connection(_NAME, is_caller=True, rtt=None)
    caller.connect(PEER, 0.0)
    return caller


def _frames() -> tuple[bytes, ...]:
    """Return a frame of each type that QUIC has, with numbers small and large."""
    dice = random.Random(1)
    numbers = (0, 1, 4, 63, 1000, 2**20, 2**40, 2**62 - 1)
    types = (*range(0x1F), 0x30, 0x31)
    return tuple(
        b"".join(map(encode_uint_var, (kind, *(dice.choice(numbers) for _ in range(5))))) + dice.randbytes(dice.randrange(30))
        for kind in types
    )


DATAGRAMS: Final = tuple(_Handshake().datagrams)
FRAMES: Final = _frames()
_BEGINNER: Final = _beginner()
HELLOS: Final = (bytes(_BEGINNER._crypto_streams[tls.Epoch.INITIAL].sender._buffer),)  # noqa: SLF001
