"""Everything of this package that reads what others wrote, each with true inputs to begin from.

Rule: a reader returns, or raises the errors that are named here.  What comes from this machine's own kernel (netlink, TCP_INFO)
is nobody else's to write, and is not here.
"""

# pyright: reportPrivateUsage=false
# certificates are forged and read by functions that nobody else has use for

from __future__ import annotations

import base64
import json
import random
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.utils import CryptographyDeprecationWarning
from websockets.client import ClientProtocol
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from fuzz.quic import DATAGRAMS, FRAMES, HELLOS, QuicDatagramReader, QuicFrameReader, read_hello
from p2ptunnel import addresses, config, types
from p2ptunnel.defaults import WEB_FRAME_MAX_BYTES
from p2ptunnel.errors import AuthenticationError, ConfigError, P2PTunnelError
from p2ptunnel.identity import capability, tls
from p2ptunnel.identity.grant import Grants, Offers
from p2ptunnel.identity.judge import Judge, from_base64
from p2ptunnel.identity.keys import Identity, PublicKey
from p2ptunnel.identity.store import PeerStore
from p2ptunnel.net.bridge import Frames
from p2ptunnel.net.lines import MessageLines
from p2ptunnel.protocol.broker import Broker
from p2ptunnel.protocol.portmap import PortMapClient
from p2ptunnel.ssh import knownhosts
from p2ptunnel.tunnels import spec
from p2ptunnel.wire import frames, http, igd, intent, keyed, messages, natpmp, pairing, pcp, stun, ticket, words, xml
from p2ptunnel.wire.signal import SignalFault, SignalReceiver

__all__ = ["TARGETS", "Target"]

ROOT: Final = Path(__file__).resolve().parent.parent
IDENTITY: Final = Identity.from_seed(bytes(range(32)))
KEY: Final = str(IDENTITY.public)


class Read(Protocol):
    """A reader: whatever it returns is thrown away."""

    def __call__(self, data: bytes, /) -> object:
        """Read one input."""
        ...


class Target(msgspec.Struct, frozen=True):
    """One reader.

    Attributes:
        read: Given an input; may also compare what it returns with what it should.
        seeds: True inputs, and some that are nearly so.
        refusals: What it may raise.
    """

    read: Read
    seeds: tuple[bytes, ...]
    refusals: tuple[type[Exception], ...]


