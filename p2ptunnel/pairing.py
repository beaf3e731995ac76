"""Two machines that do not know each other yet: one invites, the other redeems, and then each has pinned the other's key.

Rule: a ticket and a code are shown where they are asked for (`Invitation.ticket`, `.code`, `.qr`, a notebook's output), and
nowhere else: in no repr, no event, no error.
"""

from __future__ import annotations

import asyncio
import io
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from html import escape
from ipaddress import ip_network
from types import MappingProxyType, TracebackType
from typing import Final, Literal, Self

from p2ptunnel.abc import Pipe
from p2ptunnel.addresses import canonical, source_of, target_refusal
from p2ptunnel.errors import (
    ConfigError,
    InvalidAddressError,
    InvalidCodeError,
    InvitationExpiredError,
    NameTakenError,
    P2PTunnelError,
    PairingError,
    PeerKeyChangedError,
    PeerOfflineError,
    PeerRefusedError,
)
from p2ptunnel.events import Paired, PairingFailed, PeerEvent
from p2ptunnel.identity.capability import is_capability
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.store import PeerStore, PinnedPeer
from p2ptunnel.net.threads import in_thread
from p2ptunnel.protocol.pairing import Desk
from p2ptunnel.session.pairing import IMPOSTOR_HINT, PairingChannel, Services, be_guest, call_host, receive_guest
from p2ptunnel.ssh.hostkeys import HostKeys
from p2ptunnel.ssh.knownhosts import parse_host_keys
from p2ptunnel.tunnels.spec import parse_name, service_for
from p2ptunnel.types import Address, ServerSpec, Tag, format_address, format_duration, pairing_tag, parse_tag
from p2ptunnel.wire.ticket import NO_KEY, SECRET_BYTES, Ticket, is_ticket, parse_ticket
from p2ptunnel.wire.words import CODE_BITS, SpokenCode, parse_code, words_of

__all__ = ["Invitation", "Redemption", "pairing_tag", "parse_given", "require_elsewhere", "server_of", "with_host_keys"]

Tell = Callable[[PeerEvent], None]
_SSH: Final = "ssh"
_KEY_PREFIX: Final = "p2p:"
_EVERYWHERE: Final = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_RENEW: Final = "`p2ptunnel pair` makes a new invitation."


def parse_given(text: str) -> Ticket | SpokenCode:
    """Return the ticket or the code in `text`, of which no error shows anything.

    Raises:
        InvalidCodeError: It is neither, or damaged, or something else that one is given.
    """
    if is_ticket(text):
        return parse_ticket(text)
    if is_capability(text):
        hint = "p2ptunnel peers use TICKET, once its maker is paired with: p2ptunnel pair CODE"
        raise InvalidCodeError("that is an access ticket, which is shown to a machine that is known already", hint)
    if text.strip().lower().startswith(_KEY_PREFIX):
        hint = "To pin it by hand: p2ptunnel peers add NAME KEY"
        raise InvalidCodeError("that is a machine's key, and no code or ticket", hint)
    return parse_code(text)


def require_elsewhere(address: Address) -> None:
    """Refuse a numeric address that a ticket names as its server's where only this machine's owner may send us.

    What listens on loopback or link-local addresses trusts whoever reaches it, and whoever made the ticket would have us speak
    to it.  A private address is fine: at home, servers have one.

    Raises:
        PairingError: It is such an address.
    """
    host = canonical(address[0])
    if why := target_refusal(host, _EVERYWHERE[host.version]):
        text = format_address(address)
        hint = f"If you run a server there, name it yourself: --rendezvous {text}, or Peer(rendezvous={text!r})."
        raise PairingError(f"the ticket sends this machine to {text}, {why}", hint)


def server_of(ticket: Ticket) -> ServerSpec:
    """Return the server that a ticket names.

    Raises:
        InvalidKeyError: The key that it names for the server is none.
    """
    key = "" if ticket.server_key == NO_KEY else str(PublicKey(ticket.server_key))
    return ServerSpec(ticket.server, key)


async def with_host_keys(services: Iterable[str]) -> Services:
    """Return what a guest may open, with the host keys of this machine's own SSH server where that is among it.

    Raises:
        InvalidSpecError: A name is no name of a service.
    """
    names = dict.fromkeys(parse_name(name) for name in services)
    keys = await HostKeys().of(service_for(_SSH, _SSH).target) if _SSH in names else ()
    return MappingProxyType({name: keys if name == _SSH else () for name in names})


