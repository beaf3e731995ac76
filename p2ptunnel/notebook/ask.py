"""The notebook face of access requests: a line and four buttons for each question.

Rule: what came from a peer is shown by `Label`, which renders no markup.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Callable
from typing import Any, Final

from p2ptunnel.asking import AccessRequest, Decision
from p2ptunnel.errors import MissingExtraError

__all__ = ["AskBox"]

_BUTTONS: Final[tuple[tuple[str, Decision, str], ...]] = (
    ("Once", "once", ""),
    ("1 hour", "hour", ""),
    ("Always", "always", "warning"),
    ("No", "no", "danger"),
)


class AskBox:
    """Asks with buttons: `box = AskBox()`, `peer.serve(..., ask=box.ask)`, and `box` at the end of a cell.

    Attributes:
        widget: A `VBox` of the questions that are open; empty as long as nobody wants anything.

    Raises:
        MissingExtraError: ipywidgets is not installed.
    """

    def __init__(self) -> None:
        try:
            self._widgets: Final[Any] = importlib.import_module("ipywidgets")  # it has no types
        except ImportError:
            raise MissingExtraError("buttons to ask with", "notebook") from None
        self.widget: Final[Any] = self._widgets.VBox()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """A cell that ends with the box shows its questions."""
        return self.widget._repr_mimebundle_(**kwargs)

    async def ask(self, request: AccessRequest) -> Decision:
        """Show the question until a button is clicked, or until nobody wants to know any more."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Decision] = loop.create_future()

        def settle(decision: Decision) -> None:
            if not answer.done():
                answer.set_result(decision)

        def clicked(decision: Decision) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
                loop.call_soon_threadsafe(settle, decision)  # the kernel's thread need not be ours

        question = self._question(request, clicked)
        self.widget.children = (*self.widget.children, question)
        try:
            return await answer
        finally:
            self.widget.children = tuple(child for child in self.widget.children if child is not question)
            _close(question)

    def _question(self, request: AccessRequest, clicked: Callable[[Decision], None]) -> Any:
        line = self._widgets.Label(value=str(request))
        buttons = [self._button(*button, clicked) for button in _BUTTONS]
        return self._widgets.VBox([line, self._widgets.HBox(buttons)])

    def _button(self, text: str, decision: Decision, style: str, clicked: Callable[[Decision], None]) -> Any:
        def on_click(_: object) -> None:
            clicked(decision)

        button = self._widgets.Button(description=text, button_style=style)
        button.on_click(on_click)
        return button


def _close(widget: Any) -> None:
    """Take a widget and all below it out of the kernel's memory."""
    for child in getattr(widget, "children", ()):
        _close(child)
    for name in ("layout", "style"):  # which are widgets, too
        if hasattr(widget, name):
            getattr(widget, name).close()
    widget.close()
