"""Buttons that answer an access request: clicked as a browser would have them clicked, without one."""

from __future__ import annotations

import asyncio
import importlib
import threading
from typing import Any

import pytest

from p2ptunnel.asking import AccessRequest
from p2ptunnel.notebook.ask import AskBox
from p2ptunnel.types import Path
from tests.helpers import run
from tests.helpers.peers import CALLER

widgets: Any = pytest.importorskip("ipywidgets", reason="ipywidgets is not installed: pip install 'p2ptunnel[notebook]'")

PATH = Path(kind="direct", transport="tcp", local=("192.0.2.1", 1), remote=("203.0.113.7", 2))


def request(service: str = "ssh") -> AccessRequest:
    return AccessRequest(1, "laptop", CALLER.public, service, PATH, service)


def buttons(box: AskBox, question: int = 0) -> dict[str, Any]:
    """The buttons of an open question by their texts."""
    return {button.description: button for button in box.widget.children[question].children[1].children}


async def shown(box: AskBox, questions: int = 1) -> None:
    while len(box.widget.children) < questions:
        await asyncio.sleep(0)


@pytest.mark.parametrize(("text", "decision"), [("Once", "once"), ("1 hour", "hour"), ("Always", "always"), ("No", "no")])
def test_a_click_is_the_answer_and_takes_the_question_away(text: str, decision: str) -> None:
    async def scenario() -> None:
        box = AskBox()
        asking = asyncio.ensure_future(box.ask(request()))
        await shown(box)
        assert (
            box.widget.children[0].children[0].value
            == f"laptop (p2p:{CALLER.public.short}…) wants ssh via direct tcp 203.0.113.7"
        )
        clicked = buttons(box)[text]
        clicked.click()
        clicked.click()  # a second click answers nothing more
        assert await asking == decision
        assert box.widget.children == ()

    run(scenario())


def test_a_click_in_another_thread_is_heard() -> None:
    async def scenario() -> None:
        box = AskBox()
        asking = asyncio.ensure_future(box.ask(request()))
        await shown(box)
        thread = threading.Thread(target=buttons(box)["Once"].click)
        thread.start()
        assert await asking == "once"
        thread.join()

    run(scenario())


def test_two_questions_have_their_own_buttons_and_one_that_is_given_up_leaves() -> None:
    async def scenario() -> None:
        box = AskBox()
        first, second = (asyncio.ensure_future(box.ask(request(name))) for name in ("ssh", "web"))
        await shown(box, 2)
        late = buttons(box, 0)["Always"]
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        late.click()  # of a question that has gone
        assert len(box.widget.children) == 1
        buttons(box)["No"].click()
        assert await second == "no"

    run(scenario())


def test_what_a_peer_says_is_shown_as_text_and_never_as_markup() -> None:
    async def scenario() -> None:
        box = AskBox()
        hostile = "<img src=x onerror=alert(1)>"
        asking = asyncio.ensure_future(box.ask(request(hostile)))
        await shown(box)
        line = box.widget.children[0].children[0]
        assert type(line) is widgets.Label
        assert hostile in line.value
        assert not line.description_allow_html
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    run(scenario())


def test_nothing_is_left_in_the_kernel() -> None:
    async def scenario() -> None:
        box = AskBox()
        known = importlib.import_module("ipywidgets.widgets.widget")._instances
        before = len(known)
        asking = asyncio.ensure_future(box.ask(request()))
        await shown(box)
        assert len(known) > before
        buttons(box)["No"].click()
        await asking
        assert len(known) == before

    run(scenario())


def test_a_cell_that_ends_with_the_box_shows_it() -> None:
    box = AskBox()
    shown: Any = box._repr_mimebundle_(include=None, exclude=None)
    assert shown["application/vnd.jupyter.widget-view+json"]["model_id"] == box.widget.model_id
