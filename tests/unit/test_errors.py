"""Every error of the package: its text, its next step, its code, its layer.  A text changes here or not at all."""

from __future__ import annotations

import copy
import pickle
import traceback
from typing import NamedTuple

import pytest

from p2ptunnel import errors
from p2ptunnel.errors import ConfigError, P2PTunnelError, PeerOfflineError

KEY = "p2p:k5xq7m2ak5xq7m2ak5xq7m2ak5xq7m2ak5xq7m2ak5xq7m2ak5xq"
EXPLAIN = (
    "`p2ptunnel explain home-nas` shows each way that is tried; `p2ptunnel netcheck` on both machines, what their NATs do."
)


class Row(NamedTuple):
    """One error and what it must say."""

    error: P2PTunnelError
    text: str
    hint: str
    code: int
    layer: str


TABLE = [
    Row(P2PTunnelError("odd"), "odd", "", 500, "p2ptunnel"),
    # before any packet
    Row(errors.ConfigError("no tag", "Give --tag."), "no tag", "Give --tag.", 400, "config"),
    Row(
        errors.InvalidTagError("Home NAS"),
        "'Home NAS' is not a tag",
        "A tag has 1 to 63 characters a-z 0-9 . _ - and begins and ends with a letter or digit.",
        400,
        "config",
    ),
    Row(
        errors.InvalidAddressError("rv.example:x"),
        "'rv.example:x' is not an address",
        "Write host:port, or [v6-address]:port; the port is 0 to 65535.",
        400,
        "config",
    ),
    Row(
        errors.InvalidKeyError("it is too short"),
        "not a usable public key: it is too short",
        "A key is p2p: and 52 characters; `p2ptunnel id` on the other machine prints it.",
        400,
        "identity",
    ),
    Row(
        errors.InvalidCodeError("the second word is not in the list", "Nearest to it: river."),
        "the second word is not in the list",
        "Nearest to it: river.",
        400,
        "identity",
    ),
    Row(
        errors.PairingError("the code or ticket was wrong, used or too old"),
        "pairing failed: the code or ticket was wrong, used or too old",
        "Ask for a new code there: p2ptunnel pair",
        401,
        "identity",
    ),
    Row(
        errors.InvitationExpiredError("10 min"),
        "pairing failed: nobody came in 10 min",
        "`p2ptunnel pair` makes a new invitation.",
        401,
        "identity",
    ),
    Row(
        errors.KeyKnownError("evil", "laptop"),
        "that key is known here as laptop",
        "To call it evil: p2ptunnel peers rename laptop evil",
        400,
        "identity",
    ),
    Row(
        errors.NameTakenError("nas", "p2p:k5xq7m2awxyz"),
        "nas is known with another key, p2p:k5xq7m2a…",
        "Choose another name for this one; or forget the other: p2ptunnel peers rm nas",
        400,
        "identity",
    ),
    Row(
        errors.NoSuchPeerError("nas"),
        "no peer is known here as 'nas'",
        "`p2ptunnel peers` lists those that are known here.",
        400,
        "identity",
    ),
    Row(
        errors.TagBusyError("home-nas", "serve", 4711, "End it first."),
        "another p2ptunnel serve (pid 4711) runs here with the tag 'home-nas'",
        "End it first.",
        409,
        "rendezvous",
    ),
    Row(
        errors.TagBusyError("home-nas", "pair", None, "End it first."),
        "another p2ptunnel pair runs here with the tag 'home-nas'",
        "End it first.",
        409,
        "rendezvous",
    ),
    Row(
        errors.PeerOfflineError("home-nas", "192.0.2.1:7000", "nas"),
        "no peer is registered as 'home-nas', which is 'nas' here",
        "Check the tag, and that `p2ptunnel serve` is running on home-nas.",
        404,
        "rendezvous",
    ),
    Row(
        errors.InvalidSpecError("1:2:3:4:5", "too many parts"),
        "cannot read '1:2:3:4:5': too many parts",
        "Examples: 8888, 9000:8888, web, 9000:web, 9000:host:80.",
        400,
        "tunnel",
    ),
    Row(
        errors.MissingExtraError("the SSH client", "ssh"),
        "the SSH client needs a library that is not installed",
        "pip install 'p2ptunnel[ssh]'",
        400,
        "install",
    ),
    Row(
        errors.StoreError("peers.toml", "line 3 is no TOML"),
        "peers.toml: line 3 is no TOML",
        "Check the file and the directory above it.",
        400,
        "identity",
    ),
    Row(
        errors.InsecureKeyFileError("identity.key", "others can read it", "chmod 600 identity.key"),
        "identity.key: others can read it",
        "chmod 600 identity.key",
        400,
        "identity",
    ),
    # protocol
    Row(errors.ProtocolError("odd"), "odd", "", 400, "protocol"),
    Row(errors.LocalProtocolError("closed already"), "closed already", "", 400, "protocol"),
    Row(errors.RemoteProtocolError("no HELLO"), "the peer broke the protocol: no HELLO", "", 400, "protocol"),
    Row(errors.RemoteProtocolError("no JSON", "the server"), "the server broke the protocol: no JSON", "", 400, "protocol"),
    # rendezvous
    Row(
        errors.RendezvousError("rv.example:7000", "no relay", 503),
        "rv.example:7000 refused: no relay (503)",
        "",
        500,
        "rendezvous",
    ),
    Row(
        errors.RendezvousTimeoutError("rv.example:7000", 5.0),
        "rv.example:7000 did not answer over UDP or TCP in 5 s",
        "Is `p2ptunnel rendezvous` running there, and do its firewalls let in UDP and TCP to port 7000?",
        408,
        "rendezvous",
    ),
    Row(
        errors.PeerNotNearError("home-nas", "no multicast"),
        "'home-nas' is not to be found in this network: no multicast",
        "Is `p2ptunnel serve` running on home-nas, in this very network? A server reaches further: --rendezvous host:7000.",
        404,
        "rendezvous",
    ),
    Row(
        errors.PeerOfflineError("home-nas", "rv.example:7000"),
        "no peer is registered as 'home-nas'",
        "Check the tag, and that `p2ptunnel serve` is running on home-nas.",
        404,
        "rendezvous",
    ),
    Row(
        errors.ServerPrivateError("rv.example:7000"),
        "rv.example:7000 refused: it serves its members only (407)",
        "Ask its operator for the whole line, host:port#p2p:…#join:…, or to list this machine's key (`p2ptunnel id`).",
        407,
        "rendezvous",
    ),
    Row(
        errors.ServerKeyError("rv.example:7000"),
        "rv.example:7000 did not prove the key that was given for it",
        "If the server was set up anew, ask its operator for the new line, host:port#p2p:…; else something is between.",
        401,
        "identity",
    ),
    Row(
        errors.TagInUseError("home-nas", "rv.example:7000"),
        "the tag 'home-nas' belongs to another key",
        "Choose another tag; or the server's operator frees it: p2ptunnel rendezvous tags free home-nas",
        409,
        "rendezvous",
    ),
    Row(
        errors.RateLimitedError("rv.example:7000", 2.5),
        "rv.example:7000 refused: too many requests (429)",
        "Try again in 2.5 s.",
        429,
        "rendezvous",
    ),
    Row(
        errors.RateLimitedError("rv.example:7000", 0.0),
        "rv.example:7000 refused: too many requests (429)",
        "Try again a little later.",
        429,
        "rendezvous",
    ),
    # traversal
    Row(errors.TraversalError("odd"), "odd", "", 500, "traversal"),
    Row(
        errors.DialError("192.0.2.1:80", "refused", "it answered with RST"),
        "192.0.2.1:80: it answered with RST",
        "",
        500,
        "traversal",
    ),
    Row(
        errors.ResolveError("rv.example", "no such name"),
        "cannot resolve 'rv.example': no such name",
        "Check the name, and that this machine can look names up.",
        500,
        "traversal",
    ),
    Row(
        errors.NotReadyError("no port stands at the server", "not in 5 s"),
        "not ready for a call: no port stands at the server: not in 5 s",
        "`connect` works all the same, if slower; `p2ptunnel netcheck` shows what the network lets through.",
        408,
        "traversal",
    ),
    Row(errors.PunchTimeoutError("home-nas", 10.0), "no hole to home-nas opened in 10 s", EXPLAIN, 408, "traversal"),
    Row(
        errors.NoPathError("home-nas", ("192.0.2.1:7 silent", "192.0.2.2:7 refused")),
        "no path to home-nas: 2 tried (192.0.2.1:7 silent; 192.0.2.2:7 refused)",
        EXPLAIN,
        408,
        "traversal",
    ),
    Row(errors.NoPathError("home-nas", ()), "no path to home-nas: 0 tried (no candidate)", EXPLAIN, 408, "traversal"),
    # who and what
    Row(errors.AuthenticationError("no certificate"), "authentication failed: no certificate", "", 401, "identity"),
    Row(
        errors.UnknownPeerError("home-nas"),
        "no key is pinned for 'home-nas'",
        "`p2ptunnel pair` on home-nas prints a code; then here: p2ptunnel pair CODE",
        401,
        "identity",
    ),
    Row(
        errors.PeerKeyChangedError("home-nas", KEY),
        "home-nas did not prove the pinned key p2p:k5xq7m2a…",
        "If home-nas was reinstalled: `p2ptunnel peers rm home-nas`, then add its new key. Else do not connect.",
        401,
        "identity",
    ),
    Row(
        errors.PeerRefusedError("home-nas"),
        "home-nas does not know this machine's key",
        "Pair with it: `p2ptunnel pair` on home-nas prints a code; then here: p2ptunnel pair CODE",
        403,
        "identity",
    ),
    Row(
        errors.AccessDeniedError("home-nas", "web", ("ssh", "jupyter")),
        "home-nas does not serve 'web' to this machine",
        "Served to you: ssh, jupyter.",
        403,
        "access",
    ),
    Row(
        errors.AccessDeniedError("home-nas", "web", tuple(f"s{number}" for number in range(1000))),
        "home-nas does not serve 'web' to this machine",
        "Served to you: s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, and 988 more.",
        403,
        "access",
    ),
    Row(
        errors.AccessDeniedError("home-nas", "web"),
        "home-nas does not serve 'web' to this machine",
        "Served to you: nothing.",
        403,
        "access",
    ),
    Row(
        errors.ApprovalTimeoutError("home-nas", "ssh"),
        "nobody at home-nas has answered whether this machine may open 'ssh'",
        "Ask again when somebody is at home-nas; its owner can also grant it: p2ptunnel peers allow OUR-TAG ssh",
        403,
        "access",
    ),
    # channel and stream
    Row(errors.ChannelError("odd"), "odd", "", 500, "session"),
    Row(
        errors.ChannelBusyError(1024),
        "1024 streams are open, more than a session may have",
        "Close streams that are not needed, or spread them over several sessions.",
        503,
        "session",
    ),
    Row(errors.ChannelClosedError(), "the channel was closed by us", "", 500, "session"),
    Row(errors.ChannelClosedError("the peer"), "the channel was closed by the peer", "", 500, "session"),
    Row(
        errors.ChannelLostError("timed out"),
        "the channel was lost: timed out",
        "Connect again; the stream that was open is gone.",
        500,
        "session",
    ),
    Row(
        errors.ResumeExpiredError("the path was dead", 600.2, 49152),
        "the channel was lost: the path was dead, after 600 s without it; 49152 bytes are unconfirmed",
        "Longer cuts: be more patient on both sides, by --resume-timeout 1h or Peer(resume_timeout=3600).",
        500,
        "session",
    ),
    Row(
        errors.AccessRevokedError("home-nas", "web"),
        "home-nas serves 'web' to this machine no more",
        "Its owner took it back, or had granted it until now.",
        403,
        "access",
    ),
    Row(errors.StreamResetError("cancelled"), "the stream was reset: cancelled", "", 500, "session"),
    # tunnels
    Row(errors.TunnelError("odd"), "odd", "", 500, "tunnel"),
    Row(
        errors.BindError("127.0.0.1:80", "permission denied"),
        "cannot listen on 127.0.0.1:80: permission denied",
        "Port 0 picks a free one.",
        500,
        "tunnel",
    ),
    Row(
        errors.AddressInUseError("127.0.0.1:8888", "`p2ptunnel forward nas 0:8888` picks a free port."),
        "127.0.0.1:8888 is taken by another program",
        "`p2ptunnel forward nas 0:8888` picks a free port.",
        500,
        "tunnel",
    ),
    Row(
        errors.TargetRefusedError("home-nas", "web", "127.0.0.1:8080 refused the connection"),
        "'web' on home-nas cannot be reached: 127.0.0.1:8080 refused the connection",
        "home-nas is reached; start the program there.",
        500,
        "target",
    ),
    Row(
        errors.LookupsBusyError(),
        "too many names are being looked up",
        "Try again; or give the target by its address instead of a name.",
        503,
        "target",
    ),
    Row(
        errors.SSHError("home-nas", "it took none of our keys", "Add your key to authorized_keys there."),
        "ssh to home-nas: it took none of our keys",
        "Add your key to authorized_keys there.",
        500,
        "ssh",
    ),
    # the laboratory
    Row(
        errors.LaboratoryError("no /dev/net/tun"),
        "the laboratory does not work: no /dev/net/tun",
        "The laboratory needs root, network namespaces, /dev/net/tun, nft and setpriv.",
        500,
        "testing",
    ),
]

