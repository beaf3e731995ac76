"""T19, T20: whatever text somebody else sends us, what we show of it is one line that does nothing to a terminal or a page."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import logging
import random
from collections.abc import Awaitable, Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptunnel.cli.output import in_words
from p2ptunnel.cli.table import table
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.identity.keys import Identity
from p2ptunnel.identity.store import PeerStore
from p2ptunnel.pairing import Invitation
from p2ptunnel.peer import Peer
from p2ptunnel.trace import JsonLines, TraceEvent, Tracer, log_sink
from p2ptunnel.types import Address, ServerSpec, clean, format_address
from p2ptunnel.wire.frames import GoAway, GoAwayCode, Reset, ResetCode, decode, encode
from p2ptunnel.wire.messages import (
    ConnectAnswer,
    ConnectAnswerExtra,
    ConnectRequest,
    Message,
    Observed,
    PunchResult,
    PunchResultExtra,
    ReflexiveAnswer,
    ReflexiveProbe,
    Register,
    RegisterAnswer,
)
from tests.helpers import run
from tests.unit.traversal.wires import scripted_server

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
EVIL = "\x1b]0;owned\x07\x1b[2J\r\nfail  ok\n\u202egnp\u2066.exe\x9b31m<img src=x onerror=alert(1)>\"'{}%s"
EVIL_HOST = EVIL[:60]
DANGEROUS = "\x1b\x07\r\n\x9b\u202e\u2066\u2028\u2029\x00"


def assert_harmless(text: str) -> None:
    """Fail if a line of it does anything but be read."""
    for line in text.split("\n"):
        assert line.isprintable(), line
    assert "\nfail  ok" not in text
    text.encode("utf-8")


# --- from the rendezvous server ---------------------------------------------------------------------------------------------


def no(message: Message, source: Address) -> Message | tuple[Message, ...] | None:
    """Refuse everything in words of our own."""
    match message:
        case Register():
            return RegisterAnswer(mid=message.mid, code=500, em=EVIL)
        case ConnectRequest():
            return ConnectAnswer(mid=message.mid, code=500, em=EVIL)
        case ReflexiveProbe():
            return ReflexiveAnswer(mid=message.mid, code=500, em=EVIL)
        case _:
            return None


def liar(message: Message, source: Address) -> Message | tuple[Message, ...] | None:
    """Say of everybody that he is where no address is."""
    seen = Observed(host=EVIL_HOST, port=7, epoch=1, cookie="A" * 22)
    match message:
        case Register():
            return RegisterAnswer(mid=message.mid, code=200, em=EVIL, extra=seen)
        case ConnectRequest():
            result = PunchResult(mid=1, token="x", code=200, em=EVIL, extra=PunchResultExtra(host=EVIL_HOST, port=7))
            return (ConnectAnswer(mid=message.mid, code=200, extra=ConnectAnswerExtra(token="x")), result)
        case ReflexiveProbe():
            return ReflexiveAnswer(mid=message.mid, code=200, em=EVIL, extra=seen)
        case _:
            return None


def late(message: Message, source: Address) -> Message | tuple[Message, ...] | None:
    """Take a call, then say that it has failed."""
    match message:
        case ConnectRequest():
            result = PunchResult(mid=1, token="x", code=500, em=EVIL)
            return (ConnectAnswer(mid=message.mid, code=200, em=EVIL, extra=ConnectAnswerExtra(token="x")), result)
        case Register() | ReflexiveProbe():
            here = Observed(host=source[0], port=source[1], epoch=1)
            kind = RegisterAnswer if isinstance(message, Register) else ReflexiveAnswer
            return kind(mid=message.mid, code=200, em=EVIL, extra=here)
        case _:
            return None


async def call(peer: Peer) -> object:
    return await peer.connect("home-nas", "web", timeout=0.6)


async def serve(peer: Peer) -> object:
    async with asyncio.timeout(0.6), peer.serve({"web": 9}):
        return None


async def netcheck(peer: Peer) -> object:
    return await peer.netcheck(timeout=0.3)


@pytest.mark.parametrize("act", [call, serve, netcheck], ids=lambda act: act.__name__)
@pytest.mark.parametrize("script", [no, liar, late], ids=lambda script: script.__name__)
def test_nothing_that_a_server_says_reaches_a_terminal_as_it_is(
    script: Callable[[Message, Address], Message | None],
    act: Callable[[Peer], Awaitable[object]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    trace, shown = io.StringIO(), list[str]()

    async def scenario() -> None:
        async with scripted_server(script) as server:
            tracer = Tracer(log_sink, JsonLines(trace), lambda event: shown.append(repr(event)))
            async with Peer("laptop", rendezvous=format_address(server.address), profile=tmp_path, tracer=tracer) as peer:
                peer.peers.add("home-nas", Identity.generate().public)
                try:
                    shown.append(repr(await act(peer)))
                except (P2PTunnelError, TimeoutError) as error:
                    shown.extend((str(error), in_words(str(error)), getattr(error, "hint", "")))

    run(scenario(), timeout=15)
    assert shown != []
    for text in (*shown, *caplog.messages, *(record.getMessage() for record in caplog.records)):
        assert_harmless(text)
        assert "\n" not in text
    for line in trace.getvalue().splitlines():
        assert_harmless(json.dumps(json.loads(line), ensure_ascii=False).replace("\\n", "\n").replace("\\u001b", "\x1b"))


# --- from a peer --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: GoAway(next(iter(GoAwayCode)), EVIL), lambda: Reset(1, next(iter(ResetCode)), EVIL)])
def test_a_reason_that_a_peer_gives_is_cleaned_where_it_comes_in(make: Callable[[], GoAway | Reset]) -> None:
    frame = decode(encode(make()))
    assert isinstance(frame, GoAway | Reset)
    assert frame.reason.isprintable()


# --- how it is shown ---------------------------------------------------------------------------------------------------


@given(st.text(max_size=400))
def test_cleaned_text_is_harmless_in_a_line_in_a_table_in_json_and_in_a_log(text: str) -> None:
    shown = clean(text)
    assert_harmless(shown)
    assert not set(DANGEROUS) & set(shown)
    assert len(table(("A", "B"), ((shown, "x"),)).splitlines()) == 2
    assert json.loads(json.dumps({"x": shown})) == {"x": shown}
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("p2ptunnel.texts")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    log_sink(TraceEvent(0.0, "texts", "told", {"reason": shown}))
    logger.removeHandler(handler)
    assert [len(line.splitlines()) for line in lines] == [1]


# --- what the source promises ------------------------------------------------------------------------------------------


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / "p2ptunnel").rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def callee(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def uncleaned(tree: ast.AST) -> list[int]:
    """Lines that take the text of a message, `em`, and hand it to nobody who makes it fit to show."""
    kept = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and callee(node) in {"clean", "_refused"}
        for inner in ast.walk(node)
    }
    return [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "em" and id(node) not in kept
    ]


def test_the_text_of_an_answer_is_taken_through_clean_only() -> None:
    found = {str(path): lines for path, tree in sources() if (lines := uncleaned(tree))}
    assert found == {}
    assert uncleaned(ast.parse("show(answer.em)\nshow(clean(answer.em))")) == [1]


def raw_html(tree: ast.AST) -> list[int]:
    """Lines that make an HTML widget of anything but a constant, or let a widget's description be HTML."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            (callee(node) in {"HTML", "HTMLMath"} and any(not isinstance(a, ast.Constant) for a in arguments(node)))
            or any(keyword.arg == "description_allow_html" for keyword in node.keywords)
        )
    ]


