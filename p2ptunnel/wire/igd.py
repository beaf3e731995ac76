"""UPnP's Internet Gateway Device, what a client says and hears: SSDP, the description, SOAP.  Rule: no state, no I/O.

What a description names is taken only if it is on the router that was asked: anybody may answer a multicast.

Source: UPnP Device Architecture 1.1; WANIPConnection:1 and :2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urljoin, urlsplit

import msgspec

from p2ptunnel.types import Address, clean, format_address
from p2ptunnel.wire.http import HttpAnswer, head_fields, request
from p2ptunnel.wire.xml import Element, MalformedXmlError, escape, parse

__all__ = [
    "SEARCHES",
    "SSDP_ADDRESS",
    "SSDP_PORT",
    "IgdService",
    "Location",
    "MalformedIgdError",
    "SoapFault",
    "describe_request",
    "parse_description",
    "parse_search_answer",
    "parse_soap",
    "soap_request",
]

SSDP_PORT: Final = 1900
SSDP_ADDRESS: Final = ("239.255.255.250", SSDP_PORT)

_TARGETS: Final = ("urn:schemas-upnp-org:device:InternetGatewayDevice:1", "upnp:rootdevice")
SEARCHES: Final = tuple(
    f'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: {target}\r\n\r\n'.encode()
    for target in _TARGETS
)
"""Ask everybody whether it is a router; some answer to the one, some to the other only."""

_CONNECTIONS: Final = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
"""What maps ports, the best first."""

_LONGEST_URL: Final = 1024
_SAFE_PATH: Final = re.compile(r"/[!-~]*")
_CODE: Final = re.compile(r"[0-9]{1,4}")
_BODY: Final = (
    '<?xml version="1.0"?>\r\n'
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"'
    ' s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">'
    '<s:Body><u:{action} xmlns:u="{kind}">{arguments}</u:{action}></s:Body></s:Envelope>\r\n'
)


class MalformedIgdError(ValueError):
    """An answer that no UPnP router of ours would give."""


class Location(msgspec.Struct, frozen=True):
    """Where to ask over HTTP."""

    address: Address
    path: str


class IgdService(msgspec.Struct, frozen=True):
    """The service of a router that maps ports."""

    location: Location
    kind: str

    @property
    def takes_any_port(self) -> bool:
        """Whether it finds a free port itself."""
        return self.kind == _CONNECTIONS[0]


class SoapFault(Exception):  # noqa: N818 - what UPnP calls it
    """The router refuses: its code, and its own words, made fit to be shown."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


def parse_search_answer(data: bytes, router: str) -> Location:
    """Return where the router at that numeric address describes itself.

    Raises:
        MalformedIgdError: It is no answer to a search, or leads elsewhere.
    """
    if not data.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
        raise MalformedIgdError("no answer to a search")
    return _location(head_fields(data).get("location", ""), router)


def describe_request(location: Location) -> bytes:
    """Return the request for a description."""
    return request("GET", location.path, format_address(location.address), {})


def parse_description(answer: HttpAnswer, location: Location) -> IgdService:
    """Return the service that maps ports.

    Args:
        answer: To `describe_request`.
        location: Where it comes from.

    Raises:
        MalformedIgdError: It describes none, or one that is somewhere else.
    """
    if answer.status != 200:
        raise MalformedIgdError(f"status {answer.status}")
    root = _parsed(answer.body)
    base = root.value("URLBase") or f"http://{format_address(location.address)}{location.path}"
    services = list(_connections(root))
    for kind in _CONNECTIONS:
        for service in services:
            if service.value("serviceType") == kind:
                return IgdService(_location(service.value("controlURL"), location.address[0], base), kind)
    raise MalformedIgdError("it maps no ports")


def soap_request(service: IgdService, action: str, arguments: Mapping[str, str | int]) -> bytes:
    """Return the request that calls an action of a service."""
    inner = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in arguments.items())
    body = _BODY.format(action=action, kind=service.kind, arguments=inner).encode()
    fields = {"Content-Type": 'text/xml; charset="utf-8"', "SOAPAction": f'"{service.kind}#{action}"'}
    return request("POST", service.location.path, format_address(service.location.address), fields, body)


def parse_soap(answer: HttpAnswer, action: str) -> Element:
    """Return what the action returns; `value` finds its arguments.

    Raises:
        SoapFault: The router refuses.
        MalformedIgdError: It is neither.
    """
    root = _parsed(answer.body)
    code = root.value("errorCode")
    if next(root.walk("Fault"), None) is not None and _CODE.fullmatch(code):
        raise SoapFault(int(code), clean(root.value("errorDescription")))
    returned = next(root.walk(f"{action}Response"), None)
    if answer.status != 200 or returned is None:
        raise MalformedIgdError(f"status {answer.status}, and no answer to {action}")
    return returned


def _connections(root: Element) -> Iterator[Element]:
    return (service for service in root.walk("service") if service.value("controlURL"))


def _parsed(body: bytes) -> Element:
    try:
        return parse(body.strip(b"\0 \r\n\t"))  # some routers end it by a NUL
    except MalformedXmlError as error:
        raise MalformedIgdError(str(error)) from error


def _location(url: str, router: str, base: str = "") -> Location:
    if len(url) > _LONGEST_URL or len(base) > _LONGEST_URL:
        raise MalformedIgdError("a long URL")
    try:
        parts = urlsplit(urljoin(base, url))
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:  # a port that is none, half a bracket
        raise MalformedIgdError("no URL") from error
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme != "http" or host != router or not _SAFE_PATH.fullmatch(path):
        raise MalformedIgdError("a URL that is not the router's")
    return Location((router, port), path)
