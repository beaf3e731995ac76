"""Every error this package raises.

A class where the caller can decide otherwise, facts as attributes, the next step in `hint`.  Rule: `str(error)` is made
from the attributes, is pinned by a test, and never holds a token, conkey, key material or payload.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, Self

__all__ = [
    "AccessDeniedError",
    "AccessRevokedError",
    "AddressInUseError",
    "ApprovalTimeoutError",
    "AuthenticationError",
    "BindError",
    "ChannelBusyError",
    "ChannelClosedError",
    "ChannelError",
    "ChannelLostError",
    "ConfigError",
    "DialError",
    "InsecureKeyFileError",
    "InvalidAddressError",
    "InvalidCodeError",
    "InvalidKeyError",
    "InvalidSpecError",
    "InvalidTagError",
    "InvitationExpiredError",
    "KeyKnownError",
    "LaboratoryError",
    "LocalProtocolError",
    "LookupsBusyError",
    "MissingExtraError",
    "NameTakenError",
    "NoPathError",
    "NoSuchPeerError",
    "NotReadyError",
    "P2PTunnelError",
    "PairingError",
    "PeerKeyChangedError",
    "PeerNotNearError",
    "PeerOfflineError",
    "PeerRefusedError",
    "ProtocolError",
    "PunchTimeoutError",
    "RateLimitedError",
    "RemoteProtocolError",
    "RendezvousError",
    "RendezvousTimeoutError",
    "ResolveError",
    "ResumeExpiredError",
    "SSHError",
    "ServerKeyError",
    "ServerPrivateError",
    "StoreError",
    "StreamResetError",
    "TagBusyError",
    "TagInUseError",
    "TargetRefusedError",
    "TraversalError",
    "TunnelError",
    "UnknownPeerError",
]


_NAMES_SHOWN: Final = 12
"""Of a list that a peer has sent."""


class P2PTunnelError(Exception):
    """Root of all errors of this package.

    Attributes:
        layer: Where it happened, one word.
        code: The wire's code that means the same, or 500.
        hint: The next step for the person at the keyboard; may be empty.  A traceback shows it as a note.
    """

    layer: ClassVar[str] = "p2ptunnel"
    code: ClassVar[int] = 500
    hint: str = ""

    if not TYPE_CHECKING:  # which would believe that errors have every attribute

        def __getattr__(self, name: str) -> list[str]:
            """Make the notes when somebody first looks for them: many a hint is set after the error was made."""
            if name != "__notes__" or not self.hint:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            self.__notes__ = [f"hint: {self.hint}"]
            return self.__notes__

    def __reduce__(self) -> tuple[type[Self], tuple[object, ...], dict[str, object]]:
        """Pickle by what the class was called with; OSError's own way would hand its subclasses a third argument."""
        return type(self), self.args, vars(self)


# --- before any packet ------------------------------------------------------------------------------------------------


class ConfigError(P2PTunnelError, ValueError):
    """Something the owner wrote is wrong; nothing has been sent."""

    layer = "config"
    code = 400

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem, hint)
        self.problem = problem
        self.hint = hint or type(self).hint

    def __str__(self) -> str:
        return self.problem


class InvalidTagError(ConfigError):
    """A tag that the grammar does not allow."""

    hint = "A tag has 1 to 63 characters a-z 0-9 . _ - and begins and ends with a letter or digit."

    def __init__(self, tag: str) -> None:
        super().__init__(f"{tag!r} is not a tag")
        self.tag = tag
        self.args = (tag,)


class InvalidAddressError(ConfigError):
    """An address that is not host:port; or, where `malformed` says so, the key or the join token behind a server's."""

    hint = "Write host:port, or [v6-address]:port; the port is 0 to 65535."

    def __init__(self, text: str, malformed: str = "") -> None:
        if malformed:
            hint = "Copy the whole line that the server printed, host:port#p2p:KEY or host:port#p2p:KEY#join:TOKEN."
            super().__init__(f"the {malformed} in {text!r} is malformed", hint)
        else:
            super().__init__(f"{text!r} is not an address")
        self.text = text
        self.malformed = malformed
        self.args = (text, malformed)


class InvalidKeyError(ConfigError):
    """A public key that cannot be read, or that proves nothing (small order)."""

    layer = "identity"
    hint = "A key is p2p: and 52 characters; `p2ptunnel id` on the other machine prints it."

    def __init__(self, reason: str) -> None:
        super().__init__(f"not a usable public key: {reason}")
        self.reason = reason
        self.args = (reason,)


class InvalidCodeError(ConfigError):
    """A ticket or a spoken code that cannot be read; nothing of it stands in the text."""

    layer = "identity"