# --- the host ---------------------------------------------------------------------------------------------------------


class Invitation:
    """What a machine offers to one that it does not know yet, until it is used, too old, or closed.

    Give the other side `code` by voice, or `ticket` by any way that only it can read; either lets in who has it.  A code lives
    for one try: after a wrong one there is another, and after three within ten minutes there is none, and the invitation ends.

    Args:
        identity: Ours.
        store: Where guests are pinned.
        tag: Ours.
        server: The rendezvous server at which we wait.
        services: What a guest may open here, and for each that is an SSH server its host keys.
        expires: Seconds, > 0.
        uses: How many guests it is for, 1 at least.
        name: What to call the guest here; None: as it is called already, else as it calls itself.
        tell: Told of guests, and of those who failed.

    Raises:
        ConfigError: `expires` or `uses` is out of range.
    """

    def __init__(
        self,
        identity: Identity,
        store: PeerStore,
        tag: Tag,
        server: ServerSpec,
        *,
        services: Services,
        expires: float,
        uses: int,
        name: Tag | None = None,
        tell: Tell,
    ) -> None:
        if not expires > 0 or uses < 1:
            raise ConfigError("an invitation is for one guest at least, and for some time", "uses=1, expires=600.0")
        self.tag: Final = tag
        self._identity = identity
        self._store = store
        self._services = services
        self._name = None if name is None else parse_tag(name)
        self._tell = tell
        self._words = _new_words()
        self._desk: Final = Desk(secrets.token_bytes(SECRET_BYTES), self._words, expires_at=_now() + expires, uses=uses)
        self._ticket: Final = _ticket(server, tag, identity.public, self._desk.secret)
        self._guests: asyncio.Queue[PinnedPeer | PairingError] = asyncio.Queue()
        self._leave: Callable[[], Awaitable[None]] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._expiring = asyncio.get_running_loop().call_later(expires, self._expire, format_duration(expires))
        self._over = ""
        self._refusal: PairingError | None = None
        """Why it is over, where that is more than its text."""
        self._storing: Final[set[Pipe]] = set()
        """Those whose guests have proved themselves and are being pinned, which nothing stops."""

    def __repr__(self) -> str:
        return f"<Invitation of {self.tag}, {self._over or f'for {self._desk.uses_left} more'}>"

    @property
    def code(self) -> str:
        """The spoken code that holds now, `tag-word-word-word`; another after each try.

        Raises:
            PairingError: The invitation is over.
        """
        self._require_open()
        return str(SpokenCode(self.tag, self._words))

    @property
    def ticket(self) -> str:
        """The ticket, `p2pt1…`: to be pasted, and good for as many guests as the invitation is.

        Raises:
            PairingError: The invitation is over.
        """
        self._require_open()
        return str(self._ticket)

    @property
    def is_open(self) -> bool:
        """Whether a guest could still come."""
        return not self._over and self._desk.is_open(_now())

    def qr(self, kind: Literal["text", "svg"] = "text") -> str:
        """Return the ticket as a QR code.

        Args:
            kind: `text` for a terminal, `svg` for a page.

        Raises:
            PairingError: The invitation is over.
        """
        return _qr(self.ticket, kind)

    async def paired(self) -> PinnedPeer:
        """Wait for the next guest, and return it; it is pinned on both sides by then.

        Raises:
            InvitationExpiredError: Nobody came in time; a PairingError as well.
        PairingError: Too many wrong codes came, or the invitation was closed.
        """
        guest = await self._guests.get()
        if isinstance(guest, PairingError):
            self._guests.put_nowait(guest)  # for whoever asks next
            raise guest
        return guest

    async def close(self) -> None:
        """Take nobody any more; waits at most a second.  Closing twice is fine."""
        self._end("it was closed")
        if self._leaving is not None:
            await asyncio.shield(self._leaving)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _repr_html_(self) -> str:
        """Show the ticket's QR code, the ticket and the code in a notebook while they are good, and then that they are not."""
        if not self.is_open:
            return f"<p>Invitation of {escape(self.tag)}: {escape(self._over or 'over')}.</p>"
        return (
            f"<div>{self.qr('svg')}<p>Code: <b>{escape(self.code)}</b></p>"
            f"<p style='overflow-wrap:anywhere'><code>{escape(self.ticket)}</code></p></div>"
        )

    # --- what the waiting port calls ----------------------------------------------------------------------------------

    def wait_at(self, leave: Callable[[], Awaitable[None]]) -> None:
        """Take guests from a port now; `leave` closes it when the invitation is over."""
        self._leave = leave
        if self._over:
            self._leave_soon()

    async def admit(self, pipe: Pipe, guest: PublicKey, selector: bytes) -> None:
        """Take a guest who claims a key.

        Raises:
            P2PTunnelError: It came to nothing.
            OSError: The connection broke.
        """
        source, kept, failure = pipe.path.remote, list[tuple[PinnedPeer, Tag]](), ""

        async def keep(key: PublicKey, tag: Tag) -> Services:
            self._storing.add(pipe)
            kept.append(await in_thread(_paired, self._store, key, lambda: self._pin(key, tag)))
            return self._services

        try:
            await receive_guest(
                pipe,
                identity=self._identity,
                guest=guest,
                selector=selector,
                desk=self._desk,
                source=_counted_as(source[0]),
                keep=keep,
            )
        except P2PTunnelError as error:
            failure = error.reason if isinstance(error, PairingError) else str(error)
            raise
        finally:  # a guest that is kept knows by now, unless its connection broke: only now may somebody close us
            self._after_attempt(kept)
            if pipe in self._storing:
                self._storing.remove(pipe)
                self._dismiss()
            if failure and not kept:
                self._tell(PairingFailed(tag="", source=format_address(source), reason=failure))

    def _pin(self, key: PublicKey, tag: Tag) -> PinnedPeer:
        """Pin a guest that has proved itself; one that is known keeps its name, unless it is to have another."""
        return self._store.pair(key, tag, tuple(self._services), name=self._name)

    def _after_attempt(self, kept: list[tuple[PinnedPeer, Tag]]) -> None:
        """Hand on the guest; put a new code in the place of a tried one, or end what nobody can come to any more."""
        for guest, known_as in kept:
            self._guests.put_nowait(guest)
            self._tell(Paired(tag=guest.tag, key=str(guest.key), services=guest.services, known_as=known_as))
        if self._desk.is_closed:
            self._end("too many wrong codes were tried")
        elif not self._desk.uses_left:
            self._end("it is used up")
        elif self._desk.words is None:
            self._words = _new_words()
            self._desk.issue(self._words)

    def _end(self, why: str) -> None:
        if self._over:
            return
        self._over = why
        self._desk.close()  # who is half through does not come in any more
        self._expiring.cancel()
        self._dismiss()
        self._leave_soon()

    def _expire(self, lasted: str) -> None:
        self._refusal = InvitationExpiredError(lasted)
        self._end(self._refusal.reason)

    def _dismiss(self) -> None:
        """When it is over, say so to whoever waits for guests; not before the last one is pinned."""
        if self._over and not self._storing:
            self._guests.put_nowait(self._refusal or PairingError(self._over, _RENEW))

    def _leave_soon(self) -> None:
        if self._leave is not None and self._leaving is None:
            self._leaving = asyncio.ensure_future(self._leave())

    def _require_open(self) -> None:
        if not self.is_open:
            raise self._refusal or PairingError(self._over or "it is over", _RENEW)


