"""What UPnP routers say, true and hostile: SSDP, HTTP, XML, SOAP."""

from __future__ import annotations

import contextlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.defaults import IGD_ANSWER_MAX_BYTES, IGD_DEPTH_MAX, IGD_ELEMENTS_MAX
from p2ptunnel.wire import http, igd, xml
from p2ptunnel.wire.http import HttpAnswer, HttpHead, MalformedHttpError
from p2ptunnel.wire.igd import IgdService, Location, MalformedIgdError, SoapFault
from p2ptunnel.wire.xml import Element, MalformedXmlError

ROUTER = "192.168.1.1"
DESCRIBED = Location((ROUTER, 5000), "/rootDesc.xml")
FOUND = (
    b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: upnp:rootdevice\r\nEXT:\r\n"
    b"Location: http://192.168.1.1:5000/rootDesc.xml\r\n\r\n"
)
IP_1, IP_2, PPP_1 = (
    f"urn:schemas-upnp-org:service:WAN{name}" for name in ("IPConnection:1", "IPConnection:2", "PPPConnection:1")
)


def description(*services: tuple[str, str], base: str = "", before: str = "") -> HttpAnswer:
    """A description as routers write it: the service stands three devices deep."""
    listed = "".join(
        f"<service><serviceType>{kind}</serviceType><controlURL>{url}</controlURL></service>" for kind, url in services
    )
    return HttpAnswer(
        200,
        f'<?xml version="1.0"?>{before}<root xmlns="urn:schemas-upnp-org:device-1-0">{base}<device><deviceList><device>'
        f"<serviceList>{listed}</serviceList></device></deviceList></device></root>".encode(),
    )


def fault(code: object, text: str = "ConflictInMappingEntry") -> HttpAnswer:
    """A refusal as routers write it."""
    return HttpAnswer(
        500,
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode>'
        f"<detail><UPnPError><errorCode>{code}</errorCode><errorDescription>{text}</errorDescription></UPnPError></detail>"
        "</s:Fault></s:Body></s:Envelope>".encode(),
    )


# --- SSDP -------------------------------------------------------------------------------------------------------------


def test_a_search_is_what_the_standard_asks_for() -> None:
    assert all(search.startswith(b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n") for search in igd.SEARCHES)
    assert all(
        b'\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: ' in search and search.endswith(b"\r\n\r\n") for search in igd.SEARCHES
    )


def test_the_answer_says_where_to_ask() -> None:
    assert igd.parse_search_answer(FOUND, ROUTER) == DESCRIBED


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://192.168.1.66:5000/rootDesc.xml",
        "http://router.example/rootDesc.xml",
        "https://192.168.1.1/rootDesc.xml",
        "file:///etc/passwd",
        "http://192.168.1.1@192.168.1.66/",
        "http://192.168.1.1:99999/",
        "http://[192.168.1.1/",
        "http://192.168.1.1/a b",
        "http://192.168.1.1/\x7f",
        "http://192.168.1.1/" + "a" * 1024,
    ],
)
def test_an_answer_that_leads_elsewhere_is_not_followed(url: str) -> None:
    with pytest.raises(MalformedIgdError):
        igd.parse_search_answer(b"HTTP/1.1 200 OK\r\nLOCATION: " + url.encode() + b"\r\n\r\n", ROUTER)


def test_what_is_no_answer_to_a_search_is_not_read() -> None:
    with pytest.raises(MalformedIgdError, match="no answer"):
        igd.parse_search_answer(FOUND.replace(b"HTTP/1.1 200 OK", b"NOTIFY * HTTP/1.1"), ROUTER)


# --- HTTP -------------------------------------------------------------------------------------------------------------


