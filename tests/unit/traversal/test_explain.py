"""An attempt as words and as a picture."""

from __future__ import annotations

import re
import socket
import xml.etree.ElementTree as ET

import msgspec
import pytest

from p2ptunnel.errors import NoPathError, PeerRefusedError
from p2ptunnel.transports.relay import RelayPipe
from p2ptunnel.traversal.explain import Explanation, explain, next_step
from p2ptunnel.traversal.gantt import draw
from p2ptunnel.traversal.tries import Outcome, Tries, Try, Way
from p2ptunnel.types import Path

REMOTE = ("198.51.100.7", 40001)
PATH = Path(kind="direct", transport="tcp", local=("192.168.1.17", 41000), remote=REMOTE, rtt=0.031)
EVIL = "</text><script>alert(1)</script>\x1b]0;\u202e&\"'"
SVG = "{http://www.w3.org/2000/svg}"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def tries() -> Tries:
    clock = Clock()
    made = Tries(clock)
    asked = made.begin("server", "t=4", remote=("203.0.113.1", 7000))
    clock.now = 0.05
    asked.end("answered", "the server knows the peer")
    dialled = made.begin("tcp", "SYN", remote=REMOTE, local=("192.168.1.17", 41000), kind="srflx")
    clock.now = 10.05
    dialled.end("silent", "no answer in 10 s")
    made.begin("relay", "t=6", kind="relay")
    return made


def test_a_path_is_the_verdict_and_what_failed_beside_it_needs_nothing_done() -> None:
    told = explain("home-nas", tries(), PATH)
    assert told.verdict == "home-nas: connected, direct tcp 198.51.100.7:40001, 31 ms there and back"
    assert {each.next_step for each in told.tries} == {""}
    assert str(told) == "\n".join(
        (
            "   START      END  WAY    KIND   OUTCOME    WHAT",
            "    0 ms    50 ms  server        answered   203.0.113.1:7000 t=4: the server knows the peer",
            "   50 ms 10050 ms  TCP    srflx  silent     198.51.100.7:40001 SYN from port 41000: no answer in 10 s",
            "10050 ms      ...  relay  relay  under way  t=6",
            told.verdict,
        )
    )


def test_without_a_path_the_error_and_the_next_steps_are_told() -> None:
    made = tries()
    made.error = NoPathError("home-nas", ("one line",))
    told = explain("home-nas", made, None)
    assert told.verdict == told.error == "no path to home-nas: 1 tried (one line)"
    [*_, verdict, first, second] = str(told).splitlines()
    assert verdict == told.verdict
    assert first == f"next: {made.error.hint}"
    assert second.startswith("next: No SYN got through: `p2ptunnel netcheck`")


def test_over_the_relay_the_next_steps_say_what_a_direct_path_needs() -> None:
    told = explain("home-nas", tries(), msgspec.structs.replace(PATH, kind="relay"))
    assert "next: No SYN got through" in str(told)


def test_a_relay_that_is_reached_through_port_443_is_told_as_that() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:  # what carries bytes inside this process: TLS is behind it
        path = RelayPipe(ours, ("203.0.113.1", 7000), 1).path
    assert path.place == "203.0.113.1:7000 through TLS on port 443"
    told = explain("home-nas", Tries(), path)
    assert told.verdict == "home-nas: connected, relay tcp 203.0.113.1:7000 through TLS on port 443"
    assert PATH.place == "198.51.100.7:40001"


def test_an_attempt_that_is_still_under_way_says_so() -> None:
    assert explain("home-nas", Tries(), None).verdict == "home-nas: no connection came up while it was waited for"
    assert str(explain("home-nas", Tries(), None)) == "home-nas: no connection came up while it was waited for"


@pytest.mark.parametrize(
    ("way", "outcome", "has_step"),
    [("tcp", "silent", True), ("tcp", "connected", False), ("relay", "failed", True), ("tcp", "replaced", True)],
)
def test_only_what_can_be_mended_has_a_next_step(way: Way, outcome: Outcome, has_step: bool) -> None:
    assert bool(next_step(Try(way=way, sent="", start_ms=0, outcome=outcome))) is has_step


def test_a_failed_question_to_the_server_says_once_what_its_own_error_says_to_do() -> None:
    made = Tries(Clock())
    made.error = PeerRefusedError("home-nas")
    with pytest.raises(PeerRefusedError), made.begin("server", "t=10 to the peer"):
        raise made.error
    *_, verdict, step = str(explain("home-nas", made, None)).splitlines()
    assert (verdict, step) == (str(made.error), f"next: {made.error.hint}")


def test_a_failed_question_to_the_server_of_which_no_more_is_known_has_the_general_step() -> None:
    made = Tries(Clock())
    made.begin("server", "t=4").end("failed", "an answer that cannot be read")
    assert str(explain("home-nas", made, None)).endswith("next: Is the server up, and the peer registered? `p2ptunnel status`")


def test_it_goes_through_json_and_back() -> None:
    told = explain("home-nas", tries(), PATH)
    assert msgspec.json.decode(msgspec.json.encode(told), type=Explanation) == told


def test_a_notebook_gets_text_and_a_picture() -> None:
    told = explain("home-nas", tries(), PATH)
    assert told._repr_mimebundle_(include=None) == {"text/plain": str(told), "image/svg+xml": told._repr_svg_()}


def test_every_try_is_a_bar_where_its_times_say() -> None:
    picture = ET.fromstring(explain("home-nas", tries(), PATH).svg())
    bars = [group.find(f"{SVG}rect") for group in picture.findall(f"{SVG}g")]
    edges = [(float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in bars if bar is not None]
    assert len(edges) == 3
    (asked, short), (dialled, long), _ = edges
    assert asked == 280.0
    assert (short, long) == (pytest.approx(656 * 50 / 10050, abs=0.1), pytest.approx(656 * 10000 / 10050, abs=0.2))
    assert dialled == pytest.approx(asked + short, abs=0.2)


def test_no_text_of_others_is_markup_in_the_picture() -> None:
    picture = draw(EVIL, [(EVIL, 0, 5, "failed", EVIL)])
    tags = {element.tag.removeprefix(SVG) for element in ET.fromstring(picture).iter()}
    assert tags == {"svg", "title", "style", "rect", "text", "line", "g"}
    assert "\x1b" not in picture
    assert "\u202e" not in picture


def test_the_picture_loads_nothing_and_styles_nothing_but_itself() -> None:
    picture = explain("home-nas", tries(), PATH).svg()
    assert not re.search(r"href|url\(|@import|<script|on[a-z]+=", picture)
    style = picture.partition("<style>")[2].partition("</style>")[0].replace("@media(prefers-color-scheme:dark){", "")
    selectors = [rule.partition("{")[0] for rule in re.findall(r"[^{}]+\{[^{}]*\}", style)]
    assert selectors
    assert all(selector.startswith(".p2p-bars") for selector in selectors)


def test_nothing_tried_is_a_picture_as_well() -> None:
    assert ET.fromstring(draw("nothing", [])).tag == f"{SVG}svg"


def test_long_words_stay_in_the_picture() -> None:
    picture = ET.fromstring(draw("x", [("y" * 99, 0, 1, "failed", "z" * 400)]))
    texts = [element.text or "" for element in picture.iter(f"{SVG}text")]
    assert max(map(len, texts)) <= 110