# --- the guest --------------------------------------------------------------------------------------------------------


class Redemption:
    """A ticket or a code in the hand of the machine that was given it.

    Args:
        text: The ticket or the code.
        store: Where the host is pinned.
        name: What to call the host here; None: as it is called already, else as it calls itself.
        services: What the host may open here.

    Attributes:
        host: The host's own tag.
        host_key: The only key that may answer, from a ticket; None from a code: whoever answers must prove the code.
        server: Where the host waits, from a ticket; None from a code.
        offered: What we may open there, once it is settled.
        pinned: The host, as soon as it is pinned here, even if `settle` is cancelled in that moment.
        known_as: What the host was called here before; empty: it was not known.

    Raises:
        InvalidCodeError: It is neither, or damaged.
        InvalidTagError: The name is no tag.
        InvalidSpecError: A service's name is none.
    """

    def __init__(self, text: str, store: PeerStore, *, name: Tag | None = None, services: Iterable[str] = ()) -> None:
        given = parse_given(text)
        self.host: Final[Tag] = given.tag
        self.host_key: Final = PublicKey(given.callee_key) if isinstance(given, Ticket) else None
        self.server: Final = server_of(given) if isinstance(given, Ticket) else None
        self._given: Final = given.secret if isinstance(given, Ticket) else given.words
        self._name: Final = None if name is None else parse_tag(name)
        self.offered: tuple[str, ...] = ()
        self.pinned: PinnedPeer | None = None
        self.known_as: Tag = ""
        self._services: Final = tuple(map(parse_name, services))
        self._store = store

    def __repr__(self) -> str:
        return f"<Redemption of {'a ticket' if self.server else 'a code'} of {self.host}>"

    async def call(self, pipe: Pipe, identity: Identity, answered: PublicKey, selector: bytes) -> PairingChannel:
        """Bring up the channel to the host that answered under a key of its own or a claimed one.

        Raises:
            PairingError: Another machine has the host's name here; or as `call_host`.
            P2PTunnelError: As `call_host`.
            OSError: The connection broke.
        """
        try:
            await in_thread(partial(self._store.name_for, answered, self.host, name=self._name))
        except NameTakenError as error:
            raise _name_taken(error) from None
        return await call_host(pipe, identity=identity, host=answered, selector=selector)

    def explained(self, error: PeerOfflineError | PeerRefusedError | PeerKeyChangedError) -> P2PTunnelError:
        """Return what it means for a pairing that nobody was reached, by the name that people know."""
        if isinstance(error, PeerKeyChangedError):
            return PairingError("whoever answered has another key than the ticket names", IMPOSTOR_HINT)
        offline = PeerOfflineError(self.host, error.server if isinstance(error, PeerOfflineError) else "")
        offline.hint = f"Check the name, and that `p2ptunnel pair` still waits on {self.host}."
        return offline

    async def settle(self, channel: PairingChannel, tag: Tag) -> PinnedPeer:
        """Prove that we were invited, and return the host; it is pinned on both sides by then.

        Args:
            channel: From `call`.
            tag: Ours.

        Raises:
            PairingError: The code or ticket is not valid, or whoever answered is not the one who gave it.
            StoreError: Our own file cannot be written.
        """

        async def keep(services: Services) -> None:
            host = channel.bond.host
            self.pinned, self.known_as = await in_thread(_paired, self._store, host, lambda: self._pin(host, services))
            self.offered = tuple(services)

        try:
            await be_guest(channel, tag, self._given, keep)
        except NameTakenError as error:
            raise _name_taken(error) from None
        assert self.pinned is not None
        return self.pinned

    def told(self, pinned: PinnedPeer) -> Paired:
        """Return the event that says that the host is pinned."""
        return Paired(
            tag=pinned.tag, key=str(pinned.key), services=pinned.services, offered=self.offered, known_as=self.known_as
        )

    def _pin(self, key: PublicKey, services: Services) -> PinnedPeer:
        read = {service: parse_host_keys("\n".join(lines)) for service, lines in services.items()}
        host_keys = {service: keys for service, keys in read.items() if keys}
        return self._store.pair(key, self.host, self._services, name=self._name, ssh_host_keys=host_keys)