class InvalidSpecError(ConfigError):
    """A forward or service specification that cannot be read."""

    layer = "tunnel"

    def __init__(self, spec: str, reason: str, hint: str = "Examples: 8888, 9000:8888, web, 9000:web, 9000:host:80.") -> None:
        super().__init__(f"cannot read {spec!r}: {reason}", hint)
        self.spec = spec
        self.reason = reason
        self.args = (spec, reason, hint)


class MissingExtraError(ConfigError):
    """An optional library that this call needs is not installed."""

    layer = "install"

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs a library that is not installed", f"pip install 'p2ptunnel[{extra}]'")
        self.feature = feature
        self.extra = extra
        self.args = (feature, extra)


class StoreError(ConfigError):
    """A file of the profile cannot be read or written; the old one is intact."""

    layer = "identity"

    def __init__(self, path: str, reason: str, hint: str = "Check the file and the directory above it.") -> None:
        super().__init__(f"{path}: {reason}", hint)
        self.path = path
        self.reason = reason
        self.args = (path, reason, hint)


class InsecureKeyFileError(StoreError):
    """A secret on disk that others could read or replace."""


class KeyKnownError(ConfigError):
    """A key that is known here by another name already: one key has one name, or taking that away would leave the other."""

    layer = "identity"

    def __init__(self, tag: str, known_as: str) -> None:
        super().__init__(f"that key is known here as {known_as}", f"To call it {tag}: p2ptunnel peers rename {known_as} {tag}")
        self.tag = tag
        self.known_as = known_as
        self.args = (tag, known_as)


class TagBusyError(ConfigError):
    """Another program of the same profile is registered under the tag; a second one would take it away from the first."""

    layer = "rendezvous"
    code = 409

    def __init__(self, tag: str, doing: str, pid: int | None, hint: str) -> None:
        """Take what the other program does with the tag, `serve` or `pair`, and its number if that is known."""
        number = "" if pid is None else f" (pid {pid})"
        super().__init__(f"another p2ptunnel {doing}{number} runs here with the tag {tag!r}", hint)
        self.tag = tag
        self.doing = doing
        self.pid = pid
        self.args = (tag, doing, pid, hint)


# --- protocol ---------------------------------------------------------------------------------------------------------


class ProtocolError(P2PTunnelError):
    """A rule of the protocol was broken."""

    layer = "protocol"
    code = 400