def arguments(node: ast.Call) -> list[ast.expr]:
    return [*node.args, *(keyword.value for keyword in node.keywords)]


def test_no_html_is_built_from_a_variable() -> None:
    found = {str(path): lines for path, tree in sources() if (lines := raw_html(tree))}
    assert found == {}
    assert raw_html(ast.parse("W.HTML(value=f'<b>{tag}</b>')")) == [1]
    assert raw_html(ast.parse("HTML('<hr>')\nLabel(tag)\nText(description_allow_html=True)")) == [3]


def unescaped(tree: ast.AST) -> list[int]:
    """`_repr_html_` methods that put a value into their text without `escape`; `qr` draws squares and takes no text in."""
    return [
        value.lineno
        for method in ast.walk(tree)
        if isinstance(method, ast.FunctionDef) and method.name == "_repr_html_"
        for value in ast.walk(method)
        if isinstance(value, ast.FormattedValue)
        and not (isinstance(value.value, ast.Call) and callee(value.value) in {"escape", "qr"})
    ]


def test_what_a_notebook_shows_of_a_value_is_escaped() -> None:
    found = {str(path): lines for path, tree in sources() if (lines := unescaped(tree))}
    assert found == {}
    assert unescaped(ast.parse("def _repr_html_(self): return f'<b>{self.tag}</b>'")) == [1]
    assert unescaped(ast.parse("def _repr_html_(self): return f'<b>{html.escape(self.tag)}</b>'")) == []


class Page(HTMLParser):
    """What a browser would make of a piece of HTML: its elements, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


PIECES = ("<", ">", "&", "&lt;", "&#60;", '"', "'", "</p>", "<script>", "<img src=x onerror=alert(1)>", "<!--", "\x00", "a")


def test_ten_thousand_hostile_texts_are_nothing_but_text_in_a_notebook(tmp_path: Path) -> None:
    dice = random.Random(19)

    async def scenario() -> None:
        server, store = ServerSpec(("127.0.0.1", 7000)), PeerStore(tmp_path / "peers.toml")
        invitation = Invitation(Identity.generate(), store, "nas", server, services={}, expires=60, uses=1, tell=lambda _: None)
        for _ in range(10_000):
            hostile = "".join(dice.choices(PIECES, k=dice.randrange(1, 12)))
            invitation._over = hostile
            page = Page(invitation._repr_html_())
            assert (page.tags, page.text) == (["p"], f"Invitation of nas: {hostile}.")
        await invitation.close()

    run(scenario(), timeout=15)