def _vectors(name: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((ROOT / "tests" / "vectors" / f"{name}.json").read_text(encoding="utf-8"))
    return table


def _texts(read: Callable[[str], object]) -> Read:
    """A reader of text gets what bytes say in UTF-8, surrogates where they say nothing: so does a command line."""
    return lambda data: read(data.decode("utf-8", "surrogateescape"))


def _encoded(texts: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(text.encode() for text in texts)


# --- the rendezvous wire ------------------------------------------------------------------------------------------------


_MESSAGES: Final = _vectors("messages")
_WIRE: Final = _encoded(vector["wire"] for vector in _MESSAGES["exact"] + _MESSAGES["decode_only"])


def _message(data: bytes) -> None:
    message = messages.decode(data)
    if messages.decode(messages.encode(message)) != message:
        raise AssertionError("a message is another one when it is written and read again")


def _lines(data: bytes) -> None:
    """Cut at every place that the first byte says; however cut, the messages are the same."""
    step = (data[0] if data else 0) % 64 + 1
    whole, cut = MessageLines(), MessageLines()
    if whole.feed(data) != [m for start in range(0, len(data), step) for m in cut.feed(data[start : start + step])]:
        raise AssertionError("lines depend on how they are cut")


def _new_broker() -> Broker:
    return Broker(bytes(32), random.Random(1), Judge(), compat_seed=True)


class _BrokerReader:
    """A whole server, fed datagram after datagram, so that one finds what another left."""

    def __init__(self) -> None:
        self._broker = _new_broker()
        self._now = 0.0

    def __call__(self, data: bytes, /) -> None:
        """Read one datagram, from one of four sources."""
        self._now += 0.01
        if self._now > 100:
            self.__init__()  # type: ignore[misc]
        source = (f"192.0.2.{len(data) % 4 + 1}", 7000)
        self._broker.receive_datagram(data, source, self._now)
        self._broker.handle_timer(self._now)
        self._broker.datagrams_to_send()
        self._broker.events()


def _keyed(data: bytes) -> None:
    receiver = keyed.KeyedReceiver(bytes(32))
    if receiver.open(data) and receiver.open(data):
        raise AssertionError("a datagram was taken twice")


def _sealed() -> tuple[bytes, ...]:
    sender = keyed.KeyedSender(bytes(32))
    return tuple(sender.seal(wire) for wire in _WIRE if b'"t":3' in wire or b'"t":-3' in wire)


_SIGNALS: Final = _vectors("signals")


class _SealedReader:
    """Opens a signal as it is; and one that says what was given, sealed right."""

    def __init__(self) -> None:
        self._key = bytes.fromhex(_SIGNALS["caller_seal"])
        self._aead = ChaCha20Poly1305(self._key)

    def __call__(self, data: bytes, /) -> None:
        """Read one input in both ways."""
        SignalReceiver(self._key).open(data.decode("utf-8", "surrogateescape"))
        box = self._aead.encrypt(bytes(12), data, None)
        said = SignalReceiver(self._key).open(base64.urlsafe_b64encode(bytes(8) + box).rstrip(b"=").decode())
        if said in {SignalFault.FORGED, SignalFault.REPLAYED}:
            raise AssertionError("what was sealed right was not opened")


# --- frames -------------------------------------------------------------------------------------------------------------

_FRAME_VECTORS: Final = _vectors("frames")
_FRAMES: Final = tuple(bytes.fromhex(vector["wire"]) for vector in _FRAME_VECTORS["frames"])
_NO_FRAMES: Final = tuple(bytes.fromhex(vector["wire"]) for vector in _FRAME_VECTORS["malformed"])


def _frame(data: bytes) -> None:
    frame = frames.decode(data)
    again = frames.decode(frames.encode(frame))
    if again != frame and not hasattr(frame, "reason"):  # a reason is made fit to show, and cut
        raise AssertionError("a frame is another one when it is written and read again")


def _stream_of_frames(data: bytes) -> None:
    reader, step = frames.FrameReader(), (data[0] if data else 0) % 64 + 1
    for start in range(0, len(data), step):
        for _ in reader.feed(memoryview(data)[start : start + step]):
            pass


# --- routers ------------------------------------------------------------------------------------------------------------

_ROUTER: Final = ("192.0.2.1", 5351)
_LOCATION: Final = igd.Location(("192.0.2.1", 5000), "/desc.xml")
_SEARCH_ANSWER: Final = b"HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\nLOCATION: http://192.0.2.1:5000/desc.xml\r\n\r\n"
_DESCRIPTION: Final = (
    b'<?xml version="1.0"?><root xmlns="u"><URLBase>http://192.0.2.1:5000</URLBase><device><serviceList><service><serviceType>'
    b"urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><controlURL>/ctl</controlURL></service></serviceList></device>"
    b"</root>"
)
_SOAP: Final = (
    b'<s:Envelope xmlns:s="s"><s:Body><u:AddPortMappingResponse xmlns:u="u"/></s:Body></s:Envelope>',
    b"<s:Fault><UPnPError><errorCode>718</errorCode><errorDescription>Conflict</errorDescription></UPnPError></s:Fault>",
)
_HEADS: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n",
    b"HTTP/1.0 500 Error\r\nTransfer-Encoding: chunked\r\n\r\n",
)
_DOCTYPE: Final = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>'


class _RouterReader:
    """A machine that asks a router, fed answer after answer."""

    def __init__(self) -> None:
        self._client = PortMapClient(_ROUTER, "192.0.2.2", 40123, random.Random(1))
        self._now = 0.0
        self._client.start(0.0)

    def __call__(self, data: bytes, /) -> None:
        """Read one datagram as an answer and as an announcement; what carries a nonce carries the right one."""
        self._now += 1.0
        asked = [datagram.data for datagram in self._client.datagrams_to_send() if len(datagram.data) == 60]
        if asked and len(data) >= 36:
            data = data[:24] + asked[0][24:36] + data[36:]
        self._client.receive_datagram(data, _ROUTER, self._now)
        self._client.receive_announcement(data, _ROUTER, self._now)
        self._client.handle_timer(self._now)
        self._client.events()


def _pcp_answers() -> tuple[bytes, ...]:
    answer = pcp.MapAnswer(
        code=0, lifetime=7200, epoch=9, nonce=bytes(12), transport="tcp", port=40123, external=("192.0.2.1", 40123)
    )
    return (pcp.encode_answer(answer), pcp.encode_answer(pcp.Announcement(0, 9)))


def _natpmp_answers() -> tuple[bytes, ...]:
    answer = natpmp.MapAnswer(code=0, epoch=9, transport="udp", port=40123, external_port=40123, lifetime=7200)
    return (natpmp.encode_answer(answer), natpmp.encode_answer(natpmp.AddressAnswer(0, 9, "192.0.2.1")))


def _description(data: bytes) -> object:
    return igd.parse_description(http.HttpAnswer(200, data), _LOCATION)


def _soap(data: bytes) -> object:
    return igd.parse_soap(http.HttpAnswer(200, data), "AddPortMapping")


# --- keys, files, what is typed -------------------------------------------------------------------------------------------


def _certificate(data: bytes) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)  # of what it still reads
        return tls._read_leaf(data)  # noqa: SLF001


