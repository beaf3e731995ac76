"""An attempt to reach a peer, told to people: what was tried, when, how it ended, and what to do about it.

Rule: values in, words and pictures out; whatever a picture shows is escaped.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from p2ptunnel.traversal.gantt import draw
from p2ptunnel.traversal.tries import Tries, Try
from p2ptunnel.types import Path, Tag, clean, format_address

__all__ = ["Explained", "Explanation", "explain", "next_step"]

_MS: Final = 1000
_WAYS: Final = {
    "server": "server",
    "lan": "LAN",
    "tcp": "TCP",
    "udp": "UDP",
    "quic": "QUIC",
    "relay": "relay",
    "channel": "TLS",
}
_NO_SYN: Final = (
    "No SYN got through: `p2ptunnel netcheck` on both machines tells whose NAT takes another port for each destination, or lets"
    " in none that meets its own."
)
_STEPS: Final[dict[tuple[str, str], str]] = {
    ("tcp", "silent"): _NO_SYN,
    ("tcp", "replaced"): _NO_SYN,
    (
        "tcp",
        "refused",
    ): "Something there answers RST: a router with no hole for us, or nobody listens. Is the peer still running?",
    ("tcp", "burnt"): "Another program of this machine has the local port; the next attempt takes another.",
    ("tcp", "dead"): "This machine cannot send there: look at its routes and at its own firewall.",
    ("udp", "silent"): "No datagram got through: a firewall drops UDP, or a NAT takes another port for each destination.",
    ("lan", "failed"): "Somebody in this network announced that peer and did not speak for it, or was cut off.",
    ("server", "failed"): "Is the server up, and the peer registered? `p2ptunnel status`",
    ("relay", "failed"): "Without a direct path the relay is the only way: does the server have one, and is our quota used up?",
    (
        "channel",
        "failed",
    ): "Who answered there did not speak for the peer, or was cut off: a stranger's port, or the peer was set up anew.",
}


class Explained(Try, frozen=True, kw_only=True):
    """One way that was tried, and what to do about it.

    Attributes:
        next_step: For the person at the keyboard; empty where there is nothing to do, and beside a direct path.
    """

    next_step: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt to reach a peer; `str` of it is for eyes, and a notebook shows it as a picture.

    Attributes:
        tag: The peer's, here.
        began: Seconds since 1970.
        path: Where the connection runs now; None: there is none.
        error: Why there is none, in words; empty where there is one, or while it is tried.
        hint: What to do about that.
        tries: What was tried, in the order in which it began.
    """

    tag: Tag
    began: float
    path: Path | None
    error: str = ""
    hint: str = ""
    tries: tuple[Explained, ...] = ()

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.path is None:
            return self.error or f"{self.tag}: no connection came up while it was waited for"
        rtt = "" if self.path.rtt is None else f", {self.path.rtt * _MS:.0f} ms there and back"
        return f"{self.tag}: connected, {self.path.kind} {self.path.transport} {self.path.place}{rtt}"

    @property
    def duration_ms(self) -> float:
        """From the first beginning to the last end that is known."""
        return max((each.start_ms if each.end_ms is None else each.end_ms for each in self.tries), default=0.0)

    def svg(self) -> str:
        """Return the tries as bars on a line of time, one SVG element that needs nothing beside itself."""
        bars = [(_label(each), each.start_ms, each.end_ms, each.outcome, each.reason) for each in self.tries]
        return draw(self.verdict, bars)

    def __str__(self) -> str:
        lines = [f"{'START':>8} {'END':>8}  {'WAY':<7}{'KIND':<7}{'OUTCOME':<11}WHAT"]
        lines += [_line(each) for each in self.tries]
        steps = dict.fromkeys((self.hint, *(each.next_step for each in self.tries)))
        todo = [f"next: {step}" for step in steps if step]
        return "\n".join((*(lines if self.tries else ()), self.verdict, *todo))

    def _repr_svg_(self) -> str:
        return self.svg()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        """Return what a notebook shows; `kwargs` are its wishes, of which there are none to grant."""
        return {"text/plain": str(self), "image/svg+xml": self.svg()}


def explain(tag: Tag, tries: Tries, path: Path | None) -> Explanation:
    """Tell of an attempt as far as it has come.

    Args:
        tag: The peer's, here.
        tries: What was tried.
        path: Where the connection runs now, None if there is none.
    """
    error = tries.error if path is None else None
    is_direct = path is not None and path.kind != "relay"
    return Explanation(
        tag=tag,
        began=tries.began_at,
        path=path,
        error="" if error is None else clean(str(error)),
        hint="" if error is None else error.hint,
        tries=tuple(
            Explained(**msgspec.structs.asdict(each), next_step="" if is_direct else next_step(each)) for each in tries.all
        ),
    )


def next_step(tried: Try) -> str:
    """Return what to do where a way did not lead to the peer; empty where there is nothing to do."""
    return tried.hint or _STEPS.get((tried.way, tried.outcome), "")


def _label(tried: Try) -> str:
    kind = "" if tried.kind in {None, "relay"} else f" {tried.kind}"
    where = "" if tried.remote is None else f" {format_address(tried.remote)}"
    return f"{_WAYS[tried.way]}{kind}{where}"


def _line(tried: Try) -> str:
    end = "..." if tried.end_ms is None else f"{tried.end_ms:.0f} ms"
    where = "" if tried.remote is None else f"{format_address(tried.remote)} "
    ours = "" if tried.local is None else f" from port {tried.local[1]}"
    told = f": {tried.reason}" if tried.reason not in {"", tried.outcome} else ""
    head = f"{tried.start_ms:>5.0f} ms {end:>8}  {_WAYS[tried.way]:<7}{tried.kind or '':<7}{tried.outcome:<11}"
    return f"{head}{where}{tried.sent}{ours}{told}"
