"""T21, T30: no token, conkey, cookie, signature or key is ever shown: in a log, a trace, a repr, an error, a pickle."""

from __future__ import annotations

import copy
import gc
import importlib
import io
import logging
import pickle
import pkgutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

import p2ptunnel
from p2ptunnel.errors import P2PTunnelError
from p2ptunnel.identity.judge import Judge
from p2ptunnel.identity.keys import Identity
from p2ptunnel.protocol.machine import Datagram
from p2ptunnel.protocol.transaction import Request
from p2ptunnel.server import Rendezvous
from p2ptunnel.trace import JsonLines, Tracer, log_sink
from p2ptunnel.types import ServerSpec
from tests.helpers import run
from tests.helpers.meeting import HELLO, HOME, LAPTOP, echo, meeting
from tests.security.issued import Issued

PAYLOAD = "this-is-what-was-said-in-confidence"

SECRET_FIELDS = frozenset(
    {
        *("token", "conkey", "cookie", "sig", "signature", "nonce", "intent", "join", "rekey", "sealed", "selector", "secret"),
        *("seed", "private_key", "password", "passphrase", "ticket", "mac", "mac_key", "seal_key"),
    }
)
"""What a field is called that holds a secret, or what only the two ends of an exchange should know."""


def modules() -> Iterator[Any]:
    for info in pkgutil.walk_packages(p2ptunnel.__path__, "p2ptunnel."):
        if not info.name.startswith(("p2ptunnel.testing", "p2ptunnel.__main__")):
            yield importlib.import_module(info.name)


def structs_with_secrets() -> list[type[msgspec.Struct]]:
    """Every struct of the package that has a field by such a name."""
    kinds = {
        kind: None
        for module in modules()
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__.startswith("p2ptunnel.")
    }
    return sorted((kind for kind in kinds if secret_fields(kind)), key=lambda kind: (kind.__module__, kind.__qualname__))


def secret_fields(kind: type[msgspec.Struct]) -> set[str]:
    """Fields by such a name, except those that hold a value which shows itself."""
    return {name for name in SECRET_FIELDS & set(kind.__struct_fields__) if kind.__annotations__.get(name) != "Intent"}


# --- what is told of a run ------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_the_whole_log_and_trace_of_a_run_hold_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything told at the most verbose level, of a server and two peers that meet, fail to, and meet again."""
    issued, trace, told = Issued(monkeypatch), io.StringIO(), list[str]()
    caplog.set_level(logging.DEBUG)
    tracer = Tracer(log_sink, JsonLines(trace), lambda event: told.append(repr(event)))

    async def scenario() -> None:
        async with meeting(tmp_path, "web", make=lambda: Rendezvous(("127.0.0.1", 0), tracer=tracer)) as there:
            for events in (there.home_events, there.laptop_events):
                for sink in (log_sink, JsonLines(trace), lambda event: told.append(repr(event))):
                    events.tracer.add(sink)
            async with there.home.serve({"web": echo}):
                async with await there.laptop.connect(HOME, "web") as stream:
                    await stream.write(PAYLOAD.encode())
                    assert (await stream.readexactly(len(PAYLOAD))).decode() == PAYLOAD
                    told.extend(reprs())
                stranger = there.peer("stranger", tracer=tracer)
                async with stranger:
                    stranger.peers.add(HOME, there.home.key)
                    told.extend(await failure(lambda: stranger.connect(HOME, "web", timeout=5)))
                    stranger.peers.remove(HOME)
                    stranger.peers.add(HOME, Identity.generate().public)
                    told.extend(await failure(lambda: stranger.connect(HOME, "web", timeout=5)))
                told.extend(await failure(lambda: there.laptop.connect(HOME, "no-such-service")))
                told.extend(await failure(lambda: there.laptop.connect("nobody", "web", timeout=5)))
            for name in (HOME, LAPTOP):
                issued.add(Path(tmp_path, name, "identity.key").read_text().splitlines()[1], "a key file")
            told.extend(repr(each) for each in (there.home, there.laptop, there.server, there.home.peers))

    run(scenario(), timeout=50)
    text = "\n".join((*caplog.messages, caplog.text, trace.getvalue(), *told))
    assert len(issued) > 50
    assert len(text) > 10_000
    assert issued.found_in(text) == set()
    assert PAYLOAD not in text
    assert HELLO.decode() not in text


async def failure(work: Callable[[], Any]) -> list[str]:
    """What there is to see of the error that `work` ends with: its text, repr, hint, traceback, and itself pickled."""
    try:
        await work()
    except P2PTunnelError as error:
        again = pickle.loads(pickle.dumps(error))
        return [str(error), repr(error), error.hint, repr(vars(error)), repr(again), "".join(traceback.format_exception(error))]
    raise AssertionError("it should have failed")


def reprs() -> Iterator[str]:
    """How every living object of the package shows itself."""
    for thing in gc.get_objects():
        if str(type(thing).__module__).startswith("p2ptunnel.") and not isinstance(thing, type):
            yield repr(thing)


def test_what_is_issued_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    issued, dice = Issued(monkeypatch), __import__("random").SystemRandom()
    made = dice.getrandbits(128)
    for shown in (str(made), f"{made:032x}", repr(made.to_bytes(16, "big"))):
        assert issued.found_in(f"x={shown};") == {"128 random bits"}
    assert issued.found_in("x=1") == set()


# --- how things show themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", structs_with_secrets(), ids=lambda kind: f"{kind.__module__[10:]}.{kind.__qualname__}")
def test_a_value_with_a_secret_does_not_show_it(kind: type[msgspec.Struct]) -> None:
    try:
        value = kind(**{name: f"<{name}>" for name in kind.__struct_fields__})
        shown = f"{value!r} {value}"
    except (
        AttributeError,
        TypeError,
        ValueError,
        P2PTunnelError,
    ):  # it looks at what it is made of: so it shows itself its way
        assert "__repr__" in vars(kind)
        return
    assert [name for name in secret_fields(kind) if f"<{name}>" in shown] == []


def test_there_are_such_values() -> None:
    names = {kind.__name__ for kind in structs_with_secrets()}
    assert names >= {"ConkeyExtra", "RegisterExtra", "Hello", "Accept", "PunchResult"}


def test_a_datagram_does_not_show_its_bytes_nor_does_a_request_that_waits() -> None:
    server = ("192.0.2.1", 7000)
    assert "TOKEN" not in repr(Datagram(b'{"token":"TOKEN"}', server))
    assert "TOKEN" not in repr(Request(4, 1, b'{"token":"TOKEN"}', server, 0.0, 5.0, 0.1, 0.1))


@pytest.mark.parametrize("holder", [Judge(join_token="TOKEN"), ServerSpec(("192.0.2.1", 7000), join_token="TOKEN")])
def test_a_join_token_is_in_no_pickle(holder: Judge | ServerSpec) -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(holder)
    assert "TOKEN" not in repr(holder)


def test_an_identity_leaves_this_process_by_no_way_but_its_file() -> None:
    identity = Identity.from_seed(b"0123456789abcdef0123456789abcdef")
    pem = identity.private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="not pickled or copied") as refused:
            attempt(identity)
        shown = "".join(traceback.format_exception(refused.value)) + f"{identity!r}{identity}"
        for secret in ("0123456789abcdef", b"0123456789abcdef".hex(), pem.decode().splitlines()[1]):
            assert secret not in shown