class LocalProtocolError(ProtocolError):
    """We misused a machine or an object: a bug on this side."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class RemoteProtocolError(ProtocolError):
    """The other side broke a rule; `source` says who."""

    def __init__(self, problem: str, source: str = "the peer") -> None:
        super().__init__(problem, source)
        self.problem = problem
        self.source = source

    def __str__(self) -> str:
        return f"{self.source} broke the protocol: {self.problem}"


# --- rendezvous -------------------------------------------------------------------------------------------------------


class RendezvousError(P2PTunnelError):
    """The rendezvous server refused, or answered with an error."""

    layer = "rendezvous"

    def __init__(self, server: str, reason: str, code: int = 500) -> None:
        super().__init__(server, reason, code)
        self.server = server
        self.reason = reason
        self.answer_code = code

    def __str__(self) -> str:
        return f"{self.server} refused: {self.reason} ({self.answer_code})"


class RendezvousTimeoutError(RendezvousError, TimeoutError):
    """No answer from the rendezvous server; `over` says which transports were silent."""

    code = 408

    def __init__(self, server: str, timeout: float, over: str = "UDP or TCP") -> None:
        super().__init__(server, "no answer", 408)
        port = server.rpartition(":")[2]
        self.hint = f"Is `p2ptunnel rendezvous` running there, and do its firewalls let in UDP and TCP to port {port}?"
        self.timeout = timeout
        self.over = over
        self.args = (server, timeout, over)

    def __str__(self) -> str:
        return f"{self.server} did not answer over {self.over} in {self.timeout:g} s"


class PeerOfflineError(RendezvousError):
    """Nobody is registered under the tag; `known_as` is our name for the peer where that is another."""

    code = 404

    def __init__(self, tag: str, server: str = "", known_as: str = "") -> None:
        super().__init__(server, f"no peer is registered as {tag!r}", 404)
        self.tag = tag
        self.known_as = known_as
        self.args = (tag, server, known_as)
        self.hint = f"Check the tag, and that `p2ptunnel serve` is running on {tag}."

    def __str__(self) -> str:
        own = f", which is {self.known_as!r} here" if self.known_as else ""
        return f"no peer is registered as {self.tag!r}{own}"


class PeerNotNearError(PeerOfflineError):
    """Nobody in our own network is the peer, and there was no server to ask; `reason` tells what kept us from looking."""

    def __init__(self, tag: str, reason: str = "") -> None:
        super().__init__(tag)
        self.reason = reason
        self.args = (tag, reason)
        self.hint = (
            f"Is `p2ptunnel serve` running on {tag}, in this very network? A server reaches further: --rendezvous host:7000."
        )

    def __str__(self) -> str:
        return f"{self.tag!r} is not to be found in this network" + (f": {self.reason}" if self.reason else "")


class TagInUseError(RendezvousError):
    """Another key owns the tag."""

    code = 409

    def __init__(self, tag: str, server: str = "") -> None:
        super().__init__(server, f"the tag {tag!r} belongs to another key", 409)
        self.tag = tag
        self.hint = f"Choose another tag; or the server's operator frees it: p2ptunnel rendezvous tags free {tag}"
        self.args = (tag, server)

    def __str__(self) -> str:
        return f"the tag {self.tag!r} belongs to another key"


class ServerPrivateError(RendezvousError):
    """The server serves its members only, and did not take us for one."""

    code = 407
    hint = "Ask its operator for the whole line, host:port#p2p:…#join:…, or to list this machine's key (`p2ptunnel id`)."

    def __init__(self, server: str) -> None:
        super().__init__(server, "it serves its members only", 407)
        self.args = (server,)


class RateLimitedError(RendezvousError):
    """The server asks for patience; `retry_after` is in seconds."""

    code = 429

    def __init__(self, server: str, retry_after: float) -> None:
        super().__init__(server, "too many requests", 429)
        self.retry_after = retry_after
        self.args = (server, retry_after)
        self.hint = f"Try again in {retry_after:g} s." if retry_after else "Try again a little later."


# --- traversal --------------------------------------------------------------------------------------------------------

_EXPLAIN = "`p2ptunnel explain {}` shows each way that is tried; `p2ptunnel netcheck` on both machines, what their NATs do."


class TraversalError(P2PTunnelError):
    """No usable path to the peer."""

    layer = "traversal"


class DialError(TraversalError):
    """One target could not be dialled; `outcome` is one word for programs, `reason` says the same to people."""

    def __init__(self, target: str, outcome: str, reason: str) -> None:
        super().__init__(target, outcome, reason)
        self.target = target
        self.outcome = outcome
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.target}: {self.reason}"


class NotReadyError(TraversalError, TimeoutError):
    """What a call needs is not there beforehand; `missing` says what, `reason` why."""

    code = 408
    hint = "`connect` works all the same, if slower; `p2ptunnel netcheck` shows what the network lets through."

    def __init__(self, missing: str, reason: str) -> None:
        super().__init__(missing, reason)
        self.missing = missing
        self.reason = reason

    def __str__(self) -> str:
        return f"not ready for a call: {self.missing}: {self.reason}"


class ResolveError(TraversalError):
    """A host name that has no address."""

    hint = "Check the name, and that this machine can look names up."

    def __init__(self, host: str, reason: str) -> None:
        super().__init__(host, reason)
        self.host = host
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot resolve {self.host!r}: {self.reason}"


class PunchTimeoutError(TraversalError, TimeoutError):
    """The peer is there, but the hole did not open in time."""

    code = 408

    def __init__(self, tag: str, timeout: float) -> None:
        super().__init__(tag, timeout)
        self.tag = tag
        self.timeout = timeout
        self.hint = _EXPLAIN.format(tag)

    def __str__(self) -> str:
        return f"no hole to {self.tag} opened in {self.timeout:g} s"


class NoPathError(TraversalError):
    """Every candidate failed; `attempts` has one line for each."""

    code = 408

    def __init__(self, tag: str, attempts: tuple[str, ...]) -> None:
        super().__init__(tag, attempts)
        self.tag = tag
        self.attempts = attempts
        self.hint = _EXPLAIN.format(tag)

    def __str__(self) -> str:
        tried = "; ".join(self.attempts) or "no candidate"
        return f"no path to {self.tag}: {len(self.attempts)} tried ({tried})"


# --- who and what -----------------------------------------------------------------------------------------------------


class AuthenticationError(P2PTunnelError):
    """The other side did not prove the key it should have."""

    layer = "identity"
    code = 401

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"authentication failed: {self.reason}"


class ServerKeyError(AuthenticationError):
    """Whoever answers at the server's address did not prove the key that was given for it."""

    hint = "If the server was set up anew, ask its operator for the new line, host:port#p2p:…; else something is between."

    def __init__(self, server: str) -> None:
        super().__init__(f"{server} did not prove the key that was given for it")
        self.server = server
        self.args = (server,)

    def __str__(self) -> str:
        return f"{self.server} did not prove the key that was given for it"


