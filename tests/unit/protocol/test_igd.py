"""Which external port a UPnP router is asked for next, after each refusal."""

from __future__ import annotations

import random

import pytest

from p2ptunnel.defaults import IGD_TRIES, PORTMAP_LIFETIME
from p2ptunnel.errors import ConfigError
from p2ptunnel.protocol.igd import IgdWish, igd_reason

PORT = 40123


def a_wish(*, takes_any: bool = False) -> IgdWish:
    return IgdWish("tcp", "192.168.1.2", PORT, random.Random(1), takes_any=takes_any)


def test_the_same_number_is_asked_for_first_and_never_for_ever() -> None:
    assert a_wish().arguments() == {
        "NewRemoteHost": "",
        "NewExternalPort": PORT,
        "NewProtocol": "TCP",
        "NewInternalPort": PORT,
        "NewInternalClient": "192.168.1.2",
        "NewEnabled": 1,
        "NewPortMappingDescription": "p2ptunnel",
        "NewLeaseDuration": PORTMAP_LIFETIME,
    }
    assert PORTMAP_LIFETIME > 0


def test_the_arguments_stand_in_the_order_of_the_standard() -> None:
    assert list(a_wish().arguments()) == [
        "NewRemoteHost",
        "NewExternalPort",
        "NewProtocol",
        "NewInternalPort",
        "NewInternalClient",
        "NewEnabled",
        "NewPortMappingDescription",
        "NewLeaseDuration",
    ]


@pytest.mark.parametrize("code", [718, 729])
def test_a_taken_port_leads_to_others_and_not_for_ever(code: int) -> None:
    wish = a_wish()
    tried = [wish.external_port]
    while wish.next_try(code):
        tried.append(wish.external_port)
    assert len(tried) == len(set(tried)) == IGD_TRIES
    assert all(49152 <= port <= 65535 for port in tried[1:])


def test_a_renewal_may_try_as_often_again() -> None:
    wish = a_wish()
    while wish.next_try(718):
        pass
    wish.granted()
    assert wish.next_try(718)


@pytest.mark.parametrize("code", [401, 402, 501, 606, 724, 725, 728, 800])
def test_what_another_port_would_not_change_is_not_asked_again(code: int) -> None:
    assert not a_wish().next_try(code)


@pytest.mark.parametrize("code", [401, 602])
def test_a_router_without_the_newer_action_is_asked_by_the_older_one(code: int) -> None:
    wish = a_wish(takes_any=True)
    assert wish.action == "AddAnyPortMapping"
    assert wish.next_try(code)
    assert (wish.action, wish.external_port) == ("AddPortMapping", PORT)
    assert not wish.next_try(code)


def test_a_privileged_port_is_never_asked_for() -> None:
    with pytest.raises(ConfigError, match="port 22: "):
        IgdWish("tcp", "192.168.1.2", 22, random.Random(1), takes_any=False)


def test_a_refusal_has_words_or_its_number() -> None:
    assert igd_reason(725) == "it maps for ever only, and what we could not take back after a crash is not asked for"
    assert igd_reason(999) == "code 999"
