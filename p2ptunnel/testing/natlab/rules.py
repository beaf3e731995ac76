"""The nftables rules that make a Linux kernel behave as a kind.  Rule: text only, no I/O.

Everywhere the device `wan` is outside.  A newline stands before each closing brace: older versions of nft insist.
"""

from __future__ import annotations

from typing import Final

from p2ptunnel.testing.natlab.kinds import Kind

__all__ = ["HOST_FIREWALL", "SECOND_HOP", "flush_rules", "mapping_rule", "router_rules"]

HOST_FIREWALL: Final = """
table inet fw {
 chain input {
  type filter hook input priority 0; policy drop;
  ct state established,related accept
  iif lo accept
 }
}
"""
"""A stateful firewall on a host that has no router."""

SECOND_HOP: Final = """
table inet far {
 chain forward {
  type filter hook forward priority 0; policy accept;
  ip ttl 1 drop
  ip6 hoplimit 1 drop
 }
}
"""
"""What leaves a router with one hop left dies at the next, which says nothing: no way through the internet is one hop long."""

_TRANSPORTS: Final = ("udp", "tcp")
_SHIFT: Final = {"udp": 0x0A5A, "tcp": 0x0C3C}
_FIRST_PORT: Final = {"udp": 20000, "tcp": 40000}
_SEQUENCE_LENGTH: Final = 1000


def router_rules(kind: Kind, wan_address: str, lan: str) -> str:
    """Return the rules of a router of this kind with this outside address, before this network."""
    return _table(
        "inet fw",
        _chain("input", f"filter hook input priority 0; policy {_input_policy(kind)}", _input(kind)),
        _chain("forward", f"filter hook forward priority 0; policy {_forward_policy(kind)}", _forward(kind)),
    ) + _table(
        "ip nat",
        *_maps(kind),
        _chain("pre", "nat hook prerouting priority -100", _inward(kind, wan_address)),
        _chain("forw", "filter hook forward priority -5", _remember(kind)),
        _chain("post", "nat hook postrouting priority 100", _outward(kind, wan_address, lan)),
    )


def flush_rules(kind: Kind) -> str:
    """Return the command that makes the router's own maps forget; empty if it has none."""
    return "".join(f"flush map ip nat {transport}_m\n" for transport in _TRANSPORTS if _is_open(kind))


def mapping_rule(wan_address: str, transport: str, outside_port: int, host: str, port: int) -> str:
    """Return the command that adds a static mapping."""
    return f"add rule ip nat pre ip daddr {wan_address} {transport} dport {outside_port} dnat to {host}:{port}\n"


def _table(name: str, *parts: str) -> str:
    return f"table {name} {{\n{''.join(parts)}}}\n"


def _chain(name: str, hook: str, rules: list[str]) -> str:
    return f" chain {name} {{\n  type {hook};\n{''.join(f'  {rule}' + chr(10) for rule in rules)} }}\n"


def _input_policy(kind: Kind) -> str:
    return "accept" if kind.unsolicited == "accept" else "drop"


def _input(kind: Kind) -> list[str]:
    rules = ["ct state established,related accept", 'iifname != "wan" accept', "meta l4proto { icmp, icmpv6 } accept"]
    if kind.unsolicited == "reject":
        rules += ['iifname "wan" meta l4proto tcp reject with tcp reset', 'iifname "wan" reject']
    return rules


def _forward_policy(kind: Kind) -> str:
    return "accept" if kind.ipv6 == "open" else "drop"


def _forward(kind: Kind) -> list[str]:
    rules = [] if kind.udp else ['meta l4proto udp oifname "wan" drop']
    if kind.only_port:
        rules.append(f'oifname "wan" tcp dport != {kind.only_port} ct state new drop')
    if kind.only_host:
        rules.append(f'oifname "wan" meta l4proto tcp ip daddr != {kind.only_host} ct state new drop')
    rules += [
        "ct state established,related accept",
        "ct state invalid drop",
        'iifname != "wan" accept',
        "ct status dnat accept",
    ]
    if kind.ipv6 == "reject":
        rules += ["meta l4proto tcp reject with tcp reset", "reject"]
    return rules


def _is_open(kind: Kind) -> bool:
    return kind.filtering != "address-and-port-dependent"


def _map_key(kind: Kind) -> str:
    return "inet_service" if kind.filtering == "endpoint-independent" else "ipv4_addr . inet_service"


def _maps(kind: Kind) -> list[str]:
    """Return the maps that let strangers in: connection tracking alone knows address-and-port-dependent filtering only."""
    if not _is_open(kind):
        return []
    body = f"type {_map_key(kind)} : ipv4_addr . inet_service; flags dynamic,timeout; timeout 5m;"
    return [f" map {transport}_m {{ {body} }}\n" for transport in _TRANSPORTS]


def _remember(kind: Kind) -> list[str]:
    if not _is_open(kind):
        return []
    far = "" if kind.filtering == "endpoint-independent" else "ip daddr . "
    return [f'oifname "wan" meta l4proto {t} update @{t}_m {{ {far}{t} sport : ip saddr . {t} sport }}' for t in _TRANSPORTS]


def _inward(kind: Kind, wan_address: str) -> list[str]:
    if not _is_open(kind):
        return []
    far = "" if kind.filtering == "endpoint-independent" else "ip saddr . "
    outside = "" if kind.hairpinning else 'iifname "wan" '
    return [f"{outside}ip daddr {wan_address} dnat ip to {far}{t} dport map @{t}_m" for t in _TRANSPORTS]


def _outward(kind: Kind, wan_address: str, lan: str) -> list[str]:
    rules: list[str] = []
    if kind.allocation == "shifted":  # a bijection of the inside port, so endpoint-independent
        rules = [f'oifname "wan" meta l4proto {t} snat to {wan_address} : {t} sport ^ {_SHIFT[t]:#06x}' for t in _TRANSPORTS]
    elif kind.allocation == "sequential":
        rules = [f'oifname "wan" meta l4proto {t} snat to {wan_address} : {_sequence(t)}' for t in _TRANSPORTS]
    rules.append('oifname "wan" masquerade' + (" fully-random" if kind.allocation == "random" else ""))
    if kind.hairpinning:
        rules.append(f'oifname != "wan" ip saddr {lan} ct status dnat snat to {wan_address}')
    return rules


def _sequence(transport: str) -> str:
    """Return the expression that gives each new flow the next port; by a map, since numgen counts in host byte order."""
    first = _FIRST_PORT[transport]
    ports = ", ".join(f"{i} : {first + i}" for i in range(_SEQUENCE_LENGTH))
    return f"numgen inc mod {_SEQUENCE_LENGTH} map {{ {ports} }}"