EVERY_ERROR = pytest.mark.parametrize("row", TABLE, ids=[f"{type(row.error).__name__}-{row.text[:40]}" for row in TABLE])


@EVERY_ERROR
def test_an_error_says_this(row: Row) -> None:
    error = row.error
    assert (str(error), error.hint, error.code, error.layer) == (row.text, row.hint, row.code, row.layer)


@EVERY_ERROR
def test_a_pickled_error_comes_back_the_same(row: Row) -> None:
    for again in (pickle.loads(pickle.dumps(row.error)), copy.copy(row.error)):
        assert type(again) is type(row.error)
        assert (str(again), again.hint, vars(again)) == (row.text, row.hint, vars(row.error))


def test_a_traceback_shows_the_next_step() -> None:
    shown = "".join(traceback.format_exception_only(PeerOfflineError("nas", "192.0.2.1:7000")))
    assert shown.endswith("\nhint: Check the tag, and that `p2ptunnel serve` is running on nas.\n")
    error = P2PTunnelError("nothing to say")
    assert traceback.format_exception_only(error) == ["p2ptunnel.errors.P2PTunnelError: nothing to say\n"]
    with pytest.raises(AttributeError, match="'P2PTunnelError' object has no attribute 'hnit'"):
        _ = error.hnit  # type: ignore[attr-defined]


def test_notes_of_others_stand_behind_the_next_step() -> None:
    error = ConfigError("a problem", "The next step.")
    error.add_note("more")
    assert error.__notes__ == ["hint: The next step.", "more"]


def test_every_public_error_is_in_the_table() -> None:
    assert {type(row.error).__name__ for row in TABLE} == set(errors.__all__)


def test_every_error_is_public_and_has_the_one_root() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert defined == set(errors.__all__)
    assert all(issubclass(getattr(errors, name), P2PTunnelError) for name in errors.__all__)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.ConfigError, ValueError),
        (errors.RendezvousTimeoutError, TimeoutError),
        (errors.NotReadyError, TimeoutError),
        (errors.PunchTimeoutError, TimeoutError),
        (errors.ChannelError, ConnectionError),
        (errors.BindError, OSError),
    ],
)
def test_an_error_is_also_what_python_calls_it(error: type[P2PTunnelError], builtin: type[Exception]) -> None:
    assert issubclass(error, builtin)