class UnknownPeerError(AuthenticationError):
    """A tag that has no pinned key here."""

    def __init__(self, tag: str) -> None:
        super().__init__(f"no key is pinned for {tag!r}")
        self.tag = tag
        self.args = (tag,)
        self.hint = f"`p2ptunnel pair` on {tag} prints a code; then here: p2ptunnel pair CODE"

    def __str__(self) -> str:
        return f"no key is pinned for {self.tag!r}"


class PeerKeyChangedError(AuthenticationError):
    """Somebody answers to a known tag with another key than the pinned one."""

    def __init__(self, tag: str, pinned: str) -> None:
        super().__init__(f"{tag} did not prove the pinned key {pinned}")
        self.tag = tag
        self.pinned = pinned
        self.args = (tag, pinned)
        self.hint = f"If {tag} was reinstalled: `p2ptunnel peers rm {tag}`, then add its new key. Else do not connect."

    def __str__(self) -> str:
        return f"{self.tag} did not prove the pinned key {self.pinned[:12]}…"


class NoSuchPeerError(UnknownPeerError, ConfigError):
    """A name that the owner gives to a peer, and that none has here."""

    layer = "identity"
    code = 400

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self.hint = "`p2ptunnel peers` lists those that are known here."

    def __str__(self) -> str:
        return f"no peer is known here as {self.tag!r}"


class NameTakenError(PeerKeyChangedError, ConfigError):
    """A name that is to be given to one key, and that another one has."""

    code = 400

    def __init__(self, tag: str, pinned: str) -> None:
        super().__init__(tag, pinned)
        self.hint = f"Choose another name for this one; or forget the other: p2ptunnel peers rm {tag}"

    def __str__(self) -> str:
        return f"{self.tag} is known with another key, {self.pinned[:12]}…"


class PeerRefusedError(AuthenticationError):
    """The peer did not admit our key; it says no more than that."""

    code = 403

    def __init__(self, tag: str) -> None:
        super().__init__(f"{tag} does not know this machine's key")
        self.tag = tag
        self.args = (tag,)
        self.hint = f"Pair with it: `p2ptunnel pair` on {tag} prints a code; then here: p2ptunnel pair CODE"

    def __str__(self) -> str:
        return f"{self.tag} does not know this machine's key"


class PairingError(AuthenticationError):
    """Two machines did not come to know each other; neither has kept anything of it."""

    def __init__(self, reason: str, hint: str = "Ask for a new code there: p2ptunnel pair") -> None:
        super().__init__(reason)
        self.hint = hint
        self.args = (reason, hint)

    def __str__(self) -> str:
        return f"pairing failed: {self.reason}"


class InvitationExpiredError(PairingError, TimeoutError):
    """Nobody came to an invitation in its time, or not everybody for whom it was."""

    def __init__(self, lasted: str) -> None:
        super().__init__(f"nobody came in {lasted}", "`p2ptunnel pair` makes a new invitation.")
        self.lasted = lasted
        self.args = (lasted,)


class AccessDeniedError(P2PTunnelError):
    """The service does not exist there or is not ours: the two look the same.

    `granted` are all services that are ours; the hint names the first of them, since it is the peer that says how many.
    """

    layer = "access"
    code = 403

    def __init__(self, tag: str, service: str, granted: tuple[str, ...] = ()) -> None:
        super().__init__(tag, service, granted)
        self.tag = tag
        self.service = service
        self.granted = granted
        more = [f"and {len(granted) - _NAMES_SHOWN} more"] if len(granted) > _NAMES_SHOWN else []
        self.hint = f"Served to you: {', '.join([*granted[:_NAMES_SHOWN], *more]) or 'nothing'}."

    def __str__(self) -> str:
        return f"{self.tag} does not serve {self.service!r} to this machine"


class ApprovalTimeoutError(AccessDeniedError, TimeoutError):
    """The peer's owner was asked whether we may open the service, and has not answered."""

    def __init__(self, tag: str, service: str) -> None:
        super().__init__(tag, service)
        self.args = (tag, service)
        self.hint = f"Ask again when somebody is at {tag}; its owner can also grant it: p2ptunnel peers allow OUR-TAG {service}"

    def __str__(self) -> str:
        return f"nobody at {self.tag} has answered whether this machine may open {self.service!r}"


# --- channel and stream -----------------------------------------------------------------------------------------------


