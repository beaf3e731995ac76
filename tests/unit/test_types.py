"""Tags, addresses, candidates, and text that is fit to be shown."""

from __future__ import annotations

import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.errors import InvalidAddressError, InvalidTagError
from p2ptunnel.types import (
    Candidate,
    Path,
    ServerSpec,
    clean,
    format_address,
    format_duration,
    is_tag,
    parse_address,
    parse_server,
    parse_tag,
)

# --- tags -------------------------------------------------------------------------------------------------------------

INSIDE = string.ascii_lowercase + string.digits + "._-"
ENDS = string.ascii_lowercase + string.digits


@pytest.mark.parametrize("tag", ["a", "7", "home-nas", "a.b_c-d", "x" * 63, "0-0"])
def test_a_tag_is_returned_as_it_is(tag: str) -> None:
    assert parse_tag(tag) == tag


NO_TAGS = [
    "",
    "A",
    "Home",
    "-a",
    "a-",
    ".a",
    "a.",
    "_",
    "a b",
    "a/b",
    "a\n",
    "\na",
    "é",
    "\N{CYRILLIC SMALL LETTER A}",
    "x" * 64,
    "a\x00",
    "\N{ARABIC-INDIC DIGIT ONE}",
]


@pytest.mark.parametrize("text", NO_TAGS, ids=ascii)
def test_what_is_no_tag_is_refused(text: str) -> None:
    assert not is_tag(text)
    with pytest.raises(InvalidTagError):
        parse_tag(text)


@pytest.mark.parametrize("value", [None, 7, b"a", ["a"]])
def test_what_is_no_text_is_no_tag(value: object) -> None:
    assert not is_tag(value)


@given(st.text())
def test_the_grammar_of_tags_is_the_one_of_the_documentation(text: str) -> None:
    inside = all(character in INSIDE for character in text)
    assert is_tag(text) == (inside and 1 <= len(text) <= 63 and text[0] in ENDS and text[-1] in ENDS)


def test_the_error_shows_the_tag_cleaned() -> None:
    with pytest.raises(InvalidTagError) as caught:
        parse_tag("\x1b[31m")
    assert caught.value.tag == r"\x1b[31m"


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1:7000", ("192.0.2.1", 7000)),
        ("rv.example:7000", ("rv.example", 7000)),
        ("[2001:db8::1]:7000", ("2001:db8::1", 7000)),
        (" rv.example:7000\n", ("rv.example", 7000)),
        ("rv.example:0", ("rv.example", 0)),
        ("rv.example:65535", ("rv.example", 65535)),
    ],
)
def test_an_address_with_a_port_is_parsed(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == parse_address(text, default_port=1) == address


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("rv.example", "rv.example"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("rv.example:", "rv.example"),
    ],
)
def test_the_port_may_be_left_out_where_there_is_a_default(text: str, host: str) -> None:
    assert parse_address(text, default_port=7000) == (host, 7000)
    with pytest.raises(InvalidAddressError):
        parse_address(text)


NO_ADDRESSES = [
    "",
    ":",
    ":7000",
    "h:65536",
    "h:-1",
    "h:x",
    "h:7 0",
    "h:\N{ARABIC-INDIC DIGIT SEVEN}",
    "h:1e3",
    "[::1",
    "[::1]7000",
    "[]:7000",
    "h:99999999",
    "http://rv.example:7000",
    "rv.example/",
]


@pytest.mark.parametrize("text", NO_ADDRESSES, ids=ascii)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidAddressError):
        parse_address(text, default_port=7000)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("192.0.2.1", 7000), "192.0.2.1:7000"),
        (("rv.example", 7000), "rv.example:7000"),
        (("2001:db8::1", 7000), "[2001:db8::1]:7000"),
        (("fe80::1%eth0", 7000), "[fe80::1%eth0]:7000"),
    ],
)
def test_an_address_is_written_so_that_it_can_be_read_back(address: tuple[str, int], text: str) -> None:
    assert format_address(address) == text
    assert parse_address(text) == address


@given(st.ip_addresses().map(str), st.integers(0, 65535))
def test_any_numeric_address_survives_writing_and_reading(host: str, port: int) -> None:
    assert parse_address(format_address((host, port))) == (host, port)


# --- values -----------------------------------------------------------------------------------------------------------


def test_a_candidate_is_a_list_on_the_wire() -> None:
    candidate = Candidate("srflx", "tcp", "198.51.100.4", 41022)
    assert msgspec.json.encode(candidate) == b'["srflx","tcp","198.51.100.4",41022]'
    assert candidate.address == ("198.51.100.4", 41022)