def _certificates() -> tuple[bytes, ...]:
    leaf = tls._leaf_certificate(IDENTITY, Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key())  # noqa: SLF001
    return (
        x509.load_pem_x509_certificate(leaf).public_bytes(serialization.Encoding.DER),
        tls._anchor_certificate(IDENTITY.public),  # noqa: SLF001
    )


class _FileReader:
    """Reads a file of a profile anew for each input."""

    def __init__(self, name: str, load: Callable[[Path], object]) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._path = Path(self._directory.name) / name
        self._path.touch(0o600)
        self._load = load

    def __call__(self, data: bytes, /) -> object:
        """Write the input into the file, and have it read."""
        self._path.write_bytes(data)
        return self._load(self._path)


_PEERS: Final = (
    f'[peers.laptop]\nkey = "{KEY}"\nservices = ["ssh", "8888"]\n[peers.laptop.ssh_host_keys]\nssh = ["ssh-ed25519 AAAA"]\n'
)
_CONFIG: Final = '[peer]\ntag = "home-nas"\nrendezvous = ["rv.example:7000", "[::1]:7"]\nresume_timeout = "10m"\n'
_SPECS: Final = (
    *("8888", "9000:8888", "web", "9000:web", "9000:nas2:445", "127.0.0.1:9000:nas2:445", "[::1]:80:[::1]:80", "0:22", "a=b"),
    *("ssh", "web=127.0.0.1:80", "x=unix:/run/x", "53/udp", "1-9:11-19", "*:80:h:80"),
)
_HOSTS: Final = (
    "127.0.0.1",
    "::1",
    "::ffff:127.0.0.1",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "0x7f.1",
    "fe80::1%eth0",
    "nas.example",
)
_ADDRESSES: Final = ("rv.example:7000", "[2001:db8::1]:7", "198.51.100.1", "192.0.2.1:0", "a:b:c")