class ChannelError(P2PTunnelError, ConnectionError):
    """The authenticated link to a peer ended."""

    layer = "session"


class ChannelBusyError(ChannelError):
    """As many streams are open as one session may have; one more when one of them ends."""

    code = 503
    hint = "Close streams that are not needed, or spread them over several sessions."

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.limit = limit

    def __str__(self) -> str:
        return f"{self.limit} streams are open, more than a session may have"


class ChannelClosedError(ChannelError):
    """Closed on purpose, by us or by them."""

    def __init__(self, by: str = "us") -> None:
        super().__init__(by)
        self.by = by

    def __str__(self) -> str:
        return f"the channel was closed by {self.by}"


class ChannelLostError(ChannelError):
    """The link broke: everything that is not our own FIN frame."""

    hint = "Connect again; the stream that was open is gone."

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"the channel was lost: {self.cause}"


class ResumeExpiredError(ChannelLostError):
    """No new channel came up in time, or too late for the peer: what was not acknowledged may be lost.

    Args:
        gap: Seconds without a channel.
        unacknowledged_bytes: Sent, of all streams, without the peer having confirmed them.
    """

    hint = "Longer cuts: be more patient on both sides, by --resume-timeout 1h or Peer(resume_timeout=3600)."

    def __init__(self, cause: str, gap: float, unacknowledged_bytes: int) -> None:
        super().__init__(cause)
        self.gap = gap
        self.unacknowledged_bytes = unacknowledged_bytes
        self.args = (cause, gap, unacknowledged_bytes)

    def __str__(self) -> str:
        return f"{super().__str__()}, after {self.gap:.0f} s without it; {self.unacknowledged_bytes} bytes are unconfirmed"


class StreamResetError(ChannelError):
    """One stream was reset; its siblings live on."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the stream was reset: {self.reason}"


class AccessRevokedError(StreamResetError):
    """A stream that was open, and whose service the peer serves to us no more."""

    layer = "access"
    code = 403
    hint = "Its owner took it back, or had granted it until now."

    def __init__(self, tag: str, service: str) -> None:
        super().__init__("access was revoked")
        self.tag = tag
        self.service = service
        self.args = (tag, service)

    def __str__(self) -> str:
        return f"{self.tag} serves {self.service!r} to this machine no more"


# --- tunnels ----------------------------------------------------------------------------------------------------------


class TunnelError(P2PTunnelError):
    """A tunnel could not do its work."""

    layer = "tunnel"


class BindError(TunnelError, OSError):
    """The local address of a tunnel cannot be had."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address = address
        self.reason = reason
        self.hint = "Port 0 picks a free one."

    def __str__(self) -> str:
        return f"cannot listen on {self.address}: {self.reason}"


class AddressInUseError(BindError):
    """Another program has the local address: another port helps."""

    def __init__(self, address: str, hint: str = "Port 0 picks a free one.") -> None:
        super().__init__(address, "it is taken by another program")
        self.hint = hint
        self.args = (address, hint)

    def __str__(self) -> str:
        return f"{self.address} is taken by another program"


class TargetRefusedError(TunnelError):
    """The peer was reached, but what the service stands for was not."""

    layer = "target"

    def __init__(self, tag: str, service: str, reason: str) -> None:
        super().__init__(tag, service, reason)
        self.tag = tag
        self.service = service
        self.reason = reason
        self.hint = f"{tag} is reached; start the program there."

    def __str__(self) -> str:
        return f"{self.service!r} on {self.tag} cannot be reached: {self.reason}"


class LookupsBusyError(TunnelError):
    """As many names are being looked up for peers as may be at a time; the resolver is slow, or a peer asks for too much."""

    layer = "target"
    code = 503
    hint = "Try again; or give the target by its address instead of a name."

    def __str__(self) -> str:
        return "too many names are being looked up"


class SSHError(P2PTunnelError):
    """The SSH server behind a service was reached, but did not let us in, or is not the one it should be."""

    layer = "ssh"

    def __init__(self, tag: str, reason: str, hint: str = "") -> None:
        super().__init__(tag, reason, hint)
        self.tag = tag
        self.reason = reason
        self.hint = hint

    def __str__(self) -> str:
        return f"ssh to {self.tag}: {self.reason}"


# --- the laboratory of tests ------------------------------------------------------------------------------------------


class LaboratoryError(P2PTunnelError):
    """The NAT laboratory cannot be built here, or a part of it broke; never a fault of the code under test."""

    layer = "testing"
    hint = "The laboratory needs root, network namespaces, /dev/net/tun, nft and setpriv."

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"the laboratory does not work: {self.problem}"