def test_values_do_not_change() -> None:
    path = Path(kind="direct", transport="tcp", local=("192.0.2.1", 1), remote=("192.0.2.2", 2))
    with pytest.raises(AttributeError):
        path.rtt = 0.1  # type: ignore[misc]
    assert hash(path) == hash(msgspec.structs.replace(path))


# --- servers ----------------------------------------------------------------------------------------------------------

KEY = "p2p:" + "k5xq7m2a" * 6 + "k5xq"
TOKEN = "si9UqzGf1sA-3BsQtfUIlA"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("rv.example", ServerSpec(("rv.example", 7000))),
        ("rv.example:7001", ServerSpec(("rv.example", 7001))),
        (f"[2001:db8::7]:7000#{KEY}", ServerSpec(("2001:db8::7", 7000), KEY)),
        (f" rv.example#{KEY}#join:{TOKEN} ", ServerSpec(("rv.example", 7000), KEY, TOKEN)),
    ],
)
def test_a_server_is_read_as_its_operator_wrote_it(text: str, spec: ServerSpec) -> None:
    assert parse_server(text, default_port=7000) == spec


@pytest.mark.parametrize(
    "text",
    [
        "",
        "#",
        "rv.example#",
        "rv.example#p2p:short",
        f"rv.example#{KEY}x",
        f"rv.example#join:{TOKEN}",
        f"rv.example#{KEY}#{TOKEN}",
        f"rv.example#{KEY}#join:short",
        f"rv.example#{KEY}#join:{TOKEN}#more",
        f"rv.example:x#{KEY}#join:{TOKEN}",
    ],
)
def test_what_is_no_server_is_refused_without_showing_its_secret(text: str) -> None:
    with pytest.raises(InvalidAddressError) as caught:
        parse_server(text, default_port=7000)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("marks", "malformed"),
    [("#p2p:abc", "key"), (f"#join:{TOKEN}", "key"), (f"#{KEY}#join:x", "join token"), (f"#{KEY}#{TOKEN}", "join token")],
)
def test_a_mistyped_key_or_token_of_a_server_is_told_as_that(marks: str, malformed: str) -> None:
    with pytest.raises(InvalidAddressError) as caught:
        parse_server(f"127.0.0.1:17000{marks}", default_port=7000)
    assert str(caught.value) == f"the {malformed} in '127.0.0.1:17000#…' is malformed"
    assert "Copy the whole line" in caught.value.hint


def test_a_server_is_shown_without_its_secret() -> None:
    shown = repr(ServerSpec(("rv.example", 7000), KEY, TOKEN))
    assert TOKEN not in shown
    assert "rv.example:7000" in shown


# --- text from elsewhere ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("home-nas", "home-nas"),
        ("被叫", "被叫"),
        ("a\nb", r"a\x0ab"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u202eevil", r"\u202eevil"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\U000e0001"),
        ("\x7f\x9b", r"\x7f\x9b"),
        ("x" * 300, "x" * 200),
    ],
    ids=ascii,
)
def test_text_is_made_fit_to_be_shown(text: str, shown: str) -> None:
    assert clean(text) == shown


@pytest.mark.parametrize(("value", "shown"), [(None, "NoneType"), (b"secret", "bytes"), (["x"], "list")])
def test_of_what_is_no_text_only_the_type_is_shown(value: object, shown: str) -> None:
    assert clean(value) == shown


def test_letters_that_nobody_can_see_are_spelt_out() -> None:
    assert clean("a\u3164b\u115f\u1160\uffa0\u2800") == "a\\u3164b\\u115f\\u1160\\uffa0\\u2800"


@given(st.text(st.characters(), max_size=300))
def test_whatever_comes_is_one_printable_line_of_at_most_200_characters(text: str) -> None:
    shown = clean(text)
    assert shown.isprintable()
    assert len(shown) <= 200
    shown.encode("utf-8")


@given(st.text())
def test_cleaning_twice_changes_nothing(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.05, "0.05 s"),
        (1.84, "1.8 s"),
        (3, "3 s"),
        (45, "45 s"),
        (60, "1 min"),
        (90, "1.5 min"),
        (7200, "2 h"),
        (400 * 86_400, "400 d"),
        (1e12, "11574074.1 d"),
    ],
)
def test_a_duration_is_written_as_people_say_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