_REQUEST: Final = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def _websocket(data: bytes) -> None:
    """A server reads it as a request, and behind a good one as frames; so does a client read it as the answer."""
    server = ServerProtocol(max_size=WEB_FRAME_MAX_BYTES)
    server.receive_data(_REQUEST)
    [request] = server.events_received()
    assert isinstance(request, Request)
    server.send_response(server.accept(request))
    frames_of = Frames(server)
    frames_of.unwrap(data)
    frames_of.unwrap(data[: len(data) // 2])
    ServerProtocol(max_size=WEB_FRAME_MAX_BYTES).receive_data(data)
    client = ClientProtocol(parse_uri("wss://rv.example/"), max_size=WEB_FRAME_MAX_BYTES)
    client.send_request(client.connect())
    client.receive_data(data)


class _GrantReader:
    """A relay is shown it as a grant; what was changed anywhere is none."""

    def __init__(self) -> None:
        self._grants: Final = Grants(IDENTITY.public, [IDENTITY.public], lambda: 1_800_000_000.0)
        offers = Offers(IDENTITY, [(("192.0.2.1", 7000), KEY)], lambda: 1_800_000_000.0)
        made = offers.make("0" * 32, KEY, KEY)
        assert made is not None
        self.grant: Final = made.grant.encode()

    def __call__(self, data: bytes) -> object:
        """Read it."""
        text = data.decode("utf-8", "surrogateescape")
        granted = self._grants.read("0" * 32, text)
        if granted is not None and from_base64(text) != from_base64(self.grant.decode()):
            raise AssertionError("a grant that was never given")
        return granted


_GRANTS: Final = _GrantReader()

TARGETS: Final[dict[str, Target]] = {
    "grants": Target(_GRANTS, (_GRANTS.grant, b"", b"A" * 182), ()),
    "websocket": Target(
        _websocket,
        (_REQUEST, b"\x82\x83\0\0\0\0abc", b"\x89\x80\0\0\0\0", b"\x88\x82\0\0\0\0\x03\xe8", b"HTTP/1.1 101 x\r\n\r\n"),
        (),
    ),
    "messages": Target(_message, _WIRE, (messages.MalformedMessageError,)),
    "lines": Target(_lines, tuple(wire + b"\n" for wire in _WIRE), ()),
    "broker": Target(_BrokerReader(), _WIRE, ()),
    "keyed": Target(_keyed, _sealed(), ()),
    "signals": Target(_SealedReader(), _encoded(v[part] for v in _SIGNALS["signals"] for part in ("plain", "sealed")), ()),
    "intents": Target(
        _texts(intent.decode),
        (base64.urlsafe_b64encode(bytes([1, 1]) + bytes(168)), b"A" * 227),
        (intent.MalformedIntentError,),
    ),
    "stun-requests": Target(
        stun.decode_request,
        (stun.encode_request(bytes(12)), bytes.fromhex("000100002112a442") + bytes(12)),
        (stun.MalformedStunError,),
    ),
    "stun-responses": Target(
        stun.decode_response,
        (stun.encode_response(bytes(12), ("192.0.2.1", 7)), stun.encode_response(bytes(12), ("2001:db8::1", 7))),
        (stun.MalformedStunError,),
    ),
    "quic-datagrams": Target(QuicDatagramReader(), DATAGRAMS, ()),
    "quic-hellos": Target(read_hello, HELLOS, ()),
    "quic-frames": Target(QuicFrameReader(), FRAMES, ()),
    "pcp": Target(pcp.decode, _pcp_answers(), (pcp.MalformedPcpError,)),
    "nat-pmp": Target(natpmp.decode, _natpmp_answers(), (natpmp.MalformedNatPmpError,)),
    "routers": Target(_RouterReader(), (*_pcp_answers(), *_natpmp_answers()), ()),
    "upnp-searches": Target(
        lambda data: igd.parse_search_answer(data, "192.0.2.1"), (_SEARCH_ANSWER,), (igd.MalformedIgdError,)
    ),
    "upnp-descriptions": Target(_description, (_DESCRIPTION, _DOCTYPE), (igd.MalformedIgdError,)),
    "upnp-answers": Target(_soap, _SOAP, (igd.MalformedIgdError, igd.SoapFault)),
    "xml": Target(xml.parse, (_DESCRIPTION, _DOCTYPE, *_SOAP), (xml.MalformedXmlError,)),
    "http-heads": Target(http.parse_head, _HEADS, (http.MalformedHttpError,)),
    "http-chunks": Target(http.parse_chunk_size, (b"1aF;x=y\r\n",), (http.MalformedHttpError,)),
    "frames": Target(_frame, (*_FRAMES, *_NO_FRAMES), (P2PTunnelError,)),
    "frame-reader": Target(_stream_of_frames, (b"".join(_FRAMES), *_FRAMES), (P2PTunnelError,)),
    "preamble": Target(frames.parse_preamble, (frames.preamble(bytes(16)),), (P2PTunnelError,)),
    "conkeys": Target(_texts(frames.conkey_to_selector), (b"00" * 16, b"0f" * 16), (P2PTunnelError,)),
    "pairing-frames": Target(
        pairing.decode,
        (
            pairing.encode(pairing.Done()),
            pairing.encode(pairing.Exchange(bytes(32))),
            pairing.encode(pairing.Paired(bytes(32), {"ssh": ("ssh-ed25519 AAAA",)})),
        ),
        (P2PTunnelError,),
    ),
    "tickets": Target(_texts(ticket.parse_ticket), _encoded(("p2pt1" + "a" * 200,)), (P2PTunnelError,)),
    "codes": Target(_texts(words.parse_code), _encoded(("home-nas-apple-river-zoo", "nas appl rive zoo")), (P2PTunnelError,)),
    "capabilities": Target(
        _texts(capability.parse_capability), _encoded((str(capability.issue(IDENTITY, ("ssh",), 2e9)),)), (P2PTunnelError,)
    ),
    "certificates": Target(_certificate, _certificates(), (AuthenticationError,)),
    "keys": Target(_texts(PublicKey.parse), _encoded((KEY, KEY.upper())), (ConfigError,)),
    "tags": Target(_texts(types.parse_tag), _encoded(("home-nas", "a", "a" * 63, "-a", "a.b_c")), (ConfigError,)),
    "addresses": Target(_texts(types.parse_address), _encoded(_ADDRESSES), (ConfigError,)),
    "hosts": Target(_texts(addresses.canonical), _encoded(_HOSTS), (ConfigError,)),
    "forwards": Target(_texts(spec.parse_forward), _encoded(_SPECS), (ConfigError,)),
    "services": Target(_texts(spec.parse_service), _encoded(_SPECS), (ConfigError,)),
    "durations": Target(_texts(config.parse_duration), _encoded(("10m", "1.5h", "0", "3d", "nan", "1e9")), (ConfigError,)),
    "host-keys": Target(
        _texts(knownhosts.parse_host_keys), _encoded(("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA==\n",)), (P2PTunnelError,)
    ),
    "peers-file": Target(_FileReader("peers.toml", lambda path: PeerStore(path).all()), _encoded((_PEERS,)), (ConfigError,)),
    "config-file": Target(
        _FileReader(config.CONFIG_FILE, lambda path: config.load_config(path.parent)), _encoded((_CONFIG,)), (ConfigError,)
    ),
}