def test_a_head_tells_how_long_the_body_is() -> None:
    assert http.parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n") == HttpHead(200, 12, is_chunked=False)
    assert http.parse_head(b"HTTP/1.0 500 Error\r\nServer: x\r\n\r\n") == HttpHead(500, None, is_chunked=False)
    assert http.parse_head(b"HTTP/1.1 200\r\ntransfer-encoding: Chunked\r\n\r\n") == HttpHead(200, None, is_chunked=True)
    assert http.parse_chunk_size(b"1aF;x=y\r\n") == 0x1AF


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 999 x\r\n\r\n",
        b"HTTP/1.1 2000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    ],
)
def test_a_head_that_is_none_is_malformed(head: bytes) -> None:
    with pytest.raises(MalformedHttpError):
        http.parse_head(head)


@pytest.mark.parametrize("line", [b"", b"\r\n", b"-1\r\n", b"1234567\r\n", b"g\r\n", b"1\n"])
def test_a_size_that_is_none_is_malformed(line: bytes) -> None:
    with pytest.raises(MalformedHttpError):
        http.parse_chunk_size(line)


def test_a_request_says_its_length_and_ends_the_connection() -> None:
    asked = igd.describe_request(DESCRIBED)
    assert asked.startswith(b"GET /rootDesc.xml HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n")
    assert b"\r\nConnection: close\r\n" in asked
    assert http.request("POST", "/", "h", {}, b"body").endswith(b"Content-Length: 4\r\n\r\nbody")


# --- XML --------------------------------------------------------------------------------------------------------------


def test_a_tree_has_names_without_prefixes_and_texts() -> None:
    root = xml.parse(b'<a:x xmlns:a="u"><y> one </y><y>two<z/></y></a:x>')
    assert root == Element("x", "", [Element("y", " one "), Element("y", "two", [Element("z")])])
    assert root.value("y") == "one"
    assert root.value("none") == ""


BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a0 "aaaaaaaaaa">'
    + b"".join(b'<!ENTITY a%d "%s">' % (n, b"&a%d;" % (n - 1) * 10) for n in range(1, 10))
    + b"]><b>&a9;</b>"
)


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
        b"<!DOCTYPE x><x/>",
        b"<x>&e;</x>",
        b"<x>",
        b"",
        b"<x/><y/>",
        b'<?xml version="1.0" encoding="klingon"?><x/>',
        b"<x>" * (IGD_DEPTH_MAX + 1) + b"</x>" * (IGD_DEPTH_MAX + 1),
        b"<x>" + b"<y/>" * IGD_ELEMENTS_MAX + b"</x>",
        b"<x>" + b" " * IGD_ANSWER_MAX_BYTES + b"</x>",
    ],
    ids=["bomb", "file", "doctype", "entity", "open", "empty", "two", "encoding", "deep", "many", "long"],
)
def test_hostile_xml_is_malformed_and_costs_nothing(text: bytes) -> None:
    def cost() -> float:
        began = time.thread_time()
        with pytest.raises(MalformedXmlError):
            xml.parse(text)
        return time.thread_time() - began

    assert min(cost() for _ in range(3)) < 0.2  # one of them may have to collect what thousands of tests left


@given(st.binary(max_size=200).map(lambda junk: b"<a>" + junk + b"</a>") | st.binary(max_size=200))
def test_any_bytes_are_a_tree_or_malformed(data: bytes) -> None:
    with contextlib.suppress(MalformedXmlError):
        assert xml.parse(data).name


@given(st.text(alphabet=st.characters(min_codepoint=32, blacklist_categories=["Cs", "Cc", "Cn"]), max_size=50))
def test_text_that_is_escaped_comes_back(text: str) -> None:
    assert xml.parse(f"<a>{xml.escape(text)}</a>".encode()).text == text


# --- the description ----------------------------------------------------------------------------------------------------


def test_the_service_that_maps_ports_is_found() -> None:
    answer = description(("urn:schemas-upnp-org:service:WANCommonInterfaceConfig:1", "/c"), (IP_1, "/ctl/IPConn"))
    assert igd.parse_description(answer, DESCRIBED) == IgdService(Location((ROUTER, 5000), "/ctl/IPConn"), IP_1)


def test_of_several_services_the_best_is_taken() -> None:
    service = igd.parse_description(description((PPP_1, "/p"), (IP_1, "/1"), (IP_2, "/2")), DESCRIBED)
    assert (service.kind, service.takes_any_port) == (IP_2, True)
    assert not igd.parse_description(description((PPP_1, "/p")), DESCRIBED).takes_any_port


