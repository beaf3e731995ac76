"""Asking a router for a way in: PCP first, then NAT-PMP, over the same port of the router's.  Rule: `now` comes in.

Only what comes from the router counts, and of PCP only what carries our nonce.  Nothing that it says makes us ask more than a
few times for each port and pause.

Source: RFC 6887 (8.5 epochs, 11 MAP), RFC 6886 (3.3, 3.6, 3.7); docs/explanation/nat.md.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

from p2ptunnel.defaults import (
    PORTMAP_AGAIN,
    PORTMAP_AGAIN_MIN,
    PORTMAP_AGAIN_SOON,
    PORTMAP_FIRST,
    PORTMAP_LIFETIME,
    PORTMAP_LIFETIME_MAX,
    PORTMAP_NEWS_SPREAD,
    PORTMAP_PAUSE,
    PORTMAP_TRIES,
)
from p2ptunnel.errors import LocalProtocolError
from p2ptunnel.protocol.machine import Datagram, Entropy, Event, MachineBase
from p2ptunnel.protocol.portmapping import (
    EpochWatch,
    NobodyMaps,
    PortMapped,
    PortMapping,
    PortMapProtocol,
    PortRefused,
    PortUnmapped,
    mappable_port,
    outside_refusal,
)
from p2ptunnel.types import Address, Transport
from p2ptunnel.wire import natpmp, pcp

__all__ = ["TRANSITIONS", "MappingsReturned", "PortMapClient", "PortMapState", "PortMapTrigger"]

_PCP_HAS_NO_SUCH: Final = frozenset({1, 4})  # UNSUPP_VERSION, UNSUPP_OPCODE: NAT-PMP may still do
_ANY: Final = {4: "0.0.0.0", 6: "::"}  # noqa: S104 - what PCP writes for "whichever"


class PortMapState(enum.Enum):
    """Where the asking stands."""

    IDLE = "idle"
    ASKING_PCP = "asking by PCP"
    ASKING_NATPMP = "asking by NAT-PMP"
    BY_PCP = "answered by PCP"
    BY_NATPMP = "answered by NAT-PMP"
    NOBODY = "nobody there"
    CLOSING = "taking back"
    CLOSED = "closed"


class PortMapTrigger(enum.Enum):
    """What moves it."""

    START = "asked to begin, or all ran out"
    ANSWER = "an answer"
    OLDER = "it does not speak PCP"
    SILENCE = "no answer"
    SHUT = "its port is closed, or it has nothing for us"
    CLOSE = "asked to end"
    DONE = "nothing left to take back"


_S, _T = PortMapState, PortMapTrigger
TRANSITIONS: Final = {
    (_S.IDLE, _T.START): _S.ASKING_PCP,
    (_S.IDLE, _T.CLOSE): _S.CLOSED,
    (_S.ASKING_PCP, _T.START): _S.ASKING_PCP,
    (_S.ASKING_PCP, _T.ANSWER): _S.BY_PCP,
    (_S.ASKING_PCP, _T.OLDER): _S.ASKING_NATPMP,
    (_S.ASKING_PCP, _T.SILENCE): _S.ASKING_NATPMP,
    (_S.ASKING_PCP, _T.SHUT): _S.NOBODY,
    (_S.ASKING_PCP, _T.CLOSE): _S.CLOSING,
    (_S.ASKING_NATPMP, _T.START): _S.ASKING_PCP,
    (_S.ASKING_NATPMP, _T.ANSWER): _S.BY_NATPMP,
    (_S.ASKING_NATPMP, _T.SILENCE): _S.NOBODY,
    (_S.ASKING_NATPMP, _T.SHUT): _S.NOBODY,
    (_S.ASKING_NATPMP, _T.CLOSE): _S.CLOSING,
    (_S.BY_PCP, _T.START): _S.ASKING_PCP,
    (_S.BY_PCP, _T.OLDER): _S.ASKING_NATPMP,
    (_S.BY_PCP, _T.SHUT): _S.NOBODY,
    (_S.BY_PCP, _T.CLOSE): _S.CLOSING,
    (_S.BY_NATPMP, _T.START): _S.ASKING_PCP,
    (_S.BY_NATPMP, _T.CLOSE): _S.CLOSING,
    (_S.NOBODY, _T.START): _S.ASKING_PCP,
    (_S.NOBODY, _T.CLOSE): _S.CLOSED,
    (_S.CLOSING, _T.CLOSE): _S.CLOSING,
    (_S.CLOSING, _T.DONE): _S.CLOSED,
    (_S.CLOSED, _T.CLOSE): _S.CLOSED,
}
_ASKING: Final = frozenset({_S.ASKING_PCP, _S.ASKING_NATPMP})
_PCP: Final = frozenset({_S.ASKING_PCP, _S.BY_PCP})
_NATPMP: Final = frozenset({_S.ASKING_NATPMP, _S.BY_NATPMP})


class MappingsReturned(Event, frozen=True):
    """Nothing is asked of the router any more; `unanswered` ports end by their lifetime."""

    unanswered: int


class _Wish:
    """One port that others are to get in at: what was asked, what was answered, what is due.

    sends: how often the request under way was sent; 0 if none is.  due_at: when to repeat it, or to ask again.
    """

    def __init__(self, transport: Transport, nonce: bytes, external: Address) -> None:
        self.transport: Final = transport
        self.nonce: Final = nonce
        self.external = external
        self.mapping: PortMapping | None = None
        self.expires_at = 0.0
        self.asked_at = float("-inf")
        self.sends = 0
        self.due_at: float | None = None

    def rest(self, until: float | None) -> None:
        """Wait for nothing any more, and do no more before `until`; None for never."""
        self.sends = 0
        self.due_at = until


class PortMapClient(MachineBase):
    """Keeps one local port mapped at one router, for each transport that is wanted.

    Args:
        router: Its address, with the port of PCP.
        client: Our own address, as packets to the router have it.
        port: The local port, 1024 or above.
        transports: For which to ask.
        entropy: Draws nonces and waits.

    Raises:
        ConfigError: The port is privileged.
    """

    def __init__(
        self, router: Address, client: str, port: int, entropy: Entropy, *, transports: Iterable[Transport] = ("tcp", "udp")
    ) -> None:
        super().__init__()
        self.state = PortMapState.IDLE
        self.router: Final = router
        self._source: Final = (router[0].partition("%")[0], router[1])  # what arrives has no zone
        self._local: Final = (client, mappable_port(port))
        self._any: Final = _ANY[6 if ":" in client else 4]
        self._entropy = entropy
        self._outside = ""
        self._epochs: dict[int, EpochWatch] = {}
        self._by: PortMapProtocol = "PCP"
        self._wishes: Final = {
            transport: _Wish(transport, entropy.getrandbits(96).to_bytes(pcp.NONCE_BYTES, "big"), (self._any, port))
            for transport in transports
        }

    @property
    def has_answered(self) -> bool:
        """Whether the router speaks to us, or keeps what it granted before: else it is not waited for."""
        is_kept = any(wish.mapping is not None for wish in self._wishes.values())
        return is_kept or self.state in {PortMapState.BY_PCP, PortMapState.BY_NATPMP}

    # --- what the owner asks for ----------------------------------------------------------------------------------------

    def start(self, now: float) -> None:
        """Ask the router for every port, by PCP first; again, when the network has changed: what is mapped stays meanwhile.

        Raises:
            LocalProtocolError: It was closed.
        """
        self._move(PortMapTrigger.START)
        self._begin(now)

    def close(self, now: float) -> None:
        """Take back what was asked for; `MappingsReturned` follows, at once where nothing was.  Closing twice is fine."""
        before = self._move(PortMapTrigger.CLOSE)
        if before in {PortMapState.CLOSING, PortMapState.CLOSED}:
            return
        for wish in self._wishes.values():
            wish.rest(None)
            if self.state is PortMapState.CLOSING:
                if wish.mapping is not None and wish.mapping.protocol != self._by:  # closed while it was asked anew
                    self._datagrams.extend(self._requests(wish, 0, wish.mapping.protocol))
                self._send(wish, now)
        self._finish_if_done()

    def find_shut(self, now: float) -> None:
        """Note that nobody listens at the router's port, as ICMP says; a mapping that stands is left alone."""
        if self.state in _ASKING:
            self._give_up(PortMapTrigger.SHUT, "its port is closed", now)
        elif self.state is PortMapState.CLOSING:
            for wish in self._wishes.values():
                wish.due_at = None
            self._finish_if_done()

    # --- what comes in ----------------------------------------------------------------------------------------------------

    def receive_datagram(self, data: bytes, source: Address, now: float) -> None:
        """Take what the router answers."""
        if source != self._source:
            self._drop("not from the router")
            return
        match self._read(data):
            case pcp.MapAnswer() as answer:
                self._on_pcp(answer, now)
            case natpmp.MapAnswer() as answer:
                self._on_natpmp(answer, now)
            case natpmp.AddressAnswer() as answer:
                self._on_address(answer, now)
            case pcp.Announcement():
                self._drop("unasked")
            case None:
                pass

    def receive_announcement(self, data: bytes, source: Address, now: float) -> None:
        """Take what a router tells everybody; if ours has restarted, it is asked again after a while drawn by lot."""
        if source[0] != self._source[0]:
            self._drop("not from the router")
            return
        answer = self._read(data)
        if not isinstance(answer, pcp.Announcement | natpmp.AddressAnswer) or answer.code:
            self._drop("no announcement")
        elif self.state is PortMapState.NOBODY:
            self._rest_all(now + self._entropy.random() * PORTMAP_NEWS_SPREAD)
        elif self._is_news(data[0], answer, now):
            self._ask_all_again(now, self._entropy.random() * PORTMAP_NEWS_SPREAD)

    def _read(self, data: bytes) -> pcp.Answer | natpmp.Answer | None:
        try:
            return natpmp.decode(data) if data[:1] == bytes((natpmp.VERSION,)) else pcp.decode(data)
        except (pcp.MalformedPcpError, natpmp.MalformedNatPmpError):
            self._drop("malformed")
            return None

    def _on_pcp(self, answer: pcp.MapAnswer, now: float) -> None:
        wish = self._wishes.get(answer.transport)
        if wish is None or answer.nonce != wish.nonce or answer.port != self._local[1]:
            self._drop("not our nonce")
        elif self.state is PortMapState.CLOSING and self._by == "PCP":
            self._on_returned(wish, is_gone=answer.code != 0 or answer.lifetime == 0)
        elif self.state not in _PCP or not wish.sends:
            self._drop("unasked")
        elif answer.code in _PCP_HAS_NO_SUCH:
            self._leave_pcp(PortMapTrigger.OLDER, pcp.reason_of(answer.code), now)
        else:
            self._answered(pcp.VERSION, answer.epoch, wish, now)
            if answer.code:
                self._refuse(wish, answer.code, pcp.reason_of(answer.code), now, answer.lifetime)
            else:
                self._map(wish, answer.external, answer.lifetime, now)

    def _on_natpmp(self, answer: natpmp.MapAnswer, now: float) -> None:
        wish = self._wishes.get(answer.transport)
        if answer.code == natpmp.UNSUPPORTED_VERSION:
            self._on_older(now)
        elif wish is None or (answer.port != self._local[1] and not answer.code):
            self._drop("not our port")
        elif self.state is PortMapState.CLOSING and self._by == "NAT-PMP":
            self._on_returned(wish, is_gone=answer.code != 0 or answer.lifetime == 0)
        elif self.state not in _NATPMP or not wish.sends:
            self._drop("unasked")
        elif not answer.code and not self._outside:
            self._drop("no outside address yet")  # both are asked for again
        else:
            self._answered(natpmp.VERSION, answer.epoch, wish, now)
            if answer.code:
                self._refuse_by_natpmp(wish, answer.code, now)
            else:
                self._map(wish, (self._outside, answer.external_port), answer.lifetime, now)

    def _on_older(self, now: float) -> None:
        """Take that it does not speak PCP; it says so of each port, and only the first time is news."""
        if self.state in _PCP:
            self._leave_pcp(PortMapTrigger.OLDER, natpmp.reason_of(natpmp.UNSUPPORTED_VERSION), now)
        else:
            self._drop("unasked")

    def _on_address(self, answer: natpmp.AddressAnswer, now: float) -> None:
        if self.state not in _NATPMP:
            self._drop("unasked")
        elif not answer.code:
            self._outside = answer.host
        else:  # without an address a port is worth nothing
            for wish in self._wishes.values():
                if wish.sends:
                    self._answered(natpmp.VERSION, answer.epoch, wish, now)
                    self._datagrams.extend(self._requests(wish, 0, self._by))
                    self._refuse_by_natpmp(wish, answer.code, now)

    # --- what is due ------------------------------------------------------------------------------------------------------

    def handle_timer(self, now: float) -> None:
        """Repeat, give up, renew, ask again: whatever is due."""
        for wish in self._wishes.values():
            if wish.due_at is None or now < wish.due_at:
                continue
            if self.state is PortMapState.NOBODY:
                self.start(now)
            elif wish.sends >= PORTMAP_TRIES:
                self._on_silence(wish, now)
            else:
                self._send(wish, now)

    def next_deadline(self) -> float | None:
        """Return when something is due."""
        return min((wish.due_at for wish in self._wishes.values() if wish.due_at is not None), default=None)

    def _on_silence(self, wish: _Wish, now: float) -> None:
        match self.state:
            case PortMapState.CLOSING:
                wish.due_at = None  # its sends tell that it was not answered
                self._finish_if_done()
            case PortMapState.ASKING_PCP:
                self._leave_pcp(PortMapTrigger.SILENCE, "no answer", now)
            case PortMapState.ASKING_NATPMP:
                self._give_up(PortMapTrigger.SILENCE, "no answer", now)
            case _ if wish.mapping is None:
                self._refuse(wish, 0, "no answer", now)
            case _ if now < wish.expires_at:
                wish.rest(now + max((wish.expires_at - now) / 2, PORTMAP_FIRST))
            case _:
                self._expire(wish, now)

    def _expire(self, wish: _Wish, now: float) -> None:
        """Give up one mapping; when the last one is gone, whoever is there now is asked as if for the first time."""
        self._unmap(wish, "the router is silent, and the mapping ran out")
        wish.rest(now + PORTMAP_AGAIN)
        if not any(other.mapping for other in self._wishes.values()):
            self.start(now)

    # --- what we do about it ----------------------------------------------------------------------------------------------

    def _move(self, trigger: PortMapTrigger) -> PortMapState:
        before = self.state
        try:
            self.state = TRANSITIONS[before, trigger]
        except KeyError:
            raise LocalProtocolError(f"port mapping is {before.value}: no {trigger.value} there") from None
        return before

    def _begin(self, now: float) -> None:
        self._by = "PCP" if self.state is PortMapState.ASKING_PCP else "NAT-PMP"
        self._outside = ""
        for wish in self._wishes.values():
            wish.rest(None)
            self._send(wish, now)

    def _leave_pcp(self, trigger: PortMapTrigger, reason: str, now: float) -> None:
        if ":" in self._local[0]:  # NAT-PMP knows IPv4 only
            self._give_up(PortMapTrigger.SHUT, reason, now)
        else:
            self._move(trigger)
            self._begin(now)

    def _give_up(self, trigger: PortMapTrigger, reason: str, now: float) -> None:
        self._move(trigger)
        self._rest_all(now + PORTMAP_AGAIN)
        for wish in self._wishes.values():
            self._unmap(wish, reason)
        self._events.append(NobodyMaps(reason))

    def _rest_all(self, until: float) -> None:
        for wish in self._wishes.values():
            wish.rest(until)

    def _answered(self, version: int, epoch: int, wish: _Wish, now: float) -> None:
        """Note that somebody answers, and ask for the other ports again if the router has lost them."""
        if self.state in _ASKING:
            self._move(PortMapTrigger.ANSWER)
        wish.rest(None)
        if self._has_restarted(version, epoch, now):
            self._ask_all_again(now, 0.0, but=wish)

    def _has_restarted(self, version: int, epoch: int, now: float) -> bool:
        return self._epochs.setdefault(version, EpochWatch()).take(epoch, now)

    def _is_news(self, version: int, answer: pcp.Announcement | natpmp.AddressAnswer, now: float) -> bool:
        """Tell whether it is new that the router has begun, or has another address; they repeat it ten times."""
        is_first = version not in self._epochs  # we know it by the other protocol only
        is_elsewhere = isinstance(answer, natpmp.AddressAnswer) and self._outside not in ("", answer.host)
        return self._has_restarted(version, answer.epoch, now) or is_first or is_elsewhere

    def _ask_all_again(self, now: float, wait: float, but: _Wish | None = None) -> None:
        for wish in self._wishes.values():
            if wish is not but and not wish.sends and self.state in {PortMapState.BY_PCP, PortMapState.BY_NATPMP}:
                wish.rest(max(now + wait, wish.asked_at + PORTMAP_PAUSE))

    def _map(self, wish: _Wish, external: Address, lifetime: int, now: float) -> None:
        refusal = outside_refusal(external)
        if refusal or not lifetime:
            self._datagrams.extend(self._requests(wish, 0, self._by))
            self._refuse(wish, 0, refusal or "it grants no time", now)
            return
        granted = min(lifetime, PORTMAP_LIFETIME_MAX)
        wish.external = external
        wish.expires_at = now + granted
        wish.mapping = PortMapping(
            transport=wish.transport,
            local=self._local,
            external=external,
            lifetime=granted,
            protocol=self._by,
            gateway=self.router[0],
        )
        wish.rest(now + max(granted / 2, PORTMAP_PAUSE))
        self._events.append(PortMapped(transport=wish.transport, mapping=wish.mapping))

    def _refuse(self, wish: _Wish, code: int, reason: str, now: float, lasts: float = PORTMAP_AGAIN) -> None:
        wish.mapping = None
        wish.rest(now + min(max(lasts, PORTMAP_AGAIN_MIN), PORTMAP_AGAIN))
        self._events.append(PortRefused(transport=wish.transport, protocol=self._by, code=code, reason=reason))

    def _refuse_by_natpmp(self, wish: _Wish, code: int, now: float) -> None:
        lasts = PORTMAP_AGAIN_SOON if code == natpmp.NETWORK_FAILURE else PORTMAP_AGAIN  # it does not say
        self._refuse(wish, code, natpmp.reason_of(code), now, lasts)

    def _unmap(self, wish: _Wish, reason: str) -> None:
        if wish.mapping is not None:
            wish.mapping = None
            self._events.append(PortUnmapped(transport=wish.transport, reason=reason))

    def _on_returned(self, wish: _Wish, *, is_gone: bool) -> None:
        if is_gone:  # else it is the late answer to what was asked before
            wish.rest(None)
            self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self.state is PortMapState.CLOSING:
            if any(wish.due_at is not None for wish in self._wishes.values()):
                return
            self._move(PortMapTrigger.DONE)
        self._events.append(MappingsReturned(sum(wish.sends > 0 for wish in self._wishes.values())))

    def _send(self, wish: _Wish, now: float) -> None:
        if not wish.sends:
            wish.asked_at = now
        lifetime = 0 if self.state is PortMapState.CLOSING else PORTMAP_LIFETIME
        self._datagrams.extend(self._requests(wish, lifetime, self._by))
        wish.due_at = now + PORTMAP_FIRST * 2**wish.sends
        wish.sends += 1

    def _requests(self, wish: _Wish, lifetime: int, by: PortMapProtocol) -> list[Datagram]:
        host, port = wish.external if lifetime else (self._any, 0)
        local_host, local_port = self._local
        if by == "PCP":
            request = pcp.MapRequest(
                nonce=wish.nonce,
                transport=wish.transport,
                client=local_host,
                port=local_port,
                external=(host, port),
                lifetime=lifetime,
            )
            return [Datagram(pcp.encode(request), self.router)]
        asked = natpmp.MapRequest(transport=wish.transport, port=local_port, external_port=port, lifetime=lifetime)
        address = [natpmp.ADDRESS_REQUEST] if lifetime else []
        return [Datagram(data, self.router) for data in (*address, natpmp.encode(asked))]