# --- inside -----------------------------------------------------------------------------------------------------------


def _paired(store: PeerStore, key: PublicKey, pin: Callable[[], PinnedPeer]) -> tuple[PinnedPeer, Tag]:
    """Pin a machine; return it, and what it was called here before, empty if it was not known."""
    known = store.by_key(key)
    return pin(), known.tag if known else ""


def _name_taken(error: NameTakenError) -> PairingError:
    hint = f"--as NAME gives it another name here; `p2ptunnel peers rm {error.tag}` forgets the other one."
    return PairingError(f"another machine is known here as {error.tag}", hint)


def _counted_as(host: str) -> str:
    """Return whom attempts from a host are counted for: itself, or its /64."""
    try:
        return str(source_of(canonical(host)).block)
    except InvalidAddressError:  # of a link, with a zone
        return host


def _new_words() -> str:
    return words_of(secrets.randbits(CODE_BITS))


def _now() -> float:
    return time.monotonic()


def _ticket(server: ServerSpec, tag: Tag, key: PublicKey, secret: bytes) -> Ticket:
    server_key = PublicKey.parse(server.key).raw if server.key else NO_KEY
    return Ticket(server.address, tag, key.raw, secret, server_key)


def _qr(ticket: str, kind: Literal["text", "svg"]) -> str:
    import segno

    code = segno.make(ticket.upper(), error="l", micro=False)  # capitals take half the room, and a ticket has any case
    if kind == "svg":
        return code.svg_inline(scale=4, border=4)
    text = io.StringIO()
    code.terminal(text, border=2, compact=True)
    return text.getvalue()