@pytest.mark.parametrize(
    ("url", "base", "found"),
    [
        ("ctl", "", Location((ROUTER, 5000), "/ctl")),
        ("http://192.168.1.1:49152/ctl?x=1", "", Location((ROUTER, 49152), "/ctl?x=1")),
        ("/ctl", "<URLBase>http://192.168.1.1:81/</URLBase>", Location((ROUTER, 81), "/ctl")),
    ],
)
def test_where_to_ask_may_be_said_in_three_ways(url: str, base: str, found: Location) -> None:
    assert igd.parse_description(description((IP_1, url), base=base), DESCRIBED).location == found


@pytest.mark.parametrize(
    "answer",
    [
        description(),
        description((IP_1, "")),
        description((IP_1, "http://192.168.1.66/ctl")),
        description((IP_1, "//192.168.1.66/ctl")),
        description((IP_1, "/ctl"), base="<URLBase>http://192.168.1.66/</URLBase>"),
        description((IP_1, "/ctl"), before="<!DOCTYPE root>"),
        HttpAnswer(404, b"<html/>"),
        HttpAnswer(200, b"not XML"),
    ],
    ids=["none", "no URL", "elsewhere", "elsewhere by //", "base elsewhere", "doctype", "404", "no XML"],
)
def test_a_description_that_helps_nobody_is_malformed(answer: HttpAnswer) -> None:
    with pytest.raises(MalformedIgdError):
        igd.parse_description(answer, DESCRIBED)


# --- SOAP -------------------------------------------------------------------------------------------------------------

SERVICE = IgdService(Location((ROUTER, 5000), "/ctl"), IP_1)


def test_an_action_is_called_as_the_standard_writes_it() -> None:
    asked = igd.soap_request(SERVICE, "AddPortMapping", {"NewRemoteHost": "", "NewExternalPort": 40123})
    head, body = asked.split(b"\r\n\r\n", 1)
    assert head.startswith(b"POST /ctl HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n")
    assert f'\r\nSOAPAction: "{IP_1}#AddPortMapping"\r\n'.encode() in head
    assert f"\r\nContent-Length: {len(body)}".encode() in head
    [action] = xml.parse(body).walk("AddPortMapping")
    assert [(argument.name, argument.text) for argument in action.children] == [
        ("NewRemoteHost", ""),
        ("NewExternalPort", "40123"),
    ]
    assert re.search(rf'<u:AddPortMapping xmlns:u="{re.escape(IP_1)}">'.encode(), body)


def test_what_an_action_returns_is_read() -> None:
    body = (
        '<s:Envelope xmlns:s="x"><s:Body><u:GetExternalIPAddressResponse xmlns:u="y">'
        "<NewExternalIPAddress>198.51.101.7</NewExternalIPAddress></u:GetExternalIPAddressResponse></s:Body></s:Envelope>\0"
    )
    returned = igd.parse_soap(HttpAnswer(200, body.encode()), "GetExternalIPAddress")
    assert returned.value("NewExternalIPAddress") == "198.51.101.7"


def test_a_refusal_has_its_code_and_clean_words() -> None:
    with pytest.raises(SoapFault) as caught:
        igd.parse_soap(fault(718, "Conflict\u202eInMappingEntry"), "AddPortMapping")
    assert (caught.value.code, caught.value.text) == (718, "Conflict\\u202eInMappingEntry")


@pytest.mark.parametrize(
    "answer",
    [
        fault("many"),
        fault("9" * 5000),
        HttpAnswer(200, b"<a/>"),
        HttpAnswer(500, b"<AddPortMappingResponse/>"),
        HttpAnswer(200, b""),
    ],
    ids=["no code", "long code", "another", "500", "empty"],
)
def test_an_answer_that_is_neither_is_malformed(answer: HttpAnswer) -> None:
    with pytest.raises(MalformedIgdError):
        igd.parse_soap(answer, "AddPortMapping")
