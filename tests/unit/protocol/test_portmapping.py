"""What a router's answers are worth: epochs, outside addresses, double NAT, and the words for people."""

from __future__ import annotations

import pytest

from p2ptunnel.errors import ConfigError, InvalidAddressError
from p2ptunnel.protocol.portmapping import (
    EpochWatch,
    PortMapped,
    PortMapping,
    PortRefused,
    PortUnmapped,
    double_nat,
    mappable_port,
    outside_refusal,
)


@pytest.mark.parametrize(
    ("epoch", "after", "has_restarted"),
    [
        (1100, 100, False),
        (1099, 100, False),  # its clock and ours are not in step
        (999, 0, False),
        (998, 0, True),
        (0, 100, True),
        (1091, 100, True),  # 9 of 100 seconds are missing
        (1092, 100, False),
        (1000 + 108, 100, False),
        (1000 + 110, 100, True),  # we have slept
        (1000, 3, True),
        (2**32 - 1, 1, True),
    ],
)
def test_a_restart_shows_in_the_epoch(epoch: int, after: float, has_restarted: bool) -> None:
    watch = EpochWatch()
    assert not watch.take(1000, 50.0)
    assert watch.take(epoch, 50.0 + after) is has_restarted


def test_after_a_restart_the_new_epoch_counts() -> None:
    watch = EpochWatch()
    watch.take(1000, 0.0)
    assert watch.take(0, 10.0)
    assert not watch.take(10, 20.0)


@pytest.mark.parametrize(
    ("external", "observed", "said"),
    [
        ("198.51.101.7", "", ""),
        ("198.51.101.7", "198.51.101.7", ""),
        ("198.51.101.7", "::ffff:198.51.101.7", ""),
        ("2001:db8::2", "2001:0db8::2", ""),
        ("192.168.0.10", "198.51.101.7", "the router's outside address 192.168.0.10 is private"),
        ("100.64.3.4", "", "the router's outside address 100.64.3.4 is private"),
        ("169.254.1.1", "", "the router's outside address 169.254.1.1 is link-local"),
        ("198.51.101.7", "203.0.113.5", "the router's outside address is 198.51.101.7, others see 203.0.113.5"),
    ],
)
def test_another_nat_above_the_router_is_seen(external: str, observed: str, said: str) -> None:
    assert double_nat(external, observed) == said


def test_a_name_is_no_outside_address() -> None:
    with pytest.raises(InvalidAddressError):
        double_nat("router.example")


@pytest.mark.parametrize("port", [1024, 40123, 65535])
def test_a_port_that_anybody_may_have_can_be_mapped(port: int) -> None:
    assert mappable_port(port) == port


@pytest.mark.parametrize("port", [-1, 0, 1, 80, 1023, 65536])
def test_a_privileged_port_is_not_mapped(port: int) -> None:
    with pytest.raises(ConfigError) as caught:
        mappable_port(port)
    assert str(caught.value) == f"port {port}: no router is asked to open a port below 1024"


@pytest.mark.parametrize(
    ("host", "port", "reason"),
    [
        ("198.51.101.7", 40123, None),
        ("100.64.0.1", 1024, None),
        ("198.51.101.7", 1023, "it gives a privileged port"),
        ("198.51.101.7", 0, "it gives no port"),
        ("198.51.101.7", 70000, "it gives no port"),
        ("", 40123, "it has no outside address"),
        ("127.1", 40123, "it has no outside address"),
        ("255.255.255.255", 40123, "its outside address is broadcast"),
        ("::ffff:127.0.0.1", 40123, "its outside address is loopback"),
    ],
)
def test_an_outside_address_is_told_to_peers_only_if_it_may_be_one(host: str, port: int, reason: str | None) -> None:
    assert outside_refusal((host, port)) == reason


def test_every_outcome_says_itself_to_people() -> None:
    mapping = PortMapping(
        transport="tcp",
        local=("192.168.1.2", 40123),
        external=("198.51.101.7", 40124),
        lifetime=7200,
        protocol="PCP",
        gateway="192.168.1.1",
    )
    assert str(PortMapped(transport="tcp", mapping=mapping)) == "tcp 198.51.101.7:40124 by PCP"
    refused = PortRefused(transport="udp", protocol="UPnP", code=606, reason="not authorized")
    assert str(refused) == "udp refused by UPnP: not authorized (606)"
    assert str(PortUnmapped(transport="udp", reason="no answer")) == "udp not mapped: no answer"
