"""Two strangers behind two NATs: `pair`, `pair CODE`, `ssh`, and no key typed by hand."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from scripts.record_pairing import played, rendered, stage
from tests.unit.ssh.sshd import needs_openssh


def code_of(said: str) -> str:
    """The code, as somebody says it who cuts words short."""
    [tag, *words] = re.findall(r"^code +(home-nas)-(\w+)-(\w+)-(\w+)$", said, re.MULTILINE)[0]
    return " ".join([tag, *(word[:4] for word in words)])


def ticket_of(said: str) -> str:
    [ticket] = re.findall(r"^ticket +(\S+)$", said, re.MULTILINE)
    return str(ticket)


@needs_openssh
@pytest.mark.natlab
@pytest.mark.parametrize("given", [code_of, ticket_of])
def test_three_commands_take_two_strangers_to_a_login(given: Callable[[str], str]) -> None:
    with stage(delay=0.0) as there:
        invited, redeemed, told, login = played(there, given)
        home, laptop = ((machine.directory / "profile" / "peers.toml").read_text() for machine in (there.home, there.laptop))
    assert "home-nas is paired; it may open nothing here. This machine may open ssh there" in redeemed.said
    assert "laptop is paired; it may open ssh here" in told.said
    assert login.said.endswith("hello from Linux\n")
    assert "[peers.laptop]" in home
    assert "ssh_host_keys" in laptop
    assert redeemed.seconds < 10
    shown = rendered([invited, redeemed, told, login])
    assert "home-nas$ p2ptunnel pair --services ssh" in shown
    assert ticket_of(invited.said) not in shown
